"""A queue as tests speak to it: pools, deployments, agents and runs by name, each call a transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any
from uuid import UUID

from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import (
    AgentPatch,
    Assignment,
    Held,
    ReleaseRequest,
    Report,
    ReportAck,
    ServerPatch,
    SyncRequest,
)
from shunter_work_pools.contracts.base import moment
from shunter_work_pools.contracts.deployments import (
    DeploymentPatch,
    DeploymentSpec,
    Named,
    SchedulePatch,
    Skipped,
    Work,
)
from shunter_work_pools.contracts.limits import Limit, LimitPatch, LimitSpec
from shunter_work_pools.contracts.pools import PoolPatch, PoolSpec, QueuePatch, QueueSpec
from shunter_work_pools.contracts.runs import Event, Run, RunRequest
from shunter_work_pools.contracts.states import AttemptState, Cause
from shunter_work_pools.queue import apply, catalog, control, fire, limits, pausing, reap, views
from shunter_work_pools.queue.claim import Offer, claim
from shunter_work_pools.queue.handover import hand_over, leave
from shunter_work_pools.queue.report import report
from shunter_work_pools.queue.submit import submit
from shunter_work_pools.queue.sync import Difference, Registered, difference, heartbeat, register, release
from shunter_work_pools.storage.store import Changes
from tests.queue.books import exceeded
from tests.storage.stores import AnyStore, Clock

LOST_AFTER = 30.0
GIVE_UP_AFTER = 300.0
LEASE_FOR = 240.0
LATE_AFTER = 15.0
TRUE = Work(command=["/bin/true"])
S = AttemptState


@dataclass
class Agent:
    """An agent that was registered, and what it was granted."""

    world: World
    known: Registered
    request: SyncRequest
    seqs: dict[tuple[UUID, int, int], int] = field(default_factory=dict)

    @property
    def id(self) -> int:
        return self.known.id

    def offer(self, free: int = 1) -> Offer:
        """What it could take."""
        return Offer(
            agent_id=self.known.id,
            session=self.known.session,
            pools=frozenset(self.known.pools),
            queues=self.known.queues,
            tags=self.known.tags,
            free=free,
            capacity=self.known.capacity,
            free_capacity=dict(self.known.capacity),
        )

    async def claim(self, free: int = 1) -> list[Assignment]:
        """What it is granted when it has room for ``free``."""
        offer = self.offer(free)
        await self.world.store.write(lambda tx: claim(tx, [offer]))
        return offer.granted

    def step(
        self, granted: Assignment, state: AttemptState, seq: int | None = None, age: float = 0.0, **more: Any
    ) -> Report:
        """A report, numbered on from the last one unless ``seq`` says otherwise."""
        key = (granted.run, granted.attempt, granted.epoch)
        if seq is None:
            seq = self.seqs.get(key, 0) + 1
        self.seqs[key] = max(seq, self.seqs.get(key, 0))
        if "cause" in more:
            more["cause"] = Cause(more["cause"])
        return Report(
            run=granted.run,
            attempt=granted.attempt,
            epoch=granted.epoch,
            seq=seq,
            age=age,
            state=state,
            **more,
        )

    async def send(self, *reports: Report) -> list[ReportAck]:
        """Send one batch."""
        return await self.world.store.write(lambda tx: report(tx, self.id, list(reports), LOST_AFTER))

    async def report(self, granted: Assignment, *states: AttemptState, **more: Any) -> ReportAck:
        """Report states one after another in one batch; ``more`` but ``age`` belongs to the last."""
        age = more.pop("age", 0.0)
        steps = [self.step(granted, state, age=age) for state in states[:-1]]
        (ack,) = await self.send(*steps, self.step(granted, states[-1], age=age, **more))
        return ack

    async def run_through(self, granted: Assignment, end: AttemptState = S.COMPLETED, **more: Any) -> None:
        """Start it and let it end."""
        if end is S.FAILED:
            more.setdefault("cause", "exit_code")
            more.setdefault("exit_code", 1)
        if end is S.CRASHED:
            more.setdefault("cause", "oom")
        if end is S.TIMED_OUT:
            more.setdefault("cause", "timeout")
        if end is S.CANCELLED:
            more.setdefault("cause", "cancelled")
        more.setdefault("log_size", 0)
        await self.report(granted, S.STARTING, S.RUNNING, end, **more)

    async def release(self, *granted: Assignment) -> list[ReportAck]:
        """Give attempts back."""
        request = ReleaseRequest(session=self.known.session, attempts=[held(one) for one in granted])
        return await self.world.store.write(lambda tx: release(tx, self.id, request, LOST_AFTER))

    async def leave(self, *granted: Assignment) -> list[ReportAck]:
        """Leave attempts to others."""
        left = [held(one) for one in granted]
        return await self.world.store.write(lambda tx: leave(tx, self.id, left, LOST_AFTER))

    async def difference(self, *holds: Held) -> Difference:
        """What should be different on it."""
        return await self.world.store.read(lambda tx: difference(tx, self.id, list(holds)))

    async def beat(self, ago: float = 0.0) -> None:
        """It was heard of so many seconds ago."""
        await self.world.store.write(lambda tx: heartbeat(tx, {self.id: ago}))


def held(granted: Assignment, stopping: bool = False) -> Held:
    """An assignment as the agent says that it holds it."""
    return Held(run=granted.run, attempt=granted.attempt, epoch=granted.epoch, stopping=stopping)


class World:
    """Everything a test does to a queue."""

    def __init__(self, store: AnyStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.changes = Changes()
        #: Kind and name of limits that were lowered, or made, when more was active than they allow.
        self.lowered: set[tuple[str, str]] = set()
        store.on_commit = self._committed
        self._identities = count(1)

    def _committed(self, changes: Changes) -> None:
        self.changes.merge(changes)

    def noticed(self) -> Changes:
        """What commits told since the last call."""
        told, self.changes = self.changes, Changes()
        return told

    # ---- catalog

    async def pool(self, name: str = "main", **spec: Any) -> str:
        await self.store.write(lambda tx: catalog.create_pool(tx, PoolSpec(name=name, **spec)))
        return name

    async def patch_pool(self, name: str, **changes: Any) -> None:
        await self.store.write(lambda tx: catalog.patch_pool(tx, name, PoolPatch(**changes)))
        await self._lowered()

    async def queue(self, pool: str, name: str, **spec: Any) -> str:
        await self.store.write(lambda tx: catalog.create_queue(tx, pool, QueueSpec(name=name, **spec)))
        return name

    async def patch_queue(self, pool: str, name: str, **changes: Any) -> None:
        await self.store.write(lambda tx: catalog.patch_queue(tx, pool, name, QueuePatch(**changes)))
        await self._lowered()

    async def deploy(self, name: str = "job", since: float = 0.0, **spec: Any) -> bool:
        spec.setdefault("work", TRUE)
        document = DeploymentSpec.model_validate(spec)
        times = apply.Times(
            round(LATE_AFTER * 1e6), self._began(since), lost_after=LOST_AFTER, lease_for=LEASE_FOR
        )
        (change,) = await self.store.write(
            lambda tx: apply.apply(tx, [Named(name=name, spec=document)], times)
        )
        await self._lowered()
        return change.change != "unchanged"

    async def pause_server(self, paused: bool = True, **why: str) -> None:
        patch = ServerPatch(paused=paused, **why)
        await self.store.write(lambda tx: pausing.patch_server(tx, patch))

    async def pause_agent(self, name: str = "a1", paused: bool = True, **why: str) -> None:
        patch = AgentPatch(paused=paused, **why)
        await self.store.write(lambda tx: pausing.patch_agent(tx, name, patch))

    async def pause_deployment(
        self, name: str = "job", paused: bool = True, since: float = 0.0, **why: str
    ) -> None:
        patch, began = DeploymentPatch(paused=paused, **why), self._began(since)
        await self.store.write(
            lambda tx: pausing.patch_deployment(tx, name, patch, round(LATE_AFTER * 1e6), began)
        )

    async def pause_schedule(
        self,
        name: str = "default",
        deployment: str = "job",
        paused: bool = True,
        since: float = 0.0,
        **why: str,
    ) -> None:
        patch, began = SchedulePatch(paused=paused, **why), self._began(since)
        await self.store.write(
            lambda tx: pausing.patch_schedule(tx, deployment, name, patch, round(LATE_AFTER * 1e6), began)
        )

    # ---- limits

    async def limit(self, name: str = "few", **spec: Any) -> str:
        await self.store.write(lambda tx: limits.create_limit(tx, LimitSpec(name=name, **spec)))
        await self._lowered()
        return name

    async def patch_limit(self, name: str = "few", **changes: Any) -> None:
        await self.store.write(lambda tx: limits.patch_limit(tx, name, LimitPatch(**changes)))
        await self._lowered()

    async def _lowered(self) -> None:
        self.lowered |= await self.store.read(exceeded)

    async def delete_limit(self, name: str = "few") -> None:
        await self.store.write(lambda tx: limits.delete_limit(tx, name))

    async def shown_limit(self, name: str = "few") -> Limit:
        return (await self.store.read(lambda tx: limits.list_limits(tx, name)))[0]

    async def act_when_full(self) -> int:
        """What the server does after each claim; in how many transactions."""
        count = 1
        while await self.store.write(limits.act_when_full):
            count += 1
        return count

    # ---- runs

    async def submit_many(self, *requests: dict[str, Any] | str) -> list[tuple[UUID, bool]]:
        batch = [
            RunRequest(deployment=request) if isinstance(request, str) else RunRequest(**request)
            for request in requests
        ]
        return await self.store.write(lambda tx: submit(tx, batch))

    async def submit(self, deployment: str = "job", **request: Any) -> UUID:
        ((run_id, _),) = await self.submit_many({"deployment": deployment, **request})
        return run_id

    async def run(self, run_id: UUID) -> Run:
        return await self.store.read(lambda tx: views.run(tx, run_id))

    async def state(self, run_id: UUID) -> str:
        return (await self.run(run_id)).state

    async def events(self, run_id: UUID) -> list[Event]:
        return await self.store.read(lambda tx: views.events_of(tx, run_id))

    async def story(self, run_id: UUID) -> list[str]:
        """Its events as ``kind/actor``."""
        return [f"{event.kind}/{event.actor}" for event in await self.events(run_id)]

    async def cancel(self, run_id: UUID) -> None:
        await self.store.write(lambda tx: control.cancel(tx, run_id))

    async def set_priority(self, run_id: UUID, priority: int) -> None:
        await self.store.write(lambda tx: control.set_priority(tx, run_id, priority))

    async def skip(self, run_id: UUID) -> None:
        await self.store.write(lambda tx: control.skip(tx, run_id))

    async def flush_late(self, name: str = "job") -> Skipped:
        return await self.store.write(lambda tx: control.flush_late(tx, name))

    async def retry(self, run_id: UUID) -> None:
        await self.store.write(lambda tx: control.retry(tx, run_id))

    # ---- agents and time

    async def agent(self, name: str = "a1", *pools: str, limit: int = 100, **more: Any) -> Agent:
        """An agent that serves ``pools`` (default: main) from now on."""
        number = next(self._identities)
        more.setdefault("session", UUID(int=number))
        more.setdefault("identity", UUID(int=number))
        more.setdefault("protocol", PROTOCOL)
        request = SyncRequest(pools=list(pools or ("main",)), limit=limit, free=limit, **more)
        known = await self.store.write(lambda tx: register(tx, name, request, LOST_AFTER))
        return Agent(self, known, request)

    async def reap(self) -> None:
        """What the reaper's loop does at each turn."""
        at = self.clock.now
        await self.store.write(lambda tx: reap.mark_late(tx, at - round(LATE_AFTER * 1e6)))
        await self.store.write(lambda tx: reap.mark_lost(tx, at - round(LOST_AFTER * 1e6)))
        await self.hand_over()
        await self.store.write(lambda tx: reap.give_up(tx, at - round(GIVE_UP_AFTER * 1e6)))

    async def hand_over(self) -> int:
        """What the reaper does with lost leases that others can take over."""
        before = self.clock.now - round(LOST_AFTER * 1e6)
        return await self.store.write(lambda tx: hand_over(tx, before, LOST_AFTER))

    async def fire(self, since: float = 0.0) -> int:
        """Make runs of the slots that are due; how many schedules were.

        Args:
            since: seconds from now at which the server began to fire; by default it has just been started.
        """
        began = self._began(since)
        return await self.store.write(lambda tx: fire.fire(tx, round(LATE_AFTER * 1e6), began))

    def _began(self, since: float) -> int:
        return self.clock.now + round(since * 1e6)

    async def runs(self) -> list[Run]:
        """All of them, oldest first."""
        found, _ = await self.store.read(lambda tx: views.list_runs(tx, views.RunFilter(limit=500)))
        return found[::-1]

    def at(self, seconds: float = 0.0) -> datetime:
        """The moment so many seconds from now."""
        return moment(self.clock.now + round(seconds * 1e6))
