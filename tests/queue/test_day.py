"""A day of three pools in injected time: bursts, limits of every kind, failures, an agent that dies, pauses.

Agents here are a few numbers each: they choose their devices, work for a while and report. Who looks for work, and
when, is decided as the server does: by what commits tell, and by the moments that were announced. After each step
nobody may find anything that was left.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

from sqlalchemy import delete, insert, select

from shunter_work_pools.contracts.agents import Assignment, Held
from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.queue import fire
from shunter_work_pools.queue.claim import Offer, claim, due_in
from shunter_work_pools.queue.sync import heartbeat
from shunter_work_pools.storage.schema import leases, pauses, pools, runs
from tests.queue.books import audit, exceeded
from tests.queue.world import GIVE_UP_AFTER, LOST_AFTER, Agent, S, World, held

SECOND, MINUTE, HOUR = 1_000_000, 60_000_000, 3_600_000_000
GIB = 2.0**30


def _every(minutes: float) -> list[dict[str, Any]]:
    return [{"when": {"kind": "interval", "seconds": minutes * 60}}]


#: Name -> what is deployed, and how many minutes a run takes, at least and at most.
DEPLOYMENTS: dict[str, tuple[dict[str, Any], float, float]] = {
    "etl-a": ({"pool": "batch", "limits": ["warehouse"], "schedules": _every(15)}, 4, 9),
    "etl-b": ({"pool": "batch", "limits": ["warehouse"], "schedules": _every(15)}, 4, 9),
    "report": (
        {"pool": "batch", "max_active": 1, "when_full": "cancel_new", "schedules": _every(60)},
        20,
        100,
    ),
    "refresh": (
        {"pool": "batch", "max_active": 1, "when_full": "cancel_running", "schedules": _every(12)},
        3,
        18,
    ),
    "mail": ({"pool": "batch", "queue": "urgent", "limits": ["smtp"]}, 0.1, 0.5),
    "burst": ({"pool": "batch", "tags": ["pii"], "retries": {"count": 1, "delay": 60}}, 1, 6),
    "small": ({"pool": "batch", "retries": {"count": 2, "delay": 5}}, 1, 4),
    "train": (
        {"tags": ["gpu"], "require": ["gpu"], "need": {"gpu": 1, "cpu": 0.5}, "on_lost": "retry"},
        5,
        30,
    ),
    "sweep": ({"tags": ["gpu"], "need": {"gpu": 2}, "on_lost": "crash", "schedules": _every(45)}, 10, 20),
    "load-eu": (
        {"tags": ["region=eu", "pii"], "limits": ["warehouse"], "need": {"memory": 3 * GIB}},
        2,
        6,
    ),
}
AGENTS: dict[str, dict[str, Any]] = {
    "b1": {"pools": ["batch"], "limit": 5},
    "b2": {"pools": ["batch"], "limit": 5, "capacity": {"cpu": 8}},
    "g1": {"pools": ["gpus"], "limit": 6, "found_tags": ["gpu"], "capacity": {"gpu": 4, "cpu": 2}},
    "g2": {
        "pools": ["gpus", "eu"],
        "limit": 3,
        "tags": ["gpu"],
        "capacity": {"gpu": 2, "cpu": 1, "memory": 7 * GIB},
    },
}
#: Starts, and within so many seconds.
RATE = (6, 300)


@dataclass
class Job:
    """An attempt at work on a machine."""

    grant: Assignment
    devices: frozenset[int]
    end: S
    over: bool = False


@dataclass
class Machine:
    """An agent's side: what really runs there, whatever the server believes."""

    agent: Agent
    limit: int
    capacity: dict[str, float]
    alive: bool = True
    jobs: dict[tuple[UUID, int], Job] = field(default_factory=dict)
    unsent: list[Job] = field(default_factory=list)

    def offer(self) -> Offer:
        """What it could take, by what runs there."""
        offer = self.agent.offer(self.limit - len(self.jobs))
        offer.limit = self.limit
        for job in self.jobs.values():
            for name, amount in job.grant.need.items():
                offer.free_capacity[name] -= amount
        return offer

    def begin(self, grant: Assignment, end: S) -> Job:
        """Take an attempt, with devices that nobody else has."""
        taken = {device for job in self.jobs.values() for device in job.devices}
        free = [device for device in range(int(self.capacity.get("gpu", 0))) if device not in taken]
        wanted = int(grant.need.get("gpu", 0))
        assert len(free) >= wanted, "two runs would share a device"
        assert len(self.jobs) < self.limit
        job = Job(grant, frozenset(free[:wanted]), end)
        self.jobs[grant.run, grant.epoch] = job
        for name, amount in self.capacity.items():
            assert sum(one.grant.need.get(name, 0) for one in self.jobs.values()) <= amount, name
        return job

    def holds(self) -> list[Held]:
        return [held(job.grant) for job in self.jobs.values()]


class Day:
    """Drives a world through the hours of a day, and on until all is done.

    Args:
        hours: when it begins and when the schedules end.
    """

    def __init__(self, world: World, seed: int, hours: tuple[float, float]) -> None:
        self.world, self.chance = world, random.Random(seed)
        self.began: Micros = world.clock.now
        self.first, self.last = hours
        self.machines: dict[str, Machine] = {}
        self.by_id: dict[int, Machine] = {}
        self.pool_names: dict[int, str] = {}
        self.plan: list[tuple[Micros, int, Callable[[], Awaitable[None]]]] = []
        self.numbers = count()
        self.next_due: Micros | None = 0
        self.starts: dict[str, list[tuple[Micros, UUID]]] = defaultdict(list)
        self.grants: set[tuple[UUID, int]] = set()
        self.seen: Counter[str] = Counter()

    @property
    def now(self) -> Micros:
        return self.world.clock.now

    def hour(self, number: float) -> Micros:
        return self.began + round((number - self.first) * HOUR)

    def at(self, when: Micros, what: Callable[[], Awaitable[None]]) -> None:
        heapq.heappush(self.plan, (when, next(self.numbers), what))

    # ---- the morning

    async def begin(self) -> None:
        world = self.world
        await world.pool("batch", limit=9)
        await world.queue("batch", "urgent", priority=10, limit=2)
        await world.pool("gpus", match=["gpu"])
        await world.pool("eu", match=["region=eu"], priority=3)
        await world.limit("warehouse", max=3)
        await world.limit("smtp", rate={"count": RATE[0], "seconds": RATE[1]})
        for name, (spec, _, _) in DEPLOYMENTS.items():
            await world.deploy(name, **spec)
        for name, spec in AGENTS.items():
            more = dict(spec)
            agent = await world.agent(name, *more.pop("pools"), **more)
            machine = Machine(agent, spec["limit"], spec.get("capacity", {}))
            self.machines[name] = self.by_id[agent.id] = machine
        statement = select(pools.c.id, pools.c.name)
        rows = await world.store.read(lambda tx: tx.conn.execute(statement).all())
        self.pool_names = {row.id: row.name for row in rows}
        self.story()

    def story(self) -> None:
        """What people do that day."""

        def then(number: float, work: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> None:
            async def do() -> None:
                await work(*args, **kwargs)

            if number >= self.first:
                self.at(self.hour(number), do)

        world = self.world
        for number in range(int(self.last)):
            then(number + 0.3, self.submit, "train", self.chance.randrange(4))
            then(number + 0.6, self.submit, "load-eu", self.chance.randrange(8))
            then(number + 0.7, self.submit, "mail", self.chance.randrange(12))
        then(9, self.submit, "burst", 150)
        then(9.1, self.submit, "small", 12)
        then(9.5, world.pause_deployment, "burst", True)
        then(9.7, world.pause_deployment, "burst", False)
        then(10, world.limit, "personal", tag="pii", max=2)
        then(10.5, world.patch_limit, "personal", max=4)
        then(10.95, self.submit, "train", 6)
        then(11, self.die, "g1")
        then(11 + (LOST_AFTER + 1) / 3600, self.reap)
        then(11 + (GIVE_UP_AFTER + 1) / 3600, self.reap)
        then(11.5, self.return_, "g1")
        then(12, world.patch_pool, "batch", paused=True)
        then(12.2, world.patch_pool, "batch", paused=False)
        then(12.5, self.die, "b2")
        then(12.5 + (LOST_AFTER + 1) / 3600, self.reap)
        then(12.53, self.return_, "b2")
        then(13, self.maintenance, True)
        then(13.1, self.maintenance, False)
        then(13.5, self.submit, "mail", 40)
        then(14, world.patch_limit, "warehouse", max=1)
        then(15, world.patch_limit, "warehouse", max=4)
        then(15.5, world.patch_queue, "batch", "urgent", paused=True)
        then(15.8, world.patch_queue, "batch", "urgent", paused=False)
        then(16, world.delete_limit, "personal")
        then(16.2, world.patch_pool, "batch", limit=4)
        then(17, world.patch_pool, "batch", limit=12)
        then(18, self.submit, "burst", 80)
        then(18, self.submit, "train", 30)
        for number in (9.2, 10.2, 11.2, 13.05, 15.2):
            then(number, world.store.read, audit)
        for name, (spec, _, _) in DEPLOYMENTS.items():
            then(self.last, world.deploy, name, **(spec | {"schedules": []}))

    async def submit(self, name: str, number: int) -> None:
        if number:
            await self.world.submit_many(*[name] * number)

    async def maintenance(self, on: bool) -> None:
        row = {"kind": "server", "ref_id": 0, "by": "", "reason": "", "at": self.now}
        change: Any = insert(pauses).values(row) if on else delete(pauses)

        def do(tx: Any) -> None:
            tx.conn.execute(change)
            tx.changes.pools |= set(self.pool_names)

        await self.world.store.write(do)

    async def reap(self) -> None:
        alive = {machine.agent.id: 0.0 for machine in self.machines.values() if machine.alive}
        await self.world.store.write(lambda tx: heartbeat(tx, alive))
        await self.world.reap()

    async def die(self, name: str) -> None:
        self.machines[name].alive = False

    async def return_(self, name: str) -> None:
        """It is back, with all that went on meanwhile."""
        machine = self.machines[name]
        machine.alive = True
        await machine.agent.beat()
        unsent, machine.unsent = machine.unsent, []
        for job in unsent:
            await self.report(machine, job)
        await self.synced(machine)
        self.world.changes.pools |= set(machine.agent.known.pools)

    # ---- agents

    async def synced(self, machine: Machine) -> None:
        """It compares: what is to be stopped is stopped after a while, what is not its own at once."""
        diff = await machine.agent.difference(*machine.holds())
        assert not diff.assignments, "it was told of all that it was given"
        for hold in diff.forget:
            del machine.jobs[hold.run, hold.epoch]
            self.seen["forgotten"] += 1
        for hold in diff.cancel:
            job = machine.jobs[hold.run, hold.epoch]
            if job.end is not S.CANCELLED:
                job.end = S.CANCELLED
                self.at(self.now + 5 * SECOND, lambda job=job: self.over(machine, job))  # type: ignore[misc]

    async def over(self, machine: Machine, job: Job) -> None:
        """The work has ended."""
        if job.over or (job.grant.run, job.grant.epoch) not in machine.jobs:
            return
        job.over = True
        if machine.alive:
            await self.report(machine, job)
        else:
            machine.unsent.append(job)

    async def report(self, machine: Machine, job: Job) -> None:
        # Not the claim that comes with it, but the report makes room.
        del machine.jobs[job.grant.run, job.grant.epoch]
        cause = {S.FAILED: {"cause": "exit_code"}, S.CANCELLED: {"cause": "cancelled"}}.get(job.end, {})
        ack = await machine.agent.report(job.grant, S.STARTING, S.RUNNING, job.end, log_size=0, **cause)
        self.seen["stale" if ack.stale else job.end.value] += 1

    # ---- the server

    async def step(self) -> None:
        """To the next moment at which anything happens, and all that happens then."""
        seconds = await self.world.store.read(fire.next_slot_in)
        slot = None if seconds is None else self.now + round(seconds * 1e6)
        moments = [self.plan[0][0] if self.plan else None, slot, self.next_due]
        self.world.clock.now = max(self.now, min(moment for moment in moments if moment is not None))
        while self.plan and self.plan[0][0] <= self.now:
            await heapq.heappop(self.plan)[2]()
        if slot is not None and slot <= self.now:
            while await self.world.fire(since=(self.began - self.now) / 1e6):
                pass
        while await self.dispatch():
            pass
        await self.check()

    async def dispatch(self) -> bool:
        """Those look for work who were told that there may be some; whether anybody was."""
        told = self.world.noticed()
        if told.due_in is not None:
            due = self.now + round(told.due_in * 1e6)
            self.next_due = due if self.next_due is None else min(self.next_due, due)
        stirred = set(told.pools)
        if self.next_due is not None and self.next_due <= self.now:
            stirred |= set(self.pool_names)
            seconds = await self.world.store.read(due_in)
            self.next_due = None if seconds is None else self.now + round(seconds * 1e6)
        asked = [self.by_id[agent_id] for agent_id in told.agents if self.by_id[agent_id].alive]
        for machine in asked:
            await self.synced(machine)
        takers = [
            machine
            for machine in self.machines.values()
            if machine.alive
            and (machine.agent.id in told.freed or not stirred.isdisjoint(machine.agent.known.pools))
        ]
        if takers or told.limits or asked:
            await self.claim(takers)
            await self.world.act_when_full()
        return bool(takers or told.limits or asked)

    async def claim(self, machines: list[Machine]) -> None:
        offers = [machine.offer() for machine in machines]
        if offers:
            await self.world.store.write(lambda tx: claim(tx, offers))
        for machine, offer in zip(machines, offers, strict=True):
            for one in offer.granted:
                self.work(machine, one)

    def work(self, machine: Machine, grant: Assignment) -> None:
        assert (grant.run, grant.attempt) not in self.grants, "an attempt was given twice"
        self.grants.add((grant.run, grant.attempt))
        for other in self.machines.values():
            for job in other.jobs.values():
                assert job.grant.run != grant.run or not other.alive or job.over, "a run works twice"
        self.starts[grant.deployment].append((self.now, grant.run))
        _, least, most = DEPLOYMENTS[grant.deployment]
        fails = self.chance.random() < (0.3 if grant.deployment in ("burst", "small") else 0.05)
        job = machine.begin(grant, S.FAILED if fails else S.COMPLETED)
        takes = round(self.chance.uniform(least, most) * MINUTE)
        self.at(self.now + takes, lambda: self.over(machine, job))

    # ---- what must hold

    async def check(self) -> None:
        offers = [machine.offer() for machine in self.machines.values() if machine.alive]

        def look(tx: Any) -> tuple[set[tuple[str, str]], int]:
            return exceeded(tx), claim(tx, offers)

        over, left = await self.world.store.write(look)
        assert over <= self.world.lowered, f"more is active than may be: {over}"
        self.world.lowered &= over
        assert left == 0, f"runs waited that could have started: {[offer.granted for offer in offers]}"

    async def finish(self) -> None:
        """All has ended, and the books say so."""
        world = self.world
        await world.store.read(audit)
        rows = await world.store.read(
            lambda tx: tx.conn.execute(
                select(runs.c.state, runs.c.cause, runs.c.created_at, runs.c.started_at)
            ).all()
        )
        ends = Counter((row.state, row.cause) for row in rows)
        assert {state for state, _ in ends} <= {"Completed", "Failed", "Crashed", "Cancelled"}
        live = await world.store.read(lambda tx: tx.conn.execute(select(leases)).all())
        assert live == []
        # Each thing that was to happen did.
        hours = self.last - self.first
        assert ends["Cancelled", "skipped"] >= 1
        assert ends["Cancelled", "superseded"] > hours
        assert ends["Failed", "exit_code"] > 5
        assert ends["Completed", None] > 15 * hours
        assert self.seen["stale"] > 0
        self.rate_was_kept()
        self.small_had_its_turns()

    def rate_was_kept(self) -> None:
        most, seconds = RATE
        times = [at for at, _ in self.starts["mail"]]
        assert len(times) > 60
        assert all(later - at >= seconds * SECOND for at, later in zip(times, times[most:], strict=False))
        # And was used: what was submitted at once went as quickly as it allowed.
        assert any(later - at == seconds * SECOND for at, later in zip(times, times[most:], strict=False))

    def small_had_its_turns(self) -> None:
        """Twelve runs behind a hundred and fifty of equal priority: each other start may be one of theirs."""
        first = {run for _, run in self.starts["small"]}
        assert len(first) == 12
        turns = [at for at, _ in self.starts["small"]][:12]
        burst = sum(self.hour(9.1) <= at <= turns[-1] for at, _ in self.starts["burst"])
        assert burst <= 12 + 9


HOURS = {"sqlite": (0.0, 24.0), "postgres": (8.5, 16.5)}


async def test_a_day(world: World, kind: str) -> None:
    day = Day(world, 6, HOURS[kind])
    await day.begin()
    while day.plan or day.next_due is not None:
        await day.step()
    await day.finish()
