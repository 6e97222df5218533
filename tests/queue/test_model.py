"""Queue and leases against a simple model: any sequence of what people, agents and time can do.

The model is a few dictionaries. After each step the store's tables must agree with each other
(:func:`tests.queue.books.audit`) and with the model.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.base import micros
from shunter_work_pools.contracts.errors import Conflict
from shunter_work_pools.contracts.states import CAUSES, Cause
from shunter_work_pools.queue.sync import difference
from shunter_work_pools.storage.schema import leases, runs
from shunter_work_pools.storage.store import PostgresStore, SqliteStore
from tests.queue.books import audit
from tests.queue.world import GIVE_UP_AFTER, LOST_AFTER, Agent, S, World, held
from tests.storage.stores import AnyStore, Clock, empty

T = TypeVar("T")
AGENTS = ("a1", "a2", "a3")
QUEUES = {("p", "default"): 0, ("p", "high"): 5, ("q", "default"): 0}
DEPLOYMENTS: dict[str, dict[str, Any]] = {
    "plain": {"pool": "p", "retries": {"count": 0}, "on_lost": "crash"},
    "again": {"pool": "p", "retries": {"count": 2, "delay": 10}, "on_lost": "retry", "priority": 2},
    "high": {"pool": "p", "queue": "high", "retries": {"count": 1}, "on_lost": "wait"},
    "gpu": {"pool": "q", "require": ["gpu"], "retries": {"count": 1}, "on_lost": "retry"},
    "other": {"pool": "q", "on_lost": "crash"},
}
ENDS = [S.COMPLETED, S.FAILED, S.CRASHED, S.TIMED_OUT, S.CANCELLED]


@dataclass
class ModelRun:
    """A run as it should be. ``state`` is waiting, active, or the name of an end."""

    deployment: str
    due: int
    state: str = "waiting"
    epoch: int = 0
    ended_attempts: int = 0
    forgiven: int = 0
    holder: str | None = None
    grant: Assignment | None = None
    reached: int = 0  # 0 claimed, 1 starting, 2 running
    priority: int = 0
    cancelling: bool = False
    lost: bool = False

    @property
    def spec(self) -> dict[str, Any]:
        return DEPLOYMENTS[self.deployment]

    @property
    def place(self) -> tuple[str, str]:
        return self.spec["pool"], self.spec.get("queue", "default")


@dataclass
class Model:
    """Everything that should be."""

    runs: dict[UUID, ModelRun] = field(default_factory=dict)
    paused: set[Any] = field(default_factory=set)
    limits: dict[Any, int | None] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    keys: dict[str, tuple[UUID, str]] = field(default_factory=dict)
    old: list[tuple[str, Assignment]] = field(default_factory=list)
    grants: set[tuple[UUID, int]] = field(default_factory=set)

    def active(self, pool: str, queue: str | None = None) -> int:
        return sum(
            run.state == "active" and run.place[0] == pool and queue in (None, run.place[1])
            for run in self.runs.values()
        )

    def room(self, pool: str, queue: str | None = None) -> int:
        limit = self.limits.get((pool, queue))
        return 10_000 if limit is None else max(0, limit - self.active(pool, queue))

    def claimable(self, run: ModelRun, agent: Agent, now: int) -> bool:
        pool, queue = run.place
        return (
            run.state == "waiting"
            and run.due <= now
            and not {pool, (pool, queue), run.deployment, agent.known.name, "server"} & self.paused
            and pool in agent.request.pools
            and set(agent.request.tags) >= set(run.spec.get("require", []))
        )

    def grantable(self, agent: Agent, now: int, free: int) -> int:
        """How many runs a claim with ``free`` places must grant: as many as limits allow."""
        total = 0
        ready = Counter(run.place for run in self.runs.values() if self.claimable(run, agent, now))
        for pool in ("p", "q"):
            queues = [min(count, self.room(*place)) for place, count in ready.items() if place[0] == pool]
            total += min(self.room(pool), sum(queues))
        return min(free, total)


class Queue(RuleBasedStateMachine):
    """One queue, driven at random."""

    open_store: Callable[[Path, Clock], Coroutine[Any, Any, AnyStore]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="shunter-model-"))
        self.clock = Clock()
        self.model = Model()
        self.agents: dict[str, Agent] = {}

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.do(self.world.store.close())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)

    @initialize()
    def build(self) -> None:
        async def make() -> None:
            store = await type(self).open_store(self.folder, self.clock)
            self.world = World(store, self.clock)
            await self.world.pool("p")
            await self.world.pool("q")
            await self.world.queue("p", "high", priority=5)
            for name, spec in DEPLOYMENTS.items():
                await self.world.deploy(name, **spec)
            for name, tags, pools in (
                ("a1", ["gpu"], ["p", "q"]),
                ("a2", [], ["p", "q"]),
                ("a3", [], ["p"]),
            ):
                self.agents[name] = await self.world.agent(name, *pools, tags=tags)
                self.model.seen[name] = self.clock.now

        self.do(make())

    def pick(self, data: st.DataObject, *states: str) -> UUID | None:
        """A run in one of these states, or any."""
        ids = [run_id for run_id, run in self.model.runs.items() if not states or run.state in states]
        return data.draw(st.sampled_from(ids)) if ids else None

    # ---- people

    @rule(
        names=st.lists(st.sampled_from(sorted(DEPLOYMENTS)), min_size=1, max_size=4),
        later=st.sampled_from([0, 0, 0, 5, 60]),
        key=st.sampled_from([None, None, "k1", "k2"]),
    )
    def submit(self, names: list[str], later: int, key: str | None) -> None:
        requests = [{"deployment": name, "scheduled_at": self.world.at(later)} for name in names]
        if key is not None:
            requests[0]["idempotency_key"] = key
            known = self.model.keys.get(key)
            if known is not None and known[1] != names[0]:
                with pytest.raises(Conflict):
                    self.do(self.world.submit_many(*requests))
                return
        made = self.do(self.world.submit_many(*requests))
        for at, ((run_id, created), name) in enumerate(zip(made, names, strict=True)):
            if at == 0 and key is not None:
                assert created == (key not in self.model.keys)
                assert self.model.keys.setdefault(key, (run_id, name)) == (run_id, name)
            if created:
                assert run_id not in self.model.runs
                priority = DEPLOYMENTS[name].get("priority", 0)
                self.model.runs[run_id] = ModelRun(
                    name, self.clock.now + later * 1_000_000, priority=priority
                )

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run_id = self.pick(data)
        if run_id is None:
            return
        run = self.model.runs[run_id]
        if run.state not in ("waiting", "active", "Cancelled"):
            with pytest.raises(Conflict):
                self.do(self.world.cancel(run_id))
            return
        self.do(self.world.cancel(run_id))
        if run.state == "waiting":
            run.state = "Cancelled"
        elif run.state == "active":
            run.cancelling = True

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        run_id = self.pick(data)
        if run_id is None:
            return
        run = self.model.runs[run_id]
        if run.state in ("waiting", "active", "Completed"):
            with pytest.raises(Conflict):
                self.do(self.world.retry(run_id))
            return
        self.do(self.world.retry(run_id))
        run.state, run.due, run.forgiven = "waiting", self.clock.now, run.ended_attempts

    @rule(data=st.data(), priority=st.sampled_from([-1, 0, 2, 7]))
    def priority(self, data: st.DataObject, priority: int) -> None:
        run_id = self.pick(data)
        if run_id is None:
            return
        run = self.model.runs[run_id]
        if run.state != "waiting":
            with pytest.raises(Conflict):
                self.do(self.world.set_priority(run_id, priority))
            return
        self.do(self.world.set_priority(run_id, priority))
        run.priority = priority

    @rule(
        what=st.sampled_from(
            ["p", "q", ("p", "high"), ("p", "default"), "plain", "again", "a1", "a2", "server"]
        ),
        paused=st.booleans(),
    )
    def pause(self, what: Any, paused: bool) -> None:
        if what == "server":
            self.do(self.world.pause_server(paused))
        elif what in AGENTS:
            self.do(self.world.pause_agent(what, paused))
        elif isinstance(what, tuple):
            self.do(self.world.patch_queue(*what, paused=paused))
        elif what in DEPLOYMENTS:
            self.do(self.world.pause_deployment(what, paused))
        else:
            self.do(self.world.patch_pool(what, paused=paused))
        (self.model.paused.add if paused else self.model.paused.discard)(what)

    @rule(
        what=st.sampled_from([("p", None), ("q", None), ("p", "high"), ("p", "default")]),
        limit=st.sampled_from([None, 0, 1, 2, 4]),
    )
    def limit(self, what: tuple[str, str | None], limit: int | None) -> None:
        pool, queue = what
        if queue is None:
            self.do(self.world.patch_pool(pool, limit=limit))
        else:
            self.do(self.world.patch_queue(pool, queue, limit=limit))
        self.model.limits[what] = limit

    # ---- agents

    @rule(name=st.sampled_from(AGENTS), free=st.integers(1, 6))
    def claim(self, name: str, free: int) -> None:
        model, agent, now = self.model, self.agents[name], self.clock.now
        could = {run_id for run_id, run in model.runs.items() if model.claimable(run, agent, now)}
        expected = model.grantable(agent, now, free)
        granted = self.do(agent.claim(free))
        assert len(granted) == expected
        for one in granted:
            run = model.runs[one.run]
            assert one.run in could
            assert (one.run, one.epoch) not in model.grants, "granted twice under one epoch"
            assert (one.attempt, one.epoch) == (run.ended_attempts + 1, run.epoch + 1)
            model.grants.add((one.run, one.epoch))
            run.state, run.holder, run.grant, run.epoch = "active", name, one, one.epoch
            run.reached, run.cancelling, run.lost = 0, False, False
        self._in_order(granted, could, agent)

    def _in_order(self, granted: list[Assignment], could: set[UUID], agent: Agent) -> None:
        """Nothing that could have gone was passed over by something of lower priority."""

        def rank(run: ModelRun) -> tuple[int, int]:
            return QUEUES[run.place], run.priority

        left = [self.model.runs[run_id] for run_id in could if self.model.runs[run_id].state == "waiting"]
        lowest = min((rank(self.model.runs[one.run]) for one in granted), default=None)
        for run in left:
            free = self.model.room(run.place[0]) > 0 and self.model.room(*run.place) > 0
            if lowest is not None and free:
                assert rank(run) <= lowest, f"{run.deployment} was passed over"
            for one in granted:
                taken = self.model.runs[one.run]
                if (taken.deployment, taken.priority) == (run.deployment, run.priority):
                    assert one.scheduled_at is not None
                    assert self.model.runs[one.run].due <= run.due, "not the one that was due first"

    @precondition(lambda self: any(run.state == "active" for run in self.model.runs.values()))
    @rule(data=st.data(), twice=st.booleans())
    def report(self, data: st.DataObject, twice: bool) -> None:
        """An agent reports a step, or several up to an end, maybe twice, maybe in the wrong order."""
        run_id = self.pick(data, "active")
        assert run_id is not None
        run = self.model.runs[run_id]
        assert run.grant is not None
        assert run.holder is not None
        agent = self.agents[run.holder]
        ways = [S.STARTING, S.RUNNING][run.reached :]
        steps = [agent.step(run.grant, state) for state in ways[: data.draw(st.integers(0, 2))]]
        end = data.draw(st.sampled_from([None, *ENDS]))
        if end is not None:
            causes = sorted(CAUSES[end])
            cause: Cause | None = data.draw(st.sampled_from(causes)) if causes else None
            steps.append(
                agent.step(run.grant, end, cause=cause, log_size=0)
                if cause
                else agent.step(run.grant, end, log_size=0)
            )
        if not steps:
            return
        for _ in range(2 if twice else 1):
            (ack,) = self.do(agent.send(*data.draw(st.permutations(steps))))
            assert (ack.seq, ack.stale) == (steps[-1].seq, False)
        run.reached += sum(step.state in (S.STARTING, S.RUNNING) for step in steps)
        if end is not None:
            self._ended(run_id, end.value, retry="policy")

    def _ended(self, run_id: UUID, end: str, retry: str) -> None:
        run = self.model.runs[run_id]
        assert run.grant is not None
        assert run.holder is not None
        self.model.old.append((run.holder, run.grant))
        run.ended_attempts += 1
        policy = run.spec.get("retries", {"count": 0})
        again = retry == "always" or (
            retry == "policy"
            and end in ("Failed", "Crashed", "TimedOut")
            and not run.cancelling
            and run.ended_attempts - run.forgiven <= policy["count"]
        )
        run.state = "waiting" if again else end
        if again:
            run.due = self.clock.now + policy.get("delay", 0) * 1_000_000
        run.holder = run.grant = None
        run.cancelling = run.lost = False

    @precondition(lambda self: self.model.old)
    @rule(data=st.data(), end=st.sampled_from(ENDS[:2]))
    def report_what_is_over(self, data: st.DataObject, end: S) -> None:
        """Under an old epoch nothing changes, whatever is said."""
        name, grant = data.draw(st.sampled_from(self.model.old))
        agent = self.agents[name]
        more = {"cause": "exit_code"} if end is S.FAILED else {}
        (ack,) = self.do(agent.send(agent.step(grant, end, **more)))
        assert ack.stale
        diff = self.do(agent.difference(held(grant)))
        assert held(grant) in diff.forget or grant.run in diff.finished

    @precondition(lambda self: any(run.state == "active" for run in self.model.runs.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        run_id = self.pick(data, "active")
        assert run_id is not None
        run = self.model.runs[run_id]
        assert run.grant is not None
        assert run.holder is not None
        (ack,) = self.do(self.agents[run.holder].release(run.grant))
        if run.reached and not run.cancelling:
            assert ack.stale
            return
        assert not ack.stale
        if run.cancelling:
            self._ended(run_id, "Cancelled", retry="never")
        else:
            self.model.old.append((run.holder, run.grant))
            run.due = micros(run.grant.scheduled_at)
            run.state, run.holder, run.grant, run.lost = "waiting", None, None, False

    @rule(name=st.sampled_from(AGENTS))
    def beat(self, name: str) -> None:
        self.do(self.agents[name].beat())
        self.model.seen[name] = self.clock.now
        for run in self.model.runs.values():
            if run.holder == name:
                run.lost = False

    # ---- time

    @rule(seconds=st.sampled_from([0.001, 1, 12, LOST_AFTER + 1, GIVE_UP_AFTER + 1]))
    def time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def reap(self) -> None:
        self.do(self.world.reap())
        for run_id, run in self.model.runs.items():
            if run.state != "active":
                continue
            assert run.holder is not None
            silent = self.clock.now - self.model.seen[run.holder]
            run.lost = run.lost or silent > LOST_AFTER * 1e6
            if run.lost and silent > GIVE_UP_AFTER * 1e6:
                on_lost = run.spec["on_lost"]
                if run.cancelling:
                    self._ended(run_id, "Cancelled", retry="never")
                elif on_lost != "wait":
                    self._ended(run_id, "Crashed", retry="always" if on_lost == "retry" else "never")

    # ---- what must hold

    @invariant()
    def the_books_agree(self) -> None:
        if hasattr(self, "world"):
            self.do(self.world.store.read(audit))

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        if not hasattr(self, "world"):
            return

        def look(tx: Any) -> tuple[dict[UUID, Any], dict[UUID, Any]]:
            return (
                {row.id: row for row in tx.conn.execute(select(runs))},
                {row.run_id: row for row in tx.conn.execute(select(leases))},
            )

        found, live = self.do(self.world.store.read(look))
        assert set(found) == set(self.model.runs)
        assert set(live) == {run_id for run_id, run in self.model.runs.items() if run.state == "active"}
        for run_id, run in self.model.runs.items():
            row = found[run_id]
            shown = {"Scheduled": "waiting", "Retrying": "waiting", "Active": "active"}.get(
                row.state, row.state
            )
            assert (shown, row.epoch, row.attempts) == (run.state, run.epoch, run.ended_attempts)
            if run.state == "active":
                lease = live[run_id]
                assert run.holder is not None
                assert lease.agent_id == self.agents[run.holder].id
                assert (lease.cancelling, lease.lost) == (run.cancelling, run.lost)

    @invariant()
    def every_agent_is_told_what_it_should_hold(self) -> None:
        """An agent that knows nothing is told of exactly its leases."""
        for name, agent in self.agents.items():
            diff = self.do(self.world.store.read(lambda tx, agent=agent: difference(tx, agent.id, [])))
            mine = {run_id: run for run_id, run in self.model.runs.items() if run.holder == name}
            assert {one.run: one.epoch for one in diff.assignments} == {
                run_id: run.epoch for run_id, run in mine.items()
            }
            assert {hold.run for hold in diff.cancel} == {
                run_id for run_id, run in mine.items() if run.cancelling
            }


_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)


def test_any_sequence_on_sqlite(migrated_sqlite: Path) -> None:
    async def open_store(folder: Path, clock: Clock) -> AnyStore:
        path = folder / "shunter.db"
        shutil.copyfile(migrated_sqlite, path)
        store = SqliteStore(path, clock)
        await store.open()
        return store

    machine = type("SqliteQueue", (Queue,), {"open_store": staticmethod(open_store)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            phases=_PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_sequence_on_postgres(migrated_postgres: str) -> None:
    async def open_store(folder: Path, clock: Clock) -> AnyStore:
        store = PostgresStore(migrated_postgres, clock, connections=2)
        await store.open()
        await empty(store)
        return store

    machine = type("PostgresQueue", (Queue,), {"open_store": staticmethod(open_store)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            phases=_PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
