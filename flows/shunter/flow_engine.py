"""How a flow run goes: its tries, what it waits for, and how it ends.

A flow that raises is Failed, unless that is a ``sys.exit(0)``. One that returns futures or states, alone or in a list, tuple, set or dict, ends as they did;
any other value makes it Completed, whatever became of tasks that it did not ask about. It ends when all that it submitted
has ended.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shunter import crashed, engine, journal, parameters, states
from shunter.clock import clock
from shunter.containers import parts_of, rebuilt
from shunter.dependencies import foreign, futures_in, replaced, value_for
from shunter.errors import (
    FlowTimeout,
    Interrupted,
    RunCancelled,
    TaskCancelled,
    is_cancellation,
)
from shunter.futures import TaskFuture
from shunter.interrupts import Interruptible
from shunter.results import NotKept
from shunter.runs import FlowRun, Root
from shunter.scopes import current
from shunter.states import State

#: What ``kill`` gives a shell for SIGTERM.
_TERMINATED = 128 + 15


def run(flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any], root: Root | None = None) -> State[Any]:
    """Run a flow to its end.

    Args:
        root: of an outermost flow, if it is not to be made.

    Raises:
        ParameterError: the parameters do not fit.
        RecursionError: flows are nested too deep.
        BaseException: what cancelled the run, if anything did.
    """
    for future in given(flow, args, kwargs):
        future.wait()
    one, call = made(flow, args, kwargs, root)
    if (before := completed_before(one)) is not None:
        return before
    with outermost(one):
        while True:
            alarm = started(one)
            value, error = None, None
            token = current.set(one)
            gate = Interruptible()
            one.gate = gate
            try:
                with gate:
                    value = flow.fn(*call.args, **call.kwargs)
            except BaseException as exc:
                gate.leave()
                error = exc
            try:
                error = _all_awaited(one, error)
            finally:
                current.reset(token)
            pause = over(one, value, error, alarm)
            if pause is None:
                return state(one)
            time.sleep(pause)


def given(flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[TaskFuture[Any]]:
    """The futures among the parameters.

    Raises:
        ForeignFuture: one of them belongs to another run of a flow.
    """
    found = futures_in((args, kwargs))
    parent = current.get()
    for one in found:
        if parent is None or one.root is not parent.root:
            raise foreign("flow", flow.name, one)
    return found


def stop(one: FlowRun, why: BaseException) -> None:
    """End all that a flow run has submitted, in flows inside it too, as Cancelled; it takes nothing new."""
    if one.stopping is None:
        one.stopping = why
    with one.root.lock:
        runs = [each for each in one.root.open if _inside(each.flow_run, one)]
    for each in runs:
        engine.cancel(each)


def _inside(inner: FlowRun, outer: FlowRun) -> bool:
    found: FlowRun | None = inner
    while found is not None and found is not outer:
        found = found.parent.flow_run if found.parent is not None else None
    return found is outer


def made(flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any], root: Root | None) -> tuple[FlowRun, Any]:
    parent = current.get()
    args, kwargs = replaced((args, kwargs), value_for)
    named, call = parameters.validated(flow, args, kwargs)
    if parent is not None:
        root = parent.root
        if parent.flow_run.stopped():
            raise TaskCancelled(f"flow {flow.name} is not started: the flow around it is being cancelled")
    elif root is None:
        root = Root(None if crashed.is_told() else journal.of_process())
    one = FlowRun(flow, root, parent, named)
    most = sys.getrecursionlimit() // 20
    if one.flows > most or one.depth > engine.DEEPEST:
        raise RecursionError(
            f"flow {flow.name} is nested {one.flows} flows deep: does it call itself without end?"
        )
    if parent is None and crashed.is_told():
        crashed.call_hooks(one)
    if one.keyed:
        _identify(one)
    return one, call


def _identify(one: FlowRun) -> None:
    from shunter import keys

    held = one.flow.held
    inputs = keys.digest((held, one.parameters) if held else one.parameters)
    counts = one.root.counts if one.parent is None else one.parent.counts
    if counts is None:
        assert one.parent is not None
        counts = one.parent.counts = {}
    with one.root.lock:
        place = (one.flow.identity, inputs)
        occurrence = counts.get(place, 0)
        counts[place] = occurrence + 1
    one.key = keys.key(one.parent_key or "", one.flow.identity, inputs, occurrence)


def completed_before(one: FlowRun) -> State[Any] | None:
    """Of a flow inside another one that an earlier attempt completed."""
    if one.parent is None or (line := one.root.completed.get(one.key)) is None:
        return None
    try:
        value = one.store.load(line["r"])
    except NotKept:
        return None  # its tasks are found one by one
    one.reused = True
    one.state = states.COMPLETED
    if line.get("c", "") != one.version:
        _say_changed(one)
    return State(states.COMPLETED, value)


def _say_changed(one: FlowRun) -> None:
    one.root.say_once(
        f"changed {one.flow.identity}",
        "the code of flow %s has changed since an earlier attempt of this run; what that completed is not done again",
        one.name,
    )


@contextmanager
def outermost(one: FlowRun, task: Any | None = None) -> Iterator[None]:
    """What is around an outermost flow: logging, SIGTERM of a run, the end of all that was started."""
    if one.parent is not None:
        try:
            yield
        finally:
            one.close()
        return
    from shunter import loggers

    loggers.set_up()
    root = one.root
    if root.journal is not None:
        root.journal.head(one.name, one.version, bool(one.flow.hooks.of("on_crashed")))
        known = root.completed.get("")
        if known is not None and known.get("flow") == one.name and known.get("c") != one.version:
            _say_changed(one)
    try:
        with _terminable(root, task):
            yield
    finally:
        one.close()
        root.close()
        if root.journal is not None:
            root.journal.close()


@contextmanager
def _terminable(root: Root, task: Any | None) -> Iterator[None]:
    """In a run SIGTERM means that it is cancelled: tasks are interrupted, hooks are called, and the process exits."""
    if "SHUNTER_RUN_ID" not in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    import signal

    told = False

    def terminate(number: int, frame: object) -> None:
        nonlocal told
        told = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the next one ends the process as it is
        root.cancelled = True
        if task is not None:
            task.get_loop().call_soon_threadsafe(task.cancel)
            return
        raise RunCancelled("the run is being cancelled")

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except BaseException as exc:
        if not (told and is_cancellation(exc)):
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if told:
        sys.exit(_TERMINATED)


def started(one: FlowRun) -> Any:
    one.attempt += 1
    one.counts = None
    one.state = states.RUNNING
    one.stopping = None
    if not one._started:
        one._started = time.time_ns() // 1000
    if one.root.journal is not None:
        one.root.journal.note(one)
    if one.flow.timeout is None or one.flow.is_async:
        return None

    def expire() -> None:
        stop(one, too_long(one))
        if one.gate is not None:
            one.gate.interrupt(Interrupted)

    return clock.later(one.flow.timeout, expire)


def too_long(one: FlowRun) -> FlowTimeout:
    return FlowTimeout(f"flow {one.name} took longer than {one.flow.timeout} seconds")


def _all_awaited(one: FlowRun, error: BaseException | None) -> BaseException | None:
    """Wait for what was submitted; the error, which may be one that came meanwhile."""
    while True:
        try:
            if is_cancellation(error):
                stop(one, error)
            while (each := one.an_open()) is not None:
                each.wait()
            return error
        except BaseException as exc:
            if not is_cancellation(exc):
                raise
            error = exc


def over(one: FlowRun, value: Any, error: BaseException | None, alarm: Any) -> float | None:
    """A try is over: seconds until the next one, or None when the flow has ended."""
    if alarm is not None:
        alarm.cancel()
    if isinstance(one.stopping, FlowTimeout):
        error = one.stopping
    state = states.COMPLETED
    if error is None:
        error = engine.no_value("flow", one, value)
    if error is None:
        value, state, error = _settled(value)
    if is_cancellation(error) or one.root.cancelled:
        state = states.CANCELLED
        error = error or RunCancelled("the run is being cancelled")
    elif error is not None and state == states.COMPLETED and not _exits_well(error):
        state = states.FAILED
    if state == states.FAILED and isinstance(error, Exception):
        pause: float | None = one.flow.retries.after(one.attempt, error)
        if pause is not None:
            one.state = states.RETRYING
            if one.root.journal is not None:
                one.root.journal.note(one)
            return pause
    _end(one, state, value, error)
    return None


def _exits_well(error: BaseException) -> bool:
    """Whether it ends the program with 0, which is the end of a run that is Completed."""
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _end(one: FlowRun, state: str, value: Any, error: BaseException | None) -> None:
    if one.root.journal is not None:
        result = None
        if state == states.COMPLETED and one.parent is not None and error is None:
            try:
                result = one.store.keep(value)
            except Exception:
                result = None  # its tasks are kept one by one
        one.root.journal.end(one, state, None if state == states.COMPLETED else error, result)
    one.state, one.error, one.value = state, error, value
    one.flow.hooks.call(one.flow, one, State(state, value, error))


def state(one: FlowRun) -> State[Any]:
    state: State[Any] = State(one.state, one.value, one.error)
    if is_cancellation(one.error):
        raise one.error
    return state


def _settled(value: Any) -> tuple[Any, str, BaseException | None]:
    """What a returned value means: the value with results in it, the state, the first error."""
    found = [(future.state, future.error) for future in futures_in(value)]
    found += [(each.name, each.error) for each in _states_in(value)]
    for wanted in (states.FAILED, states.SKIPPED, states.CANCELLED):
        for state, error in found:
            if state == wanted:
                return None, states.CANCELLED if state == states.CANCELLED else states.FAILED, error
    return _without_states(replaced(value, value_for)), states.COMPLETED, None


def _states_in(value: Any) -> list[State[Any]]:
    """Those that it is, or that are in the list, tuple, set or dict that it is."""
    parts = [value] if isinstance(value, State) else parts_of(value) or ()
    return [part for part in parts if isinstance(part, State)]


def _without_states(value: Any) -> Any:
    """Their values in their places."""

    def part_of(part: Any) -> Any:
        return part.result() if isinstance(part, State) else part

    return part_of(value) if isinstance(value, State) else rebuilt(value, part_of)
