"""From the wall clock of a zone to instants, over the changes of the clock.

A *walk* names wall-clock times, without a zone; here each becomes the instant, or the instants, at
which it happens. Both ways rely on what the zones of the IANA data keep (a test goes through all of them):
two changes of one zone are days apart, and no clock is moved by more than a day.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from shunter_work_pools.contracts.base import micros, moment

#: No clock was ever moved by more than a day; with a margin.
LARGEST_CHANGE = timedelta(days=2)
#: Between them is room for every computation, and every zone, on the calendar (years 1 to 9999).
EARLIEST, LATEST = datetime(2, 1, 1, tzinfo=UTC), datetime(9999, 12, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)


class Walk(Protocol):
    """Wall-clock times in order.

    Attributes:
        fixed: each happens once, whatever the clock does; otherwise at each instant at which the wall
            clock shows it.
    """

    @property
    def fixed(self) -> bool: ...

    def next_wall(self, wall: datetime) -> datetime | None:
        """The first time strictly after ``wall`` (both naive); None if there is none."""


class Jump(NamedTuple):
    """A change of the clock: at the instant ``at`` it shows ``to`` instead of ``before`` (naive)."""

    at: datetime
    before: datetime
    to: datetime


def slots(walk: Walk, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """The instants of a walk strictly after a moment, in UTC."""
    following = _next_fixed if walk.fixed else _next_in_rhythm
    while True:
        try:
            slot = following(walk, zone, after)
        except OverflowError:  # the wall clock of the zone is past the year 9999
            return
        if slot is None:
            return
        yield slot
        after = slot


def instant(wall: datetime, zone: ZoneInfo) -> datetime | None:
    """When a fixed time of the wall clock happens; None on a day that the zone leaves out.

    The first time, if the clock shows it twice. If the clock never shows it: the end of the jump or, if
    that is on the next day already, the last second of the day.
    """
    local = wall.replace(tzinfo=zone)
    slot = local.astimezone(UTC)
    if slot.astimezone(zone).replace(tzinfo=None) == wall:
        return slot
    # Nonexistent. With fold=0 it is read by the offset before the jump (PEP 495), which puts it after.
    jump = change(zone, local.replace(fold=1).astimezone(UTC), slot)
    if jump is None:
        return slot
    if jump.to.date() == wall.date():
        return jump.at
    last = jump.at - _SECOND
    return last if (jump.before - _SECOND).date() == wall.date() else None


def change(zone: ZoneInfo, start: datetime, end: datetime) -> Jump | None:
    """The change within ``(start, end]`` (days, not weeks); None if there is none."""
    earlier, later = offset(zone, start), offset(zone, end)
    if earlier == later:
        return None
    before, since = micros(start) // 1_000_000, -(-micros(end) // 1_000_000)
    while since - before > 1:  # offsets change at whole seconds
        middle = (before + since) // 2
        if offset(zone, moment(middle * 1_000_000)) == later:
            since = middle
        else:
            before = middle
    at = moment(since * 1_000_000)
    return Jump(at, (at + earlier).replace(tzinfo=None), (at + later).replace(tzinfo=None))


def changes(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[Jump]:
    """All changes within ``(start, end]``."""
    while start < end:
        until = min(start + LARGEST_CHANGE, end)
        if jump := change(zone, start, until):
            yield jump
        start = until


def offset(zone: ZoneInfo, at: datetime) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()


def _next_fixed(walk: Walk, zone: ZoneInfo, after: datetime) -> datetime | None:
    wall: datetime | None = after.astimezone(zone).replace(tzinfo=None)
    while wall is not None and (wall := walk.next_wall(wall)):
        slot = instant(wall, zone)
        if slot is not None and slot > after:  # not, if the clock was set back in between
            return slot
    return None


def _next_in_rhythm(walk: Walk, zone: ZoneInfo, after: datetime) -> datetime | None:
    """Between two changes of the clock, wall and physical time run alike: go from change to change."""
    inclusive = False
    while True:
        ahead = offset(zone, after)
        wall = (after + ahead - (TICK if inclusive else timedelta())).replace(tzinfo=None)
        match = walk.next_wall(wall)
        if match is None:
            return None
        slot = match.replace(tzinfo=UTC) - ahead
        horizon = min(slot, after + LARGEST_CHANGE)
        if jump := change(zone, after, horizon):
            after, inclusive = jump.at, True
        elif slot == horizon:
            return slot
        else:  # a long way: no wall-clock time from before `after` comes again, so look near the match
            after, inclusive = slot - LARGEST_CHANGE, False
