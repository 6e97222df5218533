"""What people ask of runs: cancel one, skip what waits, let one go first, try one again."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row, delete, insert, select, update

from shunter_work_pools.contracts.deployments import Skipped
from shunter_work_pools.contracts.errors import Conflict, NotFound
from shunter_work_pools.contracts.states import RUN_ENDS, Actor, AttemptState, Cause, RunState
from shunter_work_pools.queue.catalog import deployment_row, revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.lanes import all_limits, lane_of
from shunter_work_pools.queue.retain import move_cursors_back
from shunter_work_pools.queue.routing import Router, marked
from shunter_work_pools.storage.schema import agents, deployments, leases, pools, queues, ready, runs
from shunter_work_pools.storage.store import Tx

#: Runs that one transaction ends at the most.
BATCH = 500


def cancel(tx: Tx, run_id: UUID) -> None:
    """End a waiting run now; ask the agent of an active one to stop it. Twice is as good as once.

    Raises:
        NotFound: there is no such run.
        Conflict: it has ended otherwise.
    """
    # Ready, leases, runs, as claims and reports lock them: two of them cannot wait for each other.
    tx.conn.execute(select(ready.c.run_id).where(ready.c.run_id == run_id).with_for_update())
    lease = tx.conn.execute(select(leases).where(leases.c.run_id == run_id).with_for_update()).one_or_none()
    run = tx.conn.execute(select(runs).where(runs.c.id == run_id).with_for_update()).one_or_none()
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    state = RunState(run.state)
    if state is RunState.CANCELLED:
        return
    if state in RUN_ENDS:
        raise Conflict(f"run {run_id} has ended already: {state.value}", "There is nothing left to cancel.")
    tx.changes.runs.add(run_id)
    if state is RunState.ACTIVE:
        if lease is None:  # it was granted between the two reads: this request comes again
            lease = tx.conn.execute(select(leases).where(leases.c.run_id == run_id).with_for_update()).one()
        if lease.cancelling:
            return
        tx.conn.execute(
            update(leases)
            .where(leases.c.run_id == run_id)
            .values(cancelling=True, state=AttemptState.CANCELLING.value)
        )
        record(tx, [event_row(run_id, AttemptState.CANCELLING.value, Actor.USER, tx.now, lease.attempt)])
        tx.changes.agents.add(lease.agent_id)
        return
    _end_waiting(tx, run_id, Cause.CANCELLED)


def skip(tx: Tx, run_id: UUID) -> None:
    """End a waiting run now, as skipped. Twice is as good as once.

    Raises:
        NotFound: there is no such run.
        Conflict: it is active, or has ended otherwise.
    """
    tx.conn.execute(select(ready.c.run_id).where(ready.c.run_id == run_id).with_for_update())
    run = tx.conn.execute(select(runs).where(runs.c.id == run_id).with_for_update()).one_or_none()
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    state = RunState(run.state)
    if state is RunState.CANCELLED and run.cause == Cause.SKIPPED.value:
        return
    if state in RUN_ENDS:
        raise Conflict(f"run {run_id} has ended already: {state.value}", "There is nothing left to skip.")
    if state is RunState.ACTIVE:
        raise Conflict(f"run {run_id} does not wait any more, it is active", "Cancel it to have it stopped.")
    _end_waiting(tx, run_id, Cause.SKIPPED)
    tx.changes.runs.add(run_id)


def set_priority(tx: Tx, run_id: UUID, priority: int) -> None:
    """Change the priority of a waiting run: it goes to the lane of that one, at the place of its due time.

    Attempts to come keep it.

    Raises:
        NotFound: there is no such run.
        Conflict: it is active, or has ended.
    """
    # Before anything is locked: who makes a limit, and moves runs for it, does so alone.
    known = all_limits(tx)
    tx.conn.execute(select(ready.c.run_id).where(ready.c.run_id == run_id).with_for_update())
    run = tx.conn.execute(select(runs).where(runs.c.id == run_id).with_for_update()).one_or_none()
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    state = RunState(run.state)
    if state in RUN_ENDS:
        raise Conflict(
            f"run {run_id} has ended already: {state.value}", "Priorities decide which run is started first."
        )
    if state is RunState.ACTIVE:
        raise Conflict(
            f"run {run_id} does not wait any more, it is active",
            "Priorities decide which run is started first.",
        )
    if priority == run.priority:
        return
    _lock_waiting(tx, run_id)
    if run.queue_id is not None:
        spec = revision_spec(tx, run.deployment_id, run.revision)
        lane_id = lane_of(tx, run, spec, run.queue_id, priority=priority, known=known)
        tx.conn.execute(update(ready).where(ready.c.run_id == run_id).values(lane_id=lane_id))
        tx.changes.pools.add(run.pool_id)
    tx.conn.execute(update(runs).where(runs.c.id == run_id).values(priority=priority))
    record(tx, [event_row(run_id, "priority", Actor.USER, tx.now, old=run.priority, new=priority)])
    tx.changes.runs.add(run_id)


def _lock_waiting(tx: Tx, run_id: UUID) -> None:
    """Lock the row of ``ready`` of a run that waits: it may have come to wait just before.

    Raises:
        Conflict: somebody claims it already.
    """
    mine = select(ready.c.run_id).where(ready.c.run_id == run_id).with_for_update(skip_locked=True)
    if tx.conn.scalar(mine) is None:
        raise Conflict(f"run {run_id} is being claimed at this moment", "Ask again.")


def _end_waiting(tx: Tx, run_id: UUID, cause: Cause) -> None:
    _lock_waiting(tx, run_id)
    _cancelled(tx, [run_id], cause)


def _cancelled(tx: Tx, waiting: list[UUID], cause: Cause) -> None:
    """End runs whose rows of ``ready`` are locked."""
    tx.conn.execute(delete(ready).where(ready.c.run_id.in_(waiting)))
    tx.conn.execute(
        update(runs)
        .where(runs.c.id.in_(waiting))
        .values(state=RunState.CANCELLED.value, cause=cause.value, ended_at=tx.now)
    )
    state = RunState.CANCELLED.value
    record(tx, [event_row(run_id, state, Actor.USER, tx.now, cause=cause.value) for run_id in waiting])
    tx.changes.ended[state, cause.value] += len(waiting)


def flush_late(tx: Tx, name: str) -> Skipped:
    """End late runs of a deployment that wait, as skipped, the oldest ``BATCH`` of them.

    Raises:
        NotFound: there is no such deployment.
    """
    target = deployment_row(tx, name)
    waiting = list(
        tx.conn.scalars(
            select(ready.c.run_id)
            .join(runs, runs.c.id == ready.c.run_id)
            .where(runs.c.deployment_id == target.id, runs.c.late, ready.c.late)
            .order_by(ready.c.due_at, ready.c.run_id)
            .limit(BATCH)
            .with_for_update(of=ready, skip_locked=True)
        )
    )
    if waiting:
        _cancelled(tx, waiting, Cause.SKIPPED)
        tx.changes.runs.update(waiting)
    return Skipped(runs=len(waiting), more=len(waiting) == BATCH)


def retry(tx: Tx, run_id: UUID) -> None:
    """Put an ended run back to Scheduled, due now: the same run, its next attempt.

    Its retry policy counts from anew.

    Raises:
        NotFound: there is no such run.
        Conflict: it has not ended, it is Completed, or its deployment was deleted.
    """
    run = tx.conn.execute(select(runs).where(runs.c.id == run_id).with_for_update()).one_or_none()
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    state = RunState(run.state)
    if state is RunState.COMPLETED:
        raise Conflict(f"run {run_id} is Completed", "Start a new run instead.")
    if state not in RUN_ENDS:
        raise _not_ended(tx, run_id, state)
    if tx.conn.scalar(select(deployments.c.deleted_at).where(deployments.c.id == run.deployment_id)):
        raise Conflict(f"the deployment of run {run_id} was deleted", "Deploy it again and start a new run.")
    move_cursors_back(tx, run)
    tx.conn.execute(
        update(runs)
        .where(runs.c.id == run_id)
        .values(
            state=RunState.SCHEDULED.value,
            cause=None,
            message=None,
            ended_at=None,
            attempts_forgiven=run.attempts,
        )
    )
    lane_id = None
    spec = revision_spec(tx, run.deployment_id, run.revision)
    # A run that had no place when it ended may have one by now, and one whose place was deleted another.
    pool_id, queue_id = _place_left(tx, run) or Router(tx).place(spec, run.tags) or (None, None)
    if pool_id is not None and queue_id is not None:
        lane_id = lane_of(tx, run, spec, queue_id)
        tx.changes.pools.add(pool_id)
    tx.conn.execute(update(runs).where(runs.c.id == run_id).values(pool_id=pool_id, queue_id=queue_id))
    tx.conn.execute(insert(ready).values(run_id=run_id, lane_id=lane_id, due_at=tx.now, late=marked(run)))
    record(tx, [event_row(run_id, RunState.SCHEDULED.value, Actor.USER, tx.now, retry=True)])
    tx.changes.runs.add(run_id)


def _not_ended(tx: Tx, run_id: UUID, state: RunState) -> Conflict:
    lost = tx.conn.execute(
        select(agents.c.name)
        .join(leases, leases.c.agent_id == agents.c.id)
        .where(leases.c.run_id == run_id, leases.c.lost)
    ).scalar_one_or_none()
    if lost is None:
        return Conflict(f"run {run_id} has not ended: {state.value}", "Wait for its end, or cancel it first.")
    return Conflict(
        f"run {run_id} has not ended: its agent {lost} is lost, and may be working on it still",
        f"Wait until the agent is back or given up; if its machine is gone for good: `shunter agent remove {lost}`.",
    )


def _place_left(tx: Tx, run: Row[Any]) -> tuple[int, int] | None:
    """Pool and queue of a run, if both are there still."""
    there = (pools.c.deleted_at.is_(None), queues.c.deleted_at.is_(None), queues.c.id == run.queue_id)
    joined = select(queues.c.id).join(pools, pools.c.id == queues.c.pool_id).where(*there)
    return None if tx.conn.scalar(joined) is None else (run.pool_id, run.queue_id)
