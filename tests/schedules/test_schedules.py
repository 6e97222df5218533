"""Schedules against plain counting, at the two changes of the clock, and as properties."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter_work_pools.contracts.deployments import IntervalSchedule, Schedule
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.schedules import (
    check,
    jitter_of,
    latest_between,
    next_slot,
    preview,
    slots,
    slots_between,
)
from tests.schedules.written import ANCHOR, AUTUMN, BERLIN, SPRING, TICK, cron, every, local_day, rule


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
    assert local_day(cron(expression, BERLIN), day) == times


@pytest.mark.parametrize("expression", ["0 * * * *", "0 0-23 * * *", "@hourly"])
def test_hourly_is_every_hour_of_23_24_or_25(expression: str) -> None:
    counts = [len(local_day(cron(expression, BERLIN), day)) for day in (SPRING, date(2026, 6, 1), AUTUMN)]
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
    assert local_day(cron("0 0 * * *", "America/Sao_Paulo"), date(2018, 11, 4)) == ["01:00-02"]


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
        rule("FREQ=HOURLY", "America/New_York"),
        rule("FREQ=DAILY", "Asia/Tokyo"),
    ):
        assert next_slot(schedule, after, ANCHOR) is None


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("at", [datetime.min, datetime.max])
def test_the_ends_of_the_calendar_can_be_asked_about(zone: str, at: datetime) -> None:
    at = at.replace(tzinfo=UTC)
    for schedule in (
        cron("0 * * * *", zone),
        cron("0 6 * * *", zone, start=datetime.min.replace(tzinfo=UTC)),
        every(3600, timezone=zone),
        rule("FREQ=HOURLY", zone),
        rule("FREQ=DAILY;BYHOUR=6;BYMINUTE=0;BYSECOND=0", zone),
    ):
        check(schedule)
        assert len(preview(schedule, at, ANCHOR, 3)) == (3 if at.year == 1 else 0)
        assert len(preview(schedule, datetime(9999, 11, 29, tzinfo=UTC), ANCHOR, 100)) in (1, 2, 47, 48, 49)
        assert (next_slot(schedule, at, ANCHOR) is None) == (at.year == 9999)


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


def test_a_day_of_both_kinds_matches_either_or_both() -> None:
    after, until = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)

    def days(expression: str, day: str) -> list[str]:
        found, _ = slots_between(cron(expression, day=day), after, until, ANCHOR, 100)
        return [f"{slot:%m-%d}" for slot in found]

    assert days("0 0 13 * FRI", "and") == ["02-13", "03-13"]
    either = days("0 0 13 * FRI", "or")
    assert len(either) == 14
    assert {"01-13", "02-13", "03-13", "01-02"} < set(either)
    # a field that begins with a star: cron(8) wants both, however `day` is set
    fridays = days("0 0 * * FRI", "or")
    both = [day for day in fridays if int(day[3:]) % 10 == 1]
    assert days("0 0 */10 * FRI", "or") == days("0 0 */10 * FRI", "and") == both


def test_a_day_that_no_month_has_is_found_out_with_and_too() -> None:
    check(cron("0 0 30 2 1"))  # Mondays in February
    with pytest.raises(BadRequest, match="never fires"):
        check(cron("0 0 30 2 1", day="and"))
    check(cron("0 0 29 2 1", day="and"))  # 2044


def test_slots_begin_and_end_with_the_schedule_both_inclusive() -> None:
    start, end = datetime(2026, 5, 1, 10, tzinfo=UTC), datetime(2026, 5, 1, 12, tzinfo=UTC)
    long_ago, later = datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
    for schedule in (
        cron("0 * * * *", start=start, end=end),
        every(3600, anchor=start, start=start, end=end),
        rule("FREQ=HOURLY;BYMINUTE=0;BYSECOND=0", start=start, end=end),
    ):
        found, _ = slots_between(schedule, long_ago, later, ANCHOR, 100)
        assert found == [start + timedelta(hours=hour) for hour in range(3)]
        assert next_slot(schedule, end, ANCHOR) is None


def test_jitter_is_spread_evenly_and_stays_the_same() -> None:
    schedule = every(60, jitter=10)
    drawn = [jitter_of(schedule, number, slot) for number in range(100) for slot in range(100)]
    assert drawn == [jitter_of(schedule, number, slot) for number in range(100) for slot in range(100)]
    assert min(drawn) >= 0
    assert max(drawn) < 10_000_000
    tenths = [sum(tenth * 10**6 <= one < (tenth + 1) * 10**6 for one in drawn) for tenth in range(10)]
    assert all(850 < count < 1150 for count in tenths)  # 5 standard deviations
    assert jitter_of(schedule, 3, 1_767_268_800_000_000) == 5_762_308  # whatever the version
    assert jitter_of(every(60), 1, 2) == jitter_of(every(60, jitter=1e-7), 1, 2) == 0


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (every(60, jitter=60), "60 seconds is not shorter than the shortest time between two slots, 60"),
        (every(60, jitter=61), "jitter: 61 seconds"),
        (cron("0,1 0 1 * *", jitter=61), "two slots, 60 seconds"),
        (cron("0 0 * * *", jitter=86_400), "two slots, 86400 seconds"),
        (rule("FREQ=MINUTELY;INTERVAL=5", jitter=300), "two slots, 300 seconds"),
        (rule("DTSTART;TZID=Europe/Berlin:20260101T000000 RRULE:FREQ=HOURLY", BERLIN, jitter=3600), "3600"),
        (rule("FREQ=DAILY;BYHOUR=9,10", BERLIN, jitter=3600), "two slots, 3600 seconds"),
    ],
)
def test_a_jitter_as_long_as_the_gap_between_slots_is_refused(schedule: Schedule, told: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check(schedule)
    assert refused.value.detail.startswith("jitter: ")
    assert told in refused.value.detail
    check(schedule.model_copy(update={"jitter": schedule.jitter - 2}))


@pytest.mark.parametrize(
    "schedule",
    [
        cron("0 0 29 2 *", start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2027, 1, 1, tzinfo=UTC)),
        every(86_400, anchor=ANCHOR, start=ANCHOR + TICK, end=ANCHOR + timedelta(hours=5)),
        rule("DTSTART:20300101T000000 RRULE:FREQ=DAILY", end=ANCHOR),
        rule("RDATE:20260101T000000", start=ANCHOR, end=ANCHOR + timedelta(days=9)),
    ],
)
def test_a_start_and_end_without_a_slot_between_are_refused(schedule: Schedule) -> None:
    with pytest.raises(BadRequest, match=r"^end: there is no slot"):
        check(schedule)
    check(schedule.model_copy(update={"end": None}))


@pytest.mark.parametrize(
    "schedule",
    [
        every(1),
        cron("* * * * * *"),
        cron("* * 3 * * *"),
        cron("* * * 1 * *", BERLIN),
        cron("*/5 * * * *", BERLIN),
        rule("FREQ=SECONDLY;BYHOUR=3"),
    ],
)
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_the_newest_slots_cost_no_walk_through_all(
    schedule: Schedule, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = datetime(2026, 3, 1, 5, tzinfo=UTC)
    after = until - timedelta(hours=6)
    everything, _ = slots_between(schedule, after, until, ANCHOR, 200_000)
    seen, original = 0, slots.slots

    def counted(*args: Any) -> Iterator[datetime]:
        nonlocal seen
        for slot in original(*args):
            seen += 1
            yield slot

    monkeypatch.setattr(slots, "slots", counted)
    assert latest_between(schedule, after, until, ANCHOR, limit) == everything[-limit:]
    assert seen < 60 * (limit + 1)


def test_the_newest_of_few_slots_are_all() -> None:
    after = datetime(2026, 3, 1, tzinfo=UTC)
    until = after + timedelta(days=3)
    assert len(latest_between(cron("0 6 * * *"), after, until, ANCHOR, 100)) == 3
    assert latest_between(cron("0 6 1 1 *"), after, until, ANCHOR, 1) == []
    assert latest_between(cron("0 6 * * *"), after, until, ANCHOR, 0) == []


@pytest.mark.parametrize(
    ("nickname", "remedy"),
    [
        ("@dayly", "Did you mean @daily?"),
        ("@reboot", "There are @annually, @daily"),
        ("@every 5m", "Use an interval"),
    ],
)
def test_an_unknown_nickname_is_told_the_nearest(nickname: str, remedy: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check(cron(nickname))
    assert refused.value.remedy.startswith(remedy)


@settings(deadline=None)  # the machine may be busy
@given(
    st.text(max_size=40)
    | st.lists(st.sampled_from([*"0123456789*/,-#L W", "MON", "JAN", " * * ", "@"]), max_size=15).map("".join)
)
def test_any_expression_is_accepted_or_refused_in_words(text: str) -> None:
    try:
        check(cron(text))
    except BadRequest as refused:
        told = refused.detail
        assert told.startswith("cron: ")


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


@settings(deadline=None)  # the machine may be busy
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


@settings(deadline=None)  # the machine may be busy
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


@settings(deadline=None)  # the machine may be busy
@given(_intervals, _moments, _moments)
def test_interval_slots_keep_their_phase(schedule: Schedule, after: datetime, anchor: datetime) -> None:
    slot = next_slot(schedule, after, anchor)
    assert slot is not None
    step = timedelta(microseconds=round(schedule.when.seconds * 1_000_000))
    assert (slot - anchor) % step == timedelta()
    assert after < slot <= after + step
