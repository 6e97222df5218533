"""When a schedule is due: pure functions of a schedule and a moment.

No database, no clock: the moments come in as arguments and slots come out in UTC. Asking twice gives
the same answer, and going on from any slot gives the slots that follow it, so a scheduler may stop
and start anywhere.

**Cron** follows the local wall clock of the schedule's zone, and does at the two changes of a year
what Debian's cron does (cron(8)); cronsim parses the expression and walks the calendar:

* A *fixed time* (neither the minute nor the hour begins with ``*``) happens exactly once each local
  day. A time that the clock jumps over happens at the end of the jump (``30 2`` becomes 03:00); a
  time that comes twice happens the first time only. Several times within one jump become one slot.
* A *rhythm* (the minute or the hour begins with ``*``) happens at each instant at which the wall
  clock shows it: ``0 * * * *`` makes 23, 24 or 25 slots a day, ``*/15 2 * * *`` none or eight.

**Intervals** are physical time: integer microseconds counted from the anchor, in both directions. The
anchor fixes the phase; changes of the clock do not move the slots.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import itertools
import math
import zoneinfo
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import CronSchedule, IntervalSchedule, Schedule, When
from shunter_work_pools.contracts.errors import BadRequest

#: Shortest interval, in seconds.
SHORTEST_INTERVAL = 1.0

_FIELDS = {
    5: ("minute", "hour", "day of month", "month", "day of week"),
    6: ("second", "minute", "hour", "day of month", "month", "day of week"),
}
_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_CRON_REMEDY = (
    'Give minute, hour, day of month, month and day of week, for example "0 6 * * 1-5"; '
    "six fields begin with the second."
)
#: Any date: whether an expression fires at all does not depend on where one begins to look.
_SOME_DAY = datetime(2000, 1, 1)
#: No clock was ever moved by more than a day; with a margin.
_LARGEST_CHANGE = timedelta(days=2)
_TICK = timedelta(microseconds=1)


def check(schedule: Schedule) -> None:
    """Refuse a schedule that can never work.

    Raises:
        BadRequest: the detail names the field and the part of it that is wrong.
    """
    when = schedule.when
    _check_zone(when.timezone)
    if isinstance(when, IntervalSchedule):
        _check_interval(when.seconds)
    elif isinstance(when, CronSchedule):
        _check_cron(when.cron)


def next_slot(schedule: Schedule, after: datetime, anchor: datetime) -> datetime | None:
    """The first slot strictly after a moment.

    Args:
        schedule: one that :func:`check` accepts.
        after: aware.
        anchor: aware; where an interval without an anchor of its own is counted from.

    Returns:
        The slot in UTC; None if there is none: past the schedule's end or the calendar's (year 9999).
    """
    return next(_slots(schedule, after, anchor), None)


def slots_between(
    schedule: Schedule, after: datetime, until: datetime, anchor: datetime, limit: int
) -> tuple[list[datetime], bool]:
    """The slots after ``after`` up to and including ``until``, oldest first.

    Returns:
        At most ``limit`` slots in UTC, and whether there are more; go on from the last one.
    """
    found: list[datetime] = []
    for slot in _slots(schedule, after, anchor):
        if slot > until:
            break
        if len(found) == limit:
            return found, True
        found.append(slot)
    return found, False


def latest_between(
    schedule: Schedule, after: datetime, until: datetime, anchor: datetime, limit: int
) -> list[datetime]:
    """The newest ``limit`` slots after ``after`` up to and including ``until``, oldest first."""
    newest: deque[datetime] = deque(maxlen=limit)
    for slot in _slots(schedule, after, anchor):
        if slot > until:
            break
        newest.append(slot)
    return list(newest)


def jitter_of(schedule: Schedule, schedule_id: int, slot: Micros) -> Micros:
    """By how much a run starts after its slot: spread over the jitter, the same whenever it is asked."""
    if not schedule.jitter:
        return 0
    digest = hashlib.blake2b(f"{schedule_id}:{slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % round(schedule.jitter * 1_000_000)


def in_words(when: When) -> str:
    """What a schedule means, e.g. ``every weekday at 06:00 in Berlin``."""
    return str(when)


def _slots(schedule: Schedule, after: datetime, anchor: datetime) -> Iterator[datetime]:
    when = schedule.when
    after = after.astimezone(UTC)
    if schedule.start is not None:
        after = max(after, schedule.start - _TICK)
    if isinstance(when, IntervalSchedule):
        found = _interval_slots(when, after, when.anchor or anchor)
    elif isinstance(when, CronSchedule):
        found = _cron_slots(_parsed(when.cron), ZoneInfo(when.timezone), after)
    else:
        raise NotImplementedError
    if schedule.end is None:
        return found
    end = schedule.end
    return itertools.takewhile(lambda slot: slot <= end, found)


# --- intervals -----------------------------------------------------------------------------------


def _interval_slots(when: IntervalSchedule, after: datetime, anchor: datetime) -> Iterator[datetime]:
    step, start = round(when.seconds * 1_000_000), micros(anchor)
    slot = start + ((micros(after) - start) // step + 1) * step
    while True:
        try:
            yield moment(slot)
        except (ValueError, OverflowError):  # past the year 9999
            return
        slot += step


def _check_interval(seconds: float) -> None:
    if not math.isfinite(seconds) or seconds < SHORTEST_INTERVAL:
        raise BadRequest(
            f"interval: {seconds:g} seconds is not an interval that can be kept",
            f"Give a length of at least {SHORTEST_INTERVAL:g} second, for example 60s, 15m, 2h or 1d.",
        )


# --- cron ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cron:
    """A parsed expression. ``fixed``: its times happen once a day, whatever the clock does."""

    walker: CronSim
    fixed: bool

    def next_wall(self, wall: datetime) -> datetime | None:
        """The first wall-clock time strictly after ``wall`` (both naive) that matches."""
        walker = copy.copy(self.walker)
        walker.dt = wall.replace(microsecond=0)
        try:
            return next(walker, None)
        except (OverflowError, ValueError):  # past the year 9999
            return None


@lru_cache(maxsize=4096)
def _parsed(cron: str) -> _Cron:
    expression = _NICKNAMES.get(cron.strip().lower(), cron)
    walker = CronSim(expression, _SOME_DAY)  # naive: it walks the calendar, we do the zone
    _, minute, hour, *_ = walker.parts
    rhythm = minute.startswith("*") or hour.startswith("*")
    every = len(walker.minutes) == 60 or len(walker.hours) == 24  # "0-23" is as good as "*"
    return _Cron(walker, fixed=not (rhythm or every))


def _cron_slots(cron: _Cron, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    following = _next_fixed if cron.fixed else _next_in_rhythm
    while True:
        try:
            slot = following(cron, zone, after)
        except OverflowError:  # the wall clock of the zone is past the year 9999
            return
        if slot is None:
            return
        yield slot
        after = slot


def _next_fixed(cron: _Cron, zone: ZoneInfo, after: datetime) -> datetime | None:
    """Each wall-clock time is one instant: the first it names, or the end of the jump it falls in."""
    wall: datetime | None = after.astimezone(zone).replace(tzinfo=None)
    while wall is not None and (wall := cron.next_wall(wall)):
        slot = _instant(wall, zone)
        if slot > after:  # not, if the clock was set back in between or the jump's end was a slot
            return slot
    return None


def _instant(wall: datetime, zone: ZoneInfo) -> datetime:
    local = wall.replace(tzinfo=zone)
    slot = local.astimezone(UTC)
    if slot.astimezone(zone).replace(tzinfo=None) == wall:
        return slot
    # Nonexistent. With fold=0 it is read by the offset before the jump (PEP 495), which puts it after.
    return _change(zone, local.replace(fold=1).astimezone(UTC), slot) or slot


def _next_in_rhythm(cron: _Cron, zone: ZoneInfo, after: datetime) -> datetime | None:
    """Between two changes of the clock, wall and physical time run alike: go from change to change."""
    inclusive = False
    while True:
        offset = _offset(zone, after)
        wall = (after + offset - (_TICK if inclusive else timedelta())).replace(tzinfo=None)
        match = cron.next_wall(wall)
        if match is None:
            return None
        slot = match.replace(tzinfo=UTC) - offset
        horizon = min(slot, after + _LARGEST_CHANGE)
        if change := _change(zone, after, horizon):
            after, inclusive = change, True
        elif slot == horizon:
            return slot
        else:  # a long way: no wall-clock time from before `after` comes again, so look near the match
            after, inclusive = slot - _LARGEST_CHANGE, False


def _offset(zone: ZoneInfo, at: datetime) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()


def _change(zone: ZoneInfo, start: datetime, end: datetime) -> datetime | None:
    """When within ``(start, end]`` (days, not weeks) the zone's offset changes; None if it does not."""
    if _offset(zone, start) == (later := _offset(zone, end)):
        return None
    before, since = micros(start) // 1_000_000, -(-micros(end) // 1_000_000)
    while since - before > 1:  # offsets change at whole seconds
        middle = (before + since) // 2
        if _offset(zone, moment(middle * 1_000_000)) == later:
            since = middle
        else:
            before = middle
    return moment(since * 1_000_000)


def _check_cron(cron: str) -> None:
    try:
        fires = _parsed(cron).next_wall(_SOME_DAY) is not None
    except CronSimError:
        fields = cron.split()
        names = _FIELDS.get(len(fields))
        if names is None:
            raise BadRequest(f'cron: "{cron}" has {len(fields)} of the 5 or 6 fields', _CRON_REMEDY) from None
        for position, name in enumerate(names):
            if (token := _wrong_token(fields, position)) is not None:
                raise BadRequest(
                    f'cron: "{token}" in "{cron}" does not fit the {name}', _CRON_REMEDY
                ) from None
        fires = False  # each field is right by itself: they name a day that no month has
    if not fires:
        raise BadRequest(
            f'cron: "{cron}" never fires, no date matches it',
            "Change the day or the month: no year has, for example, a 30 February.",
        )


def _wrong_token(fields: list[str], position: int) -> str | None:
    """The first part of a field that does not parse; None if the field is right."""

    def parses(text: str) -> bool:
        alone = ["*"] * len(fields)
        alone[position] = text
        try:
            CronSim(" ".join(alone), _SOME_DAY)
        except CronSimError:
            return False
        return True

    if parses(fields[position]):
        return None
    return next((part for part in fields[position].split(",") if not parses(part)), fields[position])


# --- zones ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _zones() -> dict[str, str]:
    return {name.lower(): name for name in sorted(zoneinfo.available_timezones())}


def _check_zone(name: str) -> None:
    zones = _zones()
    if zones.get(name.lower()) == name:
        return
    wanted = name.lower().replace(" ", "_")
    # An abbreviation is near to many others that mean something else (CEST, EST).
    near = difflib.get_close_matches(wanted, zones, n=1, cutoff=0.6 if len(wanted) > 5 else 1.0)
    if not near:  # "Berlin" rather than "Europe/Berlin"
        cities = {zone.rpartition("/")[2]: zone for zone in zones if "/" in zone}
        near = [cities[city] for city in difflib.get_close_matches(wanted, cities, n=1, cutoff=0.8)]
    hint = f"Did you mean {zones[near[0]]}?" if near else "Give an IANA name, for example Europe/Berlin."
    raise BadRequest(f'timezone: "{name}" is not a known time zone', hint)
