"""Cancel, skip, flush and retry by hand, release, and what sync tells an agent."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from shunter_work_pools.contracts.deployments import Skipped
from shunter_work_pools.contracts.errors import Conflict, NameInUse, NotFound
from shunter_work_pools.contracts.states import AttemptState
from shunter_work_pools.queue import control
from tests.queue.test_report import granted_one
from tests.queue.world import LOST_AFTER, S, World, held


async def test_a_waiting_run_is_cancelled_at_once_and_never_granted(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    run_id = await world.submit()
    await world.cancel(run_id)
    run = await world.run(run_id)
    assert (run.state, run.cause, run.ended_at, run.attempts) == ("Cancelled", "cancelled", world.at(), [])
    assert await world.story(run_id) == ["Scheduled/user", "Cancelled/user"]
    assert await (await world.agent()).claim() == []


async def test_a_retrying_run_is_cancelled_at_once(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 3, "delay": 60})
    await agent.run_through(granted, S.FAILED)
    await world.cancel(granted.run)
    run = await world.run(granted.run)
    assert (run.state, run.cause, len(run.attempts)) == ("Cancelled", "cancelled", 1)
    world.clock.advance(100)
    assert await agent.claim() == []


@pytest.mark.parametrize("before", [[], [S.STARTING], [S.STARTING, S.RUNNING]])
async def test_an_active_run_is_stopped_by_its_agent(world: World, before: list[AttemptState]) -> None:
    agent, granted = await granted_one(world)
    if before:
        await agent.report(granted, *before)
    world.noticed()
    await world.cancel(granted.run)
    assert world.noticed().agents == {agent.id}
    run = await world.run(granted.run)
    assert (run.state, run.cause, run.ended_at) == ("Cancelling", None, None)
    await agent.report(granted, S.CANCELLED, cause="cancelled", log_size=0)
    run = await world.run(granted.run)
    assert (run.state, run.cause) == ("Cancelled", "cancelled")


# ---- skip


@pytest.mark.parametrize("retrying", [False, True])
async def test_a_run_that_waits_is_skipped(world: World, retrying: bool) -> None:
    agent, granted = await granted_one(world, retries={"count": 3, "delay": 60})
    await (agent.run_through(granted, S.FAILED) if retrying else agent.release(granted))
    for _ in range(2):  # twice is as good as once
        await world.skip(granted.run)
    run = await world.run(granted.run)
    assert (run.state, run.cause, run.ended_at, run.due_at) == ("Cancelled", "skipped", world.at(), None)
    assert (await world.story(granted.run)).count("Cancelled/user") == 1
    world.clock.advance(100)
    assert await agent.claim() == []
    await world.cancel(granted.run)  # it is


async def test_what_does_not_wait_is_not_skipped(world: World) -> None:
    agent, granted = await granted_one(world)
    with pytest.raises(Conflict, match="is active"):
        await world.skip(granted.run)
    await agent.run_through(granted)
    with pytest.raises(Conflict, match="Completed"):
        await world.skip(granted.run)
    cancelled = await world.submit()
    await world.cancel(cancelled)
    with pytest.raises(Conflict, match="Cancelled"):
        await world.skip(cancelled)
    with pytest.raises(NotFound):
        await world.skip(uuid4())


async def test_late_runs_of_a_deployment_are_flushed_and_no_others(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    await world.deploy("other", pool="main")
    await world.deploy("nowhere")
    agent = await world.agent()
    active = await world.submit()
    await agent.claim()
    late = [await world.submit() for _ in range(3)]
    kept = [await world.submit("other"), await world.submit(scheduled_at=world.at(90)), active]
    unplaced = await world.submit("nowhere")
    world.clock.advance(100)
    await world.reap()
    kept.append(await world.submit())
    world.noticed()
    assert await world.flush_late() == Skipped(runs=3)
    assert world.noticed().runs == set(late)
    assert await world.flush_late() == Skipped(runs=0)
    assert await world.flush_late("nowhere") == Skipped(runs=1)
    for run_id in [*late, unplaced]:
        run = await world.run(run_id)
        assert (run.state, run.cause, run.late) == ("Cancelled", "skipped", True)
    assert [await world.state(run_id) for run_id in kept] == [
        "Scheduled",
        "Scheduled",
        "Claimed",
        "Scheduled",
    ]
    with pytest.raises(NotFound, match="no deployment"):
        await world.flush_late("nob")


async def test_flushing_goes_on_in_batches_the_oldest_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "BATCH", 2)
    await world.deploy()
    ids = [await world.submit(scheduled_at=world.at(seconds)) for seconds in (-30, -50, -40)]
    await world.reap()
    assert await world.flush_late() == Skipped(runs=2, more=True)
    assert [await world.state(run_id) for run_id in ids] == ["Scheduled", "Cancelled", "Cancelled"]
    assert await world.flush_late() == Skipped(runs=1)


# ---- cancel again


async def test_cancelling_twice_is_as_good_as_once(world: World) -> None:
    agent, granted = await granted_one(world)
    await world.cancel(granted.run)
    world.noticed()
    await world.cancel(granted.run)
    assert not world.noticed().agents
    assert (await world.story(granted.run)).count("Cancelling/user") == 1
    await agent.report(granted, S.CANCELLED, cause="cancelled", log_size=0)
    await world.cancel(granted.run)
    assert (await world.story(granted.run)).count("Cancelled/agent") == 1


async def test_progress_while_it_is_being_cancelled_is_noted_and_it_stays_cancelling(world: World) -> None:
    agent, granted = await granted_one(world)
    await world.cancel(granted.run)
    ack = await agent.report(granted, S.STARTING, S.RUNNING, pid=9)
    assert (ack.seq, ack.detail) == (2, None)
    run = await world.run(granted.run)
    assert (run.state, run.attempts[0].pid, run.started_at) == ("Cancelling", 9, world.at())


async def test_a_run_that_ends_otherwise_while_it_is_being_cancelled_did_so(world: World) -> None:
    agent, granted = await granted_one(world)
    await world.cancel(granted.run)
    await agent.report(granted, S.STARTING, S.RUNNING, S.COMPLETED, log_size=0)
    assert await world.state(granted.run) == "Completed"


@pytest.mark.parametrize("end", [S.COMPLETED, S.FAILED, S.CRASHED, S.TIMED_OUT])
async def test_an_ended_run_cannot_be_cancelled(world: World, end: AttemptState) -> None:
    agent, granted = await granted_one(world)
    await agent.run_through(granted, end)
    with pytest.raises(Conflict, match=end.value):
        await world.cancel(granted.run)
    assert await world.state(granted.run) == end.value


async def test_unknown_runs_are_not_found(world: World) -> None:
    for ask in (world.cancel, world.retry, world.run):
        with pytest.raises(NotFound):
            await ask(uuid4())


# ---- retry by hand


@pytest.mark.parametrize("end", [S.FAILED, S.CRASHED, S.TIMED_OUT, S.CANCELLED])
async def test_an_ended_run_is_tried_again_as_the_same_run(world: World, end: AttemptState) -> None:
    agent, granted = await granted_one(world)
    await agent.run_through(granted, end, message="why", result={"a": 1})
    world.clock.advance(60)
    world.noticed()
    await world.retry(granted.run)
    assert world.noticed().pools
    run = await world.run(granted.run)
    assert (run.state, run.cause, run.message, run.ended_at) == ("Scheduled", None, None, None)
    assert (run.due_at, run.attempt_count) == (world.at(), 1)
    (again,) = await agent.claim()
    assert (again.run, again.attempt, again.epoch) == (granted.run, 2, 2)
    await agent.run_through(again)
    run = await world.run(granted.run)
    assert (run.state, [attempt.state for attempt in run.attempts]) == ("Completed", [end.value, "Completed"])


async def test_completed_and_unfinished_runs_are_not_retried(world: World) -> None:
    agent, granted = await granted_one(world)
    with pytest.raises(Conflict, match="has not ended"):
        await world.retry(granted.run)
    await agent.run_through(granted)
    with pytest.raises(Conflict, match="Completed"):
        await world.retry(granted.run)
    waiting = await world.submit()
    with pytest.raises(Conflict, match="has not ended"):
        await world.retry(waiting)
    assert (await world.story(granted.run)).count("Scheduled/user") == 1


async def test_a_retry_by_hand_gives_the_policy_its_count_again(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 1})
    await agent.run_through(granted, S.FAILED)
    (second,) = await agent.claim()
    await agent.run_through(second, S.FAILED)
    assert await world.state(granted.run) == "Failed"
    await world.retry(granted.run)
    (third,) = await agent.claim()
    await agent.run_through(third, S.FAILED)
    assert await world.state(granted.run) == "Retrying"
    (fourth,) = await agent.claim()
    await agent.run_through(fourth, S.FAILED)
    run = await world.run(granted.run)
    assert (run.state, [attempt.number for attempt in run.attempts]) == ("Failed", [1, 2, 3, 4])


async def test_a_run_cancelled_before_it_began_can_be_retried(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    run_id = await world.submit()
    await world.cancel(run_id)
    await world.retry(run_id)
    (granted,) = await (await world.agent()).claim()
    assert (granted.run, granted.attempt, granted.epoch) == (run_id, 1, 1)


# ---- release


async def test_what_is_given_back_waits_again_at_once_under_a_higher_epoch(world: World) -> None:
    agent, granted = await granted_one(world)
    world.clock.advance(3)
    world.noticed()
    (ack,) = await agent.release(granted)
    assert not ack.stale
    told = world.noticed()
    assert told.pools
    assert told.freed == {agent.id: {granted.run: {}}}
    run = await world.run(granted.run)
    assert (run.state, run.attempts, run.due_at) == ("Scheduled", [], world.at(-3))
    assert (await world.story(granted.run))[-1] == "released/agent"
    (again,) = await (await world.agent("a2")).claim()
    assert (again.run, again.attempt, again.epoch) == (granted.run, 1, 2)


async def test_a_retry_that_is_given_back_is_retrying_again(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 1})
    await agent.run_through(granted, S.FAILED)
    (second,) = await agent.claim()
    await agent.release(second)
    assert await world.state(granted.run) == "Retrying"
    (again,) = await agent.claim()
    assert (again.attempt, again.epoch) == (2, 3)


async def test_what_was_started_or_is_not_held_cannot_be_given_back(world: World) -> None:
    agent, granted = await granted_one(world)
    thief = await world.agent("thief")
    (ack,) = await thief.release(granted)
    assert ack.stale
    (ack,) = await agent.release(granted.model_copy(update={"epoch": 7}))
    assert ack.stale
    await agent.report(granted, S.STARTING)
    (ack,) = await agent.release(granted)
    assert ack.stale
    assert await world.state(granted.run) == "Starting"


async def test_giving_back_twice_changes_nothing_more(world: World) -> None:
    agent, granted = await granted_one(world)
    await agent.release(granted)
    (ack,) = await agent.release(granted)
    assert ack.stale
    assert (await world.story(granted.run)).count("released/agent") == 1


async def test_what_is_given_back_while_it_is_being_cancelled_is_cancelled(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 3})
    await world.cancel(granted.run)
    (ack,) = await agent.release(granted)
    assert not ack.stale
    run = await world.run(granted.run)
    assert (run.state, run.cause, len(run.attempts)) == ("Cancelled", "cancelled", 1)


# ---- sync


async def test_what_agrees_makes_no_difference(world: World) -> None:
    agent, granted = await granted_one(world)
    diff = await agent.difference(held(granted))
    assert not diff


async def test_a_lost_answer_is_told_again_as_it_was(world: World) -> None:
    agent, granted = await granted_one(world)
    for _ in range(2):
        diff = await agent.difference()
        assert diff.assignments == [granted]
        assert (diff.cancel, diff.forget) == ([], [])


async def test_a_lost_answer_is_told_again_to_the_next_session_with_the_session_it_was_granted_to(
    world: World,
) -> None:
    agent, granted = await granted_one(world)
    first = agent.request
    again = await world.agent("a1", identity=first.identity, session=uuid4())
    (told,) = (await again.difference()).assignments
    assert told == granted
    assert told.session == first.session


async def test_what_is_no_longer_its_own_is_to_be_forgotten(world: World) -> None:
    agent, granted = await granted_one(world)
    await agent.release(granted)
    (again,) = await (await world.agent("a2")).claim()
    diff = await agent.difference(held(granted))
    assert diff.forget == [held(granted)]
    assert not diff.assignments
    other = again.model_copy(update={"run": uuid4()})
    diff = await agent.difference(held(other), held(again))
    assert {hold.run for hold in diff.forget} == {other.run, again.run}


async def test_an_older_epoch_of_its_own_run_is_forgotten_and_the_new_one_assigned(world: World) -> None:
    agent, old = await granted_one(world)
    await agent.release(old)
    (new,) = await agent.claim()
    diff = await agent.difference(held(old))
    assert (diff.forget, diff.assignments) == ([held(old)], [new])


async def test_what_it_has_ended_itself_is_finished_and_not_to_be_forgotten(world: World) -> None:
    """Its acknowledgement is under way to it."""
    agent, granted = await granted_one(world)
    await agent.run_through(granted)
    diff = await agent.difference(held(granted))
    assert not diff
    assert diff.finished == {granted.run: {}}


async def test_a_cancellation_is_told_until_it_is_known_and_then_no_more(world: World) -> None:
    agent, granted = await granted_one(world)
    await world.cancel(granted.run)
    for _ in range(2):
        diff = await agent.difference(held(granted))
        assert diff.cancel == [held(granted)]
    assert not await agent.difference(held(granted, stopping=True))


async def test_a_cancellation_of_what_it_never_heard_of_comes_with_the_assignment(world: World) -> None:
    agent, granted = await granted_one(world)
    await world.cancel(granted.run)
    diff = await agent.difference()
    assert (diff.assignments, diff.cancel) == ([granted], [held(granted)])


# ---- who is who


async def test_a_name_is_one_living_agents(world: World) -> None:
    await world.pool()
    await world.agent("a1", host="here")
    with pytest.raises(NameInUse, match="here"):
        await world.agent("a1")
    world.clock.advance(LOST_AFTER + 1)
    await world.agent("a1", host="there")


async def test_a_newer_session_takes_over_and_the_older_is_told(world: World) -> None:
    await world.pool()
    identity = uuid4()

    async def sync(session: int) -> Any:
        from uuid import UUID

        return await world.agent("a1", identity=identity, session=UUID(int=session))

    await sync(5)
    await sync(6)
    with pytest.raises(NameInUse, match="newer session"):
        await sync(5)
    await sync(6)


async def test_an_unknown_pool_is_named(world: World) -> None:
    await world.pool()
    with pytest.raises(NotFound, match="'other'") as caught:
        await world.agent("a1", "main", "other")
    assert "shunter pool create other" in caught.value.remedy
