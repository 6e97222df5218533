"""Tasks in other processes have what those here have: errors, time-outs, logging, context, artifacts and progress."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shunter import TaskTimeout, artifacts, context, flow, flow_engine, get_logger, task, track
from shunter.errors import ExecutorError
from shunter.executors import Processes
from shunter.journal import Journal, lines
from shunter.runs import Root
from tests.flows.a_run import executed
from tests.flows.workflows import add


class TwoWords(Exception):
    """One that cannot be read where it was not made, as its arguments are not those of its constructor."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


@task
def two_words() -> None:
    raise TwoWords("apples", "pears")


@task(timeout=1)
def short(seconds: float) -> float:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
    return seconds


@task(timeout=1)
async def short_async(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@task(timeout=0.5)
async def blocking() -> None:
    time.sleep(60)  # noqa: ASYNC251 # what is guarded against


@task
def speaking() -> dict[str, Any]:
    get_logger().info("a word")
    logging.getLogger("library").info("another one")
    logging.getLogger("library").debug("too quiet")
    return {name: getattr(context, name) for name in ("parameters", "flow", "task", "task_attempt", "key")}


@task
def leaving() -> None:
    artifacts.markdown("report", "# Done")
    for _ in track([1, 2], "reading"):
        pass


@task
def leaving_before_it_fails() -> None:
    artifacts.markdown("before", "so far")
    raise ValueError("after it has left something")


@task
def starting() -> None:
    add.submit(1)
    below = slowly.submit()
    add.submit(below, 1)
    raise ValueError("after it has started others")


@task
def slowly() -> int:
    time.sleep(0.3)
    print("slowly", flush=True)
    return 1


@flow(executor="processes")
def spoken(upto: int, rows: Any = None) -> dict[str, Any]:
    return speaking.submit().result()


def pool() -> Executor:
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))


@pytest.mark.parametrize("kind", ["processes", "ProcessPoolExecutor"])
def test_an_error_that_cannot_be_read_elsewhere_is_told_in_words(kind: str) -> None:
    executor = pool() if kind != "processes" else kind

    @flow(executor=executor)
    def whole() -> int:
        with pytest.raises(ExecutorError, match="task two_words raised TwoWords: apples and pears") as told:
            two_words.submit().result()
        assert "two_words" in "".join(told.value.__notes__)
        return add.submit(1).result()

    assert whole() == 1


@pytest.mark.parametrize("kind", ["processes", "ProcessPoolExecutor"])
def test_the_time_of_a_task_is_that_of_its_try_not_of_its_waiting(kind: str) -> None:
    executor = pool() if kind != "processes" else Processes(2)

    @flow(executor=executor)
    def whole() -> list[Any]:
        many = short.map([0.3] * 10)
        late = [short.submit(30), short_async.submit(30)]
        found = many.result()
        for one in late:
            with pytest.raises(TaskTimeout, match="took longer than 1 seconds"):
                one.result()
        return [*found, short_async.submit(0.1).result()]

    before = time.monotonic()
    assert whole() == [0.3] * 10 + [0.1]
    assert time.monotonic() - before < 20


def test_the_process_of_a_coroutine_that_does_not_come_back_is_killed() -> None:
    @flow(executor="processes")
    def whole() -> None:
        with pytest.raises(TaskTimeout, match=r"blocking took longer than 0\.5 seconds"):
            blocking.submit().result()

    before = time.monotonic()
    whole()
    assert time.monotonic() - before < 20


def test_loggers_and_context_in_another_process(tmp_path: Path) -> None:
    code = (
        "from tests.flows.test_elsewhere import spoken\n"
        "found = spoken(3, rows=[bytes(3)])\n"
        "print(found['parameters'], found['flow'], found['task'], found['task_attempt'], len(found['key']))\n"
    )
    done = executed(code, tmp_path / "journal")
    assert " | INFO    | shunter.speaking | a word\n" in done.stderr
    assert " | INFO    | library | another one\n" in done.stderr
    assert "too quiet" not in done.stderr
    assert done.stdout == "{'upto': 3} spoken speaking 1 20\n"  # what is not JSON stays where it is


@pytest.mark.parametrize("kind", ["processes", "spawn", "fork"])
def test_artifacts_and_progress_of_another_process(kind: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context(kind) if kind != "processes" else None
    executor = ProcessPoolExecutor(1, context) if context is not None else kind

    @flow(executor=executor)
    def whole() -> None:
        leaving.submit().result()
        with pytest.raises(ValueError, match="after it has left something"):
            leaving_before_it_fails.submit().result()

    path = str(tmp_path / "journal")
    flow_engine.run(whole, (), {}, Root(Journal(path))).result()
    found = list(lines(path))
    artifact, before = [line for line in found if "art" in line]
    assert before["art"]["key"] == "before"
    (key,) = {line["k"] for line in found if line.get("t") == "leaving"}
    assert artifact["art"] == {"key": "report", "kind": "markdown", "data": "# Done", "description": ""}
    assert artifact["k"] == key
    assert [line["pr"]["done"] for line in found if "pr" in line][-1] == 2


def test_what_a_failed_task_has_started_is_waited_for_too(capfd: pytest.CaptureFixture[str]) -> None:
    @flow(executor=Processes(1))
    def whole() -> None:
        with pytest.raises(ValueError, match="after it has started others"):
            starting.submit().result()

    whole()
    assert "slowly" in capfd.readouterr().out
