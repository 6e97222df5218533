"""The run of one task, as who submitted it sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shunter import states
from shunter.errors import UpstreamFailed

if TYPE_CHECKING:
    from contextvars import Context

    from shunter.runs import FlowRun, Root
    from shunter.states import State

R = TypeVar("R", covariant=True)


class TaskFuture(Generic[R]):
    """One run of a task. It is passed to other tasks for its value, which makes them depend on it.

    Attributes:
        task: the task.
        state: the name of its state now.
        attempt: the number of the try it is in; 0 before the first.
        error: the exception it ended with.
        reused: whether it was completed by an earlier attempt of the run, and not executed in this one.
    """

    __slots__ = (
        "__weakref__",
        "_args",
        "_cache_key",
        "_callbacks",
        "_context",
        "_dependants",
        "_ending",
        "_event",
        "_key",
        "_kwargs",
        "_lenient",
        "_native",
        "_reference",
        "_started",
        "_timer",
        "_turn",
        "_value",
        "_waiting",
        "attempt",
        "counts",
        "depth",
        "error",
        "flow_run",
        "parent_key",
        "reused",
        "state",
        "task",
        "upstream",
    )

    is_flow = False

    def __init__(self, task: Any, flow_run: FlowRun, parent_key: str | None, depth: int) -> None:
        self.task = task
        self.flow_run = flow_run
        self.parent_key = parent_key
        self.depth = depth
        self.state = states.PENDING
        self.attempt = 0
        self.error: BaseException | None = None
        self.reused = False
        self.upstream: tuple[TaskFuture[Any], ...] = ()
        #: How often a task was run with the same inputs below this one; only where keys are needed.
        self.counts: dict[Any, int] | None = None
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self._value: Any = None
        self._key: str | None = None
        self._context: Context | None = None
        self._dependants: list[TaskFuture[Any]] | None = None
        self._callbacks: list[Callable[[TaskFuture[Any]], None]] | None = None
        self._event: threading.Event | None = None
        self._waiting = 0
        self._lenient: tuple[TaskFuture[Any], ...] = ()  # of the upstream, those that may fail
        self._reference: dict[str, Any] | None = None  # to a value that is not here
        self._cache_key = ""
        self._turn = 0  # rises when a try starts, and when it is given up
        self._ending = False
        self._native: Any = None  # the executor's own future
        self._timer: Any = None
        self._started = 0

    @property
    def root(self) -> Root:
        """The outermost flow run around it."""
        return self.flow_run.root

    @property
    def name(self) -> str:
        """The task's name."""
        name: str = self.task.name
        return name

    @property
    def version(self) -> str:
        """Of the task's code."""
        version: str = self.task.version
        return version

    @property
    def key(self) -> str:
        """What names this task run in its run; the same in every attempt. Empty where nothing needs one."""
        return self._key or ""

    def done(self) -> bool:
        """Whether it has ended."""
        return self.state in states.ENDS

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end, ``timeout`` seconds at most; whether it has ended.

        Raises:
            RuntimeError: in the thread in which asynchronous tasks run, which would wait for itself: await it.
        """
        if self.state in states.ENDS:
            return True
        from shunter.executors import threads

        event = self._event_made()
        if event is None:
            return True
        return threads.wait_for(event, timeout, self)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """The value; waits for it.

        Args:
            timeout: seconds to wait at most; None: as long as it takes.
            raise_on_failure: False: give the exception instead of raising it.

        Raises:
            BaseException: what the task raised.
            UpstreamFailed: it was skipped.
            TaskCancelled: it was cancelled.
            TimeoutError: it has not ended within ``timeout``.
        """
        if self.state not in states.ENDS and not self.wait(timeout):
            raise TimeoutError(f"task {self.name} has not ended within {timeout} seconds: it is {self.state}")
        if self.error is not None:
            if raise_on_failure:
                raise self.error
            failed: Any = self.error
            return failed  # type: ignore[no-any-return]
        value: R = self.value_now()
        return value

    def value_now(self) -> Any:
        """The value of one that completed, from where it is."""
        if self._native is not None and self._value is NOT_HERE:
            return self.flow_run.place.fetch(self)
        return self._value

    def final_state(self) -> State[R]:
        """Its state with value or error; waits for its end."""
        from shunter.states import State

        self.wait()
        return State(self.state, self.value_now() if self.error is None else None, self.error)

    def cancel(self) -> bool:
        """End it as Cancelled; False if it has ended already. What depends on it is skipped."""
        from shunter import engine

        return engine.cancel(self)

    def add_done_callback(self, callback: Callable[[TaskFuture[Any]], None]) -> None:
        """Call this with the future when it has ended (at once, if it has). Exceptions of it are logged."""
        with self.root.lock:
            if self.state not in states.ENDS:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        callback(self)

    def __await__(self) -> Generator[Any, None, R]:
        """In any event loop."""
        return self._awaited().__await__()

    async def _awaited(self) -> R:
        if self.state not in states.ENDS:
            from shunter.executors import coroutines

            await coroutines.wait_for(self)
        return self.result()

    def _event_made(self) -> threading.Event | None:
        with self.root.lock:
            if self.state in states.ENDS:
                return None
            if self._event is None:
                self._event = threading.Event()
            return self._event

    def __iter__(self) -> Any:
        raise TypeError(
            f"the future of task {self.name} cannot be iterated over: take its result() first, "
            "or give it to a task as it is"
        )

    def __reduce__(self) -> Any:
        raise TypeError(
            f"the future of task {self.name} cannot be sent to another process inside another object; "
            "give it to the task itself, or in a list, dict, tuple, set or dataclass"
        )

    def __repr__(self) -> str:
        return f"<TaskFuture {self.name} {self.state}>"


class _NotHere:
    """The value is with the executor."""


NOT_HERE = _NotHere()
T = TypeVar("T")


class TaskFutures(list[TaskFuture[T]]):
    """What ``task.map`` gives: a list of futures, with a few ways to take all of them together."""

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[T]:
        """The values in order; as ``TaskFuture.result`` for each, ``timeout`` for all of them."""
        end = None if timeout is None else time.monotonic() + timeout
        for future in self:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not future.wait(left):
                break  # its result() tells
        away = [future for future in self if future._value is NOT_HERE and future.error is None]
        found = dict(zip(away, away[0].flow_run.place.fetch_all(away), strict=True)) if away else {}
        return [
            found[future]
            if future in found
            else future.result(0.0 if end is not None else None, raise_on_failure)
            for future in self
        ]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for all to end; whether they have."""
        return not wait(self, timeout)[1]


def wait(
    futures: Iterable[TaskFuture[Any]], timeout: float | None = None
) -> tuple[set[TaskFuture[Any]], set[TaskFuture[Any]]]:
    """Wait for all of these, ``timeout`` seconds at most: those that have ended, and those that have not."""
    end = None if timeout is None else time.monotonic() + timeout
    done: set[TaskFuture[Any]] = set()
    others: set[TaskFuture[Any]] = set()
    for future in futures:
        left = None if end is None else max(0.0, end - time.monotonic())
        (done if future.wait(left) else others).add(future)
    return done, others


def as_completed(futures: Iterable[TaskFuture[T]], timeout: float | None = None) -> Iterator[TaskFuture[T]]:
    """Each of these as it ends.

    Raises:
        TimeoutError: they have not all ended within ``timeout`` seconds.
    """
    from shunter.executors import threads

    end = None if timeout is None else time.monotonic() + timeout
    wanted = list(dict.fromkeys(futures))
    ended: list[TaskFuture[Any]] = []
    bell = threading.Condition()

    def note(future: TaskFuture[Any]) -> None:
        with bell:
            ended.append(future)
            bell.notify()

    for future in wanted:
        future.add_done_callback(note)
    for given in range(len(wanted)):
        left = None if end is None else max(0.0, end - time.monotonic())
        with threads.lending(), bell:
            if not bell.wait_for(lambda given=given: len(ended) > given, left):  # type: ignore[misc]
                raise TimeoutError(f"{len(wanted) - given} of {len(wanted)} tasks have not ended")
        yield ended[given]


def skipped_by(name: str, upstream: TaskFuture[Any]) -> UpstreamFailed:
    """The error of a task that is skipped because of this one."""
    why = upstream.error
    origin = why.origin if isinstance(why, UpstreamFailed) else _in_words(why)
    error = UpstreamFailed(
        f"task {name} was skipped: {upstream.name}, which it needs, ended {upstream.state}{origin and f' ({origin})'}"
    )
    error.origin = origin
    error.__cause__ = why
    return error


def _in_words(error: BaseException | None) -> str:
    """Its type, and its first line."""
    if error is None:
        return ""
    try:
        text = str(error).strip()
    except Exception:
        text = ""
    first = text.partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
