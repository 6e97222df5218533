"""Hand-over: attempts of agents that fell silent go on under other agents that reach the same work.

It is looked at again and again for as long as a lease is lost, since somebody who could take it over may come, or
get room, at any moment. The work itself is not touched: the new agent finds it by the attempt's name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, String, bindparam, cast, select, tuple_, update

from shunter_work_pools.contracts.agents import Held, Report
from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.explanations import AgentReason
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.lanes import need_text
from shunter_work_pools.queue.standing import Kind, Standing, standings
from shunter_work_pools.storage.schema import agents, leases, pools, queues, runs
from shunter_work_pools.storage.store import Tx

#: Leases of one kind that are handed over at one look, at the most.
BATCH = 500

_REACHING = cast(agents.c.reaches, String) != "{}"
#: What leases have in common that whoever could take one over could take all of.
_GROUP = (
    leases.c.agent_id,
    leases.c.pool_id,
    leases.c.queue_id,
    leases.c.deployment_id,
    leases.c.revision,
)
_alike = (
    select(*_GROUP)
    .where(leases.c.lost, leases.c.agent_id.in_(bindparam("silent", expanding=True)))
    .distinct()
    .subquery()
)
#: Groups of lost leases: there may be thousands of leases that wait for days, and few groups.
_GROUPS = (
    select(_alike, agents.c.reaches, pools.c.name.label("pool"), queues.c.name.label("queue"))
    .join(agents, agents.c.id == _alike.c.agent_id)
    .join(pools, pools.c.id == _alike.c.pool_id)
    .join(queues, queues.c.id == _alike.c.queue_id)
)
_LOST = (
    select(leases.c.run_id, leases.c.attempt, leases.c.epoch, agents.c.name.label("agent"))
    .join(agents, agents.c.id == leases.c.agent_id)
    .where(leases.c.lost)
    .order_by(leases.c.run_id)
    .limit(BATCH)
)
_LOCK = (
    select(leases.c.run_id)
    .join(agents, agents.c.id == leases.c.agent_id)
    .where(
        leases.c.run_id.in_(bindparam("wanted", expanding=True)),
        leases.c.lost,
        agents.c.last_seen_at < bindparam("seen_before"),
    )
    .order_by(leases.c.run_id)
    .with_for_update(of=leases, skip_locked=True)
)
_MOVE = (
    update(leases)
    .where(leases.c.run_id == bindparam("run"), leases.c.epoch == bindparam("old_epoch"))
    .values(
        agent_id=bindparam("new_agent"),
        session=bindparam("new_session"),
        epoch=bindparam("new_epoch"),
        seq=0,  # the new agent tells all steps again
        lost=False,
        handed_over=True,
        note=None,
    )
)
_EPOCH = (
    update(runs)
    .where(runs.c.id == bindparam("run"), runs.c.epoch == bindparam("old_epoch"))
    .values(epoch=bindparam("new_epoch"))
)


def hand_over(tx: Tx, seen_before: Micros, lost_after: float) -> int:
    """Give leases marked lost, of agents not heard of since ``seen_before``, to others that can go on; how many.

    Args:
        lost_after: an agent heard of within so many seconds counts as alive.
    """
    silent = _silent(tx, seen_before, lost_after)
    if not silent:
        return 0
    kinds: dict[tuple[Kind, str], list[tuple[int, ...]]] = defaultdict(list)
    for group in tx.conn.execute(_GROUPS, {"silent": silent}):
        spec = revision_spec(tx, group.deployment_id, group.revision)
        reach = reach_of(group, spec)
        if reach is not None:
            kinds[kind_of(group, spec), reach].append(tuple(group[: len(_GROUP)]))
    moved = 0
    for (kind, reach), groups in kinds.items():
        able = takers(tx, kind, reach, lost_after)
        if able:
            lost: Sequence[Any] = tx.conn.execute(_LOST.where(tuple_(*_GROUP).in_(groups))).all()
            moved += _give(tx, kind, lost, able, seen_before)
    return moved


def _silent(tx: Tx, seen_before: Micros, lost_after: float) -> list[int]:
    """Agents not heard of, whose work somebody else who is alive can reach."""
    silent = tx.conn.execute(
        select(agents.c.id, agents.c.reaches).where(
            agents.c.last_seen_at < seen_before,
            _REACHING,
            select(leases.c.run_id).where(leases.c.agent_id == agents.c.id, leases.c.lost).exists(),
        )
    ).all()
    if not silent:
        return []
    alive_after = tx.now - round(lost_after * 1_000_000)
    alive = tx.conn.scalars(select(agents.c.reaches).where(agents.c.last_seen_at > alive_after, _REACHING))
    reached = {pair for reaches in alive for pair in reaches.items()}
    return [row.id for row in silent if not reached.isdisjoint(row.reaches.items())]


def reach_of(lease: Row[Any], spec: DeploymentSpec) -> str | None:
    """Where the work of a lease is, for who might take it over; None: it is not handed over.

    Args:
        lease: or what it has in common with others: with ``reaches`` of its agent, and the name of its ``pool``.
    """
    # Of an exclusive one no two agents may ever be at work: its own ends it before its lease is over.
    return None if spec.exclusive else lease.reaches.get(lease.pool)


def kind_of(lease: Row[Any], spec: DeploymentSpec) -> Kind:
    """What who takes a lease over has to serve and to have.

    Args:
        lease: with the names of its ``pool`` and ``queue``.
    """
    return Kind(lease.pool_id, lease.pool, lease.queue, " ".join(sorted(spec.require)), need_text(spec.need))


def takers(tx: Tx, kind: Kind, reach: str, lost_after: float) -> list[Standing]:
    """Agents that are alive and well, and have room for an attempt whose work is at ``reach``."""
    return [
        one
        for one in standings(tx, kind, kind.pool, lost_after)
        if one.reason is AgentReason.CAN_TAKE and one.row.reaches.get(kind.pool) == reach
    ]


def _give(tx: Tx, kind: Kind, lost: Sequence[Row[Any]], able: Sequence[Standing], seen_before: Micros) -> int:
    """Give leases of one kind to those that are able to take them, each to who has most room; how many."""
    chosen: dict[UUID, Standing] = {}
    for lease in lost:
        with_room = [one for one in able if one.offer.room(kind.needs) > 0]
        if not with_room:
            break
        chosen[lease.run_id] = max(with_room, key=lambda one: one.offer.free)
        chosen[lease.run_id].offer.take(kind.needs)
    if not chosen:
        return 0
    # Another server may be about the same, or the agent may be heard of at this moment.
    there = set(tx.conn.scalars(_LOCK, {"wanted": list(chosen), "seen_before": seen_before}))
    moves = [(lease, chosen[lease.run_id]) for lease in lost if lease.run_id in there]
    if moves:
        _move(tx, moves)
    return len(moves)


def _move(tx: Tx, moves: Sequence[tuple[Row[Any], Standing]]) -> None:
    rows = [
        {
            "run": lease.run_id,
            "old_epoch": lease.epoch,
            "new_epoch": lease.epoch + 1,
            "new_agent": taker.offer.agent_id,
            "new_session": taker.offer.session,
        }
        for lease, taker in moves
    ]
    tx.conn.execute(_MOVE, rows)
    tx.conn.execute(_EPOCH, rows)
    told = [{"from": lease.agent, "to": taker.name, "epoch": lease.epoch + 1} for lease, taker in moves]
    record(
        tx,
        [
            event_row(lease.run_id, "handed_over", Actor.REAPER, tx.now, lease.attempt, **data)
            for (lease, _), data in zip(moves, told, strict=True)
        ],
    )
    tx.changes.runs.update(lease.run_id for lease, _ in moves)
    tx.changes.agents.update(taker.offer.agent_id for _, taker in moves)


def others_have(tx: Tx, holds: Iterable[Held | Report]) -> set[tuple[UUID, int, int]]:
    """Those of (run, attempt, epoch) that another agent has now.

    Not those that have ended since: nobody is at work for them any more. Perhaps who was to take one over never
    did, and then its work is to be stopped by who had it.
    """
    asked = {(one.run, one.attempt, one.epoch) for one in holds}
    wanted = {run_id for run_id, _, _ in asked}
    live = select(leases.c.run_id, leases.c.attempt, leases.c.epoch).where(
        leases.c.run_id.in_(wanted), leases.c.handed_over
    )
    now = {(row.run_id, row.attempt): row.epoch for row in tx.conn.execute(live)}
    return {one for one in asked if now.get(one[:2], 0) > one[2]}
