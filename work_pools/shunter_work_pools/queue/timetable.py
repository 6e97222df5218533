"""Timetable: how far each schedule of a deployment has come, and when it is due next.

A schedule's row says that every slot up to ``done_until`` was dealt with; ``next_at`` is the first one
after it, or NULL while none may be made. What a schedule means stands in the current revision.

An edit takes effect at the moment of its deploy: the new times make no slots before it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, insert, select, update

from shunter_work_pools import schedules as slots
from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import DeploymentSpec, Schedule, ScheduleView
from shunter_work_pools.contracts.errors import NotFound
from shunter_work_pools.storage.schema import deployments, schedules
from shunter_work_pools.storage.store import Tx


def named(tx: Tx, deployment_id: int, revision: int, spec: DeploymentSpec) -> dict[str, Schedule]:
    """The schedules of a revision by name."""
    key = ("schedules", deployment_id, revision)
    found: dict[str, Schedule] | None = tx.recall(key)
    if found is None:
        found = tx.remember(key, {schedule.name: schedule for schedule in spec.schedules})
    return found


def apply_schedules(
    tx: Tx, deployment_id: int, deployment_paused: bool, before: DeploymentSpec | None, after: DeploymentSpec
) -> None:
    """Bring the schedules in line with a new revision; one whose times did not change keeps its place."""
    rows = tx.conn.execute(select(schedules).where(schedules.c.deployment_id == deployment_id)).all()
    present = {row.name: row for row in rows}
    old = {schedule.name: schedule for schedule in before.schedules} if before is not None else {}
    for schedule in after.schedules:
        row = present.pop(schedule.name, None)
        was = old.get(schedule.name) if row is not None and not row.removed else None
        # What `schedule pause` did holds until a deploy says something else than the one before.
        paused = (
            row.paused
            if row is not None and was is not None and was.paused == schedule.paused
            else schedule.paused
        )
        kept = row if row is not None and was is not None and _times(was) == _times(schedule) else None
        anchor = kept.anchor_at if kept is not None else tx.now
        done_until = kept.done_until if kept is not None else tx.now
        next_at = None if paused or deployment_paused else next_after(schedule, done_until, anchor)
        values = {
            "paused": paused,
            "removed": False,
            "anchor_at": anchor,
            "done_until": done_until,
            "next_at": next_at,
        }
        if row is None:
            tx.conn.execute(
                insert(schedules).values(deployment_id=deployment_id, name=schedule.name, **values)
            )
        else:
            tx.conn.execute(update(schedules).where(schedules.c.id == row.id).values(**values))
    for row in present.values():
        tx.conn.execute(update(schedules).where(schedules.c.id == row.id).values(removed=True, next_at=None))
    tx.changes.schedules = True


def _times(schedule: Schedule) -> Any:
    return schedule.when, schedule.start, schedule.end


def next_after(schedule: Schedule, after: Micros, anchor: Micros) -> Micros | None:
    """The first slot after a moment; None if there is none."""
    found = slots.next_slot(schedule, moment(after), moment(anchor))
    return None if found is None else micros(found)


def pause_schedule(tx: Tx, deployment: Row[Any], spec: DeploymentSpec, name: str, paused: bool) -> None:
    """Pause or resume one schedule; what was missed meanwhile is made up for as it says.

    Args:
        deployment: row of deployments; ``spec`` its current revision.

    Raises:
        NotFound: the deployment has no such schedule.
    """
    from shunter_work_pools.queue.catalog import nearest

    by_name = named(tx, deployment.id, deployment.revision, spec)
    if name not in by_name:
        raise NotFound(
            f"deployment {deployment.name!r} has no schedule {name!r}", nearest(name, list(by_name))
        )
    row = tx.conn.execute(
        select(schedules)
        .where(schedules.c.deployment_id == deployment.id, schedules.c.name == name)
        .with_for_update()
    ).one()
    if row.paused is paused:
        return
    going = not paused and not deployment.paused
    next_at = next_after(by_name[name], row.done_until, row.anchor_at) if going else None
    tx.conn.execute(update(schedules).where(schedules.c.id == row.id).values(paused=paused, next_at=next_at))
    tx.changes.schedules = True


def pause_deployment(tx: Tx, deployment: Row[Any], spec: DeploymentSpec, paused: bool) -> None:
    """Bring the schedules in line with a deployment that was paused or resumed."""
    by_name = named(tx, deployment.id, deployment.revision, spec)
    rows = tx.conn.execute(
        select(schedules)
        .where(
            schedules.c.deployment_id == deployment.id,
            schedules.c.removed.is_(False),
            schedules.c.paused.is_(False),
        )
        .order_by(schedules.c.id)
        .with_for_update()
    ).all()
    for row in rows:
        next_at = None if paused else next_after(by_name[row.name], row.done_until, row.anchor_at)
        tx.conn.execute(update(schedules).where(schedules.c.id == row.id).values(next_at=next_at))
    tx.changes.schedules = True


def view(deployment: str, schedule: Schedule, row: Row[Any]) -> ScheduleView:
    """A schedule as people see it; ``row`` is of schedules."""
    return ScheduleView.model_construct(
        **{field: getattr(schedule, field) for field in Schedule.model_fields} | {"paused": row.paused},
        deployment=deployment,
        words=slots.in_words(schedule.when),
        next_at=None if row.next_at is None else moment(row.next_at),
    )


def live_rows(tx: Tx, deployment_ids: list[int]) -> list[Row[Any]]:
    """The rows of schedules that the deployments still have, in the order they were made."""
    if not deployment_ids:
        return []
    statement = (
        select(schedules)
        .join(deployments, deployments.c.id == schedules.c.deployment_id)
        .where(schedules.c.deployment_id.in_(deployment_ids), schedules.c.removed.is_(False))
        .order_by(schedules.c.id)
    )
    return list(tx.conn.execute(statement))
