"""Routing and limits against a simple model: where a run may go, how many at once, and that nobody waits in vain.

The model is a few dictionaries and a rule for each limit. Whatever people do, every grant must be one that the
model allows, and after a claim nothing is left that one of the agents that asked could have taken.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterable
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
from sqlalchemy import delete, insert, select, update

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.queue import control
from shunter_work_pools.queue.claim import Offer, claim
from shunter_work_pools.storage.schema import agents, leases, pauses, pools, runs
from shunter_work_pools.storage.store import PostgresStore, SqliteStore
from tests.queue.books import audit, exceeded
from tests.queue.world import Agent, S, World
from tests.storage.stores import AnyStore, Clock, empty

T = TypeVar("T")
GIB = 2.0**30
#: Match tags of the pools that there are from the beginning; ``mars`` is made later.
POOLS: dict[str, set[str]] = {
    "plain": set(),
    "gpus": {"gpu"},
    "gpus-too": {"gpu"},
    "eu": {"region=eu"},
    "gpus-eu": {"gpu", "region=eu"},
}
DEPLOYMENTS: dict[str, dict[str, Any]] = {
    "plain": {"pool": "plain", "tags": ["t"]},
    "line": {"pool": "plain", "queue": "line", "limits": ["shared"], "tags": ["t"]},
    "train": {"tags": ["gpu", "t"], "require": ["gpu"], "need": {"gpu": 1}},
    "both": {"tags": ["gpu"], "need": {"gpu": 2, "cpu": 0.5}, "limits": ["shared"]},
    "eu": {"tags": ["region=eu"], "need": {"memory": 3 * GIB}, "limits": ["shared", "second"]},
    "train-eu": {"tags": ["gpu", "region=eu", "t"], "require": ["gpu"], "need": {"gpu": 1}, "max_active": 2},
    "mars": {"tags": ["mars"], "require": ["rover"], "limits": ["second"]},
}
AGENTS: dict[str, dict[str, Any]] = {
    "all": {
        "pools": [*POOLS],
        "tags": ["gpu"],
        "capacity": {"gpu": 2, "cpu": 4, "memory": 8 * GIB},
        "limit": 4,
    },
    "found": {
        "pools": ["gpus", "gpus-too", "gpus-eu"],
        "found_tags": ["gpu"],
        "capacity": {"gpu": 1},
        "limit": 2,
    },
    "bare": {"pools": ["plain", "eu"], "tags": ["rover"], "limit": 2},
    "line": {"pools": ["plain"], "queues": ["line"], "capacity": {"memory": 4 * GIB}, "limit": 1},
}
NAMED = ("shared", "second")
TAGGED = {"of-t": "t", "of-gpu": "gpu"}


@dataclass
class ModelRun:
    """A run as it should be; ``holder`` is an agent while it is active."""

    deployment: str
    tags: set[str]
    due: int
    priority: int
    pool: str | None = None
    state: str = "waiting"
    holder: str | None = None
    grant: Assignment | None = None

    @property
    def spec(self) -> dict[str, Any]:
        return DEPLOYMENTS[self.deployment]

    @property
    def queue(self) -> str:
        return str(self.spec.get("queue", "default"))

    @property
    def need(self) -> dict[str, float]:
        return dict(self.spec.get("need", {}))


@dataclass
class Model:
    """Everything that should be."""

    runs: dict[UUID, ModelRun] = field(default_factory=dict)
    match: dict[str, set[str]] = field(default_factory=lambda: dict(POOLS))
    pool_priority: dict[str, int] = field(default_factory=dict)
    queue_priority: dict[str, int] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    most: dict[str, int | None] = field(default_factory=dict)

    def places(self, run: ModelRun) -> set[str]:
        """The pools that a run may be given: the most specific, then of highest priority."""
        if "pool" in run.spec:
            return {run.spec["pool"]}
        fitting = [name for name, match in self.match.items() if match and match <= run.tags]
        rank = {name: (len(self.match[name]), self.pool_priority.get(name, 0)) for name in fitting}
        return {name for name in fitting if rank[name] == max(rank.values())}

    def over(self, run: ModelRun) -> list[str]:
        """The limits that a run counts under, by the names that :attr:`most` knows them by."""
        return [
            f"pool {run.pool}",
            f"queue {run.pool}/{run.queue}",
            f"deployment {run.deployment}",
            *run.spec.get("limits", []),
            *(name for name, tag in TAGGED.items() if tag in run.tags),
        ]

    def blocked(self, run: ModelRun, active: Iterable[ModelRun]) -> bool:
        """Whether a limit is full for a run, with those that are active."""
        counted = [self.over(other) for other in active]
        for name in self.over(run):
            most = self.most.get(name)
            if most is not None and sum(name in over for over in counted) >= most:
                return True
        return False

    def fits(self, run: ModelRun, name: str, active: Iterable[ModelRun]) -> bool:
        """Whether an agent may be given a run, with those that are active."""
        agent, mine = AGENTS[name], [other for other in active if other.holder == name]
        if run.pool not in agent["pools"] or f"agent {name}" in self.paused:
            return False
        if agent.get("queues") and run.queue not in agent["queues"]:
            return False
        if not set(run.spec.get("require", ())) <= {*agent.get("tags", ()), *agent.get("found_tags", ())}:
            return False
        has = agent.get("capacity", {})
        taken = {what: sum(other.need.get(what, 0) for other in mine) for what in run.need}
        return len(mine) < agent["limit"] and all(
            taken[what] + amount <= has.get(what, 0) for what, amount in run.need.items()
        )

    def startable(self, run: ModelRun, askers: Iterable[str], now: int, active: list[ModelRun]) -> bool:
        """Whether one of some agents could be given a waiting run now."""
        held = {
            "server",
            f"pool {run.pool}",
            f"queue {run.pool}/{run.queue}",
            f"deployment {run.deployment}",
        }
        return (
            run.pool is not None
            and run.due <= now
            and not held & self.paused
            and not self.blocked(run, active)
            and any(self.fits(run, name, active) for name in askers)
        )

    def rank(self, run: ModelRun) -> tuple[int, int]:
        return self.queue_priority.get(f"{run.pool}/{run.queue}", 0), run.priority

    def active(self) -> list[ModelRun]:
        return [run for run in self.runs.values() if run.state == "active"]


class Limits(RuleBasedStateMachine):
    """One queue with pools of all kinds, driven at random."""

    open_store: Callable[[Path, Clock], Coroutine[Any, Any, AnyStore]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="shunter-limits-"))
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
            for name, match in POOLS.items():
                await self.world.pool(name, match=sorted(match))
            await self.world.queue("plain", "line", priority=5)
            self.model.queue_priority["plain/line"] = 5
            for name in NAMED:
                await self.world.limit(name, max=3)
                self.model.most[name] = 3
            for name, spec in DEPLOYMENTS.items():
                await self.world.deploy(name, retries={"count": 1}, **spec)
                self.model.most[f"deployment {name}"] = spec.get("max_active")
            for name, spec in AGENTS.items():
                more = dict(spec)
                self.agents[name] = await self.world.agent(name, *more.pop("pools"), **more)

        self.do(make())

    def pick(self, data: st.DataObject, *states: str) -> UUID:
        return data.draw(
            st.sampled_from([run_id for run_id, run in self.model.runs.items() if run.state in states])
        )

    # ---- people

    @rule(
        names=st.lists(st.sampled_from(sorted([*DEPLOYMENTS, "plain", "line"])), min_size=2, max_size=8),
        tags=st.sampled_from([[], [], ["region=eu"], ["mars"], ["t"]]),
        priority=st.sampled_from([None, None, 3]),
        later=st.sampled_from([0, 0, 0, 30]),
    )
    def submit(self, names: list[str], tags: list[str], priority: int | None, later: int) -> None:
        request = {"tags": tags, "priority": priority, "scheduled_at": self.world.at(later)}
        made = self.do(self.world.submit_many(*({"deployment": name, **request} for name in names)))
        for (run_id, _), name in zip(made, names, strict=True):
            carried = {*DEPLOYMENTS[name]["tags"], *tags}
            self.model.runs[run_id] = ModelRun(
                name, carried, self.clock.now + later * 1_000_000, priority or 0
            )
        self.placed()

    def placed(self) -> None:
        """Those without a pool got one that the model allows, if there is one."""

        def look(tx: Any) -> dict[UUID, str]:
            statement = select(runs.c.id, pools.c.name).join(pools, pools.c.id == runs.c.pool_id)
            return {row.id: row.name for row in tx.conn.execute(statement)}

        found = self.do(self.world.store.read(look))
        for run_id, run in self.model.runs.items():
            if run.pool is None:
                allowed = self.model.places(run)
                assert (found.get(run_id) in allowed) if allowed else run_id not in found
                run.pool = found.get(run_id)
            assert found.get(run_id) == run.pool, "a run does not move"

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        """One of many things: apart, they would leave little room for runs."""
        data.draw(
            st.sampled_from(
                [
                    self.make_mars,
                    self.change_pool_priority,
                    self.change_queue_priority,
                    self.pause,
                    self.pause,
                    self.change_limit,
                    self.change_limit,
                    self.change_tag_limit,
                    self.change_tag_limit,
                ]
            )
        )(data)

    def make_mars(self, data: st.DataObject) -> None:
        if "mars" not in self.model.match:
            self.do(self.world.pool("mars", match=["mars"]))
            self.model.match["mars"] = {"mars"}
            self.placed()

    def change_pool_priority(self, data: st.DataObject) -> None:
        name, priority = data.draw(st.tuples(st.sampled_from(sorted(POOLS)), st.integers(-1, 1)))
        self.do(self.world.patch_pool(name, priority=priority))
        self.model.pool_priority[name] = priority

    def change_queue_priority(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(["default", "line"]))
        priority = data.draw(st.sampled_from([-5, 0, 5]))
        self.do(self.world.patch_queue("plain", name, priority=priority))
        self.model.queue_priority[f"plain/{name}"] = priority

    def pause(self, data: st.DataObject) -> None:
        held = ["agent all", "agent bare", "server", "pool plain", "queue plain/line", "deployment eu"]
        what, on = data.draw(st.sampled_from(held)), data.draw(st.sampled_from([True, True, False]))
        kind, _, name = what.partition(" ")
        if kind == "server":
            row = {"kind": "server", "ref_id": 0, "by": "", "reason": "", "at": self.clock.now}
            change: Any = insert(pauses).values(row) if on else delete(pauses)
            if on != (what in self.model.paused):
                self.do(self.world.store.write(lambda tx: tx.conn.execute(change)))
        elif kind == "pool":
            self.do(self.world.patch_pool(name, paused=on))
        elif kind == "queue":
            self.do(self.world.patch_queue(*name.split("/"), paused=on))
        elif kind == "deployment":
            self.do(self.world.pause_deployment(name, on))
        else:
            change = update(agents).where(agents.c.name == name).values(paused=on)
            self.do(self.world.store.write(lambda tx: tx.conn.execute(change)))
        (self.model.paused.add if on else self.model.paused.discard)(what)

    def change_limit(self, data: st.DataObject) -> None:
        limited = ["pool gpus", "pool plain", "queue plain/line", "deployment train", *NAMED]
        what, most = data.draw(st.sampled_from(limited)), data.draw(st.sampled_from([None, 0, 1, 2, 5]))
        kind, _, name = what.partition(" ")
        if kind == "pool":
            self.do(self.world.patch_pool(name, limit=most))
        elif kind == "queue":
            self.do(self.world.patch_queue(*name.split("/"), limit=most))
        elif kind == "deployment":
            spec = DEPLOYMENTS[name] | {"max_active": most}
            self.do(self.world.deploy(name, retries={"count": 1}, **spec))
        else:
            most = 7 if most is None else most
            self.do(self.world.patch_limit(what, max=most))
        self.model.most[what] = most

    def change_tag_limit(self, data: st.DataObject) -> None:
        name, most = data.draw(st.sampled_from(sorted(TAGGED))), data.draw(st.integers(-2, 3))
        there = name in self.model.most
        if most < 0 and there:
            self.do(self.world.delete_limit(name))
            del self.model.most[name]
        elif most >= 0:
            change = self.world.patch_limit if there else self.world.limit
            self.do(change(name, max=most, **({} if there else {"tag": TAGGED[name]})))
            self.model.most[name] = most

    @precondition(lambda self: any(run.state != "active" for run in self.model.runs.values()))
    @rule(data=st.data(), priority=st.sampled_from([None, -3, 4]))
    def change_a_run(self, data: st.DataObject, priority: int | None) -> None:
        """One that waits gets another priority or is cancelled; one that has ended is retried."""
        run_id = self.pick(data, "waiting", "ended")
        run = self.model.runs[run_id]
        if run.state == "waiting" and priority is not None:
            self.do(self.world.store.write(lambda tx: control.set_priority(tx, run_id, priority)))
            run.priority = priority
        elif run.state == "waiting":
            self.do(self.world.cancel(run_id))
            run.state = "ended"
        else:
            self.do(self.world.retry(run_id))
            run.state, run.due = "waiting", self.clock.now
            self.placed()

    # ---- agents

    @rule(
        askers=st.lists(st.sampled_from(sorted(AGENTS)), min_size=1, max_size=4, unique=True),
        passed=st.sampled_from([0.001, 0.001, 30]),
    )
    def claim(self, askers: list[str], passed: float) -> None:
        """Whatever they say is free: the leases are what counts."""
        self.clock.advance(passed)
        offers = [self.offer(name) for name in askers]
        before = self.model.active()
        self.do(self.world.store.write(lambda tx: claim(tx, offers)))
        granted = [(name, one) for name, offer in zip(askers, offers, strict=True) for one in offer.granted]
        taken = []
        for name, one in granted:
            run = self.model.runs[one.run]
            assert run.state == "waiting", "not a run that waits"
            # In whatever order they were granted: together they must be allowed.
            assert self.model.startable(run, [name], self.clock.now, before), f"{run.deployment} to {name}"
            run.state, run.holder, run.grant = "active", name, one
            taken.append(run)
        for run in taken:
            others = [other for other in self.model.active() if other is not run]
            assert not self.model.blocked(run, others), f"one too many with {run.deployment}"
            assert self.model.fits(run, str(run.holder), others), (
                f"{run.deployment} does not fit {run.holder}"
            )
        self.nothing_is_left(askers, taken)

    def offer(self, name: str) -> Offer:
        most = int(AGENTS[name]["limit"])
        offer = self.agents[name].offer(most)
        offer.limit = most
        return offer

    def nothing_is_left(self, askers: list[str], taken: list[ModelRun]) -> None:
        """No agent that asked could take more; and nothing went before what has a higher priority."""
        active, now = self.model.active(), self.clock.now
        waiting = [run for run in self.model.runs.values() if run.state == "waiting"]
        for run in {
            (run.deployment, run.pool, *run.tags, run.priority, run.due): run for run in waiting
        }.values():
            assert not self.model.startable(run, askers, now, active), f"{run.deployment} waits in vain"
            lower = [one for one in taken if self.model.rank(one) < self.model.rank(run)]
            without = [one for one in active if not any(one is other for other in lower)]
            assert not self.model.startable(run, askers, now, without), f"{run.deployment} was passed over"

    @precondition(lambda self: any(run.state == "active" for run in self.model.runs.values()))
    @rule(data=st.data(), how=st.sampled_from(["fails", "released", "cancelled"]))
    def end(self, data: st.DataObject, how: str) -> None:
        run = self.model.runs[self.pick(data, "active")]
        assert run.grant is not None
        agent, attempt = self.agents[str(run.holder)], run.grant.attempt
        run.state, run.due = "waiting", self.clock.now
        if how == "released":
            self.do(agent.release(run.grant))
        elif how == "fails":
            self.do(agent.run_through(run.grant, S.FAILED))
            left = self.do(self.world.run(run.grant.run))
            run.state = "waiting" if left.state == "Retrying" else "ended"
            assert (run.state == "waiting") or attempt > 1
        else:
            self.do(self.world.cancel(run.grant.run))
            self.do(agent.report(run.grant, S.CANCELLED, cause="cancelled", log_size=0))
            run.state = "ended"
        run.holder = run.grant = None

    # ---- what must hold

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "world"):
            return

        def look(tx: Any) -> tuple[set[tuple[str, str]], list[Any]]:
            audit(tx)
            held = select(leases.c.run_id, agents.c.name).join(agents, agents.c.id == leases.c.agent_id)
            return exceeded(tx), list(tx.conn.execute(held))

        over, held = self.do(self.world.store.read(look))
        assert over <= self.world.lowered
        self.world.lowered &= over
        assert {row.run_id: row.name for row in held} == {
            run_id: run.holder for run_id, run in self.model.runs.items() if run.state == "active"
        }


_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        phases=_PHASES,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.timeout(600)  # to make what fails shorter takes its time
def test_any_sequence_on_sqlite(migrated_sqlite: Path) -> None:
    async def open_store(folder: Path, clock: Clock) -> AnyStore:
        path = folder / "shunter.db"
        shutil.copyfile(migrated_sqlite, path)
        store = SqliteStore(path, clock)
        await store.open()
        return store

    machine = type("SqliteLimits", (Limits,), {"open_store": staticmethod(open_store)})
    run_state_machine_as_test(machine, settings=_settings(25))


@pytest.mark.timeout(600)
def test_any_sequence_on_postgres(migrated_postgres: str) -> None:
    async def open_store(folder: Path, clock: Clock) -> AnyStore:
        store = PostgresStore(migrated_postgres, clock, connections=2)
        await store.open()
        await empty(store)
        return store

    machine = type("PostgresLimits", (Limits,), {"open_store": staticmethod(open_store)})
    run_state_machine_as_test(machine, settings=_settings(5))
