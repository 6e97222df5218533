"""Schedules in words: ``every weekday at 06:00 in Berlin``.

What has no short sentence is named by its expression, which is correct, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from cronsim import CronSim

from shunter_work_pools.contracts.deployments import CronSchedule, IntervalSchedule, RRuleSchedule, When
from shunter_work_pools.schedules.cron import parsed
from shunter_work_pools.schedules.recurrence import CLOCK, Parts, Stamp, Text, read

#: Longest sentence; an expression in it is shortened, other sentences give way to the expression.
LONGEST = 120

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_LAST, _LAST_WEEKDAY = -1000, -1001  # cronsim's L and LW
#: So many times of a day are told one by one.
_MOST_TIMES = 6
_UNITS = {
    "YEARLY": "year",
    "MONTHLY": "month",
    "WEEKLY": "week",
    "DAILY": "day",
    "HOURLY": "hour",
    "MINUTELY": "minute",
    "SECONDLY": "second",
}


def in_words(when: When) -> str:
    """What a valid schedule means, in up to about 120 characters."""
    if isinstance(when, IntervalSchedule):
        return _interval(when)
    said = _cron(when) if isinstance(when, CronSchedule) else _rrule(when)
    if said is not None and len(said) <= LONGEST:
        return said
    kind = "cron expression" if isinstance(when, CronSchedule) else "rule"
    text = " ".join((when.cron if isinstance(when, CronSchedule) else when.rrule).split())
    if isinstance(when, CronSchedule) and when.day == "and":
        kind = "cron expression (days that match both)"
    return f'by the {kind} "{text if len(text) <= 60 else text[:57] + "..."}" {_place(when.timezone)}'


def _interval(when: IntervalSchedule) -> str:
    seconds, said = when.seconds, ""
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        # A physical day is not a calendar's: 24 hours, but 7 days.
        if seconds % size == 0 and seconds >= (2 * size if unit == "day" else size):
            said = _every(round(seconds / size), unit)
            break
    said = said or f"every {round(seconds, 6):.6f}".rstrip("0") + " seconds"
    if when.anchor is None:
        return said
    layout = "%Y-%m-%d %H:%M:%S" if when.anchor.second or when.anchor.microsecond else "%Y-%m-%d %H:%M"
    return f"{said} from {when.anchor.strftime(layout)} UTC"


# --- cron ----------------------------------------------------------------------------------------


def _cron(when: CronSchedule) -> str | None:
    walker = parsed(when.cron, when.day).walker
    seconds, minutes, hours = sorted(walker.seconds), sorted(walker.minutes), sorted(walker.hours)
    fixed = len(seconds) * len(minutes) * len(hours) <= _MOST_TIMES
    rhythm = None if fixed else _rhythm(seconds, minutes, hours)
    if not fixed and rhythm is None:
        return None
    days = _cron_days(walker, plain=fixed)
    if days is None:
        return None
    if fixed:
        return f"{days} at {_times(hours, minutes, seconds)} {_zone(when.timezone)}"
    if not days and len(hours) == 24:
        return rhythm
    return " ".join(part for part in (rhythm, days, _place(when.timezone)) if part)


def _rhythm(seconds: Sequence[int], minutes: Sequence[int], hours: Sequence[int]) -> str | None:
    """Times that come more often than can be told one by one."""
    if list(seconds) != [0]:
        if len(minutes) < 60 or len(hours) < 24 or (step := _step(seconds, 60)) is None:
            return None
        return _every(step, "second")
    step, hour_step = _step(minutes, 60), _step(hours, 24)
    if len(minutes) == 1:
        if hour_step is not None:
            if minutes[0] == 0:
                return _every(hour_step, "hour")
            if hour_step == 1:
                return f"at minute {minutes[0]} of every hour"
            return f"{_every(hour_step, 'hour')} at minute {minutes[0]}"
        if _contiguous(hours):
            return f"every hour from {hours[0]:02}:{minutes[0]:02} to {hours[-1]:02}:{minutes[0]:02}"
        return None
    if step is None:
        if len(hours) < 24 or len(minutes) > 12:
            return None
        return f"at minutes {_and([str(minute) for minute in minutes])} of every hour"
    if len(hours) == 24:
        return _every(step, "minute")
    if _contiguous(hours):
        return f"{_every(step, 'minute')} from {hours[0]:02}:00 to {hours[-1]:02}:{minutes[-1]:02}"
    return f"{_every(step, 'minute')} of the hours {_and([str(hour) for hour in hours])}"


def _step(values: Sequence[int], base: int) -> int | None:
    """The distance of values that lie evenly around the clock, beginning at 0."""
    step = base // len(values)
    return step if list(values) == list(range(0, base, step)) and base % step == 0 else None


def _contiguous(values: Sequence[int]) -> bool:
    return values[-1] - values[0] == len(values) - 1


def _cron_days(walker: CronSim, plain: bool) -> str | None:
    """``every Monday``, or after a rhythm ``on Monday``; empty for a rhythm of every day."""
    month_days, week_days = _month_days(walker.days), _week_days(walker.weekdays)
    every_month_day, every_week_day = len(walker.days) == 31, _all_week(walker.weekdays)
    months = sorted(walker.months)
    within = "" if len(months) == 12 else f" in {_and([_MONTHS[month - 1] for month in months])}"
    either = not walker.day_and
    if month_days is None or week_days is None:
        return None
    if (every_month_day and every_week_day) or (either and (every_month_day or every_week_day)):
        return f"every day{within}" if plain else within.strip()
    of = f"of {_and([_MONTHS[month - 1] for month in months]) if within else 'every month'}"
    if every_month_day:
        if week_days.startswith("the "):
            return f"on {week_days} {of}"
        return (f"every {week_days}" if plain else f"on {_plural(week_days)}") + within
    dates = f"on the {month_days} {of}"
    if every_week_day:
        return dates
    if week_days not in _WEEKDAYS:
        return None
    return f"{dates} {'and every' if either else 'if it is a'} {week_days}"


def _plural(week_days: str) -> str:
    return re.sub(r"(day)\b", r"\1s", week_days)


def _all_week(days: set[int | tuple[int, int]]) -> bool:
    return {day % 7 for day in days if isinstance(day, int)} == set(range(7))


def _month_days(days: set[int]) -> str | None:
    plain = sorted(day for day in days if day > 0)
    if len(plain) == len(days) > 2 and _contiguous(plain):
        return f"{_ordinal(plain[0])} to {_ordinal(plain[-1])}"
    told = [_ordinal(day) for day in plain]
    told += ["last weekday"] * (_LAST_WEEKDAY in days) + ["last day"] * (_LAST in days)
    return _and(told) if len(told) <= 8 else None


def _week_days(days: set[int | tuple[int, int]]) -> str | None:
    """Of cronsim's numbers: Sunday is 0 and 7; (5, 2) is the 2nd Friday, (5, LAST) the last one."""
    plain = sorted({(day - 1) % 7 for day in days if isinstance(day, int)})
    nth = sorted(day for day in days if isinstance(day, tuple))
    if not nth:
        return _week(plain)
    if plain:
        return None
    told = [
        f"{'last' if number == _LAST else _ordinal(number)} {_WEEKDAYS[(day - 1) % 7]}" for day, number in nth
    ]
    return f"the {_and(told)}"


# --- rrule ---------------------------------------------------------------------------------------


def _rrule(when: RRuleSchedule) -> str | None:
    said = read(when.rrule, when.timezone)
    if said.parts is None:
        count = len(said.added) + (said.begin is not None)
        return f"at {count} given time{'s' * (count > 1)} {_place(when.timezone)}"
    parts = said.parts
    days = _rule_days(parts, said.begin)
    times = _rule_times(parts, said.begin)
    if days is None or times is None:
        return None
    if parts.freq not in CLOCK:
        where = f" {_zone(when.timezone) if times[-1].isdigit() else _place(when.timezone)}"
    else:
        where = f" {_place(when.timezone)}" if parts.by_day or "BYMONTH" in parts.lists else ""
    return f"{days}{times}{where}{_rest(said)}"


def _rule_days(parts: Parts, begin: Stamp | None) -> str | None:
    lists = parts.lists
    if {"BYSETPOS", "BYWEEKNO", "BYYEARDAY"} & lists.keys():
        return None
    every = _every(parts.interval, _UNITS[parts.freq])
    months = lists.get("BYMONTH", ())
    within = f" in {_and([_MONTHS[month - 1] for month in months])}" if months else ""
    month_days, by_day = lists.get("BYMONTHDAY", ()), parts.by_day
    if month_days and by_day:
        return None
    week = _rule_week(parts)
    if week is None:
        return None
    if parts.freq == "WEEKLY":
        if not by_day and begin is not None and not begin.utc:
            week = _WEEKDAYS[begin.wall.weekday()]
        if parts.interval == 1 and week:
            return f"every {week}{within}"
        return f"{every}{f' on {week}' if week else ''}{within}"
    if parts.freq == "DAILY" and parts.interval == 1 and week:
        return f"every {week}{within}"
    if parts.freq == "YEARLY" and by_day:
        return None
    if parts.freq in ("MONTHLY", "YEARLY") and not by_day:
        return _rule_dates(parts, begin, every, months)
    dates = f" on the {_and([_from_end(day) for day in month_days])} of the month" if month_days else ""
    return f"{every}{f' on {week}' if week else ''}{dates}{within}"


def _rule_week(parts: Parts) -> str | None:
    """The days of BYDAY; empty without one."""
    nth = [(day, number) for day, number in parts.by_day if number]
    if not nth:
        return _week([day for day, _ in parts.by_day]) if parts.by_day else ""
    if len(nth) < len(parts.by_day):
        return None
    return "the " + _and([f"{_from_end(number, '')} {_WEEKDAYS[day]}" for day, number in nth])


def _rule_dates(parts: Parts, begin: Stamp | None, every: str, months: tuple[int, ...]) -> str | None:
    days = parts.lists.get("BYMONTHDAY", ())
    if not days:
        if begin is None or begin.utc:
            return f"{every}" if not months else None
        days = (begin.wall.day,)
        if parts.freq == "YEARLY" and not months:
            months = (begin.wall.month,)
    told = _and([_from_end(day) for day in days])
    if parts.freq == "MONTHLY" and parts.interval == 1:
        of = _and([_MONTHS[month - 1] for month in months]) if months else "every month"
        return f"on the {told} of {of}"
    if months:
        return f"{every} on the {told} of {_and([_MONTHS[month - 1] for month in months])}"
    return f"{every} on the {told}" + (" of each month" if parts.freq == "YEARLY" else "")


def _rule_times(parts: Parts, begin: Stamp | None) -> str | None:
    lists = parts.lists
    clock = [lists.get(name) for name in ("BYHOUR", "BYMINUTE", "BYSECOND")]
    if parts.freq in CLOCK:
        if parts.freq == "HOURLY" and clock[1] and not clock[0]:
            return f" at minute{'s' * (len(clock[1]) > 1)} {_and([str(minute) for minute in clock[1]])}"
        return None if any(clock) else ""
    if begin is None or begin.utc:
        own: Sequence[int | None] = (None, None, 0)
    else:
        own = (begin.wall.hour, begin.wall.minute, begin.wall.second)
    found = [given or ((mine,) if mine is not None else None) for given, mine in zip(clock, own, strict=True)]
    hours, minutes, seconds = found
    if hours is None and minutes is None:
        return " at the time of day of its " + ("first deploy" if begin is None else "DTSTART")
    if hours is None or minutes is None or seconds is None:
        return None
    if len(hours) * len(minutes) * len(seconds) > _MOST_TIMES:
        return None
    return f" at {_times(hours, minutes, seconds)}"


def _rest(said: Text) -> str:
    parts, told = said.parts, ""
    if parts is not None and parts.count is not None:
        told += f", {parts.count} time{'s' * (parts.count > 1)}"
    if parts is not None and parts.until is not None:
        told += f", until {parts.until.wall:%Y-%m-%d}"
    if said.added:
        told += f", and {len(said.added)} more date{'s' * (len(said.added) > 1)}"
    if said.taken:
        told += f", except {len(said.taken)} date{'s' * (len(said.taken) > 1)}"
    return told


# --- words ---------------------------------------------------------------------------------------


def _zone(name: str) -> str:
    """After a time."""
    if name in ("UTC", "Etc/UTC"):
        return "UTC"
    region, _, city = name.rpartition("/")
    return f"in {city.replace('_', ' ')}" if region and region != "Etc" else f"in {name}"


def _place(name: str) -> str:
    """After anything else."""
    zone = _zone(name)
    return zone if zone.startswith("in ") else f"in {zone}"


def _every(count: int, unit: str) -> str:
    return f"every {unit}" if count == 1 else f"every {count} {unit}s"


def _times(hours: Sequence[int], minutes: Sequence[int], seconds: Sequence[int]) -> str:
    to_second = any(seconds)
    moments = [
        timedelta(hours=hour, minutes=minute, seconds=second)
        for hour in hours
        for minute in minutes
        for second in seconds
    ]
    return _and([str(one).zfill(8)[: 8 if to_second else 5] for one in moments])


def _week(days: Sequence[int]) -> str:
    """Of numbers that begin with Monday as 0."""
    if list(days) == [0, 1, 2, 3, 4]:
        return "weekday"
    return "day" if len(days) == 7 else _and([_WEEKDAYS[day] for day in days])


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _from_end(number: int, noun: str = " day") -> str:
    if number > 0:
        return _ordinal(number)
    return f"last{noun}" if number == -1 else f"{_ordinal(-number)} last{noun}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
