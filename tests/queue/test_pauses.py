"""Pauses: who paused what, and why; and what is held meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event, select

from shunter_work_pools.contracts.agents import ServerPatch
from shunter_work_pools.contracts.deployments import DeploymentPatch
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.contracts.pauses import Pause
from shunter_work_pools.queue import pausing, remove, schedule_views, views
from shunter_work_pools.storage.schema import pauses
from tests.queue.world import LOST_AFTER, S, World

DAILY = {"name": "daily", "when": {"kind": "interval", "seconds": 86_400}}
KINDS = ["pool", "queue", "deployment", "schedule", "agent"]

Pausing = Callable[..., Awaitable[None]]


async def furnished(world: World) -> None:
    """One of everything that can be paused."""
    await world.pool()
    await world.queue("main", "side")
    await world.deploy(pool="main", queue="side", schedules=[DAILY])
    await world.agent("a1")


def pausing_of(world: World, kind: str) -> Pausing:
    """Pauses or resumes the one of a kind."""
    ways: dict[str, Pausing] = {
        "pool": lambda **more: world.patch_pool("main", **more),
        "queue": lambda **more: world.patch_queue("main", "side", **more),
        "deployment": lambda **more: world.pause_deployment("job", **more),
        "schedule": lambda **more: world.pause_schedule("daily", **more),
        "agent": lambda **more: world.pause_agent("a1", **more),
    }
    return ways[kind]


async def shown(world: World, kind: str) -> tuple[bool, Pause | None]:
    """Whether people see the one of a kind as paused, and by whom and why."""

    def look(tx: Any) -> Any:
        if kind == "pool":
            return views.list_pools(tx, LOST_AFTER, "main")[0]
        if kind == "queue":
            return views.queue_view(tx, "main", "side")
        if kind == "agent":
            return views.list_agents(tx, LOST_AFTER, "a1")[0]
        if kind == "schedule":
            (of_deployment,) = views.deployment_view(tx, "job").schedules
            (of_list,), _ = schedule_views.list_schedules(tx, None, None, 100)
            assert of_list == of_deployment == schedule_views.schedule_view(tx, "job", "daily")
            return of_list
        return views.deployment_view(tx, "job")

    found = await world.store.read(look)
    return found.paused, found.pause


async def rows(world: World) -> set[str]:
    return set(await world.store.read(lambda tx: list(tx.conn.scalars(select(pauses.c.kind)))))


@pytest.mark.parametrize("kind", KINDS)
async def test_who_paused_and_why_is_told_until_it_is_resumed(world: World, kind: str) -> None:
    await furnished(world)
    pause = pausing_of(world, kind)
    assert await shown(world, kind) == (False, None)

    await pause(paused=True, by="ann@desk", reason="new disks")
    first = Pause(by="ann@desk", reason="new disks", at=world.at())
    assert await shown(world, kind) == (True, first)

    world.clock.advance(60)
    await pause(paused=True, by="bob@desk")
    assert await shown(world, kind) == (True, first), "paused already, and nothing new is said"
    await pause(paused=True, by="bob@desk", reason="and new fans")
    assert await shown(world, kind) == (
        True,
        Pause(by="bob@desk", reason="and new fans", at=world.at()),
    )

    await pause(paused=False, by="ann@desk")
    assert await shown(world, kind) == (False, None)
    assert await rows(world) == set()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_gone_is_not_paused(world: World, kind: str) -> None:
    await furnished(world)
    pause = pausing_of(world, kind)
    await pause(paused=True, reason="soon to go")
    world.clock.advance(LOST_AFTER * 2)  # nobody is alive
    now = world.clock.now
    silence = remove.Silence(alive_after=now - 1, lease_for=0, hearing_since=0)
    if kind in ("deployment", "schedule"):
        await world.store.write(lambda tx: remove.delete_deployment(tx, "job"))
    elif kind == "agent":
        await world.store.write(lambda tx: remove.remove_agent(tx, "a1", silence, give_up=False))
    else:
        await world.store.write(lambda tx: remove.delete_deployment(tx, "job"))
        if kind == "queue":
            await world.store.write(lambda tx: remove.delete_queue(tx, "main", "side", now))
        else:
            await world.patch_queue("main", "side", paused=True, reason="goes with its pool")
            await world.store.write(lambda tx: remove.delete_pool(tx, "main", now))
    assert await rows(world) == set()


@pytest.mark.parametrize(
    "patch", [{"paused": None}, {"reason": "for nothing"}, {"paused": None, "reason": "x"}]
)
async def test_a_pause_that_says_nothing_is_refused(world: World, patch: dict[str, Any]) -> None:
    await furnished(world)
    with pytest.raises(BadRequest, match="null" if "paused" in patch else "nothing to pause"):
        await world.patch_pool("main", limit=3, **patch)
    (pool,) = await world.store.read(lambda tx: views.list_pools(tx, LOST_AFTER, "main"))
    assert pool.limit is None, "bad input changes nothing"
    with pytest.raises(BadRequest):
        await world.store.write(lambda tx: pausing.patch_server(tx, ServerPatch(**patch)))
    with pytest.raises(BadRequest):
        await world.store.write(
            lambda tx: pausing.patch_deployment(tx, "job", DeploymentPatch(**patch), 0, 0)
        )
    assert await rows(world) == set()


# ---- schedules


async def test_a_schedule_that_is_deployed_as_paused_is_so_by_nobody(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", schedules=[DAILY | {"paused": True}])
    assert await shown(world, "schedule") == (True, None)
    await world.pause_schedule("daily", by="ann@desk", reason="and I mean it")
    assert (await shown(world, "schedule"))[1] == Pause(by="ann@desk", reason="and I mean it", at=world.at())


async def test_what_a_deploy_says_of_a_schedule_is_said_by_nobody(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", schedules=[DAILY])
    await world.pause_schedule("daily", reason="by hand")
    await world.deploy(pool="main", schedules=[DAILY], description="something else")
    paused, pause = await shown(world, "schedule")
    assert paused
    assert pause is not None, "this deploy says the same of it as the one before"
    await world.deploy(pool="main", schedules=[DAILY | {"paused": True}])
    assert await shown(world, "schedule") == (True, None)
    await world.pause_schedule("daily", reason="by hand")
    await world.deploy(pool="main", schedules=[DAILY])
    assert await shown(world, "schedule") == (False, None)
    await world.pause_schedule("daily", reason="by hand")
    await world.deploy(pool="main", schedules=[])
    await world.deploy(pool="main", schedules=[DAILY])
    assert await shown(world, "schedule") == (False, None), "it begins anew"
    assert await rows(world) == set()


async def test_a_deployment_remembers_its_pauses(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", schedules=[DAILY])
    await world.pause_deployment(by="ann@desk", reason="a leak")
    await world.pause_deployment()  # nothing new
    await world.pause_schedule("daily", reason="too often")
    await world.pause_schedule("daily", paused=False)
    await world.pause_deployment(paused=False, by="bob@desk")
    await world.pause_deployment(paused=False)
    told = await world.store.read(lambda tx: views.deployment_events(tx, "job"))
    assert [(one.kind, one.actor, one.data) for one in told] == [
        ("paused", "user", {"by": "ann@desk", "reason": "a leak"}),
        ("paused", "user", {"schedule": "daily", "reason": "too often"}),
        ("resumed", "user", {"schedule": "daily"}),
        ("resumed", "user", {"by": "bob@desk"}),
    ]


# ---- agents


async def test_a_paused_agent_is_given_nothing_and_keeps_what_it_has(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    mine, other = await world.agent("a1"), await world.agent("a2")
    await world.submit()
    (granted,) = await mine.claim()
    await world.pause_agent("a1", reason="a noisy fan")
    await world.submit()

    assert await mine.claim() == []
    await mine.run_through(granted)  # what it holds goes on
    assert await world.state(granted.run) == "Completed"
    again = await world.agent("a1", identity=mine.request.identity, session=mine.request.identity)
    assert await again.claim() == [], "a restart changes nothing"
    (seen,) = await world.store.read(lambda tx: views.list_agents(tx, LOST_AFTER, "a1"))
    assert (seen.paused, seen.draining, seen.lost) == (True, False, False)
    assert len(await other.claim()) == 1

    await world.submit()
    world.noticed()
    await world.pause_agent("a1", paused=False)
    assert world.noticed().agents == {mine.id}
    assert len(await again.claim()) == 1


# ---- maintenance


async def test_in_maintenance_nothing_is_handed_out_and_all_else_goes_on(world: World) -> None:
    await world.pool()
    await world.pool("other")
    await world.deploy(pool="main", schedules=[DAILY])
    await world.deploy("elsewhere", pool="other", retries={"count": 1})
    agent = await world.agent("a1", "main", "other")
    await world.submit("elsewhere")
    (granted,) = await agent.claim()

    await world.pause_server(by="ann@desk", reason="moving the database")
    run_id = await world.submit()
    world.clock.advance(86_400)
    assert await world.fire(since=-86_400) == 1, "slots are made into runs"
    assert await agent.claim(free=10) == []
    await agent.report(granted, S.STARTING, S.RUNNING)  # reports are taken
    await agent.report(granted, S.FAILED, cause="exit_code", exit_code=1, log_size=0)
    assert await world.state(granted.run) == "Retrying"
    assert await agent.claim(free=10) == [], "nor the next attempt of what ran"
    assert all(one.held for one in await world.runs())

    world.noticed()
    await world.pause_server(paused=False)
    assert world.noticed().pools == {1, 2}, "everybody may find something"
    found = {one.run for one in await agent.claim(free=10)}
    assert len(found) == 3
    assert {run_id, granted.run} < found
    assert not any(one.held for one in await world.runs())


# ---- held


@pytest.mark.parametrize("what", ["pool", "queue", "deployment", "server"])
async def test_what_waits_for_something_paused_is_held(world: World, what: str) -> None:
    await furnished(world)
    await world.deploy("free", pool="main")
    agent = await world.agent("a2")
    running = await world.submit()
    await agent.claim()
    ended = await world.submit()
    await world.cancel(ended)
    waits, free = await world.submit(), await world.submit("free")
    later = await world.submit(scheduled_at=world.at(60))

    async def held(wanted: bool) -> set[Any]:
        page, _ = await world.store.read(lambda tx: views.list_runs(tx, views.RunFilter(held=wanted)))
        return {run.id for run in page}

    everything = {running, ended, waits, free, later}
    assert (await held(True), await held(False)) == (set(), everything)
    pause = world.pause_server if what == "server" else pausing_of(world, what)
    await pause(paused=True)
    expected = {waits, later} | ({free} if what in ("server", "pool") else set())
    assert await held(True) == expected
    assert await held(False) == everything - expected
    assert {run.id for run in await world.runs() if run.held} == expected
    for run_id in everything:
        assert (await world.run(run_id)).held == (run_id in expected)
    await pause(paused=False)
    assert (await held(True), await held(False)) == (set(), everything)


@pytest.mark.parametrize("paused", ["schedule", "agent"])
async def test_a_paused_schedule_or_agent_holds_no_run(world: World, paused: str) -> None:
    await furnished(world)
    run_id = await world.submit()
    await pausing_of(world, paused)(paused=True)
    assert not (await world.run(run_id)).held


async def test_runs_without_a_pool_are_held_by_their_deployment(world: World) -> None:
    await world.deploy(tags=["nowhere"])
    run_id = await world.submit()
    assert not (await world.run(run_id)).held
    await world.pause_deployment()
    assert (await world.run(run_id)).held


async def test_a_page_of_held_runs_takes_as_many_statements_as_one_run(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    await world.pause_deployment()
    await world.submit_many(*["job"] * 50)

    def counted(limit: int) -> Callable[[Any], tuple[int, int]]:
        def look(tx: Any) -> tuple[int, int]:
            said: list[str] = []

            def note(conn: Any, cursor: Any, statement: str, *more: Any) -> None:
                said.append(statement)

            event.listen(tx.conn, "before_cursor_execute", note)
            found, _ = views.list_runs(tx, views.RunFilter(limit=limit))
            event.remove(tx.conn, "before_cursor_execute", note)
            return sum(run.held for run in found), len(said)

        return look

    one, many = await world.store.read(counted(1)), await world.store.read(counted(50))
    assert (one[0], many[0]) == (1, 50)
    assert one[1] == many[1]
