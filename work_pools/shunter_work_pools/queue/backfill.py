"""Backfill: past slots of a schedule that have no run yet become runs, at once and in a lane of their own.

A backfill is known by schedule, start and end: the same request again goes on where it stopped. Its runs are
due in the order of their slots and never late; ``concurrency`` says how many of them may be active at once.
The schedule's row is locked meanwhile, so that no slot is made twice by firing it at the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select, update

from shunter_work_pools import schedules as slots
from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import BackfillAnswer, BackfillRequest, Schedule
from shunter_work_pools.contracts.errors import BadRequest, NotFound
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue import timetable
from shunter_work_pools.queue.catalog import Placed, deployment, nearest
from shunter_work_pools.queue.submit import NewRun, make_runs
from shunter_work_pools.storage.schema import backfills, pools, runs, schedules
from shunter_work_pools.storage.store import Tx

#: Slots that a dry run counts at the most.
COUNTED = 100_000


@dataclass(frozen=True)
class Plan:
    """A schedule and the stretch of time of which slots are to become runs."""

    target: Placed
    row: Row[Any]
    schedule: Schedule
    request: BackfillRequest

    def slots(self, after: datetime | None, limit: int) -> tuple[list[Micros], bool]:
        """The slots after a moment (None: from the start on), and whether there are more than ``limit``.

        Raises:
            BadRequest: the stretch leaves the calendar.
        """
        try:
            begin = micros(self.request.start) - 1
            if after is not None:
                begin = max(begin, micros(after))
            found, more = slots.slots_between(
                self.schedule,
                moment(begin),
                moment(micros(self.request.end) - 1),
                moment(self.row.anchor_at),
                limit,
            )
        except (OverflowError, ValueError) as exc:
            raise BadRequest("start is at the edge of the calendar", "Give a later start.") from exc
        return [micros(slot) for slot in found], more

    def all_slots(self) -> list[Micros]:
        """Every slot of the stretch.

        Raises:
            BadRequest: there are more than ``COUNTED``, or the stretch leaves the calendar.
        """
        found, more = self.slots(None, COUNTED)
        if more:
            raise BadRequest(
                f"schedule {self.row.name!r} has more than {COUNTED} slots between start and end",
                "Backfill a shorter time.",
            )
        return found

    def unmade(self, tx: Tx, wanted: list[Micros]) -> list[Micros]:
        """Those of the slots, in order, that have no run."""
        if not wanted:
            return []
        statement = select(runs.c.slot_at).where(
            runs.c.schedule_id == self.row.id, runs.c.slot_at.between(wanted[0], wanted[-1])
        )
        been = set(tx.conn.scalars(statement))
        return [at for at in wanted if at not in been]


def plan(tx: Tx, name: str, request: BackfillRequest, *, lock: bool = False) -> Plan:
    """What a request means.

    Args:
        name: of the deployment.
        lock: keep others from making slots of the schedule until the end of the transaction.

    Raises:
        NotFound: there is no such deployment, or no such schedule of it.
        BadRequest: it has no schedule, or several and none is named; the time is empty or not past yet.
    """
    if request.end <= request.start:
        raise BadRequest("end is not after start", "Give the end of the time whose slots are to become runs.")
    if micros(request.end) > tx.now:
        raise BadRequest(
            f"end {request.end.isoformat()} is in the future",
            "Only past slots can be backfilled; end with now.",
        )
    target = deployment(tx, name)
    by_name = timetable.named(target.spec)
    if not by_name:
        raise BadRequest(
            f"deployment {name!r} has no schedule, so it has no slots",
            "Make runs of it with `shunter run start`.",
        )
    if request.schedule is None and len(by_name) > 1:
        names = ", ".join(sorted(by_name)[:10]) + (", ..." if len(by_name) > 10 else "")
        raise BadRequest(f"deployment {name!r} has several schedules: {names}", "Name the one that is meant.")
    wanted = request.schedule or next(iter(by_name))
    if wanted not in by_name:
        raise NotFound(f"deployment {name!r} has no schedule {wanted!r}", nearest(wanted, list(by_name)))
    statement = select(schedules).where(schedules.c.deployment_id == target.id, schedules.c.name == wanted)
    if lock:
        statement = statement.with_for_update(key_share=True)
    return Plan(target, tx.conn.execute(statement).one(), by_name[wanted], request)


def backfill(tx: Tx, name: str, request: BackfillRequest) -> BackfillAnswer:
    """Make runs of the next ``limit`` slots, those of them that have none.

    Raises:
        NotFound, BadRequest: see :func:`plan`.
    """
    planned = plan(tx, name, request, lock=True)
    found, more = planned.slots(request.after, request.limit)
    if not found:
        return BackfillAnswer(schedule=planned.row.name, slots=0, made=0)
    number = _number(tx, planned)
    parameters = planned.target.spec.parameters | planned.schedule.parameters
    new = [
        NewRun(
            deployment=planned.target,
            parameters=parameters,
            due_at=at,
            schedule_id=planned.row.id,
            slot_at=at,
            backfill_id=number,
        )
        for at in planned.unmade(tx, found)
    ]
    make_runs(tx, new, Actor.USER)
    return BackfillAnswer(
        schedule=planned.row.name,
        backfill=number,
        slots=len(found),
        made=len(new),
        next=moment(found[-1]) if more else None,
    )


def _number(tx: Tx, planned: Plan) -> int:
    """The number of this backfill; what it says of concurrency holds from now on."""
    start_at, end_at = micros(planned.request.start), micros(planned.request.end)
    concurrency = planned.request.concurrency
    row = tx.conn.execute(
        select(backfills)
        .where(
            backfills.c.schedule_id == planned.row.id,
            backfills.c.start_at == start_at,
            backfills.c.end_at == end_at,
        )
        .with_for_update(key_share=True)
    ).one_or_none()
    if row is None:
        number = tx.conn.execute(
            insert(backfills)
            .values(
                schedule_id=planned.row.id,
                start_at=start_at,
                end_at=end_at,
                concurrency=concurrency,
                created_at=tx.now,
            )
            .returning(backfills.c.id)
        ).scalar_one()
        return int(number)
    if row.concurrency != concurrency:
        tx.conn.execute(update(backfills).where(backfills.c.id == row.id).values(concurrency=concurrency))
        tx.changes.pools.update(tx.conn.scalars(select(pools.c.id)))  # there may be room now
    return int(row.id)
