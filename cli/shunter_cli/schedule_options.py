"""The schedule that the options of ``shunter deploy`` describe."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from shunter_cli import durations
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.contracts.deployments import Schedule, When


@dataclass(frozen=True)
class Said:
    """The options as they were written; None: not given."""

    interval: str | None = None
    cron: str | None = None
    rrule: str | None = None
    timezone: str | None = None
    day_and: bool = False
    anchor: str | None = None
    jitter: str | None = None
    start: str | None = None
    end: str | None = None
    catch_up: Any = "all"


def schedules(said: Said) -> list[Schedule]:
    """One schedule, or none.

    Raises:
        InvalidInput: two kinds of schedule, an option of another kind, or no duration or time.
    """
    from shunter_work_pools.contracts.deployments import Schedule

    _fit(said)
    if said.cron is None and said.interval is None and said.rrule is None:
        return []
    start, end = _moment(said, said.start, "--start"), _moment(said, said.end, "--end")
    if start is not None and end is not None and end <= start:
        raise InvalidInput("--end must be after --start", "Exchange them, or leave one out.")
    jitter = durations.seconds(said.jitter, "--jitter") if said.jitter is not None else 0.0
    return [Schedule(when=_when(said), jitter=jitter, start=start, end=end, catch_up=said.catch_up)]


def _fit(said: Said) -> None:
    kinds = {"--interval": said.interval, "--cron": said.cron, "--rrule": said.rrule}
    given = [option for option, text in kinds.items() if text is not None]
    if len(given) > 1:
        raise InvalidInput(f"{' and '.join(given)} exclude each other", "Give one of them.")
    needs = (
        ("--timezone", said.timezone, given, "--cron or --rrule"),
        ("--day-and", said.day_and or None, said.cron, "--cron"),
        ("--anchor", said.anchor, said.interval, "--interval"),
        ("--jitter", said.jitter, given, "a schedule"),
        ("--start", said.start, given, "a schedule"),
        ("--end", said.end, given, "a schedule"),
        ("--catch-up", None if said.catch_up == "all" else said.catch_up, given, "a schedule"),
    )
    for option, text, base, what in needs:
        if text is not None and not base:
            raise InvalidInput(f"{option} belongs to {what}, and there is none", "Give both, or neither.")


def _when(said: Said) -> When:
    from shunter_work_pools.contracts.deployments import CronSchedule, IntervalSchedule, RRuleSchedule

    zone = said.timezone or "UTC"
    if said.cron is not None:
        return CronSchedule(cron=said.cron, timezone=zone, day="and" if said.day_and else "or")
    if said.rrule is not None:
        return RRuleSchedule(rrule=said.rrule.replace("\\n", "\n"), timezone=zone)
    assert said.interval is not None
    seconds = durations.seconds(said.interval, "--interval", zero=False)
    if seconds < 1:
        raise InvalidInput(f"--interval {said.interval!r} is shorter than one second", "Use 1s or more.")
    return IntervalSchedule(seconds=seconds, anchor=_moment(said, said.anchor, "--anchor"), timezone=zone)


def _moment(said: Said, text: str | None, option: str) -> datetime | None:
    return durations.on_the_wall(text, option, _zone(said.timezone or "UTC")) if text is not None else None


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # the server says what is wrong with it
        return UTC
