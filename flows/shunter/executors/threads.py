"""Tasks in threads of this process.

A task that waits for another one holds its thread. So that those waited for always find one, a *lane* lends a thread of
its own for each that waits, for as long as there is something to do: a pool of two threads gets to the end of a thousand
tasks that wait for each other, whoever made the pool.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Protocol

from shunter import engine
from shunter.errors import Interrupted
from shunter.executors import ValuesHere
from shunter.futures import TaskFuture
from shunter.interrupts import Interruptible


class Pool(Protocol):
    """As much of an executor as a lane needs."""

    def submit(self, do: Callable[[], None], /) -> Any: ...

    def shutdown(self, wait: bool = True) -> None: ...


class _Here(threading.local):
    """Of this thread: the lane whose work it does, and whether it is that of asynchronous tasks."""

    lane: Lane | None = None
    loop: bool = False


here = _Here()


class Daemons:
    """A pool of threads that do not hold up the end of the process, as one might never return from its task."""

    def __init__(self, workers: int) -> None:
        self._most = workers
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = 0
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)

    def submit(self, do: Callable[[], None], /) -> None:
        """Have this done."""
        self._queue.put(do)
        with self._lock:
            if self._threads == self._most or self._idle.acquire(blocking=False):
                return
            threading.Thread(target=self._work, name=f"shunter-{self._threads + 1}", daemon=True).start()
            self._threads += 1

    def shutdown(self, wait: bool = True) -> None:
        """Let the threads end when they have done what is queued."""
        for _ in range(self._threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (do := self._queue.get()) is not None:
            do()
            del do
            if self._queue.empty() and self._threads < self._most:
                self._idle.release()


def own_pool(workers: int | None) -> Callable[[], Pool]:
    """A pool of this flow run's own, made when it is first needed."""
    return lambda: Daemons(workers or min(32, (os.cpu_count() or 1) + 4))


class Lane(ValuesHere):
    """Task runs that are ready, and the threads that take them.

    Args:
        pool: somebody's executor, which is not ended; or what makes one of our own.
    """

    here = True

    def __init__(self, pool: Pool | Callable[[], Pool]) -> None:
        self._own = not hasattr(pool, "submit")
        self._make = pool
        self._pool: Pool | None = None if self._own else pool  # type: ignore[assignment]
        self._lock = threading.Lock()
        self._ready: deque[TaskFuture[Any]] = deque()
        self._waiting = 0
        self._lent = 0

    def start(self, run: TaskFuture[Any]) -> None:
        """Put it at the end of the line."""
        self._ready.append(run)
        if self._pool is None:
            with self._lock:
                if self._pool is None:
                    self._pool = self._make()  # type: ignore[operator]
        self._pool.submit(self._take_one)
        if self._waiting:
            self._lend()

    def close(self) -> None:
        """End the threads that are our own."""
        if self._own and self._pool is not None:
            self._pool.shutdown(wait=False)

    @contextmanager
    def lending(self) -> Iterator[None]:
        """While the thread that asks waits for something."""
        with self._lock:
            self._waiting += 1
        try:
            self._lend()
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def _lend(self) -> None:
        with self._lock:
            if not self._ready or self._lent >= self._waiting:
                return
            self._lent += 1
        try:
            threading.Thread(target=self._work_lent, name="shunter-lent", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._lent -= 1
            raise

    def _work_lent(self) -> None:
        while True:
            with self._lock:
                if not self._ready or self._lent > self._waiting:
                    self._lent -= 1
                    return
            self._take_one()

    def _take_one(self) -> None:
        try:
            run = self._ready.popleft()
        except IndexError:
            return  # a lent thread was quicker
        before, here.lane = here.lane, self
        try:
            self._execute(run)
        finally:
            here.lane = before

    def _execute(self, run: TaskFuture[Any]) -> None:
        turn = engine.attempt_started(run)
        if turn is None:
            return
        value, error = self.call(run, turn)
        if run._turn != turn:  # it was given up, and its place was lent to others meanwhile
            with self._lock:
                self._waiting -= 1
            return
        engine.attempt_ended(run, turn, value, error)

    def call(self, run: TaskFuture[Any], turn: int) -> tuple[Any, BaseException | None]:
        """Execute the task's function; its value, or what it raised."""
        gate = Interruptible()
        try:
            with gate:
                run._native = gate
                if run._turn != turn:
                    return None, None
                assert run._context is not None
                engine.watch(run, turn)
                return run._context.copy().run(engine.invoke, run), None
        except BaseException as exc:
            gate.leave()
            return None, exc
        finally:
            run._native = None

    def interrupt(self, run: TaskFuture[Any]) -> None:
        """Raise in the thread that executes it; another thread is lent until that one is free."""
        with self._lock:
            self._waiting += 1
        gate = run._native
        if isinstance(gate, Interruptible):
            gate.interrupt(Interrupted)
        self._lend()


def wait_for(event: threading.Event, timeout: float | None, run: TaskFuture[Any]) -> bool:
    """Wait in this thread, whose lane goes on with others."""
    if here.loop:
        raise RuntimeError(
            f"result() or wait() of task {run.name} in an asynchronous task would hold up all of them: "
            "await the future instead"
        )
    with lending():
        return event.wait(timeout)


@contextmanager
def lending() -> Iterator[None]:
    """While this thread waits for something other than its own work."""
    lane = here.lane
    if lane is None:
        yield
        return
    with lane.lending():
        yield
