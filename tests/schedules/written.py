"""Schedules as short as one would write them in a test."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from shunter_work_pools.contracts.deployments import CronSchedule, IntervalSchedule, RRuleSchedule, Schedule
from shunter_work_pools.schedules import slots_between

ANCHOR = datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)
BERLIN = "Europe/Berlin"
SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)  # 02:00 -> 03:00 and 03:00 -> 02:00 in Berlin
TICK = timedelta(microseconds=1)


def cron(expression: str, timezone: str = "UTC", day: Any = "or", **more: Any) -> Schedule:
    return Schedule(when=CronSchedule(cron=expression, timezone=timezone, day=day), **more)


def every(seconds: float, anchor: datetime | None = None, timezone: str = "UTC", **more: Any) -> Schedule:
    return Schedule(when=IntervalSchedule(seconds=seconds, anchor=anchor, timezone=timezone), **more)


def rule(text: str, timezone: str = "UTC", **more: Any) -> Schedule:
    return Schedule(when=RRuleSchedule(rrule=text, timezone=timezone), **more)


def local_day(schedule: Schedule, day: date) -> list[str]:
    """The slots of one local day, as local times with their offset."""
    tz = ZoneInfo(schedule.when.timezone)
    start = datetime(day.year, day.month, day.day, tzinfo=tz)
    end = start + timedelta(days=1)
    slots, more = slots_between(
        schedule, start.astimezone(UTC) - TICK, end.astimezone(UTC) - TICK, ANCHOR, 10_000
    )
    assert not more
    return [slot.astimezone(tz).strftime("%H:%M%z")[:8] for slot in slots]
