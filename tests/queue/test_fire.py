"""Schedules: each slot once, missed ones made up for within bounds, nothing made while paused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from shunter_work_pools.queue import fire, views
from shunter_work_pools.storage.schema import events
from tests.queue.world import World


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


async def test_a_paused_schedule_makes_nothing_and_nothing_of_that_time_when_resumed(world: World) -> None:
    await world.deploy(schedules=[every(60, catch_up="none")])
    await world.deploy(schedules=[every(60, catch_up="none", paused=True)])
    assert await world.store.read(fire.next_slot_in) is None
    world.clock.advance(600)
    assert await world.fire() == 0
    await world.deploy(schedules=[every(60, catch_up="none")])
    await world.fire()
    world.clock.advance(60)
    await world.fire(since=-60)
    assert await slots(world) == [0]


async def test_a_paused_deployment_makes_nothing_and_nothing_of_that_time_when_resumed(world: World) -> None:
    await world.deploy(schedules=[every(60, catch_up="none")])
    await world.pause_deployment()
    world.clock.advance(600)
    assert await world.fire() == 0
    assert await world.store.read(fire.next_slot_in) is None
    world.noticed()
    await world.pause_deployment(paused=False)
    assert world.noticed().schedules
    await world.fire()
    assert await world.runs() == []
    world.clock.advance(60)
    await world.fire(since=-60)
    assert await slots(world) == [0]


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


async def test_many_schedules_at_once_are_all_served(world: World) -> None:
    await world.deploy("a", schedules=[every(60, name=f"s{number}") for number in range(fire.BATCH + 50)])
    world.clock.advance(3600)
    assert await world.fire() == fire.BATCH
    assert await world.fire() == 50
    assert await world.fire() == 0


async def test_a_slot_goes_to_the_revision_of_its_moment(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", schedules=[every(60)], parameters={"v": 1})
    world.clock.advance(60)
    await world.fire()
    await world.deploy(pool="main", schedules=[every(60)], parameters={"v": 2})
    world.clock.advance(60)
    await world.fire()
    assert [(run.revision, run.parameters) for run in await world.runs()] == [(1, {"v": 1}), (2, {"v": 2})]
