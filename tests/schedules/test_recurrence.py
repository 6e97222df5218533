"""Recurrence rules against dateutil walking from DTSTART, and what is told of wrong ones."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from dateutil.rrule import rrulestr
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.schedules import check, next_slot, recurrence, slots_between
from shunter_work_pools.schedules.recurrence import MOST_TRIES, Rule
from tests.schedules.written import ANCHOR, AUTUMN, BERLIN, SPRING, TICK, local_day, rule

FAR = datetime(2200, 1, 1, tzinfo=UTC)


def first(text: str, count: int, timezone: str = "UTC", after: datetime = ANCHOR) -> list[str]:
    schedule = rule(text, timezone)
    check(schedule)
    return [f"{slot:%Y-%m-%d %H:%M}" for slot in slots_between(schedule, after, FAR, ANCHOR, count)[0]]


def test_lines_are_read_in_any_layout() -> None:
    same = {
        tuple(first(text, 3))
        for text in (
            "DTSTART:20260105T090000\nRRULE:FREQ=WEEKLY;INTERVAL=2",
            "DTSTART:20260105T090000\r\nRRULE:FREQ=WEEKLY;\r\n INTERVAL=2\r\n",
            "  DTSTART:20260105T090000 RRULE:FREQ=WEEKLY;INTERVAL=2;BYDAY=MO  ",
            "rrule:freq=weekly;interval=2\n    dtstart:20260105t090000",
            "DTSTART;TZID=UTC:20260105T090000\nFREQ=WEEKLY;INTERVAL=2;WKST=MO",
            "DTSTART;VALUE=DATE:20260105\nRRULE:FREQ=WEEKLY;INTERVAL=2;BYHOUR=9",
        )
    }
    assert same == {("2026-01-05 09:00", "2026-01-19 09:00", "2026-02-02 09:00")}


def test_without_dtstart_a_rule_begins_at_the_first_deploy_in_its_zone() -> None:
    assert first("FREQ=WEEKLY", 2, BERLIN) == ["2026-01-08 12:00", "2026-01-15 12:00"]
    assert first("FREQ=MONTHLY;INTERVAL=5", 2, BERLIN) == ["2026-06-01 11:00", "2026-11-01 12:00"]


def test_times_are_of_the_zone_unless_they_say_utc() -> None:
    assert first("DTSTART:20260601T090000 RRULE:FREQ=DAILY", 1, BERLIN) == ["2026-06-01 07:00"]
    assert first("DTSTART:20260601T090000Z RRULE:FREQ=DAILY", 1, BERLIN) == ["2026-06-01 09:00"]
    assert first("RDATE:20260601T090000,20260602T090000Z", 2, BERLIN) == [
        "2026-06-01 07:00",
        "2026-06-02 09:00",
    ]


def test_until_and_count_end_a_rule_both_inclusive() -> None:
    daily = "DTSTART:20260601T090000 RRULE:FREQ=DAILY;"
    three = ["2026-06-01 07:00", "2026-06-02 07:00", "2026-06-03 07:00"]
    for end in ("COUNT=3", "UNTIL=20260603T090000", "UNTIL=20260603T070000Z", "UNTIL=20260603"):
        assert first(daily + end, 9, BERLIN) == three
        assert first(daily + end, 9, BERLIN, datetime(2026, 6, 2, 12, tzinfo=UTC)) == three[2:]
    for end in ("COUNT=2", "UNTIL=20260603T085959", "UNTIL=20260603T065959Z", "UNTIL=20260602"):
        assert first(daily + end, 9, BERLIN) == three[:2]


def test_positions_are_counted_in_whole_periods() -> None:
    last_workday = "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;BYHOUR=9;BYMINUTE=0"
    assert first(last_workday, 3) == ["2026-01-30 09:00", "2026-02-27 09:00", "2026-03-31 09:00"]
    # 2026-01-01 is a Thursday: the first of Monday and Friday in that week was before it
    assert first("FREQ=WEEKLY;BYDAY=MO,FR;BYSETPOS=1", 2) == ["2026-01-05 12:00", "2026-01-12 12:00"]
    assert first("FREQ=DAILY;BYHOUR=8,12,18;BYMINUTE=0,30;BYSETPOS=2,-1", 3) == [
        "2026-01-01 18:30",
        "2026-01-02 08:30",
        "2026-01-02 18:30",
    ]


def test_until_in_the_repeated_hour_knows_which_one() -> None:
    text = "DTSTART:20261025T000000 RRULE:FREQ=HOURLY;UNTIL=20261025T003000Z;BYMINUTE=15,45"
    assert first(text, 9, BERLIN, datetime(2026, 10, 24, 23, 30, tzinfo=UTC)) == [
        "2026-10-24 23:45",
        "2026-10-25 00:15",
    ]


def test_dates_are_added_and_taken_away() -> None:
    text = """DTSTART:20260601T090000
    RRULE:FREQ=DAILY;COUNT=5
    EXDATE:20260602T090000,20260603T070000Z
    EXDATE;VALUE=DATE:20260604
    RDATE:20260601T120000,20260601T090000,20260604T100000,20271231T235959"""
    assert first(text, 9, BERLIN) == [
        "2026-06-01 07:00",
        "2026-06-01 10:00",
        "2026-06-05 07:00",
        "2027-12-31 22:59",
    ]
    assert first("DTSTART:20260601T090000 RDATE:20260701T090000", 9) == [
        "2026-06-01 09:00",
        "2026-07-01 09:00",
    ]


@pytest.mark.parametrize(
    ("text", "day", "times"),
    [
        ("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", SPRING, ["03:00+02"]),
        ("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", AUTUMN, ["02:30+02"]),
        ("FREQ=WEEKLY;BYDAY=SU;BYHOUR=2,3;BYMINUTE=0", SPRING, ["03:00+02"]),
        ("FREQ=MINUTELY;INTERVAL=30;BYHOUR=2", SPRING, []),
        ("FREQ=MINUTELY;INTERVAL=30;BYHOUR=2", AUTUMN, ["02:00+02", "02:30+02", "02:00+01", "02:30+01"]),
    ],
)
def test_the_two_rules_of_the_clock_are_those_of_cron(text: str, day: date, times: list[str]) -> None:
    assert local_day(rule(f"DTSTART:20200101T000000 RRULE:{text}", BERLIN), day) == times


def test_an_hourly_rule_follows_the_hours_of_the_day() -> None:
    hourly = rule("DTSTART:20200101T000000 RRULE:FREQ=HOURLY", BERLIN)
    assert [len(local_day(hourly, day)) for day in (SPRING, date(2026, 6, 1), AUTUMN)] == [23, 24, 25]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("FREQ=DAYLY", '"DAYLY" is not a FREQ'),
        ("INTERVAL=2", "FREQ is missing"),
        ("every day", '"EVERYDAY" is not a part'),
        ("FREQ=DAILY;BYHUOR=3", '"BYHUOR=3" is not a part'),
        ("FREQ=DAILY;BYEASTER=0", '"BYEASTER=0" is not a part'),
        ("FREQ=DAILY;BYHOUR", "BYHOUR has no value"),
        ("FREQ=DAILY;BYHOUR=3;BYHOUR=4", "BYHOUR is there twice"),
        ("FREQ=DAILY;BYHOUR=25", '"25" does not fit BYHOUR'),
        ("FREQ=DAILY;BYHOUR=1,,2", '"" does not fit BYHOUR'),
        ("FREQ=DAILY;BYHOUR=-1", '"-1" does not fit BYHOUR'),
        ("FREQ=MINUTELY;BYSECOND=60", '"60" does not fit BYSECOND'),
        ("FREQ=MONTHLY;BYMONTHDAY=0", '"0" does not fit BYMONTHDAY'),
        ("FREQ=MONTHLY;BYMONTHDAY=32", '"32" does not fit BYMONTHDAY'),
        ("FREQ=MONTHLY;BYDAY=FRI", '"FRI" does not fit BYDAY'),
        ("FREQ=MONTHLY;BYDAY=0FR", '"0FR" does not fit BYDAY'),
        ("FREQ=WEEKLY;BYDAY=1FR", "BYDAY with a number"),
        ("FREQ=WEEKLY;BYMONTHDAY=1", "BYMONTHDAY has no meaning with FREQ=WEEKLY"),
        ("FREQ=MONTHLY;BYWEEKNO=1", "BYWEEKNO has no meaning with FREQ=MONTHLY"),
        ("FREQ=HOURLY;BYSETPOS=1;BYMINUTE=3", "BYSETPOS has no meaning with FREQ=HOURLY"),
        ("FREQ=MONTHLY;BYSETPOS=1", "BYSETPOS chooses from"),
        ("FREQ=DAILY;INTERVAL=0", '"0" is not a number for INTERVAL'),
        ("FREQ=DAILY;INTERVAL=99999999", "is not a number for INTERVAL"),
        ("FREQ=DAILY;INTERVAL=" + "9" * 5000, "is not a number for INTERVAL"),
        ("FREQ=DAILY;COUNT=10001", "COUNT=10001 is over 10000"),
        ("FREQ=DAILY;COUNT=" + "9" * 5000, "is over 10000"),
        ("FREQ=DAILY;COUNT=-1", '"-1" is not a number for COUNT'),
        ("FREQ=DAILY;COUNT=1;UNTIL=20270101", "COUNT and UNTIL exclude each other"),
        ("FREQ=DAILY;UNTIL=2027-01-01", '"2027-01-01" of UNTIL is not a date'),
        ("FREQ=DAILY;UNTIL=20270230", '"20270230" of UNTIL is not a date'),
        ("FREQ=DAILY;WKST=XX", '"XX" is not a WKST'),
        ("DTSTART:00010101T000000 RRULE:FREQ=DAILY", "of DTSTART is not a date"),
        ("DTSTART:20260101 DTSTART:20260101 RRULE:FREQ=DAILY", "DTSTART is there twice"),
        ("DTSTART:20260101T000000", "there is neither RRULE nor RDATE"),
        ("RRULE:FREQ=DAILY RRULE:FREQ=WEEKLY", "there are two RRULE lines"),
        ("EXRULE:FREQ=DAILY", '"EXRULE" is not a line'),
        ("DTSTART;TZID=Europe/Paris:20260101T090000 RRULE:FREQ=DAILY", 'TZID "Europe/Paris" of DTSTART'),
        ("RDATE;VALUE=PERIOD:20260101T090000Z/PT1H", '"VALUE=PERIOD" of RDATE is not known'),
        ("DTSTART:20260101T090000 RRULE:FREQ=DAILY;UNTIL=20250101", "never fires"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never fires"),
        ("FREQ=DAILY;BYMONTH=4;BYMONTHDAY=31", "never fires"),
        ("FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=30;BYHOUR=3", "never fires"),
        ("DTSTART:20260101T000000 RRULE:FREQ=MINUTELY;INTERVAL=2;BYMINUTE=1", "never fires"),
        ("DTSTART:20260101T000000 RRULE:FREQ=DAILY;COUNT=1 EXDATE:20260101T000000", "never fires"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(text: str, told: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check(rule(text, BERLIN))
    assert refused.value.detail.startswith("rrule: ")
    assert told in refused.value.detail
    assert refused.value.remedy
    assert len(refused.value.detail) < 200


def test_the_nearest_part_is_named() -> None:
    with pytest.raises(BadRequest) as refused:
        check(rule("FREQ=DAILY;BYHUOR=3"))
    assert refused.value.remedy == "Did you mean BYHOUR?"


@settings(deadline=None)  # the machine may be busy
@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                "FREQ=",
                "DAILY",
                ";",
                "BYDAY=1FR",
                ":",
                "DTSTART",
                "RRULE",
                "\n",
                "20260101",
                ",",
                "=",
                "T",
                "Z",
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_any_text_is_accepted_or_refused_in_words(text: str) -> None:
    try:
        check(rule(text or "x"))
    except BadRequest as refused:
        told = refused.detail
        assert told.startswith("rrule: ")


# --- how much is looked at -----------------------------------------------------------------------


class Looked:
    """Counts what a search touches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = self.years = 0
        time, days = Rule._time, recurrence._days_of

        def counted_time(one: Rule, at: int) -> int | None:
            self.times += 1
            return time(one, at)

        def counted_days(*args: Any) -> Any:
            self.years += 1
            return days(*args)

        monkeypatch.setattr(Rule, "_time", counted_time)
        monkeypatch.setattr(recurrence, "_days_of", counted_days)


@pytest.mark.parametrize(
    "text",
    [
        "DTSTART:20160101T000000 RRULE:FREQ=MINUTELY;INTERVAL=7",
        "DTSTART:20160101T000000 RRULE:FREQ=SECONDLY;BYHOUR=23;BYMINUTE=59;BYSECOND=59",
        "DTSTART:19000101T000000 RRULE:FREQ=SECONDLY;INTERVAL=3",
        "DTSTART:19000101T000000 RRULE:FREQ=SECONDLY;INTERVAL=3599;BYMINUTE=0,1,2,3,4,5",
        "DTSTART:19000101T000000 RRULE:FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,FR",
        "DTSTART:20160101T000000 RRULE:FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=29;BYHOUR=3",
        "DTSTART:19960101T000000 RRULE:FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO",
    ],
)
def test_a_rule_costs_the_same_however_long_ago_it_began(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = rule(text, BERLIN)
    check(schedule)
    looked = Looked(monkeypatch)
    assert next_slot(schedule, datetime(2026, 6, 1, 3, 4, 5, tzinfo=UTC), ANCHOR) is not None
    assert looked.times < 40
    assert looked.years < 40


@pytest.mark.parametrize(
    "text",
    [
        "FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=30",
        "DTSTART:20260101T000000 RRULE:FREQ=SECONDLY;INTERVAL=120;BYMINUTE=1,3,5,7,9,11,13,15,17,19,21,23,25,27",
        "DTSTART:20260101T000000 RRULE:FREQ=MINUTELY;INTERVAL=1440;BYHOUR=5",
        "FREQ=MONTHLY;BYMONTHDAY=31;BYMONTH=2,4,6,9,11",
        "FREQ=MONTHLY;BYDAY=MO;BYMONTHDAY=1;BYSETPOS=2",
    ],
)
def test_a_rule_that_never_fires_is_found_out_in_bounded_steps(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Looked(monkeypatch)
    with pytest.raises(BadRequest, match="never fires"):
        check(rule(text, BERLIN))
    assert looked.times <= 2 * MOST_TRIES + 200_000
    assert looked.years <= 1000


# --- against dateutil ----------------------------------------------------------------------------

_FREQS = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY")


def _some(values: Any, size: int = 3) -> st.SearchStrategy[str]:
    return st.lists(values, min_size=1, max_size=size, unique=True).map(
        lambda found: ",".join(str(one) for one in found)
    )


@st.composite
def rules(draw: st.DrawFn) -> str:
    freq = draw(st.sampled_from(_FREQS))
    parts = [f"FREQ={freq}"]
    if draw(st.booleans()):
        parts.append(f"INTERVAL={draw(st.integers(1, 40))}")
    if draw(st.booleans()):
        parts.append(f"WKST={draw(st.sampled_from(['MO', 'SU', 'TH']))}")
    days = st.sampled_from(["MO", "TU", "WE", "TH", "FR", "SA", "SU"])
    within = st.integers(1, 31) | st.integers(-31, -1)
    choices = {
        "BYMONTH": _some(st.integers(1, 12)),
        "BYHOUR": _some(st.integers(0, 23)),
        "BYMINUTE": _some(st.integers(0, 59)),
        "BYSECOND": _some(st.integers(0, 59)),
    }
    if freq != "WEEKLY":
        choices["BYMONTHDAY"] = _some(within)
    choices["BYDAY"] = _some(days)
    if freq in ("YEARLY", "MONTHLY"):
        choices["BYDAY"] |= _some(st.builds("{}{}".format, st.sampled_from([1, 2, 4, -1, -2]), days))
    if freq not in ("WEEKLY", "DAILY", "MONTHLY"):
        choices["BYYEARDAY"] = _some(st.integers(1, 366) | st.integers(-366, -1))
    if freq == "SECONDLY":  # dateutil goes through each second of the days between
        del choices["BYMONTH"], choices["BYYEARDAY"], choices["BYMONTHDAY"]
    names = draw(st.lists(st.sampled_from(sorted(choices)), max_size=4, unique=True))
    parts += [f"{name}={draw(choices[name])}" for name in names]
    # dateutil counts positions of a WEEKLY rule in what is left of its first week
    if freq in ("YEARLY", "MONTHLY", "DAILY") and names and draw(st.booleans()):
        parts.append(f"BYSETPOS={draw(_some(st.sampled_from([1, 2, 3, -1, -2])))}")
    return ";".join(parts)


@settings(deadline=None)  # the machine may be busy
@given(rules(), st.datetimes(datetime(2000, 1, 1), datetime(2020, 1, 1)), st.integers(0, 10))
def test_slots_are_those_of_dateutil_from_dtstart_on(text: str, begin: datetime, skip: int) -> None:
    begin = begin.replace(microsecond=0)
    schedule = rule(f"DTSTART:{begin:%Y%m%dT%H%M%S}\nRRULE:{text}")
    try:
        check(schedule)
    except BadRequest:
        return  # a rule that never fires: dateutil would look for it up to the year 9999
    ours, _ = slots_between(schedule, begin.replace(tzinfo=UTC) - TICK, FAR, ANCHOR, skip + 5)
    end = ours[-1] if len(ours) == skip + 5 else FAR
    theirs = islice(rrulestr(f"{text};UNTIL={end:%Y%m%dT%H%M%S}", dtstart=begin), skip + 5)
    if len(ours) == skip + 5:
        assert [slot.replace(tzinfo=None) for slot in ours] == list(theirs)
    for slot, following in zip(ours[skip:], ours[skip + 1 :], strict=False):
        assert next_slot(schedule, slot, ANCHOR) == following
        assert next_slot(schedule, following - timedelta(seconds=1), ANCHOR) == following


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1900, 2399), st.sampled_from([1, 2, 20, 52, 53, -1]))
def test_weeks_are_those_of_iso_8601(year: int, week: int) -> None:
    found = {date.fromordinal(day) for day in recurrence._days_of(recurrence.Days(weeks=(week,)), year)}
    last = date(year, 12, 28).isocalendar().week
    wanted = week if week > 0 else last + 1 + week
    days = (date(year, 1, 1) + timedelta(days=number) for number in range(366))
    within = [day for day in days if day.year == year and 10 < day.timetuple().tm_yday < 355]
    assert {day for day in within if day.isocalendar().week == wanted} == found & set(within)
