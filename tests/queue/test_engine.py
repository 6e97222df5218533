"""The server's loops: what they take for silence, and wake-ups that must not be missed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import Held, SyncAnswer, SyncRequest
from shunter_work_pools.contracts.deployments import (
    CatchUp,
    DeploymentSpec,
    IntervalSchedule,
    Named,
    Schedule,
    Work,
)
from shunter_work_pools.contracts.errors import Unavailable
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.engine import Engine
from shunter_work_pools.glances import Glance
from shunter_work_pools.queue import apply, catalog, fire, views
from shunter_work_pools.queue.claim import Offer, claim
from shunter_work_pools.queue.ids import new_run_id
from shunter_work_pools.queue.submit import submit
from shunter_work_pools.settings import Settings
from shunter_work_pools.storage.logs import FileLogStore
from shunter_work_pools.storage.results import FileResultStore
from shunter_work_pools.storage.store import SqliteStore, Tx
from tests.api.serving import until

SOON = 5.0


class Clock:
    """The wall clock, which somebody may set."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> int:
        return round((time.time() + self.offset) * 1e6)


class Agent:
    """Syncs as an agent does."""

    def __init__(self, engine: Engine, name: str = "a1", pool: str = "main") -> None:
        self.engine, self.name, self.pool = engine, name, pool
        self.session, self.identity = new_run_id(time.time_ns() // 1000), uuid4()
        self.holds: list[Held] = []

    async def sync(self, hold_for: float = 0.0, free: int = 1, **more: Any) -> SyncAnswer:
        request = SyncRequest(
            protocol=PROTOCOL,
            session=self.session,
            identity=self.identity,
            pools=[self.pool],
            limit=8,
            free=free,
            holds=self.holds,
            hold_for=hold_for,
            **more,
        )
        answer = await self.engine.sync(self.name, request, asyncio.sleep(3600))
        self.holds += [Held(run=a.run, attempt=a.attempt, epoch=a.epoch) for a in answer.assignments]
        return answer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def engine(tmp_path: Path, clock: Clock) -> AsyncIterator[Engine]:
    settings = Settings(lost_after=0.3, give_up_after=0.6, reap_every=0.02, heartbeat_every=0.02)
    engine = Engine(
        SqliteStore(tmp_path / "shunter.db", clock),
        FileLogStore(tmp_path / "logs"),
        FileResultStore(tmp_path / "results"),
        settings,
    )
    await engine.start()
    spec = DeploymentSpec(work=Work(command=["true"]), pool="main")
    await engine.store.write(lambda tx: catalog.create_pool(tx, PoolSpec(name="main")))
    named = [Named(name="job", spec=spec)]
    await engine.store.write(lambda tx: apply.apply(tx, named, engine.times(tx.now)))
    yield engine
    await engine.stop()
    assert not engine.failure.done()


async def _submit(engine: Engine) -> UUID:
    ((run_id, _),) = await engine.store.write(lambda tx: submit(tx, [RunRequest(deployment="job")]))
    return run_id


async def _state(engine: Engine, run_id: UUID) -> str:
    return (await engine.store.read(lambda tx: views.run(tx, run_id))).state


async def test_a_clock_that_is_set_is_not_an_agent_that_is_silent(engine: Engine, clock: Clock) -> None:
    agent = Agent(engine)
    run_id = await _submit(engine)
    await agent.sync(SOON)
    until = time.monotonic() + 0.8  # longer than give_up_after: the server may act from then on
    while time.monotonic() < until:
        await agent.sync(0.05, free=0)
    for step in (3600.0, -3600.0):
        held = asyncio.create_task(agent.sync(0.25, free=0))
        await asyncio.sleep(0.1)  # its heartbeat is written
        clock.offset += step
        await held
        assert await _state(engine, run_id) == "Claimed"
    async with asyncio.timeout(SOON):  # and one that is really silent is given up
        with engine.hub.watching(run_id) as changed:
            while await _state(engine, run_id) != "Crashed":
                changed.clear()
                await changed.wait()


async def test_a_grant_to_a_sync_that_was_replaced_is_found_at_once(engine: Engine) -> None:
    agent = Agent(engine)
    write, claiming, go_on = engine.store.write, asyncio.Event(), asyncio.Event()

    async def slow(work):  # type: ignore[no-untyped-def]
        result = await write(work)
        if isinstance(result, int) and not isinstance(result, bool) and result == 1 and not claiming.is_set():
            claiming.set()
            await go_on.wait()
        return result

    older = asyncio.create_task(agent.sync(SOON))
    await asyncio.sleep(0.1)
    engine.store.write = slow  # type: ignore[method-assign]
    run_id = await _submit(engine)
    await asyncio.wait_for(claiming.wait(), SOON)
    # Its books are compared on a snapshot without the grant.
    read = engine.store.read
    engine.store.read = lambda work: _nothing(read, work)  # type: ignore[method-assign]
    newer = asyncio.create_task(agent.sync(SOON))
    await asyncio.wait_for(older, SOON)
    await asyncio.sleep(0.05)
    engine.store.read = read  # type: ignore[method-assign]
    go_on.set()
    answer = await asyncio.wait_for(newer, 2.0)
    assert [a.run for a in answer.assignments] == [run_id]


@pytest.mark.parametrize("last", [{"taking": False, "draining": True, "hold_for": SOON}, {"hold_for": 0.0}])
async def test_an_agent_does_not_hear_that_nothing_is_its_own_while_a_grant_to_it_is_written(
    engine: Engine, last: dict[str, Any]
) -> None:
    agent = Agent(engine)
    older = asyncio.create_task(agent.sync(SOON))
    claiming, commit = _hold_the_claim(engine)
    await until(lambda: any(waiting.free for waiting in engine.hub.agents.values()))
    run_id = await _submit(engine)
    await asyncio.wait_for(claiming.wait(), SOON)
    agent.holds = [Held(run=new_run_id(0), attempt=1, epoch=1)]  # to be forgotten: it is answered at once
    newer = asyncio.create_task(agent.sync(**last))
    await asyncio.wait_for(older, SOON)
    await asyncio.sleep(0.15)  # time enough for a look into books that do not have the grant yet
    commit.set()
    answer = await asyncio.wait_for(newer, SOON)
    assert [a.run for a in answer.assignments] == [run_id]


async def test_a_sync_whose_time_is_over_hears_of_the_grant_that_is_written_just_then(engine: Engine) -> None:
    claiming, commit = _hold_the_claim(engine)
    syncing = asyncio.create_task(Agent(engine).sync(0.3))
    await until(lambda: any(waiting.free for waiting in engine.hub.agents.values()))
    run_id = await _submit(engine)
    await asyncio.wait_for(claiming.wait(), SOON)
    await asyncio.sleep(0.5)  # its time is over
    commit.set()
    answer = await asyncio.wait_for(syncing, SOON)
    assert [a.run for a in answer.assignments] == [run_id]


def _hold_the_claim(engine: Engine) -> tuple[asyncio.Event, asyncio.Event]:
    """Have the next claim begin, and not be written before it may: the events of the two."""
    write, claiming, commit = engine.store.write, asyncio.Event(), asyncio.Event()

    async def slow(work):  # type: ignore[no-untyped-def]
        if "claim" in getattr(work, "__code__", _hold_the_claim.__code__).co_names:
            claiming.set()
            await commit.wait()
        return await write(work)

    engine.store.write = slow  # type: ignore[method-assign]
    return claiming, commit


async def _nothing(read, work):  # type: ignore[no-untyped-def]
    found = await read(work)
    return replace(found, concerned=frozenset()) if isinstance(found, Glance) else found


async def test_a_run_that_comes_while_books_are_compared_is_granted(engine: Engine) -> None:
    read, compared, go_on = engine.store.read, asyncio.Event(), asyncio.Event()

    async def slow(work):  # type: ignore[no-untyped-def]
        found = await read(work)
        if isinstance(found, Glance):
            compared.set()
            await go_on.wait()
        return found

    engine.store.read = slow  # type: ignore[method-assign]
    syncing = asyncio.create_task(Agent(engine).sync(SOON))
    await asyncio.wait_for(compared.wait(), SOON)
    run_id = await _submit(engine)
    await until(lambda: not engine.hub.claimable.is_set())  # claims were made for all that waited then
    go_on.set()
    answer = await asyncio.wait_for(syncing, 2.0)
    assert [a.run for a in answer.assignments] == [run_id]


async def test_what_an_agent_that_comes_costs_does_not_depend_on_the_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[set[int]] = []

    def watched(tx: Tx, offers: list[Offer]) -> int:
        offered.append({offer.agent_id for offer in offers})
        return claim(tx, offers)

    monkeypatch.setattr("shunter_work_pools.engine.claim", watched)
    await engine.store.write(lambda tx: catalog.create_pool(tx, PoolSpec(name="other")))
    waiting = [asyncio.create_task(Agent(engine, f"a{number}").sync(SOON)) for number in range(5)]
    waiting.append(asyncio.create_task(Agent(engine, "elsewhere", "other").sync(SOON)))
    await until(lambda: sum(entry.offered is not None for entry in engine.hub.agents.values()) == 6)
    assert offered == []  # nothing is due: nothing is claimed
    spec = DeploymentSpec(work=Work(command=["true"]), pool="main", require=["gpu"])
    named = [Named(name="job", spec=spec)]
    await engine.store.write(lambda tx: apply.apply(tx, named, engine.times(tx.now)))
    await _submit(engine)
    await until(lambda: bool(offered))
    assert [len(agents) for agents in offered] == [5]  # each of its pool could have been the one
    before = len(offered)
    waiting.append(asyncio.create_task(Agent(engine, "late").sync(SOON)))
    await until(lambda: len(offered) > before)
    assert [len(agents) for agents in offered[before:]] == [1]
    engine.release_waiters()
    await asyncio.gather(*waiting)


async def test_a_contact_is_a_request_that_came_not_the_end_of_its_time(engine: Engine) -> None:
    syncing = asyncio.create_task(Agent(engine).sync(0.3))
    await until(lambda: bool(engine.hub.agents))
    ((agent_id, came),) = engine._heard.items()
    await syncing
    assert engine._heard == {agent_id: came}


async def test_a_claim_that_met_a_store_that_was_away_is_made_again(engine: Engine) -> None:
    agent = Agent(engine)
    held = asyncio.create_task(agent.sync(SOON))
    await asyncio.sleep(0.1)
    write, failed = engine.store.write, 0

    async def away(work):  # type: ignore[no-untyped-def]
        nonlocal failed
        if "claim" in work.__code__.co_names and failed < 1:
            failed += 1
            raise Unavailable("away")
        return await write(work)

    engine.store.write = away  # type: ignore[method-assign]
    run_id = await _submit(engine)
    answer = await asyncio.wait_for(held, 3.0)
    assert failed == 1
    assert [a.run for a in answer.assignments] == [run_id]


def _hourly(policy: CatchUp) -> DeploymentSpec:
    schedule = Schedule(when=IntervalSchedule(seconds=3600), catch_up=policy)
    return DeploymentSpec(work=Work(command=["true"]), schedules=[schedule])


async def _deploy(engine: Engine, spec: DeploymentSpec) -> None:
    named = [Named(name="hourly", spec=spec)]
    await engine.store.write(lambda tx: apply.apply(tx, named, engine.times(tx.now)))


async def _made(engine: Engine) -> int:
    return len((await engine.store.read(lambda tx: views.list_runs(tx, views.RunFilter())))[0])


async def _are_made(engine: Engine, count: int) -> bool:
    return await _made(engine) >= count


async def _nothing_due(engine: Engine) -> bool:
    upcoming = await engine.store.read(fire.next_slot_in)
    return upcoming is not None and upcoming > 0


@pytest.mark.parametrize(("policy", "made"), [("all", 6), ("latest", 1), ("none", 0)])
async def test_slots_of_a_time_that_the_machine_slept_through_are_missed(
    engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch, policy: CatchUp, made: int
) -> None:
    monkeypatch.setattr("shunter_work_pools.engine._LONGEST_SLEEP", 0.02)
    await _deploy(engine, _hourly(policy))
    began = engine.firing_since
    clock.offset += 6.5 * 3600
    await until(lambda: engine.firing_since > began)
    await until(lambda: _nothing_due(engine))
    assert await _made(engine) == made
    # From then on slots are in time again, though their turn comes a little late.
    again = engine.firing_since
    clock.offset += 1800 - 10
    await until(lambda: engine.firing_since > again)
    clock.offset += 20
    await until(lambda: _are_made(engine, made + 1))


async def test_a_deploy_that_comes_before_the_loop_has_noticed_takes_missed_slots_for_missed(
    engine: Engine, clock: Clock
) -> None:
    await _deploy(engine, _hourly("latest"))
    await asyncio.sleep(0.05)  # its loop sleeps for a minute now
    clock.offset += 6.5 * 3600
    await _deploy(engine, _hourly("all"))
    assert await _made(engine) == 1


async def test_an_idle_schedule_loop_sleeps(engine: Engine) -> None:
    """A minute at a time without schedules, and up to the next slot with them; a deploy wakes it."""
    looked = 0
    read = engine.store.read

    async def counted(work):  # type: ignore[no-untyped-def]
        nonlocal looked
        looked += "next_slot_in" in work.__code__.co_names
        return await read(work)

    engine.store.read = counted  # type: ignore[method-assign]
    await _deploy(engine, _hourly("all"))
    await asyncio.sleep(0.3)
    assert looked <= 2
    await _deploy(
        engine,
        DeploymentSpec(work=Work(command=["true"]), schedules=[Schedule(when=IntervalSchedule(seconds=1))]),
    )
    await until(lambda: _are_made(engine, 2))
    assert looked <= 10
