"""Backfill: past slots become runs once, as many at a time as was asked for."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.base import micros
from shunter_work_pools.contracts.deployments import BackfillAnswer, BackfillRequest
from shunter_work_pools.contracts.errors import BadRequest, NotFound
from shunter_work_pools.queue import backfill, fire
from shunter_work_pools.queue.claim import claim
from shunter_work_pools.queue.report import report
from shunter_work_pools.storage.schema import backfills, leases, runs
from shunter_work_pools.storage.store import PostgresStore
from tests.queue.test_fire import cron, every
from tests.queue.world import LATE_AFTER, LOST_AFTER, Agent, S, World


async def fill(world: World, hours: float = 10, name: str = "job", **more: Any) -> BackfillAnswer:
    """A backfill of so many hours up to now."""
    more.setdefault("start", world.at(-hours * 3600))
    more.setdefault("end", world.at())
    request = BackfillRequest(**more)
    return await world.store.write(lambda tx: backfill.backfill(tx, name, request))


async def counted(world: World, hours: float = 10, **more: Any) -> tuple[int, int]:
    """What a dry run says: slots, and runs that would be made."""
    request = BackfillRequest(start=world.at(-hours * 3600), end=world.at(), dry_run=True, **more)
    plan = await world.store.read(lambda tx: backfill.plan(tx, "job", request))
    found = plan.all_slots()
    return len(found), len(await world.store.read(lambda tx: plan.unmade(tx, found)))


async def made(world: World) -> list[datetime]:
    """Slots that have runs; twice is impossible, as the store keeps them unique."""
    slots = await world.store.read(
        lambda tx: list(tx.conn.scalars(select(runs.c.slot_at).order_by(runs.c.slot_at)))
    )
    return [datetime.fromtimestamp(slot / 1e6, UTC) for slot in slots]


@pytest.fixture
async def hourly(world: World) -> World:
    """A deployment that is due every full hour, made now (noon)."""
    await world.pool()
    await world.deploy(
        pool="main", parameters={"a": 1, "b": 1}, schedules=[cron("0 * * * *", parameters={"b": 2})]
    )
    return world


async def test_past_slots_become_runs_that_are_due_now_and_never_late(hourly: World) -> None:
    world = hourly
    world.noticed()
    answer = await fill(world)
    assert (answer.schedule, answer.slots, answer.made, answer.next) == ("default", 10, 10, None)
    assert world.noticed().pools
    # Up to, not including, the end; the start is one of them.
    assert await made(world) == [world.at(-3600 * hour) for hour in range(10, 0, -1)]
    world.clock.advance(LATE_AFTER + 1000)
    await world.reap()
    agent = await world.agent()
    granted = await agent.claim(100)
    assert [one.scheduled_at for one in granted] == await made(world)
    for one in await world.runs():
        assert (one.late, one.backfill, one.schedule) == (False, answer.backfill, "default")
        assert one.parameters == {"a": 1, "b": 2}
        assert one.scheduled_at == one.slot
        assert await world.story(one.id) == ["Scheduled/user", "Claimed/queue"]


async def test_slots_that_have_runs_are_left_alone_and_firing_leaves_those_of_a_backfill_alone(
    hourly: World,
) -> None:
    world = hourly
    world.clock.advance(3 * 3600)
    await fill(world, 1.5, end=world.at(-1))  # 14:00 of the missed 13:00, 14:00, 15:00
    await world.fire()
    assert await made(world) == [world.at(-3600 * hour) for hour in (2, 1, 0)]
    assert await counted(world, 5) == (5, 3)
    answer = await fill(world, 5)
    assert (answer.slots, answer.made) == (5, 3)
    assert len(await made(world)) == 6


async def test_it_goes_on_where_it_stopped(hourly: World) -> None:
    world = hourly
    first = await fill(world, limit=4)
    assert (first.slots, first.made, first.next) == (4, 4, world.at(-7 * 3600))
    second = await fill(world, limit=4, after=first.next)
    assert (second.slots, second.made, second.next) == (4, 4, world.at(-3 * 3600))
    again = await fill(world, limit=4)
    assert (again.slots, again.made, again.next) == (4, 0, first.next)
    last = await fill(world, limit=4, after=second.next)
    assert (last.slots, last.made, last.next) == (2, 2, None)
    assert {one.backfill for one in (first, second, again, last)} == {1}
    assert len(await made(world)) == 10
    assert await counted(world) == (10, 0)
    other = await fill(world, 11)
    assert (other.backfill, other.made) == (2, 1)


async def test_the_order_of_slots_holds_over_requests(hourly: World) -> None:
    world = hourly
    await fill(world, 6, end=world.at(-3 * 3600))
    await fill(world, 10)
    agent = await world.agent()
    world.clock.advance(1)
    taken = [one for _ in range(20) for one in await agent.claim()]
    slots: dict[int, list[datetime]] = {1: [], 2: []}
    for one in taken:
        number = (await world.run(one.run)).backfill
        assert number is not None
        slots[number].append(one.scheduled_at)
    assert [len(slots[number]) for number in (1, 2)] == [3, 7]
    assert all(found == sorted(found) for found in slots.values())


async def test_only_so_many_of_its_runs_are_active_at_once(hourly: World) -> None:
    world = hourly
    await fill(world, concurrency=2)
    await world.submit()
    agent = await world.agent()
    granted = await agent.claim(100)
    assert sorted(one.scheduled_at for one in granted) == [
        world.at(-10 * 3600),
        world.at(-9 * 3600),
        world.at(),  # what is no part of the backfill is not held up
    ]
    assert await agent.claim(100) == []
    first = min(granted, key=lambda one: one.scheduled_at)
    await agent.run_through(first)
    assert len(await agent.claim(100)) == 1
    world.noticed()
    await fill(world, concurrency=5)
    assert world.noticed().pools, "nobody was told that there is room"
    assert len(await agent.claim(100)) == 3
    await fill(world)
    assert len(await agent.claim(100)) == 4


@pytest.mark.parametrize("way", ["release", "policy", "by hand", "lost"])
async def test_a_run_that_comes_back_stays_in_its_backfill_and_is_never_late(world: World, way: str) -> None:
    await world.pool()
    await world.deploy(
        pool="main",
        schedules=[cron("0 * * * *")],
        retries={"count": int(way == "policy")},
        on_lost="retry",
    )
    await fill(world, concurrency=1)
    agent = await world.agent()
    (granted,) = await agent.claim(10)
    if way == "release":
        await agent.release(granted)
    elif way == "lost":
        for _ in range(2):
            world.clock.advance(400)
            await world.reap()
    else:
        await agent.run_through(granted, S.FAILED)
    if way == "by hand":
        assert len(await agent.claim(10)) == 1
        await world.retry(granted.run)
    world.clock.advance(LATE_AFTER + 1)
    await world.reap()
    assert not [run for run in await world.runs() if run.late]
    assert len(await agent.claim(10)) == (0 if way == "by hand" else 1)


async def test_runs_that_have_no_pool_yet_come_into_their_lane_when_there_is_one(world: World) -> None:
    await world.deploy(tags=["t"], schedules=[cron("0 * * * *")])
    await fill(world, concurrency=3)
    await world.pool(match=["t"])
    agent = await world.agent()
    assert len(await agent.claim(100)) == 3
    assert await agent.claim(100) == []


async def test_a_cancelled_and_a_skipped_run_make_room(hourly: World) -> None:
    world = hourly
    await fill(world, concurrency=1)
    agent = await world.agent()
    (granted,) = await agent.claim(10)
    await world.cancel(granted.run)
    assert await agent.claim(10) == []
    await agent.report(granted, S.CANCELLED, cause="cancelled", log_size=0)
    waiting = next(run for run in await world.runs() if run.slot == world.at(-9 * 3600))
    await world.skip(waiting.id)
    (following,) = await agent.claim(10)
    assert following.scheduled_at == world.at(-8 * 3600)


async def test_a_paused_schedule_can_be_backfilled_and_a_paused_deployment_waits(hourly: World) -> None:
    world = hourly
    await world.pause_schedule()
    assert (await fill(world)).made == 10
    await world.pause_deployment()
    agent = await world.agent()
    assert await agent.claim() == []


async def test_flushing_what_is_late_leaves_a_backfill_alone(hourly: World) -> None:
    world = hourly
    await fill(world, 3)
    late = await world.submit()
    world.clock.advance(LATE_AFTER + 1)
    await world.reap()
    assert (await world.flush_late()).runs == 1
    assert [run.id for run in await world.runs() if run.state == "Cancelled"] == [late]


async def test_bad_requests_are_told_and_make_nothing(world: World) -> None:
    await world.pool()
    await world.deploy("none")
    await world.deploy("two", schedules=[every(60, name="a"), every(60, name="b")])
    await world.deploy(schedules=[every(1)])
    for what, name, more in [
        ("end is not after start", "job", {"start": world.at(-5), "end": world.at(-5)}),
        ("in the future", "job", {"end": world.at(0.001)}),
        ("several schedules: a, b", "two", {}),
        ("has no schedule", "none", {}),
        ("edge of the calendar", "job", {"start": datetime.min.replace(tzinfo=UTC)}),
    ]:
        with pytest.raises(BadRequest, match=what):
            await fill(world, name=name, **more)
    with pytest.raises(NotFound, match="no deployment"):
        await fill(world, name="nob")
    with pytest.raises(NotFound, match="no schedule 'c'"):
        await fill(world, name="two", schedule="c")
    with pytest.raises(BadRequest, match="more than 100000 slots"):
        await counted(world, 30)
    assert await world.runs() == []
    assert await world.store.read(lambda tx: tx.conn.scalar(select(func.count()).select_from(backfills))) == 0
    assert (await fill(world, name="two", schedule="b")).schedule == "b"
    # Nothing is due there: no slots, no backfill.
    await world.deploy("later", schedules=[every(60, start=world.at().isoformat())])
    assert await fill(world, name="later") == BackfillAnswer(schedule="default", slots=0, made=0)


# ---- at once


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_many_claimers_at_once_never_exceed_its_concurrency(hourly: World, concurrency: int) -> None:
    """On Postgres each claimer has a connection of its own, as if each were another server."""
    world = hourly
    await world.deploy("other", pool="main", schedules=[cron("0 * * * *")])
    await fill(world, 40, concurrency=concurrency)
    await fill(world, 40, name="other", concurrency=concurrency + 1)
    stores = [world.store]
    if isinstance(world.store, PostgresStore):
        stores = [PostgresStore(world.store.url.render_as_string(False), world.clock, 1) for _ in range(6)]
        await asyncio.gather(*(store.open() for store in stores))
    agents = [await world.agent(f"a{number}") for number in range(6)]
    seen: list[dict[int, int]] = []
    granted: list[Assignment] = []

    def look(tx: Any) -> None:
        per = select(leases.c.backfill_id, func.count()).group_by(leases.c.backfill_id)
        seen.append({row[0]: row[1] for row in tx.conn.execute(per)})

    async def work(agent: Agent, store: Any) -> None:
        for turn in range(10):
            offer = agent.offer(1 + turn % 3)
            await store.write(lambda tx, offer=offer: claim(tx, [offer]))
            granted.extend(offer.granted)
            await store.read(look)
            for at, one in enumerate(offer.granted):
                if (turn + at) % 4 == 3:
                    await agent.release(one)
                    continue
                step = agent.step(one, S.COMPLETED, log_size=0)
                await store.write(lambda tx, step=step: report(tx, agent.id, [step], LOST_AFTER))

    try:
        await asyncio.gather(*map(work, agents, itertools.cycle(stores)))
    finally:
        if stores != [world.store]:
            for store in stores:
                await store.close()
    assert max(counts.get(1, 0) for counts in seen) <= concurrency
    assert max(counts.get(2, 0) for counts in seen) <= concurrency + 1
    assert len({(one.run, one.epoch) for one in granted}) == len(granted) >= 10


async def test_backfilling_and_firing_at_once_make_each_slot_once(world: World) -> None:
    """On Postgres in connections of their own; what one is doing the other waits for, or leaves alone."""
    await world.pool()
    await world.deploy(pool="main", schedules=[every(1, catch_up_slots=3000)])
    world.clock.advance(1500)
    start, late = world.at(-1500), round(LATE_AFTER * 1e6)
    chance = random.Random(1)

    async def fill_up(pause: float) -> None:
        after = None
        while True:
            answer = await fill(world, start=start, limit=100, after=after, concurrency=2)
            if answer.next is None:
                return
            after = answer.next + timedelta(seconds=chance.randrange(50))
            await asyncio.sleep(pause)

    async def fire_up() -> None:
        while (await world.store.read(fire.next_slot_in) or 1) <= 0:
            await world.store.write(lambda tx: fire.fire(tx, late, world.clock.now))
            await asyncio.sleep(0)

    await asyncio.gather(fill_up(0), fire_up(), fill_up(0.001), fire_up())
    # The anchor's own slot lies before the first deploy: only the backfill makes it.
    assert [micros(at) for at in await made(world)] == list(
        range(micros(start), world.clock.now + 1, 1_000_000)
    )
