"""Status: one look at everything; its cost does not depend on how much has ended well.

Counts of what lives come from the hot tables; what failed has an index of its own.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.sql.expression import TextClause

from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import ServerInfo
from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import ScheduleView
from shunter_work_pools.contracts.runs import Run
from shunter_work_pools.contracts.states import RunState
from shunter_work_pools.contracts.status import Status
from shunter_work_pools.queue import pauses, schedule_views, views
from shunter_work_pools.storage.migrate import HEAD
from shunter_work_pools.storage.schema import FAILED, lanes, leases, ready, runs, schedules
from shunter_work_pools.storage.store import Tx
from shunter_work_pools.version import version

#: Of each list so many are shown.
SHOWN = 10
_DAY: Micros = 86_400 * 1_000_000


def server_info(tx: Tx, store: str, started_at: datetime) -> ServerInfo:
    """What a server says of itself.

    Args:
        store: kind of its store.
        started_at: when it was started.
    """
    if tx.postgres:
        size = tx.conn.scalar(text("SELECT pg_database_size(current_database())"))
    else:
        size = tx.conn.scalar(text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"))
    return ServerInfo(
        version=version(),
        protocol=PROTOCOL,
        server_time=moment(tx.now),
        store=store,
        pause=pauses.known(tx, "server").get(pauses.SERVER),
        started_at=started_at,
        schema_version=HEAD,
        database_bytes=size,
    )


def status(tx: Tx, server: ServerInfo, since: datetime | None, lost_after: float) -> Status:
    """What runs, what is late, what failed, which agents there are.

    Args:
        since: failures since then; None: a day ago.
        lost_after: seconds of silence after which an agent counts as lost.
    """
    after = tx.now - _DAY if since is None else micros(since)
    live, upcoming = _live(tx)
    return Status.model_construct(
        server=server,
        since=moment(after),
        live=live,
        upcoming=upcoming,
        late=late(tx),
        failed=tx.conn.scalar(select(func.count()).select_from(runs).where(*_failed_since(after))) or 0,
        active_runs=_active_runs(tx),
        late_runs=_late_runs(tx),
        failed_runs=_failed_runs(tx, after),
        agents=views.list_agents(tx, lost_after),
        pools=views.list_pools(tx, lost_after),
        next_slots=_next_slots(tx),
    )


def _waiting(tx: Tx, *conditions: ColumnElement[bool]) -> int:
    return tx.conn.scalar(select(func.count()).select_from(ready).where(*conditions)) or 0


def _live(tx: Tx) -> tuple[dict[str, int], int]:
    """Counts by shown state, and of the runs whose time has not come."""
    retrying = dict.fromkeys((True, False), 0)
    statement = (
        select((ready.c.due_at <= tx.now).label("due"), func.count())
        .select_from(runs)
        .join(ready, ready.c.run_id == runs.c.id)
        .where(runs.c.state == RunState.RETRYING.value)
        .group_by("due")
    )
    for due, count in tx.conn.execute(statement):
        retrying[bool(due)] = count
    live = {
        RunState.SCHEDULED.value: _waiting(tx, ready.c.due_at <= tx.now) - retrying[True],
        RunState.RETRYING.value: sum(retrying.values()),
    }
    active = select(leases.c.state, func.count()).group_by(leases.c.state)
    live |= {row[0]: row[1] for row in tx.conn.execute(active)}
    upcoming = _waiting(tx, ready.c.due_at > tx.now) - retrying[False]
    return {state: count for state, count in live.items() if count}, upcoming


def late(tx: Tx) -> int:
    """How many waiting runs are late: all with the mark, less backfills', which have it although they never are."""
    in_lane = select(func.count()).where(ready.c.lane_id == lanes.c.id).correlate(lanes).scalar_subquery()
    placed = tx.conn.scalar(select(func.sum(in_lane)).where(lanes.c.backfill_id != 0))
    unplaced = tx.conn.scalar(
        select(func.count())
        .select_from(ready)
        .join(runs, runs.c.id == ready.c.run_id)
        .where(ready.c.lane_id.is_(None), runs.c.backfill_id.is_not(None))
    )
    return _waiting(tx, ready.c.late) - int(placed or 0) - (unplaced or 0)


def _failed_since(after: Micros) -> tuple[TextClause, ColumnElement[bool]]:
    return text(FAILED), runs.c.ended_at >= after


def _active_runs(tx: Tx) -> list[Run]:
    began = func.coalesce(leases.c.started_at, leases.c.granted_at)
    statement = select(leases.c.run_id).order_by(began, leases.c.run_id).limit(SHOWN)
    return views.runs_of(tx, list(tx.conn.scalars(statement)))


def _late_runs(tx: Tx) -> list[Run]:
    statement = (
        select(ready.c.run_id)
        .join(runs, runs.c.id == ready.c.run_id)
        .where(ready.c.late, runs.c.late)
        .order_by(ready.c.due_at, ready.c.run_id)
        .limit(SHOWN)
    )
    return views.runs_of(tx, list(tx.conn.scalars(statement)))


def _failed_runs(tx: Tx, after: Micros) -> list[Run]:
    statement = select(runs.c.id).where(*_failed_since(after)).order_by(runs.c.ended_at.desc()).limit(SHOWN)
    return views.runs_of(tx, list(tx.conn.scalars(statement)))


def _next_slots(tx: Tx) -> list[ScheduleView]:
    statement = (
        select(schedules)
        .where(schedules.c.next_at.is_not(None))
        .order_by(schedules.c.next_at, schedules.c.id)
        .limit(SHOWN)
    )
    return schedule_views.views_of(tx, tx.conn.execute(statement).all())
