"""One stream of the engine's events wakes whoever waits for a container; nothing is asked for by the clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from shunter_infrastructure.docker.engine import Engine
from shunter_infrastructure.launcher import LauncherUnavailable

#: Seconds between two tries to reach an engine that is away.
_PAUSE = 0.5
#: Podman filters by other words than it tells, and not by a label without its value: the rest is sorted out here.
_FILTERS = json.dumps({"type": ["container"]})
#: What is of interest, in the words of Docker and of Podman.
MADE, STARTED, DEAD = frozenset({"create"}), frozenset({"start"}), frozenset({"die", "died"})
_TELLING = STARTED | DEAD | {"destroy", "remove"}


class Events:
    """Wakes those that wait for a container: at its events, and whenever some may have been missed.

    What is true then, they ask the engine itself.

    Attributes:
        life: the same for as long as the engine has not gone away; None while that is not known.
        closed: nobody listens any more.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._bells: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self.life: object | None = None
        self.closed = False

    @contextlib.contextmanager
    def bell(self, container: str) -> Iterator[asyncio.Event]:
        """Set when something happened to a container, or may have."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="docker events")
        bell = asyncio.Event()
        self._bells[container].add(bell)
        try:
            yield bell
        finally:
            self._bells[container].discard(bell)
            if not self._bells[container]:
                del self._bells[container]

    async def remembers(self, container: str, *happened: frozenset[str]) -> bool:
        """Whether the engine has been there without a break while all this happened to a container, in this order.

        It remembers its last 256 events; one that was started anew remembers nothing.

        Raises:
            LauncherUnavailable: the engine is away.
        """
        filters = json.dumps({"container": [container], "event": sorted(frozenset().union(*happened))})
        until = await self._engine_time() + 2  # the end of this second
        left = list(happened)
        async with self._engine.stream(
            "/events", {"filters": filters, "since": "1", "until": str(until)}
        ) as answer:
            async for line in answer.lines():
                if line and json.loads(line).get("Action") in left[0]:
                    del left[0]
                if not left:
                    return True
        return False

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(LauncherUnavailable):
                since = await self._engine_time()
                params = {"filters": _FILTERS, "since": str(since)}
                async with self._engine.stream("/events", params) as answer:
                    self.life = object()
                    self._wake_all()  # what happened before is not told; from ``since`` on everything is
                    async for line in answer.lines():
                        if line:
                            self._wake(json.loads(line))
            self.life = None
            self._wake_all()
            await asyncio.sleep(_PAUSE)

    async def _engine_time(self) -> int:
        """A moment just before now by the engine's clock, seconds: the stream begins some time after its answer does."""
        async with self._engine.stream("/_ping", {}) as answer:
            date = answer.headers.get("date")
            return int(parsedate_to_datetime(date).timestamp()) - 1 if date else 0

    def _wake(self, event: dict[str, object]) -> None:
        if event.get("Action") not in _TELLING:
            return
        actor = event.get("Actor")
        container = str(actor.get("ID")) if isinstance(actor, dict) else ""
        for bell in self._bells.get(container, ()):
            bell.set()

    def _wake_all(self) -> None:
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    async def close(self) -> None:
        """Listen no more; whoever waits is woken."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._wake_all()
