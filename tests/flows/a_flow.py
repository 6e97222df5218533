"""A flow in a process of its own that tests kill, stop, and start again: ``a_flow.py FLOW FOLDER [ARGUMENT...]``.

Each task leaves a line in FOLDER/ran when it is executed, so that it can be seen what was executed again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from shunter import artifacts, context, flow, get_logger, task, track

folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()


def ran(name: object) -> None:
    """A side effect."""
    with (folder / "ran").open("a") as file:
        file.write(f"{name}\n")


def there(name: str) -> bool:
    """Whether the test has left this for the flow to find."""
    return (folder / name).exists()


@task
def square(n: int) -> int:
    ran(n)
    if n == 99 and not there("good"):
        raise ValueError("the last one fails")
    return n * n


@task
def large(n: int) -> bytes:
    ran(f"large{n}")
    return bytes([n]) * 100_000


@task
def size(data: bytes) -> int:
    ran("size")
    return len(data)


@task
def wait_for_ever(*_: Any) -> str:
    ran("wait")
    (folder / "waiting").touch()
    while not there("good"):
        time.sleep(0.02)
    return "waited"


@flow
def hundred() -> int:
    """A hundred tasks, of which the last one fails."""
    futures = square.map(range(100))
    return sum(futures.result())


@flow
def below(n: int) -> int:
    ran("below")
    return square(n) + square.submit(n).result()


@flow
def mixed() -> list[Any]:
    """Inline results, results in files, called tasks, a flow inside, and then a long wait."""
    return _mixed(wait_for_ever)


def _mixed(last: Any) -> list[Any]:
    data = large.map([1, 2])
    sizes = size.map(data).result()
    inside = below(3)
    called = square(4)
    said = last.submit(data[0])
    return [sizes, inside, called, said.result()]


@flow
def mixed_late() -> list[Any]:
    """The same, once the test says so; it fails where that waits, if the test wants it to."""
    (folder / "begun").touch()
    while not there("go"):
        time.sleep(0.02)
    try:
        return _mixed(fails)
    finally:
        (folder / "failed").touch()


@task
def fails(*_: Any) -> str:
    ran("wait")
    (folder / "waiting").touch()
    while not there("good"):
        if there("fail"):
            raise ValueError("as the test wants it")
        time.sleep(0.02)
    return "waited"


@task
def square_slowly(n: int) -> int:
    time.sleep(0.1)
    ran(n)
    return n * n


@flow
def slow() -> int:
    """Tasks for some seconds, then one that fails."""
    futures = square_slowly.map(range(40))
    if len(futures.result()) and not there("good"):
        ran("wait")
        raise ValueError("as the test wants it")
    ran("wait")
    return 1


@task
def counted(n: int) -> Any:
    ran(f"began {n}")
    time.sleep(0.1)
    return bytes(20_000) if n % 5 == 0 else n


@flow
def counted_below(n: int) -> int:
    ran(f"began below{n}")
    return len([counted(n + i) for i in range(5)])


@flow
def counted_all(count: int) -> int:
    """What it has seen the end of has completed: that may not begin again, in whatever process."""
    futures = counted.map(range(count))
    for n in range(1000, 1500, 100):
        counted_below(n)
        ran(f"seen below{n}")
    for n, future in enumerate(futures):
        future.result()
        ran(f"seen {n}")
    while not there("good"):
        time.sleep(0.02)
    return count


@task
def a_task_that_raises() -> None:
    raise ValueError("no such thing")


@flow
def raises() -> None:
    a_task_that_raises.submit().result()


@task
def unkept() -> Any:
    ran("unkept")
    import threading

    return threading.Lock()


@task(persist=False)
def unwanted() -> int:
    ran("unwanted")
    return 5


@flow(result_limit=1000)
def odd() -> int:
    """Results that are not kept."""
    unkept()
    large.submit(1).result()
    unwanted.submit().result()
    square.submit(1).result()
    wait_for_ever()
    return 1


def note(what: str) -> Any:
    """A hook."""

    def hook(of: Any, run: Any, state: Any) -> None:
        ran(f"{what} {run.name} {state.name}")

    return hook


@task(on_cancelled=[note("hook")])
def sleeps(n: int) -> None:
    ran(f"sleeps{n}")
    while True:
        time.sleep(0.02)


@task(on_cancelled=[note("hook")])
async def sleeps_async() -> None:
    ran("sleeps-async")
    await asyncio.sleep(600)


def asleep(*names: str) -> bool:
    """Whether all of these sleep; then the test is told."""
    all_ = set(names) <= set((folder / "ran").read_text().split()) if there("ran") else False
    if all_:
        (folder / "waiting").touch()
    return all_


@flow(on_cancelled=[note("hook")], on_failure=[note("wrong")])
def stopped() -> None:
    """Is cancelled by the test."""
    running = sleeps.map([1, 2])
    sleeps_async.submit()
    square.submit(5, wait_for=running)
    while not asleep("sleeps1", "sleeps2", "sleeps-async"):
        time.sleep(0.01)
    running.result()


@flow(on_cancelled=[note("hook")])
async def stopped_async() -> None:
    """The same by ``await``."""
    sleeps_async.submit()
    one = sleeps.submit(1)
    while not asleep("sleeps1", "sleeps-async"):  # noqa: ASYNC110 # the others are in threads and loops of their own
        await asyncio.sleep(0.01)
    await one


@flow(on_cancelled=[note("hook")], executor="processes")
def stopped_processes() -> None:
    """The same in another process."""
    one = sleeps.submit(1)
    while not asleep("sleeps1"):
        time.sleep(0.01)
    one.result()


@flow
def inside(n: int = 3) -> dict[str, Any]:
    """What a run knows of itself."""
    get_logger().warning("from the flow")
    found = looks.submit().result()
    import logging

    logging.getLogger("some.library").info("two\nlines")
    print("printed", sys.stdout.write_through)  # type: ignore[attr-defined]
    artifacts.table("prices", [{"a": 1}, {"a": 2}], "what was found")
    artifacts.link("page", "https://example.org/x")
    return found | {"squares": sum(square(i) for i in track(range(n), "squares"))}


@task
def looks() -> dict[str, Any]:
    get_logger().info("from the task")
    return {
        "run_id": context.run_id,
        "attempt": context.attempt,
        "tags": context.tags,
        "deployment": context.deployment,
        "parameters": context.parameters,
        "scheduled": str(context.scheduled_at),
        "flow": context.flow,
        "task": context.task,
        "try": context.task_attempt,
        "key": bool(context.key),
    }


@flow
def forked() -> int:
    """Its process is killed by one of its own tasks."""
    square.map(range(5)).wait()
    if not there("good"):
        os.kill(os.getpid(), signal.SIGKILL)
    return square(6)


def after_crash(of: Any, run: Any, state: Any) -> None:
    """What a hook sees of a run whose process died."""
    print("crashed:", of.name, state.name, run.parameters, state.error, context.attempt)
    ran(f"crashed {context.run_id}")
    if there("hook-waits"):
        (folder / "hook").touch()
        while not there("hook-goes"):
            time.sleep(0.02)


@flow(on_crashed=[after_crash], on_failure=[note("wrong")])
def crashes(n: int = 7) -> int:
    """Is killed by the test."""
    print("begun", flush=True)
    wait_for_ever(n)
    return n


@flow(on_crashed=[after_crash])
async def crashes_async(n: int = 7) -> int:
    """The same by ``async def``."""
    print("begun", flush=True)
    await sleeps_async.submit()
    return n


if __name__ == "__main__":
    value = globals()[sys.argv[1]](*map(int, sys.argv[3:]))
    if hasattr(value, "__await__"):
        value = asyncio.run(value)
    print("value:", value)
