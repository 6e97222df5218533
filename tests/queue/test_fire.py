"""Schedules: each slot once, missed ones made up for within bounds, nothing made while paused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select

from shunter_work_pools.contracts.errors import BadRequest, NotFound
from shunter_work_pools.queue import fire, timetable, views
from shunter_work_pools.storage.schema import events, runs
from tests.queue.world import LATE_AFTER, World


def every(seconds: float, **more: Any) -> dict[str, Any]:
    return {"when": {"kind": "interval", "seconds": seconds}, **more}


def cron(text: str, zone: str = "UTC", **more: Any) -> dict[str, Any]:
    return {"when": {"kind": "cron", "cron": text, "timezone": zone}, **more}


async def slots(world: World) -> list[float]:
    """Seconds from now of the slots that became runs, oldest first."""
    return sorted(
        (run.slot - world.at()).total_seconds() for run in await world.runs() if run.slot is not None
    )


async def skipped(world: World) -> list[Any]:
    return await world.store.read(
        lambda tx: tx.conn.execute(select(events).where(events.c.kind == "catch_up_skipped")).all()
    )


async def test_a_slot_that_is_due_becomes_one_run(world: World) -> None:
    await world.pool()
    await world.deploy(
        pool="main", parameters={"a": 1, "b": 1}, schedules=[every(60, parameters={"b": 2}, name="often")]
    )
    assert await world.fire() == 0
    world.clock.advance(59.999)
    assert await world.fire() == 0
    world.clock.advance(0.001)
    world.noticed()
    assert await world.fire() == 1
    assert world.noticed().pools
    assert await world.fire() == 0
    (run,) = await world.runs()
    assert (run.schedule, run.slot, run.scheduled_at) == ("often", world.at(), world.at())
    assert (run.parameters, run.late) == ({"a": 1, "b": 2}, False)
    assert await world.story(run.id) == ["Scheduled/scheduler"]
    assert await world.store.read(fire.next_slot_in) == 60


async def test_a_daily_time_in_its_zone(world: World) -> None:
    await world.deploy(schedules=[cron("0 6 * * *", "Europe/Berlin")])
    due = await world.store.read(fire.next_slot_in)
    assert due == (datetime(2026, 11, 23, 5, 0, tzinfo=UTC) - world.at()).total_seconds()


async def test_missed_slots_are_made_up_for_and_late_if_they_are(world: World) -> None:
    await world.deploy(schedules=[every(10)])
    world.clock.advance(42)
    assert await world.fire() == 1
    assert await slots(world) == [-32, -22, -12, -2]
    assert [run.late for run in await world.runs()] == [True, True, False, False]
    assert [(await world.story(run.id))[-1] for run in await world.runs()][:2] == ["late/scheduler"] * 2
    assert not await skipped(world)


async def test_of_very_many_missed_slots_the_newest_hundred_are_made_and_the_rest_is_told_once(
    world: World,
) -> None:
    await world.deploy(schedules=[every(60)])
    world.clock.advance(3 * 3600 + 5)
    await world.fire()
    found = await slots(world)
    assert len(found) == 100
    assert found[-1] == -5
    assert found[0] == -5 - 99 * 60
    (event,) = await skipped(world)
    assert (event.actor, event.data["schedule"]) == ("scheduler", "default")
    await world.fire()
    assert len(await skipped(world)) == 1


async def test_nothing_older_than_a_day_is_made_up_for(world: World) -> None:
    await world.deploy(schedules=[every(3600)])
    world.clock.advance(40 * 3600)
    await world.fire()
    found = await slots(world)
    assert found[0] == -24 * 3600
    assert len(found) == 25
    assert len(await skipped(world)) == 1


async def test_several_schedules_of_one_deployment_each_make_their_runs(world: World) -> None:
    await world.deploy(schedules=[every(60, name="a"), every(60, name="b"), every(90, name="c", paused=True)])
    world.clock.advance(60)
    assert await world.fire() == 2
    assert sorted(run.schedule or "" for run in await world.runs()) == ["a", "b"]


POLICIES = {"all": [-480, -360, -240, -120, 0], "latest": [0], "none": []}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["schedule", "deployment", "deploy"])
async def test_what_was_missed_in_a_pause_its_policy_decides(world: World, way: str, policy: str) -> None:
    async def pause(paused: bool) -> None:
        if way == "schedule":
            await world.pause_schedule(paused=paused, since=-10_000)
        elif way == "deployment":
            await world.pause_deployment(paused=paused, since=-10_000)
        else:
            await world.deploy(schedules=[every(120, catch_up=policy, paused=paused)])

    await world.deploy(schedules=[every(120, catch_up=policy)])
    await pause(True)
    assert await world.store.read(fire.next_slot_in) is None
    world.clock.advance(600)
    assert await world.fire() == 0
    world.noticed()
    await pause(False)
    assert world.noticed().schedules
    await world.fire(since=-10_000)
    assert await slots(world) == POLICIES[policy]
    told = [event.data for event in await skipped(world)]
    if policy == "all":
        assert told == []
    else:
        last = world.at(0 if policy == "none" else -120).isoformat()
        assert told == [
            {
                "schedule": "default",
                "policy": policy,
                "reason": "catch_up",
                "since": world.at(-480).isoformat(),
                "until": last,
                "slots": 5 if policy == "none" else 4,
            }
        ]
    world.clock.advance(120)
    await world.fire(since=-10_000)
    assert (await slots(world))[-1] == 0


@pytest.mark.parametrize("way", ["schedule", "deployment"])
async def test_a_slot_that_was_due_before_a_pause_is_made_before_it(world: World, way: str) -> None:
    await world.deploy(schedules=[every(60, catch_up="none")])
    world.clock.advance(60)
    pause = world.pause_schedule if way == "schedule" else world.pause_deployment
    await pause(since=-100)
    assert await slots(world) == [0]
    world.clock.advance(60)
    await pause(since=-100)  # twice changes nothing
    await pause(paused=False, since=-100)
    await world.fire(since=-100)
    assert await slots(world) == [-60]


async def test_a_schedule_resumed_in_a_paused_deployment_waits_for_it(world: World) -> None:
    await world.deploy(schedules=[every(60)])
    await world.pause_schedule()
    await world.pause_deployment()
    world.clock.advance(60)
    await world.pause_schedule(paused=False)
    assert await world.fire() == 0
    world.clock.advance(60)
    await world.pause_deployment(paused=False)
    await world.fire()
    assert await slots(world) == [-60, 0]


async def test_a_pause_survives_deploys_that_do_not_speak_of_it(world: World) -> None:
    await world.deploy(schedules=[every(60)])
    await world.pause_schedule()
    await world.deploy(description="new", schedules=[every(60)])
    await world.deploy(description="newer", schedules=[every(90)])
    assert await world.store.read(fire.next_slot_in) is None
    await world.deploy(schedules=[every(90, paused=True)])
    await world.deploy(schedules=[every(90, paused=False)])
    assert await world.store.read(fire.next_slot_in) == 90
    await world.deploy(schedules=[every(90, paused=True)])
    await world.pause_schedule(paused=False)
    await world.deploy(description="again", schedules=[every(90, paused=True)])
    assert await world.store.read(fire.next_slot_in) == 90


@pytest.mark.parametrize("way", ["edited", "removed"])
async def test_slots_of_old_times_in_a_pause_are_dropped_and_told(world: World, way: str) -> None:
    await world.deploy(schedules=[every(60)])
    await world.pause_schedule()
    world.clock.advance(150)
    await world.deploy(schedules=[every(100)] if way == "edited" else [every(100, name="other")])
    (event,) = await skipped(world)
    assert (event.data["reason"], event.data["slots"]) == (way, 2)
    assert event.data["since"] == world.at(-90).isoformat()
    if way == "edited":
        await world.pause_schedule(paused=False)
    world.clock.advance(100)
    await world.fire()
    assert await slots(world) == [0]


async def test_a_schedule_that_comes_again_begins_anew(world: World) -> None:
    await world.deploy(schedules=[every(60, name="a")])
    world.clock.advance(30)
    await world.deploy(schedules=[])
    world.clock.advance(3600)
    await world.deploy(schedules=[every(60, name="a")])
    assert await world.store.read(fire.next_slot_in) == 60
    assert await world.fire() == 0
    assert await skipped(world) == []


async def test_bad_pauses_change_nothing(world: World) -> None:
    await world.deploy(schedules=[every(60, name="often")])
    with pytest.raises(NotFound, match="no schedule 'ofen'") as caught:
        await world.pause_schedule("ofen")
    assert caught.value.remedy == "Did you mean 'often'?"
    with pytest.raises(NotFound, match="no deployment"):
        await world.pause_schedule("often", "nob")
    with pytest.raises(BadRequest, match="null"):
        await world.pause_schedule("often", paused=None)  # type: ignore[arg-type]
    assert await world.store.read(fire.next_slot_in) == 60


# ---- in time


@pytest.mark.parametrize("policy", ["all", "latest", "none"])
async def test_slots_in_time_are_all_made_however_late_their_turn_comes(world: World, policy: str) -> None:
    await world.deploy(schedules=[every(60, catch_up=policy, catch_up_age=1, catch_up_slots=1)])
    world.clock.advance(600)
    await world.fire(since=-600)
    assert len(await slots(world)) == 10
    assert not await skipped(world)


@pytest.mark.parametrize(("policy", "made"), [("all", 6), ("latest", 5), ("none", 4)])
async def test_slots_before_and_after_the_server_was_there_again(
    world: World, policy: str, made: int
) -> None:
    """Missed two, then in time four; the slot of the very moment at which it began counts as missed."""
    await world.deploy(schedules=[every(60, catch_up=policy)])
    world.clock.advance(360)
    await world.fire(since=-240)
    assert await slots(world) == [-300 + 60 * (6 - made) + 60 * number for number in range(made)]


async def test_more_slots_than_a_transaction_makes_are_made_by_the_next(world: World) -> None:
    await world.deploy(schedules=[every(1, catch_up_slots=700)])
    world.clock.advance(1000)
    assert await world.fire(since=-100) == 1
    assert len(await slots(world)) == fire.MOST
    assert await world.store.read(fire.next_slot_in) < 0
    while await world.fire(since=-100):
        pass
    found = await world.store.read(lambda tx: list(tx.conn.scalars(select(runs.c.slot_at))))
    wanted = range(world.clock.now - 799 * 1_000_000, world.clock.now + 1, 1_000_000)
    assert sorted(found) == list(wanted)
    (event,) = await skipped(world)
    assert event.data["slots"] == 200
    assert await world.fire() == 0


async def test_an_age_bounds_what_is_made_up_for(world: World) -> None:
    await world.deploy(schedules=[every(60, catch_up_age=120)])
    world.clock.advance(600)
    await world.fire()
    assert await slots(world) == [-120, -60, 0]
    (event,) = await skipped(world)
    assert (event.data["slots"], event.data["until"]) == (7, world.at(-180).isoformat())


async def test_the_latest_is_made_up_for_though_it_is_the_only_one(world: World) -> None:
    await world.deploy(schedules=[every(3600, catch_up="latest")])
    world.clock.advance(3600 + 5)
    await world.fire()
    assert await slots(world) == [-5]
    assert not await skipped(world)


async def test_very_many_slots_are_passed_over_at_no_cost(world: World) -> None:
    await world.deploy(
        schedules=[
            every(1, name="interval", catch_up="latest"),
            cron("* * * * * *", name="c", catch_up="none"),
        ]
    )
    world.clock.advance(365 * 86_400)
    await world.fire()
    assert await slots(world) == [0]
    told = {event.data["schedule"]: event.data.get("slots") for event in await skipped(world)}
    assert told == {"interval": 365 * 86_400 - 1, "c": None}


# ---- jitter


async def test_a_jittered_run_is_made_at_its_slot_and_due_later(world: World) -> None:
    await world.pool()
    agent = await world.agent()
    await world.deploy(pool="main", schedules=[every(60, jitter=30)])
    world.clock.advance(60)
    await world.fire(since=-60)
    (run,) = await world.runs()
    assert run.slot == run.scheduled_at == world.at()
    assert run.due_at is not None
    wait = (run.due_at - world.at()).total_seconds()
    assert 0 < wait < 30
    assert world.noticed().due_in == wait
    assert await agent.claim() == []
    world.clock.advance(wait + LATE_AFTER - 0.001)
    await world.reap()
    assert not (await world.run(run.id)).late
    world.clock.advance(0.002)
    await world.reap()
    assert (await world.run(run.id)).late
    assert len(await agent.claim()) == 1


async def test_a_jittered_run_that_is_given_back_is_due_when_it_was(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", schedules=[every(60, jitter=30)])
    world.clock.advance(60)
    await world.fire(since=-60)
    ((run_id, due_at),) = [(run.id, run.due_at) for run in await world.runs()]
    world.clock.advance(30)
    agent = await world.agent()
    (granted,) = await agent.claim()
    await agent.release(granted)
    assert due_at is not None
    assert (await world.run(run_id)).due_at == due_at > world.at(-30)


async def test_a_jittered_slot_made_up_for_is_late_by_when_it_was_due(world: World) -> None:
    await world.deploy(schedules=[every(20, jitter=19.9, name=f"s{number}") for number in range(5)])
    world.clock.advance(60)
    await world.fire()
    found = await world.runs()
    assert len(found) == 15
    for run in found:
        assert run.due_at is not None
        assert run.late == (run.due_at < world.at(-LATE_AFTER))
    assert any(run.slot < world.at(-LATE_AFTER) and not run.late for run in found if run.slot)


async def test_deploying_again_with_the_same_times_keeps_its_place_in_time(world: World) -> None:
    await world.deploy(schedules=[every(60)])
    world.clock.advance(45)
    assert await world.deploy(description="new", schedules=[every(60, parameters={"a": 1})]) is True
    world.clock.advance(15)
    await world.fire()
    assert await slots(world) == [0]
    assert (await world.runs())[0].revision == 2


async def test_deploying_again_does_not_lose_a_slot_that_is_due(world: World) -> None:
    await world.deploy(schedules=[every(60)])
    world.clock.advance(61)
    await world.deploy(description="new", schedules=[every(60)])
    await world.fire()
    assert await slots(world) == [-1]


async def test_deploying_with_other_times_begins_anew(world: World) -> None:
    await world.deploy(schedules=[every(60)])
    world.clock.advance(45)
    world.noticed()
    await world.deploy(schedules=[every(100)])
    assert world.noticed().schedules
    world.clock.advance(15)
    assert await world.fire() == 0
    world.clock.advance(85)
    await world.fire()
    assert await slots(world) == [0]


async def test_a_schedule_that_is_taken_away_makes_nothing_more_and_its_runs_still_name_it(
    world: World,
) -> None:
    await world.deploy(schedules=[every(60, name="gone"), every(60, name="stays")])
    world.clock.advance(60)
    await world.fire()
    await world.deploy(schedules=[every(60, name="stays")])
    shown = await world.store.read(lambda tx: views.deployment_view(tx, "job"))
    assert [schedule.name for schedule in shown.schedules] == ["stays"]
    world.clock.advance(60)
    await world.fire()
    assert sorted(run.schedule or "" for run in await world.runs()) == ["gone", "stays", "stays"]
    await world.deploy(schedules=[every(60, name="gone")])
    world.clock.advance(60)
    await world.fire()
    assert len(await world.runs()) == 4


async def test_slots_are_made_once_though_the_clock_is_set_back(world: World) -> None:
    """Deploying with other times while the clock is wrong must not make a slot that has been."""
    await world.deploy(schedules=[cron("* * * * *")])
    world.clock.advance(600)
    await world.fire()
    assert len(await slots(world)) == 10
    world.clock.advance(-300)
    assert await world.fire() == 0
    await world.deploy(schedules=[every(3600)])
    await world.deploy(schedules=[cron("* * * * *")])
    world.clock.advance(600)
    await world.fire()
    found = await slots(world)
    assert len(found) == len(set(found)) == 15


async def test_a_server_that_starts_on_a_clock_set_back_goes_on_where_it_was(world: World) -> None:
    """It looks at all schedules anew; none comes to slots that were dealt with."""
    await world.deploy(schedules=[cron("* * * * *", catch_up="none")])
    world.clock.advance(600)
    assert await world.fire() == 1  # just started: they were missed
    world.clock.advance(-300)
    await world.store.write(timetable.reckon_anew)
    assert await world.fire() == 1
    world.clock.advance(360)
    while await world.fire(since=-360):
        pass
    assert await slots(world) == [0]


async def test_many_schedules_at_once_are_all_served(world: World) -> None:
    await world.deploy("a", schedules=[every(60, name=f"s{number}") for number in range(fire.BATCH + 50)])
    world.clock.advance(60)
    served = []
    while served[-1:] != [0]:
        served.append(await world.fire())
    assert max(served) <= fire.BATCH
    assert len(await slots(world)) == fire.BATCH + 50
    assert await world.store.read(fire.next_slot_in) == 60


async def test_a_slot_goes_to_the_revision_of_its_moment(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", schedules=[every(60)], parameters={"v": 1})
    world.clock.advance(60)
    await world.fire()
    await world.deploy(pool="main", schedules=[every(60)], parameters={"v": 2})
    world.clock.advance(60)
    await world.fire()
    assert [(run.revision, run.parameters) for run in await world.runs()] == [(1, {"v": 1}), (2, {"v": 2})]


async def test_what_is_late_is_made_up_for_the_oldest_first_and_new_slots_wait_behind(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", schedules=[every(60, name="a"), every(90, name="b", jitter=20)])
    world.clock.advance(400)
    await world.fire()
    world.clock.advance(60)
    await world.fire(since=-60)
    world.clock.advance(20)
    due = {run.id: run.due_at for run in await world.runs()}
    assert len(due) == 12
    agent = await world.agent()
    taken = [one.run for _ in due for one in await agent.claim()]
    assert taken == sorted(due, key=lambda run_id: due[run_id] or world.at())


async def test_firing_deploying_and_pausing_at_once_do_not_wait_for_each_other_in_a_circle(
    world: World,
) -> None:
    """On Postgres each is a connection of its own; none may end with an error, and no slot be lost or doubled."""
    names = ["a", "b", "c"]
    for name in names:
        await world.deploy(name, schedules=[every(1, name=f"s{at}") for at in range(4)])
    began = world.clock.now

    async def fire_on() -> None:
        for _ in range(15):
            world.clock.advance(1)
            await world.fire(since=-1000)
            await asyncio.sleep(0)

    async def deploy_on(name: str) -> None:
        for turn in range(8):
            schedules = [every(1, name=f"s{at}", parameters={"turn": turn}) for at in range(4)]
            await world.deploy(name, since=-1000, schedules=schedules)

    async def pause_on(name: str) -> None:
        for turn in range(8):
            await world.pause_schedule("s1", name, turn % 2 == 0, since=-1000)
            await world.pause_deployment(name, turn % 2 == 0, since=-1000)

    await asyncio.gather(fire_on(), fire_on(), *map(deploy_on, names), *map(pause_on, names))
    while await world.fire(since=-1000):
        pass
    made = select(runs.c.schedule_id, runs.c.slot_at).order_by(runs.c.schedule_id, runs.c.slot_at)
    found = [tuple(row) for row in await world.store.read(lambda tx: tx.conn.execute(made).all())]
    seconds = range(began + 1_000_000, world.clock.now + 1, 1_000_000)
    assert found == [(schedule_id, at) for schedule_id in range(1, 13) for at in seconds]
