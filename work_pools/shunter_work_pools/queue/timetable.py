"""Timetable: how far each schedule of a deployment has come, and when it is due next.

A schedule's row says that every slot up to ``done_until`` was dealt with; ``next_at`` is the first one
after it, or NULL while none may be made or its zone is not known. What a schedule means stands in the
current revision.

An edit takes effect at the moment of its deploy: what was due before was made under the old revision, and
the new times make no slots before it. A schedule that was taken away and comes again begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Row, bindparam, insert, select, update

from shunter_work_pools import schedules as slots
from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import (
    DeploymentSpec,
    IntervalSchedule,
    Schedule,
    ScheduleView,
)
from shunter_work_pools.contracts.pauses import Pause
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue import pauses
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.schedules.slots import slots as walk
from shunter_work_pools.storage.schema import deployments, schedules
from shunter_work_pools.storage.store import Tx

#: Slots that are not made up for are counted up to here; of more only the first and the last are told.
COUNTED = 1000


def named(spec: DeploymentSpec) -> dict[str, Schedule]:
    """The schedules of a revision by name."""
    return {schedule.name: schedule for schedule in spec.schedules}


def upcoming(schedule: Schedule, after: Micros, anchor: Micros) -> Iterator[Micros]:
    """Every slot after a moment, in order."""
    return map(micros, walk(schedule, moment(after), moment(anchor)))


def next_after(schedule: Schedule, after: Micros, anchor: Micros) -> Micros | None:
    """The first slot after a moment; None if there is none."""
    return next(upcoming(schedule, after, anchor), None)


# ---- what was missed


def settle(row: Row[Any], schedule: Schedule, until: Micros) -> tuple[Micros, dict[str, Any] | None]:
    """Decide by the schedule's policy what becomes of the slots that were missed up to ``until``.

    Those to be made up for are always an unbroken line of the newest ones, so it is enough to say where it
    begins. Asked again with the same ``until`` after some of them were made, it decides the same about the
    rest: its age is counted from ``until``, not from the moment of the question.

    Args:
        row: of schedules.
        until: all slots after ``done_until`` up to this moment were missed.

    Returns:
        The new ``done_until``: the slots after it are to be made. And the event that tells of those that were
        passed over, if there are any.
    """
    begin: Micros = row.done_until
    if begin >= until:
        return begin, None
    kept = _made_up_for(schedule, begin, until, row.anchor_at)
    settled = kept[0] - 1 if kept else until
    return settled, _passed_over(row, schedule, settled, reason="catch_up")


def _made_up_for(schedule: Schedule, after: Micros, until: Micros, anchor: Micros) -> list[Micros]:
    if schedule.catch_up == "none":
        return []
    # Strictly after: a slot that is just as old as allowed is made.
    oldest = max(after, until - round(schedule.catch_up_age * 1_000_000) - 1)
    limit = schedule.catch_up_slots if schedule.catch_up == "all" else 1
    found = slots.latest_between(schedule, moment(oldest), moment(until), moment(anchor), limit)
    return [micros(slot) for slot in found]


def _passed_over(row: Row[Any], schedule: Schedule, until: Micros, reason: str) -> dict[str, Any] | None:
    """The event of the slots after ``done_until`` up to ``until``, which never become runs; None: no slots."""
    after, end, anchor = moment(row.done_until), moment(until), moment(row.anchor_at)
    try:
        found, more = slots.slots_between(schedule, after, end, anchor, COUNTED)
    except slots.UnknownZone:  # nobody knows when they were
        return None
    if not found:
        return None
    first, last, count = found[0], found[-1], len(found)
    if more:
        (last,) = slots.latest_between(schedule, after, end, anchor, 1)
    data = {
        "schedule": row.name,
        "policy": schedule.catch_up,
        "reason": reason,
        "since": first.isoformat(),
        "until": last.isoformat(),
    }
    if not more:
        data["slots"] = count
    elif isinstance(schedule.when, IntervalSchedule):
        data["slots"] = round((last - first).total_seconds() / schedule.when.seconds) + 1
    return {"kind": "catch_up_skipped", "deployment_id": row.deployment_id, "data": data}


def unknown_zone(row: Row[Any], exc: slots.UnknownZone) -> dict[str, Any]:
    """The event of a schedule that makes no slots until a server starts that knows its zone."""
    data = {"schedule": row.name, "detail": exc.detail, "remedy": exc.remedy}
    return {"kind": "zone_unknown", "deployment_id": row.deployment_id, "data": data}


def tell(tx: Tx, told: list[dict[str, Any] | None]) -> None:
    """Record on their deployments what happened to their schedules."""
    rows = [
        event_row(
            None,
            one["kind"],
            Actor.SCHEDULER,
            tx.now,
            deployment_id=one["deployment_id"],
            **one["data"],
        )
        for one in told
        if one is not None
    ]
    record(tx, rows)


# ---- deploys

_NEW = insert(schedules)
_CHANGED = (
    update(schedules)
    .where(schedules.c.id == bindparam("row"))
    .values(
        {
            column: bindparam(f"new_{column}")
            for column in ("paused", "removed", "anchor_at", "done_until", "next_at")
        }
    )
)


def apply_schedules(
    tx: Tx, deployment_id: int, deployment_paused: bool, before: DeploymentSpec | None, after: DeploymentSpec
) -> None:
    """Bring the schedules in line with a new revision; one whose times did not change keeps its place.

    Slots that are due must have been made before, by :func:`~shunter_work_pools.queue.fire.fire_deployment`.
    What ``schedule pause`` did holds until a deploy says something else than the one before.
    """
    present = {row.name: row for row in locked_rows(tx, deployment_id)}
    old = named(before) if before is not None else {}
    new_rows: list[dict[str, Any]] = []
    changed_rows: list[dict[str, Any]] = []
    told = []
    settled: list[int] = []
    for schedule in after.schedules:
        row = present.pop(schedule.name, None)
        was = old.get(schedule.name) if row is not None and not row.removed else None
        values, passed_over = _timed(tx.now, row, was, schedule, deployment_paused)
        told.append(passed_over)
        if row is None:
            new_rows.append({"deployment_id": deployment_id, "name": schedule.name, **values})
        else:
            changed_rows.append({"row": row.id} | {f"new_{key}": value for key, value in values.items()})
            if was is None or was.paused != schedule.paused:
                settled.append(row.id)
    told += [
        _passed_over(row, old[row.name], tx.now, reason="removed")
        for row in present.values()
        if not row.removed and row.name in old
    ]
    if present:
        gone = [row.id for row in present.values()]
        tx.conn.execute(update(schedules).where(schedules.c.id.in_(gone)).values(removed=True, next_at=None))
        settled += gone
    pauses.forget(tx, "schedule", settled)  # from now on the deploy says whether they are paused
    if new_rows:
        tx.conn.execute(_NEW, new_rows)
    if changed_rows:
        tx.conn.execute(_CHANGED, changed_rows)
    tell(tx, told)
    tx.changes.schedules = True


def _timed(
    now: Micros, row: Row[Any] | None, was: Schedule | None, schedule: Schedule, deployment_paused: bool
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a schedule's row says after a deploy, and the event of slots that never become runs."""
    paused, anchor, done_until, passed_over = schedule.paused, now, now, None
    if row is not None and was is not None:
        if was.paused == schedule.paused:
            paused = row.paused
        if (was.when, was.start, was.end) == (schedule.when, schedule.start, schedule.end):
            anchor, done_until = row.anchor_at, row.done_until
            if row.paused and not paused and not deployment_paused:  # resumed by this deploy
                done_until, passed_over = settle(row, schedule, now)
        else:
            passed_over = _passed_over(row, was, now, reason="edited")
    going = not paused and not deployment_paused
    values = {
        "paused": paused,
        "removed": False,
        "anchor_at": anchor,
        "done_until": done_until,
        "next_at": next_after(schedule, done_until, anchor) if going else None,
    }
    return values, passed_over


# ---- zones that changed


def reckon_anew(tx: Tx) -> None:
    """Let firing look at every schedule that is not paused, as a server does when it starts.

    Zones change their rules, and data that know of it come with a restart. What was reckoned before may be
    an hour off, or there may be no such zone then and one now.
    """
    paused = select(deployments.c.id).where(deployments.c.paused | deployments.c.deleted_at.is_not(None))
    going = (
        select(schedules.c.id)
        .where(
            schedules.c.removed.is_(False),
            schedules.c.paused.is_(False),
            schedules.c.next_at.is_(None) | (schedules.c.next_at > tx.now),
            schedules.c.deployment_id.not_in(paused),
        )
        .with_for_update(skip_locked=True, key_share=True)  # who holds one reckons it at this moment
    )
    tx.conn.execute(update(schedules).where(schedules.c.id.in_(going)).values(next_at=tx.now))


# ---- rows


def locked_rows(tx: Tx, deployment_id: int) -> list[Row[Any]]:
    """All rows of a deployment's schedules, in one order; nobody fires or changes them meanwhile."""
    statement = (
        select(schedules)
        .where(schedules.c.deployment_id == deployment_id)
        .order_by(schedules.c.id)
        .with_for_update(key_share=True)  # runs may refer to them
    )
    return list(tx.conn.execute(statement))


def live_rows(tx: Tx, deployment_ids: list[int]) -> list[Row[Any]]:
    """The rows of schedules that the deployments still have, in the order they were made."""
    if not deployment_ids:
        return []
    statement = (
        select(schedules)
        .where(schedules.c.deployment_id.in_(deployment_ids), schedules.c.removed.is_(False))
        .order_by(schedules.c.id)
    )
    return list(tx.conn.execute(statement))


def view(deployment: str, schedule: Schedule, row: Row[Any], pause: Pause | None) -> ScheduleView:
    """A schedule as people see it; ``row`` is of schedules."""
    return ScheduleView.model_construct(
        **{field: getattr(schedule, field) for field in Schedule.model_fields} | {"paused": row.paused},
        deployment=deployment,
        words=slots.in_words(schedule.when),
        next_at=None if row.next_at is None else moment(row.next_at),
        pause=pause,
    )
