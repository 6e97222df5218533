"""A schedule as a file has it, to the contract's, and why it can never work."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from shunter_cli.deployment_files.model import ScheduleEntry
from shunter_work_pools.contracts.deployments import CronSchedule, IntervalSchedule, RRuleSchedule, Schedule
from shunter_work_pools.contracts.errors import BadRequest

#: What a field is set to when it was found wrong, so that the others can be looked at.
_HARMLESS: dict[str, Any] = {"timezone": "UTC", "jitter": 0.0, "end": None}


def to_schedule(entry: ScheduleEntry) -> Schedule:
    """The contract's schedule; times without an offset are local times of its zone.

    Raises:
        pydantic.ValidationError: its parts do not fit together.
    """
    return Schedule(
        name=entry.name,
        when=_when(entry),
        parameters=entry.parameters,
        paused=entry.paused,
        jitter=entry.jitter,
        start=_aware(entry.start, entry.timezone),
        end=_aware(entry.end, entry.timezone),
        catch_up=entry.catch_up,
        catch_up_age=entry.catch_up_age,
        catch_up_slots=entry.catch_up_slots,
    )


def schedule_faults(entry: ScheduleEntry) -> Iterator[tuple[str, str, str]]:
    """Key, detail and remedy of all that is wrong with a schedule that has one of cron, interval, rrule."""
    from shunter_work_pools import schedules

    if entry.day is not None and entry.cron is None:
        yield "day", "day is for a cron expression", "Remove it, or give cron."
    if entry.anchor is not None and entry.interval is None:
        yield "anchor", "anchor is for an interval", "Remove it, or give interval."
    for key in ("start", "end", "anchor"):
        if not _is_in_calendar(getattr(entry, key), entry.timezone):
            yield key, "the moment is outside of the calendar", "Give another."
            return
    start, end = _aware(entry.start, entry.timezone), _aware(entry.end, entry.timezone)
    if start is not None and end is not None and end <= start:
        yield "end", "must be after start", "Exchange them, or leave one out."
        entry = entry.model_copy(update={"end": None})
    while True:
        try:
            schedules.check(to_schedule(entry))
        except BadRequest as exc:
            key, _, detail = exc.detail.partition(": ")
            yield key, detail, exc.remedy
            if key not in _HARMLESS or getattr(entry, key) == _HARMLESS[key]:
                return
            entry = entry.model_copy(update={key: _HARMLESS[key]})
        else:
            return


def _when(entry: ScheduleEntry) -> CronSchedule | IntervalSchedule | RRuleSchedule:
    if entry.cron is not None:
        return CronSchedule(cron=entry.cron, timezone=entry.timezone, day=entry.day or "or")
    if entry.interval is not None:
        anchor = _aware(entry.anchor, entry.timezone)
        return IntervalSchedule(seconds=entry.interval, anchor=anchor, timezone=entry.timezone)
    return RRuleSchedule(rrule=entry.rrule or "", timezone=entry.timezone)


def _aware(moment: datetime | None, timezone: str) -> datetime | None:
    if moment is None or moment.tzinfo is not None:
        return moment
    try:
        return moment.replace(tzinfo=ZoneInfo(timezone))
    except (KeyError, ValueError, OSError):  # not a zone, which is told apart from this
        return moment.replace(tzinfo=UTC)


def _is_in_calendar(moment: datetime | None, timezone: str) -> bool:
    aware = _aware(moment, timezone)
    try:
        return aware is None or aware.astimezone(UTC) is not None
    except OverflowError:
        return False
