"""Late, lost, found again, given up."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import select

from shunter_work_pools.queue import reap
from shunter_work_pools.queue.sync import note_seen
from shunter_work_pools.storage.schema import agents
from shunter_work_pools.storage.store import Tx
from tests.queue.test_report import granted_one
from tests.queue.world import GIVE_UP_AFTER, LATE_AFTER, LOST_AFTER, S, World


async def test_what_waits_too_long_is_late_once_and_stays_so(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    early, later = await world.submit(), await world.submit(scheduled_at=world.at(10))
    world.clock.advance(LATE_AFTER)
    await world.reap()
    assert not (await world.run(early)).late
    world.clock.advance(0.000001)
    await world.reap()
    await world.reap()
    assert (await world.run(early)).late
    assert not (await world.run(later)).late
    assert await world.story(early) == ["Scheduled/user", "late/reaper"]
    assert not await world.store.read(lambda tx: reap.late_waits(tx, tx.now - round(LATE_AFTER * 1e6)))
    agent = await world.agent()
    (granted,) = await agent.claim()
    assert granted.run == early
    await agent.run_through(granted)
    assert (await world.run(early)).late


async def test_runs_of_a_silent_agent_are_lost_and_found(world: World) -> None:
    agent, granted = await granted_one(world)
    await agent.report(granted, S.STARTING, S.RUNNING)
    world.clock.advance(LOST_AFTER)
    await world.reap()
    assert not (await world.run(granted.run)).lost
    world.clock.advance(1)
    await world.reap()
    await world.reap()
    run = await world.run(granted.run)
    assert (run.state, run.lost, run.attempts[0].lost) == ("Running", True, True)
    world.noticed()
    await agent.beat()
    assert world.noticed().runs == {granted.run}
    await agent.beat()
    run = await world.run(granted.run)
    assert (run.state, run.lost) == ("Running", False)
    assert (await world.story(granted.run))[-2:] == ["lost/reaper", "found/agent"]
    await agent.run_through(granted)
    assert await world.state(granted.run) == "Completed"


async def test_a_heartbeat_keeps_the_runs_of_its_agent_and_of_no_other(world: World) -> None:
    agent, granted = await granted_one(world)
    other = await world.agent("other")
    await world.submit()
    (lost,) = await other.claim()
    world.clock.advance(LOST_AFTER)
    await agent.beat(ago=1.0)
    world.clock.advance(1)
    await world.reap()
    assert [(await world.run(one.run)).lost for one in (granted, lost)] == [False, True]


async def give_up(world: World) -> None:
    world.clock.advance(LOST_AFTER + 1)
    await world.reap()
    world.clock.advance(GIVE_UP_AFTER)
    await world.reap()


async def test_what_one_server_heard_longer_ago_takes_nothing_from_what_another_heard_since(
    world: World,
) -> None:
    agent, _ = await granted_one(world)
    world.clock.advance(40)
    await agent.beat()
    await world.store.write(lambda tx: note_seen(tx, {agent.id: 40.0}))
    assert await world.store.read(last_seen) == world.clock.now
    world.clock.advance(-3600)  # but a moment that a clock wrote which was set back gives way
    await world.store.write(lambda tx: note_seen(tx, {agent.id: 7.0}))
    assert await world.store.read(last_seen) == world.clock.now - 7_000_000


def last_seen(tx: Tx) -> int:
    """When the only agent was last heard of."""
    return tx.conn.execute(select(agents.c.last_seen_at)).scalar_one()


async def test_given_up_with_crash_ends_the_run_whatever_its_retries(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 3}, on_lost="crash")
    await agent.report(granted, S.STARTING, S.RUNNING, pid=12)
    world.noticed()
    await give_up(world)
    run = await world.run(granted.run)
    assert (run.state, run.cause) == ("Crashed", "agent_lost")
    assert "a1" in (run.message or "")
    assert run.attempts[0].pid == 12
    assert (await world.story(granted.run))[-2:] == ["lost/reaper", "Crashed/reaper"]
    assert world.noticed().pools, "its place is free: somebody may be waiting for it"
    # Its agent is back: what it says of that attempt comes too late.
    await agent.beat()
    (ack,) = await agent.send(agent.step(granted, S.COMPLETED, log_size=0))
    assert ack.stale
    assert await world.state(granted.run) == "Crashed"


async def test_given_up_with_retry_tries_again_and_fences_the_old_attempt(world: World) -> None:
    agent, granted = await granted_one(world, on_lost="retry")
    await give_up(world)
    run = await world.run(granted.run)
    assert (run.state, run.cause) == ("Retrying", "agent_lost")
    other = await world.agent("a2")
    (second,) = await other.claim()
    assert (second.attempt, second.epoch) == (2, 2)
    (ack,) = await agent.send(agent.step(granted, S.COMPLETED, log_size=0))
    assert ack.stale
    assert [hold.epoch for hold in (await agent.difference(_held(granted))).forget] == [1]
    await other.run_through(second)
    assert await world.state(granted.run) == "Completed"


async def test_waiting_for_ever_does_so_and_goes_on_under_its_epoch(world: World) -> None:
    agent, granted = await granted_one(world, on_lost="wait")
    await give_up(world)
    world.clock.advance(100_000)
    await world.reap()
    run = await world.run(granted.run)
    assert (run.state, run.lost) == ("Claimed", True)
    await agent.beat()
    await agent.run_through(granted)
    assert await world.state(granted.run) == "Completed"


@pytest.mark.parametrize("on_lost", ["crash", "retry", "wait"])
async def test_what_was_to_be_cancelled_ends_cancelled_when_its_agent_is_given_up(
    world: World, on_lost: str
) -> None:
    _, granted = await granted_one(world, on_lost=on_lost, retries={"count": 2})
    await world.cancel(granted.run)
    await give_up(world)
    run = await world.run(granted.run)
    assert (run.state, run.cause) == ("Cancelled", "cancelled")
    assert (await world.story(granted.run))[-1] == "Cancelled/reaper"


async def test_nothing_is_given_up_that_was_not_marked_lost_before(world: World) -> None:
    """The mark comes first, so that whoever looks can see it coming."""
    _, granted = await granted_one(world)
    world.clock.advance(GIVE_UP_AFTER * 2)
    await world.store.write(lambda tx: reap.give_up(tx, tx.now - round(GIVE_UP_AFTER * 1e6)))
    assert await world.state(granted.run) == "Claimed"


async def test_many_that_wait_for_ever_do_not_hide_those_that_are_given_up(world: World) -> None:
    await world.pool()
    await world.deploy("wait", pool="main", on_lost="wait")
    await world.deploy("crash", pool="main", on_lost="crash")
    await world.submit_many(*["wait"] * (reap.BATCH + 20))
    agent = await world.agent(limit=10_000)
    await agent.claim(10_000)
    world.clock.advance(0.01)
    await world.submit_many(*["crash"] * 3)
    taken: list[UUID] = [one.run for one in await agent.claim(10)]
    world.clock.advance(LOST_AFTER + 1)
    await world.reap()
    await world.reap()
    world.clock.advance(GIVE_UP_AFTER)
    await world.reap()
    assert [await world.state(run_id) for run_id in taken] == ["Crashed"] * 3


def _held(granted):  # type: ignore[no-untyped-def]
    from tests.queue.world import held

    return held(granted)
