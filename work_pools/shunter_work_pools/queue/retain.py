"""Retain: which ended runs, logs and events need not be kept any more, and how they go, a few at a time.

Nothing of a run that has not ended is ever deleted. Of a deployment that was deleted everything goes, the
deployment last. Logs are files: whoever calls this deletes them first and the rows afterwards, so that a crash
in between leaves a run to be deleted and not a file that nobody knows of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Row,
    and_,
    bindparam,
    delete,
    exists,
    false,
    or_,
    select,
    true,
    tuple_,
    update,
)

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import Keep
from shunter_work_pools.contracts.errors import Conflict, NotFound
from shunter_work_pools.contracts.states import RUN_ENDS, RunState
from shunter_work_pools.queue.ids import lowest_id
from shunter_work_pools.storage.schema import (
    artifacts,
    attempts,
    backfills,
    deployments,
    events,
    journals,
    lane_limits,
    lanes,
    manifests,
    payloads,
    pools,
    queues,
    revisions,
    run_tags,
    runs,
    schedules,
    task_runs,
)
from shunter_work_pools.storage.store import Tx

#: Runs that one transaction deletes at the most: claims wait for it, a few milliseconds.
BATCH = 100
#: Task runs, likewise.
TASKS_BATCH = 1000
_ENDS = [state.value for state in RUN_ENDS]
_NONE = UUID(int=0)

#: What of ended runs may go before the runs themselves.
Part = Literal["logs", "events"]


@dataclass(frozen=True)
class Rule:
    """What is kept of one deployment.

    Attributes:
        deleted: the deployment is: nothing is kept.
        logs_after, events_after: runs up to these were done.
    """

    deployment_id: int
    deleted: bool
    keep: Keep
    logs_after: UUID | None
    events_after: UUID | None

    def limits(self, part: Part) -> tuple[int | None, float | None]:
        """How many, and for how many seconds, a part is kept."""
        keep = self.keep
        return (keep.logs, keep.logs_for) if part == "logs" else (keep.events, keep.events_for)

    def after(self, part: Part) -> UUID | None:
        """The cursor of a part."""
        return self.logs_after if part == "logs" else self.events_after


@dataclass(frozen=True)
class Doomed:
    """A run, or the logs of one, to be deleted; ``attempts`` have ended and may have left logs."""

    run_id: UUID
    attempts: int


def rules(tx: Tx, default: Keep) -> list[Rule]:
    """The deployments of which something may have to go.

    Args:
        default: where a deployment does not say.
    """
    current = (revisions.c.deployment_id == deployments.c.id) & (revisions.c.number == deployments.c.revision)
    statement = select(
        deployments.c.id,
        deployments.c.deleted_at,
        deployments.c.logs_kept_after,
        deployments.c.events_kept_after,
        revisions.c.spec["keep"].label("keep"),
    ).join(revisions, current)
    server = default.model_dump(exclude_none=True)
    found = []
    for row in tx.conn.execute(statement):
        own = {name: value for name, value in (row.keep or {}).items() if value is not None}
        if own or server or row.deleted_at is not None:
            keep = Keep.model_validate(server | own, extra="ignore")
            deleted = row.deleted_at is not None
            found.append(Rule(row.id, deleted, keep, row.logs_kept_after, row.events_kept_after))
    return found


# ---- runs


def doomed_runs(tx: Tx, rule: Rule) -> list[Doomed]:
    """Up to ``BATCH`` ended runs that need not be kept, oldest first."""
    due = true() if rule.deleted else _due(tx, rule, rule.keep.runs, rule.keep.runs_for)
    return _doomed(tx, rule, due)


def _due(tx: Tx, rule: Rule, count: int | None, age: float | None) -> ColumnElement[bool]:
    """Condition of the ended runs that neither their age nor their place in line keeps."""
    due: list[ColumnElement[bool]] = []
    if age is not None:
        before = tx.now - round(age * 1_000_000)
        # What was made later has ended later, too: an index finds the end of it.
        due.append(and_(runs.c.ended_at < before, runs.c.id < UUID(int=lowest_id(max(0, before)))))
    if count is not None:
        beyond = tx.conn.scalar(
            select(runs.c.id)
            .where(runs.c.deployment_id == rule.deployment_id, runs.c.state.in_(_ENDS))
            .order_by(runs.c.id.desc())
            .offset(count)
            .limit(1)
        )
        if beyond is not None:
            due.append(runs.c.id <= beyond)
    return or_(*due) if due else false()


def _doomed(tx: Tx, rule: Rule, due: ColumnElement[bool], *more: ColumnElement[bool]) -> list[Doomed]:
    statement = (
        select(runs.c.id, runs.c.attempts)
        .where(runs.c.deployment_id == rule.deployment_id, runs.c.state.in_(_ENDS), due, *more)
        .order_by(runs.c.id)
        .limit(BATCH)
    )
    return [Doomed(row.id, row.attempts) for row in tx.conn.execute(statement)]


_DROP_TAG = delete(run_tags).where(
    run_tags.c.tag == bindparam("gone_tag"), run_tags.c.run_id == bindparam("gone_run")
)


def delete_runs(tx: Tx, run_ids: Sequence[UUID]) -> int:
    """Delete ended runs with all that belongs to them but their log files; how many.

    One that was taken up again meanwhile stays, without the logs of its past attempts.
    """
    locked = select(runs.c.id, runs.c.tags, runs.c.state).where(runs.c.id.in_(run_ids)).order_by(runs.c.id)
    rows = tx.conn.execute(locked.with_for_update()).all()
    note_logs_deleted(tx, [row.id for row in rows if row.state not in _ENDS])
    ended = [row for row in rows if row.state in _ENDS]
    if not ended:
        return 0
    ids = [row.id for row in ended]
    tags = [{"gone_tag": tag, "gone_run": row.id} for row in ended for tag in row.tags]
    if tags:
        tx.conn.execute(_DROP_TAG, tags)
    for table in (payloads, attempts, manifests, events, journals, task_runs, artifacts):
        tx.conn.execute(delete(table).where(table.c.run_id.in_(ids)))
    tx.conn.execute(delete(runs).where(runs.c.id.in_(ids)))
    tx.changes.runs.update(ids)
    return len(ids)


def ended_of(tx: Tx, run_ids: Sequence[UUID]) -> list[UUID]:
    """Those of some runs that have ended."""
    return list(tx.conn.scalars(select(runs.c.id).where(runs.c.id.in_(run_ids), runs.c.state.in_(_ENDS))))


def completed_of(tx: Tx, run_ids: Sequence[UUID]) -> list[UUID]:
    """Those of some runs that have completed."""
    completed = runs.c.state == RunState.COMPLETED.value
    return list(tx.conn.scalars(select(runs.c.id).where(runs.c.id.in_(run_ids), completed)))


def delete_tasks(tx: Tx, run_ids: Sequence[UUID]) -> int:
    """Delete up to ``TASKS_BATCH`` task runs of runs that have ended; how many."""
    some = (
        select(task_runs.c.run_id, task_runs.c.key)
        .where(task_runs.c.run_id.in_(ended_of(tx, run_ids)))
        .limit(TASKS_BATCH)
    )
    gone = tx.conn.execute(delete(task_runs).where(tuple_(task_runs.c.run_id, task_runs.c.key).in_(some)))
    return int(gone.rowcount)


def deletable(tx: Tx, run_id: UUID) -> Doomed:
    """A run that somebody wants deleted.

    Raises:
        NotFound: there is none.
        Conflict: it has not ended.
    """
    statement = select(runs.c.id, runs.c.state, runs.c.attempts).where(runs.c.id == run_id)
    row = tx.conn.execute(statement).one_or_none()
    if row is None:
        raise NotFound(f"there is no run {run_id}", "See `shunter run list`.")
    if row.state not in _ENDS:
        raise Conflict(f"run {run_id} has not ended: {row.state}", "Cancel it first, and wait for its end.")
    return Doomed(row.id, row.attempts)


# ---- logs and events of runs that are kept


def _due_part(tx: Tx, rule: Rule, part: Part) -> ColumnElement[bool]:
    return and_(_due(tx, rule, *rule.limits(part)), runs.c.id > (rule.after(part) or _NONE))


def doomed_parts(tx: Tx, rule: Rule, part: Part) -> list[Doomed]:
    """Up to ``BATCH`` ended runs whose logs or events need not be kept, and are still there."""
    if part == "logs":
        there = exists().where(attempts.c.run_id == runs.c.id, attempts.c.log_deleted.is_(False))
    else:
        there = exists().where(events.c.run_id == runs.c.id)
    return _doomed(tx, rule, _due_part(tx, rule, part), there.correlate(runs))


def done_until(tx: Tx, rule: Rule, part: Part) -> UUID | None:
    """With nothing left to do: up to which run everything is done; None: no further than before.

    A run that has not ended holds the cursor back: its turn is still to come.
    """
    due = _due_part(tx, rule, part)
    mine = runs.c.deployment_id == rule.deployment_id
    ended = select(runs.c.id).where(mine, runs.c.state.in_(_ENDS), due)
    last = tx.conn.scalar(ended.order_by(runs.c.id.desc()).limit(1))
    if last is None:
        return None
    after = runs.c.id > (rule.after(part) or _NONE)
    open_ = or_(runs.c.state.not_in(_ENDS), ~due)
    first = tx.conn.scalar(
        select(runs.c.id).where(mine, after, runs.c.id < last, open_).order_by(runs.c.id).limit(1)
    )
    if first is None:
        return UUID(int=last.int)
    before = select(runs.c.id).where(mine, after, runs.c.id < first).order_by(runs.c.id.desc()).limit(1)
    found: UUID | None = tx.conn.scalar(before)
    return found


def note_logs_deleted(tx: Tx, run_ids: Sequence[UUID]) -> None:
    """Note that the logs of all ended attempts of these runs are gone."""
    if run_ids:
        tx.conn.execute(update(attempts).where(attempts.c.run_id.in_(run_ids)).values(log_deleted=True))
        tx.changes.runs.update(run_ids)


def delete_events(tx: Tx, run_ids: Sequence[UUID]) -> None:
    """Delete the events of runs that have ended."""
    ended = list(tx.conn.scalars(select(runs.c.id).where(runs.c.id.in_(run_ids), runs.c.state.in_(_ENDS))))
    tx.conn.execute(delete(events).where(events.c.run_id.in_(ended)))


def move_cursor(tx: Tx, rule: Rule, part: Part, to: UUID) -> None:
    """Note up to which run a part is done, unless a run was taken up again meanwhile."""
    column: Column[Any] = deployments.c.logs_kept_after if part == "logs" else deployments.c.events_kept_after
    tx.conn.execute(
        update(deployments)
        .where(deployments.c.id == rule.deployment_id, column.is_not_distinct_from(rule.after(part)))
        .values({column: to})
    )


def move_cursors_back(tx: Tx, run: Row[Any]) -> None:
    """An old run is taken up again: what it will leave has its turn, too; ``run`` is a row of runs."""
    for column in (deployments.c.logs_kept_after, deployments.c.events_kept_after):
        tx.conn.execute(
            update(deployments)
            .where(deployments.c.id == run.deployment_id, column >= run.id)
            .values({column: None})
        )


# ---- events of deployments, and what is deleted


def delete_deployment_events(tx: Tx, rule: Rule) -> int:
    """Delete up to ``BATCH`` old events that belong to the deployment and to no run; how many."""
    of_it = (events.c.run_id.is_(None), events.c.deployment_id == rule.deployment_id)
    statement = select(events.c.id).where(*of_it).order_by(events.c.id).limit(BATCH)
    if not rule.deleted:
        if rule.keep.events_for is None:
            return 0
        before: Micros = tx.now - round(rule.keep.events_for * 1_000_000)
        statement = statement.where(events.c.at < before)
    ids = list(tx.conn.scalars(statement))
    if ids:
        tx.conn.execute(delete(events).where(*of_it, events.c.id.in_(ids)))
    return len(ids)


def finish_deployment(tx: Tx, deployment_id: int) -> bool:
    """Delete what is left of a deleted deployment once it has neither runs nor events; whether it could."""
    tx.conn.execute(select(deployments.c.id).where(deployments.c.id == deployment_id).with_for_update())
    for there in (
        select(runs.c.id).where(runs.c.deployment_id == deployment_id),
        select(events.c.id).where(events.c.run_id.is_(None), events.c.deployment_id == deployment_id),
    ):
        if tx.conn.execute(there.limit(1)).first() is not None:
            return False
    its_schedules = select(schedules.c.id).where(schedules.c.deployment_id == deployment_id)
    tx.conn.execute(delete(backfills).where(backfills.c.schedule_id.in_(its_schedules)))
    its_lanes = select(lanes.c.id).where(lanes.c.deployment_id == deployment_id)
    tx.conn.execute(delete(lane_limits).where(lane_limits.c.lane_id.in_(its_lanes)))
    for table in (schedules, lanes, revisions):
        tx.conn.execute(delete(table).where(table.c.deployment_id == deployment_id))
    tx.conn.execute(delete(deployments).where(deployments.c.id == deployment_id))
    return True


def deleted_pools(tx: Tx) -> list[int]:
    """Deleted pools that no run refers to any more."""
    none_of_it = ~exists().where(runs.c.pool_id == pools.c.id).correlate(pools)
    return list(tx.conn.scalars(select(pools.c.id).where(pools.c.deleted_at.is_not(None), none_of_it)))


def finish_pool(tx: Tx, pool_id: int) -> None:
    """Delete what is left of a deleted pool that no run refers to."""
    its_queues = select(queues.c.id).where(queues.c.pool_id == pool_id)
    its_lanes = select(lanes.c.id).where(lanes.c.queue_id.in_(its_queues))
    tx.conn.execute(delete(lane_limits).where(lane_limits.c.lane_id.in_(its_lanes)))
    tx.conn.execute(delete(lanes).where(lanes.c.queue_id.in_(its_queues)))
    tx.conn.execute(delete(queues).where(queues.c.pool_id == pool_id))
    tx.conn.execute(delete(pools).where(pools.c.id == pool_id))
