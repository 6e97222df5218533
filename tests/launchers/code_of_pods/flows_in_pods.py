"""Flows of pods: what a task does beside its value is told to the test (``$EFFECTS``, see ``tests/helm/effects.py``)."""

from __future__ import annotations

import logging
import os
import time
import urllib.request
from typing import Any

from shunter import artifacts, context, flow, get_logger, task, track


def did(what: object) -> None:
    """A side effect."""
    urllib.request.urlopen(f"{os.environ['EFFECTS']}/ended/{what}").close()


def held(what: object) -> None:
    """The same, and the test says when it is over."""
    urllib.request.urlopen(f"{os.environ['EFFECTS']}/began/{what}").close()


def note(of: Any, run: Any, state: Any) -> None:
    """A hook."""
    print("hook:", of.name, state.name, getattr(run, "parameters", ""), state.error, flush=True)
    did(f"hook-{of.name}-{state.name}")


@task
def square(n: int) -> int:
    did(f"square-{n}")
    if n == 9 and context.attempt == 1:
        raise ValueError("the last one fails")
    return n * n


@task
def large(n: int) -> bytes:
    did(f"large-{n}")
    return bytes([n]) * 100_000


@task
def size(data: bytes) -> int:
    did("size")
    return len(data)


@task
def in_a_process(n: int) -> int:
    did(f"process-{n}")
    return os.getpid()


@task
def slowly(n: int) -> int:
    time.sleep(0.02 if context.attempt == 1 else 0)
    did(f"slowly-{n}")
    return n


@task(on_cancelled=[note])
def waits(*_: Any) -> str:
    did("waits")
    held("waits")
    return "waited"


@flow(executor="processes")
def below() -> bool:
    """Its tasks are executed in other processes of the pod."""
    return os.getpid() not in in_a_process.map(range(2)).result()


@flow
def whole(upto: int) -> dict[str, Any]:
    """All that a flow does, of which the last task fails at first."""
    get_logger().warning("from the flow")
    logging.getLogger("some.library").info("from a library")
    print("printed")
    sizes = size.map(large.map([1, 2])).result()
    other = below()
    artifacts.table("prices", [{"a": 1}])
    squares = square.map(track(range(upto), "squares")).result()
    return {"sizes": sizes, "other": other, "squares": sum(squares), "attempt": context.attempt}


@flow(on_cancelled=[note])
def many() -> int:
    """Tasks one after the other, for a long time at first; then those that are left are quick."""
    return sum(slowly(n) >= 0 for n in range(1000))


@flow(on_cancelled=[note], on_crashed=[note])
def long(n: int = 7) -> str:
    """Waits until the test lets it go on."""
    return waits.submit(size(large(n))).result()
