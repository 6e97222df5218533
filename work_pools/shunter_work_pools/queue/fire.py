"""Fire: slots that are due become runs, each exactly once; slots that were missed are made up for.

A schedule's row says up to which moment its slots were dealt with (``done_until``). Firing goes on from
there, in two steps.

1. *Missed* are the slots up to ``since``, the moment from which slots have been fired without a break: the
   server was down, the machine slept, or the schedule was paused (then ``since`` is the moment at which it is
   resumed). The schedule's ``catch_up`` says which of them are made up for: always the newest ones without a
   gap, so ``done_until`` moves to just before them. Those that it passes over are told by one event of the
   deployment (``catch_up_skipped``).
2. Every slot after ``done_until`` up to now becomes a run, oldest first. One transaction makes up to ``MOST``
   runs; then ``done_until`` is the last slot that was made, and the next transaction goes on. Slots that
   passed after ``since`` are in time, however many there are and however late their transaction comes: no
   policy drops them.

Between the two steps and between two transactions nothing needs to be remembered: the first step, done again
with the same ``since``, decides the same. After a crash ``since`` is later, and what was still to be made up
for is missed together with what came after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, func, select, tuple_, update

from shunter_work_pools import schedules as slots
from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import DeploymentSpec, Schedule
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue import timetable
from shunter_work_pools.queue.catalog import Placed, current
from shunter_work_pools.queue.submit import NewRun, make_runs
from shunter_work_pools.storage.schema import runs, schedules
from shunter_work_pools.storage.store import Tx

#: Schedules that one transaction serves at the most.
BATCH = 150
#: Runs that one transaction makes at the most: claims wait for it on SQLite.
MOST = 200
#: Seconds after which a transaction takes no further schedule: some take long to reckon.
BUDGET = 0.04

_DUE = (
    select(schedules)
    .where(schedules.c.next_at <= bindparam("now"))
    .order_by(schedules.c.next_at)
    .limit(BATCH)
    .with_for_update(skip_locked=True, key_share=True)
)
_DONE = (
    update(schedules)
    .where(schedules.c.id == bindparam("row"))
    .values(done_until=bindparam("new_done_until"), next_at=bindparam("new_next_at"))
)
_BEEN = select(runs.c.schedule_id, runs.c.slot_at).where(
    tuple_(runs.c.schedule_id, runs.c.slot_at).in_(bindparam("wanted", expanding=True))
)


@dataclass
class _Turn:
    """What one schedule does in one transaction: the slots to make, how far it has come then, and an event."""

    row: Row[Any]
    schedule: Schedule
    wanted: list[Micros]
    done_until: Micros
    next_at: Micros | None
    told: dict[str, Any] | None


def fire(tx: Tx, late_after: Micros, since: Micros) -> int:
    """Make runs of slots that are due, as many as one transaction may; how many schedules were served.

    Slots may be left that are due, see :func:`next_slot_in`. On Postgres none is served while others hold the
    schedules that are due.

    Args:
        late_after: a run that should have started longer ago is late from the start.
        since: slots have been fired without a break since this moment; what passed before was missed.
    """
    due = tx.conn.execute(_DUE, {"now": tx.now}).all()
    return _fire(tx, due, late_after, since, MOST, BUDGET)


def fire_deployment(tx: Tx, deployment_id: int, late_after: Micros, since: Micros) -> None:
    """Make runs of all slots of one deployment that are due, under its current revision.

    Called before it is changed or paused, so that the change does not concern what was due before it.

    Args:
        late_after, since: as for :func:`fire`.
    """
    due = [
        row
        for row in timetable.locked_rows(tx, deployment_id)
        if row.next_at is not None and row.next_at <= tx.now
    ]
    _fire(tx, due, late_after, since, None, None)


def _fire(
    tx: Tx,
    due: Sequence[Row[Any]],
    late_after: Micros,
    since: Micros,
    most: int | None,
    budget: float | None,
) -> int:
    if not due:
        return 0
    # Only now that the rows are locked: a deploy cannot come between.
    targets = current(tx, sorted({row.deployment_id for row in due}))
    turns = _turns(due, targets, tx.now, since, most, budget)
    _make(tx, turns, targets, late_after)
    tx.conn.execute(
        _DONE,
        [
            {"row": turn.row.id, "new_done_until": turn.done_until, "new_next_at": turn.next_at}
            for turn in turns
        ],
    )
    timetable.tell(tx, [turn.told for turn in turns])
    return len(turns)


def _turns(
    due: Iterable[Row[Any]],
    targets: dict[int, Placed],
    now: Micros,
    since: Micros,
    most: int | None,
    budget: float | None,
) -> list[_Turn]:
    """The turns of those that one transaction can serve; at least one."""
    by_name = {deployment_id: timetable.named(target.spec) for deployment_id, target in targets.items()}
    turns: list[_Turn] = []
    started = time.perf_counter()
    for row in due:
        if turns and (most == 0 or (budget is not None and time.perf_counter() - started > budget)):
            break
        turn = _turn(row, by_name[row.deployment_id][row.name], now, since, most)
        turns.append(turn)
        if most is not None:
            most -= len(turn.wanted)
    return turns


def _turn(row: Row[Any], schedule: Schedule, now: Micros, since: Micros, most: int | None) -> _Turn:
    try:
        return _reckoned(row, schedule, now, since, most)
    except slots.UnknownZone as exc:  # the others go on
        return _Turn(row, schedule, [], row.done_until, None, timetable.unknown_zone(row, exc))


def _reckoned(row: Row[Any], schedule: Schedule, now: Micros, since: Micros, most: int | None) -> _Turn:
    done_until, told = timetable.settle(row, schedule, min(since, now))
    # Not back to now, if the clock was set back while no server was there.
    turn = _Turn(row, schedule, [], max(done_until, now), None, told)
    for at in timetable.upcoming(schedule, done_until, row.anchor_at):
        if at > now or len(turn.wanted) == most:
            turn.next_at = at
            break
        turn.wanted.append(at)
    if turn.next_at is not None and turn.next_at <= now:
        turn.done_until = turn.wanted[-1]
    return turn


def _make(tx: Tx, turns: list[_Turn], targets: dict[int, Placed], late_after: Micros) -> None:
    wanted = sorted((at, turn.row.id, index) for index, turn in enumerate(turns) for at in turn.wanted)
    if not wanted:
        return
    # A backfill may have been there; times deployed anew while the clock was set back lead past slots, too.
    been = {
        (row.schedule_id, row.slot_at)
        for row in tx.conn.execute(_BEEN, {"wanted": [(schedule_id, at) for at, schedule_id, _ in wanted]})
    }
    new = []
    for at, schedule_id, index in wanted:
        if (schedule_id, at) in been:
            continue
        schedule, target = turns[index].schedule, targets[turns[index].row.deployment_id]
        due_at = at + slots.jitter_of(schedule, schedule_id, at)
        new.append(
            NewRun(
                deployment=target,
                parameters=target.spec.parameters | schedule.parameters,
                due_at=due_at,
                late=tx.now - due_at > late_after,
                schedule_id=schedule_id,
                slot_at=at,
            )
        )
    make_runs(tx, new, Actor.SCHEDULER)


def first_due(tx: Tx, run: Row[Any], spec: DeploymentSpec) -> Micros:
    """When a run was due at first: at its slot and the jitter of it, or when it was asked for.

    Args:
        run: of runs.
        spec: of its revision.
    """
    due_at: Micros = run.scheduled_at
    if run.slot_at is None or run.backfill_id is not None or not any(one.jitter for one in spec.schedules):
        return due_at
    name = tx.conn.execute(select(schedules.c.name).where(schedules.c.id == run.schedule_id)).scalar_one()
    return due_at + slots.jitter_of(timetable.named(spec)[name], run.schedule_id, run.slot_at)


def next_slot_in(tx: Tx) -> float | None:
    """Seconds until the next slot of any schedule that is not paused, by the store's clock."""
    found: Micros | None = tx.conn.scalar(select(func.min(schedules.c.next_at)))
    return None if found is None else (found - tx.now) / 1_000_000
