"""Hand-over: attempts of agents that fell silent, or that left them, go on under other agents that reach the same work.

It is looked at again and again for as long as a lease is lost, since somebody who could take it over may come, or
get room, at any moment. The work itself is not touched: the new agent finds it by the attempt's name.

What an agent has *left* counts as lost from that moment on, and needs no room at who takes it: the work runs already, and
nobody else follows it. The next life of the agent that left it may take it up as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, String, bindparam, cast, select, tuple_, update

from shunter_work_pools.contracts.agents import Held, Report, ReportAck
from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.explanations import AgentReason
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.lanes import need_text
from shunter_work_pools.queue.standing import BUSY, Kind, Standing, standings
from shunter_work_pools.storage.schema import agents, leases, pools, queues, runs
from shunter_work_pools.storage.store import Tx

#: The session of a lease that its agent has left: no life of it has it.
NOBODY = UUID(int=0)
LEFT = leases.c.session == NOBODY
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
    select(*_GROUP, LEFT.label("left"))
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
    select(
        leases.c.run_id,
        leases.c.attempt,
        leases.c.epoch,
        leases.c.agent_id,
        LEFT.label("left"),
        agents.c.name.label("agent"),
    )
    .join(agents, agents.c.id == leases.c.agent_id)
    .where(leases.c.lost)
    .order_by(
        ~LEFT, leases.c.run_id
    )  # behind those for which there is no room they might be waited for in vain
    .limit(BATCH)
)
_LOCK = (
    select(leases.c.run_id)
    .join(agents, agents.c.id == leases.c.agent_id)
    .where(
        leases.c.run_id.in_(bindparam("wanted", expanding=True)),
        leases.c.lost,
        LEFT | (agents.c.last_seen_at < bindparam("seen_before")),
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


_LEAVING = (
    select(leases, agents.c.name.label("agent"), agents.c.reaches, pools.c.name.label("pool"))
    .join(agents, agents.c.id == leases.c.agent_id)
    .join(pools, pools.c.id == leases.c.pool_id)
    .where(leases.c.run_id.in_(bindparam("wanted", expanding=True)))
    .order_by(leases.c.run_id)  # as reports lock them
    .with_for_update(of=leases)
)


def leave(tx: Tx, agent_id: int, held: Sequence[Held], lost_after: float) -> list[ReportAck]:
    """Take from an agent what it follows no more, and give it to others that can go on, now or once there are any.

    What is not its own under that epoch, or what nobody else can go on with, is answered as stale and stays as it is.

    Args:
        lost_after: an agent heard of within so many seconds counts as alive.
    """
    wanted = {(one.run, one.attempt, one.epoch): one for one in held}
    rows = tx.conn.execute(_LEAVING, {"wanted": [one.run for one in held]}).all()
    left = [
        row
        for row in rows
        if row.agent_id == agent_id
        and (row.run_id, row.attempt, row.epoch) in wanted
        and reach_of(row, revision_spec(tx, row.deployment_id, row.revision)) is not None
    ]
    fresh = [row for row in left if row.session != NOBODY]
    if fresh:
        tx.conn.execute(
            update(leases)
            .where(leases.c.run_id.in_([row.run_id for row in fresh]))
            .values(session=NOBODY, lost=True, handed_over=True, note=None)
        )
        told = [
            event_row(row.run_id, "left", Actor.AGENT, tx.now, row.attempt, agent=row.agent) for row in fresh
        ]
        record(tx, told)
        tx.changes.runs.update(row.run_id for row in fresh)
        hand_over(tx, 0, lost_after)
    taken = {(row.run_id, row.attempt, row.epoch): row.seq for row in left}
    return [
        ReportAck(run=key[0], attempt=key[1], seq=taken[key])
        if key in taken
        else ReportAck(run=key[0], attempt=key[1], seq=0, stale=True, detail="nothing that it could leave")
        for key in wanted
    ]


def left_waits(tx: Tx) -> bool:
    """Whether a lease that was left waits for somebody to take it over; reads only."""
    return tx.conn.scalar(select(leases.c.run_id).where(leases.c.lost, LEFT).limit(1)) is not None


def take_back(
    tx: Tx, agent_id: int, agent: str, session: UUID, pool_ids: Sequence[int], holds: Sequence[UUID]
) -> None:
    """A new life of an agent has what the one before left and nobody else took over.

    Args:
        pool_ids: that it serves: of others it would take nothing, and who serves them is waited for.
        holds: runs that it has found in its folder, and follows whatever it serves.
    """
    rows = tx.conn.execute(
        update(leases)
        .where(
            leases.c.agent_id == agent_id, LEFT, leases.c.pool_id.in_(pool_ids) | leases.c.run_id.in_(holds)
        )
        .values(session=session, lost=False)
        .returning(leases.c.run_id, leases.c.attempt)
    ).all()
    record(
        tx, [event_row(row.run_id, "found", Actor.AGENT, tx.now, row.attempt, agent=agent) for row in rows]
    )
    tx.changes.runs.update(row.run_id for row in rows)


def hand_over(tx: Tx, seen_before: Micros, lost_after: float) -> int:
    """Give leases marked lost, left or of agents not heard of since ``seen_before``, to others that can go on; how many.

    Args:
        lost_after: an agent heard of within so many seconds counts as alive.
    """
    silent = _silent(tx, seen_before, lost_after)
    if not silent:
        return 0
    kinds: dict[tuple[Kind, str, bool], list[tuple[int, ...]]] = defaultdict(list)
    for group in tx.conn.execute(_GROUPS, {"silent": silent}):
        spec = revision_spec(tx, group.deployment_id, group.revision)
        reach = reach_of(group, spec)
        if reach is not None:
            kinds[kind_of(group, spec), reach, bool(group.left)].append(tuple(group[: len(_GROUP)]))
    moved = 0
    for (kind, reach, left), groups in kinds.items():
        able = takers(tx, kind, reach, lost_after, full=left)
        if able:
            which = _LOST.where(tuple_(*_GROUP).in_(groups), LEFT if left else ~LEFT)
            lost: Sequence[Any] = tx.conn.execute(which).all()
            moved += _give(tx, kind, lost, able, seen_before, left=left)
    return moved


def _silent(tx: Tx, seen_before: Micros, lost_after: float) -> list[int]:
    """Agents not heard of, or that left something, whose work somebody who is alive can reach."""
    silent = tx.conn.execute(
        select(agents.c.id, agents.c.reaches).where(
            _REACHING,
            select(leases.c.run_id)
            .where(
                leases.c.agent_id == agents.c.id,
                leases.c.lost,
                LEFT | (agents.c.last_seen_at < seen_before),
            )
            .exists(),
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


def takers(tx: Tx, kind: Kind, reach: str, lost_after: float, *, full: bool = False) -> list[Standing]:
    """Agents that are alive and well, and have room for an attempt whose work is at ``reach``.

    Args:
        full: also those that have no room.
    """
    return [
        one
        for one in standings(tx, kind, kind.pool, lost_after)
        if (one.reason is AgentReason.CAN_TAKE or (full and one.reason in BUSY))
        and one.row.reaches.get(kind.pool) == reach
    ]


def _give(
    tx: Tx, kind: Kind, lost: Sequence[Row[Any]], able: Sequence[Standing], seen_before: Micros, *, left: bool
) -> int:
    """Give leases of one kind to those that are able to take them, each to who has most room; how many."""
    chosen: dict[UUID, Standing] = {}
    for lease in lost:
        others = (one for one in able if one.offer.agent_id != lease.agent_id)
        with_room = [one for one in others if left or one.offer.room(kind.needs) > 0]
        if not with_room:
            continue
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
