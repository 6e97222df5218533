"""The slots of a schedule: in order, between moments, the newest."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import (
    CronSchedule,
    IntervalSchedule,
    RRuleSchedule,
    Schedule,
    When,
)
from shunter_work_pools.schedules import wall
from shunter_work_pools.schedules.cron import parsed
from shunter_work_pools.schedules.recurrence import recurrence
from shunter_work_pools.schedules.zones import zone_of


def next_slot(schedule: Schedule, after: datetime, anchor: datetime) -> datetime | None:
    """The first slot strictly after a moment.

    Args:
        schedule: one that :func:`check` accepts.
        after: aware.
        anchor: aware; where an interval or a rule that does not say it itself begins.

    Returns:
        The slot in UTC; None if there is none: past the schedule's end or the calendar's (year 9999).
    """
    return next(slots(schedule, after, anchor), None)


def slots_between(
    schedule: Schedule, after: datetime, until: datetime, anchor: datetime, limit: int
) -> tuple[list[datetime], bool]:
    """The slots after ``after`` up to and including ``until``, oldest first.

    Returns:
        At most ``limit`` slots in UTC, and whether there are more; go on from the last one.
    """
    found: list[datetime] = []
    for slot in slots(schedule, after, anchor):
        if slot > until:
            break
        if len(found) == limit:
            return found, True
        found.append(slot)
    return found, False


def latest_between(
    schedule: Schedule, after: datetime, until: datetime, anchor: datetime, limit: int
) -> list[datetime]:
    """The newest ``limit`` slots after ``after`` up to and including ``until``, oldest first.

    Looks for a moment after which there are as many, or up to twice as many: the cost does not depend on
    how many slots there are before it.
    """
    found, more = slots_between(schedule, after, until, anchor, limit)
    if not more or limit < 1:
        return found
    enough, too_few = after, until
    middle = until - 1.5 * (found[-1] - after)  # if they come as often to the end as at the beginning
    while True:
        if not enough < middle < too_few:
            middle = enough + (too_few - enough) / 2
        found, more = slots_between(schedule, middle, until, anchor, 2 * limit)
        if more:
            enough = middle
        elif len(found) < limit:
            too_few = middle
        else:
            return found[-limit:]


def jitter_of(schedule: Schedule, schedule_id: int, slot: Micros) -> Micros:
    """By how much a run starts after its slot: spread over the jitter, the same whenever it is asked."""
    if not schedule.jitter:
        return 0
    digest = hashlib.blake2b(f"{schedule_id}:{slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % max(1, round(schedule.jitter * 1_000_000))


def slots(schedule: Schedule, after: datetime, anchor: datetime) -> Iterator[datetime]:
    """All slots strictly after a moment, in UTC and in order."""
    after = max(after.astimezone(UTC), wall.EARLIEST)
    if schedule.start is not None and schedule.start > after:
        after = schedule.start - wall.TICK
    found = _of_when(schedule.when, after, anchor)
    if schedule.end is None:
        return found
    end = schedule.end
    return itertools.takewhile(lambda slot: slot <= end, found)


def shortest_gap(when: When) -> timedelta | None:
    """The least time between two slots, on a clock that never changes; None: there is but one."""
    if isinstance(when, IntervalSchedule):
        return timedelta(seconds=when.seconds)
    start = datetime(2000, 1, 1, tzinfo=UTC)
    few = list(itertools.islice(_walls(walk_of(when, start), start.replace(tzinfo=None)), 2000))
    return min((later - earlier for earlier, later in itertools.pairwise(few)), default=None)


def walk_of(when: CronSchedule | RRuleSchedule, anchor: datetime) -> wall.Walk:
    """The times as they are meant, before the zone is looked at."""
    if isinstance(when, CronSchedule):
        return parsed(when.cron, when.day)
    return recurrence(when.rrule, when.timezone, anchor)


def _walls(walk: wall.Walk, after: datetime) -> Iterator[datetime]:
    at: datetime | None = after
    while at is not None and (at := walk.next_wall(at)) is not None:
        yield at


def _of_when(when: When, after: datetime, anchor: datetime) -> Iterator[datetime]:
    if isinstance(when, IntervalSchedule):
        return _of_interval(when, after, when.anchor or anchor)
    if isinstance(when, CronSchedule):
        return wall.slots(parsed(when.cron, when.day), zone_of(when.timezone), after)
    return recurrence(when.rrule, when.timezone, anchor).slots(zone_of(when.timezone), after)


def _of_interval(when: IntervalSchedule, after: datetime, anchor: datetime) -> Iterator[datetime]:
    step, start = round(when.seconds * 1_000_000), micros(anchor)
    slot = start + ((micros(after) - start) // step + 1) * step
    while True:
        try:
            yield moment(slot)
        except (ValueError, OverflowError):  # past the year 9999
            return
        slot += step
