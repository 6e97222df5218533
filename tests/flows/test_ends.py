"""Failures, retries, time-outs, hooks, and what state follows from what."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shunter import (
    FlowTimeout,
    State,
    TaskCancelled,
    TaskTimeout,
    UpstreamFailed,
    allow_failure,
    as_completed,
    context,
    flow,
    flow_engine,
    get_logger,
    task,
    wait,
)
from shunter.errors import TaskExit
from shunter.executors import Threads
from shunter.journal import Journal, lines
from shunter.runs import Root
from shunter.states import LETTERS
from tests.flows.workflows import add, add_async, fail, leave, nap, total
from tests.patience import SOON


class Pair(NamedTuple):
    """Two values."""

    first: Any
    second: Any


def test_one_failing_branch_does_not_stop_another() -> None:
    states: dict[str, str] = {}

    @flow
    def whole() -> int:
        bad = fail.submit()
        below = add.submit(bad, 1)
        further = add.submit(1, wait_for=[below])
        good = add.submit(add.submit(1), 1)
        wait([further, good])
        states.update(bad=bad.state, below=below.state, further=further.state, good=good.state)
        with pytest.raises(
            UpstreamFailed, match="task add was skipped: fail, which it needs, ended Failed"
        ) as told:
            below.result()
        assert isinstance(told.value.__cause__, ValueError)
        return good.result()

    assert whole() == 2
    assert states == {"bad": "Failed", "below": "Skipped", "further": "Skipped", "good": "Completed"}


def test_a_long_chain_below_a_failure_is_skipped() -> None:
    @flow
    def whole() -> str:
        future = fail.submit()
        for _ in range(3000):
            future = add.submit(future, 1)
        future.wait()
        return f"{future.state}: {future.error}"

    told = "Skipped: task add was skipped: add, which it needs, ended Skipped (ValueError: no)"
    assert whole() == told  # it says with what it began


def test_allow_failure_hands_over_the_exception() -> None:
    @task
    def kind(value: Any, *others: Any) -> str:
        return type(value).__name__

    @flow
    def whole() -> list[str]:
        bad, good = fail.submit(), add.submit(1)
        return [
            kind.submit(allow_failure(bad)).result(),
            kind.submit(allow_failure(good)).result(),
            kind.submit([allow_failure(bad)], wait_for=allow_failure(bad)).result(),
            kind.submit(1, wait_for=[allow_failure(bad)]).result(),
            kind.submit(allow_failure(bad), bad).final_state().name,
            kind(allow_failure(bad)),
        ]

    assert whole() == ["ValueError", "int", "list", "int", "Skipped", "ValueError"]


def test_a_called_task_raises_what_it_raised() -> None:
    @flow
    def whole() -> str:
        with pytest.raises(ValueError, match="no"):
            fail()
        with pytest.raises(UpstreamFailed):
            add(fail.submit())
        return "went on"

    assert whole() == "went on"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (lambda: 1, "Completed"),
        (lambda: None, "Completed"),
        (lambda: add.submit(1), "Completed"),
        (lambda: fail.submit(), "Failed"),
        (lambda: [add.submit(1), fail.submit()], "Failed"),
        (lambda: {"a": (fail.submit(),)}, "Failed"),
        (lambda: add.submit(fail.submit()), "Failed"),
        (lambda: [add.submit(1).final_state(), fail.submit().final_state()], "Failed"),
        (lambda: fail.submit().final_state(), "Failed"),
        (lambda: {"a": fail.submit().final_state()}, "Failed"),
        (lambda: {fail.submit().final_state()}, "Failed"),
        (lambda: Pair(add.submit(1).final_state(), fail.submit().final_state()), "Failed"),
        (lambda: Pair(add.submit(1).final_state(), 2), "Completed"),
        (lambda: State("Completed", 5), "Completed"),
        (lambda: [fail.submit() and 1], "Completed"),
        (lambda: 1 // 0, "Failed"),
        (lambda: _cancelled(), "Cancelled"),
        (lambda: (n for n in ()), "Failed"),
    ],
)
def test_the_final_state_of_a_flow(value: Callable[[], Any], name: str) -> None:
    @flow
    def whole() -> Any:
        return value()

    @flow
    async def whole_async() -> Any:
        return value()

    assert whole.run().name == name
    assert asyncio.run(whole_async.run()).name == name


def _cancelled() -> Any:
    future = add.submit(1, wait_for=nap.submit(0.2))
    assert future.cancel()
    return future


def test_returned_states_become_values() -> None:
    @flow
    def whole() -> Any:
        return {"a": add.submit(1).final_state(), "b": 3, "c": add.submit(2).final_state()}

    assert whole() == {"a": 1, "b": 3, "c": 2}

    @flow
    def pair() -> Any:
        return Pair(add.submit(1).final_state(), add.submit(2).final_state())

    assert pair() == Pair(1, 2)


def test_returned_futures_become_values() -> None:
    @flow
    def whole() -> Any:
        return {"list": add.map([1, 2]), "state": 3, "one": add.submit(4)}

    assert whole() == {"list": [1, 2], "state": 3, "one": 4}


def test_a_flow_ends_when_all_that_it_submitted_has_ended() -> None:
    done: list[float] = []

    @task
    def slow(n: float) -> None:
        time.sleep(n)
        done.append(n)

    @flow
    def whole() -> str:
        slow.map([0.05, 0.2])
        return "early"

    assert whole() == "early"
    assert done == [0.05, 0.2]
    done.clear()

    @flow
    def failing() -> None:
        slow.submit(0.1)
        raise RuntimeError("in the flow")

    with pytest.raises(RuntimeError, match="in the flow"):
        failing()
    assert done == [0.1]


@pytest.mark.parametrize("way", ["called", "submitted", "async called", "async submitted"])
def test_retries(way: str) -> None:
    tries: list[float] = []
    hooks: list[str] = []

    def body(n: int) -> int:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OSError("not yet")
        return n

    async def body_async(n: int) -> int:
        return body(n)

    options: dict[str, Any] = {"retries": 2, "retry_delay": 0.05, "retry_backoff": 3}
    executor = Threads(1)
    one = task(**options)(body_async if way.startswith("async") else body)
    one.on_completion(lambda t, run, state: hooks.append(f"{state.name} at {run.attempt}"))

    @flow(executor=executor)
    def whole() -> Any:
        return one.submit(5).result()

    @flow(executor=executor)
    async def whole_async() -> Any:
        return await one(5)

    @flow(executor=executor)
    def calling() -> Any:
        return one(5)

    if way == "async called":
        assert asyncio.run(whole_async()) == 5
    elif way == "called":
        assert calling() == 5
    else:
        assert whole() == 5
    assert len(tries) == 3
    assert tries[1] - tries[0] >= 0.05
    assert tries[2] - tries[1] >= 0.15
    assert hooks == ["Completed at 3"]


def test_delays_and_conditions() -> None:
    from shunter.retries import Retries

    def delays(count: int, **options: Any) -> list[float | None]:
        given = {"delay": 0.0, "backoff": 1.0, "jitter": 0.0, "condition": None} | options
        retries = Retries(count, **given)
        return [retries.after(n, OSError()) for n in range(1, count + 2)]

    assert delays(3, delay=2) == [2, 2, 2, None]
    assert delays(3, delay=2, backoff=3) == [2, 6, 18, None]
    assert delays(4, delay=[1, 5]) == [1, 5, 5, 5, None]
    assert delays(2, delay=lambda n: n * 10) == [10, 20, None]
    assert delays(0) == [None]
    assert delays(2, condition=OSError) == [0, 0, None]
    assert delays(2, condition=(ValueError, KeyError)) == [None, None, None]
    assert delays(2, condition=lambda exc: isinstance(exc, OSError)) == [0, 0, None]
    jittered = [d for _ in range(50) for d in delays(1, delay=10, jitter=0.5)[:1]]
    assert all(10 <= (d or 0) <= 15 for d in jittered)
    assert len(set(jittered)) > 10


def test_a_condition_that_fails_is_the_error() -> None:
    @task(retries=3, retry_if=lambda exc: 1 // 0 == 0)
    def one() -> None:
        raise OSError

    @flow
    def whole() -> None:
        one.submit().result()

    with pytest.raises(ZeroDivisionError):
        whole()


def test_a_retry_does_not_hold_a_thread_meanwhile() -> None:
    tried: list[int] = []

    @task(retries=1, retry_delay=0.3)
    def again() -> str:
        tried.append(1)
        if len(tried) == 1:
            raise OSError
        return "second"

    @flow(executor=Threads(1))
    def whole() -> tuple[str, str]:
        first = again.submit()
        other = add.submit(1)
        other.result()
        return first.state, first.result()

    assert whole() == ("Retrying", "second")


def test_a_flow_that_is_tried_again_does_not_repeat_what_completed() -> None:
    ran: list[Any] = []

    @task
    def step(n: int) -> int:
        ran.append(n)
        if n == 3 and ran.count(3) == 1:
            raise OSError("once")
        return n

    @flow
    def below(n: int) -> int:
        return step.submit(n).result()

    @flow(retries=1)
    def whole() -> list[int]:
        ran.append("flow")
        return [step.submit(1).result(), step(2), below(7), step(3), step.submit(3).result()]

    assert whole() == [1, 2, 7, 3, 3]
    assert ran == ["flow", 1, 2, 7, 3, "flow", 3, 3]


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_a_task_that_takes_too_long_fails_at_its_time(executor: str) -> None:
    @flow(executor=executor)
    def whole() -> float:
        add.submit(1).result()  # a process is there
        before = time.monotonic()
        with pytest.raises(TaskTimeout, match=r"task nap took longer than 0.2 seconds"):
            nap.with_options(timeout=0.2).submit(30).result()
        took = time.monotonic() - before
        assert add.submit(1, 2).result() == 3
        return took

    assert 0.2 <= whole() < 5


def test_the_process_of_a_task_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"

    @task(timeout=1)
    def stuck() -> None:
        told.write_text(str(os.getpid()))
        time.sleep(600)

    @flow(executor="processes")
    def whole() -> None:
        add.submit(1).result()  # a process is there
        with pytest.raises(TaskTimeout):
            stuck.submit().result()

    whole()
    deadline = time.monotonic() + SOON
    while Path("/proc", told.read_text()).exists():
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.02)


def test_a_called_task_with_a_time_out_and_an_asynchronous_one() -> None:
    @task(timeout=0.1)
    async def slow() -> None:
        await asyncio.sleep(30)

    @task(timeout=0.1)
    async def own() -> None:
        raise TimeoutError("its own")

    @flow
    async def whole_async() -> None:
        with pytest.raises(TaskTimeout):
            await slow()
        with pytest.raises(TaskTimeout):
            await slow.submit()
        with pytest.raises(TimeoutError, match="its own"):
            await own()

    @flow
    def whole() -> None:
        with pytest.raises(TaskTimeout):
            nap.with_options(timeout=0.1)(30)

    asyncio.run(whole_async())
    whole()


def test_a_thread_left_behind_is_interrupted_at_its_next_line_and_its_place_lent() -> None:
    ended = threading.Event()
    release = threading.Event()

    @task(timeout=0.1)
    def stuck() -> None:
        try:
            release.wait(20)
            while True:
                pass
        finally:
            ended.set()

    @flow(executor=Threads(1))
    def whole() -> list[int]:
        with pytest.raises(TaskTimeout):
            stuck.submit().result()
        return add.map([1, 2, 3]).result()  # the only thread is still waiting

    assert whole() == [1, 2, 3]
    release.set()
    assert ended.wait(10)


def test_a_time_out_is_retried_as_another_failure() -> None:
    tries: list[int] = []

    @task(timeout=0.15, retries=1)
    def slow() -> str:
        tries.append(1)
        if len(tries) == 1:
            time.sleep(1)
        return "second"

    @flow
    def whole() -> str:
        return slow.submit().result()

    assert whole() == "second"


@pytest.mark.parametrize("way", ["waiting", "looping", "async", "inner"])
def test_a_flow_that_takes_too_long(way: str) -> None:
    hooks: list[str] = []

    @flow
    def inner() -> None:
        nap.submit(30).result()

    @flow(timeout=0.3)
    def whole() -> None:
        if way == "waiting":
            nap.submit(30).result()
        elif way == "inner":
            inner()
        else:
            while True:
                add(1)

    @flow(timeout=0.3)
    async def whole_async() -> None:
        await nap.submit(30)

    one: Any = whole_async if way == "async" else whole
    one.on_failure(lambda f, run, state: hooks.append(state.name))
    before = time.monotonic()
    with pytest.raises(FlowTimeout, match=r"took longer than 0.3 seconds"):
        asyncio.run(one()) if way == "async" else one()
    assert time.monotonic() - before < 5
    assert hooks == ["Failed"]


def test_hooks_are_called_with_what_when_and_where() -> None:
    seen: list[tuple[str, str, str, str]] = []

    def hook(what: Any, run: Any, state: State[Any]) -> None:
        seen.append((what.name, run.name, state.name, threading.current_thread().name))

    async def async_hook(what: Any, run: Any, state: State[Any]) -> None:
        await asyncio.sleep(0)
        hook(what, run, state)

    def bad_hook(what: Any, run: Any, state: Any) -> None:
        raise RuntimeError("a hook's")

    good = add.with_options(on_completion=[bad_hook, async_hook], on_failure=[hook])
    bad = fail.with_options(on_completion=[hook], on_failure=[hook], retries=1)

    @flow(on_failure=[hook], on_completion=[hook], on_cancelled=[hook], on_crashed=[hook])
    def whole(value: Any) -> Any:
        good.submit(1)
        bad.submit()
        if value == "fail":
            raise ValueError
        return value

    whole(1)
    assert sorted(s[:3] for s in seen) == [
        ("add", "add", "Completed"),
        ("fail", "fail", "Failed"),
        ("whole", "whole", "Completed"),
    ]
    seen.clear()
    whole.run("fail")
    assert seen[-1][:3] == ("whole", "whole", "Failed")

    @whole.on_failure
    def another(what: Any, run: Any, state: Any) -> None:
        seen.append(("another", "", "", ""))

    whole.run("fail")
    assert seen[-1][0] == "another"
    with pytest.raises(TypeError, match="on_failure takes functions"):
        add.on_failure(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["submitted", "called", "async"])
def test_hooks_of_a_task_are_inside_its_run(way: str) -> None:
    seen: list[Any] = []

    def hook(what: Any, run: Any, state: State[Any]) -> None:
        seen.extend([context.flow, context.task, get_logger().name, add.submit(state.result(), 1).result()])

    one = (add_async if way == "async" else add).with_options(on_completion=[hook])

    @flow
    def whole() -> int:
        return one(1) if way == "called" else one.submit(1).result()

    assert whole() == 1
    assert seen == ["whole", one.name, f"shunter.{one.name}", 2]


def test_slow_hooks_do_not_hold_up_coroutines() -> None:
    together = threading.Barrier(3, timeout=10)
    hooked = add_async.with_options(on_completion=[lambda *_: together.wait()])

    @flow
    async def whole() -> list[int]:
        return [await one for one in hooked.map([1, 2, 3])]

    assert asyncio.run(whole()) == [1, 2, 3]
    assert not together.broken


def test_a_cancelled_task_and_what_depends_on_it() -> None:
    hooks: list[str] = []
    sleeper = nap.with_options(on_cancelled=[lambda t, run, state: hooks.append(state.name)])

    @flow
    def whole() -> list[str]:
        first = sleeper.submit(0.5)
        below = add.submit(first)
        first.cancel()
        assert not first.cancel()
        below.wait()
        with pytest.raises(TaskCancelled):
            first.result()
        return [first.state, below.state]

    assert whole() == ["Cancelled", "Skipped"]
    assert hooks == ["Cancelled"]


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_sys_exit_in_a_task_is_a_failure_of_that_task(executor: str) -> None:
    @flow(executor=executor)
    def whole() -> int:
        with pytest.raises(TaskExit, match=r"task leave called sys.exit\(3\)"):
            leave.submit("sys.exit").result()
        with pytest.raises(TaskExit):
            leave("sys.exit")
        with pytest.raises(TypeError, match=r"returned a generator.*make it a list"):
            leave.submit("generator").result()
        return total.submit([1, 2]).result()

    assert whole() == 3


def test_a_task_that_returns_a_coroutine() -> None:
    async def inner() -> int:
        return 1

    @task
    def forgot() -> Any:
        return inner()

    @flow
    def whole() -> None:
        forgot.submit().result()

    with pytest.raises(TypeError, match="returned a coroutine: mark it as async def"):
        whole()

    @flow
    def forgetful() -> Any:
        return add_async(1)

    @flow
    async def forgetful_too() -> Any:
        return add_async(1)

    with pytest.raises(TypeError, match="flow forgetful returned a coroutine: mark it as async def"):
        forgetful()
    with pytest.raises(TypeError, match=r"flow forgetful_too returned a coroutine: .*, or await that"):
        asyncio.run(forgetful_too())


def test_waiting_with_limits() -> None:
    @flow
    def whole() -> list[float]:
        slow = nap.submit(0.4)
        with pytest.raises(TimeoutError, match=r"has not ended within 0.01 seconds"):
            slow.result(timeout=0.01)
        done, others = wait([slow, add.submit(1)], timeout=0.05)
        assert [len(done), len(others)] == [1, 1]
        futures = nap.map([0.3, 0.0, 0.15])
        with pytest.raises(TimeoutError):
            list(as_completed([slow], timeout=0.01))
        return [future.result() for future in as_completed(futures)]

    assert whole() == [0.0, 0.15, 0.3]


def test_a_callback_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    @flow
    def whole() -> int:
        future = nap.submit(0.05)
        future.add_done_callback(lambda f: 1 // 0)
        future.add_done_callback(lambda f: seen.append(f.state))
        future.wait()
        future.add_done_callback(lambda f: seen.append("late"))
        return 1

    assert whole() == 1
    assert sorted(seen) == ["Completed", "late"]
    assert "a function called at the end of task nap failed" in caplog.text


@pytest.mark.parametrize(
    ("code", "state"), [(None, "Completed"), (0, "Completed"), (3, "Failed"), ("why", "Failed")]
)
def test_sys_exit_in_a_flow_ends_the_program_and_the_flow_as_its_code_says(
    code: int | str | None, state: str, tmp_path: Path
) -> None:
    """A run that exits with 0 is Completed, so its graph says the same."""
    executed: list[str] = []

    @flow
    def inner() -> None:
        executed.append("inner")
        sys.exit(code)

    @flow
    def outer() -> None:
        inner()

    path = str(tmp_path / "journal")
    ended = flow_engine.run(outer, (), {}, Root(Journal(path)))
    with pytest.raises(SystemExit) as left:
        ended.result()
    assert left.value.code == code
    ends = {line["t"]: LETTERS[state] == line["s"] for line in lines(path) if line.get("y") == "flow"}
    assert ends == {"inner": True, "outer": True}
    # What exits has no value that a later attempt could take in its place.
    flow_engine.run(outer, (), {}, Root(Journal(path)))
    assert executed == ["inner", "inner"]
