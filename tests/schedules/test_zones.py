"""Every zone of the IANA data, at every change of its clock since 1970: what the two rules promise."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from benchmarks.agreement import changes_of, zones
from shunter_work_pools.contracts.deployments import Schedule
from shunter_work_pools.schedules import next_slot, slots_between
from shunter_work_pools.schedules.wall import LARGEST_CHANGE, Jump, change
from tests.schedules.written import ANCHOR, TICK, cron, local_day, rule

DAY = timedelta(days=1)


@lru_cache(maxsize=1)
def jumps_of_all_zones() -> dict[str, tuple[Jump, ...]]:
    """One name of each zone that differs from the others."""
    found: dict[tuple[Jump, ...], str] = {}
    for name in reversed(zones()):
        second, zone = timedelta(seconds=1), ZoneInfo(name)
        jumps = (change(zone, at - second, at) for at in changes_of(name))
        found[tuple(jump for jump in jumps if jump is not None)] = name
    return {name: jumps for jumps, name in sorted(found.items(), key=lambda item: item[1])}


def days_of(zone: ZoneInfo, around: date) -> list[date]:
    """The local days that exist, from the one before to the one after one."""
    days = [around + number * DAY for number in range(-1, 2)]
    return [
        day for day in days if any(_shown(datetime.combine(day, time(hour)), zone) for hour in (0, 12, 20))
    ]


def _shown(wall: datetime, zone: ZoneInfo) -> bool:
    there_and_back = wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)
    return there_and_back.replace(tzinfo=None) == wall


def slots_of(schedule: Schedule, day: date, days: int) -> list[datetime]:
    """Slots from two days before a day to so many after."""
    start = datetime.combine(day, time(), UTC) - 2 * DAY
    return slots_between(schedule, start, start + (days + 2) * DAY, ANCHOR, 100_000)[0]


def test_the_data_keep_what_the_walk_relies_on() -> None:
    assert len(jumps_of_all_zones()) > 250
    for name, jumps in jumps_of_all_zones().items():
        for jump, following in pairwise(jumps):
            assert following.at - jump.at > 2 * LARGEST_CHANGE, name
        assert all(abs(jump.to - jump.before) <= DAY for jump in jumps), name


def test_a_daily_time_happens_exactly_once_on_every_local_day_that_exists() -> None:
    checked = 0
    for name, jumps in jumps_of_all_zones().items():
        zone = ZoneInfo(name)
        for jump in jumps:
            within = min(jump.before, jump.to) + abs(jump.to - jump.before) / 2
            expected = days_of(zone, jump.at.astimezone(zone).date())
            times = {(within.hour, within.minute)}
            if within.hour in (23, 0):
                times |= {(0, 0), (23, 59)}
            for hour, minute in times:
                schedule = cron(f"{minute} {hour} * * *", name)
                days = [slot.astimezone(zone).date() for slot in slots_of(schedule, expected[1], 3)]
                counted = [days.count(day) for day in expected]
                assert counted == [1] * len(expected), (name, jump, hour, minute)
                checked += len(expected)
    assert checked > 50_000


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Pacific/Apia", date(2011, 12, 30)),
        ("Pacific/Fakaofo", date(2011, 12, 30)),
        ("Pacific/Kwajalein", date(1993, 8, 21)),
        ("Pacific/Kiritimati", date(1994, 12, 31)),
    ],
)
def test_a_day_that_a_zone_leaves_out_has_no_slot_and_its_neighbours_one(zone: str, day: date) -> None:
    tz = ZoneInfo(zone)
    for schedule in (cron("30 9 * * *", zone), rule("DTSTART:19900101T093000 RRULE:FREQ=DAILY", zone)):
        days = [slot.astimezone(tz).date() for slot in slots_of(schedule, day, 3)]
        assert day not in days
        assert days.count(day - DAY) == days.count(day + DAY) == 1
    # a date that does not come has no slot; next year it has
    slot = next_slot(
        cron(f"0 9 {day.day} {day.month} *", zone), datetime.combine(day - DAY, time(), UTC), ANCHOR
    )
    assert slot is not None
    assert slot.astimezone(tz).date() == day.replace(year=day.year + 1)


PAGE = Path(__file__).parents[2] / "docs" / "schedules.md"
ROW = re.compile(r"\| (\w+/\w+) \| (.+) \| (\d{4}-\d\d-\d\d) \| `(.+)` \| (.+) \|")
ROWS = ROW.findall(PAGE.read_text())


def test_the_page_has_the_zones_that_matter() -> None:
    zones_told = {row[0] for row in ROWS}
    assert len(zones_told) >= 12
    assert {"Australia/Lord_Howe", "America/Havana", "America/Nuuk", "Europe/Volgograd"} <= zones_told


@pytest.mark.parametrize(("zone", "what", "on", "expression", "told"), ROWS)
def test_what_the_page_says_of_a_change_is_what_happens(
    zone: str, what: str, on: str, expression: str, told: str
) -> None:
    tz, day = ZoneInfo(zone), date.fromisoformat(on)
    found = [slot.astimezone(tz) for slot in slots_of(cron(expression, zone), day, 3)]
    shown = [
        f"{at:%H:%M:%S}"[: 8 if at.second else 5] + at.isoformat()[-6:] for at in found if at.date() == day
    ]
    assert told in (", ".join(shown) or "none", f"{len(shown)} slots")
    if clock := re.match(r"(\d\d:\d\d) (?:back )?to (\d\d:\d\d)", what):
        jumps = [change(tz, at - timedelta(seconds=1), at) for at in changes_of(zone)]
        on_the_day = [jump for jump in jumps if jump and day in (jump.before.date(), jump.to.date())]
        assert [(f"{jump.before:%H:%M}", f"{jump.to:%H:%M}") for jump in on_the_day] == [clock.groups()]


def test_an_hourly_slot_comes_as_often_as_the_day_has_hours() -> None:
    """Of all changes by whole hours in the years 2015 to 2030."""
    checked = 0
    for name, jumps in jumps_of_all_zones().items():
        zone = ZoneInfo(name)
        for jump in jumps:
            day = jump.before.date()
            if (
                not 2015 <= jump.at.year <= 2030
                or jump.before.minute
                or (jump.to - jump.before) % timedelta(hours=1)
            ):
                continue
            start, end = (datetime.combine(one, time(), zone) for one in (day - DAY, day + 2 * DAY))
            hours = (end.astimezone(UTC) - start.astimezone(UTC)) / timedelta(hours=1)
            found, _ = slots_between(
                cron("0 * * * *", name), start.astimezone(UTC) - TICK, end.astimezone(UTC) - TICK, ANCHOR, 100
            )
            assert len(found) == hours, (name, jump)
            checked += 1
    assert checked > 1000


def test_local_days_have_23_24_or_25_hours() -> None:
    counts = [
        len(local_day(cron("0 * * * *", zone), day))
        for zone, day in [
            ("America/New_York", date(2026, 3, 8)),
            ("America/New_York", date(2026, 3, 9)),
            ("America/New_York", date(2026, 11, 1)),
        ]
    ]
    assert counts == [23, 24, 25]
