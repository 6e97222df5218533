"""Who waits for what in this process: agents for work, people for runs. Nothing here is a truth.

Everything is level-triggered: a wake-up only says "look again", so one too many costs a query and one
that is lost costs at most the time that a request is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.queue.sync import Registered
from shunter_work_pools.storage.store import Changes

#: Waiting agents that are all looked at when one of them makes room.
_FEW = 64


@dataclass
class Waiting:
    """An agent whose sync is held.

    Attributes:
        held: runs that it said it holds.
        ended: those of them that it has given back since, and what they took of its capacity.
        offered: attempts it said it can take; None until its books were compared.
        offered_capacity: what of its capacity it said is free.
        stirred: something became claimable for it before that.
        answer: set to assignments, or to nothing when it has to look again.
    """

    agent: Registered
    held: frozenset[UUID]
    ended: dict[UUID, Mapping[str, float]] = field(default_factory=dict)
    offered: int | None = None
    offered_capacity: Mapping[str, float] = field(default_factory=dict)
    stirred: bool = False
    answer: asyncio.Future[list[Assignment]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def free(self) -> int:
        """Attempts it can take now."""
        return 0 if self.offered is None else self.offered + len(self.ended)

    @property
    def free_capacity(self) -> dict[str, float]:
        """What of its capacity is free now."""
        free = dict(self.offered_capacity)
        for need in self.ended.values():
            for name, amount in need.items():
                free[name] = free.get(name, 0.0) + amount
        return free

    def wake(self, assignments: list[Assignment] | None = None) -> None:
        """Answer it; without assignments: look again."""
        if not self.answer.done():
            self.answer.set_result(assignments or [])


class Hub:
    """The meeting place of commits and of those who wait for them."""

    def __init__(self) -> None:
        self.agents: dict[int, Waiting] = {}
        self.claimable = asyncio.Event()
        self._stirred: set[int] = set()
        self._with_room: set[int] = set()
        self.schedules = asyncio.Event()
        #: When the next waiting run becomes due, by the event loop's clock; infinity: none is known to.
        self.next_due = math.inf
        #: A limit was made or changed since it was last looked at which there are.
        self.limits = True
        self.stopping = False
        self._runs: dict[UUID, set[asyncio.Event]] = {}

    def committed(self, changes: Changes) -> None:
        """Wake whom a commit concerns."""
        for agent_id, runs in changes.freed.items():
            if self.note_freed(agent_id, runs) is not None:
                self.has_room(agent_id)
        for agent_id in changes.agents:
            waiting = self.agents.get(agent_id)
            if waiting is not None:
                waiting.wake()
        if changes.pools:
            self.stir(changes.pools)
        if changes.due_in is not None:
            due = asyncio.get_running_loop().time() + changes.due_in
            if due < self.next_due:
                self.next_due = due
                self.claimable.set()  # to sleep no longer than until then
        if changes.schedules:
            self.schedules.set()
        if changes.limits:
            self.limits = True
            self.claimable.set()
        for run_id in changes.runs:
            self.touch(run_id)

    def note_freed(self, agent_id: int, runs: Mapping[UUID, Mapping[str, float]]) -> Waiting | None:
        """Note what an agent gave back, and what that took of it; its entry, if it waits."""
        waiting = self.agents.get(agent_id)
        if waiting is not None:
            waiting.ended |= {run: need for run, need in runs.items() if run in waiting.held}
        return waiting

    def stir(self, pools: Iterable[int] | None = None) -> None:
        """Something may have become claimable in these pools; None: in any."""
        if pools is None:
            pools = [pool for waiting in self.agents.values() for pool in waiting.agent.pools]
        self._stirred.update(pools)
        self.claimable.set()

    def has_room(self, agent_id: int) -> None:
        """An agent that waits could take something, or more than before."""
        self._with_room.add(agent_id)
        self.claimable.set()

    def takers(self) -> list[Waiting]:
        """Those for whom there may be something to claim that was not there when last asked.

        With thousands of agents, one that comes to wait must not cost a look at all the others: what they
        could take was claimed for them before.
        """
        self.claimable.clear()
        stirred, self._stirred = self._stirred, set()
        with_room, self._with_room = self._with_room, set()
        if stirred:
            found = [
                waiting
                for agent_id, waiting in self.agents.items()
                if agent_id in with_room or not stirred.isdisjoint(waiting.agent.pools)
            ]
            for waiting in found:
                waiting.stirred |= waiting.offered is None
        else:
            found = [self.agents[agent_id] for agent_id in with_room if agent_id in self.agents]
        return [waiting for waiting in found if waiting.free > 0 and not waiting.answer.done()]

    def who_could_take(self, agent_id: int, pools: frozenset[int]) -> tuple[list[Waiting], bool]:
        """Those that wait for runs of some pools and have room, with an agent that is about to have room; and
        whether these are all. Of a large fleet it is that agent alone: to look at all would hold up its report."""
        few = len(self.agents) <= _FEW
        looked_at = self.agents.values() if few else filter(None, [self.agents.get(agent_id)])
        found = [
            waiting
            for waiting in looked_at
            if waiting.offered is not None
            and not waiting.answer.done()
            and not pools.isdisjoint(waiting.agent.pools)
            and (waiting.free > 0 or waiting.agent.id == agent_id)
        ]
        return found, few

    def others_wait(self, known: list[Waiting], pools: frozenset[int]) -> bool:
        """Whether anybody waits for runs of some pools, and may have room, who was not known."""
        return any(
            (waiting.offered is None or waiting.free > 0)
            and not waiting.answer.done()
            and not pools.isdisjoint(waiting.agent.pools)
            and all(waiting is not one for one in known)
            for waiting in self.agents.values()
        )

    def touch(self, run_id: UUID) -> None:
        """Wake those who watch a run."""
        for event in self._runs.get(run_id, ()):
            event.set()

    @contextlib.contextmanager
    def waiting(self, agent: Registered, held: frozenset[UUID]) -> Iterator[Waiting]:
        """Let an agent wait; an older sync of the same agent is answered."""
        waiting = Waiting(agent, held)
        older = self.agents.get(agent.id)
        if older is not None:
            older.wake()
        self.agents[agent.id] = waiting
        try:
            yield waiting
        finally:
            if self.agents.get(agent.id) is waiting:
                del self.agents[agent.id]

    @contextlib.contextmanager
    def watching(self, run_id: UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever the run changes."""
        event = asyncio.Event()
        watchers = self._runs.setdefault(run_id, set())
        watchers.add(event)
        try:
            yield event
        finally:
            watchers.discard(event)
            if not watchers and self._runs.get(run_id) is watchers:
                del self._runs[run_id]

    def stop(self) -> None:
        """Answer everything that is held, now and from now on."""
        self.stopping = True
        for waiting in list(self.agents.values()):
            waiting.wake()
        for watchers in list(self._runs.values()):
            for event in watchers:
                event.set()
