"""Tasks on Dask: ``executor=`` is a client, a cluster, a scheduler's address, or ``Dask(one of them, resources=...)``."""

from __future__ import annotations

import platform
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from shunter.errors import ExecutorError
from shunter.executors.futures_of_others import PlaceWithFutures

#: Seconds to wait for a scheduler.
PATIENCE = 10


class Dask:
    """A Dask cluster to execute tasks.

    Args:
        where: ``dask.distributed.Client``, a cluster object that has ``get_client``, or an address as
            ``tcp://host:8786``.
        resources: what a task with a tag takes of its worker: ``{"gpu": {"GPU": 1}}``. Tags that are not in it
            mean nothing to Dask.

    Raises:
        TypeError: the resources are none.
    """

    def __init__(self, where: Any, resources: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.where = where
        if not all(isinstance(taken, Mapping) for taken in (resources or {}).values()):
            raise TypeError(
                f"resources is {resources!r}; it has for each tag what a task takes: {{'gpu': {{'GPU': 1}}}}"
            )
        self.resources = {tag: dict(taken) for tag, taken in (resources or {}).items()}


def place(executor: Any) -> PlaceWithFutures:
    """The place that this means.

    Raises:
        ExecutorError: it is nothing of Dask's, or the scheduler is not there, or has another version, or some of the
            cluster lacks Shunter.
    """
    wanted = executor if isinstance(executor, Dask) else Dask(executor)
    where = wanted.where
    if isinstance(where, str) and "://" not in where:
        raise ExecutorError(
            f"there is no executor {where!r}: it is 'threads', 'processes', or the address of a Dask scheduler (tcp://...)"
        )
    if isinstance(where, str):
        return PlaceWithFutures(_Connected(_connect(where), wanted.resources, own=True))
    if callable(getattr(where, "get_client", None)) and hasattr(where, "scheduler_address"):
        return PlaceWithFutures(_Connected(_connect(where), wanted.resources, own=True))
    if hasattr(where, "scheduler_info") and hasattr(where, "submit"):
        if getattr(where, "asynchronous", False):
            raise ExecutorError(
                "an asynchronous Dask client cannot be used: give one made without asynchronous=True"
            )
        if where.status == "running":
            _demand_shunter(where)
        return PlaceWithFutures(_Connected(where, wanted.resources, own=False))
    raise ExecutorError(
        f"{where!r} cannot execute tasks: it is no concurrent.futures.Executor, and no client or cluster of Dask"
    )


def _connect(where: Any) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ExecutorError("Dask needs the package distributed: pip install 'shunter[dask]'") from None
    # In two steps, as one that could not connect is to be closed, too: the garbage collector would do that wherever it is
    # called, and wait there for a loop that may need a lock which is held there.
    client = Client.__new__(Client)
    try:
        client.__init__(where, timeout=PATIENCE, set_as_default=False)  # type: ignore[misc]
        _demand_shunter(client)
    except BaseException as exc:
        with suppress(Exception):
            client.close()  # type: ignore[no-untyped-call]
        if isinstance(exc, (OSError, TimeoutError)):
            raise ExecutorError(f"there is no Dask scheduler at {where}: {exc}") from None
        if isinstance(exc, ExecutorError) or not isinstance(exc, Exception):
            raise
        raise _not_understood(f"the Dask scheduler at {where}", exc) from exc
    return client


def _demand_shunter(client: Any) -> None:
    """Refuse a cluster of which a part could not read tasks: Dask loses such workers, and tasks wait for others for ever."""
    try:
        found = {"scheduler": client.run_on_scheduler(find_spec, "shunter")}
        found |= {
            f"worker {at}": there for at, there in client.run(find_spec, "shunter", on_error="return").items()
        }
    except Exception as exc:
        raise _not_understood("the Dask cluster", exc) from exc
    missing = [name for name, there in found.items() if there is None]
    if missing:
        raise ExecutorError(
            f"the Dask {', '.join(missing[:3])}{' and others' * (len(missing) > 3)} cannot import shunter: install there "
            "what the flow imports"
        )


def _not_understood(whom: str, exc: Exception) -> ExecutorError:
    return ExecutorError(
        f"{whom} gives no answer that is understood here, with Python {platform.python_version()} and distributed "
        f"{version('distributed')}: has it another version, or is it gone? ({type(exc).__name__}: {exc})"
    )


class _Connected:
    """A client, as an executor that resolves its own futures."""

    def __init__(self, client: Any, resources: Mapping[str, Mapping[str, float]], own: bool) -> None:
        self._client = client
        self._resources = resources
        self._own = own
        self._topic = ""
        self._heard: Callable[[str], None] | None = None

    def listen(self, heard: Callable[[str], None]) -> Callable[[str], object]:
        """What tasks send messages by, as events of Dask; ``heard`` is called with each, in its order, before the task's end
        is told."""
        self._topic = f"shunter-{uuid.uuid4().hex}"
        self._heard = heard
        self._client.subscribe_topic(self._topic, self._hear)
        return partial(_send, self._topic)

    def _hear(self, event: tuple[float, str]) -> None:
        if self._heard is not None:
            self._heard(event[1])

    def submit_with_futures(
        self, function: Any, payload: Any, upstream: Sequence[Any], *, name: str, tags: frozenset[str]
    ) -> Any:
        """Submit it; its future."""
        if self._client.status in ("closed", "closing"):
            raise ExecutorError("the Dask client is closed")
        taken: dict[str, float] = {}
        for tag in tags:
            taken.update(self._resources.get(tag, {}))
        return self._client.submit(
            function,
            payload,
            list(upstream),
            key=f"{name}-{uuid.uuid4().hex}",
            pure=False,
            resources=taken or None,
        )

    def gather(self, futures: list[Any]) -> list[Any]:
        """The values of many, in one go."""
        values: list[Any] = self._client.gather(futures)
        return values

    def close_own(self) -> None:
        """End the connection, if it was made here."""
        self._heard = None  # the client keeps what it has called
        if self._topic and self._client.status == "running":
            forgetting = threading.Thread(target=self._have_forgotten, daemon=True)
            forgetting.start()
            forgetting.join(PATIENCE)  # a scheduler that hangs does not hold up a flow that has ended
        if self._own:
            self._client.close()

    def _have_forgotten(self) -> None:
        with suppress(Exception):  # one that is gone has forgotten it
            self._client.run_on_scheduler(_forget, self._topic)


def _send(topic: str, message: str) -> None:
    from distributed import get_worker

    get_worker().log_event(topic, message)


def _forget(topic: str, dask_scheduler: Any) -> None:
    """Scheduler: keep no events of a flow that has ended, nor who listens. There is no public word for the first."""
    topics = getattr(getattr(dask_scheduler, "_broker", None), "_topics", None)
    if topics is not None:
        topics.pop(topic, None)
