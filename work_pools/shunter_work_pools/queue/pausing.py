"""Pausing: a schedule or deployment that is paused makes no slots; what it missed its policy decides later.

What was due before the pause is made before it begins. When it ends, the schedule's ``catch_up`` decides in
the same transaction which of the missed slots become runs; these are made like all that are due.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, update

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import Schedule, SchedulePatch
from shunter_work_pools.contracts.errors import BadRequest, NotFound
from shunter_work_pools.queue import timetable
from shunter_work_pools.queue.catalog import deployment_row, nearest, revision_spec
from shunter_work_pools.queue.fire import fire_deployment
from shunter_work_pools.storage.schema import deployments, schedules
from shunter_work_pools.storage.store import Tx


def patch_schedule(
    tx: Tx, deployment: str, name: str, patch: SchedulePatch, late_after: Micros, since: Micros
) -> None:
    """Pause or resume one schedule.

    Args:
        late_after, since: as for :func:`~shunter_work_pools.queue.fire.fire`.

    Raises:
        NotFound: there is no such deployment, or no such schedule of it.
        BadRequest: a field that must have a value was set to null.
    """
    if "paused" in patch.model_fields_set and patch.paused is None:
        raise BadRequest("paused cannot be null", "Leave it out to keep it as it is.")
    deployment_row(tx, deployment)
    # Locked, then read: nothing may be deployed meanwhile.
    locked = select(deployments).where(deployments.c.name == deployment).with_for_update(key_share=True)
    target = tx.conn.execute(locked).one()
    by_name = timetable.named(revision_spec(tx, target.id, target.revision))
    if name not in by_name:
        raise NotFound(f"deployment {deployment!r} has no schedule {name!r}", nearest(name, list(by_name)))
    if patch.paused is None:
        return
    if patch.paused:
        fire_deployment(tx, target.id, late_after, since)
    row = next(row for row in timetable.locked_rows(tx, target.id) if row.name == name)
    if row.paused is patch.paused:
        return
    tx.conn.execute(update(schedules).where(schedules.c.id == row.id).values(paused=patch.paused))
    if patch.paused:
        _stop(tx, [row])
    elif not target.paused:
        _go_on(tx, [row], by_name)
    tx.changes.schedules = True


def pause_deployment(tx: Tx, deployment_id: int, paused: bool, late_after: Micros, since: Micros) -> None:
    """Bring the schedules in line with a deployment that is being paused or resumed; its row is locked.

    Args:
        late_after, since: as for :func:`~shunter_work_pools.queue.fire.fire`.
    """
    if paused:
        fire_deployment(tx, deployment_id, late_after, since)
    rows = [row for row in timetable.locked_rows(tx, deployment_id) if not row.removed and not row.paused]
    if paused:
        _stop(tx, rows)
    else:
        number = tx.conn.scalar(select(deployments.c.revision).where(deployments.c.id == deployment_id))
        assert number is not None
        _go_on(tx, rows, timetable.named(revision_spec(tx, deployment_id, number)))
    tx.changes.schedules = True


def _stop(tx: Tx, rows: list[Row[Any]]) -> None:
    ids = [row.id for row in rows]
    tx.conn.execute(update(schedules).where(schedules.c.id.in_(ids)).values(next_at=None))


def _go_on(tx: Tx, rows: list[Row[Any]], by_name: dict[str, Schedule]) -> None:
    """Everything up to now was missed."""
    told = []
    for row in rows:
        schedule = by_name[row.name]
        done_until, passed_over = timetable.settle(row, schedule, tx.now)
        next_at = timetable.next_after(schedule, done_until, row.anchor_at)
        tx.conn.execute(
            update(schedules).where(schedules.c.id == row.id).values(done_until=done_until, next_at=next_at)
        )
        told.append(passed_over)
    timetable.tell(tx, told)
