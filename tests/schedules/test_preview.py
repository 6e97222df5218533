"""Previews: the slots to come in both clocks, and what a change of the clock does to each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter_work_pools.contracts.deployments import Schedule
from shunter_work_pools.schedules import next_slot, preview
from tests.schedules.written import ANCHOR, BERLIN, TICK, cron, every, rule

SPRING, AUTUMN = datetime(2027, 3, 27, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)
GAP = "(clocks go from 02:00 to 03:00)"


def told(schedule: Schedule, after: datetime, count: int) -> list[tuple[str, str | None]]:
    return [
        (slot.local[5:16] + slot.local[-6:], slot.remark) for slot in preview(schedule, after, ANCHOR, count)
    ]


def test_the_days_around_a_spring_change_in_berlin() -> None:
    found = preview(cron("30 2 * * *", BERLIN), datetime(2027, 3, 26, tzinfo=UTC), ANCHOR, 4)
    assert [slot.model_dump(mode="json") for slot in found] == [
        {"utc": "2027-03-26T01:30:00Z", "local": "2027-03-26T02:30:00+01:00", "remark": None},
        {"utc": "2027-03-27T01:30:00Z", "local": "2027-03-27T02:30:00+01:00", "remark": None},
        {
            "utc": "2027-03-28T01:00:00Z",
            "local": "2027-03-28T03:00:00+02:00",
            "remark": f"02:30 does not exist on this day {GAP}: moved to 03:00",
        },
        {"utc": "2027-03-29T00:30:00Z", "local": "2027-03-29T02:30:00+02:00", "remark": None},
    ]


def test_the_first_moment_is_included() -> None:
    at = datetime(2026, 6, 1, 6, tzinfo=UTC)
    for schedule in (
        cron("0 6 * * *"),
        every(3600, anchor=at),
        rule("FREQ=DAILY;BYHOUR=6;BYMINUTE=0;BYSECOND=0"),
    ):
        assert preview(schedule, at, ANCHOR, 1)[0].utc == at
        assert preview(schedule, at + TICK, ANCHOR, 1)[0].utc > at


def test_an_exhausted_schedule_has_fewer() -> None:
    schedule = cron("0 6 * * *", end=datetime(2026, 6, 2, 12, tzinfo=UTC))
    assert len(preview(schedule, datetime(2026, 6, 1, tzinfo=UTC), ANCHOR, 10)) == 2


@pytest.mark.parametrize(
    ("schedule", "after", "slots"),
    [
        (
            cron("15,45 2 * * *", BERLIN),
            SPRING,
            [("03-28T03:00+02:00", f"02:15 and 02:45 do not exist on this day {GAP}: moved to 03:00")],
        ),
        (
            cron("*/10 2,3 * * *", BERLIN),
            SPRING,
            [
                ("03-28T03:00+02:00", f"02:00, 02:10, ... do not exist on this day {GAP}: left out"),
                ("03-28T03:10+02:00", None),
            ],
        ),
        (
            cron("*/30 2 * * *", BERLIN),
            SPRING,
            [("03-29T02:00+02:00", f"02:00 and 02:30 do not exist on 2027-03-28 {GAP}: left out")],
        ),
        (
            cron("30 2 * * *", BERLIN),
            AUTUMN,
            [
                ("10-25T02:30+02:00", "02:30 comes twice on this day: only the first time"),
                ("10-26T02:30+01:00", None),
            ],
        ),
        (
            cron("0 2-3 * * *", BERLIN),
            AUTUMN,
            [
                ("10-25T02:00+02:00", "02:00 comes twice on this day: only the first time"),
                ("10-25T03:00+01:00", None),
            ],
        ),
        (
            rule("DTSTART:20260101T020000 RRULE:FREQ=HOURLY;BYHOUR=2", BERLIN),
            AUTUMN,
            [
                ("10-25T02:00+02:00", "02:00 comes twice on this day: first time"),
                ("10-25T02:00+01:00", "02:00 comes twice on this day: second time"),
                ("10-26T02:00+01:00", None),
            ],
        ),
        (
            cron("30 23 * * *", "America/Nuuk"),
            datetime(2026, 3, 28, 12, tzinfo=UTC),
            [
                (
                    "03-28T22:59-02:00",
                    "23:30 does not exist on this day (clocks go from 23:00 to 00:00): moved to 22:59:59",
                ),
                ("03-29T23:30-01:00", None),
            ],
        ),
        (
            cron("30 9 * * *", "Pacific/Apia"),
            datetime(2011, 12, 29, tzinfo=UTC),
            [
                ("12-29T09:30-10:00", None),
                ("12-31T09:30+14:00", "2011-12-30 is left out in this zone: no slot on it"),
            ],
        ),
        (
            every(7200, anchor=datetime(2026, 1, 1, tzinfo=UTC), timezone=BERLIN),
            datetime(2027, 3, 28, tzinfo=UTC),
            [
                ("03-28T01:00+01:00", None),
                ("03-28T04:00+02:00", "the clocks went from 02:00 to 03:00 since the slot before"),
                ("03-28T06:00+02:00", None),
            ],
        ),
    ],
)
def test_a_remark_says_what_the_change_of_the_clock_does(
    schedule: Schedule, after: datetime, slots: list[tuple[str, str | None]]
) -> None:
    assert told(schedule, after, len(slots)) == slots


def test_a_date_given_by_itself_has_a_remark_too() -> None:
    schedule = rule("RDATE:20270328T023000,20271031T023000", BERLIN)
    assert [remark for _, remark in told(schedule, SPRING, 2)] == [
        f"02:30 does not exist on this day {GAP}: moved to 03:00",
        "02:30 comes twice on this day: only the first time",
    ]


@settings(deadline=None)  # the machine may be busy
@given(
    st.sampled_from([cron("30 2 * * *", BERLIN), cron("*/20 1-3 * * *", BERLIN), cron("0 0 * * *", BERLIN)]),
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
)
def test_only_changes_of_the_clock_are_remarked(schedule: Schedule, naive: datetime) -> None:
    after = naive.replace(tzinfo=UTC)
    at = after - TICK
    for slot in preview(schedule, after, ANCHOR, 6):
        assert slot.utc == next_slot(schedule, at, ANCHOR)
        assert datetime.fromisoformat(slot.local) == slot.utc
        days = [datetime.fromisoformat(slot.local) + timedelta(hours=hours) for hours in (-3, 3)]
        offsets = {day.astimezone(ZoneInfo(BERLIN)).utcoffset() for day in days}
        if slot.remark is not None:
            assert len(offsets) == 2
        at = slot.utc
