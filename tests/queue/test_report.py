"""Reports: each step counted once, under the epoch it was made under, whatever order it comes in."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.states import ATTEMPT_ENDS, CAUSES, AttemptState, cause_fits
from shunter_work_pools.storage.store import SqliteStore
from tests.queue.books import audit
from tests.queue.world import Agent, S, World
from tests.storage.stores import Clock


async def granted_one(world: World, **spec: Any) -> tuple[Agent, Assignment]:
    """An agent with one fresh attempt."""
    await world.pool()
    await world.deploy(pool="main", **spec)
    await world.submit()
    agent = await world.agent()
    (granted,) = await agent.claim()
    return agent, granted


async def test_the_steps_of_a_run_are_shown_as_they_come(world: World) -> None:
    agent, granted = await granted_one(world)
    world.clock.advance(1)
    await agent.report(granted, S.STARTING)
    assert await world.state(granted.run) == "Starting"
    world.clock.advance(1)
    await agent.report(granted, S.RUNNING, pid=4242)
    run = await world.run(granted.run)
    assert (run.state, run.started_at, run.attempts[0].pid) == ("Running", world.at(), 4242)
    world.clock.advance(10)
    world.noticed()
    ack = await agent.report(
        granted,
        S.FAILED,
        age=2.5,
        cause="exit_code",
        exit_code=3,
        message="no",
        max_rss_bytes=5_000_000_000,
        cpu_seconds=1.5,
        log_size=77,
        result={"a": [1]},
    )
    assert (ack.seq, ack.stale, ack.detail) == (3, False, None)
    told = world.noticed()
    assert told.runs == {granted.run}
    assert told.freed == {agent.id: {granted.run: {}}}
    assert len(told.pools) == 1
    run = await world.run(granted.run)
    assert (run.state, run.cause, run.message, run.result) == ("Failed", "exit_code", "no", {"a": [1]})
    assert (run.started_at, run.ended_at) == (world.at(-10), world.at(-2.5))
    (attempt,) = run.attempts
    assert attempt.model_dump(exclude={"claimed_at", "started_at", "ended_at"}, warnings=False) == {
        "number": 1,
        "state": "Failed",
        "cause": "exit_code",
        "message": "no",
        "agent": "a1",
        "epoch": 1,
        "pid": 4242,
        "exit_code": 3,
        "signal": None,
        "max_rss_bytes": 5_000_000_000,
        "cpu_seconds": 1.5,
        "log_size": 77,
        "log_missing": None,
        "log_deleted": False,
        "lost": False,
        "memory": None,
        "note": None,
        "commit": None,
        "progress": None,
    }
    assert await world.story(granted.run) == [
        "Scheduled/user",
        "Claimed/queue",
        "Starting/agent",
        "Running/agent",
        "Failed/agent",
    ]


async def test_all_steps_in_one_batch_are_as_good_as_one_by_one(world: World) -> None:
    agent, granted = await granted_one(world)
    await agent.run_through(granted)
    assert (await world.story(granted.run))[2:] == ["Starting/agent", "Running/agent", "Completed/agent"]
    run = await world.run(granted.run)
    assert (run.state, run.started_at) == ("Completed", world.at())


@pytest.mark.parametrize("end", sorted(ATTEMPT_ENDS))
async def test_every_end_with_every_cause_and_no_other(world: World, end: AttemptState) -> None:
    await world.pool()
    await world.deploy(pool="main")
    agent = await world.agent()
    for cause in CAUSES[end] or [None]:
        run_id = await world.submit()
        (granted,) = await agent.claim()
        more = {} if cause is None else {"cause": cause}
        ack = await agent.report(granted, S.STARTING, S.RUNNING, end, log_size=0, **more)
        assert ack.detail is None
        run = await world.run(run_id)
        assert (run.state, run.cause) == (end.value, cause)
    # An end is an end: with a cause that does not fit it is kept all the same, and the doubt is told.
    wrong = "exit_code" if end is not S.FAILED else "oom"
    run_id = await world.submit()
    (granted,) = await agent.claim()
    await agent.report(granted, end, cause=wrong, log_size=0)
    run = await world.run(run_id)
    assert run.state == end.value
    assert cause_fits(end, run.cause)
    assert f"does not fit: {wrong}" in run.message


async def test_a_report_sent_twice_counts_once(world: World) -> None:
    agent, granted = await granted_one(world)
    starting, running = agent.step(granted, S.STARTING), agent.step(granted, S.RUNNING, pid=1)
    for _ in range(3):
        assert (await agent.send(starting))[0].seq == 1
    assert (await agent.send(starting, running))[0].seq == 2
    assert (await agent.send(starting))[0].seq == 2
    assert (await agent.send(starting, running, running))[0].seq == 2
    end = agent.step(granted, S.COMPLETED, log_size=0)
    for _ in range(3):
        (ack,) = await agent.send(running, end)
        assert (ack.seq, ack.stale) == (3, False)
    (ack,) = await agent.send(starting)
    assert (ack.seq, ack.stale) == (3, False)
    assert (await world.story(granted.run))[2:] == ["Starting/agent", "Running/agent", "Completed/agent"]


async def test_an_older_step_that_comes_late_changes_nothing(world: World) -> None:
    agent, granted = await granted_one(world)
    starting, running = agent.step(granted, S.STARTING), agent.step(granted, S.RUNNING)
    await agent.send(starting, running)
    (ack,) = await agent.send(agent.step(granted, S.STARTING, seq=1))
    assert (ack.seq, ack.stale) == (2, False)
    assert await world.state(granted.run) == "Running"


async def test_a_batch_in_any_order_is_put_in_order(world: World) -> None:
    agent, granted = await granted_one(world)
    steps = [
        agent.step(granted, S.STARTING),
        agent.step(granted, S.RUNNING, pid=7),
        agent.step(granted, S.COMPLETED, log_size=0),
    ]
    await agent.send(*steps[::-1])
    assert (await world.story(granted.run))[2:] == ["Starting/agent", "Running/agent", "Completed/agent"]


async def test_a_report_after_the_end_changes_nothing_and_is_acknowledged(world: World) -> None:
    agent, granted = await granted_one(world)
    end = agent.step(granted, S.COMPLETED, log_size=0)
    after = agent.step(granted, S.FAILED, cause="exit_code")
    (ack,) = await agent.send(end, after)
    assert ack.seq == 2
    assert ack.detail
    assert (await world.run(granted.run)).state == "Completed"
    (ack,) = await agent.send(agent.step(granted, S.FAILED, cause="exit_code"))
    assert ack.stale
    assert (await world.run(granted.run)).state == "Completed"


async def test_a_step_back_is_told_and_hides_nothing_that_comes_after(world: World) -> None:
    """An agent that was restarted may say again that it runs: the end in the same batch must count."""
    agent, granted = await granted_one(world)
    await agent.report(granted, S.STARTING, S.RUNNING)
    (ack,) = await agent.send(
        agent.step(granted, S.STARTING),
        agent.step(granted, S.RUNNING, pid=5),
        agent.step(granted, S.COMPLETED, exit_code=0, log_size=0),
    )
    assert ack.seq == 5
    run = await world.run(granted.run)
    assert (run.state, run.attempts[0].pid) == ("Completed", 5)


async def test_a_step_that_was_skipped_hides_nothing_that_comes_after(world: World) -> None:
    agent, granted = await granted_one(world)
    await agent.send(
        agent.step(granted, S.RUNNING, pid=5), agent.step(granted, S.COMPLETED, exit_code=0, log_size=0)
    )
    assert await world.state(granted.run) == "Completed"


async def test_an_agent_cannot_ask_for_a_cancellation(world: World) -> None:
    agent, granted = await granted_one(world)
    ack = await agent.report(granted, S.CANCELLING)
    assert ack.detail is not None
    assert await world.state(granted.run) == "Claimed"


# ---- epochs


async def test_a_former_epoch_is_stale_and_changes_nothing(world: World) -> None:
    agent, old = await granted_one(world)
    await agent.release(old)
    (new,) = await agent.claim()
    assert (new.run, new.attempt, new.epoch) == (old.run, 1, 2)
    for state, more in ((S.STARTING, {}), (S.FAILED, {"cause": "exit_code"})):
        (ack,) = await agent.send(agent.step(old, state, **more))
        assert ack.stale
    assert await world.state(old.run) == "Claimed"
    await agent.run_through(new)
    run = await world.run(old.run)
    assert (run.state, [attempt.epoch for attempt in run.attempts]) == ("Completed", [2])
    (ack,) = await agent.send(agent.step(old, S.FAILED, cause="exit_code"))
    assert ack.stale


async def test_another_agents_attempt_is_stale(world: World) -> None:
    _, granted = await granted_one(world)
    thief = await world.agent("thief")
    (ack,) = await thief.send(thief.step(granted, S.FAILED, cause="exit_code"))
    assert ack.stale
    assert await world.state(granted.run) == "Claimed"


async def test_unknown_runs_and_attempts_are_stale(world: World) -> None:
    agent, granted = await granted_one(world)
    for wrong in (
        granted.model_copy(update={"run": uuid4()}),
        granted.model_copy(update={"attempt": 2}),
        granted.model_copy(update={"epoch": 2}),
    ):
        (ack,) = await agent.send(agent.step(wrong, S.COMPLETED))
        assert (ack.run, ack.attempt, ack.stale) == (wrong.run, wrong.attempt, True)
    assert await world.state(granted.run) == "Claimed"


async def test_a_batch_of_many_is_answered_one_by_one(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    await world.submit_many(*["job"] * 20)
    agent = await world.agent()
    granted = await agent.claim(20)
    stale = granted[3].model_copy(update={"epoch": 9})
    reports = [agent.step(one, S.COMPLETED, log_size=0) for one in granted] + [agent.step(stale, S.RUNNING)]
    random.Random(7).shuffle(reports)
    acks = await agent.send(*reports)
    assert len(acks) == 21
    assert sum(ack.stale for ack in acks) == 1
    assert {run.state for run in await world.runs()} == {"Completed"}


# ---- what is kept


async def test_the_clock_of_the_agent_does_not_matter(world: World) -> None:
    """Steps lie between the grant and now, however old the agent says they are."""
    agent, granted = await granted_one(world)
    world.clock.advance(10)
    await agent.report(granted, S.STARTING)
    await agent.report(granted, S.RUNNING, age=1e6)
    await agent.report(granted, S.COMPLETED, age=4.0, log_size=0)
    run = await world.run(granted.run)
    assert (run.started_at, run.ended_at) == (world.at(-10), world.at(-4))


async def test_a_result_that_is_too_large_or_no_json_costs_the_result_and_not_the_end(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    agent = await world.agent()
    for result, word in (("x" * 65_536, "65538"), ({"a": float("nan")}, "not JSON")):
        run_id = await world.submit()
        (granted,) = await agent.claim()
        await agent.report(granted, S.COMPLETED, result=result, log_size=0)
        run = await world.run(run_id)
        assert (run.state, run.result) == ("Completed", None)
        assert word in (run.message or "")
    run_id = await world.submit()
    (granted,) = await agent.claim()
    await agent.report(granted, S.COMPLETED, result="x" * 65_534, log_size=0)
    assert len((await world.run(run_id)).result) == 65_534


async def test_a_message_with_a_nul_does_not_hold_up_the_end(world: World) -> None:
    """Postgres keeps no NUL in a text; an agent that sends one must not be refused for ever."""
    agent, granted = await granted_one(world)
    await agent.report(granted, S.STARTING, message="a\0b")
    await agent.report(
        granted, S.CRASHED, cause="start_failed", message="exec: a\0b", signal="SIG\0", log_size=0
    )
    run = await world.run(granted.run)
    assert run.state == "Crashed"
    assert (run.message or "").startswith("exec: a")


async def test_numbers_that_no_column_holds_do_not_break_the_server(world: World) -> None:
    from shunter_work_pools.contracts.errors import BadRequest

    agent, granted = await granted_one(world)
    for field in ("pid", "exit_code", "max_rss_bytes", "log_size"):
        try:
            await agent.send(agent.step(granted, S.COMPLETED, **{field: 2**70}))
        except BadRequest:
            continue
        pytest.fail(f"{field} was taken")
    assert await world.state(granted.run) == "Claimed"


# ---- retries


async def test_a_retry_waits_its_delay_and_then_goes_as_the_next_attempt(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 2, "delay": 30})
    world.clock.advance(5)
    world.noticed()
    await agent.report(granted, S.STARTING, S.RUNNING, S.FAILED, age=1.0, cause="exit_code", log_size=0)
    told = world.noticed()
    assert told.due_in == 29
    run = await world.run(granted.run)
    assert (run.state, run.cause, run.attempt_count, run.ended_at) == ("Retrying", "exit_code", 1, None)
    assert (run.due_at, run.scheduled_at) == (world.at(29), world.at(-5))
    assert await agent.claim() == []
    world.clock.advance(29)
    (second,) = await agent.claim()
    assert (second.run, second.attempt, second.epoch) == (granted.run, 2, 2)
    await agent.run_through(second, S.CRASHED)
    world.clock.advance(30)
    (third,) = await agent.claim()
    await agent.run_through(third, S.TIMED_OUT)
    run = await world.run(granted.run)
    assert (run.state, run.cause, run.ended_at) == ("TimedOut", "timeout", world.at())
    assert [attempt.state for attempt in run.attempts] == ["Failed", "Crashed", "TimedOut"]
    assert (await world.story(granted.run)).count("Retrying/agent") == 2


async def test_a_clock_that_is_set_back_keeps_steps_in_order_and_delays_no_retry(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 1, "delay": 10})
    await agent.report(granted, S.STARTING, S.RUNNING)
    world.clock.advance(-3600)
    await agent.report(granted, S.FAILED, cause="exit_code", log_size=0)
    run = await world.run(granted.run)
    assert run.due_at == world.at(10)
    (first,) = run.attempts
    assert first.claimed_at == first.started_at == first.ended_at
    world.clock.advance(10)
    (second,) = await agent.claim()
    await world.cancel(second.run)
    world.clock.advance(-60)
    await agent.release(second)  # it had not begun, and ends at once
    ended = (await world.run(second.run)).attempts[1]
    assert (ended.state, ended.ended_at) == ("Cancelled", ended.claimed_at)


@pytest.mark.parametrize("end", [S.COMPLETED, S.CANCELLED])
async def test_what_completed_or_was_cancelled_is_not_tried_again(world: World, end: AttemptState) -> None:
    agent, granted = await granted_one(world, retries={"count": 5})
    await agent.run_through(granted, end)
    assert await world.state(granted.run) == end.value


async def test_what_fails_while_it_is_being_cancelled_is_not_tried_again(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 5})
    await agent.report(granted, S.STARTING, S.RUNNING)
    await world.cancel(granted.run)
    await agent.report(granted, S.FAILED, cause="exit_code", log_size=0)
    assert await world.state(granted.run) == "Failed"


async def test_a_retried_run_is_shown_since_its_first_start(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 1})
    await agent.run_through(granted, S.FAILED)
    world.clock.advance(100)
    (second,) = await agent.claim()
    await agent.run_through(second)
    run = await world.run(granted.run)
    assert (run.started_at, run.ended_at) == (world.at(-100), world.at())


# ---- any order


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sending_of_a_run_of_steps_comes_to_the_same(migrated_sqlite: Path, data: st.DataObject) -> None:
    """Batches that overlap, repeat and come late lead where the steps themselves lead."""

    async def check() -> None:
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock()
            path = Path(folder) / "shunter.db"
            shutil.copyfile(migrated_sqlite, path)
            store = SqliteStore(path, clock)
            await store.open()
            try:
                world = World(store, clock)
                agent, granted = await granted_one(world)
                steps = [
                    agent.step(granted, S.STARTING),
                    agent.step(granted, S.RUNNING, pid=1),
                    agent.step(granted, S.RUNNING, pid=2),
                    agent.step(granted, S.FAILED, cause="exit_code", exit_code=1, log_size=0),
                ]
                acked = 0
                while acked < len(steps):
                    # What an agent does: from anywhere it is not sure of, as far as it likes, any number of times.
                    start = data.draw(st.integers(0, acked))
                    end = data.draw(st.integers(acked + 1, len(steps)))
                    for _ in range(data.draw(st.integers(1, 2))):
                        (ack,) = await agent.send(*data.draw(st.permutations(steps[start:end])))
                        assert not ack.stale
                    assert ack.seq == end
                    acked = end
                run = await world.run(granted.run)
                assert (run.state, run.attempts[0].pid) == ("Failed", 2)
                await store.read(audit)
            finally:
                await store.close()

    asyncio.run(check())
