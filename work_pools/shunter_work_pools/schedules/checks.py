"""Which schedules can never work, and what is wrong with them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import lru_cache

from shunter_work_pools.contracts.deployments import CronSchedule, IntervalSchedule, RRuleSchedule, Schedule
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.schedules import wall
from shunter_work_pools.schedules.cron import check_cron
from shunter_work_pools.schedules.recurrence import check_recurrence, read
from shunter_work_pools.schedules.slots import next_slot, shortest_gap
from shunter_work_pools.schedules.zones import check_zone

#: Shortest interval, in seconds.
SHORTEST_INTERVAL = 1.0
#: Stands for the first deploy, which is not known here.
_SOME_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def check(schedule: Schedule) -> None:
    """Refuse a schedule that can never work.

    Raises:
        BadRequest: the detail begins with the field that is wrong.
    """
    when = schedule.when
    check_zone(when.timezone)
    if isinstance(when, IntervalSchedule):
        _check_interval(when.seconds)
    elif isinstance(when, CronSchedule):
        check_cron(when.cron, when.day)
    else:
        check_recurrence(when.rrule, when.timezone, _SOME_TIME)
    if schedule.jitter:
        _check_jitter(schedule)
    if schedule.end is not None:
        _check_end(schedule)


def _check_interval(seconds: float) -> None:
    if not math.isfinite(seconds) or seconds < SHORTEST_INTERVAL:
        raise BadRequest(
            f"interval: {seconds:g} seconds is not an interval that can be kept",
            f"Give a length of at least {SHORTEST_INTERVAL:g} second, for example 60s, 15m, 2h or 1d.",
        )


def _check_jitter(schedule: Schedule) -> None:
    gap = _shortest_gap(schedule.when.model_dump_json())
    if gap is not None and schedule.jitter >= gap:
        raise BadRequest(
            f"jitter: {schedule.jitter:g} seconds is not shorter than the shortest time between two slots, "
            f"{gap:g} seconds",
            "Give a jitter under it: otherwise runs would overtake each other.",
        )


@lru_cache(maxsize=1024)
def _shortest_gap(when: str) -> float | None:
    gap = shortest_gap(Schedule.model_validate_json(f'{{"when": {when}}}').when)
    return None if gap is None else gap.total_seconds()


def _check_end(schedule: Schedule) -> None:
    """Of a schedule that depends on its first deploy, nothing can be said yet."""
    when, start = schedule.when, schedule.start
    if isinstance(when, IntervalSchedule):
        known = when.anchor is not None and start is not None
    elif isinstance(when, RRuleSchedule):
        said = read(when.rrule, when.timezone)
        known = said.begin is not None or said.parts is None
        if start is None and said.begin is not None:
            start = said.begin.wall.replace(tzinfo=UTC) - wall.LARGEST_CHANGE
    else:
        known = start is not None
    if known and start is not None and next_slot(schedule, start - wall.TICK, _SOME_TIME) is None:
        raise BadRequest(
            f"end: there is no slot up to {schedule.end:%Y-%m-%d %H:%M} UTC",
            "Move start or end, or change the times of the schedule.",
        )
