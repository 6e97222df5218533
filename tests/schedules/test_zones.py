"""Every zone of the IANA data, at every change of its clock since 1970: what the two rules promise."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
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


#: In words what the clock did; all slots of the day of a time within the change, of midnight and of
#: ``*/30`` from 22:00 to 02:30.
CHANGES: list[tuple[str, date, str, list[str]]] = [
    # Lord Howe: by half an hour, at 02:00
    ("Australia/Lord_Howe", date(2026, 10, 4), "15 2 * * *", ["02:30+11"]),
    ("Australia/Lord_Howe", date(2026, 4, 5), "45 1 * * *", ["01:45+11"]),
    (
        "Australia/Lord_Howe",
        date(2026, 4, 5),
        "*/15 1 * * *",
        ["01:00", "01:15", "01:30", "01:45", "01:30", "01:45"],
    ),
    # midnight is left out, or comes twice
    ("America/Havana", date(2026, 3, 8), "0 0 * * *", ["01:00-04"]),
    ("America/Havana", date(2026, 3, 8), "30 0 * * *", ["01:00-04"]),
    ("America/Havana", date(2026, 11, 1), "0 0 * * *", ["00:00-04"]),
    ("America/Sao_Paulo", date(2018, 11, 4), "0 0 * * *", ["01:00-02"]),
    ("America/Asuncion", date(2023, 10, 1), "0 0 * * *", ["01:00-03"]),
    ("Asia/Beirut", date(2026, 3, 29), "0 0 * * *", ["01:00+03"]),
    ("Africa/Cairo", date(2026, 4, 24), "0 0 * * *", ["01:00+03"]),
    ("Africa/Cairo", date(2026, 10, 29), "30 23 * * *", ["23:30+03"]),
    ("Asia/Amman", date(2022, 2, 25), "0 0 * * *", ["01:00+03"]),
    # the jump goes up to midnight: the last second of the day
    ("America/Nuuk", date(2026, 3, 28), "30 23 * * *", ["22:59-02"]),
    ("America/Nuuk", date(2026, 3, 29), "0 0 * * *", ["00:00-01"]),
    # by two hours
    ("Antarctica/Troll", date(2026, 3, 29), "30 1 * * *", ["03:00+02"]),
    ("Antarctica/Troll", date(2026, 3, 29), "30 2 * * *", ["03:00+02"]),
    # rules that changed in the data: once more, for good, or never again
    ("Europe/Volgograd", date(2018, 10, 28), "30 2 * * *", ["03:00+04"]),
    ("Europe/Volgograd", date(2020, 12, 27), "30 1 * * *", ["01:30+04"]),
    ("Asia/Almaty", date(2024, 2, 29), "30 23 * * *", ["23:30+06"]),
    ("Africa/Juba", date(2021, 1, 31), "30 23 * * *", ["23:30+03"]),
    ("America/Sao_Paulo", date(2019, 11, 3), "0 0 * * *", ["00:00-03"]),  # no summer time any more
    ("Africa/Casablanca", date(2026, 2, 15), "30 2 * * *", ["02:30+01"]),
    ("Africa/Casablanca", date(2026, 3, 22), "30 2 * * *", ["03:00+01"]),
    ("Asia/Pyongyang", date(2018, 5, 4), "45 23 * * *", ["23:29+08"]),
    (
        "America/St_Johns",
        date(2010, 11, 6),
        "30 23 * * *",
        ["23:30-02"],
    ),  # 00:01 back to 23:01 of the day before
    ("America/St_Johns", date(2010, 11, 7), "0 0 * * *", ["00:00-02"]),
]


@pytest.mark.parametrize(("zone", "day", "expression", "slots"), CHANGES)
def test_what_happens_on_the_day_of_a_change(zone: str, day: date, expression: str, slots: list[str]) -> None:
    schedule, tz = cron(expression, zone), ZoneInfo(zone)
    found = [slot.astimezone(tz) for slot in slots_of(schedule, day, 3)]
    assert [f"{at:%H:%M%z}"[: len(slots[0])] for at in found if at.date() == day] == slots


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
