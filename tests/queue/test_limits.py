"""Limits: exact for each kind and several at once, what becomes of runs when one is full, and rates."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, insert, select

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import BackfillRequest
from shunter_work_pools.contracts.errors import BadRequest, Conflict, NotFound
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.queue import backfill, reap
from shunter_work_pools.queue import limits as book
from shunter_work_pools.queue.claim import claim, due_in
from shunter_work_pools.queue.report import report
from shunter_work_pools.queue.submit import submit
from shunter_work_pools.storage.schema import lease_limits, leases, limit_starts, limits, pauses, pools
from shunter_work_pools.storage.store import PostgresStore, Tx
from tests.engines.closing_words import not_applicable
from tests.queue.books import audit, exceeded
from tests.queue.world import GIVE_UP_AFTER, LOST_AFTER, Agent, S, World

KINDS = ("pool", "queue", "deployment", "tag", "limit")


async def limited(world: World, kind: str, most: int | None, **deployment: Any) -> None:
    """A pool ``main`` and a deployment ``job`` under a limit of one kind."""
    await world.pool(limit=most if kind == "pool" else None)
    await world.queue("main", "line", limit=most if kind == "queue" else None)
    if kind == "tag":
        await world.limit(tag="t", max=most)
    elif kind == "limit":
        await world.limit(max=most)
    own = {"max_active": most} if kind == "deployment" else {}
    names = {"limits": ["few"]} if kind == "limit" else {}
    await world.deploy(pool="main", queue="line", tags=["t"], **own, **names, **deployment)


async def raise_to(world: World, kind: str, most: int | None) -> None:
    """Change the limit that :func:`limited` made."""
    if kind == "pool":
        await world.patch_pool("main", limit=most)
    elif kind == "queue":
        await world.patch_queue("main", "line", limit=most)
    elif kind == "deployment":
        await world.deploy(pool="main", queue="line", tags=["t"], max_active=most)
    else:
        await world.patch_limit(max=most)


async def ids_of(world: World, *names: str) -> set[int]:
    """Ids of pools."""
    statement = select(pools.c.id).where(pools.c.name.in_(names))
    return set(await world.store.read(lambda tx: list(tx.conn.scalars(statement))))


# ---- exact


@pytest.mark.parametrize("kind_of_limit", KINDS)
async def test_no_more_than_the_limit_and_no_fewer(world: World, kind_of_limit: str) -> None:
    await limited(world, kind_of_limit, 3)
    await world.submit_many(*["job"] * 9)
    agents = [await world.agent(f"a{number}") for number in range(2)]
    first = await agents[0].claim(2)
    assert len(first) == 2
    assert len(await agents[1].claim(9)) == 1
    assert await agents[0].claim(9) == []
    # Each place that becomes free is filled, however it does.
    await agents[0].run_through(first[0])
    (second,) = await agents[1].claim(9)
    await agents[1].release(second)
    (third,) = await agents[0].claim(9)
    assert third.run == second.run
    await world.cancel(third.run)
    assert await agents[1].claim(9) == []  # it runs until its agent says otherwise
    await agents[0].report(third, S.CANCELLED, cause="cancelled")
    (fourth,) = await agents[1].claim(9)
    await agents[1].run_through(fourth, S.FAILED)
    assert len(await agents[0].claim(9)) == 1
    assert await agents[1].claim(9) == []
    await raise_to(world, kind_of_limit, 5)
    assert len(await agents[1].claim(9)) == 2
    await raise_to(world, kind_of_limit, None if kind_of_limit not in ("tag", "limit") else 100)
    assert len(await agents[1].claim(9)) == 1


@pytest.mark.parametrize("kind_of_limit", KINDS)
async def test_a_limit_of_nothing_lets_nothing_run(world: World, kind_of_limit: str) -> None:
    await limited(world, kind_of_limit, 0)
    await world.submit_many(*["job"] * 3)
    agent = await world.agent()
    assert await agent.claim(9) == []
    await raise_to(world, kind_of_limit, 1)
    assert len(await agent.claim(9)) == 1


@pytest.mark.parametrize("kind_of_limit", KINDS)
async def test_a_limit_below_what_is_active_stops_nothing_and_starts_nothing(
    world: World, kind_of_limit: str
) -> None:
    await limited(world, kind_of_limit, 5)
    await world.submit_many(*["job"] * 9)
    agent = await world.agent()
    granted = await agent.claim(9)
    assert len(granted) == 5
    await raise_to(world, kind_of_limit, 2)
    await world.act_when_full()
    diff = await agent.difference()
    assert (len(diff.assignments), diff.cancel) == (5, [])
    for one in granted[:3]:
        assert await agent.claim(9) == []
        await agent.run_through(one)
    assert await agent.claim(9) == []
    await agent.run_through(granted[3])
    assert len(await agent.claim(9)) == 1


async def test_several_limits_hold_at_once(world: World) -> None:
    """The tightest of them counts, for each deployment its own."""
    await world.pool(limit=6)
    await world.limit("wide", max=5)
    await world.limit("of-tag", tag="heavy", max=3)
    await world.deploy("a", pool="main", limits=["wide"], tags=["heavy"], max_active=2)
    await world.deploy("b", pool="main", limits=["wide"], tags=["heavy"])
    await world.deploy("c", pool="main", limits=["wide"])
    await world.deploy("d", pool="main")
    await world.submit_many(*["a"] * 5, *["b"] * 5, *["c"] * 5, *["d"] * 5)
    agent = await world.agent()
    found = [one.deployment for _ in range(20) for one in await agent.claim(1)]
    assert len(found) == 6
    assert found.count("a") <= 2
    assert found.count("a") + found.count("b") <= 3
    assert found.count("d") >= 1
    assert sum(found.count(name) for name in "abc") <= 5


async def test_one_claim_for_many_agents_counts_across_deployments_and_pools(world: World) -> None:
    await world.limit(max=4)
    for pool in "pqr":
        await world.pool(pool)
        await world.deploy(f"in-{pool}", pool=pool, limits=["few"])
        await world.submit_many(*[f"in-{pool}"] * 3)
    agents = [await world.agent(f"a{pool}", pool) for pool in "pqr"]
    offers = [agent.offer(3) for agent in agents]
    assert await world.store.write(lambda tx: claim(tx, offers)) == 4
    assert [await agent.claim(3) for agent in agents] == [[], [], []]
    shown = await world.shown_limit()
    assert (shown.active, shown.waiting, shown.deployments) == (4, 5, ["in-p", "in-q", "in-r"])


async def test_what_a_full_limit_blocks_keeps_nobody_waiting(world: World) -> None:
    await world.pool()
    await world.limit(max=1)
    await world.deploy("full", pool="main", limits=["few"], priority=9)
    await world.deploy("free", pool="main")
    await world.submit_many(*["full"] * 200, *["free"] * 3)
    agent = await world.agent()
    assert [one.deployment for one in await agent.claim(10)] == ["full", *["free"] * 3]


# ---- a place that becomes free is filled at once, in whichever pool somebody waits for it


@pytest.mark.parametrize(
    "how", ["ended", "retried", "released", "cancelled", "given up", "raised", "deleted"]
)
@pytest.mark.parametrize("by_tag", [False, True])
async def test_the_pools_of_those_that_wait_are_told(world: World, how: str, by_tag: bool) -> None:
    for pool in "pqr":
        await world.pool(pool)
    await world.limit(max=1, tag="t" if by_tag else None)
    more: dict[str, Any] = {"tags": ["t"]} if by_tag else {"limits": ["few"]}
    await world.deploy("a", pool="p", retries={"count": 1, "delay": 1000}, **more)
    await world.deploy("b", pool="q", **more)
    await world.deploy("elsewhere", pool="r", limits=[])
    await world.submit("a")
    agent = await world.agent("a1", "p")
    other = await world.agent("a2", "q")
    (granted,) = await agent.claim()
    await world.submit("b")
    await world.submit("elsewhere")
    assert await other.claim() == []
    world.noticed()
    if how == "ended":
        await agent.run_through(granted)
    elif how == "retried":
        await agent.run_through(granted, S.FAILED)
    elif how == "released":
        await agent.release(granted)
    elif how == "cancelled":
        await world.cancel(granted.run)
        await agent.report(granted, S.CANCELLED, cause="cancelled")
    elif how == "given up":
        world.clock.advance(GIVE_UP_AFTER + 1)
        await other.beat()
        await world.reap()
    elif how == "raised":
        await world.patch_limit(max=2)
    elif by_tag:
        await world.delete_limit()
    else:
        await world.deploy("a", pool="p")
        await world.deploy("b", pool="q")
        world.noticed()
        await world.delete_limit()
    told = world.noticed().pools
    assert told & await ids_of(world, "q", "r") == await ids_of(world, "q")
    assert len(await other.claim()) == 1


async def test_places_of_a_deployment_are_told_of_in_all_its_pools(world: World) -> None:
    """Runs of an earlier revision wait where that one said."""
    for pool in "pq":
        await world.pool(pool)
    await world.deploy(pool="q", max_active=1)
    await world.submit()
    await world.deploy(pool="p", max_active=1)
    await world.submit()
    agent = await world.agent("a1", "p")
    (granted,) = await agent.claim()
    other = await world.agent("a2", "q")
    assert await other.claim() == []
    world.noticed()
    await agent.run_through(granted)
    assert world.noticed().pools >= await ids_of(world, "q")
    (granted,) = await other.claim()
    await world.submit()
    world.noticed()
    await world.deploy(pool="p", max_active=2)
    assert world.noticed().pools >= await ids_of(world, "p")
    assert len(await agent.claim()) == 1


# ---- rates


async def test_a_rate_is_a_sliding_window(world: World) -> None:
    """At most two starts within any minute, wherever one begins to count."""
    await world.pool()
    await world.limit(rate={"count": 2, "seconds": 60})
    await world.deploy(pool="main", limits=["few"])
    await world.submit_many(*["job"] * 9)
    agent = await world.agent()
    assert len(await agent.claim(1)) == 1
    assert await world.store.read(due_in) is None
    world.clock.advance(20)
    assert len(await agent.claim(9)) == 1
    assert await agent.claim(9) == []
    assert await world.store.read(due_in) == 40
    assert (await world.shown_limit()).full_until == world.at(40)
    world.clock.advance(39.999999)
    assert await agent.claim(9) == []
    world.clock.advance(0.000001)
    assert len(await agent.claim(9)) == 1
    assert await world.store.read(due_in) == 20
    world.clock.advance(20)
    assert len(await agent.claim(9)) == 1
    assert await agent.claim(9) == []
    world.clock.advance(1000)
    assert len(await agent.claim(9)) == 2
    assert await agent.claim(9) == []


async def test_a_rate_tells_when_to_look_again(world: World) -> None:
    await world.pool()
    await world.limit(rate={"count": 1, "seconds": 60})
    await world.deploy(pool="main", limits=["few"])
    await world.submit_many("job", "job")
    agent = await world.agent()
    world.noticed()
    await agent.claim()
    assert world.noticed().due_in == 60
    world.clock.advance(10)
    # A rate that is higher now allows the next start sooner, at once, or later than was known.
    await world.patch_limit(rate={"count": 1, "seconds": 15})
    assert world.noticed().due_in == 5
    assert await world.store.read(due_in) == 5
    await world.patch_limit(rate={"count": 1, "seconds": 10})
    assert world.noticed().pools == await ids_of(world, "main")
    assert await world.store.read(due_in) is None
    await world.patch_limit(rate={"count": 1, "seconds": 100})
    assert await world.store.read(due_in) == 90
    assert await agent.claim() == []
    await world.patch_limit(rate=None, max=5)
    assert await world.store.read(due_in) is None
    assert len(await agent.claim()) == 1


async def test_a_rate_that_is_lowered_counts_the_starts_there_were(world: World) -> None:
    await world.pool()
    await world.limit(rate={"count": 5, "seconds": 60})
    await world.deploy(pool="main", limits=["few"])
    await world.submit_many(*["job"] * 20)
    agent = await world.agent()
    for _ in range(4):
        assert len(await agent.claim(1)) == 1
        world.clock.advance(10)
    await world.patch_limit(rate={"count": 2, "seconds": 60})
    # Started 40, 30, 20 and 10 s ago: the first moment with less than two within a minute.
    assert await world.store.read(due_in) == 40
    world.clock.advance(39.999999)
    assert await agent.claim(9) == []
    world.clock.advance(0.000001)
    assert len(await agent.claim(9)) == 1


async def test_every_attempt_is_a_start(world: World) -> None:
    await world.pool()
    await world.limit(tag="t", rate={"count": 2, "seconds": 60})
    await world.deploy(pool="main", tags=["t"], retries={"count": 5})
    await world.submit()
    agent = await world.agent()
    for _ in range(2):
        (granted,) = await agent.claim()
        world.clock.advance(1)
        await agent.run_through(granted, S.FAILED)
    assert await agent.claim() == []
    world.clock.advance(58)
    (granted,) = await agent.claim()
    assert granted.attempt == 3


async def test_starts_that_no_longer_count_are_forgotten(world: World) -> None:
    await world.pool()
    await world.limit(rate={"count": 3, "seconds": 60})
    await world.deploy(pool="main", limits=["few"])
    await world.submit_many(*["job"] * 30)
    agent = await world.agent()
    for _ in range(10):
        assert len(await agent.claim(9)) == 3
        world.clock.advance(60)
    kept = await world.store.read(lambda tx: tx.conn.execute(select(limit_starts)).all())
    assert len(kept) == 3


async def test_a_rate_and_a_max_hold_together(world: World) -> None:
    await world.pool()
    await world.limit(max=3, rate={"count": 2, "seconds": 60})
    await world.deploy(pool="main", limits=["few"])
    await world.submit_many(*["job"] * 9)
    agent = await world.agent()
    assert len(await agent.claim(9)) == 2
    world.clock.advance(60)
    (third,) = await agent.claim(9)
    world.clock.advance(1)
    await agent.run_through(third)
    assert len(await agent.claim(9)) == 1


# ---- made, changed, deleted


async def test_a_tag_limit_holds_for_those_that_wait_and_those_that_run(world: World) -> None:
    await world.pool()
    await world.queue("main", "other")
    await world.deploy("a", pool="main", tags=["t"], priority=3)
    await world.deploy("b", pool="main", queue="other")
    await world.submit_many(*["a"] * 4, *["b"] * 2)
    carried = await world.submit("b", tags=["t"])
    later = await world.submit("a", scheduled_at=world.at(60))
    agent = await world.agent()
    first = [one for _ in range(2) for one in await agent.claim(1)]
    assert [one.deployment for one in first] == ["a", "a"]
    await world.limit(tag="t", max=3)
    shown = await world.shown_limit()
    assert (shown.active, shown.waiting) == (2, 4)
    await world.store.read(audit)
    granted = await agent.claim(9)
    assert sorted(one.deployment for one in granted) == ["a", "b", "b"]
    await world.submit_many("a")
    assert await agent.claim(9) == []
    assert (await world.shown_limit()).waiting == 4
    for one in [*first, *granted]:
        await agent.run_through(one)
    assert {one.run for one in await agent.claim(9)} >= {carried}
    world.clock.advance(60)
    assert await world.state(later) == "Scheduled"


async def test_a_tag_limit_that_was_made_too_low_lets_what_runs_end(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", tags=["t"])
    await world.submit_many(*["job"] * 6)
    agent = await world.agent()
    granted = await agent.claim(4)
    await world.limit(tag="t", max=2)
    for one in granted[:2]:
        assert await agent.claim(9) == []
        await agent.run_through(one)
    assert await agent.claim(9) == []
    await agent.release(granted[2])
    (again,) = await agent.claim(9)
    assert again.run == granted[2].run


async def test_two_tag_limits_and_a_named_one_over_one_run(world: World) -> None:
    await world.pool()
    await world.limit("named", max=9)
    await world.deploy(pool="main", tags=["t", "u"], limits=["named"])
    await world.submit_many(*["job"] * 5)
    await world.limit("t-few", tag="t", max=2)
    await world.limit("u-few", tag="u", max=1)
    await world.limit("t-more", tag="t", max=3)
    agent = await world.agent()
    (granted,) = await agent.claim(9)
    rows = await world.store.read(lambda tx: tx.conn.execute(select(lease_limits)).all())
    assert len(rows) == 4
    await world.delete_limit("u-few")
    assert len(await agent.claim(9)) == 1
    await world.delete_limit("t-few")
    assert len(await agent.claim(9)) == 1
    await world.delete_limit("t-more")
    assert len(await agent.claim(9)) == 2
    await agent.run_through(granted)


async def test_one_that_is_made_anew_holds_for_the_runs_whose_revision_names_it(world: World) -> None:
    await world.pool()
    await world.limit(max=1)
    await world.deploy(pool="main", limits=["few"])
    await world.submit_many(*["job"] * 4)
    agent = await world.agent()
    (first,) = await agent.claim(9)
    with pytest.raises(Conflict, match="named by deployment 'job'"):
        await world.delete_limit()
    await world.deploy(pool="main")
    await world.delete_limit()
    assert len(await agent.claim(1)) == 1
    await world.limit(max=0)
    await world.submit()
    assert len(await agent.claim(9)) == 1  # the other two wait, and two that are active count
    await world.deploy(pool="main", limits=["few"])
    await world.submit()
    assert await agent.claim(9) == []
    await agent.run_through(first)


async def test_a_limit_of_a_tag_is_made_for_what_waits_under_one_that_is_gone(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", tags=["t"])
    await world.limit("gone", tag="t", max=1)
    await world.submit_many(*["job"] * 3)
    await world.delete_limit("gone")
    await world.limit(tag="t", max=2)
    assert len(await (await world.agent()).claim(9)) == 2


async def test_a_run_stays_under_what_its_revision_names(world: World) -> None:
    await world.pool()
    await world.limit("old", max=1)
    await world.limit("new", max=2)
    await world.deploy(pool="main", limits=["old"], retries={"count": 3})
    await world.submit_many(*["job"] * 3)
    agent = await world.agent()
    (first,) = await agent.claim(9)
    await world.deploy(pool="main", limits=["new"], retries={"count": 3})
    await world.submit_many(*["job"] * 3)
    granted = await agent.claim(9)
    assert [one.revision for one in granted] == [2, 2]
    await agent.run_through(first, S.FAILED)
    (again,) = await agent.claim(9)
    assert again.revision == 1
    assert [(await world.shown_limit(name)).active for name in ("old", "new")] == [1, 2]


async def test_runs_come_back_under_their_limits(world: World) -> None:
    """Retried by hand, by policy, given back, and after a limit was made meanwhile."""
    await world.pool()
    await world.deploy(pool="main", tags=["t"])
    runs = [run for run, _ in await world.submit_many(*["job"] * 3)]
    agent = await world.agent()
    granted = await agent.claim(9)
    await agent.run_through(granted[0], S.FAILED)
    await world.limit(tag="t", max=1)
    await agent.release(granted[1])
    assert await agent.claim(9) == []
    await world.cancel(granted[1].run)
    await agent.run_through(granted[2], S.CRASHED)
    for run in runs:
        await world.retry(run)
    await world.store.read(audit)
    assert len(await agent.claim(9)) == 1
    assert (await world.shown_limit()).waiting == 2


async def test_a_run_without_a_place_comes_under_its_limits_when_it_has_one(world: World) -> None:
    await world.limit(tag="t", max=1)
    await world.deploy(tags=["t", "gpu"])
    await world.submit_many("job", "job")
    assert (await world.shown_limit()).waiting == 0
    await world.limit("second", tag="gpu", max=5)
    await world.pool(match=["gpu"])
    assert (await world.shown_limit()).waiting == 2
    assert len(await (await world.agent()).claim(9)) == 1
    assert (await world.shown_limit("second")).active == 1


async def test_refusals(world: World) -> None:
    await world.pool()
    await world.limit(max=1)
    with pytest.raises(Conflict, match="there is a limit 'few' already"):
        await world.limit(tag="t", max=1)
    with pytest.raises(NotFound) as missing:
        await world.patch_limit("fwe", max=2)
    assert missing.value.remedy == "Did you mean 'few'?"
    with pytest.raises(NotFound):
        await world.delete_limit("nothing-like-it")
    with pytest.raises(BadRequest, match="limit 'few': a limit needs max, rate or both"):
        await world.patch_limit(max=None)
    with pytest.raises(BadRequest, match="cancel_new needs a max of at least 1"):
        await world.patch_limit(max=0, strategy="cancel_new")
    with pytest.raises(BadRequest, match="strategy cannot be null"):
        await world.patch_limit(strategy=None)
    with pytest.raises(BadRequest) as unknown:
        await world.deploy(pool="main", limits=["fwe"])
    assert unknown.value.remedy == "Did you mean 'few'?"
    assert unknown.value.extra["faults"][0]["loc"] == ["limits", 0]
    await world.limit("of-tag", tag="t", max=1)
    with pytest.raises(BadRequest, match="no limit 'of-tag' that deployments can name"):
        await world.deploy(pool="main", limits=["few", "of-tag"])
    shown = await world.shown_limit()
    assert (shown.max, shown.rate, shown.strategy, shown.active) == (1, None, "enqueue", 0)


# ---- what becomes of runs when one is full

ACTING = ("deployment", "tag", "limit")


async def acting(world: World, kind: str, most: int, strategy: str, **more: Any) -> str:
    """A deployment ``job`` under a limit that does not let runs wait; what the limit is called."""
    await world.pool()
    await world.queue("main", "line")
    if kind == "deployment":
        more |= {"max_active": most, "when_full": strategy}
    else:
        await world.limit(max=most, strategy=strategy, tag="t" if kind == "tag" else None)
    if kind == "limit":
        more["limits"] = ["few"]
    await world.deploy(pool="main", queue="line", tags=["t"], **more)
    return "deployment job" if kind == "deployment" else "limit few"


async def ends(world: World, *runs: UUID) -> list[tuple[str, str | None]]:
    """State and cause of each."""
    found = [await world.run(run) for run in runs]
    return [(run.state, run.cause) for run in found]


@pytest.mark.parametrize("kind_of_limit", ACTING)
async def test_cancel_new_ends_what_is_due_while_it_is_full(world: World, kind_of_limit: str) -> None:
    named = await acting(world, kind_of_limit, 2, "cancel_new")
    assert await world.store.read(book.any_acts)
    runs = [run for run, _ in await world.submit_many(*["job"] * 3)]
    agent = await world.agent()
    assert await world.act_when_full() == 1
    assert await ends(world, *runs) == [("Scheduled", None)] * 3  # there are places yet
    granted = await agent.claim(9)
    world.noticed()
    await world.act_when_full()
    (left,) = set(runs) - {one.run for one in granted}
    assert await ends(world, left) == [("Cancelled", "skipped")]
    assert (await world.run(left)).message == f"{named} was full when it was due"
    assert world.noticed().runs == {left}
    assert await world.story(left) == ["Scheduled/user", "Cancelled/queue"]
    later = await world.submit(scheduled_at=world.at(60))
    await world.act_when_full()
    assert await world.state(later) == "Scheduled"
    await agent.run_through(granted[0])
    world.clock.advance(60)
    await world.act_when_full()
    assert [one.run for one in await agent.claim(9)] == [later]


async def test_cancel_new_leaves_alone_what_has_begun(world: World) -> None:
    """One that waits for its next attempt is not new."""
    await acting(world, "limit", 1, "cancel_new", retries={"count": 1})
    first = await world.submit()
    agent = await world.agent()
    (granted,) = await agent.claim()
    world.clock.advance(1)
    await agent.run_through(granted, S.FAILED)
    world.clock.advance(1)
    second = await world.submit()
    assert [one.run for one in await agent.claim(1)] == [first]
    await world.act_when_full()
    assert await ends(world, second) == [("Cancelled", "skipped")]
    third = await world.submit()
    (granted,) = (await agent.difference()).assignments
    await agent.run_through(granted, S.CRASHED, cause="oom")
    assert await world.state(first) == "Crashed"
    (granted,) = await agent.claim()
    await world.retry(first)
    await world.act_when_full()
    assert await ends(world, third, first) == [("Claimed", None), ("Cancelled", "skipped")]


async def test_cancel_new_lets_what_waits_for_its_next_attempt_wait(world: World) -> None:
    await acting(world, "limit", 1, "cancel_new", retries={"count": 1})
    first = await world.submit()
    agent = await world.agent()
    (granted,) = await agent.claim()
    await agent.run_through(granted, S.FAILED)
    world.clock.advance(1)
    second = await world.submit(priority=5)
    (granted,) = await agent.claim(1)
    assert granted.run == second
    await world.act_when_full()
    assert await ends(world, first, second) == [("Retrying", "exit_code"), ("Claimed", None)]


@pytest.mark.parametrize("kind_of_limit", ACTING)
async def test_cancel_running_lets_the_newest_win(world: World, kind_of_limit: str) -> None:
    named = await acting(world, kind_of_limit, 2, "cancel_running")
    oldest, older = [run for run, _ in await world.submit_many("job", "job")]
    agent = await world.agent()
    granted = {one.run: one for one in await agent.claim(9)}
    world.clock.advance(1)
    beaten, newest = [run for run, _ in await world.submit_many("job", "job", "job")][:2]
    world.clock.advance(1)
    newest = await world.submit()
    world.noticed()
    await world.act_when_full()
    # Of five the two newest win: one of three that came together, and the last.
    waiting = [run for run in await world.runs() if run.state == "Scheduled"]
    assert len(waiting) == 2
    assert newest in {run.id for run in waiting}
    sentence = f"a newer run took its place: {named} is full"
    found = await world.run(beaten)
    assert (found.state, found.cause, found.message) == ("Cancelled", "superseded", sentence)
    assert world.noticed().agents == {agent.id}
    diff = await agent.difference()
    assert {hold.run for hold in diff.cancel} == {oldest, older}
    assert await agent.claim(9) == []  # their places are theirs until they have ended
    assert await world.act_when_full() == 1
    for run in (oldest, older):
        await agent.report(granted[run], S.CANCELLED, cause="cancelled", log_size=0)
    for run in (oldest, older):
        found = await world.run(run)
        assert (found.state, found.cause, found.message) == ("Cancelled", "superseded", sentence)
        assert found.attempts[0].cause == "superseded"
    assert {one.run for one in await agent.claim(9)} == {run.id for run in waiting}


async def test_one_that_ends_by_itself_while_it_is_stopped_keeps_its_end(world: World) -> None:
    await acting(world, "limit", 1, "cancel_running", retries={"count": 3})
    first = await world.submit()
    agent = await world.agent()
    (granted,) = await agent.claim()
    world.clock.advance(1)
    await world.submit()
    await world.act_when_full()
    await agent.run_through(granted, S.COMPLETED)
    assert await ends(world, first) == [("Completed", None)]
    (granted,) = await agent.claim()
    world.clock.advance(1)
    await world.submit()
    await world.act_when_full()
    await agent.run_through(granted, S.FAILED)
    assert await ends(world, granted.run) == [("Failed", "exit_code")]  # and is not tried again


@pytest.mark.parametrize("how", ["released", "given up"])
async def test_one_that_is_stopped_may_end_without_its_agent(world: World, how: str) -> None:
    await acting(world, "limit", 1, "cancel_running", on_lost="retry")
    first = await world.submit()
    agent = await world.agent()
    (granted,) = await agent.claim()
    world.clock.advance(1)
    await world.submit()
    await world.act_when_full()
    if how == "released":
        await agent.release(granted)
    else:
        world.clock.advance(GIVE_UP_AFTER + 1)
        await world.reap()
    assert await ends(world, first) == [("Cancelled", "superseded")]
    assert "limit few is full" in str((await world.run(first)).message)
    assert len(await agent.claim()) == 1


async def test_one_that_waits_for_its_next_attempt_is_superseded_too(world: World) -> None:
    await acting(world, "limit", 1, "cancel_running", retries={"count": 3})
    old = await world.submit()
    agent = await world.agent()
    (granted,) = await agent.claim()
    world.clock.advance(1)
    new = await world.submit()
    await agent.run_through(granted, S.FAILED)
    await world.cancel(old)
    await world.retry(old)
    world.clock.advance(1)
    await world.act_when_full()  # nothing is active: it is not full
    assert [state for state, _ in await ends(world, old, new)] == ["Scheduled", "Scheduled"]
    while (granted,) != (old,) and await world.state(new) == "Scheduled":
        (granted,) = await agent.claim()
        await world.act_when_full()
        if granted.run == old:
            await agent.report(granted, S.CANCELLED, cause="cancelled", log_size=0)
    assert await ends(world, old) == [("Cancelled", "superseded")]
    assert await world.state(new) == "Claimed"


async def test_what_was_made_for_later_is_new_when_it_is_due(world: World) -> None:
    """Which is newer is a matter of when they were to start, not of when somebody typed."""
    await acting(world, "limit", 1, "cancel_running")
    planned = await world.submit(scheduled_at=world.at(60))
    world.clock.advance(10)
    between = await world.submit()
    agent = await world.agent()
    (granted,) = await agent.claim()
    assert granted.run == between
    world.clock.advance(50)
    await world.act_when_full()
    assert [hold.run for hold in (await agent.difference()).cancel] == [between]
    assert await world.state(planned) == "Scheduled"


@pytest.mark.parametrize("strategy", ["cancel_new", "cancel_running"])
@pytest.mark.parametrize("what", ["deployment", "queue", "pool", "server", "unplaced"])
async def test_what_is_held_is_not_due(world: World, strategy: str, what: str) -> None:
    await acting(world, "limit", 1, strategy)
    agent = await world.agent()
    await world.submit()
    (granted,) = await agent.claim()
    world.clock.advance(1)
    waiting = await world.submit()
    if what == "deployment":
        await world.pause_deployment()
    elif what == "queue":
        await world.patch_queue("main", "line", paused=True)
    elif what == "pool":
        await world.patch_pool("main", paused=True)
    elif what == "server":
        row = {"kind": "server", "ref_id": 0, "by": "me", "reason": "", "at": world.clock.now}
        await world.store.write(lambda tx: tx.conn.execute(insert(pauses).values(row)))
    else:
        await world.cancel(waiting)
        await world.deploy("lost", tags=["nowhere"], limits=["few"])
        waiting = await world.submit("lost")
    await world.act_when_full()
    assert await world.state(waiting) == "Scheduled"
    assert (await agent.difference()).cancel == []
    await agent.run_through(granted)


@pytest.mark.parametrize("strategy", ["cancel_new", "cancel_running"])
async def test_more_runs_than_one_transaction_ends(
    world: World, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "BATCH", 20)
    await acting(world, "deployment", 3, strategy)
    agent = await world.agent()
    await world.submit_many(*["job"] * 3)
    granted = await agent.claim(9)
    made = []
    for _ in range(11):
        world.clock.advance(1)
        made += [run for run, _ in await world.submit_many(*["job"] * 9)]
    turns = await world.act_when_full()
    assert turns <= 7
    found = [run for run in made if await world.state(run) == "Scheduled"]
    assert len(await agent.claim(9)) == 0
    for one in granted:
        await agent.report(one, S.CANCELLED, cause="cancelled", log_size=0)
    if strategy == "cancel_new":
        assert found == []
    else:
        assert len(found) == 3
        assert set(found) <= set(made[-9:])
        assert {one.run for one in await agent.claim(9)} == set(found)


async def test_a_limit_that_begins_to_act_acts_on_what_waits(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", max_active=1)
    await world.limit(tag="t", max=1)
    await world.submit_many("job", "job")
    assert not await world.store.read(book.any_acts)
    agent = await world.agent()
    (granted,) = await agent.claim(9)
    world.noticed()
    await world.deploy(pool="main", max_active=1, when_full="cancel_new")
    assert world.noticed().limits
    assert await world.store.read(book.any_acts)
    await world.act_when_full()
    assert sorted(run.state for run in await world.runs()) == ["Cancelled", "Claimed"]
    await world.deploy(pool="main", max_active=1)
    assert not await world.store.read(book.any_acts)
    await world.patch_limit(strategy="cancel_running")
    assert world.noticed().limits
    assert await world.store.read(book.any_acts)
    await agent.run_through(granted)


async def test_cancel_running_with_places_left_stops_nobody(world: World) -> None:
    await acting(world, "limit", 3, "cancel_running")
    await world.submit_many("job", "job")
    agent = await world.agent()
    await agent.claim(9)
    await world.submit_many(*["job"])
    await world.act_when_full()
    assert (await agent.difference()).cancel == []
    assert len(await agent.claim(9)) == 1
    await world.patch_limit(max=1)
    await world.act_when_full()  # lowered by somebody who lets the newest win
    assert len((await agent.difference()).cancel) == 2


# ---- many at once, on Postgres


async def _work(agent: Agent, store: PostgresStore, chance: random.Random, over: list[Any]) -> None:
    """Claims, ends and gives back, each transaction on a connection of its own."""
    held: list[Assignment] = []
    for _ in range(25):
        offer = agent.offer(3)
        await store.write(lambda tx, offer=offer: claim(tx, [offer]))
        over.append(await store.read(exceeded))
        held += offer.granted
        chance.shuffle(held)
        while len(held) > chance.randrange(4):
            one = held.pop()
            end = chance.choice([S.COMPLETED, S.FAILED])
            more = {"cause": "exit_code"} if end is S.FAILED else {}
            step = agent.step(one, end, log_size=0, **more)
            await store.write(lambda tx, step=step: report(tx, agent.id, [step], LOST_AFTER))
    for one in held:
        await agent.release(one)


async def test_no_run_slips_by_a_limit_that_is_made_meanwhile(world: World, kind: str) -> None:
    """Claims, reports, submits and the making and deleting of limits, all at once: none waits in a circle."""
    if kind != "postgres":
        pytest.skip("not applicable: one writer")
    assert isinstance(world.store, PostgresStore)
    await world.pool()
    await world.limit(max=5)
    for name in "abc":
        await world.deploy(
            name, pool="main", tags=["t", name], limits=["few"], retries={"count": 2}, max_active=4
        )
    url = world.store.url.render_as_string(False)
    stores = [PostgresStore(url, world.clock, 1) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    chance = random.Random(6)
    over: list[set[tuple[str, str]]] = []

    async def submits(store: PostgresStore) -> None:
        for name in itertools.islice(itertools.cycle("abc"), 60):
            batch = [RunRequest(deployment=name)] * 3
            await store.write(lambda tx, batch=batch: submit(tx, batch))

    async def makes(store: PostgresStore) -> None:
        for number in range(30):
            spec = book.LimitSpec(name="of-tag", tag="tabc"[number % 4], max=1 + number % 3)
            await store.write(lambda tx, spec=spec: book.create_limit(tx, spec))
            await store.read(audit)
            patch = book.LimitPatch(rate={"count": 1000, "seconds": 1})
            await store.write(lambda tx, patch=patch: book.patch_limit(tx, "of-tag", patch))
            await store.write(lambda tx: book.delete_limit(tx, "of-tag"))

    agents = [await world.agent(f"a{number}") for number in range(5)]
    try:
        await asyncio.gather(
            submits(stores[0]),
            makes(stores[1]),
            *(_work(agent, store, chance, over) for agent, store in zip(agents, stores[2:], strict=False)),
        )
    finally:
        await asyncio.gather(*(store.close() for store in stores))
    # The limit of a tag may be made below what runs; the others were never exceeded.
    assert len(over) == 125
    assert set().union(*over) <= {("limit", "of-tag")}
    live = await world.store.read(lambda tx: tx.conn.execute(select(leases)).all())
    assert live == []


async def test_a_lease_takes_its_places_with_it_however_it_goes(world: World) -> None:
    """A server of the version before knows nothing of them."""
    await world.pool()
    await world.limit(max=1)
    await world.deploy(pool="main", limits=["few"], retries={"count": 1})
    run_id = await world.submit()
    agent = await world.agent()
    (granted,) = await agent.claim()

    def forget(tx: Tx) -> int:
        tx.conn.execute(delete(leases).where(leases.c.run_id == run_id))
        return len(tx.conn.execute(select(lease_limits)).all())

    def put_back(tx: Tx) -> None:
        lease = tx.conn.execute(select(leases).where(leases.c.run_id == run_id)).mappings().one()
        left = forget(tx)
        assert left == 0
        tx.conn.execute(insert(leases).values(**lease))

    await world.store.write(put_back)
    await agent.run_through(granted)


async def test_a_backup_that_reads_does_not_hold_up_who_makes_a_limit(world: World) -> None:
    """`pg_dump` reads every table in one transaction, for as long as it takes."""
    if world.store.kind == "sqlite":
        not_applicable("readers are in nobody's way there")
    await world.pool()
    await world.deploy(pool="main")
    read, done = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def dump() -> None:
        async with world.store._snapshots.connect() as conn:  # type: ignore[union-attr]
            await conn.execute(select(limits))
            read.set()
            await done.wait()

    dumping = loop.create_task(dump())
    await read.wait()
    try:
        await asyncio.wait_for(world.limit(max=1), 10)
        await asyncio.wait_for(world.submit(), 10)
    finally:
        done.set()
        await dumping


async def test_a_clock_that_is_set_back_does_not_hold_a_rate_back(world: World) -> None:
    await world.pool()
    await world.limit(rate={"count": 1, "seconds": 60})
    await world.deploy(pool="main", limits=["few"])
    agent = await world.agent()
    await world.submit()
    (granted,) = await agent.claim(9)
    await agent.run_through(granted)
    world.clock.advance(-86_400)
    await world.submit_many(*["job"] * 2)
    await world.store.write(reap.from_the_future)
    assert len(await agent.claim(9)) == 1
    assert await agent.claim(9) == []


async def test_a_place_of_a_backfill_is_told_to_every_pool(world: World) -> None:
    for name in ("one", "two"):
        await world.pool(name, match=["t"])
    first, _ = await world.agent("a1", "one", limit=1), await world.agent("a2", "two", limit=1)
    every = {"kind": "interval", "seconds": 3600, "anchor": world.at()}
    await world.deploy(tags=["t"], schedules=[{"when": every}])
    wanted = BackfillRequest(start=world.at(-7200), end=world.at(), concurrency=1)
    await world.store.write(lambda tx: backfill.backfill(tx, "job", wanted))
    (granted,) = await first.claim()
    world.noticed()
    await first.run_through(granted)
    assert world.noticed().pools >= await ids_of(world, "two")
