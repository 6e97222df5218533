"""The priority of a run that waits can be changed."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.util import await_only

from shunter_work_pools.contracts.errors import Conflict, NotFound
from shunter_work_pools.contracts.limits import LimitSpec
from shunter_work_pools.queue import control, limits
from shunter_work_pools.storage.schema import lanes, ready
from tests.api.serving import until
from tests.queue.world import S, World


async def test_a_run_overtakes_and_lets_others_go_first(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    agent = await world.agent()
    waiting = []
    for _ in range(4):
        waiting.append(await world.submit())
        world.clock.advance(1)
    first, second, third, fourth = waiting
    await world.set_priority(third, 5)
    await world.set_priority(first, -1)
    order = [(await agent.claim())[0].run for _ in range(4)]
    assert order == [third, second, fourth, first]


async def test_a_burst_of_one_deployment_does_not_hold_the_others_back(world: World) -> None:
    """What comes after hundreds of another deployment waits as if it had half of the places for itself."""
    await world.pool()
    for name in ("burst", "small"):
        await world.deploy(name, pool="main")
    await world.submit_many(*["burst"] * 400)
    world.clock.advance(1)
    small = {run for run, _ in await world.submit_many(*["small"] * 21)}
    agent = await world.agent()
    rounds: dict[object, int] = {}
    turn = 0
    while len(rounds) < len(small):
        turn += 1
        for one in await agent.claim(4):
            if one.run in small:
                rounds[one.run] = turn
            await agent.run_through(one)
        world.clock.advance(1)
    alone = [1 + at // 2 for at in range(len(small))]
    assert statistics.median(rounds.values()) <= 2 * statistics.median(alone)
    assert sorted(rounds.values()) == alone, "indeed it is no longer than that"


async def test_in_its_new_lane_it_has_the_place_of_its_due_time(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    agent = await world.agent()
    early = await world.submit()
    world.clock.advance(1)
    late = await world.submit(priority=3)
    await world.set_priority(early, 3)
    assert [(await agent.claim())[0].run for _ in range(2)] == [early, late]


async def test_it_is_told_and_shown(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", priority=2)
    run_id = await world.submit()
    world.noticed()
    await world.set_priority(run_id, 7)
    changes = world.noticed()
    assert (changes.runs, changes.pools) == ({run_id}, {1})
    await world.set_priority(run_id, 7)
    assert not world.noticed().runs, "nothing changed"
    assert (await world.run(run_id)).priority == 7
    (told,) = [one for one in await world.events(run_id) if one.kind == "priority"]
    assert (told.actor, told.data) == ("user", {"old": 2, "new": 7})


async def test_the_next_attempt_keeps_it(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", retries={"count": 1})
    agent = await world.agent()
    run_id = await world.submit()
    await world.set_priority(run_id, 9)
    (granted,) = await agent.claim()
    await agent.run_through(granted, S.FAILED)
    await world.submit(priority=8)
    assert (await agent.claim())[0].run == run_id
    # And what is given back, and what is tried again by hand.
    (again,) = (await agent.difference()).assignments[:1]
    await agent.release(again)
    assert (await agent.claim())[0].run == run_id


@pytest.mark.parametrize("end", [S.COMPLETED, S.CANCELLED])
async def test_what_does_not_wait_is_left_as_it_is(world: World, end: S) -> None:
    await world.pool()
    await world.deploy(pool="main")
    agent = await world.agent()
    run_id = await world.submit()
    (granted,) = await agent.claim()
    with pytest.raises(Conflict, match="does not wait any more, it is active"):
        await world.set_priority(run_id, 1)
    await agent.run_through(granted, end)
    with pytest.raises(Conflict, match=f"has ended already: {end.value}"):
        await world.set_priority(run_id, 1)
    assert (await world.run(run_id)).priority == 0
    with pytest.raises(NotFound):
        await world.set_priority(uuid4(), 1)


async def test_a_run_without_a_pool_takes_it_along(world: World) -> None:
    await world.deploy(tags=["gpu"])
    plain, urgent = await world.submit(), await world.submit()
    await world.set_priority(urgent, 4)
    assert (await world.run(urgent)).pool is None
    await world.pool("main", match=["gpu"])
    agent = await world.agent()
    assert [(await agent.claim())[0].run for _ in range(2)] == [urgent, plain]


@pytest.mark.parametrize("kind", ["postgres"])
async def test_changed_while_a_pool_is_made_for_it_the_new_one_counts(world: World) -> None:
    """The pool's maker has seen the old priority, and waits for the row of the run."""
    await world.deploy(tags=["gpu"])
    run_id = await world.submit()
    making: list[asyncio.Task[str]] = []

    def waits(tx: Any) -> int:
        asked = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return int(tx.conn.scalar(asked))

    async def until_it_waits() -> None:
        making.append(asyncio.create_task(world.pool("main", match=["gpu"])))
        await until(lambda: world.store.read(waits))

    def change(tx: Any) -> None:
        control.set_priority(tx, run_id, 4)
        await_only(until_it_waits())

    await asyncio.wait_for(world.store.write(change), 10)
    await making[0]
    assert (await world.run(run_id)).pool == "main"
    # That its lane is the one of its priority is what the books are audited for.


async def test_it_stays_under_its_limits_and_demands(world: World) -> None:
    await world.pool()
    await world.store.write(lambda tx: limits.create_limit(tx, LimitSpec(name="one", max=1)))
    await world.deploy(pool="main", limits=["one"], require=["gpu"], need={"gpu": 1})
    run_id, other = await world.submit(), await world.submit()
    await world.set_priority(run_id, 4)
    lane = await world.store.read(
        lambda tx: tx.conn.execute(
            select(lanes).join(ready, ready.c.lane_id == lanes.c.id).where(ready.c.run_id == run_id)
        ).one()
    )
    assert (lane.priority, lane.require, lane.need, lane.limits) == (4, "gpu", "gpu=1.0", "1")
    agent = await world.agent(tags=["gpu"], capacity={"gpu": 2})
    assert [one.run for one in await agent.claim(2)] == [run_id]
    await world.cancel(other)


async def test_changed_while_it_is_claimed_it_is_one_or_the_other(world: World) -> None:
    """Claims and changes at once: nothing is lost, nothing granted twice, and the books agree."""
    await world.pool()
    for name in ("a", "b", "c"):
        await world.deploy(name, pool="main")
    agents = [await world.agent(f"a{at}") for at in range(4)]
    waiting = [run for run, _ in await world.submit_many(*["a", "b", "c"] * 40)]
    refused = 0

    async def change(priority: int) -> None:
        nonlocal refused
        for run_id in waiting:
            try:
                await world.set_priority(run_id, priority)
            except Conflict:
                refused += 1

    async def take(at: int) -> list[object]:
        got: list[object] = []
        while more := await agents[at].claim(3):
            got += [one.run for one in more]
        return got

    found = await asyncio.gather(*(take(at) for at in range(4)), change(3), change(-2), change(8))
    granted = [run for part in found[:4] for run in part or []]
    # A run may have been in the hands of a change while the last claim passed it over.
    for at in range(4):
        granted += await take(at)
    assert sorted(granted, key=str) == sorted(waiting, key=str)
    assert refused > 0, "the two never met"
