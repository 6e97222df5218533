"""Schedules against plain counting, at the two changes of the clock, and as properties."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter_work_pools.contracts.deployments import CronSchedule, IntervalSchedule, Schedule
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.schedules import check, next_slot, slots_between

ANCHOR = datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)
BERLIN = "Europe/Berlin"
SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)  # 02:00 -> 03:00 and 03:00 -> 02:00 in Berlin


def cron(expression: str, timezone: str = "UTC", **more: Any) -> Schedule:
    return Schedule(when=CronSchedule(cron=expression, timezone=timezone), **more)


def every(seconds: float, **more: Any) -> Schedule:
    return Schedule(when=IntervalSchedule(seconds=seconds, **more))


def local_day(expression: str, day: date, zone: str = BERLIN) -> list[str]:
    """The slots of one local day, as local times with their offset."""
    tz = ZoneInfo(zone)
    start = datetime(day.year, day.month, day.day, tzinfo=tz)
    end = start + timedelta(days=1)
    slots, more = slots_between(
        cron(expression, zone),
        start.astimezone(UTC) - timedelta(microseconds=1),
        end.astimezone(UTC) - timedelta(microseconds=1),
        ANCHOR,
        10_000,
    )
    assert not more
    return [slot.astimezone(tz).strftime("%H:%M%z")[:8] for slot in slots]


def test_a_daily_time_happens_once_on_every_day_of_years_with_changes() -> None:
    for expression in ("30 2 * * *", "0 3 * * *", "0 0 * * *", "15 2 * * *"):
        tz = ZoneInfo(BERLIN)
        start, end = datetime(2024, 1, 1, tzinfo=tz), datetime(2027, 1, 1, tzinfo=tz)
        slots, _ = slots_between(
            cron(expression, BERLIN),
            start - timedelta(microseconds=1),
            end - timedelta(microseconds=1),
            ANCHOR,
            10_000,
        )
        days = [slot.astimezone(tz).date() for slot in slots]
        assert len(days) == 3 * 365 + 1
        assert len(set(days)) == len(days)


@pytest.mark.parametrize(
    ("expression", "day", "times"),
    [
        ("30 2 * * *", SPRING, ["03:00+02"]),  # does not exist: the end of the jump
        ("30 2 * * *", AUTUMN, ["02:30+02"]),  # exists twice: the first
        ("0 2,3 * * *", SPRING, ["03:00+02"]),  # two names of one instant
        ("0 2,3 * * *", AUTUMN, ["02:00+02", "03:00+01"]),
        ("15,45 2 * * *", SPRING, ["03:00+02"]),
        ("0 30 2 * * *", SPRING, ["03:00+02"]),  # seconds change nothing
        ("*/30 2 * * *", SPRING, []),  # a rhythm: the wall clock never shows it
        ("*/30 2 * * *", AUTUMN, ["02:00+02", "02:30+02", "02:00+01", "02:30+01"]),
        ("0 */2 * * *", SPRING, [f"{h:02}:00+0{1 + (h > 2)}" for h in range(0, 24, 2) if h != 2]),
    ],
)
def test_what_happens_when_the_clock_changes(expression: str, day: date, times: list[str]) -> None:
    assert local_day(expression, day) == times


@pytest.mark.parametrize("expression", ["0 * * * *", "0 0-23 * * *", "@hourly"])
def test_hourly_is_every_hour_of_23_24_or_25(expression: str) -> None:
    counts = [len(local_day(expression, day)) for day in (SPRING, date(2026, 6, 1), AUTUMN)]
    assert counts == [23, 24, 25]


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Australia/Lord_Howe", date(2026, 4, 5)),  # by half an hour
        ("Australia/Lord_Howe", date(2026, 10, 4)),
        ("America/Sao_Paulo", date(2018, 11, 4)),  # midnight does not exist
        ("Africa/Casablanca", date(2026, 2, 15)),
        ("Pacific/Apia", date(2011, 12, 31)),  # the day before was left out
        ("Asia/Kathmandu", date(2026, 5, 5)),  # +05:45
        (BERLIN, SPRING),
        (BERLIN, AUTUMN),
    ],
)
@pytest.mark.parametrize(
    ("expression", "minutes", "hours"),
    [("*/10 * * * *", range(0, 60, 10), range(24)), ("*/10 0-3 * * *", range(0, 60, 10), range(4))],
)
def test_a_rhythm_is_each_instant_at_which_the_wall_shows_it(
    zone: str, day: date, expression: str, minutes: range, hours: range
) -> None:
    tz = ZoneInfo(zone)
    start = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(days=2)
    end = start + timedelta(days=4)
    expected, instant = [], start
    while (instant := instant + timedelta(minutes=1)) <= end:
        wall = instant.astimezone(tz)
        if wall.minute in minutes and wall.hour in hours:
            expected.append(instant)
    assert slots_between(cron(expression, zone), start, end, ANCHOR, 10_000)[0] == expected


def test_a_missing_midnight_still_has_its_daily_run() -> None:
    assert local_day("0 0 * * *", date(2018, 11, 4), "America/Sao_Paulo") == ["01:00-02"]


def test_going_on_from_within_the_repeated_hour_does_not_go_back() -> None:
    second_0240 = datetime(2026, 10, 25, 1, 40, tzinfo=UTC)
    found = next_slot(cron("50 2 * * *", BERLIN), second_0240, ANCHOR)
    assert found == datetime(2026, 10, 26, 1, 50, tzinfo=UTC)


def test_leap_days_and_last_days() -> None:
    after = datetime(2026, 3, 1, tzinfo=UTC)
    assert next_slot(cron("0 0 29 2 *"), after, ANCHOR) == datetime(2028, 2, 29, tzinfo=UTC)
    assert next_slot(cron("0 0 L * *"), after, ANCHOR) == datetime(2026, 3, 31, tzinfo=UTC)


def test_intervals_are_exact_over_a_billion_slots() -> None:
    schedule = every(1.1)
    after = ANCHOR + 1_000_000_000 * timedelta(seconds=1.1)
    assert next_slot(schedule, after, ANCHOR) == after + timedelta(seconds=1.1)
    assert next_slot(schedule, after - timedelta(microseconds=1), ANCHOR) == after


def test_an_interval_has_its_own_anchor_and_reaches_before_it() -> None:
    schedule = every(3600, anchor=datetime(2030, 1, 1, 0, 7, tzinfo=UTC))
    after = datetime(2026, 11, 22, 10, 7, tzinfo=UTC)
    assert next_slot(schedule, after, ANCHOR) == datetime(2026, 11, 22, 11, 7, tzinfo=UTC)


def test_the_end_of_the_calendar_is_an_end() -> None:
    after = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    for schedule in (
        cron("0 * * * *", "America/New_York"),
        cron("0 6 * * *", "Asia/Tokyo"),
        every(60),
    ):
        assert next_slot(schedule, after, ANCHOR) is None


def test_a_limit_leaves_a_rest_to_go_on_with() -> None:
    schedule = cron("* * * * *")
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 10, tzinfo=UTC)
    first, more = slots_between(schedule, start, end, ANCHOR, 4)
    assert (len(first), more) == (4, True)
    rest, more = slots_between(schedule, first[-1], end, ANCHOR, 6)
    assert (len(rest), more) == (6, False)
    assert [*first, *rest][-1] == end
    assert slots_between(schedule, end, end, ANCHOR, 5) == ([], False)
    assert slots_between(schedule, start, end, ANCHOR, 0) == ([], True)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("", '"" has 0 of the 5 or 6 fields'),
        ("* * *", '"* * *" has 3 of the'),
        ("@often", "is not a nickname"),
        ("@every 5m", "is not a nickname"),
        ("61 * * * *", '"61" in "61 * * * *" does not fit the minute'),
        ("1,2,99 * * * *", '"99" in'),
        ("0 25 * * *", "does not fit the hour"),
        ("0 0 32 * *", "does not fit the day of month"),
        ("0 0 * FOO *", '"FOO" in "0 0 * FOO *" does not fit the month'),
        ("0 0 * * MON-XYZ", '"MON-XYZ" in'),
        ("*/0 * * * *", '"*/0" in'),
        ("99 * * * * *", "does not fit the second"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 2,4,6 *", "never fires"),
        ("zwölf * * * *", '"zwölf" in'),
    ],
)
def test_a_cron_that_cannot_work_is_refused(expression: str, told: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check(cron(expression))
    assert refused.value.detail.startswith("cron: ")
    assert told in refused.value.detail
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("zone", "remedy"),
    [
        ("Europe/Berln", "Did you mean Europe/Berlin?"),
        ("europe/berlin", "Did you mean Europe/Berlin?"),
        ("Berlin", "Did you mean Europe/Berlin?"),
        ("utc", "Did you mean UTC?"),
        ("CEST", "Give an IANA name"),
        ("Mars/Olympus", "Give an IANA name"),
        ("../etc/passwd", "Give an IANA name"),
        ("", "Give an IANA name"),
    ],
)
def test_an_unknown_zone_is_refused(zone: str, remedy: str) -> None:
    for schedule in (cron("* * * * *", zone), every(60, timezone=zone)):
        with pytest.raises(BadRequest) as refused:
            check(schedule)
        assert f'timezone: "{zone}"' in refused.value.detail
        assert remedy in refused.value.remedy


@pytest.mark.parametrize("seconds", [0.0, -5.0, 0.999, float("nan"), float("inf"), float("-inf")])
def test_an_interval_that_cannot_be_kept_is_refused(seconds: float) -> None:
    schedule = Schedule.model_construct(
        when=IntervalSchedule.model_construct(seconds=seconds, anchor=None, timezone="UTC", kind="interval")
    )
    with pytest.raises(BadRequest, match="interval: "):
        check(schedule)


# --- properties ----------------------------------------------------------------------------------

_zones = st.sampled_from(
    ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kolkata"]
)
_minutes = st.sampled_from(["*", "0", "30", "*/7", "5,35", "10-20"])
_hours = st.sampled_from(["*", "0", "2", "1-3", "*/5", "2,3", "0-23"])
_days = st.sampled_from(["* * *", "1 * *", "* 3,4,10,11 *", "* * SUN", "29 2 *", "L * *", "13 * FRI"])
_crons = st.builds(
    lambda minute, hour, day, zone: cron(f"{minute} {hour} {day}", zone),
    _minutes,
    _hours,
    _days,
    _zones,
)
_intervals = st.builds(lambda micros: every(micros / 1_000_000), st.integers(1_000_000, 10**13))
_schedules = st.one_of(_crons, _intervals)
_moments = st.one_of(
    st.datetimes(datetime(2000, 1, 1), datetime(2037, 1, 1)),
    # near the changes of the clock
    st.builds(
        lambda day, seconds: day + timedelta(seconds=seconds),
        st.sampled_from([datetime(2026, 3, 29), datetime(2026, 10, 25), datetime(2026, 4, 4, 12)]),
        st.floats(0, 86_400),
    ),
).map(lambda naive: naive.replace(tzinfo=UTC))


@given(_schedules, _moments)
def test_slots_rise_and_can_be_taken_up_anywhere(schedule: Schedule, after: datetime) -> None:
    check(schedule)
    slots, _ = slots_between(schedule, after, datetime(2200, 1, 1, tzinfo=UTC), ANCHOR, 12)
    assert all(a < b for a, b in zip([after, *slots], slots, strict=False))
    assert all(slot.tzinfo is UTC for slot in slots)
    at = after
    for slot in slots:
        assert next_slot(schedule, at, ANCHOR) == slot
        # nothing lies between: from any moment before the slot, the slot is what comes
        assert next_slot(schedule, at + (slot - at) / 2, ANCHOR) == slot
        at = slot


@given(_crons, _moments)
def test_a_slot_shows_its_time_on_the_wall_unless_the_clock_jumped(
    schedule: Schedule, after: datetime
) -> None:
    slot = next_slot(schedule, after, ANCHOR)
    assert slot is not None
    wall = slot.astimezone(ZoneInfo(schedule.when.timezone)).replace(tzinfo=None)
    in_utc = cron(schedule.when.cron)  # the same expression on a clock that never changes
    as_if_utc = wall.replace(tzinfo=UTC)
    shows = next_slot(in_utc, as_if_utc - timedelta(microseconds=1), ANCHOR) == as_if_utc
    jumped = (slot - timedelta(hours=2)).astimezone(
        ZoneInfo(schedule.when.timezone)
    ).utcoffset() != slot.astimezone(ZoneInfo(schedule.when.timezone)).utcoffset()
    assert shows or jumped


@given(_intervals, _moments, _moments)
def test_interval_slots_keep_their_phase(schedule: Schedule, after: datetime, anchor: datetime) -> None:
    slot = next_slot(schedule, after, anchor)
    assert slot is not None
    step = timedelta(microseconds=round(schedule.when.seconds * 1_000_000))
    assert (slot - anchor) % step == timedelta()
    assert after < slot <= after + step
