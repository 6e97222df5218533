"""Agreement of cron slots with an independent implementation, croniter, case by case.

``python -m benchmarks.agreement [--cases N] [--seed S]`` draws (expression, zone, time), asks both for the next
slot, once on a clock that never changes and once in the zone, and says why each difference is one:

* On the clock that never changes only the rule of the two day fields may differ. It is the reason if croniter,
  asked for that rule or about each field alone, agrees.
* In a zone, by the same rule of days, a change of the clock must lie between the moment asked about and the later of the two slots, and
  our slot must be what docs/schedules.md says, found out here in another way: croniter walks the calendar, and
  each of its times is looked for at every offset of the days around.

A difference that is neither is printed, and the program ends with 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import zoneinfo
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter
from cronsim import CronSimError

from shunter_work_pools.contracts.deployments import CronSchedule, Schedule
from shunter_work_pools.schedules import next_slot

START, END = datetime(1970, 1, 3, tzinfo=UTC), datetime(2037, 12, 1, tzinfo=UTC)
#: Share of the moments that lie from two days before to a day after a change of the zone's clock.
NEAR_A_CHANGE = 0.4
_DAY = timedelta(days=1)
_NO_TIME = timedelta()
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


@dataclass(frozen=True)
class Case:
    """What both are asked."""

    expression: str
    zone: str
    after: datetime


@dataclass
class Outcome:
    """Counts of cases by what was found, and the first few of each kind of difference."""

    calendar: Counter[str] = field(default_factory=Counter)
    zoned: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)

    def differs(self, where: Counter[str], case: Case, reason: str, ours: object, theirs: object) -> None:
        where[reason] += 1
        told = f"{case.expression!r} in {case.zone} after {case.after}: {ours} here, {theirs} there"
        self.examples.setdefault(reason, told)
        if reason == UNEXPLAINED:
            self.unexplained.append(told)


EQUAL = "the same slot"
NONE_BOTH = "no slot in either"
STAR_DAY = "day rule: a day field begins with a star and goes on"
NTH_DAY = "day rule: the nth or last weekday of a month together with a day of the month"
FULL_DAY = "day rule: a day field takes all values without a star"
APART = "not compared: the day rule differs"
GAP = "fixed time that does not exist"
LEFT_OUT = "rhythm over a time that does not exist"
FOLD = "fixed time that comes twice"
REPEATED = "rhythm over a time that comes twice"
UNEXPLAINED = "unexplained"


def compare(cases: int, seed: int, tell: bool = False) -> Outcome:
    """Ask both about so many cases."""
    chance, outcome = random.Random(seed), Outcome()
    for number in range(1, cases + 1):
        both = Both(draw(chance))
        _compare_calendar(both, outcome)
        _compare_zoned(both, outcome)
        if tell and number % 50_000 == 0:
            print(f"{number} cases, {len(outcome.unexplained)} unexplained", file=sys.stderr, flush=True)
    return outcome


# --- cases ---------------------------------------------------------------------------------------


def draw(chance: random.Random) -> Case:
    """A case by chance: any zone, any time since 1970, an expression of any form both know."""
    zone = chance.choice(zones())
    changes = changes_of(zone)
    if changes and chance.random() < NEAR_A_CHANGE:
        change = chance.choice(changes)
        after = change + timedelta(seconds=chance.randint(-2 * 86_400, 86_400))
        local = change.astimezone(ZoneInfo(zone))
        hours = sorted({local.hour, (local.hour - 1) % 24, (local - timedelta(seconds=1)).hour})
        return Case(_expression(chance, hours), zone, after)
    after = START + timedelta(seconds=chance.randint(0, int((END - START).total_seconds())))
    return Case(_expression(chance), zone, after)


def _expression(chance: random.Random, hours: list[int] | None = None) -> str:
    """``hours``: take one of these, and any day, more often."""
    if chance.random() < 0.02:
        return chance.choice(("@hourly", "@daily", "@weekly", "@monthly", "@yearly", "@midnight"))
    hour = str(chance.choice(hours)) if hours and chance.random() < 0.4 else _field(chance, 0, 23, 0.3)
    days = [_day_of_month(chance), _field(chance, 1, 12, 0.75, _MONTHS), _day_of_week(chance)]
    if hours and chance.random() < 0.6:
        days = ["*", "*", "*"]
    fields = [_field(chance, 0, 59, 0.25), hour, *days]
    if chance.random() < 0.15:
        fields.insert(0, _field(chance, 0, 59, 0.05))
    return " ".join(fields)


def _field(chance: random.Random, least: int, most: int, star: float, names: tuple[str, ...] = ()) -> str:
    if chance.random() < star:
        return "*"
    return ",".join(_term(chance, least, most, names) for _ in range(chance.choice((1, 1, 1, 1, 2, 3))))


def _term(chance: random.Random, least: int, most: int, names: tuple[str, ...]) -> str:
    def value(number: int) -> str:
        return names[number - least] if names and chance.random() < 0.4 else str(number)

    form = chance.random()
    low, high = sorted((chance.randint(least, most), chance.randint(least, most)))
    step = chance.randint(1, max(2, (most - least) // 2))
    if form < 0.6 or low == high:
        return value(low)
    if form < 0.75:
        return f"{value(low)}-{value(high)}"
    if form < 0.85:
        return f"{low}-{high}/{min(step, high - low)}"
    return f"*/{step}"


def _day_of_month(chance: random.Random) -> str:
    return "L" if chance.random() < 0.03 else _field(chance, 1, 31, 0.6)


def _day_of_week(chance: random.Random) -> str:
    form = chance.random()
    if form < 0.04:
        return f"{chance.randint(0, 6)}#{chance.randint(1, 5)}"
    if form < 0.07:
        return f"{chance.randint(0, 6)}L"
    return _field(chance, 0, 6, 0.6, _WEEKDAYS)


@lru_cache(maxsize=1)
def zones() -> list[str]:
    return sorted(zoneinfo.available_timezones())


@lru_cache(maxsize=1024)
def changes_of(name: str) -> list[datetime]:
    """When the zone's clock was changed; none are less than a week apart."""
    zone, found, step = ZoneInfo(name), [], 6 * _DAY
    at, before = START, _offset(zone, START)
    while at < END:
        at += step
        if (offset := _offset(zone, at)) != before:
            found.append(_pin(zone, at - step, at))
            before = offset
    return found


def _pin(zone: ZoneInfo, start: datetime, end: datetime) -> datetime:
    offset = end.astimezone(zone).utcoffset()
    while end - start > timedelta(seconds=1):
        middle = start + timedelta(seconds=(end - start) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == offset:
            end = middle
        else:
            start = middle
    return end


# --- both answers --------------------------------------------------------------------------------


class Both:
    """Both implementations, asked about one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rule = _day_rule(case.expression)
        self._walk = walk_of(case.expression)

    def ours(self, zone: str) -> datetime | None:
        schedule = Schedule(when=CronSchedule(cron=self.case.expression, timezone=zone))
        try:
            return next_slot(schedule, self.case.after, self.case.after)
        except CronSimError:  # a day that no month has: `check` refuses it
            return None

    def theirs(self, zone: str) -> datetime | None:
        walk = walk_of(self.case.expression, star_rule=True) if self.rule == STAR_DAY else self._walk
        return _next(walk, self.case.after.astimezone(ZoneInfo(zone)))

    def theirs_by_default(self) -> datetime | None:
        return _next(self._walk, self.case.after)

    def either_day(self) -> datetime | None:
        """The earlier of what croniter finds for each of the two day fields alone."""
        *times, day, month, week = self.case.expression.split()
        alone = [" ".join([*times, *fields]) for fields in ((day, month, "*"), ("*", month, week))]
        found = [_next(walk_of(expression), self.case.after) for expression in alone]
        return min((slot for slot in found if slot is not None), default=None)


def walk_of(expression: str, star_rule: bool = False) -> croniter:
    """``star_rule``: as cron(8), both day fields must match if one of them begins with a star."""
    fields = expression.split()
    if fields[-1].endswith("L"):
        fields[-1] = f"L{fields[-1][:-1]}"  # the same in croniter's words
    return croniter(" ".join(fields), 0.0, second_at_beginning=True, implement_cron_bug=star_rule)


def _next(walk: croniter, after: datetime) -> datetime | None:
    try:
        found: datetime = walk.get_next(datetime, start_time=after)
    except CroniterBadDateError:
        return None
    return found.astimezone(UTC)  # with another zone, a time that comes twice equals none (PEP 495)


def _day_rule(expression: str) -> str | None:
    """In which way croniter may see the two day fields otherwise than cron(8); None: in no way."""
    fields = expression.split()
    if len(fields) == 1:
        return None
    day, week = fields[-3], fields[-1]
    if day.startswith("*") or week.startswith("*"):
        return STAR_DAY if (day[:1] == "*" != day) or (week[:1] == "*" != week) else None
    if "#" in week or "L" in week:
        return NTH_DAY
    return FULL_DAY if ["*"] in croniter.expand(f"0 0 {day} * {week}")[0][2:5:2] else None


def _compare_calendar(both: Both, outcome: Outcome) -> None:
    """On a clock that never changes."""
    ours, theirs, rule = both.ours("UTC"), both.theirs_by_default(), both.rule
    if ours == theirs:
        outcome.calendar[EQUAL if ours else NONE_BOTH] += 1
        return
    explained = rule is not None and ours == (both.theirs("UTC") if rule == STAR_DAY else both.either_day())
    outcome.differs(outcome.calendar, both.case, rule if rule and explained else UNEXPLAINED, ours, theirs)


def _compare_zoned(both: Both, outcome: Outcome) -> None:
    if both.rule in (NTH_DAY, FULL_DAY):
        outcome.zoned[APART] += 1
        return
    ours, theirs = both.ours(both.case.zone), both.theirs(both.case.zone)
    if ours == theirs:
        outcome.zoned[EQUAL if ours else NONE_BOTH] += 1
    else:
        outcome.differs(outcome.zoned, both.case, _reason(both.case, ours, theirs), ours, theirs)


def _reason(case: Case, ours: datetime | None, theirs: datetime | None) -> str:
    if ours is None or theirs is None:
        return UNEXPLAINED
    zone = ZoneInfo(case.zone)
    last = max(ours, theirs)
    between = [at for at in changes_of(case.zone) if case.after - _DAY <= at <= last + _DAY]
    if not between or ours != _by_the_book(case):
        return UNEXPLAINED
    nearest = min(between, key=lambda at: min(abs(ours - at), abs(theirs - at)))
    forward = _offset(zone, nearest) > _offset(zone, nearest - timedelta(seconds=1))
    if _fixed(case.expression):
        return GAP if forward else FOLD
    return LEFT_OUT if forward else REPEATED


# --- what docs/schedules.md says, found in another way -------------------------------------------


def _fixed(expression: str) -> bool:
    fields = expression.split()
    if len(fields) == 1:
        return expression != "@hourly"
    minute, hour = fields[-5], fields[-4]
    return not (minute.startswith("*") or hour.startswith("*") or _all(minute, 60) or _all(hour, 24))


def _all(text: str, count: int) -> bool:
    expanded = croniter.expand(f"{text} * * * *" if count == 60 else f"* {text} * * *")[0]
    values = expanded[0 if count == 60 else 1]
    return values == ["*"] or len(values) == count


def _by_the_book(case: Case) -> datetime | None:
    zone, fixed = ZoneInfo(case.zone), _fixed(case.expression)
    local = case.after.astimezone(zone).replace(tzinfo=None)
    around = [abs(_offset(zone, at) - _offset(zone, at - timedelta(seconds=1))) for at in _near(case)]
    best: datetime | None = None
    for wall in _walls(case, local - max(around, default=_NO_TIME) - timedelta(seconds=1)):
        if best is not None and wall.replace(tzinfo=UTC) - _offset(zone, best) > best + 2 * _DAY:
            break
        for slot in _instants(wall, zone, fixed):
            if slot > case.after and (best is None or slot < best):
                best = slot
        if best is not None and not _changes_within(case.zone, best - 2 * _DAY, best + 2 * _DAY):
            break
    return best


def _near(case: Case) -> list[datetime]:
    return _changes_within(case.zone, case.after - 3 * _DAY, case.after + 3 * _DAY)


def _changes_within(name: str, start: datetime, end: datetime) -> list[datetime]:
    return [at for at in changes_of(name) if start <= at <= end]


def _walls(case: Case, start: datetime) -> Iterator[datetime]:
    walk = walk_of(case.expression, star_rule=_day_rule(case.expression) == STAR_DAY)
    found = _next(walk, start.replace(tzinfo=UTC))
    while found is not None:
        yield found.replace(tzinfo=None)
        found = _next(walk, found)


def _instants(wall: datetime, zone: ZoneInfo, fixed: bool) -> list[datetime]:
    """When the clock shows a time; of a fixed one, when it happens."""
    naive = wall.replace(tzinfo=UTC)
    offsets = {_offset(zone, naive + number * _DAY) for number in (-2, -1, 1, 2)}
    shown = sorted(
        at
        for at in (naive - offset for offset in offsets)
        if at.astimezone(zone).replace(tzinfo=None) == wall
    )
    if not fixed:
        return shown
    if shown:
        return shown[:1]
    jump = _pin(zone, naive - 2 * _DAY, naive + 2 * _DAY)
    for at in (jump, jump - timedelta(seconds=1)):  # the end of the jump, or the last second of the day
        if at.astimezone(zone).date() == wall.date():
            return [at]
    return []  # the day is left out


def _offset(zone: ZoneInfo, at: datetime) -> timedelta:
    return at.astimezone(zone).utcoffset() or _NO_TIME


# --- the page ------------------------------------------------------------------------------------


def page(outcome: Outcome) -> str:
    """The counts as Markdown."""
    lines = []
    for title, counts in (
        ("on a clock that never changes", outcome.calendar),
        ("in the zone", outcome.zoned),
    ):
        lines += [f"| {title} | cases |", "| --- | ---: |"]
        lines += [f"| {reason} | {count:,} |" for reason, count in counts.most_common()]
        lines.append("")
    lines += [f"- {reason}: {told}" for reason, told in outcome.examples.items()]
    return "\n".join(lines)


def main() -> int:
    """Print the counts; 1 if a difference is unexplained."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    outcome = compare(given.cases, given.seed, tell=True)
    print(page(outcome))
    for told in outcome.unexplained[:50]:
        print("unexplained:", told)
    print(f"{given.cases:,} cases, seed {given.seed}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 1 if outcome.unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
