"""What happens to task runs: who waits for whom, what a failure means, and what is kept.

A task run is submitted, waits for those that it depends on, is started at its flow's *place* (``executors``), perhaps more
than once, and ends. Its end is in the journal before anybody sees it. Each try has a number, its *turn*: a try that was
given up (it took too long, it was cancelled) may come back later, and is not listened to any more.
"""

from __future__ import annotations

import contextvars
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from shunter import states
from shunter.clock import clock
from shunter.dependencies import VALUE, marked, replaced, upstream_of, values_of
from shunter.errors import (
    NotInFlow,
    TaskCancelled,
    TaskExit,
    TaskTimeout,
    is_cancellation,
    is_for_this_thread,
)
from shunter.futures import NOT_HERE, TaskFuture, skipped_by
from shunter.results import NotKept
from shunter.scopes import current

if TYPE_CHECKING:
    from shunter.executors import Place
    from shunter.scopes import Scope

_NOTHING: dict[str, Any] = {}
#: Runs inside each other. What has no end must end somewhere, before the machine's threads do.
DEEPEST = 2000


def submit(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], wait_for: Any = None) -> TaskFuture[Any]:
    """Have a task executed at its flow's place.

    Raises:
        NotInFlow: there is no flow around.
        TaskCancelled: the flow is being cancelled.
        ForeignFuture: a future of another flow run is among the arguments.
    """
    scope = current.get()
    if scope is None:
        raise NotInFlow(
            f"task {task.name} was submitted outside of a flow: call it, or submit it in a function marked @flow"
        )
    run = _made(task, scope)
    run._context = contextvars.copy_context()
    run._args, run._kwargs = args, kwargs
    upstream = upstream_of(run, args, kwargs, wait_for)
    if scope.flow_run.keyed and _identified(run, scope, args, kwargs):
        return run
    if upstream:  # containers as they are now: whoever gave them may put something else into them
        run._args, run._kwargs = replaced((args, kwargs), marked)
    root = run.root
    place = place_for(run)
    with root.lock:
        for one, wanted in upstream.items():
            if one.state not in states.ENDS and not (wanted == VALUE and place.resolves(one)):
                run._waiting += 1
                if one._dependants is None:
                    one._dependants = []
                one._dependants.append(run)
        ready = run._waiting == 0
        run.flow_run.open[run] = None
        root.open.add(run)
    if root.journal is not None:
        root.journal.note(run)
    if root.cancelled:
        cancel(run)
    elif ready:
        _ready(run)
    return run


def called(task: Any, scope: Scope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A task that is called: it runs here and now, and the value is given."""
    if task.timeout is not None:
        return submit(task, args, kwargs).result()  # where it can be left behind
    run = direct(task, scope, args, kwargs)
    if run.state in states.ENDS:
        return run.value_now()
    run._args, run._kwargs = args, kwargs
    for one in run.upstream:
        one.wait()
    if (failed := hindered(run)) is not None:
        return refused(run, failed)
    token = current.set(run)
    try:
        while True:
            turn = attempt_started(run)
            error: BaseException | None = None
            value = None
            try:
                value = invoke(run)
            except BaseException as exc:
                error = exc
            pause = attempt_ended(run, turn or 0, value, error, direct=True)
            if pause is None:
                break
            time.sleep(pause)
    finally:
        current.reset(token)
    return outcome(run, error)


def attempt_started(run: TaskFuture[Any]) -> int | None:
    """A try begins: its number, or None if there is to be none any more."""
    with run.root.lock:
        if run._ending or run.state in states.ENDS:
            return None
        run._turn += 1
        turn = run._turn
        run.attempt += 1
        run.counts = None  # what it submitted in an earlier try is submitted again
        run.state = states.RUNNING
        if not run._started:
            run._started = time.time_ns() // 1000
    if run.root.journal is not None:
        run.root.journal.note(run)
    return turn


def watch(run: TaskFuture[Any], turn: int) -> None:
    """The function of a try is called now; who executes it does not see to its time-out."""
    timeout = run.task.timeout
    if timeout is None:
        return
    with run.root.lock:
        if run._turn == turn and not run._ending:
            run._timer = clock.later(timeout, lambda: _expire(run, turn))


def invoke(run: TaskFuture[Any]) -> Any:
    """Call the task's function (of an asynchronous one: make its coroutine), with values where futures were."""
    token = current.set(run)
    pid = os.getpid()
    try:
        args, kwargs = values_of(run)
        if run.task.cache is not None and from_cache(run, args, kwargs):
            return _given(run._value) if run.task.is_async else run._value
        value = run.task.fn(*args, **kwargs)
        if run.task.is_async and run.task.timeout is not None:
            from shunter import awaiting

            return awaiting.timed(run, value)
        return value
    finally:
        if os.getpid() != pid:
            _end_fork()
        current.reset(token)


async def _given(value: Any) -> Any:
    return value


def from_cache(run: TaskFuture[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the value is in the cache; then it is the run's."""
    from shunter import caches

    if not caches.find(run, args, kwargs):
        return False
    with run.root.lock:
        if not run._ending:
            run.state = states.CACHED
    return True


def attempt_ended(
    run: TaskFuture[Any],
    turn: int,
    value: Any,
    error: BaseException | None,
    direct: bool = False,
    last: bool = False,
) -> float | None:
    """A try is over. What comes of it: an end, or another try.

    Args:
        direct: it was called, and its caller makes the next try.
        last: there is to be no other.

    Returns:
        of a run that was called: seconds until the next try; None: it has ended.
    """
    with run.root.lock:
        if run._turn != turn or run._ending:
            return None
        if run._timer is not None:
            run._timer.cancel()
            run._timer = None
    if error is None and (wrong := no_value("task", run.task, value)) is not None:
        error = wrong
    if error is None:
        if run.state == states.CACHED:
            finish(run, states.CACHED, value)
            return None
        if run.task.cache is not None and value is not NOT_HERE:
            from shunter import caches

            caches.keep(run, value)
        finish(run, states.COMPLETED, value)
        return None
    if isinstance(error, SystemExit):
        error = task_exit(run.task, error)
    if is_cancellation(error) or run.root.cancelled:
        finish(run, states.CANCELLED, None, _cancelled(run, error))
        return None
    if last:
        finish(run, states.FAILED, None, error)
        return None
    return _tried_again(run, error, direct)


def finish(run: TaskFuture[Any], state: str, value: Any = None, error: BaseException | None = None) -> None:
    """A run ends, and with it those that cannot run without it."""
    ends = [(run, state, value, error)]
    while ends:
        one, state, value, error = ends.pop()
        for dependant in _end(one, state, value, error):
            failed = hindered(dependant)
            if failed is None:
                _begin(dependant)
            else:
                ends.append((dependant, states.SKIPPED, None, skipped_by(dependant.name, failed)))


def skip(run: TaskFuture[Any], upstream: TaskFuture[Any]) -> None:
    """A run ends as Skipped because of this one."""
    finish(run, states.SKIPPED, None, skipped_by(run.name, upstream))


def cancel(run: TaskFuture[Any]) -> bool:
    """End a run as Cancelled; False if it has ended."""
    with run.root.lock:
        if run._ending or run.state in states.ENDS:
            return False
        at_work = run.state == states.RUNNING
        run._turn += 1
    if at_work:
        place_for(run).interrupt(run)
    finish(run, states.CANCELLED, None, TaskCancelled(f"task {run.name} was cancelled"))
    return True


def place_for(run: TaskFuture[Any]) -> Place:
    """Where it is executed: asynchronous tasks of this process on its loop."""
    place = run.flow_run.place
    return run.root.loop_lane if run.task.is_async and place.here else place


def result_line(run: TaskFuture[Any], value: Any) -> dict[str, Any] | None:
    """How the journal keeps this value; None: not at all."""
    if not run.task.persist:
        return None
    try:
        return run.flow_run.store.keep(value)
    except Exception as exc:  # a file system's drivers raise what they like
        run.root.say_once(
            f"result {run.task.identity}",
            "the result of task %s is not kept, so a retry of this run executes it again: %s",
            run.name,
            exc,
        )
        return None


def no_value(what: str, one: Any, value: Any) -> TypeError | None:
    """What is wrong with a value that a task or flow (``what``) returned, if anything."""
    kind = type(value).__name__
    if kind in ("generator", "async_generator"):
        return TypeError(
            f"{what} {one.name} returned a generator, which can be read only once: make it a list"
        )
    if kind == "coroutine":
        value.close()
        return TypeError(f"{what} {one.name} returned a coroutine: mark it as async def, or await that")
    return None


def task_exit(task: Any, error: SystemExit) -> TaskExit:
    """What a ``sys.exit`` of a task is made into."""
    try:
        code = repr(error.code)
    except Exception:
        code = type(error.code).__qualname__
    converted = TaskExit(f"task {task.name} called sys.exit({code})")
    converted.__cause__ = error
    return converted


# Steps of the above.


def _made(task: Any, scope: Scope) -> TaskFuture[Any]:
    flow_run = scope.flow_run
    if flow_run.state in states.ENDS or flow_run.stopped():
        raise TaskCancelled(
            f"flow {flow_run.name} takes no tasks any more: it has ended, or is being cancelled"
        )
    if scope.depth >= DEEPEST:
        raise RecursionError(f"task {task.name} is nested {scope.depth} runs deep")
    flow_run.root.meet(task)
    return TaskFuture(task, flow_run, scope.key or None, scope.depth + 1)


def direct(task: Any, scope: Scope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskFuture[Any]:
    run = _made(task, scope)
    upstream_of(run, args, kwargs, None)
    if scope.flow_run.keyed:
        _identified(run, scope, args, kwargs)
    return run


def _identified(run: TaskFuture[Any], scope: Scope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Give it its key; True if it was completed before, and has ended by that."""
    from shunter import keys

    inputs = keys.call_digest((*run.task.held, *args), kwargs)
    root = run.root
    with root.lock:
        if scope.counts is None:
            scope.counts = {}
        place = (run.task.identity, inputs)
        occurrence = scope.counts.get(place, 0)
        scope.counts[place] = occurrence + 1
    run._key = keys.key(scope.key, run.task.identity, inputs, occurrence)
    return _completed_before(run)


def _completed_before(run: TaskFuture[Any]) -> bool:
    root = run.root
    if (known := root.memory.get(run.key)) is not None:
        run._value, run._native = known._value, known._native
    elif run.task.persist and (line := root.completed.get(run.key)) is not None:
        try:
            run._value = run.flow_run.store.load(line["r"])
        except NotKept as exc:
            root.say_once(
                f"lost {run.task.identity}",
                "a result of task %s that an earlier attempt kept cannot be read, so it is executed again: %s",
                run.name,
                exc,
            )
            return False
        if line.get("c", "") != run.version:
            root.say_once(
                f"changed {run.task.identity}",
                "the code of task %s has changed since an earlier attempt of this run; what that completed is "
                "not done again",
                run.name,
            )
    else:
        return False
    run.reused = True
    run.state = states.COMPLETED
    return True


def hindered(run: TaskFuture[Any]) -> TaskFuture[Any] | None:
    """The first upstream that did not complete and had to."""
    for one in run.upstream:
        if one.error is not None and one not in run._lenient:
            return one
    return None


def _ready(run: TaskFuture[Any]) -> None:
    failed = hindered(run)
    if failed is None:
        _begin(run)
    else:
        finish(run, states.SKIPPED, None, skipped_by(run.name, failed))


def _begin(run: TaskFuture[Any]) -> None:
    try:
        place_for(run).start(run)
    except Exception as exc:
        attempt_started(run)
        attempt_ended(run, run._turn, None, exc)


def _end(run: TaskFuture[Any], state: str, value: Any, error: BaseException | None) -> list[TaskFuture[Any]]:
    """One run's end; those that wait for nothing else now."""
    root = run.root
    with root.lock:
        if run._ending:
            return []
        run._ending = True
    if root.journal is not None:
        _keep(run, state, value, error)
    if run.flow_run.remembers and state in states.GOOD:
        root.memory[run.key] = run
    with root.lock:
        run._value, run.error, run.state = value, error, state
        dependants, run._dependants = run._dependants or [], None
        callbacks, run._callbacks = run._callbacks or [], None
        run._context = None
        run._args, run._kwargs = (), _NOTHING
        ready = []
        for dependant in dependants:
            dependant._waiting -= 1
            if dependant._waiting == 0 and not dependant._ending:
                ready.append(dependant)
        event = run._event
        if not (callbacks or run.task.hooks):
            _close(run)
    if event is not None:
        event.set()
    token = current.set(run) if callbacks or run.task.hooks else None
    try:
        for callback in callbacks:
            _call_back(callback, run)
        if run.task.hooks:
            run.task.hooks.call(run.task, run, states.State(state, value, error))
    finally:
        if token is not None:
            current.reset(token)
        if callbacks or run.task.hooks:
            with root.lock:
                _close(run)
    return ready


def _close(run: TaskFuture[Any]) -> None:
    run.flow_run.open.pop(run, None)
    run.root.open.discard(run)


def _keep(run: TaskFuture[Any], state: str, value: Any, error: BaseException | None) -> None:
    journal = run.root.journal
    assert journal is not None
    result = None
    if state in states.GOOD:
        result = run._reference if value is NOT_HERE else result_line(run, value)
    try:
        journal.end(run, state, error, result)
    except Exception as exc:
        run.root.say_once(
            f"end {run.task.identity}", "the end of task %s is not in the journal: %s", run.name, exc
        )


def _call_back(callback: Callable[[TaskFuture[Any]], None], run: TaskFuture[Any]) -> None:
    try:
        callback(run)
    except BaseException as exc:
        if is_for_this_thread(exc):
            raise
        from shunter.loggers import get_logger

        get_logger("shunter").exception("a function called at the end of task %s failed", run.name)


def _tried_again(run: TaskFuture[Any], error: BaseException, direct: bool) -> float | None:
    try:
        pause: float | None = (
            run.task.retries.after(run.attempt, error) if isinstance(error, Exception) else None
        )
    except Exception as exc:
        pause, error = None, exc  # the user's condition or delay failed
    if pause is None:
        finish(run, states.FAILED, None, error)
        return None
    with run.root.lock:
        run.state = states.RETRYING
    if run.root.journal is not None:
        run.root.journal.note(run)
    if not direct:
        clock.later(pause, lambda: _begin(run))
    return pause


def _expire(run: TaskFuture[Any], turn: int) -> None:
    """The time of a try is up, whatever its thread does."""
    with run.root.lock:
        if run._turn != turn or run._ending:
            return
        run._turn += 1
        turn = run._turn
        run._timer = None
    place_for(run).interrupt(run)
    attempt_ended(run, turn, None, too_long(run))


def too_long(run: TaskFuture[Any]) -> TaskTimeout:
    return TaskTimeout(f"task {run.name} took longer than {run.task.timeout} seconds")


def _cancelled(run: TaskFuture[Any], error: BaseException) -> TaskCancelled:
    cancelled = TaskCancelled(f"task {run.name} was cancelled")
    cancelled.__cause__ = error
    return cancelled


def refused(run: TaskFuture[Any], failed: TaskFuture[Any]) -> NoReturn:
    error = skipped_by(run.name, failed)
    finish(run, states.SKIPPED, None, error)
    raise error


def outcome(run: TaskFuture[Any], raised: BaseException | None) -> Any:
    """Of a run that was called."""
    if run.error is None:
        return run._value
    if raised is not None and run.state == states.CANCELLED:
        raise raised  # a cancellation goes through to the flow as it came
    raise run.error


def _end_fork() -> NoReturn:
    """A child that the task forked came back from it: it must not go on as if it were the flow."""
    import sys

    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0 if sys.exc_info()[0] is None else 1)
