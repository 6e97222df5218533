"""Tasks and workflows that the tests run under every executor, in a module that other processes can import."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shunter import TaskFuture, flow, task
from shunter.futures import TaskFutures


@task
def add(*numbers: int) -> int:
    """The sum of its arguments."""
    return sum(numbers)


@task
def total(numbers: list[int]) -> int:
    """The sum of a list."""
    return sum(numbers)


@task
def fail(text: str = "no") -> int:
    """Raises."""
    raise ValueError(text)


@task
def pid_of(_: Any = None) -> int:
    """Of the process that executes it."""
    return os.getpid()


@task
def thread_of(_: Any = None) -> str:
    """Of the thread that executes it."""
    return threading.current_thread().name


@task
def nap(seconds: float) -> float:
    """Sleeps."""
    time.sleep(seconds)
    return seconds


@task
async def add_async(*numbers: int) -> int:
    """The sum, by a coroutine."""
    return sum(numbers)


@task
def leave(how: str) -> Any:
    """Ends in one of the ways in which a function should not."""
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(7)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fork":
        if os.fork() == 0:
            return "the child"
        os.wait()
        return "the parent"
    if how == "generator":
        return (n for n in range(3))
    if how == "lock":
        return threading.Lock()
    if how == "odd":
        raise OddError("text", threading.Lock())
    raise AssertionError(how)


class OddError(Exception):
    """One that cannot be pickled."""


@task
def nested(depth: int) -> int:
    """Submits itself and waits, so many times."""
    return depth if depth == 0 else 1 + nested.submit(depth - 1).result()


@flow
def inner(n: int) -> int:
    """A flow for tasks to call."""
    return add.submit(add.submit(n, 1), 1).result()


@task
def calls_flow(n: int) -> int:
    """A task that runs a flow."""
    return inner(n)


@task
def note(folder: str, name: str, *_: Any) -> str:
    """Leaves a line each time that it is executed."""
    with Path(folder, name).open("a") as file:
        file.write("x\n")
    return name


@task
def work(name: str, *inputs: int) -> int:
    """A step of a published workflow: what it gives depends on its name and on all that it got."""
    return (sum(inputs) * 31 + sum(map(ord, name))) % 1_000_003


Step = tuple[str, list[str]]


def montage(images: int) -> list[Step]:
    """Montage (mosaics of the sky): project each image, fit neighbours, model the background, correct, add, shrink."""
    steps: list[Step] = [(f"mProject{i}", []) for i in range(images)]
    pairs = [(i, j) for i in range(images) for j in (i + 1, i + 2, i + 3) if j < images]
    steps += [(f"mDiffFit{i}-{j}", [f"mProject{i}", f"mProject{j}"]) for i, j in pairs]
    steps.append(("mConcatFit", [f"mDiffFit{i}-{j}" for i, j in pairs]))
    steps.append(("mBgModel", ["mConcatFit"]))
    steps += [(f"mBackground{i}", [f"mProject{i}", "mBgModel"]) for i in range(images)]
    steps.append(("mImgtbl", [f"mBackground{i}" for i in range(images)]))
    steps.append(("mAdd", ["mImgtbl", *(f"mBackground{i}" for i in range(images))]))
    steps.append(("mShrink", ["mAdd"]))
    steps.append(("mJPEG", ["mShrink"]))
    return steps


def epigenomics(lanes: int, chunks: int) -> list[Step]:
    """Epigenomics (maps of DNA methylation): split each lane, a pipeline of four for each chunk, merge twice, index."""
    steps: list[Step] = []
    for lane in range(lanes):
        steps.append((f"fastqSplit{lane}", []))
        for c in range(chunks):
            at = f"{lane}-{c}"
            steps.append((f"filterContams{at}", [f"fastqSplit{lane}"]))
            steps.append((f"sol2sanger{at}", [f"filterContams{at}"]))
            steps.append((f"fastq2bfq{at}", [f"sol2sanger{at}"]))
            steps.append((f"map{at}", [f"fastq2bfq{at}"]))
        steps.append((f"mapMerge{lane}", [f"map{lane}-{c}" for c in range(chunks)]))
    steps.append(("mapMergeAll", [f"mapMerge{lane}" for lane in range(lanes)]))
    steps.append(("maqIndex", ["mapMergeAll"]))
    steps.append(("pileup", ["maqIndex"]))
    return steps


def fan(width: int) -> list[Step]:
    """One, many, one, many, one."""
    return [
        ("first", []),
        *((f"a{i}", ["first"]) for i in range(width)),
        ("middle", [f"a{i}" for i in range(width)]),
        *((f"b{i}", ["middle"]) for i in range(width)),
        ("last", [f"b{i}" for i in range(width)]),
    ]


SHAPES: dict[str, list[Step]] = {
    "montage": montage(50),
    "epigenomics": epigenomics(4, 15),
    "fan": fan(150),
}


def by_hand(shape: str) -> dict[str, int]:
    """What each step gives, worked out without any flow."""
    function: Callable[..., int] = work.fn
    values: dict[str, int] = {}
    for name, needs in SHAPES[shape]:
        values[name] = function(name, *(values[need] for need in needs))
    return values


@flow
def workflow(shape: str) -> dict[str, int]:
    """Run one of the shapes by futures alone."""
    futures: dict[str, TaskFuture[int]] = {}
    for name, needs in SHAPES[shape]:
        futures[name] = work.submit(name, *(futures[need] for need in needs))
    return dict(zip(futures, TaskFutures(futures.values()).result(), strict=True))
