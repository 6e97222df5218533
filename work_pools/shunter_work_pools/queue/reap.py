"""Reap: mark what is late or lost, and act on what was given up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, delete, select, update

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.states import Actor, AttemptState, Cause
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.lanes import hold_limits
from shunter_work_pools.queue.report import Retry, end_attempt, end_cancelled
from shunter_work_pools.storage.schema import agents, leases, limit_starts, limits, ready, runs
from shunter_work_pools.storage.store import Tx

#: Rows that one transaction touches at the most, so that claims never wait long for it.
BATCH = 500


def late_waits(tx: Tx, due_before: Micros) -> bool:
    """Whether there is anything for :func:`mark_late`; reads only, so that idling writes nothing."""
    found = select(ready.c.run_id).where(ready.c.late.is_(False), ready.c.due_at < due_before).limit(1)
    return tx.conn.scalar(found) is not None


def silent_holds(tx: Tx, seen_before: Micros) -> bool:
    """Whether an agent not heard of since ``seen_before`` holds anything; reads only."""
    found = (
        select(leases.c.run_id)
        .join(agents, agents.c.id == leases.c.agent_id)
        .where(agents.c.last_seen_at < seen_before)
        .limit(1)
    )
    return tx.conn.scalar(found) is not None


def mark_late(tx: Tx, due_before: Micros) -> int:
    """Mark runs that should have started before ``due_before`` and still wait; how many."""
    late = list(
        tx.conn.scalars(
            select(ready.c.run_id)
            .where(ready.c.late.is_(False), ready.c.due_at < due_before)
            .order_by(ready.c.due_at)
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        )
    )
    if late:
        tx.conn.execute(update(ready).where(ready.c.run_id.in_(late)).values(late=True))
        tx.conn.execute(update(runs).where(runs.c.id.in_(late)).values(late=True))
        record(tx, [event_row(run_id, "late", Actor.REAPER, tx.now) for run_id in late])
        tx.changes.runs.update(late)
    return len(late)


def mark_lost(tx: Tx, seen_before: Micros) -> int:
    """Mark leases of agents not heard of since ``seen_before``; how many."""
    rows = tx.conn.execute(
        select(leases.c.run_id, leases.c.attempt, agents.c.name)
        .join(agents, agents.c.id == leases.c.agent_id)
        .where(leases.c.lost.is_(False), agents.c.last_seen_at < seen_before)
        .order_by(leases.c.run_id)
        .limit(BATCH)
        .with_for_update(of=leases, skip_locked=True)
    ).all()
    if rows:
        tx.conn.execute(
            update(leases).where(leases.c.run_id.in_([row.run_id for row in rows])).values(lost=True)
        )
        record(
            tx,
            [
                event_row(row.run_id, "lost", Actor.REAPER, tx.now, row.attempt, agent=row.name)
                for row in rows
            ],
        )
        tx.changes.runs.update(row.run_id for row in rows)
    return len(rows)


def give_up(tx: Tx, seen_before: Micros) -> int:
    """Act by ``on_lost`` on leases of agents not heard of since ``seen_before``; how many ended."""
    ended, after = 0, UUID(int=0)
    hold_limits(tx)
    while True:
        rows = tx.conn.execute(
            select(leases, agents.c.name.label("agent"))
            .join(agents, agents.c.id == leases.c.agent_id)
            .where(leases.c.lost, agents.c.last_seen_at < seen_before, leases.c.run_id > after)
            .order_by(leases.c.run_id)
            .limit(BATCH)
            .with_for_update(of=leases, skip_locked=True)
        ).all()
        ended += _give_up(tx, rows)
        # Those that wait for ever must not hide the others behind them.
        if ended or len(rows) < BATCH:
            return ended
        after = rows[-1].run_id


def _give_up(tx: Tx, rows: Sequence[Row[Any]]) -> int:
    ended = 0
    for lease in rows:
        spec = revision_spec(tx, lease.deployment_id, lease.revision)
        if spec.on_lost == "wait" and not lease.cancelling:
            continue
        doubt = (
            "it had ended by itself" if spec.exclusive else "whether the work goes on there cannot be known"
        )
        end_lost(tx, lease, spec, f"agent {lease.agent} has been silent for too long; {doubt}")
        ended += 1
    return ended


def end_lost(tx: Tx, lease: Row[Any], spec: DeploymentSpec, message: str) -> None:
    """End an attempt whose agent is gone, as ``on_lost`` says; where that says to wait, as Crashed.

    Args:
        lease: with ``agent``, the agent's name.
        spec: of the run's revision.
    """
    if lease.cancelling:
        end_cancelled(tx, lease, Actor.REAPER)
        return
    retry: Retry = "never"
    if spec.on_lost == "retry":
        retry = "always"
    elif Cause.AGENT_LOST in spec.retries.on:
        retry = "policy"  # it names this very cause
    end_attempt(
        tx, lease, AttemptState.CRASHED, Actor.REAPER, cause="agent_lost", message=message, retry=retry
    )


def from_the_future(tx: Tx) -> None:
    """Agents last heard of in what is the future now, as the clock was set back: they were heard of just now."""
    ahead = tx.conn.scalar(select(agents.c.id).where(agents.c.last_seen_at > tx.now).limit(1))
    if ahead is not None:
        tx.conn.execute(update(agents).where(agents.c.last_seen_at > tx.now).values(last_seen_at=tx.now))
    # And starts that seem to be ahead hold no others back for longer than a rate's time.
    tx.conn.execute(delete(limit_starts).where(limit_starts.c.at > tx.now))
    latest = tx.now + limits.c.rate_seconds * 1_000_000
    tx.conn.execute(update(limits).where(limits.c.full_until > latest).values(full_until=tx.now))
