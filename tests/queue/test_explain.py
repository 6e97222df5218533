"""Every reason for where a run is, provoked on both stores, word for word; and docs/explanations.md has them all."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from sqlalchemy import select, update

from shunter_work_pools.contracts.deployments import BackfillRequest
from shunter_work_pools.contracts.explanations import Code, Explanation
from shunter_work_pools.contracts.limits import LimitSpec
from shunter_work_pools.contracts.pauses import PausePatch
from shunter_work_pools.queue import backfill, limits, pauses, remove
from shunter_work_pools.queue.claim import Offer, claim
from shunter_work_pools.queue.explain import explain
from shunter_work_pools.storage.schema import agents, deployments, pools, queues
from shunter_work_pools.storage.store import Tx
from tests.queue.world import GIVE_UP_AFTER, LOST_AFTER, Agent, S, World

PAGE = Path(__file__).parents[2] / "docs" / "explanations.md"


class Scene(NamedTuple):
    """A run, and what is to be said of it."""

    run: UUID
    sentence: str
    next_step: str


Play = Callable[[World], Awaitable[Scene]]
SCENES: dict[Code, Play] = {}


def scene(code: Code) -> Callable[[Play], Play]:
    """What provokes a code."""

    def known(play: Play) -> Play:
        assert code not in SCENES
        SCENES[code] = play
        return play

    return known


async def explained(world: World, run: UUID) -> Explanation:
    return await world.store.read(lambda tx: explain(tx, run, LOST_AFTER, GIVE_UP_AFTER))


async def limit(world: World, name: str, **spec: Any) -> None:
    await world.store.write(lambda tx: limits.create_limit(tx, LimitSpec(name=name, **spec)))


_TABLES = {"pool": pools, "queue": queues, "deployment": deployments, "agent": agents}


async def pause(
    world: World, kind: pauses.Kind, name: str = "", by: str = "ann@box", reason: str = "moving"
) -> None:
    """Two minutes ago."""

    def do(tx: Any) -> None:
        ref = 0
        if kind != "server":
            table = _TABLES[kind]
            ref = tx.conn.scalar(select(table.c.id).where(table.c.name == name))
            tx.conn.execute(update(table).where(table.c.id == ref).values(paused=True))
        pauses.note(tx, kind, ref, PausePatch(paused=True, by=by, reason=reason))

    world.clock.advance(-120)
    await world.store.write(do)
    world.clock.advance(120)


def short(run: UUID) -> str:
    return str(run)[-8:]


async def usual(world: World, **spec: Any) -> Agent:
    """A pool, a deployment that names it, and an agent with one slot."""
    await world.pool()
    await world.deploy(**({"pool": "main"} | spec))
    return await world.agent(limit=1)


async def one_runs(world: World, seconds: float = 60, **spec: Any) -> tuple[Agent, UUID]:
    """The same, and a run that has taken the slot so long ago."""
    agent = await usual(world, **spec)
    run = await world.submit()
    (given,) = await agent.claim()
    await agent.report(given, S.STARTING, S.RUNNING, pid=4711)
    world.clock.advance(seconds)
    await agent.beat()
    return agent, run


# ---- its time


@scene(Code.DUE_LATER)
async def due_later(world: World) -> Scene:
    await usual(world)
    run = await world.submit(scheduled_at=world.at(600))
    return Scene(
        run,
        "It is due at 2026-11-22 12:10:00 UTC (in 10m), as it was asked for when it was made.",
        f"Nothing: it starts by itself then. `shunter run skip {short(run)}` ends it unstarted.",
    )


@scene(Code.SLOT_JITTER)
async def slot_jitter(world: World) -> Scene:
    await world.pool()
    every = {"kind": "interval", "seconds": 3600, "anchor": world.at()}
    schedule = {"name": "nightly", "when": every, "jitter": 600}
    world.clock.advance(-1)
    await world.deploy(pool="main", schedules=[schedule])
    world.clock.advance(1)
    await world.fire(since=-1)
    (run,) = await world.runs()
    assert run.due_at is not None
    left = round((run.due_at - world.at()).total_seconds())
    words = f"{left}s" if left < 100 else f"{round(left / 60)}m"
    return Scene(
        run.id,
        "Its slot of schedule nightly is 2026-11-22 12:00:00 UTC, and the schedule's jitter has it start at "
        f"{run.due_at:%Y-%m-%d %H:%M:%S} UTC (in {words}).",
        f"Nothing: it starts by itself then. `shunter run skip {short(run.id)}` ends it unstarted.",
    )


@scene(Code.RETRY_DELAY)
async def retry_delay(world: World) -> Scene:
    agent = await usual(world, retries={"count": 2, "delay": 90})
    run = await world.submit()
    (given,) = await agent.claim()
    await agent.run_through(given, S.FAILED, exit_code=3)
    return Scene(
        run,
        "Attempt 1 failed, as its command ended with exit code 3; attempt 2 of 3 is due at "
        "2026-11-22 12:01:30 UTC (in 90s).",
        f"Nothing: it starts by itself then. `shunter run skip {short(run)}` ends it unstarted.",
    )


# ---- its place


@scene(Code.PLACE_GONE)
async def place_gone(world: World) -> Scene:
    agent = await usual(world)
    run = await world.submit()
    (given,) = await agent.claim()
    await agent.run_through(given, S.FAILED)
    await world.pool("other")
    await world.deploy(pool="other")
    world.clock.advance(60)
    await world.store.write(lambda tx: remove.delete_pool(tx, "main", tx.now))
    await world.retry(run)
    return Scene(
        run,
        "Its deployment, as it was then, names pool main, which is not there any more.",
        "Make it again (`shunter pool create main --type process`), or end the run: "
        f"`shunter run skip {short(run)}`.",
    )


@scene(Code.NO_POOLS)
async def no_pools(world: World) -> Scene:
    await world.pool()
    await world.deploy(tags=["gpu"])
    return Scene(
        await world.submit(),
        "No pool takes runs by their tags, and its deployment names none.",
        "Make one that does: `shunter pool create NAME --type process --match gpu`; or "
        "`shunter pool update NAME --match gpu`.",
    )


@scene(Code.NO_POOL_MATCHES)
async def no_pool_matches(world: World) -> Scene:
    await world.pool("far", match=["a", "b", "c"])
    await world.pool("gpus", match=["gpu", "region=eu"])
    await world.deploy(tags=["gpu", "team=web"])
    return Scene(
        await world.submit(),
        "No pool matches its tags (gpu, team=web): the closest, gpus, also wants region=eu.",
        "Make one that does: `shunter pool create NAME --type process --match gpu --match team=web`; or let gpus take "
        "it: `shunter pool update gpus --match gpu`.",
    )


# ---- paused


@scene(Code.SERVER_PAUSED)
async def server_paused(world: World) -> Scene:
    await usual(world)
    await pause(world, "server")
    return Scene(
        await world.submit(),
        "The server hands out no runs: maintenance since 2026-11-22 11:58:00 UTC (2m ago) by ann@box: moving.",
        "Let it go on: `shunter server resume`.",
    )


@scene(Code.POOL_PAUSED)
async def pool_paused(world: World) -> Scene:
    await usual(world)
    await pause(world, "pool", "main")
    return Scene(
        await world.submit(),
        "Pool main is paused since 2026-11-22 11:58:00 UTC (2m ago) by ann@box: moving.",
        "Let it go on: `shunter pool resume main`.",
    )


@scene(Code.QUEUE_PAUSED)
async def queue_paused(world: World) -> Scene:
    await usual(world)
    await pause(world, "queue", "default", reason="")
    return Scene(
        await world.submit(),
        "Queue default of pool main is paused since 2026-11-22 11:58:00 UTC (2m ago) by ann@box.",
        "Let it go on: `shunter queue resume main default`.",
    )


@scene(Code.DEPLOYMENT_PAUSED)
async def deployment_paused(world: World) -> Scene:
    await usual(world)
    await pause(world, "deployment", "job", by="")
    return Scene(
        await world.submit(),
        "Deployment job is paused since 2026-11-22 11:58:00 UTC (2m ago): moving.",
        "Let it go on: `shunter deployment resume job`.",
    )


# ---- full


def wait_or(command: str) -> str:
    return f"Wait for one of them to end, or raise it: `{command}`."


@scene(Code.POOL_FULL)
async def pool_full(world: World) -> Scene:
    await world.pool(limit=2)
    await world.deploy(pool="main")
    agent = await world.agent(limit=4)
    first = await world.submit()
    world.clock.advance(1)
    second = await world.submit()
    assert len(await agent.claim(4)) == 2
    world.clock.advance(5)
    return Scene(
        await world.submit(),
        f"Pool main is full: 2 of 2 active, by runs {short(first)} (job) and {short(second)} (job), "
        "the oldest for 5s.",
        wait_or("shunter pool update main --limit 3"),
    )


@scene(Code.QUEUE_FULL)
async def queue_full(world: World) -> Scene:
    await world.pool()
    await world.queue("main", "slow", limit=1)
    await world.deploy(pool="main", queue="slow")
    agent = await world.agent(limit=4)
    first = await world.submit()
    assert len(await agent.claim(4)) == 1
    return Scene(
        await world.submit(),
        f"Queue slow of pool main is full: 1 of 1 active, by run {short(first)} (job), the oldest for 0s.",
        wait_or("shunter queue update main slow --limit 2"),
    )


@scene(Code.DEPLOYMENT_FULL)
async def deployment_full(world: World) -> Scene:
    await world.pool()
    await world.deploy(pool="main", max_active=5)
    agent = await world.agent(limit=9)
    for _ in range(5):
        await world.submit()
        world.clock.advance(1)
    assert len(await agent.claim(9)) == 5
    found = [run.id for run in await world.runs()]
    named = ", ".join(f"{short(run)} (job)" for run in found[:3])
    return Scene(
        await world.submit(),
        f"Deployment job is full: 5 of 5 active, by runs {named} and 2 others, the oldest for 0s.",
        wait_or("shunter deploy --name job --max-active 6 ..."),
    )


@scene(Code.BACKFILL_FULL)
async def backfill_full(world: World) -> Scene:
    await world.pool()
    every = {"kind": "interval", "seconds": 3600, "anchor": world.at()}
    await world.deploy(pool="main", schedules=[{"when": every}])
    wanted = BackfillRequest(start=world.at(-7200), end=world.at(0), concurrency=1)
    await world.store.write(lambda tx: backfill.backfill(tx, "job", wanted))
    agent = await world.agent(limit=4)
    (given,) = await agent.claim(4)
    run = next(run.id for run in await world.runs() if run.id != given.run)
    return Scene(
        run,
        f"Backfill 1 of deployment job is full: 1 of 1 active, by run {short(given.run)} (job), "
        "the oldest for 0s.",
        "Wait for one of them to end.",
    )


@scene(Code.LIMIT_FULL)
async def limit_full(world: World) -> Scene:
    await limit(world, "warehouse", max=1)
    await world.pool()
    await world.deploy("other", pool="main", limits=["warehouse"])
    await world.deploy(pool="main", limits=["warehouse"])
    agent = await world.agent(limit=4)
    first = await world.submit("other")
    await agent.claim(4)
    return Scene(
        await world.submit(),
        f"Limit warehouse is full: 1 of 1 active, by run {short(first)} (other), the oldest for 0s.",
        wait_or("shunter limit update warehouse --max 2"),
    )


@scene(Code.TAG_LIMIT_FULL)
async def tag_limit_full(world: World) -> Scene:
    await limit(world, "databases", tag="db", max=0)
    await usual(world, tags=["db"])
    return Scene(
        await world.submit(),
        "Limit databases of tag db has a limit of 0: none of its runs may start.",
        "Wait, or raise it: `shunter limit update databases --max 1`.",
    )


@scene(Code.RATE_USED_UP)
async def rate_used_up(world: World) -> Scene:
    await limit(world, "api", rate={"count": 2, "seconds": 60})
    await world.pool()
    await world.deploy(pool="main", limits=["api"])
    agent = await world.agent(limit=9)
    for _ in range(3):
        run = await world.submit()
        await agent.claim(9)
        world.clock.advance(10)
    return Scene(
        run,
        "Limit api allows 2 starts in any 60s, and they are used up until 2026-11-22 12:01:00 UTC (in 30s).",
        "Nothing: it may start then. Or allow more: `shunter limit update api --rate 3/60s`.",
    )


# ---- no agent


@scene(Code.NEVER_SERVED)
async def never_served(world: World) -> Scene:
    await world.pool()
    await world.pool("other")
    await world.agent("a1", "other")
    await world.deploy(pool="main")
    return Scene(
        await world.submit(),
        "No agent has ever served pool main.",
        "Start one: `shunter agent start --pool main`.",
    )


@scene(Code.QUEUE_NOT_SERVED)
async def queue_not_served(world: World) -> Scene:
    await world.pool()
    await world.queue("main", "slow")
    await world.deploy(pool="main", queue="slow")
    await world.agent(queues=["default"])
    return Scene(
        await world.submit(),
        "No agent serves queue slow of pool main: a1 serves other queues of it.",
        "Start one that does: `shunter agent start --pool main --queue slow --name main-2`.",
    )


@scene(Code.TAGS_MISSING)
async def tags_missing(world: World) -> Scene:
    await world.pool()
    await world.deploy(pool="main", require=["gpu", "ssd", "os=linux"])
    await world.agent("a1")
    await world.agent("a2", tags=["ssd"], found_tags=["os=linux"])
    return Scene(
        await world.submit(),
        "No agent of pool main has all tags that are required (gpu, os=linux and ssd): "
        "the closest, a2, lacks gpu.",
        "Start one that has: `shunter agent start --pool main --name main-2 --tag ssd` on a machine with gpu and "
        "os=linux.",
    )


@scene(Code.CAPACITY_NEVER)
async def capacity_never(world: World) -> Scene:
    await world.pool()
    await world.deploy(pool="main", need={"gpu": 4, "memory": 2**30})
    await world.agent("a1", capacity={"gpu": 1, "memory": 2**33})
    await world.agent("a2", capacity={"gpu": 2, "memory": 2**33})
    return Scene(
        await world.submit(),
        "It needs gpu=4, and no agent of pool main that could take it has more than 2.",
        "Start an agent that has more: `shunter agent start --pool main --name main-2 --capacity gpu=4`; or deploy "
        "with a smaller --need.",
    )


@scene(Code.AGENTS_LOST)
async def agents_lost(world: World) -> Scene:
    await usual(world)
    world.clock.advance(300)
    return Scene(
        await world.submit(),
        "Agent a1, the only one that could take it, is lost: last heard of at 2026-11-22 12:00:00 UTC (5m ago).",
        "Start it again on its machine, or another: `shunter agent start --pool main --name main-2`.",
    )


@scene(Code.AGENTS_DRAINING)
async def agents_draining(world: World) -> Scene:
    await world.pool()
    await world.deploy(pool="main")
    await world.agent("a1", draining=True)
    await world.agent("a2", draining=True)
    return Scene(
        await world.submit(),
        "The 2 agents that could take it are all draining: they take nothing new and end when idle.",
        "Start another: `shunter agent start --pool main --name main-2`.",
    )


@scene(Code.AGENTS_PAUSED)
async def agents_paused(world: World) -> Scene:
    await usual(world)
    await pause(world, "agent", "a1")
    return Scene(
        await world.submit(),
        "Agent a1, the only one that could take it, is paused since 2026-11-22 11:58:00 UTC (2m ago) by ann@box: "
        "moving.",
        "Let it go on: `shunter agent resume a1`.",
    )


@scene(Code.AGENTS_UNHEALTHY)
async def agents_unhealthy(world: World) -> Scene:
    await world.pool()
    await world.deploy(pool="main")
    await world.agent(troubles=["only 12MiB are free where its state folder is"])
    return Scene(
        await world.submit(),
        "Agent a1, the only one that could take it, is unwell: only 12MiB are free where its state folder is.",
        "Mend what it says: `shunter agent inspect a1`. It goes on by itself then.",
    )


@scene(Code.AGENTS_AWAY)
async def agents_away(world: World) -> Scene:
    await usual(world)
    world.clock.advance(60)
    await world.agent("a2", draining=True)
    await world.agent("a3", troubles=["no disk"])
    return Scene(
        await world.submit(),
        "None of the 3 agents that could take it takes anything now: 1 lost, 1 draining and 1 unwell.",
        "See `shunter agent list --pool main`, or start another: `shunter agent start --pool main --name main-2`.",
    )


# ---- busy


ANOTHER = (
    "Wait for one of these to end, or start another agent: `shunter agent start --pool main --name main-2`."
)


@scene(Code.CAPACITY_BUSY)
async def capacity_busy(world: World) -> Scene:
    await world.pool()
    await world.deploy(pool="main", need={"gpu": 2})
    await world.deploy("small", pool="main")
    agent = await world.agent(capacity={"gpu": 3}, limit=9)
    await world.submit("small")
    first = await world.submit()
    assert len(await agent.claim(9)) == 2
    return Scene(
        await world.submit(),
        f"It needs gpu=2, and on agent a1 no more than gpu=1 is free, held by run {short(first)} (job).",
        ANOTHER.replace("main-2", "main-2 --capacity gpu=2"),
    )


@scene(Code.SLOTS_BUSY)
async def slots_busy(world: World) -> Scene:
    _, first = await one_runs(world)
    return Scene(
        await world.submit(),
        f"The one slot of agent a1 is taken, the longest by run {short(first)} (job) for 60s.",
        ANOTHER,
    )


@scene(Code.IN_LINE)
async def in_line(world: World) -> Scene:
    _, first = await one_runs(world)
    await world.deploy("b", pool="main")
    await world.submit("b")
    await world.submit(priority=5)
    await world.submit()
    world.clock.advance(0.001)
    return Scene(
        await world.submit(),
        "It waits behind 2 runs in turn with 1 other deployment: the one slot of agent a1 is taken, the longest by "
        f"run {short(first)} (job) for 60s.",
        "Wait, start another agent (`shunter agent start --pool main --name main-2`), or give it a higher priority.",
    )


@scene(Code.AVOIDS_AGENT)
async def avoids_agent(world: World) -> Scene:
    agent = await usual(world, retries={"count": 1})
    await world.agent("a2")
    run = await world.submit()
    (given,) = await agent.claim()
    await agent.run_through(given, S.CRASHED, cause="start_failed", message="no such file")
    world.clock.advance(20)
    await world.agent("a2", draining=True, identity=UUID(int=2), session=UUID(int=9))
    return Scene(
        run,
        "Attempt 2 waits: agent a1, which alone has room for it now, could not launch its last attempt: another may "
        "take it until 2026-11-22 12:01:00 UTC (in 40s), then a1 may again.",
        f"Nothing: it starts by itself then. What was wrong: `shunter run inspect {short(run)}`.",
    )


@scene(Code.ABOUT_TO_START)
async def about_to_start(world: World) -> Scene:
    await usual(world)
    return Scene(
        await world.submit(),
        "Nothing holds it back: agent a1 has room for it.",
        "Nothing: it is about to start. If it is not, look at the agent: `shunter agent inspect a1`.",
    )


# ---- active


@scene(Code.CLAIMED)
async def claimed(world: World) -> Scene:
    agent = await usual(world)
    run = await world.submit()
    await agent.claim()
    world.clock.advance(2)
    return Scene(
        run,
        "Agent a1 was given it at 2026-11-22 12:00:00 UTC (2s ago), and has not said yet that it begins.",
        "Nothing: it begins at once, or is given to another. See `shunter agent inspect a1`.",
    )


@scene(Code.STARTING)
async def starting(world: World) -> Scene:
    agent = await usual(world, work={"command": ["job"], "start_timeout": 30})
    run = await world.submit()
    (given,) = await agent.claim()
    await agent.report(given, S.STARTING)
    return Scene(
        run,
        "Agent a1 is launching it, and has until 2026-11-22 12:00:30 UTC (in 30s) for that.",
        f"Nothing: it starts, or ends as Crashed. `shunter run cancel {short(run)}` stops it.",
    )


@scene(Code.RUNNING)
async def running(world: World) -> Scene:
    _, run = await one_runs(world, work={"command": ["job"], "timeout": 3600})
    return Scene(
        run,
        "It has run on agent a1 as process 4711 since 2026-11-22 12:00:00 UTC (60s ago); its time is over at "
        "2026-11-22 13:00:00 UTC (in 59m).",
        f"Nothing: it is at work. `shunter run logs {short(run)} --follow` shows it; `shunter run cancel {short(run)}` stops it.",
    )


@scene(Code.CANCELLING)
async def cancelling(world: World) -> Scene:
    _, run = await one_runs(world)
    await world.cancel(run)
    world.clock.advance(3)
    return Scene(
        run,
        "It is being stopped, as somebody asked at 2026-11-22 12:01:00 UTC (3s ago); agent a1 gives it 10s to end, "
        "then kills it.",
        f"Nothing: it ends by itself. `shunter run wait {short(run)}` waits for it.",
    )


@scene(Code.SUPERSEDING)
async def superseding(world: World) -> Scene:
    _, run = await one_runs(world, max_active=1, when_full="cancel_running")
    await world.submit()
    await world.store.write(limits.act_when_full)
    return Scene(
        run,
        "It is being stopped since 2026-11-22 12:01:00 UTC (0s ago), as a newer run takes its place: deployment job "
        "is full; agent a1 gives it 10s to end, then kills it.",
        f"Nothing: it ends by itself. `shunter run wait {short(run)}` waits for it.",
    )


@scene(Code.AGENT_SILENT)
async def agent_silent(world: World) -> Scene:
    _, run = await one_runs(world, seconds=0, on_lost="retry")
    world.clock.advance(60)
    await world.reap()
    return Scene(
        run,
        "Agent a1, which has it, is silent since 2026-11-22 12:00:00 UTC (60s ago): it has until "
        "2026-11-22 12:05:00 UTC (in 4m) to come back, then the run is tried again.",
        "Look after its machine; the agent finds the run again. If it is gone for good: `shunter agent remove a1`.",
    )


# ---- ended


LOOK = "Read what it wrote: `shunter run logs {run}`. Then `shunter run retry {run}`."
RETRY = "`shunter run retry {run}` tries it again."
MEND = "Mend that, then `shunter run retry {run}`."


async def ended(world: World, state: S, sentence: str, next_step: str, **end: Any) -> Scene:
    """A run that ends so on agent a1, after 12 seconds."""
    agent = await usual(world)
    run = await world.submit()
    (given,) = await agent.claim()
    await agent.report(given, S.STARTING, S.RUNNING)
    world.clock.advance(12)
    await agent.report(given, state, log_size=0, **end)
    return Scene(run, sentence, next_step.format(run=short(run)))


ENDED: dict[Code, tuple[S, str, str, dict[str, Any]]] = {
    Code.COMPLETED: (
        S.COMPLETED,
        "It completed in 12s, at its first attempt, on agent a1.",
        "Nothing: it is done. `shunter run logs {run}` shows what it wrote.",
        {},
    ),
    Code.EXIT_CODE: (
        S.FAILED,
        "It failed after 12s on agent a1: its command ended with exit code 3.",
        LOOK,
        {"cause": "exit_code", "exit_code": 3, "message": "exit code 3"},
    ),
    Code.EXCEPTION: (
        S.FAILED,
        "It failed after 12s on agent a1: its function raised an exception: ValueError: no such year.",
        LOOK,
        {"cause": "exception", "exit_code": 1, "message": "ValueError: no such\nyear."},
    ),
    Code.SIGNAL_OWN: (
        S.FAILED,
        "It failed after 12s on agent a1: its process died of a fault of its own (SIGSEGV).",
        LOOK,
        {"cause": "signal", "signal": "SIGSEGV", "message": "ended by SIGSEGV"},
    ),
    Code.SIGNAL_OUTSIDE: (
        S.CRASHED,
        "It crashed after 12s on agent a1: its process was killed from outside (SIGKILL).",
        "Find out who did that on the machine of a1. " + RETRY,
        {"cause": "signal", "signal": "SIGKILL"},
    ),
    Code.OOM: (
        S.CRASHED,
        "It crashed after 12s on agent a1: it was killed because memory ran out: more than 512MiB.",
        "Deploy it with a higher --memory-limit, or where there is more memory (--need memory=...); then "
        "`shunter run start job`.",
        {"cause": "oom", "signal": "SIGKILL", "message": "more than 512MiB"},
    ),
    Code.EVICTED: (
        S.CRASHED,
        "It crashed after 12s on agent a1: its place was taken back: its agent was told to end.",
        RETRY,
        {"cause": "evicted", "message": "its agent was told to end"},
    ),
    Code.PREEMPTED: (
        S.CRASHED,
        "It crashed after 12s on agent a1: something of a higher priority took its place.",
        RETRY,
        {"cause": "preempted"},
    ),
    Code.IMAGE_PULL: (
        S.CRASHED,
        "It crashed after 12s on agent a1: its image could not be had: no such image.",
        MEND,
        {"cause": "image_pull", "message": "no such image"},
    ),
    Code.UNSCHEDULABLE: (
        S.CRASHED,
        "It crashed after 12s on agent a1: no node of the cluster could take it.",
        MEND,
        {"cause": "unschedulable"},
    ),
    Code.START_FAILED: (
        S.CRASHED,
        "It crashed after 12s on agent a1: it could not be started: ./job: no such file.",
        MEND,
        {"cause": "start_failed", "message": "./job: no such file"},
    ),
    Code.START_TIMEOUT: (
        S.CRASHED,
        "It crashed after 12s on agent a1: it did not start in time.",
        MEND,
        {"cause": "start_timeout"},
    ),
    Code.NODE_LOST: (
        S.CRASHED,
        "It crashed after 12s on agent a1: the machine under it is gone.",
        RETRY,
        {"cause": "node_lost"},
    ),
    Code.KEEPER_LOST: (
        S.CRASHED,
        "It crashed after 12s on agent a1: what watched over it died with it: how it ended cannot be known.",
        "See how far it came: `shunter run logs {run}`. Then `shunter run retry {run}`.",
        {"cause": "keeper_lost", "message": "how it ended cannot be known"},
    ),
    Code.SOURCE: (
        S.CRASHED,
        "It crashed after 12s on agent a1: its code or environment could not be had: no folder /srv/jobs.",
        MEND,
        {"cause": "source", "message": "no folder /srv/jobs"},
    ),
    Code.DELETED: (
        S.CRASHED,
        "It crashed after 12s on agent a1: somebody deleted it under its agent.",
        RETRY,
        {"cause": "deleted"},
    ),
    Code.REJECTED: (
        S.CRASHED,
        "It crashed after 12s on agent a1: the infrastructure refused to make it: quota.",
        MEND,
        {"cause": "rejected", "message": "quota"},
    ),
    Code.TIMEOUT: (
        S.TIMED_OUT,
        "It timed out after 12s on agent a1: it took longer than its deployment allows.",
        "See what took so long: `shunter run logs {run}`. Deploy it with a longer --timeout, or " + RETRY,
        {"cause": "timeout"},
    ),
    Code.CANCELLED: (
        S.CANCELLED,
        "It was cancelled after 12s on agent a1: it was stopped, as somebody asked.",
        RETRY,
        {"cause": "cancelled"},
    ),
}


def _reported(code: Code) -> Play:
    state, sentence, next_step, end = ENDED[code]

    async def play(world: World) -> Scene:
        return await ended(world, state, sentence, next_step, **end)

    return play


for _code in ENDED:
    scene(_code)(_reported(_code))


@scene(Code.AGENT_LOST)
async def agent_lost(world: World) -> Scene:
    _, run = await one_runs(world, seconds=0)
    for _ in range(2):
        world.clock.advance(GIVE_UP_AFTER)
        await world.reap()
    return Scene(
        run,
        "It crashed after 10m on agent a1: agent a1 has been silent for too long; whether the work goes on there "
        "cannot be known.",
        f"Make sure that nothing of it still runs on the machine of a1, then `shunter run retry {short(run)}`.",
    )


@scene(Code.CANCELLED_WAITING)
async def cancelled_waiting(world: World) -> Scene:
    await usual(world)
    run = await world.submit()
    await world.cancel(run)
    return Scene(
        run,
        "It was cancelled: somebody asked for that while it waited.",
        RETRY.format(run=short(run)),
    )


@scene(Code.SKIPPED)
async def skipped(world: World) -> Scene:
    await usual(world)
    run = await world.submit()
    await world.skip(run)
    return Scene(
        run,
        "It was cancelled: it was not to be started any more, as somebody asked.",
        RETRY.format(run=short(run)),
    )


@scene(Code.SKIPPED_WHEN_FULL)
async def skipped_when_full(world: World) -> Scene:
    await one_runs(world, max_active=1, when_full="cancel_new")
    run = await world.submit()
    await world.store.write(limits.act_when_full)
    return Scene(
        run,
        "It was cancelled: deployment job was full when it was due.",
        f"Nothing: a limit wants it so. {RETRY.format(run=short(run))}",
    )


@scene(Code.SUPERSEDED)
async def superseded(world: World) -> Scene:
    await one_runs(world, max_active=1, when_full="cancel_running")
    run = await world.submit()
    world.clock.advance(1)
    await world.submit()
    await world.store.write(limits.act_when_full)
    return Scene(
        run,
        "It was cancelled: a newer run took its place: deployment job is full.",
        "Nothing: its deployment or a limit wants it so.",
    )


# ---- the catalogue


@pytest.mark.parametrize("code", Code)
async def test_each_reason_is_provoked_and_told(world: World, code: Code) -> None:
    assert code in SCENES, f"nothing provokes {code.value}"
    run, sentence, next_step = await SCENES[code](world)
    found = await explained(world, run)
    assert found.sentence == sentence
    assert (found.code, found.next_step) == (code.value, next_step)
    assert found.run == run
    assert found.state == await world.state(run)
    pattern, meaning = catalogue()[code.value]
    said = found.sentence.removeprefix("Attempt 2 waits: ")
    assert re.fullmatch(_regex(pattern), said[0].upper() + said[1:]), f"docs/explanations.md has: {pattern}"
    assert meaning
    if found.state in ("Scheduled", "Retrying"):
        granted = await claim_for_all(world)
        assert (run in granted) is (code is Code.ABOUT_TO_START), "the queue decides otherwise"


async def claim_for_all(world: World) -> set[UUID]:
    """Runs that are granted when every agent that is there and takes runs at all offers what it has."""

    def offers(tx: Tx) -> list[Offer]:
        pool_ids = {row.name: row.id for row in tx.conn.execute(select(pools))}
        return [
            Offer(
                agent_id=row.id,
                session=row.session,
                pools=frozenset(pool_ids[name] for name in row.pools),
                queues=frozenset(row.queues),
                tags=frozenset([*row.tags, *row.found_tags]),
                free=row.limit,
                limit=row.limit,
                capacity=row.capacity,
                free_capacity=dict(row.capacity),
            )
            for row in tx.conn.execute(select(agents))
            if not row.draining and not row.troubles and row.last_seen_at > tx.now - round(LOST_AFTER * 1e6)
        ]

    made = await world.store.read(offers)
    await world.store.write(lambda tx: claim(tx, made))
    return {given.run for offer in made for given in offer.granted}


def catalogue() -> dict[str, tuple[str, str]]:
    """Sentence and meaning of each code, as the page has them."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    assert len({row[0] for row in rows}) == len(rows), "a code stands twice on the page"
    return {code: (pattern, meaning) for code, pattern, meaning in rows}


def _regex(pattern: str) -> str:
    """What stands in angle brackets stands for something."""
    return "".join(
        ".*" if part.startswith("<") else re.escape(part) for part in re.split(r"(<[^>]+>)", pattern)
    )


def test_the_page_has_every_code_and_no_other() -> None:
    assert list(catalogue()) == [code.value for code in Code], "in the order in which they are told"
    assert len(Code) >= 30


# ---- several at once, and many


async def test_the_first_that_holds_is_told_and_the_others_beside_it(world: World) -> None:
    await limit(world, "warehouse", max=0)
    await world.pool(limit=0)
    await world.deploy(pool="main", limits=["warehouse"], require=["gpu"])
    await world.agent()
    run = await world.submit(scheduled_at=world.at(60))
    await pause(world, "pool", "main")
    await pause(world, "server")
    await pause(world, "deployment", "job")
    found = await explained(world, run)
    codes = [found.code, *(one["code"] for one in found.details["also"])]
    assert codes == [
        "due_later",
        "server_paused",
        "pool_paused",
        "deployment_paused",
        "pool_full",
        "limit_full",
        "tags_missing",
    ]
    order = [code.value for code in Code]
    assert codes == sorted(codes, key=order.index), "in the order of the page"
    assert all(one["sentence"].endswith(".") and one["next_step"] for one in found.details["also"])


async def test_one_without_a_place_is_held_by_pauses_too(world: World) -> None:
    await world.deploy()
    await pause(world, "server")
    await pause(world, "deployment", "job")
    found = await explained(world, await world.submit())
    codes = [found.code, *(one["code"] for one in found.details["also"])]
    assert codes == ["no_pools", "server_paused", "deployment_paused"]


async def test_late_and_which_attempt_come_first(world: World) -> None:
    agent = await usual(world, retries={"count": 1})
    run = await world.submit()
    (given,) = await agent.claim()
    await agent.run_through(given, S.FAILED)
    world.clock.advance(600)
    await world.reap()
    found = await explained(world, run)
    assert found.sentence.startswith("Late by 10m, attempt 2 waits: agent a1, the only one")
    assert found.details["late"] is True


async def test_an_agent_that_has_all_that_is_wanted_is_the_reason_not_those_that_never_could(
    world: World,
) -> None:
    await world.pool()
    await world.deploy(pool="main", require=["gpu"])
    await world.agent("a1", tags=["gpu"])
    world.clock.advance(60)
    await world.agent("a2")
    found = await explained(world, await world.submit())
    assert (found.code, found.details["agents"]) == ("agents_lost", ["a1"])


async def test_what_is_held_back_is_not_ahead(world: World) -> None:
    """Neither what is paused or full, nor what these agents cannot take."""
    _, first = await one_runs(world)
    await world.deploy("paused", pool="main", priority=9)
    await world.deploy("full", pool="main", max_active=0, priority=9)
    await world.deploy("gpu", pool="main", require=["gpu"], priority=9)
    await world.deploy("large", pool="main", need={"fpga": 1}, priority=9)
    await world.deploy("beside", pool="main", need={"fpga": 1})
    for name in ("paused", "full", "gpu", "large", "beside"):
        await world.submit(name)
    await pause(world, "deployment", "paused")
    run = await world.submit()
    assert (await explained(world, run)).code == "slots_busy"
    await world.deploy("urgent", pool="main", priority=9)
    await world.submit("urgent")
    found = await explained(world, run)
    assert (found.code, found.details["ahead"]) == ("in_line", 1)
    assert found.details["runs"] == [str(first)]


async def test_no_more_than_a_thousand_are_counted(world: World) -> None:
    await one_runs(world)
    await world.submit_many(*[{"deployment": "job", "priority": 1}] * 700)
    await world.submit_many(*["job"] * 500)
    world.clock.advance(1)
    run = await world.submit()
    found = await explained(world, run)
    assert found.details["ahead"] == 1001
    assert "behind more than 1,000 runs" in found.sentence


async def test_silence_tells_what_becomes_of_the_run(world: World) -> None:
    for on_lost, then in (
        ("wait", "the run waits for it however long that takes"),
        ("crash", "then the run ends as Crashed"),
    ):
        await world.pool(on_lost)
        await world.deploy(on_lost, pool=on_lost, on_lost=on_lost)
        agent = await world.agent(f"a-{on_lost}", on_lost)
        run = await world.submit(on_lost)
        await agent.claim()
        world.clock.advance(60)
        found = await explained(world, run)
        assert found.code == "agent_silent"
        assert then in found.sentence
        assert [one["code"] for one in found.details["also"]] == ["claimed"]


# ---- what can be done


async def test_one_agent_that_drains_is_told_in_the_singular(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    await world.agent("a1", draining=True)
    found = await explained(world, await world.submit())
    assert found.sentence == (
        "Agent a1, the only one that could take it, is draining: it takes nothing new and ends when idle."
    )


async def test_a_run_without_tags_is_told_that_no_pool_can_ever_take_it(world: World) -> None:
    await world.deploy()
    run = await world.submit()
    step = (
        f"No pool can ever take it: end it (`shunter run skip {short(run)}`), deploy with --pool NAME, and start it "
        "again."
    )
    found = await explained(world, run)
    assert (found.code, found.next_step) == ("no_pools", step)
    await world.pool("gpus", match=["gpu"])
    found = await explained(world, run)
    assert (found.code, found.next_step) == ("no_pool_matches", step)
    assert found.sentence == "No pool matches it: it names none, and has no tags."
    assert re.fullmatch(_regex(catalogue()[found.code][0]), found.sentence)


async def test_what_is_said_to_do_gives_a_waiting_run_a_place(world: World) -> None:
    await world.deploy(tags=["gpu", "team=web"])
    run = await world.submit()
    await world.pool("gpus", match=["gpu", "region=eu"])
    assert "`shunter pool update gpus --match gpu`" in (await explained(world, run)).next_step
    await world.patch_pool("gpus", match=["gpu"])
    assert (await world.run(run)).pool == "gpus"


async def test_an_agent_that_is_to_be_started_has_a_name_of_its_own_and_all_that_is_demanded(
    world: World,
) -> None:
    await world.pool()
    need = {"gpu": 2, "cpu": 1}
    await world.deploy(pool="main", require=["ssd", "arch=arm64", "region=eu"], need=need)
    run = await world.submit()
    assert (await explained(world, run)).next_step == (
        "Start one: `shunter agent start --pool main --tag ssd --capacity gpu=2` on a machine with arch=arm64 and "
        "region=eu."
    )
    await world.agent("main-2", tags=["region=us"], found_tags=["arch=arm64"])
    found = await explained(world, run)
    assert found.next_step == (
        "Start one that has: `shunter agent start --pool main --name main-3 --tag region=eu --tag ssd --capacity gpu=2` "
        "on a machine with arch=arm64; or end main-2 and start it again with --tag region=eu --tag ssd besides."
    ), "where regions are said by hand"


async def test_memory_that_no_agent_has_is_told_in_few_figures(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", need={"memory": 900 * 2**30})
    await world.agent(capacity={"memory": 24684084 * 1024})
    found = await explained(world, await world.submit())
    assert (
        found.sentence
        == "It needs memory=900GiB, and no agent of pool main that could take it has more than 23.5GiB."
    )
    assert found.next_step == (
        "Start an agent that has more: `shunter agent start --pool main --name main-2` on a machine with "
        "memory=900GiB; or deploy with a smaller --need."
    )


async def test_agents_that_each_lack_something_else_are_not_said_to_lack_all(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", need={"gpu": 4, "fpga": 1})
    await world.agent("a1", capacity={"gpu": 8})
    await world.agent("a2", capacity={"gpu": 2, "fpga": 1})
    run = await world.submit()
    assert (await explained(world, run)).sentence == (
        "It needs fpga=1 gpu=4, and no agent of pool main that could take it has all of that: the closest, a2, has "
        "gpu=2."
    )
    await world.deploy("none", pool="main", need={"tpu": 1})
    found = await explained(world, await world.submit("none"))
    assert found.sentence == "It needs tpu=1, and no agent of pool main that could take it has any tpu."


async def test_a_silent_agent_stops_its_run_once_it_is_back(world: World) -> None:
    _, run = await one_runs(world)
    await world.cancel(run)
    world.clock.advance(60)
    found = await explained(world, run)
    assert found.code == "agent_silent"
    (also,) = found.details["also"]
    assert also["sentence"].endswith("agent a1, once it is back, gives it 10s to end, then kills it.")


async def test_moments_for_programs_are_as_everywhere_in_the_api(world: World) -> None:
    await usual(world)
    world.clock.advance(0.25)
    run = await world.submit(scheduled_at=world.at(600))
    due = (await explained(world, run)).details["due_at"]
    assert due == (await world.run(run)).model_dump(mode="json")["due_at"] == "2026-11-22T12:10:00.250000Z"
