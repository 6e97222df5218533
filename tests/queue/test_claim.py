"""Claim: in which order, under which limits, to whom; and never twice, however many ask at once."""

from __future__ import annotations

import asyncio
import itertools
from uuid import UUID

import pytest
from sqlalchemy import func, select

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.queue.claim import MOST, claim, due_in
from shunter_work_pools.storage.schema import leases
from shunter_work_pools.storage.store import PostgresStore
from tests.queue.world import LOST_AFTER, Agent, S, World


async def order(agent: Agent, batch: int = 1) -> list[str]:
    """The deployments of all that is claimable, in the order of claims of ``batch``."""
    found: list[str] = []
    while granted := await agent.claim(batch):
        agent.world.clock.advance(0.001)
        found += [one.deployment for one in granted]
    return found


async def test_a_grant_says_all_that_is_needed(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", tags=["t"], work={"command": ["sh", "-c", "x"], "timeout": 9})
    run_id = await world.submit(parameters={"a": 1})
    agent = await world.agent()
    (granted,) = await agent.claim(5)
    assert (granted.run, granted.attempt, granted.epoch) == (run_id, 1, 1)
    assert granted.session == agent.known.session
    assert (granted.deployment, granted.revision) == ("job", 1)
    assert (granted.pool, granted.queue, granted.tags) == ("main", "default", ["t"])
    assert granted.parameters == {"a": 1}
    assert granted.scheduled_at == world.at()
    assert (granted.work.command, granted.work.timeout) == (["sh", "-c", "x"], 9)
    run = await world.run(run_id)
    assert (run.state, run.attempt_count, run.due_at) == ("Claimed", 1, None)
    assert (run.attempts[0].agent, run.attempts[0].epoch) == ("a1", 1)
    assert await world.story(run_id) == ["Scheduled/user", "Claimed/queue"]
    assert await agent.claim(5) == []


async def test_an_agent_holds_no_more_than_its_limit_whatever_it_said(world: World) -> None:
    """What it said may be old: an answer of which it does not know yet, a request that a network brings twice."""
    await world.pool()
    await world.deploy(pool="main")
    for _ in range(5):
        await world.submit()
    agent = await world.agent()
    for expected in (3, 0):
        offer = agent.offer(4)
        offer.limit = 3
        assert await world.store.write(lambda tx, offer=offer: claim(tx, [offer])) == expected
        assert len(offer.granted) == expected


async def test_what_is_not_due_waits_and_is_due_to_the_microsecond(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    await world.submit(scheduled_at=world.at(60))
    agent = await world.agent()
    assert await agent.claim() == []
    assert await world.store.read(due_in) == 60
    world.clock.advance(59.999999)
    assert await agent.claim() == []
    world.clock.advance(0.000001)
    assert len(await agent.claim()) == 1


async def test_priority_of_the_queue_then_of_the_run_then_time(world: World) -> None:
    await world.pool()
    await world.queue("main", "urgent", priority=10)
    await world.queue("main", "idle", priority=-1)
    for name, queue, priority in (
        ("idle", "idle", 1000),
        ("plain", "default", 0),
        ("plain-up", "default", 5),
        ("urgent-down", "urgent", -5),
        ("urgent", "urgent", 0),
    ):
        await world.deploy(name, pool="main", queue=queue, priority=priority)
        await world.submit(name)
        world.clock.advance(1)
    assert await order(await world.agent()) == ["urgent", "urgent-down", "plain-up", "plain", "idle"]


async def test_a_runs_own_priority_counts(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", priority=3)
    low = await world.submit(priority=2)
    plain = await world.submit()
    high = await world.submit(priority=4)
    granted = await (await world.agent()).claim(3)
    assert [one.run for one in granted] == [high, plain, low]


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
async def test_deployments_of_one_priority_take_turns(world: World, batch: int) -> None:
    """A thousand runs of one do not keep the few of another waiting."""
    await world.pool()
    for name in ("many", "few", "late"):
        await world.deploy(name, pool="main")
    await world.submit_many(*["many"] * 30)
    world.clock.advance(1)
    await world.submit_many(*["few"] * 3)
    await world.submit("late")
    found = await order(await world.agent(), batch)
    assert len(found) == 34
    assert {"few", "late"} <= set(found[: max(batch, 3) + 2])
    assert found[:12].count("few") == 3


async def test_within_a_deployment_the_one_due_first_goes_first(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    second = await world.submit(scheduled_at=world.at(-10))
    first = await world.submit(scheduled_at=world.at(-20))
    third = await world.submit()
    world.clock.advance(0.000001)
    fourth = await world.submit()
    granted = await (await world.agent()).claim(9)
    assert [one.run for one in granted] == [first, second, third, fourth]


# ---- who may take what


async def test_an_agent_takes_from_its_pools_only(world: World) -> None:
    for pool in ("one", "two", "three"):
        await world.pool(pool)
        await world.deploy(f"in-{pool}", pool=pool)
        await world.submit(f"in-{pool}")
    agent = await world.agent("a1", "one", "three")
    assert sorted(one.deployment for one in await agent.claim(9)) == ["in-one", "in-three"]


async def test_an_agent_takes_from_its_queues_only(world: World) -> None:
    await world.pool()
    await world.queue("main", "gpu")
    await world.deploy("plain", pool="main")
    await world.deploy("heavy", pool="main", queue="gpu")
    await world.submit_many("plain", "heavy")
    assert [one.deployment for one in await (await world.agent("a1", queues=["gpu"])).claim(9)] == ["heavy"]
    assert [one.deployment for one in await (await world.agent("a2")).claim(9)] == ["plain"]


async def test_required_tags_must_all_be_the_agents(world: World) -> None:
    await world.pool()
    await world.deploy("hard", pool="main", require=["gpu", "region=eu"], priority=9)
    await world.deploy("easy", pool="main")
    await world.submit_many("hard", "easy")
    plain = await world.agent("plain", tags=["gpu"])
    assert [one.deployment for one in await plain.claim(9)] == ["easy"]
    able = await world.agent("able", tags=["region=eu", "x", "gpu"])
    assert [one.deployment for one in await able.claim(9)] == ["hard"]


async def test_what_is_blocked_keeps_nobody_waiting(world: World) -> None:
    """Hundreds of runs at the front that cannot go leave the way free for what can."""
    await world.pool()
    await world.queue("main", "shut", priority=100, limit=0)
    await world.deploy("shut", pool="main", queue="shut")
    await world.deploy("nobody", pool="main", require=["mars"], priority=50)
    await world.deploy("paused", pool="main", priority=40)
    await world.deploy("free", pool="main")
    await world.submit_many(*["shut"] * 300, *["nobody"] * 300, *["paused"] * 300, *["free"] * 3)
    await world.pause_deployment("paused")
    assert [one.deployment for one in await (await world.agent()).claim(5)] == ["free"] * 3


async def test_several_agents_in_one_claim_share_the_work(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    await world.submit_many(*["job"] * 9)
    agents = [await world.agent(f"a{number}") for number in range(3)]
    offers = [agent.offer(free) for agent, free in zip(agents, (2, 8, 0), strict=True)]
    assert await world.store.write(lambda tx: claim(tx, offers)) == 9
    assert [len(offer.granted) for offer in offers][2] == 0
    assert sum(len(offer.granted) for offer in offers) == 9
    assert 0 < len(offers[0].granted) <= 2
    assert [offer.free for offer in offers] == [2 - len(offers[0].granted), 8 - len(offers[1].granted), 0]
    runs = [one.run for offer in offers for one in offer.granted]
    assert len(set(runs)) == 9


async def test_a_claim_without_room_takes_nothing(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    await world.submit()
    assert await (await world.agent()).claim(0) == []


# ---- limits and pauses


async def test_the_limit_of_a_pool_holds_over_its_queues(world: World) -> None:
    await world.pool(limit=3)
    await world.queue("main", "second")
    await world.deploy("one", pool="main")
    await world.deploy("two", pool="main", queue="second")
    await world.submit_many(*["one", "two"] * 5)
    agent = await world.agent()
    granted = await agent.claim(2) + await agent.claim(9)
    assert len(granted) == 3
    assert await agent.claim(9) == []
    await agent.run_through(granted[0])
    assert len(await agent.claim(9)) == 1
    await world.patch_pool("main", limit=5)
    assert len(await agent.claim(9)) == 2
    await world.patch_pool("main", limit=1)
    assert await agent.claim(9) == []
    await world.patch_pool("main", limit=None)
    assert len(await agent.claim(9)) == 4


async def test_the_limit_of_a_queue_leaves_other_queues_alone(world: World) -> None:
    await world.pool()
    await world.queue("main", "thin", limit=1, priority=5)
    await world.deploy("thin", pool="main", queue="thin")
    await world.deploy("wide", pool="main")
    await world.submit_many(*["thin"] * 3, *["wide"] * 3)
    agent = await world.agent()
    granted = await agent.claim(9)
    assert [one.deployment for one in granted] == ["thin", "wide", "wide", "wide"]
    await agent.release(granted[0])
    assert [one.deployment for one in await agent.claim(9)] == ["thin"]


async def test_a_limit_of_nothing_grants_nothing(world: World) -> None:
    await world.pool(limit=0)
    await world.deploy(pool="main")
    await world.submit()
    assert await (await world.agent()).claim(9) == []


@pytest.mark.parametrize("what", ["pool", "queue", "deployment"])
async def test_what_is_paused_waits_and_goes_on_when_resumed(world: World, what: str) -> None:
    await world.pool()
    await world.deploy(pool="main")
    run_id = await world.submit()
    agent = await world.agent()

    async def pause(paused: bool) -> None:
        if what == "pool":
            await world.patch_pool("main", paused=paused)
        elif what == "queue":
            await world.patch_queue("main", "default", paused=paused)
        else:
            await world.pause_deployment("job", paused)

    await pause(True)
    assert await agent.claim() == []
    assert await world.state(run_id) == "Scheduled"
    world.noticed()
    await pause(False)
    assert world.noticed().pools, "nobody was told that there is work"
    assert len(await agent.claim()) == 1


async def test_pausing_leaves_what_is_active_alone(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    run_id = await world.submit()
    agent = await world.agent()
    (granted,) = await agent.claim()
    await world.patch_pool("main", paused=True)
    await agent.run_through(granted)
    assert await world.state(run_id) == "Completed"


# ---- many at once


@pytest.mark.parametrize("limits", [(None, None), (7, None), (None, 5), (9, 4)])
async def test_many_claimers_at_once_never_exceed_a_limit_and_never_share_a_run(
    world: World, limits: tuple[int | None, int | None]
) -> None:
    """On Postgres each claimer has a connection of its own, as if each were another server."""
    pool_limit, queue_limit = limits
    await world.pool(limit=pool_limit)
    await world.queue("main", "second", limit=queue_limit)
    await world.deploy("one", pool="main")
    await world.deploy("two", pool="main", queue="second")
    await world.deploy("three", pool="main", queue="second", priority=3)
    await world.submit_many(*["one", "two", "three"] * 20)
    stores = [world.store]
    if isinstance(world.store, PostgresStore):
        stores = [PostgresStore(world.store.url.render_as_string(False), world.clock, 1) for _ in range(8)]
        await asyncio.gather(*(store.open() for store in stores))
    agents = [await world.agent(f"a{number}") for number in range(8)]
    seen: list[tuple[int, int]] = []
    granted: list[Assignment] = []

    def counted(tx):  # type: ignore[no-untyped-def]
        per_queue = dict(
            tx.conn.execute(select(leases.c.queue_id, func.count()).group_by(leases.c.queue_id)).all()
        )
        seen.append((sum(per_queue.values()), per_queue.get(2, 0)))

    async def work(agent: Agent, store) -> None:  # type: ignore[no-untyped-def]
        for turn in range(6):
            offer = agent.offer(1 + turn % 3)
            await store.write(lambda tx, offer=offer: claim(tx, [offer]))
            granted.extend(offer.granted)
            await store.read(counted)
            if turn % 2:
                for one in offer.granted:
                    step = agent.step(one, S.COMPLETED, log_size=0)
                    from shunter_work_pools.queue.report import report

                    await store.write(lambda tx, step=step: report(tx, agent.id, [step], LOST_AFTER))

    try:
        await asyncio.gather(*map(work, agents, itertools.cycle(stores)))
    finally:
        if stores != [world.store]:
            for store in stores:
                await store.close()
    assert len({(one.run, one.epoch) for one in granted}) == len(granted)
    assert len(granted) >= 5
    if pool_limit is not None:
        assert max(total for total, _ in seen) <= pool_limit
    if queue_limit is not None:
        assert max(second for _, second in seen) <= queue_limit


async def test_claims_cancels_marks_and_reports_at_once_do_not_wait_for_each_other_in_a_circle(
    world: World,
) -> None:
    """They lock the same rows; on Postgres two in the wrong order would end one of them with an error."""
    await world.pool(limit=40)
    names = [f"job{number}" for number in range(6)]
    for name in names:
        await world.deploy(name, pool="main", retries={"count": 2})
    ids: list[UUID] = []
    for _ in range(10):
        ids += [run_id for run_id, _ in await world.submit_many(*names, *names)]
    world.clock.advance(60)
    agents = [await world.agent(f"a{number}") for number in range(4)]
    errors: list[BaseException] = []

    async def guarded(work) -> None:  # type: ignore[no-untyped-def]
        from shunter_work_pools.contracts.errors import Conflict

        try:
            await work
        except Conflict as exc:
            if "ended" not in exc.detail and "moment" not in exc.detail:
                errors.append(exc)
        except Exception as exc:
            errors.append(exc)

    async def serve(agent: Agent) -> None:
        for turn in range(12):
            granted = await agent.claim(6)
            world.clock.advance(0.001)
            if turn % 3 == 2:
                await agent.release(*granted[::-1])
                continue
            ends = [S.COMPLETED, S.FAILED]
            steps = [
                agent.step(one, ends[at % 2], cause=None if at % 2 == 0 else "exit_code", log_size=0)
                if at % 2
                else agent.step(one, S.COMPLETED, log_size=0)
                for at, one in enumerate(granted)
            ]
            await agent.send(*steps[::-1])

    async def cancel_all() -> None:
        for run_id in ids[::3]:
            await guarded(world.cancel(run_id))

    await asyncio.gather(
        *(guarded(serve(agent)) for agent in agents),
        cancel_all(),
        *(guarded(world.reap()) for _ in range(5)),
        *(guarded(agent.beat()) for agent in agents for _ in range(3)),
    )
    assert errors == []


async def test_one_claim_grants_a_bounded_number_and_the_next_goes_on(world: World) -> None:
    """However many wait: nobody waits long for it, and Postgres takes 32,767 parameters in a statement."""
    await world.pool()
    await world.deploy("one", pool="main")
    await world.deploy("two", pool="main", priority=1)
    await world.submit_many(*["one"] * (MOST + 400), *["two"] * 400)
    agent = await world.agent(limit=100_000)
    granted = [await agent.claim(100_000) for _ in range(3)]
    assert [len(batch) for batch in granted] == [MOST, 800, 0]
    assert {one.deployment for one in granted[0][:400]} == {"two"}
    assert len({one.run for batch in granted for one in batch}) == MOST + 800
