"""Tasks in processes of their own.

Each task that runs has a process, which is kept for the next one. A process that dies takes the task with it that it was
executing, and no other; one whose task is to stop is killed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from shunter import dependencies, engine, journal
from shunter.errors import ExecutorError, WorkerDied
from shunter.executors.threads import Lane, own_pool
from shunter.futures import TaskFuture
from shunter.packing import pack, pack_without, unpack


class ProcessLane(Lane):
    """A lane whose threads have the work done by processes."""

    here = False

    def __init__(self, workers: int | None) -> None:
        super().__init__(own_pool(workers or os.cpu_count() or 1))
        self._idle: list[_Child] = []
        self._busy: dict[TaskFuture[Any], _Child] = {}
        self._closed = False

    def call(self, run: TaskFuture[Any], turn: int) -> tuple[Any, BaseException | None]:
        """Have it executed by a process; its value, or what went wrong."""
        from shunter.remote import Order

        try:
            args, kwargs = dependencies.values_of(run)
            if run.task.cache is not None and engine.from_cache(run, args, kwargs):
                return run._value, None
            order = _packed(run, Order(run, args, kwargs, None))
            child = self._take(run)
        except BaseException as exc:
            return None, exc
        try:
            if run._turn != turn:
                return None, None
            value, error = child.do(run.name, order, lambda: engine.watch(run, turn))
        finally:
            self._give_back(run, child)
        return value, error

    def interrupt(self, run: TaskFuture[Any]) -> None:
        """Kill the process that executes it."""
        with self._lock:
            self._waiting += 1
            child = self._busy.get(run)
            if child is not None:
                child.kill()

    def close(self) -> None:
        """End the processes."""
        super().close()
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _take(self, run: TaskFuture[Any]) -> _Child:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        told_to = run.root.journal
        child = child or _Child(told_to.path if told_to is not None else None)
        with self._lock:
            self._busy[run] = child
        return child

    def _give_back(self, run: TaskFuture[Any], child: _Child) -> None:
        with self._lock:
            del self._busy[run]
            keep = child.usable and not self._closed
            if keep:
                self._idle.append(child)
        if not keep:
            child.end()


class _Child:
    """One process and the way to it.

    Args:
        journal: the file in which it tells of artifacts and progress.
    """

    def __init__(self, journal: str | None) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._way, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, journal), name="shunter-worker", daemon=True)
        try:
            self.process.start()
        except Exception as exc:
            raise ExecutorError(f"no process could be started: {exc}") from exc
        finally:
            other.close()
        self.usable = True

    def do(self, name: str, order: bytes, begun: Callable[[], None]) -> tuple[Any, BaseException | None]:
        """Send an order and wait for what comes back.

        Args:
            begun: called when the task's function is; the process and its imports take their time before that.
        """
        try:
            self._way.send_bytes(order)
            self._way.recv_bytes()
            begun()
            answer = self._way.recv_bytes()
        except (EOFError, OSError):
            self.usable = False
            self.process.join()
            return None, WorkerDied(f"the process that executed task {name} {_how(self.process.exitcode)}")
        try:
            value, error = unpack(answer)
        except Exception as exc:
            return None, TypeError(f"the result of task {name} cannot be read here: {exc}")
        return value, error

    def kill(self) -> None:
        """End it now."""
        self.usable = False
        self.process.kill()

    def end(self) -> None:
        """Let it end; it has nothing to do."""
        self._way.close()
        self.process.join(1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def work(way: Connection, told_to: str | None) -> None:
    """In the child: do what is ordered, one after the other, until the parent is gone."""
    import signal

    # The one who ends this process is its parent. (No SIG_IGN, which programs started from here would inherit.)
    signal.signal(signal.SIGTERM, _leave_it)
    signal.signal(signal.SIGINT, _leave_it)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    journal.lent(told_to)
    while True:
        try:
            order = way.recv_bytes()
        except (EOFError, OSError):
            return
        way.send_bytes(_done(order, lambda: way.send_bytes(b"")))


def _leave_it(number: int, frame: object) -> None:
    pass


def _end_with_parent() -> None:
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _done(order: bytes, begins: Callable[[], None]) -> bytes:
    from shunter import remote

    pid = os.getpid()
    name = "?"
    error: BaseException | None
    try:
        try:
            unpacked = unpack(order)
        finally:
            begins()
        name = unpacked.task.name
        value, error = remote.do(unpacked), None
    except SystemExit as exc:
        value, error = None, engine.task_exit(unpacked.task, exc)
    except BaseException as exc:
        value, error = None, remote.sendable(name, exc)
    if os.getpid() != pid:
        os._exit(0)  # a child that the task forked, and that came back from it
    try:
        return pack((value, error))
    except Exception as exc:
        return pack(
            (None, TypeError(f"the result of task {name} cannot be sent from one process to another: {exc}"))
        )


def _packed(run: TaskFuture[Any], order: Any) -> bytes:
    try:
        return pack_without(order, _not_there(run.task.__module__))
    except Exception as exc:
        raise TypeError(
            f"task {run.name} or its arguments cannot be sent to another process: {exc}"
        ) from None


def _not_there(module: str) -> list[str]:
    """Of the modules of a task those that its process cannot import: a notebook, a file under a name made up for it."""
    missing = [] if os.path.isfile(getattr(sys.modules["__main__"], "__file__", "")) else ["__main__"]
    return [*missing, module] if module.startswith("_entrypoint_") else missing


def _how(code: int | None) -> str:
    import signal

    if code is not None and code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"exited with {code}"
