"""Exclusive runs, and limits that old agents do not know: who gets them, and when another attempt may begin."""

from __future__ import annotations

import pytest

from shunter_work_pools.contracts.agents import LEASE_MARGIN
from shunter_work_pools.contracts.errors import BadRequest, NotFound
from tests.queue.world import GIVE_UP_AFTER, LEASE_FOR, LOST_AFTER, TRUE, S, World, held

LONGEST_GRACE = LEASE_FOR - LOST_AFTER - LEASE_MARGIN


async def test_an_assignment_says_whether_its_run_is_exclusive(world: World) -> None:
    await world.pool()
    await world.deploy("alone", pool="main", exclusive=True)
    await world.deploy("job", pool="main")
    await world.submit_many("alone", "job")
    agent = await world.agent()
    granted = await agent.claim(2)
    assert {one.deployment: one.exclusive for one in granted} == {"alone": True, "job": False}
    again = (await agent.difference()).assignments
    assert {one.deployment: one.exclusive for one in again} == {"alone": True, "job": False}


@pytest.mark.parametrize(("grace", "fits"), [(LONGEST_GRACE, True), (LONGEST_GRACE + 0.1, False)])
async def test_a_grace_that_does_not_fit_the_lease_is_refused(world: World, grace: float, fits: bool) -> None:
    await world.pool()
    work = TRUE.model_copy(update={"grace": grace})
    await world.deploy("usual", pool="main", work=work)
    if fits:
        await world.deploy(pool="main", work=work, exclusive=True)
        return
    with pytest.raises(BadRequest) as refused:
        await world.deploy(pool="main", work=work, exclusive=True)
    (fault,) = refused.value.extra["faults"]
    assert fault["loc"] == ["work", "grace"]
    assert "lease of 4m, less 30s until an agent is lost and 5s to spare, leaves 3m25s" in fault["detail"]
    assert "--lease-for" in fault["remedy"]
    with pytest.raises(NotFound):
        await world.submit()


async def test_another_attempt_begins_only_after_the_lease_has_passed(world: World) -> None:
    assert LEASE_FOR < GIVE_UP_AFTER
    await world.pool()
    await world.deploy(pool="main", exclusive=True, on_lost="retry")
    agent, other = await world.agent(), await world.agent("a2")
    await world.submit()
    (granted,) = await agent.claim()
    for silence in (LOST_AFTER + 1, LEASE_FOR - LOST_AFTER):
        world.clock.advance(silence)
        await world.reap()
        assert (await world.run(granted.run)).lost
        assert await other.claim() == [], "its agent may have it running still"
    # Until then it may come back and go on.
    await agent.beat()
    assert (await agent.difference(held(granted))).forget == []
    world.clock.advance(GIVE_UP_AFTER + 1)
    await world.reap()
    run = await world.run(granted.run)
    assert (run.state, run.cause) == ("Retrying", "agent_lost")
    assert "it had ended by itself" in (run.message or "")
    assert [one.attempt for one in await other.claim()] == [2]


async def test_what_its_agent_ended_at_the_end_of_the_lease_is_tried_again_by_the_policy(
    world: World,
) -> None:
    """The agent is back before it is given up, and tells that it ended the work itself."""
    await world.pool()
    await world.deploy(pool="main", exclusive=True, retries={"count": 1})
    agent = await world.agent()
    await world.submit()
    (granted,) = await agent.claim()
    await agent.report(granted, S.STARTING, S.RUNNING, S.CRASHED, cause="agent_lost", log_size=0)
    assert await world.state(granted.run) == "Retrying"
    assert [one.attempt for one in await agent.claim()] == [2]
