"""Fire: slots that are due become runs, each exactly once; slots that were missed are made up for."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row, func, select, update

from shunter_work_pools import schedules as slots
from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import CronSchedule, IntervalSchedule
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue.catalog import Placed, revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.submit import NewRun, make_runs
from shunter_work_pools.storage.schema import deployments, runs, schedules
from shunter_work_pools.storage.store import Tx

#: Schedules that one transaction serves at the most.
BATCH = 200
#: Of the slots that were missed, so many of the newest, and none that is older, are made up for; the
#: rest is recorded as one event.
CATCH_UP_SLOTS = 100
CATCH_UP_AGE: Micros = 24 * 3600 * 1_000_000

_WHEN: TypeAdapter[CronSchedule | IntervalSchedule] = TypeAdapter(CronSchedule | IntervalSchedule)
_TICK: Micros = 1


def fire(tx: Tx, late_after: Micros) -> int:
    """Make runs of all slots that are due, of up to ``BATCH`` schedules; how many schedules were due.

    Args:
        late_after: a slot that passed longer ago makes a run that is late from the start.
    """
    statement = (
        select(
            schedules,
            deployments.c.name.label("deployment"),
            deployments.c.revision,
            deployments.c.paused.label("deployment_paused"),
        )
        .join(deployments, deployments.c.id == schedules.c.deployment_id)
        .where(schedules.c.next_at <= tx.now, deployments.c.paused.is_(False))
        .order_by(schedules.c.next_at)
        .limit(BATCH)
        .with_for_update(of=schedules, skip_locked=True)
    )
    due = tx.conn.execute(statement).all()
    new: list[NewRun] = []
    for row in due:
        new += _slots_of(tx, row, late_after)
    make_runs(tx, new, Actor.SCHEDULER)
    return len(due)


def _slots_of(tx: Tx, row: Row[Any], late_after: Micros) -> list[NewRun]:
    when = _WHEN.validate_python(row.when)
    anchor = moment(row.anchor_at)
    oldest = max(row.next_at, tx.now - CATCH_UP_AGE)
    found, more = slots.slots_between(
        when, moment(oldest - _TICK), moment(tx.now), anchor, limit=CATCH_UP_AGE // 1_000_000 + 1
    )
    assert not more, "no interval is shorter than a second"
    skipped = len(found) - CATCH_UP_SLOTS
    if oldest > row.next_at or skipped > 0:
        record(
            tx,
            [
                event_row(
                    None,
                    "catch_up_skipped",
                    Actor.SCHEDULER,
                    tx.now,
                    deployment_id=row.deployment_id,
                    schedule=row.name,
                    since=moment(row.next_at).isoformat(),
                )
            ],
        )
    following = slots.next_slot(when, moment(tx.now), anchor)
    tx.conn.execute(
        update(schedules)
        .where(schedules.c.id == row.id)
        .values(next_at=micros(following) if following is not None else None)
    )
    spec = revision_spec(tx, row.deployment_id, row.revision)
    target = Placed(row.deployment_id, row.deployment, row.revision, False, spec)
    made = []
    wanted = [micros(slot) for slot in found[-CATCH_UP_SLOTS:]]
    # Times that were deployed anew while the clock was set back lead past slots that have been.
    been = set(
        tx.conn.scalars(
            select(runs.c.slot_at).where(runs.c.schedule_id == row.id, runs.c.slot_at.in_(wanted))
        )
    )
    for at in wanted:
        if at in been:
            continue
        made.append(
            NewRun(
                deployment=target,
                parameters=spec.parameters | row.parameters,
                due_at=at,
                late=tx.now - at > late_after,
                schedule_id=row.id,
                slot_at=at,
            )
        )
    return made


def next_slot_in(tx: Tx) -> float | None:
    """Seconds until the next slot of any schedule that is not paused, by the store's clock."""
    found: Micros | None = tx.conn.scalar(
        select(func.min(schedules.c.next_at))
        .join(deployments, deployments.c.id == schedules.c.deployment_id)
        .where(deployments.c.paused.is_(False))
    )
    return None if found is None else (found - tx.now) / 1_000_000
