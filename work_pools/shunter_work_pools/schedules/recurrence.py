"""Recurrence rules (RFC 5545): what a text says, and the wall-clock times that follow from it.

dateutil says which days of a year match; periods, times of the day and positions are counted here, so
that a rule costs the same however long ago it began, and one that never fires is found out.
"""

from __future__ import annotations

import bisect
import difflib
import heapq
import itertools
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.schedules import wall as walls
from shunter_work_pools.schedules.zones import zone_of

#: Longest COUNT: each of the times is counted out.
MOST_COUNTED = 10_000
#: A rule that does not fire for so many years has ended.
HORIZON = 100
#: Before it there were no time zones to speak of.
FIRST_YEAR = 1900
#: Steps of a search that finds nothing.
MOST_TRIES = 100_000

_DAY = 86_400
#: Seconds of the frequencies that run with the clock; the others run with the calendar.
CLOCK = {"HOURLY": 3600, "MINUTELY": 60, "SECONDLY": 1}
_UNITS = {"YEARLY": 366, "MONTHLY": 31, "WEEKLY": 7, "DAILY": 1}  # days, at most
_WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
#: Part: smallest and largest value, and whether it may count from the end.
_LISTS = {
    "BYSECOND": (0, 59, False),
    "BYMINUTE": (0, 59, False),
    "BYHOUR": (0, 23, False),
    "BYMONTHDAY": (1, 31, True),
    "BYYEARDAY": (1, 366, True),
    "BYWEEKNO": (1, 53, True),
    "BYMONTH": (1, 12, False),
    "BYSETPOS": (1, 366, True),
}
#: With which frequencies a part has a meaning; the others with all (RFC 5545, 3.3.10).
_ONLY_WITH = {
    "BYWEEKNO": ("YEARLY",),
    "BYYEARDAY": ("YEARLY", *CLOCK),
    "BYMONTHDAY": ("YEARLY", "MONTHLY", "DAILY", *CLOCK),
    "BYSETPOS": tuple(_UNITS),
}
_STAMP = re.compile(r"(\d{8})(?:T(\d{6})(Z?))?", re.ASCII)
_PROPERTY = re.compile(r"[A-Za-z-]+(;[^:]*)?:")
_EXAMPLE = 'Write it as in RFC 5545, for example "FREQ=WEEKLY;INTERVAL=2;BYDAY=FR;BYHOUR=9;BYMINUTE=0".'


class Stamp(NamedTuple):
    """A point in time as written: wall clock of the zone, or UTC, or a whole day (midnight)."""

    wall: datetime
    utc: bool
    whole_day: bool


@dataclass(frozen=True)
class Parts:
    """What an RRULE line says. ``lists``: the BYxxx parts of numbers; ``by_day``: (Monday is 0, nth or 0)."""

    freq: str
    interval: int = 1
    count: int | None = None
    until: Stamp | None = None
    week_start: int = 0
    lists: dict[str, tuple[int, ...]] = field(default_factory=dict)
    by_day: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Text:
    """What a schedule's text says, line by line."""

    begin: Stamp | None
    parts: Parts | None
    added: tuple[Stamp, ...]
    taken: tuple[Stamp, ...]


class Days(NamedTuple):
    """The parts of a rule that select days."""

    months: tuple[int, ...] = ()
    month_days: tuple[int, ...] = ()
    year_days: tuple[int, ...] = ()
    weeks: tuple[int, ...] = ()
    week_days: tuple[tuple[int, int], ...] = ()
    week_start: int = 0


@dataclass(frozen=True)
class Taken:
    """What EXDATE takes away: times of the wall, whole days, instants."""

    walls: frozenset[datetime] = frozenset()
    days: frozenset[date] = frozenset()
    instants: frozenset[datetime] = frozenset()

    @classmethod
    def of(cls, stamps: Sequence[Stamp]) -> Taken:
        return cls(
            frozenset(stamp.wall for stamp in stamps if not stamp.utc and not stamp.whole_day),
            frozenset(stamp.wall.date() for stamp in stamps if stamp.whole_day),
            frozenset(stamp.wall.replace(tzinfo=UTC) for stamp in stamps if stamp.utc),
        )

    def has(self, wall: datetime) -> bool:
        return wall in self.walls or wall.date() in self.days


@dataclass(frozen=True)
class Rule:
    """The walk of an RRULE from ``begin`` on, up to ``last``."""

    freq: str
    interval: int
    week_start: int
    begin: datetime
    days: Days
    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]
    positions: tuple[int, ...] = ()
    last: datetime | None = None
    taken: Taken = Taken()

    @property
    def fixed(self) -> bool:
        every = len(self.hours) == 24 or len(self.minutes) == 60
        return self.freq not in CLOCK and not every

    def next_wall(self, wall: datetime) -> datetime | None:
        found: datetime | None = max(wall, self.begin - walls.TICK)
        while found is not None and (found := self._following(found)) is not None:
            if self.last is not None and found > self.last:
                return None
            if not self.taken.has(found):
                return found
        return None

    def _following(self, wall: datetime) -> datetime | None:
        try:
            first = wall.replace(microsecond=0) + timedelta(seconds=1)
        except OverflowError:
            return None
        day, after = first.toordinal(), first.hour * 3600 + first.minute * 60 + first.second
        found = self._by_position(day, after) if self.positions else self._search(day, after)
        if found is None:
            return None
        day, seconds = found
        return datetime.fromordinal(day) + timedelta(seconds=seconds)

    def _search(self, day: int, after: int) -> tuple[int, int] | None:
        """The first (day, second of the day) from a day and second on."""
        today, tries = day, 0
        for day in self._matching_days(today):
            at = after if day == today else 0
            while (second := self._time(at)) is not None:
                behind = (self._period(day, second) - self._first_period) % self.interval
                if not behind:
                    return day, second
                tries += 1
                if tries > MOST_TRIES:
                    return None
                unit = CLOCK.get(self.freq)
                if unit is None:
                    break
                at = (second // unit + self.interval - behind) * unit
        return None

    def _by_position(self, day: int, after: int) -> tuple[int, int] | None:
        days = self._matching_days(self._period_start(day))
        for tries, (period, group) in enumerate(itertools.groupby(days, lambda one: self._period(one, 0))):
            if tries > MOST_TRIES:
                return None
            if (period - self._first_period) % self.interval:
                continue
            for found in self._at_positions(list(group)):
                if found >= (day, after):
                    return found
        return None

    def _at_positions(self, days: Sequence[int]) -> list[tuple[int, int]]:
        per_day = len(self.hours) * len(self.minutes) * len(self.seconds)
        total = len(days) * per_day
        places = {place - 1 if place > 0 else total + place for place in self.positions}
        found = []
        for place in sorted(place for place in places if 0 <= place < total):
            day, rest = divmod(place, per_day)
            hour, rest = divmod(rest, len(self.minutes) * len(self.seconds))
            minute, second = divmod(rest, len(self.seconds))
            time = self.hours[hour] * 3600 + self.minutes[minute] * 60 + self.seconds[second]
            found.append((days[day], time))
        return found

    def _time(self, at: int) -> int | None:
        """The first second of the day from ``at`` on that has one of the hours, minutes and seconds."""
        for hour in self.hours[bisect.bisect_left(self.hours, at // 3600) :]:
            within = max(at - hour * 3600, 0)
            for minute in self.minutes[bisect.bisect_left(self.minutes, within // 60) :]:
                least = max(within - minute * 60, 0)
                place = bisect.bisect_left(self.seconds, least)
                if place < len(self.seconds):
                    return hour * 3600 + minute * 60 + self.seconds[place]
        return None

    @cached_property
    def _first_period(self) -> int:
        begin = self.begin
        return self._period(begin.toordinal(), begin.hour * 3600 + begin.minute * 60 + begin.second)

    def _period(self, day: int, second: int) -> int:
        """The number of the year, month, week, ..., second; INTERVAL counts these."""
        match self.freq:
            case "YEARLY":
                return date.fromordinal(day).year
            case "MONTHLY":
                on = date.fromordinal(day)
                return on.year * 12 + on.month
            case "WEEKLY":
                return (day - 1 - self.week_start) // 7  # day 1, 0001-01-01, is a Monday
            case "DAILY":
                return day
            case _:
                return (day * _DAY + second) // CLOCK[self.freq]

    def _period_start(self, day: int) -> int:
        match self.freq:
            case "YEARLY":
                return date.fromordinal(day).replace(month=1, day=1).toordinal()
            case "MONTHLY":
                return date.fromordinal(day).replace(day=1).toordinal()
            case "WEEKLY":
                return max(1, self._period(day, 0) * 7 + 1 + self.week_start)
            case _:
                return day

    def _matching_days(self, day: int) -> Iterator[int]:
        year = date.fromordinal(day).year
        for one in range(year, min(year + HORIZON, 9999) + 1):
            days = _days_of(self.days, one)
            yield from days[bisect.bisect_left(days, day) :] if one == year else days


@dataclass(frozen=True)
class Recurrence:
    """A text in a zone: its rule, and the dates that are added to it and taken from it."""

    rule: Rule | None
    until: datetime | None
    taken: frozenset[datetime]
    added: tuple[datetime, ...]
    added_walls: tuple[datetime, ...]

    @property
    def fixed(self) -> bool:
        return self.rule is None or self.rule.fixed

    def next_wall(self, wall: datetime) -> datetime | None:
        """As a walk: the times as they are meant, before the zone is looked at."""
        place = bisect.bisect_right(self.added_walls, wall)
        found = [self.added_walls[place]] if place < len(self.added_walls) else []
        if self.rule is not None and (of_rule := self.rule.next_wall(wall)) is not None:
            found.append(of_rule)
        return min(found, default=None)

    def slots(self, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
        """All instants strictly after a moment, in UTC."""
        of_rule: Iterator[datetime] = iter(())
        if self.rule is not None and (self.until is None or after < self.until):
            of_rule = (slot for slot in walls.slots(self.rule, zone, after) if slot not in self.taken)
        if (until := self.until) is not None:
            of_rule = itertools.takewhile(lambda slot: slot <= until, of_rule)
        added = self.added[bisect.bisect_right(self.added, after) :]
        if not added:
            return of_rule
        return (slot for slot, _ in itertools.groupby(heapq.merge(of_rule, added)))


def recurrence(text: str, timezone: str, anchor: datetime) -> Recurrence:
    """What a text means.

    Args:
        text: one that is valid.
        timezone: IANA name; times are of its wall clock.
        anchor: aware; where a rule without DTSTART begins, to the second.
    """
    return _recurrence(text, timezone, anchor if read(text, timezone).begin is None else None)


@lru_cache(maxsize=4096)
def _recurrence(text: str, timezone: str, anchor: datetime | None) -> Recurrence:
    said, zone = read(text, timezone), zone_of(timezone)
    begin = _on_wall(said.begin, zone) if said.begin is not None else None
    if begin is None and anchor is not None:
        begin = anchor.astimezone(zone).replace(tzinfo=None, microsecond=0)
    taken = Taken.of(said.taken)
    rule = None
    if said.parts is not None and begin is not None:
        rule = _rule(said.parts, begin, taken)
    until = said.parts.until if said.parts is not None else None
    ends = until.wall.replace(tzinfo=UTC) if until is not None and until.utc else None
    return Recurrence(rule, ends, taken.instants, **_added(said, zone, taken))


def _added(said: Text, zone: ZoneInfo, taken: Taken) -> dict[str, tuple[datetime, ...]]:
    stamps = list(said.added)
    if said.parts is None and said.begin is not None:
        stamps.append(said.begin)  # without a rule DTSTART is the first of the dates (RFC 5545, 3.8.5.2)
    found = set()
    for stamp in stamps:
        wall = _on_wall(stamp, zone)
        at = stamp.wall.replace(tzinfo=UTC) if stamp.utc else walls.instant(wall, zone)
        if at is not None and at not in taken.instants and not taken.has(wall):
            found.add((at, wall))
    return {
        "added": tuple(sorted({at for at, _ in found})),
        "added_walls": tuple(sorted({wall for _, wall in found})),
    }


def check_recurrence(text: str, timezone: str, anchor: datetime) -> None:
    """Refuse a text that does not parse or never fires.

    Args:
        anchor: aware; where a rule without DTSTART might begin.

    Raises:
        BadRequest: it names the part that is wrong.
    """
    said = read(text, timezone)
    found = recurrence(text, timezone, anchor)
    if found.added:
        return
    rule = found.rule
    if said.begin is None and rule is not None:  # which of its periods count is not known yet
        rule = replace(rule, interval=1, last=None)
        found = replace(found, rule=rule, until=None)
    start = rule.begin.replace(tzinfo=UTC) - walls.LARGEST_CHANGE if rule is not None else anchor
    if next(found.slots(zone_of(timezone), start), None) is None:
        raise BadRequest(
            f'rrule: "{_short(text)}" never fires: no time matches all its parts',
            "Look at UNTIL, EXDATE and the days: no year has, for example, a 30 February.",
        )


def _on_wall(stamp: Stamp, zone: ZoneInfo) -> datetime:
    if not stamp.utc:
        return stamp.wall
    return stamp.wall.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None)


# --- from parts to a rule ------------------------------------------------------------------------


def _rule(parts: Parts, begin: datetime, taken: Taken) -> Rule:
    def times(part: str, base: int, own: int, *all_with: str) -> tuple[int, ...]:
        given = parts.lists.get(part)
        return given or (tuple(range(base)) if parts.freq in all_with else (own,))

    last = None
    if parts.until is not None and not parts.until.utc:
        last = parts.until.wall + (timedelta(days=1) - walls.TICK if parts.until.whole_day else timedelta())
    rule = Rule(
        freq=parts.freq,
        interval=parts.interval,
        week_start=parts.week_start,
        begin=begin,
        days=_day_parts(parts, begin),
        hours=times("BYHOUR", 24, begin.hour, "HOURLY", "MINUTELY", "SECONDLY"),
        minutes=times("BYMINUTE", 60, begin.minute, "MINUTELY", "SECONDLY"),
        seconds=times("BYSECOND", 60, begin.second, "SECONDLY"),
        positions=parts.lists.get("BYSETPOS", ()),
        last=last,
    )
    if parts.count is not None:  # of the rule's own times, before EXDATE takes some away
        rule = replace(rule, last=_counted_out(rule, parts.count))
    return replace(rule, taken=taken)


def _counted_out(rule: Rule, count: int) -> datetime | None:
    """The last time of a rule with COUNT; of a rare one: of its first 100 years."""
    wall = last = rule.begin - walls.TICK
    for _ in range(count):
        following = rule.next_wall(wall)
        if following is None or following.year > rule.begin.year + HORIZON:
            break
        wall = last = following
    return last


def _day_parts(parts: Parts, begin: datetime) -> Days:
    """What the rule leaves open comes from where it begins (RFC 5545, 3.3.10)."""
    lists, by_day = parts.lists, parts.by_day
    months, month_days = lists.get("BYMONTH", ()), lists.get("BYMONTHDAY", ())
    weeks, year_days = lists.get("BYWEEKNO", ()), lists.get("BYYEARDAY", ())
    open_days = not (month_days or year_days or by_day)
    if open_days and (parts.freq == "WEEKLY" or weeks):
        by_day = ((begin.weekday(), 0),)
    elif open_days and parts.freq in ("YEARLY", "MONTHLY"):
        month_days = (begin.day,)
        if parts.freq == "YEARLY":
            months = months or (begin.month,)
    if parts.freq == "MONTHLY" and any(nth for _, nth in by_day):
        months = months or tuple(range(1, 13))  # the nth of the month, not of the year
    return Days(months, month_days, year_days, weeks, by_day, parts.week_start)


@lru_cache(maxsize=4096)
def _days_of(days: Days, year: int) -> Sequence[int]:
    """The matching days of a year, as ordinals."""
    from dateutil import rrule  # only who has such a schedule pays for it

    first = datetime(year, 1, 1)
    if not any(days[:-1]):
        return range(first.toordinal(), datetime(year, 12, 31).toordinal() + 1)
    every_day = range(1, 32) if not any(days[1:-1]) else None
    found = rrule.rrule(
        rrule.YEARLY,
        dtstart=first,
        interval=10_000,  # just this year
        bymonth=days.months or None,
        bymonthday=days.month_days or every_day,
        byyearday=days.year_days or None,
        byweekno=days.weeks or None,
        byweekday=[rrule.weekday(day, nth or None) for day, nth in days.week_days] or None,
        wkst=days.week_start,
    )
    return array("i", (one.toordinal() for one in found))


# --- from text to parts --------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def read(text: str, timezone: str) -> Text:
    """What the lines of a text say.

    Raises:
        BadRequest: it names the part that is wrong.
    """
    begin: Stamp | None = None
    parts: Parts | None = None
    stamps: dict[str, list[Stamp]] = {"RDATE": [], "EXDATE": []}
    for line in _lines(text):
        name, options, value = _property(line)
        if name == "RRULE":
            if parts is not None:
                raise _wrong("there are two RRULE lines", "Give each rule a schedule of its own.")
            parts = _parts(value)
        elif name == "DTSTART":
            if begin is not None or "," in value:
                raise _wrong("DTSTART is there twice", "A rule begins at one time: keep one of them.")
            begin = _stamp(name, value, options, timezone)
        elif name in stamps:
            stamps[name] += [_stamp(name, one, options, timezone) for one in value.split(",")]
        else:
            raise _wrong(f'"{_short(name)}" is not a line of a rule', "Use DTSTART, RRULE, RDATE and EXDATE.")
    if parts is None and not stamps["RDATE"]:
        raise _wrong("there is neither RRULE nor RDATE", _EXAMPLE)
    return Text(begin, parts, tuple(stamps["RDATE"]), tuple(stamps["EXDATE"]))


def _lines(text: str) -> list[str]:
    """One property each. What follows white space and begins no property goes on with the one before."""
    lines: list[str] = []
    for piece in text.split():
        bare_rule = piece.upper().startswith("FREQ=")
        if not lines or _PROPERTY.match(piece) or bare_rule:
            lines.append(piece)
        else:
            lines[-1] += piece
    return lines


def _property(line: str) -> tuple[str, list[str], str]:
    if not _PROPERTY.match(line):
        return "RRULE", [], line
    head, _, value = line.partition(":")
    name, *options = head.split(";")
    return name.upper(), options, value


def _stamp(name: str, value: str, options: list[str], timezone: str) -> Stamp:
    for option in options:
        key, _, said = option.partition("=")
        if key.upper() == "TZID":
            if said != timezone:
                raise _wrong(
                    f'TZID "{_short(said)}" of {name} is not the time zone of the schedule, {timezone}',
                    f"Set the schedule's timezone to {_short(said)} and leave TZID away.",
                )
        elif key.upper() != "VALUE" or said.upper() not in ("DATE", "DATE-TIME"):
            raise _wrong(f'"{_short(option)}" of {name} is not known', "VALUE=DATE and TZID are.")
    return _read_stamp(name, value)


def _read_stamp(name: str, value: str) -> Stamp:
    match = _STAMP.fullmatch(value.upper())
    try:
        if match is None:
            raise ValueError
        day, time, utc = match.groups()
        wall = datetime.strptime(day + (time or "000000"), "%Y%m%d%H%M%S")
        if not FIRST_YEAR <= wall.year < 9999:
            raise ValueError
        return Stamp(wall, utc == "Z", time is None)
    except ValueError:
        raise _wrong(
            f'"{_short(value)}" of {name} is not a date or time',
            f"Write, not before {FIRST_YEAR}, 20270131T093000 (in the schedule's zone), 20270131T083000Z (UTC) or 20270131.",
        ) from None


def _parts(value: str) -> Parts:
    given: dict[str, str] = {}
    for piece in value.upper().strip(";").split(";"):
        name, equals, said = piece.partition("=")
        if name not in _READERS and name not in _LISTS:
            raise _wrong(f'"{_short(piece)}" is not a part of a rule', _nearest_part(name))
        if not equals or not said:
            raise _wrong(f"{name} has no value", _EXAMPLE)
        if name in given:
            raise _wrong(f"{name} is there twice", "Keep one; several values are parted by commas.")
        given[name] = said
    if "FREQ" not in given:
        raise _wrong("FREQ is missing", _EXAMPLE)
    freq = given["FREQ"]
    if freq not in _UNITS and freq not in CLOCK:
        raise _wrong(f'"{_short(freq)}" is not a FREQ', f"Use one of {', '.join([*_UNITS, *CLOCK])}.")
    if "COUNT" in given and "UNTIL" in given:
        raise _wrong("COUNT and UNTIL exclude each other", "Keep one of them.")
    lists = {name: _numbers(name, given[name]) for name in _LISTS if name in given}
    parts = Parts(
        freq=freq,
        interval=_interval(freq, given["INTERVAL"]) if "INTERVAL" in given else 1,
        count=_count(given["COUNT"]) if "COUNT" in given else None,
        until=_read_stamp("UNTIL", given["UNTIL"]) if "UNTIL" in given else None,
        week_start=_week_start(given["WKST"]) if "WKST" in given else 0,
        lists=lists,
        by_day=_by_day(given["BYDAY"]) if "BYDAY" in given else (),
    )
    _check_together(parts)
    return parts


_READERS = ("FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYDAY")


def _check_together(parts: Parts) -> None:
    for name in parts.lists:
        allowed = _ONLY_WITH.get(name)
        if allowed is not None and parts.freq not in allowed:
            raise _wrong(
                f"{name} has no meaning with FREQ={parts.freq}", f"It goes with {', '.join(allowed)}."
            )
    nth = any(number for _, number in parts.by_day)
    if nth and (parts.freq not in ("YEARLY", "MONTHLY") or "BYWEEKNO" in parts.lists):
        raise _wrong(
            "BYDAY with a number has a meaning with FREQ=MONTHLY and, without BYWEEKNO, YEARLY only",
            "Leave the number away, or choose another FREQ.",
        )
    if "BYSETPOS" in parts.lists and not parts.by_day and len(parts.lists) == 1:
        raise _wrong("BYSETPOS chooses from what another BY part names", "Add, for example, BYDAY.")


def _interval(freq: str, said: str) -> int:
    most = HORIZON * 366 * _DAY // (CLOCK.get(freq) or _UNITS[freq] * _DAY)
    return _whole("INTERVAL", said, most)


def _count(said: str) -> int:
    if said.isascii() and said.isdigit() and int(said[:10]) > MOST_COUNTED:
        raise _wrong(f"COUNT={_short(said)} is over {MOST_COUNTED}", "Say with UNTIL when it ends.")
    return _whole("COUNT", said, MOST_COUNTED)


def _whole(name: str, said: str, most: int) -> int:
    if not (said.isascii() and said.isdigit() and len(said) < 12 and 1 <= int(said) <= most):
        raise _wrong(f'"{_short(said)}" is not a number for {name}', f"Give a number from 1 to {most}.")
    return int(said)


def _numbers(name: str, said: str) -> tuple[int, ...]:
    least, most, from_end = _LISTS[name]
    values = set()
    for one in said.split(","):
        match = re.fullmatch(r"([+-]?)(\d{1,3})", one, re.ASCII)
        value = int(one) if match and (from_end or not match[1]) else None
        if value is None or not least <= abs(value) <= most:
            sign = " or, from the end, with a minus" if from_end else ""
            raise _wrong(
                f'"{_short(one)}" does not fit {name}', f"Give numbers from {least} to {most}{sign}."
            )
        values.add(value)
    return tuple(sorted(values))


def _by_day(said: str) -> tuple[tuple[int, int], ...]:
    found = set()
    for one in said.split(","):
        match = re.fullmatch(r"([+-]?\d{1,2})?([A-Z]{2})", one, re.ASCII)
        nth = int(match[1] or 0) if match else 0
        if match is None or match[2] not in _WEEKDAYS or abs(nth) > 53 or (match[1] and not nth):
            raise _wrong(f'"{_short(one)}" does not fit BYDAY', "Give MO, TU, ... SU; 2FR is the 2nd Friday.")
        found.add((_WEEKDAYS.index(match[2]), nth))
    return tuple(sorted(found))


def _week_start(said: str) -> int:
    if said not in _WEEKDAYS:
        raise _wrong(f'"{_short(said)}" is not a WKST', f"Give one of {', '.join(_WEEKDAYS)}.")
    return _WEEKDAYS.index(said)


def _nearest_part(name: str) -> str:
    near = difflib.get_close_matches(name[:20], [*_READERS, *_LISTS], n=1)
    return f"Did you mean {near[0]}?" if near else _EXAMPLE


def _wrong(detail: str, remedy: str) -> BadRequest:
    return BadRequest(f"rrule: {detail}", remedy)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
