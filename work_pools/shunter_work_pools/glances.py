"""Glances: whether there is anything to tell agents that hold nothing, one read for many of them.

Thousands of idle agents come back every ten seconds each, mostly to hear that there is nothing. They are not
looked up one by one: those that come within a moment of each other share one read. It is begun after the last
of them has come, so what each is told is as true as if it had been looked up alone, and nothing is kept that
could be outdated.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from shunter_work_pools.queue.claim import is_due
from shunter_work_pools.queue.sync import concerned
from shunter_work_pools.storage.store import Store

#: Seconds from one read to the next; who comes meanwhile waits for the next, who comes later does not wait.
PAUSE = 0.05


@dataclass(frozen=True)
class Glance:
    """What was seen.

    Attributes:
        concerned: those of the agents asked for with whom there is something, to be looked at in full.
        due: some run waits that is due.
    """

    concerned: frozenset[int]
    due: bool


class Glances:
    """Shared looks at a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking: set[int] = set()
        self._next: asyncio.Task[Glance] | None = None
        self._last = -PAUSE

    async def look(self, agent_id: int) -> Glance:
        """What there is now for an agent.

        Raises:
            Unavailable: the store cannot be read.
        """
        self._asking.add(agent_id)
        if self._next is None:
            self._next = asyncio.create_task(self._read(), name="glance")
        return await asyncio.shield(self._next)

    async def _read(self) -> Glance:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._last + PAUSE - loop.time())
        asking, self._asking, self._next, self._last = self._asking, set(), None, loop.time()
        return await self._store.read(lambda tx: Glance(concerned(tx, asking), is_due(tx)))
