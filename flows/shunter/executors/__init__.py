"""Where the tasks of a flow are executed.

``executor=`` of a flow takes ``"threads"`` (the default), ``"processes"``, ``Threads(n)``, ``Processes(n)``, any
``concurrent.futures.Executor``, a ``dask.distributed`` client, cluster or scheduler's address, or ``Dask(...)``.

A *place* is what the engine makes of it: ``start(run)`` begins one try of a task run whose dependencies have ended (or
are futures that the place resolves by itself: ``resolves(run)``), and calls ``engine.attempt_ended`` when that has;
``interrupt(run)`` stops it; ``fetch(run)`` gives a value that stayed with the executor; ``close()`` ends what the place
itself has made. An executor of another kind fits in without any of that, if it has

    submit_with_futures(function, payload, upstream, *, name, tags) -> future

where ``function(payload, values)`` is to be called where it likes, with the values of ``upstream``, a list of futures
that it gave before, in that order, and the future has ``add_done_callback``, ``done``, ``result``, ``exception``, ``cancelled`` and ``cancel``
as ``concurrent.futures.Future`` has them. Values then stay with the executor
until somebody asks for them; ``gather(futures)``, if it has that, gives many at once. ``listen(heard)``, if it has that,
returns what can be pickled and, called at a task with a text, has ``heard(text)`` called here before the task's end is told:
without it artifacts, progress and log records of tasks there do not reach the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shunter.futures import TaskFuture


class Place(Protocol):
    """See the module."""

    #: Whether tasks run in this process, where what they submit is tracked.
    here: bool

    def start(self, run: TaskFuture[Any]) -> None: ...

    def resolves(self, run: TaskFuture[Any]) -> bool: ...

    def interrupt(self, run: TaskFuture[Any]) -> None: ...

    def fetch(self, run: TaskFuture[Any]) -> Any: ...

    def fetch_all(self, runs: list[TaskFuture[Any]]) -> list[Any]: ...

    def close(self) -> None: ...


class ValuesHere:
    """Of a place: it takes only what is ready, and each value comes to the flow at once."""

    def resolves(self, run: TaskFuture[Any]) -> bool:
        """No."""
        return False

    def fetch(self, run: TaskFuture[Any]) -> Any:
        """The value is here."""
        return run._value

    def fetch_all(self, runs: list[TaskFuture[Any]]) -> list[Any]:
        """They are here."""
        return [run._value for run in runs]


class Threads:
    """So many threads of this process, made when they are needed.

    Raises:
        ValueError: the number is below 1.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = _checked(workers)


class Processes:
    """So many processes, made when they are needed; by default as many as there are cores.

    Raises:
        ValueError: the number is below 1.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = _checked(workers)


def _checked(workers: int | None) -> int | None:
    if workers is not None and workers < 1:
        raise ValueError(f"{workers} workers cannot execute anything; give 1 or more")
    return workers


def place_of(executor: Any) -> Place:
    """What a flow's ``executor=`` means. Nothing is started yet.

    Raises:
        ExecutorError: it is nothing that can execute tasks, or a scheduler that is not there.
    """
    if executor is None or executor == "threads":
        executor = Threads()
    elif executor == "processes":
        executor = Processes()
    if isinstance(executor, Threads):
        from shunter.executors.threads import Lane, own_pool

        return Lane(own_pool(executor.workers))
    if isinstance(executor, Processes):
        from shunter.executors.processes import ProcessLane

        return ProcessLane(executor.workers)
    return _others(executor)


def _others(executor: Any) -> Place:
    from concurrent.futures import Executor, ThreadPoolExecutor

    from shunter.executors.threads import Lane

    if isinstance(executor, ThreadPoolExecutor):
        return Lane(executor)
    if hasattr(executor, "submit_with_futures"):
        from shunter.executors.futures_of_others import PlaceWithFutures

        return PlaceWithFutures(executor)
    if isinstance(executor, Executor):
        from shunter.executors.any import AnyExecutor

        return AnyExecutor(executor)
    from shunter.executors import dask

    return dask.place(executor)
