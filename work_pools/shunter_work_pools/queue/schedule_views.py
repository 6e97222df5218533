"""Schedules as people see them: one, or a page of them over all deployments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select, tuple_

from shunter_work_pools.contracts.deployments import Schedule, ScheduleView
from shunter_work_pools.contracts.errors import BadRequest, NotFound
from shunter_work_pools.queue import pauses, timetable
from shunter_work_pools.queue.catalog import current, deployment, deployment_row, nearest
from shunter_work_pools.storage.schema import deployments, schedules
from shunter_work_pools.storage.store import Tx

#: Longest page.
PAGE_LIMIT = 500
_CURSOR = re.compile(r"([A-Za-z0-9._-]{1,100})/([A-Za-z0-9._-]{1,100})")


def list_schedules(
    tx: Tx, of: str | None, cursor: str | None, limit: int
) -> tuple[list[ScheduleView], str | None]:
    """One page of schedules, by deployment and name, and the cursor of the next.

    Args:
        of: name of a deployment; None: of all.

    Raises:
        NotFound: there is no such deployment.
        BadRequest: a limit out of bounds, a cursor that is none.
    """
    if not 1 <= limit <= PAGE_LIMIT:
        raise BadRequest(f"limit is {limit}; it must be 1 to {PAGE_LIMIT}")
    by = deployments.c.name, schedules.c.name
    statement = (
        select(schedules, deployments.c.name.label("deployment"))
        .join(deployments, deployments.c.id == schedules.c.deployment_id)
        .where(schedules.c.removed.is_(False), deployments.c.deleted_at.is_(None))
        .order_by(*by)
        .limit(limit + 1)
    )
    if of is not None:
        statement = statement.where(schedules.c.deployment_id == deployment_row(tx, of).id)
    if cursor is not None:
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise BadRequest("the cursor is not one that this server gave out", "Start again without it.")
        statement = statement.where(tuple_(*by) > tuple_(match[1], match[2]))
    rows = tx.conn.execute(statement).all()
    page = rows[:limit]
    more = len(rows) > limit
    return views_of(tx, page), f"{page[-1].deployment}/{page[-1].name}" if more else None


def views_of(tx: Tx, rows: Sequence[Row[Any]]) -> list[ScheduleView]:
    """Schedules as people see them; ``rows`` are of schedules that their deployments still have."""
    targets = current(tx, sorted({row.deployment_id for row in rows}))
    by_name = {deployment_id: timetable.named(target.spec) for deployment_id, target in targets.items()}
    paused = pauses.known(tx, "schedule", [row.id for row in rows if row.paused])
    return [
        timetable.view(
            targets[row.deployment_id].name, by_name[row.deployment_id][row.name], row, paused.get(row.id)
        )
        for row in rows
    ]


def schedule_view(tx: Tx, name: str, schedule: str) -> ScheduleView:
    """One schedule of a deployment.

    Raises:
        NotFound: there is no such deployment, or no such schedule of it.
    """
    return views_of(tx, [find_schedule(tx, name, schedule)[1]])[0]


def find_schedule(tx: Tx, name: str, schedule: str) -> tuple[Schedule, Row[Any]]:
    """What a schedule says and how far it has come (a row of schedules).

    Raises:
        NotFound: there is no such deployment, or no such schedule of it.
    """
    target = deployment(tx, name)
    by_name = timetable.named(target.spec)
    if schedule not in by_name:
        raise NotFound(f"deployment {name!r} has no schedule {schedule!r}", nearest(schedule, list(by_name)))
    wanted = select(schedules).where(schedules.c.deployment_id == target.id, schedules.c.name == schedule)
    return by_name[schedule], tx.conn.execute(wanted).one()
