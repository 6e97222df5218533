"""Cron expressions: cronsim parses them and walks the calendar."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Literal

from cronsim import CronSim, CronSimError

from shunter_work_pools.contracts.errors import BadRequest

NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = {
    5: ("minute", "hour", "day of month", "month", "day of week"),
    6: ("second", "minute", "hour", "day of month", "month", "day of week"),
}
_REMEDY = (
    'Give minute, hour, day of month, month and day of week, for example "0 6 * * 1-5"; '
    "six fields begin with the second."
)
#: Any date: whether an expression fires at all does not depend on where one begins to look.
_SOME_DAY = datetime(2000, 1, 1)


@dataclass(frozen=True)
class Cron:
    """A parsed expression, a walk. ``walker``: on the calendar, without a zone."""

    walker: CronSim
    fixed: bool

    def next_wall(self, wall: datetime) -> datetime | None:
        walker = copy.copy(self.walker)
        walker.dt = wall.replace(microsecond=0)
        try:
            found: datetime | None = next(walker, None)
        except (OverflowError, ValueError):  # past the year 9999
            return None
        return found


@lru_cache(maxsize=4096)
def parsed(cron: str, day: Literal["or", "and"] = "or") -> Cron:
    """The walk of an expression.

    It is *fixed* unless the minute or the hour begins with ``*`` (Debian's rule, cron(8)) or takes all
    values: ``0-23`` is as good as ``*``.

    Raises:
        CronSimError: it does not parse.
    """
    walker = CronSim(NICKNAMES.get(cron.strip().lower(), cron), _SOME_DAY)
    if day == "and":  # cronsim itself does as cron(8): both must match if one of them begins with a star
        walker.day_and = True
    _, minute, hour, *_ = walker.parts
    rhythm = minute.startswith("*") or hour.startswith("*")
    every = len(walker.minutes) == 60 or len(walker.hours) == 24
    return Cron(walker, fixed=not (rhythm or every))


def check_cron(cron: str, day: Literal["or", "and"]) -> None:
    """Refuse an expression that does not parse or never fires.

    Raises:
        BadRequest: it names the part that is wrong.
    """
    try:
        fires = parsed(cron, day).next_wall(_SOME_DAY) is not None
    except CronSimError:
        _explain(cron)
        fires = False  # each field is right by itself: they name a day that no month has
    if not fires:
        raise BadRequest(
            f'cron: "{cron}" never fires, no date matches it',
            "Change the day or the month: no year has, for example, a 30 February.",
        )


def _explain(cron: str) -> None:
    fields = cron.split()
    names = _FIELDS.get(len(fields))
    if cron.strip().startswith("@"):
        known = difflib.get_close_matches(cron.strip().lower()[:20], NICKNAMES, n=1, cutoff=0.7)
        hint = f"Did you mean {known[0]}?" if known else f"There are {', '.join(sorted(NICKNAMES))}."
        if cron.strip().lower().startswith("@every"):
            hint = "Use an interval: it has no cron expression."
        raise BadRequest(f'cron: "{cron}" is not a nickname', hint)
    if names is None:
        raise BadRequest(f'cron: "{cron}" has {len(fields)} of the 5 or 6 fields', _REMEDY)
    for position, name in enumerate(names):
        if (token := _wrong_token(fields, position)) is not None:
            raise BadRequest(f'cron: "{token}" in "{cron}" does not fit the {name}', _REMEDY)


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
