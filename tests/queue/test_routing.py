"""Where runs go: by match tags, priority and free capacity; what is warned of; who is named for and against."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event

from shunter_work_pools.contracts.deployments import DeploymentSpec, Named
from shunter_work_pools.contracts.explanations import Route
from shunter_work_pools.queue import apply, remove
from shunter_work_pools.queue.explain.route import route
from shunter_work_pools.queue.routing import Router
from shunter_work_pools.storage.store import Tx
from tests.queue.world import LATE_AFTER, LEASE_FOR, LOST_AFTER, TRUE, S, World


async def goes_to(world: World, *tags: str) -> str | None:
    run = await world.submit(tags=list(tags))
    return (await world.run(run)).pool


async def warned(world: World, name: str = "job", **spec: Any) -> list[str]:
    document = DeploymentSpec.model_validate({"work": TRUE} | spec)
    times = apply.Times(round(LATE_AFTER * 1e6), world.clock.now, lost_after=LOST_AFTER, lease_for=LEASE_FOR)
    wanted = [Named(name=name, spec=document)]
    (change,) = await world.store.write(lambda tx: apply.apply(tx, wanted, times))
    return change.warnings


async def routed(world: World, name: str = "job", *tags: str) -> Route:
    return await world.store.read(lambda tx: route(tx, name, tags, LOST_AFTER))


async def test_the_most_specific_pool_then_priority_then_free_capacity_then_name(world: World) -> None:
    await world.deploy()
    await world.pool("named")
    assert await goes_to(world, "a", "b") is None
    await world.pool("z", match=["a"])
    await world.pool("y", match=["a", "b"])
    await world.pool("x", match=["a", "b", "c"])
    assert await goes_to(world, "a", "b") == "y"
    assert await goes_to(world, "a", "b", "c", "d") == "x"
    assert await goes_to(world, "b") is None
    await world.pool("w", match=["b", "a"], priority=1)
    assert await goes_to(world, "a", "b") == "w"
    await world.pool("v", match=["a", "b"], priority=1)
    assert await goes_to(world, "a", "b") == "v", "by name while neither has agents"
    await world.agent("a1", "w", limit=1)
    assert await goes_to(world, "a", "b") == "w"


async def test_a_burst_spreads_by_free_capacity(world: World) -> None:
    for name, limit in (("large", 6), ("none", 0), ("small", 3)):
        await world.pool(name, match=["x"])
        if limit:
            await world.agent(f"a-{name}", name, limit=limit)
    await world.deploy(tags=["x"])
    await world.submit_many(*["job"] * 9)
    found = Counter(run.pool for run in await world.runs())
    assert found == {"large": 6, "small": 3}
    await world.submit_many(*["job"] * 4)
    found = Counter(run.pool for run in await world.runs())
    assert found == {"large": 8, "small": 5}, "as long lines on both sides"


async def test_limits_of_pools_what_is_active_and_who_is_away_count(world: World) -> None:
    await world.deploy(tags=["x"])
    await world.pool("a", match=["x"])
    await world.pool("b", match=["x"])
    busy = await world.agent("busy", "a", limit=4)
    await world.agent("free", "b", limit=3)
    assert await goes_to(world) == "a", "4 free against 3"
    await world.submit_many("job")
    assert len(await busy.claim(4)) == 2
    assert await goes_to(world) == "b", "2 free against 3"
    await world.patch_pool("b", limit=1)
    assert await goes_to(world) == "a", "2 free against 1, less the one that waits"
    await world.agent("unwell", "b", limit=50, troubles=["no disk"])
    await world.agent("draining", "b", limit=50, draining=True)
    assert await goes_to(world) == "a"
    await world.patch_pool("a", paused=True)
    assert await goes_to(world) == "b", "what is paused comes last"
    await world.patch_pool("a", paused=False)
    world.clock.advance(60)
    await world.agent("late", "b", limit=1)
    assert await goes_to(world) == "b", "those that are silent are not there"


async def test_nothing_more_is_asked_where_pools_do_not_tie(world: World) -> None:
    await world.pool("a", match=["x"])
    await world.pool("b", match=["x"], priority=1)
    await world.pool("c", match=["x", "y"])
    spec = DeploymentSpec(work=TRUE)

    def asked(tx: Tx, tags: list[str]) -> int:
        statements: list[str] = []

        def note(conn: Any, cursor: Any, statement: str, *more: Any) -> None:
            if statement.startswith("SELECT"):
                statements.append(statement)

        event.listen(tx.conn, "before_cursor_execute", note)
        try:
            router = Router(tx)
            for _ in range(100):
                router.place(spec, tags)
        finally:
            event.remove(tx.conn, "before_cursor_execute", note)
        return len(statements)

    assert await world.store.read(lambda tx: asked(tx, ["x"])) == 1
    assert await world.store.read(lambda tx: asked(tx, ["x", "y"])) == 1
    await world.patch_pool("a", priority=1)
    # The clock of Postgres is not asked: tests have their own.
    assert await world.store.read(lambda tx: asked(tx, ["x"])) == 1 + 2 + 2, "once for a hundred runs"


async def test_runs_are_looked_at_again_when_pools_come_change_and_go(world: World) -> None:
    agent = await _retried_without_place(world)
    assert agent == ("place_gone", "main")
    await world.deploy("tagged", tags=["x"])
    tagged = await world.submit("tagged")
    await world.pool("late", match=["y"])
    assert (await world.run(tagged)).pool is None
    await world.patch_pool("late", match=["x"])
    assert (await world.run(tagged)).pool == "late"
    assert "routed/queue" in await world.story(tagged)
    assert world.noticed().pools, "who claims is told"
    await world.pool("main")
    (gone,) = [run for run in await world.runs() if run.deployment == "job"]
    assert gone.pool == "main"


async def _retried_without_place(world: World) -> tuple[str, str]:
    """A run that waits without a place, as the pool that its revision names was deleted."""
    from tests.queue.test_explain import explained

    await world.pool("main")
    await world.pool("other")
    await world.deploy(pool="main")
    agent = await world.agent()
    run = await world.submit()
    (given,) = await agent.claim()
    await agent.run_through(given, S.FAILED)
    await world.deploy(pool="other")
    world.clock.advance(60)
    await world.store.write(lambda tx: remove.delete_pool(tx, "main", tx.now))
    await world.retry(run)
    found = await explained(world, run)
    return found.code, found.details["pool"]


async def test_a_queue_that_was_deleted_and_made_again_takes_its_runs(world: World) -> None:
    await world.pool("main")
    await world.queue("main", "slow")
    await world.deploy(pool="main", queue="slow")
    run = await world.submit()
    await world.cancel(run)
    await world.deploy(pool="main")
    await world.store.write(lambda tx: remove.delete_queue(tx, "main", "slow", tx.now))
    await world.retry(run)
    assert (await world.run(run)).queue is None
    await world.queue("main", "slow")
    assert (await world.run(run)).queue == "slow"


async def test_what_nothing_can_take_is_warned_of_waits_and_starts_when_something_can(world: World) -> None:
    """At each step one more thing is there, until the run starts."""
    spec = {"tags": ["gpu", "eu"], "require": ["ssd"], "need": {"gpu": 2}}
    assert await warned(world, **spec) == [
        "no pool takes runs by their tags, and its deployment names none; its runs will wait. "
        "Give a pool match tags (`shunter pool update NAME --match TAG`), or deploy with --pool NAME."
    ]
    run = await world.submit()
    await world.pool("gpus", match=["gpu", "eu", "fast"])
    (told,) = await warned(world, **spec)
    assert told.startswith(
        "no pool matches its tags (gpu, eu): the closest, gpus, also wants fast; its runs will"
    )
    await world.patch_pool("gpus", match=["gpu", "eu"])
    (told,) = await warned(world, **spec)
    assert told.startswith("no agent has ever served pool gpus; its runs will wait. Start one: ")
    await world.agent("a1", "gpus")
    (told,) = await warned(world, **spec)
    assert told.startswith("no agent of pool gpus has tag ssd; ")
    await world.agent("a2", "gpus", tags=["ssd"], capacity={"gpu": 1})
    (told,) = await warned(world, **spec)
    assert "has more than 1; its runs will wait" in told
    await world.agent("a3", "gpus", tags=["ssd"], capacity={"gpu": 2}, queues=["slow"])
    (told,) = await warned(world, **spec)
    assert "has more than 1; its runs will wait" in told, "the one that has enough serves another queue"
    four = await world.agent("a4", "gpus", found_tags=["ssd"], capacity={"gpu": 2}, draining=True)
    (told,) = await warned(world, **spec)
    assert told.startswith("agent a4, the only one that could take it, is draining")
    assert (await world.run(run)).state == "Scheduled"
    four = await world.agent(
        "a4", "gpus", found_tags=["ssd"], capacity={"gpu": 2}, identity=four.request.identity
    )
    assert await warned(world, **spec) == []
    (given,) = await four.claim()
    assert given.run == run


async def test_many_deployments_are_warned_of_at_once(world: World) -> None:
    await world.pool()
    await world.queue("main", "slow")
    await world.agent(queues=["default"])
    (told,) = await warned(world, pool="main", queue="slow")
    assert told.startswith("no agent serves queue slow of pool main: a1 serves other queues of it; ")
    assert await warned(world, "other", pool="main") == []


async def test_a_route_tells_of_every_pool(world: World) -> None:
    await world.pool("bare")
    await world.pool("far", match=["gpu", "us"])
    await world.pool("loose", match=["gpu"])
    await world.pool("low", match=["gpu", "eu"], priority=-1)
    await world.pool("one", match=["gpu", "eu"])
    await world.pool("two", match=["gpu", "eu"])
    await world.agent("a1", "two", limit=3)
    await world.deploy(tags=["gpu", "eu"])
    found = await routed(world)
    assert (found.pool, found.queue, found.tags) == ("two", "default", ["gpu", "eu"])
    assert found.sentence == "Its runs go to pool two, where a1 can take one now."
    assert [(one.name, one.chosen, one.code) for one in found.pools] == [
        ("two", True, "chosen"),
        ("bare", False, "no_match_tags"),
        ("far", False, "missing_tags"),
        ("loose", False, "less_specific"),
        ("low", False, "lower_priority"),
        ("one", False, "less_free"),
    ]
    assert found.pools[0].sentence == (
        "the runs carry its match tags (gpu and eu); its priority (0) is higher than that of low; it starts runs now, "
        "and one does not"
    )
    assert found.pools[-1].sentence == (
        "two matches as well, and starts runs now: no agent is there that takes runs of it"
    )
    by_name = {one.name: one for one in found.pools}
    assert by_name["far"].missing == ["us"]
    assert (by_name["two"].free, by_name["one"].free, by_name["loose"].free) == (3, 0, None)
    assert await goes_to(world) == "two"
    await world.patch_pool("two", paused=True)
    assert (await routed(world)).sentence == (
        "Its runs go to pool two, and wait there: pool two is paused since 2026-11-22 12:00:00 UTC (0s ago)."
    )
    await world.patch_pool("two", paused=False)
    assert await goes_to(world, "us") == (await routed(world, "job", "us")).pool
    await world.deploy(pool="bare", tags=["gpu", "eu"])
    found = await routed(world)
    assert [(one.name, one.code) for one in found.pools][:2] == [("bare", "named"), ("far", "not_named")]
    await world.deploy(tags=["nowhere"])
    found = await routed(world)
    assert found.pool is None
    assert found.sentence.startswith(
        "Its runs wait: no pool matches its tags (nowhere): the closest, loose, "
    )
    assert [one.code for one in found.agents] == ["other_pools"]


async def test_a_route_tells_of_every_agent(world: World) -> None:
    await world.pool()
    await world.pool("other")
    need = {"gpu": 2, "cpu": 1}
    enough = {"tags": ["ssd"], "found_tags": ["os=linux"], "capacity": {"gpu": 2, "cpu": 8}}
    await world.agent("lost", **enough)
    world.clock.advance(60)
    full = await world.agent("full", limit=1, **enough)
    await world.deploy("small", pool="main")
    await world.submit("small")
    await full.claim()
    await world.deploy("half", pool="main", need={"gpu": 1})
    half = await world.agent("half", **enough)
    await world.submit("half")
    await half.claim()
    await world.agent("able", **enough)
    await world.agent("draining", draining=True, **enough)
    await world.agent("elsewhere", "other", **enough)
    await world.agent("poor", tags=["ssd"], found_tags=["os=linux"], capacity={"cpu": 4})
    await world.agent("queue", queues=["slow"], **enough)
    await world.agent("untagged", capacity=enough["capacity"])
    await world.agent("unwell", troubles=["no disk"], **enough)
    await world.deploy(pool="main", require=["ssd", "os=linux"], need=need)
    found = await routed(world)
    assert found.sentence == "Its runs go to pool main, where able can take one now."
    assert [(one.name, one.takes, one.code, one.sentence) for one in found.agents] == [
        ("able", "now", "can_take", "0 of 100 slots taken, cpu=8 gpu=2 free; os=linux it found by itself"),
        ("full", "later", "slots_busy", "1 of 1 slots taken"),
        ("half", "later", "capacity_busy", "of what is needed (gpu=2) it has gpu=1 free"),
        ("draining", "never", "draining", "it drains: it takes nothing new"),
        ("elsewhere", "never", "other_pools", "it serves other, not main"),
        ("lost", "never", "lost", "lost: last heard of at 2026-11-22 12:00:00 UTC (60s ago)"),
        ("poor", "never", "lacks_capacity", "it has no gpu, and gpu=2 is needed"),
        ("queue", "never", "other_queues", "of the queues it serves slow, not default"),
        ("untagged", "never", "lacks_tags", "it lacks os=linux and ssd"),
        ("unwell", "never", "unhealthy", "unwell: no disk"),
    ]
    able, untagged = found.agents[0], found.agents[8]
    assert (able.tags, able.found_tags) == (["os=linux", "ssd"], ["os=linux"])
    assert untagged.missing == ["os=linux", "ssd"]


async def test_pools_that_tie_are_told_by_what_was_decided(world: World) -> None:
    for name in ("a", "b"):
        await world.pool(name, match=["x"])
    await world.deploy(tags=["x"])

    async def told() -> list[tuple[str, str, str]]:
        found = await routed(world)
        assert await goes_to(world) == found.pool
        (run, *_) = reversed(await world.runs())
        await world.skip(run.id)
        return [(one.name, one.code, one.sentence) for one in found.pools]

    carries = "the runs carry its match tags (x)"
    nothing_free = [
        (
            "a",
            "chosen",
            f"{carries}; with as much room as b (free slots less waiting runs: 0) it comes first by name",
        ),
        (
            "b",
            "by_name",
            "a matches as well, with as much room (free slots less waiting runs: 0), and comes first by name",
        ),
    ]
    assert await told() == nothing_free
    await world.agent("a1", "a", limit=1)
    await world.agent("b1", "b", limit=3)
    assert await told() == [
        (
            "b",
            "chosen",
            f"{carries}; it has more room (free slots less waiting runs: 3) than a (1 at the most)",
        ),
        ("a", "less_free", "b matches as well, with more room: free slots less waiting runs: 3, not 1"),
    ]
    await world.patch_pool("b", paused=True)
    assert await told() == [
        ("a", "chosen", f"{carries}; it starts runs now, and b does not"),
        ("b", "less_free", "a matches as well, and starts runs now: it is paused"),
    ]
    await world.patch_pool("b", priority=5)
    assert await told() == [
        ("b", "chosen", f"{carries}; its priority (5) is higher than that of a"),
        ("a", "lower_priority", "b matches as well, with priority 5, not 0"),
    ]


async def _server(world: World) -> None:
    await world.pause_server(by="ann@box", reason="moving")


async def _pool(world: World) -> None:
    await world.patch_pool("main", paused=True, by="ann@box", reason="moving")


async def _queue(world: World) -> None:
    await world.patch_queue("main", "default", paused=True, by="ann@box", reason="moving")


async def _deployment(world: World) -> None:
    await world.pause_deployment(by="ann@box", reason="moving")


async def _pool_full(world: World) -> None:
    await world.patch_pool("main", limit=0)


async def _queue_full(world: World) -> None:
    await world.patch_queue("main", "default", limit=1)


async def _deployment_full(world: World) -> None:
    await world.deploy(pool="main", tags=["db"], limits=["few"], max_active=1)


async def _limit_full(world: World) -> None:
    await world.patch_limit("few", max=1)


async def _tag_limit_full(world: World) -> None:
    await world.limit("databases", tag="db", max=0)


async def _rate_used_up(world: World) -> None:
    await world.limit("api", tag="db", rate={"count": 1, "seconds": 60})
    agent = await world.agent("a2", limit=4)
    await world.submit()
    await agent.claim()


@pytest.mark.parametrize(
    "hold",
    [
        _server,
        _pool,
        _queue,
        _deployment,
        _pool_full,
        _queue_full,
        _deployment_full,
        _limit_full,
        _tag_limit_full,
        _rate_used_up,
    ],
)
async def test_a_route_tells_what_holds_runs_back_as_a_run_that_waits_does(
    world: World, hold: Callable[[World], Awaitable[None]]
) -> None:
    from tests.queue.test_explain import explained

    await world.pool()
    await world.limit("few", max=9)
    await world.deploy(pool="main", tags=["db"], limits=["few"])
    agent = await world.agent(limit=4)
    await world.submit()
    assert len(await agent.claim()) == 1
    free = await routed(world)
    assert free.sentence == "Its runs go to pool main, where a1 can take one now."
    assert [one.takes for one in free.agents] == ["now"]
    await hold(world)
    found = await routed(world)
    why = (await explained(world, await world.submit())).sentence
    assert await agent.claim(3) == []
    assert found.sentence == f"Its runs go to pool main, and wait there: {why[0].lower()}{why[1:]}"
    assert {(one.takes, one.code) for one in found.agents} == {("later", "can_take")}
    if "paused" in why or "maintenance" in why:
        assert found.sentence.endswith(" since 2026-11-22 12:00:00 UTC (0s ago) by ann@box: moving.")


async def test_a_limit_of_a_tag_holds_back_only_runs_that_carry_it(world: World) -> None:
    await world.pool()
    await world.limit("databases", tag="db", max=0)
    await world.deploy(pool="main")
    await world.agent()
    assert [one.takes for one in (await routed(world)).agents] == ["now"]
    found = await routed(world, "job", "db")
    assert [one.takes for one in found.agents] == ["later"]
    assert "limit databases of tag db" in found.sentence


async def test_a_route_tells_who_paused_an_agent(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    await world.agent()
    await world.pause_agent(by="ann@box", reason="moving")
    (told,) = (await routed(world)).agents
    assert told.sentence == "it is paused since 2026-11-22 12:00:00 UTC (0s ago) by ann@box: moving"


@pytest.mark.parametrize("seed", range(8))
async def test_places_agree_with_a_simple_model(world: World, seed: int) -> None:
    """Pools, agents and runs by chance; where each goes is reckoned here once more, from nothing but the rules."""
    chance = random.Random(seed)
    known: dict[str, dict[str, Any]] = {}
    for number in range(chance.randint(2, 6)):
        spec = {
            "match": sorted(chance.sample("abc", chance.choice([0, 1, 1, 2, 2, 3]))),
            "priority": chance.choice([0, 0, 1]),
            "limit": chance.choice([None, None, 0, 2, 5]),
        }
        known[f"p{number}"] = spec
        await world.pool(f"p{number}", **spec)
    slots: Counter[str] = Counter()
    for number in range(chance.randint(0, 5)):
        serves = chance.sample(sorted(known), chance.randint(1, 2))
        limit = chance.randint(1, 4)
        await world.agent(f"a{number}", *serves, limit=limit)
        slots.update(dict.fromkeys(serves, limit))
    await world.deploy()
    waiting: Counter[str] = Counter()

    def model(tags: set[str]) -> str | None:
        def rank(name: str) -> tuple[Any, ...]:
            free = min(slots[name], 10**9 if known[name]["limit"] is None else known[name]["limit"])
            return (
                -len(known[name]["match"]),
                -known[name]["priority"],
                name not in slots,
                waiting[name] - free,
                name,
            )

        able = [name for name, spec in known.items() if spec["match"] and tags.issuperset(spec["match"])]
        return min(able, key=rank, default=None)

    for _ in range(12):
        batch = [chance.sample("abcd", chance.randint(0, 4)) for _ in range(chance.randint(1, 5))]
        expected = []
        for tags in batch:
            place = model(set(tags))
            expected.append(place)
            if place is not None:
                waiting[place] += 1
        made = await world.submit_many(*({"deployment": "job", "tags": tags} for tags in batch))
        assert [(await world.run(run)).pool for run, _ in made] == expected
