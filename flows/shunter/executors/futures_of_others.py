"""Tasks at an executor that resolves its own futures: values stay there, and go from task to task without coming here."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from shunter import dependencies, engine, messages, remote
from shunter.errors import ExecutorError
from shunter.futures import NOT_HERE, TaskFuture
from shunter.packing import pack_without
from shunter.results import INLINE, NotKept, Store
from shunter.runs import Root


class WithFutures(Protocol):
    """What such an executor has; see ``shunter.executors``."""

    def submit_with_futures(
        self, function: Any, payload: Any, upstream: Sequence[Any], *, name: str, tags: frozenset[str]
    ) -> Any: ...


class PlaceWithFutures:
    """One that somebody else made, or that ``executors.dask`` has wrapped."""

    here = False

    def __init__(self, executor: WithFutures) -> None:
        self._executor = executor
        self._send: Callable[[str], object] | None = None
        self._listens = threading.Lock()

    def resolves(self, run: TaskFuture[Any]) -> bool:
        """Whether its future is one of this executor's."""
        return run._native is not None and run.flow_run.place is self

    def fetch(self, run: TaskFuture[Any]) -> Any:
        """Get the value from there.

        Raises:
            ExecutorError: it is not to be had any more.
        """
        with _in_words(run.name):
            return run._native.result()

    def fetch_all(self, runs: list[TaskFuture[Any]]) -> list[Any]:
        """Get values from there; at once, if the executor has ``gather``."""
        gather = getattr(self._executor, "gather", None)
        if gather is None:
            return [self.fetch(run) for run in runs]
        with _in_words(runs[0].name):
            values: list[Any] = gather([run._native for run in runs])
        return values

    def start(self, run: TaskFuture[Any]) -> None:
        """Hand it over, with the executor's own futures for what has been handed over before."""
        turn = engine.attempt_started(run)
        if turn is None:
            return
        try:
            natives: list[Any] = []
            args, kwargs = dependencies.replaced(
                (run._args, run._kwargs), lambda one, failing: self._put(one, failing, natives)
            )
            order = remote.Order(run, args, kwargs, run.task.timeout, self._listening(run.root))
            order.attempt -= 1  # they are counted there
            packed = pack_without(order, _not_there(run.task.__module__))
            native = self._executor.submit_with_futures(
                remote.do_with_values, packed, natives, name=run.name, tags=run.task.tags
            )
        except Exception as exc:
            engine.attempt_ended(run, turn, None, exc, last=True)
            return
        run._native = native
        native.add_done_callback(lambda ended: self._ended(run, turn, ended))

    def interrupt(self, run: TaskFuture[Any]) -> None:
        """Cancel it there."""
        if run._native is not None:
            run._native.cancel()

    def close(self) -> None:
        """End the connection, if it is our own."""
        close = getattr(self._executor, "close_own", None)
        if close is not None:
            close()

    def _listening(self, root: Root) -> Callable[[str], object] | None:
        """What a task there sends its messages by; from now on they are heard."""
        listen = getattr(self._executor, "listen", None)
        if listen is None:
            return None
        with self._listens:
            if self._send is None:
                self._send = listen(lambda message: messages.receive(root, message))
        return self._send

    def _put(self, one: TaskFuture[Any], failing: bool, natives: list[Any]) -> Any:
        if one._native is not None and one.error is None and self.resolves(one):
            natives.append(one._native)
            return remote.Slot(len(natives) - 1)
        return dependencies.value_for(one, failing)

    def _ended(self, run: TaskFuture[Any], turn: int, native: Any) -> None:
        error: BaseException | None
        try:
            if native.cancelled():
                error = ExecutorError(
                    f"the executor gave up task {run.name}: was it closed, or its scheduler lost?"
                )
            else:
                error = native.exception()
        except BaseException as exc:
            error = ExecutorError(f"the executor gave up task {run.name}: {type(exc).__name__}: {exc}")
        if error is not None:
            for one in run.upstream:
                one_failed = one._native is not None and _failed(one._native)
                if one.error is not None or one_failed:
                    engine.skip(run, one)
                    return
            engine.attempt_ended(run, turn, None, error, last=True)
        elif run.root.journal is not None and run.task.persist:
            self._keep(run, turn, native)
        else:
            engine.attempt_ended(run, turn, NOT_HERE, None)

    def _keep(self, run: TaskFuture[Any], turn: int, native: Any) -> None:
        """Have the value kept where it is: a small one comes here, a larger one goes to the storage from there."""
        store = run.flow_run.store
        place = store.place if run.flow_run.result_storage is not None else None
        kept = self._executor.submit_with_futures(
            keep_there, (place, store.limit), [native], name=f"keep-{run.name}", tags=frozenset()
        )

        def note(ended: Any) -> None:
            try:
                run._reference = ended.result()
            except BaseException as exc:
                run.root.say_once(
                    f"result {run.task.identity}", "the result of task %s is not kept: %s", run.name, exc
                )
            engine.attempt_ended(run, turn, NOT_HERE, None)

        kept.add_done_callback(note)


def keep_there(payload: tuple[str | None, int], values: list[Any]) -> dict[str, Any] | None:
    """On a worker: keep a value; by what it is found again."""
    place, limit = payload
    try:
        return Store(place or ".", limit if place is not None else INLINE).keep(values[0])
    except NotKept:
        return None


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """The task completed, so what goes wrong is the executor's."""
    try:
        yield
    except Exception as exc:
        raise ExecutorError(
            f"the value of task {name} cannot be had from the executor ({type(exc).__name__}: {exc}): was its connection "
            "closed, or did the flow end, before it was asked for?"
        ) from exc


def _not_there(module: str) -> list[str]:
    """The modules that other machines do not have: the program itself, and the file with the flow."""
    own = getattr(sys.modules.get(module), "__entrypoint__", False)
    return ["__main__", module] if own else ["__main__"]


def _failed(native: Any) -> bool:
    try:
        return bool(native.done()) and (native.cancelled() or native.exception() is not None)
    except BaseException:
        return True
