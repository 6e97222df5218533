"""Schedules in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import agreement
from shunter_work_pools.contracts.deployments import Schedule
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.schedules import check, in_words
from shunter_work_pools.schedules.words import LONGEST
from tests.schedules.test_recurrence import rules
from tests.schedules.written import BERLIN, cron, every, rule

NEW_YORK = "America/New_York"
JANUARY = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (cron("0 6 * * 1-5", BERLIN), "every weekday at 06:00 in Berlin"),
        (cron("*/15 * * * *", BERLIN), "every 15 minutes"),
        (cron("* * * * *"), "every minute"),
        (cron("5 * * * *"), "at minute 5 of every hour"),
        (cron("0,20 * * * *"), "at minutes 0 and 20 of every hour"),
        (cron("@hourly"), "every hour"),
        (cron("@daily"), "every day at 00:00 UTC"),
        (cron("30 2 * * *", BERLIN), "every day at 02:30 in Berlin"),
        (cron("0 0 1 * *"), "on the 1st of every month at 00:00 UTC"),
        (cron("0 9,17 * * MON,THU", NEW_YORK), "every Monday and Thursday at 09:00 and 17:00 in New York"),
        (cron("0 8 * * 7", "Etc/GMT+5"), "every Sunday at 08:00 in Etc/GMT+5"),
        (cron("30 0 2 * * *"), "every day at 02:00:30 UTC"),
        (cron("*/10 * * * * *"), "every 10 seconds"),
        (cron("0 */2 * * *", BERLIN), "every 2 hours in Berlin"),
        (cron("5 */2 * * *"), "every 2 hours at minute 5 in UTC"),
        (cron("*/15 9-17 * * 1-5", BERLIN), "every 15 minutes from 09:00 to 17:45 on weekdays in Berlin"),
        (
            cron("0 9-17 * * MON,TUE", BERLIN),
            "every hour from 09:00 to 17:00 on Mondays and Tuesdays in Berlin",
        ),
        (cron("0 0 L * *"), "on the last day of every month at 00:00 UTC"),
        (cron("0 0 LW 3 *"), "on the last weekday of March at 00:00 UTC"),
        (cron("0 8 * * 5L"), "on the last Friday of every month at 08:00 UTC"),
        (cron("0 8 * 1,6 1#2"), "on the 2nd Monday of January and June at 08:00 UTC"),
        (cron("0 8 1-7 * *"), "on the 1st to 7th of every month at 08:00 UTC"),
        (cron("0 0 13 * FRI"), "on the 13th of every month and every Friday at 00:00 UTC"),
        (cron("0 0 13 * FRI", day="and"), "on the 13th of every month if it is a Friday at 00:00 UTC"),
        (cron("0 0 25 12 *"), "on the 25th of December at 00:00 UTC"),
        (cron("0-58 3,5 1 1 *"), 'by the cron expression "0-58 3,5 1 1 *" in UTC'),
        (every(60), "every minute"),
        (every(5400), "every 90 minutes"),
        (every(5400, anchor=JANUARY), "every 90 minutes from 2026-01-01 00:00 UTC"),
        (every(86_400), "every 24 hours"),
        (every(7 * 86_400), "every 7 days"),
        (every(1.5), "every 1.5 seconds"),
        (
            rule("FREQ=WEEKLY;INTERVAL=2;BYDAY=FR;BYHOUR=9;BYMINUTE=0", BERLIN),
            "every 2 weeks on Friday at 09:00 in Berlin",
        ),
        (rule("FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR;BYHOUR=6;BYMINUTE=0"), "every weekday at 06:00 UTC"),
        (rule("DTSTART:20260102T090000 RRULE:FREQ=WEEKLY"), "every Friday at 09:00 UTC"),
        (rule("DTSTART:20260131T090000 RRULE:FREQ=MONTHLY"), "on the 31st of every month at 09:00 UTC"),
        (
            rule("FREQ=MONTHLY;BYMONTHDAY=-1;BYHOUR=9;BYMINUTE=0"),
            "on the last day of every month at 09:00 UTC",
        ),
        (rule("FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=9;BYMINUTE=0"), "every month on the last Friday at 09:00 UTC"),
        (rule("FREQ=DAILY", BERLIN), "every day at the time of day of its first deploy in Berlin"),
        (rule("FREQ=MINUTELY;INTERVAL=10", BERLIN), "every 10 minutes"),
        (
            rule("DTSTART:20260101T090000 RRULE:FREQ=DAILY;COUNT=5 EXDATE:20260102T090000"),
            "every day at 09:00 UTC, 5 times, except 1 date",
        ),
        (
            rule("DTSTART:20260101T090000 RRULE:FREQ=DAILY;UNTIL=20270101"),
            "every day at 09:00 UTC, until 2027-01-01",
        ),
        (rule("RDATE:20260101T090000,20260501T090000", BERLIN), "at 2 given times in Berlin"),
        (
            rule("FREQ=YEARLY;BYWEEKNO=20;BYDAY=MO", BERLIN),
            'by the rule "FREQ=YEARLY;BYWEEKNO=20;BYDAY=MO" in Berlin',
        ),
    ],
)
def test_a_schedule_is_told_as_one_would_say_it(schedule: Schedule, words: str) -> None:
    check(schedule)
    assert in_words(schedule.when) == words


@settings(deadline=None)  # the machine may be busy
@given(st.randoms(use_true_random=False))
def test_whatever_is_valid_has_words(chance: object) -> None:
    case = agreement.draw(chance)  # type: ignore[arg-type]
    schedule = cron(case.expression, case.zone)
    try:
        check(schedule)
    except BadRequest:
        return
    _told(schedule)


@settings(deadline=None)  # the machine may be busy
@given(rules(), st.booleans())
def test_whatever_rule_is_valid_has_words(text: str, begin: bool) -> None:
    schedule = rule(("DTSTART:20260131T093015 RRULE:" if begin else "") + text, BERLIN)
    try:
        check(schedule)
    except BadRequest:
        return
    _told(schedule)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1_000_000, 10**14))
def test_whatever_interval_is_valid_has_words(micros: int) -> None:
    _told(every(micros / 1_000_000))


def _told(schedule: Schedule) -> None:
    words = in_words(schedule.when)
    assert 0 < len(words) <= LONGEST
    assert words == " ".join(words.split())
    assert "None" not in words
