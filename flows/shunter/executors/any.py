"""Tasks at any executor of ``concurrent.futures``, of which only that interface is known.

It may be anywhere, so a task is sent there as to another process.
"""

from __future__ import annotations

from concurrent.futures import CancelledError, Executor
from typing import Any

from shunter import dependencies, engine, messages, remote
from shunter.errors import ExecutorError
from shunter.executors import ValuesHere
from shunter.futures import TaskFuture


class AnyExecutor(ValuesHere):
    """One that somebody else made, and ends."""

    here = False

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def start(self, run: TaskFuture[Any]) -> None:
        """Submit it."""
        turn = engine.attempt_started(run)
        if turn is None:
            return
        try:
            args, kwargs = dependencies.values_of(run)
            if run.task.cache is not None and engine.from_cache(run, args, kwargs):
                engine.attempt_ended(run, turn, run._value, None)
                return
            native = self._executor.submit(remote.do_sent, remote.Order(run, args, kwargs, run.task.timeout))
        except Exception as exc:
            engine.attempt_ended(run, turn, None, _explained(exc))
            return
        run._native = native
        native.add_done_callback(lambda ended: _ended(run, turn, ended))

    def interrupt(self, run: TaskFuture[Any]) -> None:
        """Take it back, if it has not begun; what has begun there goes on, and is not listened to."""
        if run._native is not None:
            run._native.cancel()

    def close(self) -> None:
        """It is not ours."""


def _ended(run: TaskFuture[Any], turn: int, native: Any) -> None:
    run._native = None
    try:
        error = native.exception()
        answer = native.result() if error is None else remote.Answer(None, error, [])
    except CancelledError:
        answer = remote.Answer(None, ExecutorError(f"the executor cancelled task {run.name}"), [])
    for message in answer.told:
        messages.receive(run.root, message)
    engine.attempt_ended(run, turn, answer.value, answer.error)


def _explained(error: Exception) -> Exception:
    if isinstance(error, RuntimeError) and "shutdown" in str(error):
        return ExecutorError(f"the executor takes no tasks any more: {error}")
    return error
