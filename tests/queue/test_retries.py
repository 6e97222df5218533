"""Retries: how often, after which causes, with which delay, and by another agent where one could not begin."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import RetryPolicy
from shunter_work_pools.contracts.states import LAUNCH_FAILURES, AttemptState, Cause
from shunter_work_pools.queue import retries
from shunter_work_pools.queue.claim import claim, due_in
from shunter_work_pools.queue.drain import drain
from shunter_work_pools.storage.schema import agents, ready
from shunter_work_pools.storage.store import Tx
from tests.queue.test_reap import give_up
from tests.queue.test_report import granted_one
from tests.queue.world import LOST_AFTER, Agent, S, World

_RUN = UUID(int=1)
AVOIDED_FOR = retries.AVOIDED_FOR / 1_000_000


def seconds(policy: RetryPolicy, nth: int, run: UUID = _RUN) -> float:
    """The delay before the nth retry."""
    return retries.delay(policy, run, nth, nth) / 1_000_000


# ---- the policy


def test_a_delay_grows_by_the_backoff_up_to_its_most() -> None:
    policy = RetryPolicy(count=9, delay=2, backoff=3, max_delay=50)
    assert [seconds(policy, nth) for nth in range(1, 6)] == [2, 6, 18, 50, 50]
    assert [seconds(RetryPolicy(count=9, delay=7), nth) for nth in (1, 2, 9)] == [7, 7, 7]
    # A long delay that does not grow is as it was asked for.
    assert seconds(RetryPolicy(count=1, delay=7200), 1) == 7200
    assert seconds(RetryPolicy(count=1000, delay=0, backoff=100), 1000) == 0
    assert seconds(RetryPolicy(count=1000, delay=1, backoff=100, max_delay=10**8), 1000) == 10**8


def test_the_jitter_spreads_and_is_the_same_whenever_it_is_asked() -> None:
    policy = RetryPolicy(count=9, delay=100, jitter=0.5)
    ids = [uuid4() for _ in range(400)]
    found = [seconds(policy, 1, run) for run in ids]
    assert found == [seconds(policy, 1, run) for run in ids]
    assert 100 <= min(found) < 105
    assert 145 < max(found) < 150
    assert seconds(policy, 1, ids[0]) != seconds(policy, 2, ids[0]), "attempts of one run differ, too"


@given(
    delay=st.floats(0, 1e8),
    backoff=st.floats(1, 100),
    max_delay=st.floats(0, 1e8),
    jitter=st.floats(0, 1),
    nth=st.integers(1, 1000),
)
def test_a_delay_is_never_less_than_the_first_nor_more_than_the_most_with_all_jitter(
    delay: float, backoff: float, max_delay: float, jitter: float, nth: int
) -> None:
    policy = RetryPolicy(count=1000, delay=delay, backoff=backoff, max_delay=max_delay, jitter=jitter)
    most = max(delay, max_delay) * (1 + jitter)
    assert delay - 1e-6 <= seconds(policy, nth) <= most * (1 + 1e-9) + 1e-6


@pytest.mark.parametrize(
    ("on", "end", "again"),
    [
        ([], (S.FAILED, "exit_code"), True),
        (["oom"], (S.CRASHED, "oom"), True),
        (["oom"], (S.FAILED, "exit_code"), False),
        (["oom", "timeout"], (S.TIMED_OUT, "timeout"), True),
        ([], (S.CANCELLED, "cancelled"), False),
        ([], (S.COMPLETED, None), False),
    ],
)
def test_a_policy_may_name_the_causes(
    on: list[str], end: tuple[AttemptState, str | None], again: bool
) -> None:
    policy = RetryPolicy(count=1, on=[Cause(cause) for cause in on])
    assert retries.wanted(policy, *end, 1) is again
    assert retries.wanted(policy, *end, 2) is False


def test_what_somebody_asked_for_is_no_cause_to_try_again() -> None:
    for cause in ("cancelled", "skipped", "superseded"):
        with pytest.raises(ValueError, match="somebody wanted it so"):
            RetryPolicy(count=1, on=[Cause(cause)])


# ---- in the queue


async def test_a_run_waits_longer_after_each_failure(world: World) -> None:
    policy = {"count": 3, "delay": 10, "backoff": 2, "max_delay": 25, "jitter": 0.1}
    agent, granted = await granted_one(world, retries=policy)
    for nth, most in ((1, 10), (2, 20), (3, 25)):
        await agent.run_through(granted, S.FAILED)
        run = await world.run(granted.run)
        assert run.due_at is not None
        waits = (run.due_at - world.at()).total_seconds()
        assert most <= waits <= most * 1.1
        (told,) = [event for event in await world.events(granted.run) if event.kind == "Retrying"][nth - 1 :]
        assert told.data is not None
        assert told.data["delay"] == pytest.approx(waits, abs=1e-5)
        assert await agent.claim() == []
        world.clock.advance(waits)
        (granted,) = await agent.claim()
        assert granted.attempt == nth + 1
    await agent.run_through(granted, S.FAILED)
    assert await world.state(granted.run) == "Failed"


async def test_a_cause_that_is_not_named_ends_the_run(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 5, "on": ["oom"]})
    await agent.run_through(granted, S.CRASHED, cause="oom")
    (second,) = await agent.claim()
    await agent.run_through(second, S.FAILED)
    run = await world.run(granted.run)
    assert (run.state, run.cause, run.attempt_count) == ("Failed", "exit_code", 2)


async def test_retried_by_hand_the_policy_counts_from_anew(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 1, "delay": 10, "backoff": 2})
    await agent.run_through(granted, S.FAILED)
    world.clock.advance(10)
    (second,) = await agent.claim()
    await agent.run_through(second, S.FAILED)
    assert await world.state(granted.run) == "Failed"
    await world.retry(granted.run)
    (third,) = await agent.claim()
    await agent.run_through(third, S.FAILED)
    run = await world.run(granted.run)
    assert (run.state, run.due_at) == ("Retrying", world.at(10)), "the first delay once more"


async def test_a_policy_that_names_agent_lost_tries_again_what_was_given_up(world: World) -> None:
    _, granted = await granted_one(world, retries={"count": 1, "on": ["agent_lost"]}, on_lost="crash")
    await give_up(world)
    assert await world.state(granted.run) == "Retrying"
    other = await world.agent("a2")
    (second,) = await other.claim()
    world.clock.advance(LOST_AFTER + 1)
    await give_up(world)
    run = await world.run(second.run)
    assert (run.state, run.cause) == ("Crashed", "agent_lost"), "and not for ever"


# ---- another agent


async def launch_failed(
    world: World, cause: str = "start_failed", **spec: Any
) -> tuple[Agent, Agent, Assignment]:
    """Two agents, the first of which could not launch a run that may be tried again at once."""
    await world.pool()
    await world.deploy(pool="main", **({"retries": {"count": 3}} | spec))
    first, second = await world.agent("a1"), await world.agent("a2")
    await world.submit()
    (granted,) = await first.claim()
    await first.report(granted, S.STARTING, S.CRASHED, cause=cause, log_size=0)
    return first, second, granted


async def avoids(world: World) -> list[int | None]:
    """Whom each waiting run avoids."""
    return await world.store.read(lambda tx: list(tx.conn.scalars(select(ready.c.avoid_agent_id))))


@pytest.mark.parametrize("cause", sorted(LAUNCH_FAILURES))
async def test_what_one_agent_could_not_launch_goes_to_another(world: World, cause: str) -> None:
    first, second, granted = await launch_failed(world, cause)
    assert await first.claim() == []
    (again,) = await second.claim()
    assert (again.run, again.attempt) == (granted.run, 2)
    told = [event for event in await world.events(granted.run) if event.kind == "Retrying"][-1]
    assert told.data == {"delay": 0, "avoids": "a1"}


@pytest.mark.parametrize("cause", ["oom", "signal", "evicted", "keeper_lost"])
async def test_what_had_begun_may_go_to_the_same_agent(world: World, cause: str) -> None:
    first, _, granted = await launch_failed(world, cause)
    assert [one.run for one in await first.claim()] == [granted.run]


async def test_nobody_else_comes_and_the_first_one_gets_it_after_a_minute(world: World) -> None:
    first, _, granted = await launch_failed(world, retries={"count": 3, "delay": 5})
    assert await world.store.read(due_in) == 5
    world.clock.advance(5)
    assert await first.claim() == []
    assert await world.store.read(due_in) == AVOIDED_FOR
    world.clock.advance(AVOIDED_FOR - 0.000001)
    assert await first.claim() == []
    world.clock.advance(0.000001)
    (again,) = await first.claim()
    assert again.run == granted.run


async def test_a_commit_tells_when_the_first_one_may_have_it(world: World) -> None:
    await launch_failed(world)
    told = world.noticed()
    assert told.due_in == AVOIDED_FOR
    assert told.pools, "another one is given it now"


async def test_the_only_agent_gets_it_again_at_once(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 1})
    await agent.report(granted, S.STARTING, S.CRASHED, cause="start_failed", log_size=0)
    assert await avoids(world) == [None]
    assert [one.run for one in await agent.claim()] == [granted.run]


@pytest.mark.parametrize("why", ["lost", "troubles", "draining", "told to drain", "pool", "queue", "tags"])
async def test_an_agent_that_would_not_take_it_is_not_waited_for(world: World, why: str) -> None:
    await world.pool()
    await world.pool("side")
    await world.queue("main", "fast")
    await world.deploy(pool="main", require=["gpu"], retries={"count": 1})
    first = await world.agent("a1", tags=["gpu"])
    about: dict[str, Any] = {
        "troubles": {"troubles": ["its disk is full"]},
        "draining": {"draining": True, "taking": False},
        "queue": {"queues": ["fast"]},
        "tags": {"tags": ["cpu"]},
    }.get(why, {})
    other = await world.agent("a2", "side" if why == "pool" else "main", **({"tags": ["gpu"]} | about))
    if why == "lost":
        world.clock.advance(LOST_AFTER + 1)
        await first.beat()
    if why == "told to drain":
        await world.store.write(lambda tx: drain(tx, "a2", 0))
    await world.submit()
    (granted,) = await first.claim()
    await first.report(granted, S.STARTING, S.CRASHED, cause="source", log_size=0)
    assert await avoids(world) == [None]
    if why == "troubles":  # and well again, it is
        await world.store.write(
            lambda tx: tx.conn.execute(update(agents).where(agents.c.id == other.id).values(troubles=[]))
        )
        (granted,) = await first.claim()
        await first.report(granted, S.CRASHED, cause="source", log_size=0)
        await world.retry(granted.run)
        (granted,) = await first.claim()
        await first.report(granted, S.CRASHED, cause="source", log_size=0)
        assert await avoids(world) == [first.id]


async def test_whether_another_may_launch_them_is_looked_up_once_for_a_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    another_fits = retries.another_fits

    def counted(tx: Tx, *about: Any) -> bool:
        looked.append(about)
        return another_fits(tx, *about)

    monkeypatch.setattr(retries, "another_fits", counted)
    await world.pool()
    await world.deploy(pool="main", retries={"count": 1})
    await world.deploy("demanding", pool="main", require=["gpu"], retries={"count": 1})
    first, _ = await world.agent("a1", tags=["gpu"]), await world.agent("a2")
    await world.submit_many(*["job"] * 20, *["demanding"] * 20)
    granted = await first.claim(40)
    ends = [first.step(one, S.CRASHED, cause="start_failed", log_size=0) for one in granted]
    assert not any(ack.stale for ack in await first.send(*ends))
    assert sorted(map(str, await avoids(world))) == [str(first.id)] * 20 + ["None"] * 20
    assert len(looked) == 2


async def test_given_back_it_still_avoids_the_one_that_could_not_launch_it(world: World) -> None:
    first, second, granted = await launch_failed(world)
    (again,) = await second.claim()
    world.clock.advance(AVOIDED_FOR + 5)  # it was due long ago by then
    await first.beat()
    await second.beat()
    world.noticed()
    await second.release(again)
    assert world.noticed().due_in == AVOIDED_FOR
    assert await first.claim() == []
    (third,) = await second.claim()
    assert (third.run, third.attempt, third.epoch) == (granted.run, 2, 3)


async def test_where_both_offer_it_goes_to_the_other_however_little_room_that_has(world: World) -> None:
    first, second, granted = await launch_failed(world)
    offers = [first.offer(50), second.offer(1)]
    await world.store.write(lambda tx: claim(tx, offers))
    assert ([one.run for one in offers[0].granted], [one.run for one in offers[1].granted]) == (
        [],
        [granted.run],
    )


async def test_what_avoids_an_agent_hides_nothing_behind_it(world: World) -> None:
    """More runs avoid it than the other has room for; those behind them are claimed all the same."""
    await world.pool()
    await world.deploy(pool="main", retries={"count": 3})
    first, second = await world.agent("a1"), await world.agent("a2")
    await world.submit_many(*["job"] * 8)
    failed = await first.claim(8)
    for one in failed:
        await first.report(one, S.STARTING, S.CRASHED, cause="start_failed", log_size=0)
    world.clock.advance(1)
    behind = [run_id for run_id, _ in await world.submit_many(*["job"] * 4)]
    offers = [first.offer(6), second.offer(3)]
    assert await world.store.write(lambda tx: claim(tx, offers)) == 7
    assert sorted(one.run for one in offers[0].granted) == sorted(behind)
    assert {one.run for one in offers[1].granted} < {one.run for one in failed}
    assert len(await avoids(world)) == 5


# ---- by cause


@pytest.mark.parametrize("count", [0, 1])
async def test_what_says_nothing_against_a_run_does_not_count(world: World, count: int) -> None:
    policy = {"count": count, "on": ["exit_code"], "uncounted": ["preempted", "evicted", "node_lost"]}
    agent, granted = await granted_one(world, retries=policy)
    for nth, cause in enumerate(("preempted", "evicted", "node_lost", "preempted"), 1):
        await agent.run_through(granted, S.CRASHED, cause=cause)
        run = await world.run(granted.run)
        assert (run.state, run.due_at) == ("Retrying", world.at(retries.UNCOUNTED_DELAY / 1e6)), (
            "it never comes back at once: nothing else bounds how often"
        )
        assert (await world.events(granted.run))[-1].data == {"delay": 5.0, "uncounted": True}
        world.clock.advance(5)
        (granted,) = await agent.claim()
        assert granted.attempt == nth + 1
        # Given back unstarted it is what it was: a run that is tried again.
        await agent.release(granted)
        assert await world.state(granted.run) == "Retrying"
        (granted,) = await agent.claim()
    for left in range(count, -1, -1):
        await agent.run_through(granted, S.FAILED)
        assert await world.state(granted.run) == ("Retrying" if left else "Failed")
        if left:
            (granted,) = await agent.claim()


async def test_what_is_to_be_cancelled_is_not_tried_again_uncounted(world: World) -> None:
    agent, granted = await granted_one(world, retries={"uncounted": ["preempted"]})
    await agent.report(granted, S.STARTING, S.RUNNING)
    await world.cancel(granted.run)
    await agent.report(granted, S.CRASHED, cause="preempted", log_size=0)
    assert await world.state(granted.run) == "Crashed"


def test_a_longer_delay_of_the_policy_holds_for_what_does_not_count() -> None:
    policy = RetryPolicy(delay=60)
    assert retries.delay(policy, _RUN, 1, 1, forgiven=True) == 60_000_000
    assert retries.delay(RetryPolicy(), _RUN, 1, 1, forgiven=True) == retries.UNCOUNTED_DELAY


MIB = 2**20
RAISED: list[tuple[str, dict[str, Any], dict[str, Any], list[int | None]]] = [
    (
        "of the deployment",
        {"memory_limit": 64 * MIB},
        {},
        [64 * MIB, 128 * MIB, 256 * MIB, 300 * MIB, 300 * MIB],
    ),
    ("of the pool", {}, {"memory": "100MiB"}, [None, 200 * MIB, 300 * MIB, 300 * MIB]),
    ("of the pool, in bytes", {}, {"memory": 100 * MIB}, [None, 200 * MIB, 300 * MIB]),
    ("of the pool, as Kubernetes has it", {}, {"memory": "100Mi"}, [None, 200 * MIB, 300 * MIB]),
    ("none", {}, {}, [None, None, None]),
    ("more than the policy's", {}, {"memory": "1GiB"}, [None, 1024 * MIB, 1024 * MIB]),
]


@pytest.mark.parametrize(
    ("work", "template", "limits"), [one[1:] for one in RAISED], ids=[one[0] for one in RAISED]
)
async def test_what_ran_out_of_memory_gets_more(
    world: World, work: dict[str, Any], template: dict[str, Any], limits: list[int | None]
) -> None:
    kind = "kubernetes" if template.get("memory") == "100Mi" else "docker"
    await world.pool(type=kind, template={"image": "any"} | template)
    more = {"factor": 2, "up_to": 300 * MIB}
    command = {"command": ["/bin/true"]}
    await world.deploy(pool="main", work=command | work, retries={"count": 9, "more_memory": more})
    run_id = await world.submit()
    agent = await world.agent()
    for limit in limits:
        (granted,) = await agent.claim()
        assert granted.work.memory_limit == limit
        (again,) = (await agent.difference()).assignments
        assert again.work.memory_limit == limit, "a lost answer changes nothing"
        await agent.run_through(granted, S.CRASHED, cause="oom")
    raised = [one.memory for one in (await world.run(run_id)).attempts]
    assert raised == [None, *limits[1:]]
    claimed = [event.data for event in await world.events(run_id) if event.kind == "Claimed"]
    assert [data.get("memory") for data in claimed] == raised
    # Another end keeps it as it is; so does the hand of a person.
    (granted,) = await agent.claim()
    last = granted.work.memory_limit
    await agent.run_through(granted, S.FAILED)
    (granted,) = await agent.claim()
    assert granted.work.memory_limit == last


async def test_without_the_policy_memory_stays(world: World) -> None:
    work = {"command": ["/bin/true"], "memory_limit": 64 * MIB}
    agent, granted = await granted_one(world, work=work, retries={"count": 3})
    await agent.run_through(granted, S.CRASHED, cause="oom")
    (granted,) = await agent.claim()
    assert granted.work.memory_limit == 64 * MIB
    assert (await world.run(granted.run)).attempts[-1].memory is None
