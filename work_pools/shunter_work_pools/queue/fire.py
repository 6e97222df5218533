"""Fire: slots that are due become runs, each exactly once; slots that were missed are made up for.

Missed are the slots that passed while no run could be made of them: the server was down, the schedule or
its deployment paused. The schedule's ``catch_up`` says what becomes of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, select, update

from shunter_work_pools import schedules as slots
from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import Schedule
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue import timetable
from shunter_work_pools.queue.catalog import Placed, revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.submit import NewRun, make_runs
from shunter_work_pools.storage.schema import deployments, runs, schedules
from shunter_work_pools.storage.store import Tx

#: Schedules that one transaction serves at the most.
BATCH = 200
#: Slots of one schedule that passed in time and are made into runs at once at the most.
IN_TIME = 1000

_DUE = select(
    schedules,
    deployments.c.name.label("deployment"),
    deployments.c.revision,
).join(deployments, deployments.c.id == schedules.c.deployment_id)


def fire(tx: Tx, late_after: Micros, since: Micros) -> int:
    """Make runs of all slots that are due, of up to ``BATCH`` schedules; how many schedules were due.

    Args:
        late_after: a slot that passed longer ago makes a run that is late from the start.
        since: slots have been fired without a break since this moment; what passed before was missed.
    """
    statement = (
        _DUE.where(schedules.c.next_at <= tx.now)
        .order_by(schedules.c.next_at)
        .limit(BATCH)
        .with_for_update(of=schedules, skip_locked=True)
    )
    return _fire(tx, tx.conn.execute(statement).all(), late_after, since)


def fire_deployment(tx: Tx, deployment_id: int, late_after: Micros, since: Micros) -> None:
    """Make runs of all slots of one deployment that are due: before it is changed, or after it was resumed."""
    statement = (
        _DUE.where(schedules.c.deployment_id == deployment_id, schedules.c.next_at <= tx.now)
        .order_by(schedules.c.id)
        .with_for_update(of=schedules)
    )
    _fire(tx, tx.conn.execute(statement).all(), late_after, since)


def _fire(tx: Tx, due: Any, late_after: Micros, since: Micros) -> int:
    new: list[NewRun] = []
    for row in due:
        new += _slots_of(tx, row, late_after, since)
    make_runs(tx, new, Actor.SCHEDULER)
    return len(due)


def _slots_of(tx: Tx, row: Row[Any], late_after: Micros, since: Micros) -> list[NewRun]:
    spec = revision_spec(tx, row.deployment_id, row.revision)
    schedule = timetable.named(tx, row.deployment_id, row.revision, spec)[row.name]
    wanted = _wanted(tx, row, schedule, since)
    tx.conn.execute(
        update(schedules)
        .where(schedules.c.id == row.id)
        .values(done_until=tx.now, next_at=timetable.next_after(schedule, tx.now, row.anchor_at))
    )
    # A backfill may have been there; times deployed anew while the clock was set back lead past slots, too.
    been = set(
        tx.conn.scalars(
            select(runs.c.slot_at).where(runs.c.schedule_id == row.id, runs.c.slot_at.in_(wanted))
        )
    )
    target = Placed(row.deployment_id, row.deployment, row.revision, False, spec)
    made = []
    for at in wanted:
        if at in been:
            continue
        due_at = at + slots.jitter_of(schedule, row.id, at)
        made.append(
            NewRun(
                deployment=target,
                parameters=spec.parameters | schedule.parameters,
                due_at=due_at,
                late=tx.now - due_at > late_after,
                schedule_id=row.id,
                slot_at=at,
            )
        )
    return made


def _wanted(tx: Tx, row: Row[Any], schedule: Schedule, since: Micros) -> list[Micros]:
    """The slots that are due, less those that are not made up for; these are recorded as one event."""
    anchor, now = moment(row.anchor_at), tx.now
    missed: list[datetime] = []
    until = min(since, now)
    oldest = max(row.done_until, now - round(schedule.catch_up_age * 1_000_000) - 1)
    if schedule.catch_up != "none" and oldest < until:
        limit = schedule.catch_up_slots if schedule.catch_up == "all" else 1
        missed = slots.latest_between(schedule, moment(oldest), moment(until), anchor, limit)
    in_time, _ = slots.slots_between(
        schedule, moment(max(row.done_until, until)), moment(now), anchor, IN_TIME
    )
    wanted = [micros(slot) for slot in missed + in_time]
    first = wanted[0] if wanted else tx.now + 1
    if row.next_at < first:
        data = {"schedule": row.name, "since": moment(row.next_at).isoformat(), "policy": schedule.catch_up}
        event = event_row(
            None, "catch_up_skipped", Actor.SCHEDULER, tx.now, deployment_id=row.deployment_id, **data
        )
        record(tx, [event])
    return wanted


def next_slot_in(tx: Tx) -> float | None:
    """Seconds until the next slot of any schedule that is not paused, by the store's clock."""
    found: Micros | None = tx.conn.scalar(select(func.min(schedules.c.next_at)))
    return None if found is None else (found - tx.now) / 1_000_000
