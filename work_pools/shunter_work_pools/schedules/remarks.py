"""The slots to come, with remarks on what changes of the clock do to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from shunter_work_pools.contracts.deployments import IntervalSchedule, Schedule, SlotPreview
from shunter_work_pools.schedules import wall
from shunter_work_pools.schedules.slots import slots, walk_of
from shunter_work_pools.schedules.zones import zone_of

#: Before a slot, changes of the clock are looked for so far back; before the first one of a preview:
_BEFORE, _BEFORE_FIRST = timedelta(days=60), timedelta(days=1)
#: So many times are named in a remark.
_MOST_NAMED = 3


def preview(schedule: Schedule, after: datetime, anchor: datetime, count: int) -> list[SlotPreview]:
    """The first slots from a moment on, inclusive.

    Args:
        schedule: one that :func:`check` accepts.
        after: aware; a slot exactly then is one of them.
        anchor: aware; where an interval or a rule that does not say it itself begins.
        count: of slots; fewer come back if the schedule is exhausted.
    """
    when = schedule.when
    zone = zone_of(when.timezone)
    walk = None if isinstance(when, IntervalSchedule) else walk_of(when, anchor)
    told = []
    since = max(after, wall.EARLIEST) - wall.TICK
    to_come = itertools.takewhile(lambda slot: slot < wall.LATEST, slots(schedule, since, anchor))
    before = None
    for slot in itertools.islice(to_come, count):
        since = max(before, slot - _BEFORE) if before else max(since, slot - _BEFORE_FIRST)
        remark = _remark(walk, zone, slot, since)
        told.append(SlotPreview(utc=slot, local=slot.astimezone(zone).isoformat(), remark=remark))
        before = slot
    return told


def _remark(walk: wall.Walk | None, zone: ZoneInfo, slot: datetime, since: datetime) -> str | None:
    """``since``: the slot before."""
    jumps = list(wall.changes(zone, since, slot))
    if walk is None:
        return f"the clocks went {_from_to(jumps[-1])} since the slot before" if jumps else None
    local = slot.astimezone(zone)
    # What moved to the last second of a day moved over the jump that follows.
    if walk.fixed and (ahead := wall.change(zone, slot, slot + timedelta(seconds=1))):
        jumps.append(ahead)
    remarks = [told for jump in jumps if (told := _jumped_over(walk, zone, jump, slot))]
    if remarks:
        return "; ".join(remarks)
    return _twice(walk, zone, local)


def _jumped_over(walk: wall.Walk, zone: ZoneInfo, jump: wall.Jump, slot: datetime) -> str | None:
    missed = list(itertools.islice(_walls(walk, jump), _MOST_NAMED + 1))
    if walk.fixed:
        missed = [time for time in missed if wall.instant(time, zone) in (slot, None)]
    if not missed:
        return None
    local = slot.astimezone(zone)
    if jump.to - jump.before >= timedelta(days=1):
        return f"{jump.before:%Y-%m-%d} is left out in this zone: no slot on it"
    verb = "does" if len(missed) == 1 else "do"
    on = "on this day" if jump.before.date() == local.date() or jump.to.date() == local.date() else ""
    on = on or f"on {jump.before:%Y-%m-%d}"
    what = f"{_named(missed)} {verb} not exist {on} (clocks go {_from_to(jump)})"
    if not walk.fixed:
        return f"{what}: left out"
    return f"{what}: moved to {_time(local)}"


def _walls(walk: wall.Walk, jump: wall.Jump) -> Iterator[datetime]:
    """The times that a jump leaves out."""
    time = walk.next_wall(jump.before - wall.TICK)
    while time is not None and time < jump.to:
        yield time
        time = walk.next_wall(time)


def _twice(walk: wall.Walk, zone: ZoneInfo, local: datetime) -> str | None:
    other = local.replace(fold=1 - local.fold)
    if other.utcoffset() == local.utcoffset():
        return None
    if not walk.fixed:
        return f"{_time(local)} comes twice on this day: {'second' if local.fold else 'first'} time"
    return f"{_time(local)} comes twice on this day: only the first time"


def _from_to(jump: wall.Jump) -> str:
    if abs(jump.to - jump.before) >= timedelta(days=1):
        return f"from {jump.before:%Y-%m-%d %H:%M} to {jump.to:%Y-%m-%d %H:%M}"
    return f"from {_time(jump.before)} to {_time(jump.to)}"


def _named(times: list[datetime]) -> str:
    if len(times) > _MOST_NAMED:
        return f"{_time(times[0])}, {_time(times[1])}, ..."
    return " and ".join(_time(time) for time in times)


def _time(at: datetime) -> str:
    return f"{at:%H:%M:%S}" if at.second else f"{at:%H:%M}"
