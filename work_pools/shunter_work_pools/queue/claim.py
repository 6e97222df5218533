"""Claim: waiting runs are granted to agents that can take them, a batch in one transaction.

Order: queue priority, then run priority, then in turn between the deployments (the lane that was served
longest ago first), within one by due time. Only lane heads are looked at, so a blocked lane neither
starves nor slows a free one. On Postgres the rows of limits are locked in sorted order before live
leases are counted, so two claimers cannot over-admit; waiting runs are taken ``SKIP LOCKED``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, delete, func, insert, or_, select, update

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.states import Actor, AttemptState, RunState
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.retries import AVOIDED_FOR
from shunter_work_pools.storage.schema import (
    backfills,
    deployments,
    lanes,
    leases,
    payloads,
    pools,
    queues,
    ready,
    runs,
)
from shunter_work_pools.storage.store import Tx

#: Runs that one transaction grants at the most: nobody waits long for it, and the ids fit a statement.
MOST = 1000


@dataclass
class Offer:
    """What one agent could take now.

    Attributes:
        agent_id: of the agents table.
        session: the life of the daemon that asks.
        pools: ids of the pools it serves.
        queues: names of the queues it serves; empty: all.
        tags: what runs may demand of it: its tags and abilities.
        free: attempts it can take, as it said.
        limit: attempts it may hold at once; those it holds are counted, since what it said may be old by now.
        granted: filled in by :func:`claim`.
    """

    agent_id: int
    session: UUID
    pools: frozenset[int]
    queues: frozenset[str]
    tags: frozenset[str]
    free: int
    limit: int = 100_000
    granted: list[Assignment] = field(default_factory=list)

    def fits(self, head: Row[Any]) -> bool:
        """Whether a run of this lane may go to this agent."""
        return (
            self.free > 0
            and head.pool_id in self.pools
            and (not self.queues or head.queue in self.queues)
            and self.tags.issuperset(head.require.split())
        )


_HEAD_DUE = (
    select(func.min(ready.c.due_at)).where(ready.c.lane_id == lanes.c.id).correlate(lanes).scalar_subquery()
)
_HEADS = (
    select(
        lanes.c.id,
        lanes.c.priority,
        lanes.c.require,
        lanes.c.served_at,
        lanes.c.backfill_id,
        queues.c.id.label("queue_id"),
        queues.c.name.label("queue"),
        queues.c.priority.label("queue_priority"),
        queues.c.limit.label("queue_limit"),
        pools.c.id.label("pool_id"),
        pools.c.name.label("pool"),
        pools.c.limit.label("pool_limit"),
        _HEAD_DUE.label("head"),
    )
    .join(queues, queues.c.id == lanes.c.queue_id)
    .join(pools, pools.c.id == queues.c.pool_id)
    .join(deployments, deployments.c.id == lanes.c.deployment_id)
    .where(
        pools.c.id.in_(bindparam("pools", expanding=True)),
        pools.c.paused.is_(False),
        queues.c.paused.is_(False),
        deployments.c.paused.is_(False),
        bindparam("now") >= _HEAD_DUE,
    )
    .order_by(queues.c.priority.desc(), lanes.c.priority.desc(), lanes.c.served_at, _HEAD_DUE, lanes.c.id)
)
_TAKE = (
    select(ready.c.run_id, ready.c.due_at, ready.c.late, ready.c.avoid_agent_id)
    .where(
        ready.c.lane_id == bindparam("lane"),
        ready.c.due_at <= bindparam("now"),
        or_(
            ready.c.avoid_agent_id.is_(None),
            ready.c.avoid_agent_id != bindparam("only"),
            ready.c.due_at <= bindparam("avoided_until"),
        ),
    )
    .order_by(ready.c.due_at, ready.c.run_id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_UNREADY = delete(ready).where(ready.c.run_id.in_(bindparam("taken", expanding=True)))
_SERVED = update(lanes).where(lanes.c.id == bindparam("lane")).values(served_at=bindparam("at"))
_RUNS = (
    select(
        runs.c.id,
        runs.c.deployment_id,
        deployments.c.name.label("deployment"),
        runs.c.revision,
        runs.c.tags,
        runs.c.scheduled_at,
        runs.c.attempts,
        runs.c.epoch,
        payloads.c.parameters,
    )
    .join(payloads, payloads.c.run_id == runs.c.id)
    .join(deployments, deployments.c.id == runs.c.deployment_id)
    .where(runs.c.id.in_(bindparam("taken", expanding=True)))
)
_ACTIVATE = (
    update(runs)
    .where(
        runs.c.id == bindparam("run"),
        or_(runs.c.state == RunState.SCHEDULED.value, runs.c.state == RunState.RETRYING.value),
    )
    .values(state=RunState.ACTIVE.value, epoch=bindparam("new_epoch"))
)
_GRANT = insert(leases)
_HELD = (
    select(leases.c.agent_id, func.count().label("held"))
    .where(leases.c.agent_id.in_(bindparam("agents", expanding=True)))
    .group_by(leases.c.agent_id)
)


def claim(tx: Tx, offers: list[Offer]) -> int:
    """Grant waiting runs to the agents that offer to take them; how many were granted, ``MOST`` at most.

    Args:
        offers: one per agent; ``granted`` is appended to and ``free`` lowered.
    """
    wanted = sorted({pool for offer in offers if offer.free > 0 for pool in offer.pools})
    if not wanted:
        return 0
    heads: list[Row[Any]] = list(tx.conn.execute(_HEADS, {"pools": wanted, "now": tx.now}))
    if not heads:
        return 0
    _correct(tx, offers)
    room = _Room(tx, heads)
    taken: list[tuple[UUID, Row[Any], Offer, bool]] = []
    for _, level in groupby(heads, key=lambda head: (head.queue_priority, head.priority)):
        _take_in_turn(tx, list(level), offers, room, taken)
        if len(taken) >= MOST or not any(offer.free > 0 for offer in offers):
            break
    if taken:
        _grant(tx, taken)
        # In one order and after everything else: two claims that serve the same lanes never wait in a circle.
        served = sorted({head.id for _, head, *_ in taken})
        tx.conn.execute(_SERVED, [{"lane": lane_id, "at": tx.now} for lane_id in served])
    return len(taken)


def _correct(tx: Tx, offers: list[Offer]) -> None:
    """No offer is larger than the leases of its agent leave: a network may bring an old one again."""
    held = tx.conn.execute(_HELD, {"agents": [offer.agent_id for offer in offers]}).all()
    count = {row.agent_id: row.held for row in held}
    for offer in offers:
        offer.free = min(offer.free, offer.limit - count.get(offer.agent_id, 0))


def _take_in_turn(
    tx: Tx,
    lanes_left: list[Row[Any]],
    offers: list[Offer],
    room: _Room,
    taken: list[tuple[UUID, Row[Any], Offer, bool]],
) -> None:
    """Take runs from lanes of one priority: an equal share each, again while there is room."""
    while lanes_left:
        free = min(sum(max(0, offer.free) for offer in offers), MOST - len(taken))
        if free <= 0:
            return
        share = max(1, free // len(lanes_left))
        gone: list[UUID] = []
        again = []
        for head in lanes_left:
            fitting = [offer for offer in offers if offer.fits(head)]
            free = min(sum(offer.free for offer in fitting), MOST - len(taken))
            most = min(share, room.left(head), free)
            if most <= 0:
                continue
            # What avoids the only one that offers is passed over, not looked at again and again.
            only = fitting[0].agent_id if len(fitting) == 1 else 0
            until = tx.now - AVOIDED_FOR
            wanted = {"lane": head.id, "now": tx.now, "most": most, "only": only, "avoided_until": until}
            rows = tx.conn.execute(_TAKE, wanted).all()
            before = len(gone)
            for row in rows:
                avoid = row.avoid_agent_id if row.due_at > until else None
                possible = [offer for offer in fitting if offer.free > 0 and offer.agent_id != avoid]
                if not possible:
                    continue
                offer = max(possible, key=lambda offer: offer.free)
                offer.free -= 1
                taken.append((row.run_id, head, offer, row.late))
                gone.append(row.run_id)
            room.use(head, len(gone) - before)
            if len(rows) == most:
                again.append(head)
        if not gone:
            return
        tx.conn.execute(_UNREADY, {"taken": gone})
        lanes_left = again


class _Room:
    """How many more live leases the limits of pools, queues and backfills allow."""

    def __init__(self, tx: Tx, heads: list[Row[Any]]) -> None:
        self._left: dict[tuple[str, int], int] = {}
        in_pools = {head.pool_id for head in heads if head.pool_limit is not None}
        in_queues = {head.queue_id for head in heads if head.queue_limit is not None}
        in_backfills = {head.backfill_id for head in heads if head.backfill_id}
        self._limit(tx, "pool", pools.c.id, pools.c.limit, leases.c.pool_id, in_pools)
        self._limit(tx, "queue", queues.c.id, queues.c.limit, leases.c.queue_id, in_queues)
        self._limit(
            tx, "backfill", backfills.c.id, backfills.c.concurrency, leases.c.backfill_id, in_backfills
        )

    def _limit(self, tx: Tx, kind: str, key: Any, limit: Any, column: Any, ids: set[int]) -> None:
        if not ids:
            return
        limits = tx.conn.execute(
            select(key, limit.label("limit"))
            .where(key.in_(ids))
            .order_by(key)
            .with_for_update(key_share=True)  # other claims wait, rows that only refer to it do not
        ).all()
        counted = tx.conn.execute(select(column, func.count()).where(column.in_(ids)).group_by(column)).all()
        used = {row[0]: row[1] for row in counted}
        for row in limits:
            if row.limit is not None:
                self._left[kind, row.id] = row.limit - used.get(row.id, 0)

    def left(self, head: Row[Any]) -> int:
        """Places left for runs of a lane."""
        unlimited = 1_000_000
        return min(
            self._left.get(("pool", head.pool_id), unlimited),
            self._left.get(("queue", head.queue_id), unlimited),
            self._left.get(("backfill", head.backfill_id), unlimited),
        )

    def use(self, head: Row[Any], count: int) -> None:
        """Note places taken."""
        for key in (("pool", head.pool_id), ("queue", head.queue_id), ("backfill", head.backfill_id)):
            if key in self._left:
                self._left[key] -= count


def _grant(tx: Tx, taken: list[tuple[UUID, Row[Any], Offer, bool]]) -> None:
    rows: Sequence[Any] = tx.conn.execute(_RUNS, {"taken": [run_id for run_id, *_ in taken]}).all()
    found = {row.id: row for row in rows}
    lease_rows, run_rows, event_rows = [], [], []
    for run_id, head, offer, _ in taken:
        run = found[run_id]
        attempt, epoch = run.attempts + 1, run.epoch + 1
        lease_rows.append(
            {
                "run_id": run_id,
                "attempt": attempt,
                "epoch": epoch,
                "agent_id": offer.agent_id,
                "session": offer.session,
                "pool_id": head.pool_id,
                "queue_id": head.queue_id,
                "backfill_id": head.backfill_id or None,
                "deployment_id": run.deployment_id,
                "revision": run.revision,
                "state": AttemptState.CLAIMED.value,
                "seq": 0,
                "granted_at": tx.now,
                "cancelling": False,
                "lost": False,
            }
        )
        run_rows.append({"run": run_id, "new_epoch": epoch})
        event_rows.append(
            event_row(run_id, AttemptState.CLAIMED.value, Actor.QUEUE, tx.now, attempt, epoch=epoch)
        )
        offer.granted.append(assignment(tx, run, attempt, epoch, offer.session, head.pool, head.queue))
        tx.changes.runs.add(run_id)
    tx.conn.execute(_ACTIVATE, run_rows)
    tx.conn.execute(_GRANT, lease_rows)
    record(tx, event_rows)


def assignment(
    tx: Tx, run: Row[Any], attempt: int, epoch: int, session: UUID, pool: str, queue: str
) -> Assignment:
    """What an agent needs to launch an attempt; ``run`` is a row of runs with name and parameters."""
    spec = revision_spec(tx, run.deployment_id, run.revision)
    # The parts were validated when they were stored.
    return Assignment.model_construct(
        run=run.id,
        attempt=attempt,
        epoch=epoch,
        session=session,
        deployment=run.deployment,
        revision=run.revision,
        pool=pool,
        queue=queue,
        tags=run.tags,
        parameters=run.parameters,
        scheduled_at=moment(run.scheduled_at),
        work=spec.work,
        exclusive=spec.exclusive,
    )


_DUE = select(select(ready.c.run_id).where(ready.c.due_at <= bindparam("now")).exists())


def is_due(tx: Tx) -> bool:
    """Whether any run waits that is due: if none does, there is nothing to claim. Reads only, and little."""
    return bool(tx.conn.scalar(_DUE, {"now": tx.now}))


def due_in(tx: Tx) -> float | None:
    """Seconds until the next waiting run becomes due, by the store's clock, if any is due later than now.

    Or until the next one may go to the agent that it avoids.
    """
    due: Micros | None = tx.conn.scalar(select(func.min(ready.c.due_at)).where(ready.c.due_at > tx.now))
    avoiding: Micros | None = tx.conn.scalar(
        select(func.min(ready.c.due_at)).where(
            ready.c.avoid_agent_id.is_not(None), ready.c.due_at > tx.now - AVOIDED_FOR
        )
    )
    moments = [due, None if avoiding is None else avoiding + AVOIDED_FOR]
    return min(((at - tx.now) / 1_000_000 for at in moments if at is not None), default=None)
