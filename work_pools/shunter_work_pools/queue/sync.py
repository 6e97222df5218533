"""Sync: what an agent holds against what it should hold; and attempts given back unstarted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, delete, insert, select, text, update

from shunter_work_pools.contracts.agents import (
    Assignment,
    Held,
    Output,
    ReleaseRequest,
    ReportAck,
    SyncRequest,
)
from shunter_work_pools.contracts.errors import NameInUse, NotFound
from shunter_work_pools.contracts.states import Actor, AttemptState, RunState
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.claim import assignment, templates_of
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.fire import first_due
from shunter_work_pools.queue.handover import LEFT, NOBODY, others_have, take_back
from shunter_work_pools.queue.journals import going_on
from shunter_work_pools.queue.lanes import hold_limits, lane_of
from shunter_work_pools.queue.limits import places_freed
from shunter_work_pools.queue.notes import is_news
from shunter_work_pools.queue.retries import AVOIDED_FOR, avoided_still
from shunter_work_pools.queue.routing import marked
from shunter_work_pools.storage.schema import (
    agents,
    attempts,
    deployments,
    leases,
    payloads,
    pools,
    queues,
    ready,
    runs,
)
from shunter_work_pools.storage.store import Tx


@dataclass(frozen=True)
class Registered:
    """An agent as the server knows it after a sync.

    Attributes:
        pools: ids of its pools, in its order.
        tags: its tags and those it found: what runs may demand of it.
        limit: attempts it may hold at once.
        capacity: what it has that runs may need.
    """

    id: int
    name: str
    session: UUID
    pools: tuple[int, ...]
    queues: frozenset[str]
    tags: frozenset[str]
    limit: int
    capacity: Mapping[str, float]


def agent_row(tx: Tx, name: str) -> Row[Any]:
    """The agent of a name.

    Raises:
        NotFound: it never synced.
    """
    row = tx.conn.execute(select(agents).where(agents.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no agent {name!r}", "An agent is known from its first sync on.")
    return row


def register(tx: Tx, name: str, request: SyncRequest, lost_after: float) -> Registered:
    """Note who an agent is; called for the first sync of a session and when what it says changed.

    Args:
        lost_after: an agent heard of within so many seconds counts as alive.

    Raises:
        NotFound: a pool that it wants to serve does not exist.
        NameInUse: another live agent has this name, or a newer session of this one took over.
    """
    rows = tx.conn.execute(select(pools.c.id, pools.c.name).where(pools.c.name.in_(request.pools))).all()
    ids = {row.name: row.id for row in rows}
    missing = [pool for pool in request.pools if pool not in ids]
    if missing:
        raise NotFound(
            f"there is no pool {missing[0]!r}", f"Make it: `shunter pool create {missing[0]} --type process`."
        )
    values: dict[str, Any] = {
        "identity": request.identity,
        "session": request.session,
        "pools": request.pools,
        "queues": request.queues,
        "tags": request.tags,
        "found_tags": request.found_tags,
        "capacity": request.capacity,
        "limit": request.limit,
        "host": request.host[:255],
        "version": request.version[:64],
        "last_seen_at": tx.now,
        "draining": request.draining,
        "troubles": request.troubles,
        "reaches": request.reaches,
    }
    if tx.postgres:
        # There is no row to lock yet at the first sync: two of one name wait for each other here.
        tx.conn.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 1))"), {"name": name})
    row = tx.conn.execute(select(agents).where(agents.c.name == name).with_for_update()).one_or_none()
    if row is None:
        agent_id = tx.conn.execute(
            insert(agents).values(name=name, first_seen_at=tx.now, **values).returning(agents.c.id)
        ).scalar_one()
    else:
        agent_id = row.id
        if row.identity != request.identity and row.last_seen_at > tx.now - round(lost_after * 1_000_000):
            raise NameInUse(
                f"an agent named {name!r} is alive on {row.host or 'another machine'}",
                "Give this one another name with --name.",
            )
        if row.identity == request.identity and row.session.int > request.session.int:
            raise NameInUse(
                f"a newer session of agent {name!r} has taken over",
                "Stop one of the two: they use copies of one state folder.",
            )
        # Of pools that it serves no more it may have left something, and others are to know where that is.
        before = {pool: reach for pool, reach in row.reaches.items() if pool not in ids}
        values["reaches"] = before | request.reaches
        tx.conn.execute(update(agents).where(agents.c.id == row.id).values(**values))
        if row.session != request.session:
            holds = [held.run for held in request.holds]
            take_back(tx, row.id, name, request.session, list(ids.values()), holds)
    return Registered(
        id=agent_id,
        name=name,
        session=request.session,
        pools=tuple(ids[pool] for pool in request.pools),
        queues=frozenset(request.queues),
        tags=frozenset(request.tags).union(request.found_tags),
        limit=request.limit,
        capacity=request.capacity,
    )


@dataclass
class Difference:
    """What should be different on an agent.

    Attributes:
        let_go: what it holds and another agent has now.
        finished: runs that it holds still and of which the server has its report of the end, and what they
            took of its capacity.
        notes: what it holds and of which it says another note than the server has.
        drains: the session of it that was told to drain, if one was.
    """

    assignments: list[Assignment] = field(default_factory=list)
    cancel: list[Held] = field(default_factory=list)
    forget: list[Held] = field(default_factory=list)
    let_go: list[Held] = field(default_factory=list)
    finished: dict[UUID, Mapping[str, float]] = field(default_factory=dict)
    notes: list[Held] = field(default_factory=list)
    drains: UUID | None = None

    def __bool__(self) -> bool:
        return bool(self.assignments or self.cancel or self.forget or self.let_go)


#: An agent with its leases; one row without a lease if it has none.
_LEASES = (
    select(
        leases,
        pools.c.name.label("pool"),
        queues.c.name.label("queue"),
        agents.c.drain_session,
        agents.c.session.label("agent_session"),
    )
    .select_from(agents)
    .join(leases, leases.c.agent_id == agents.c.id, isouter=True)
    .join(pools, pools.c.id == leases.c.pool_id, isouter=True)
    .join(queues, queues.c.id == leases.c.queue_id, isouter=True)
    .where(agents.c.id == bindparam("agent"))
    .order_by(leases.c.granted_at, leases.c.run_id)
)


def concerned(tx: Tx, agent_ids: set[int]) -> frozenset[int]:
    """Those of some agents, which hold nothing, for which :func:`difference` may have something."""
    leased = select(leases.c.agent_id).where(leases.c.agent_id.in_(agent_ids))
    told = select(agents.c.id).where(agents.c.id.in_(agent_ids), agents.c.drain_session.is_not(None))
    return frozenset(tx.conn.scalars(leased.union(told)))


def difference(tx: Tx, agent_id: int, holds: list[Held]) -> Difference:
    """Compare what an agent holds with its leases; reads only.

    A lease it does not know of is an answer it never got: it is assigned again. Something it holds
    without a lease is no longer its own.
    """
    rows = tx.conn.execute(_LEASES, {"agent": agent_id}).all()
    mine = [row for row in rows if row.run_id is not None]
    held = {(hold.run, hold.attempt, hold.epoch): hold for hold in holds}
    owned = set()
    unknown, cancel, notes = [], [], []
    for lease in mine:
        key = (lease.run_id, lease.attempt, lease.epoch)
        owned.add(key)
        hold = held.get(key)
        if lease.session == NOBODY:
            continue  # this life of it has left it
        if hold is None:
            unknown.append(lease)
            continue
        if lease.cancelling and not hold.stopping:
            cancel.append(Held(run=lease.run_id, attempt=lease.attempt, epoch=lease.epoch))
        if is_news(lease, hold):
            notes.append(hold)
    forget = {key: hold for key, hold in held.items() if key not in owned}
    finished: dict[UUID, Mapping[str, float]] = {}
    let_go: list[Held] = []
    if forget:
        ended = _ended_by_agent(tx, forget.values())
        finished = {key[0]: need for key, need in ended.items()}
        gone = others_have(tx, forget.values())
        let_go = [forget.pop(key) for key in gone - ended.keys()]
        forget = {key: hold for key, hold in forget.items() if key not in ended}
    again = _assign_again(tx, unknown)
    cancel += [
        Held(run=lease.run_id, attempt=lease.attempt, epoch=lease.epoch)
        for lease in unknown
        if lease.cancelling
    ]
    return Difference(
        again,
        cancel,
        list(forget.values()),
        let_go,
        finished,
        notes,
        rows[0].drain_session if rows else None,
    )


def _ended_by_agent(tx: Tx, holds: Collection[Held]) -> dict[tuple[UUID, int, int], Mapping[str, float]]:
    """Those whose end the agent reported itself, and whose acknowledgement is under way to it; what they took."""
    rows = tx.conn.execute(
        select(
            attempts.c.run_id,
            attempts.c.number,
            attempts.c.epoch,
            runs.c.deployment_id,
            runs.c.revision,
        )
        .join(runs, runs.c.id == attempts.c.run_id)
        .where(attempts.c.run_id.in_([hold.run for hold in holds]), attempts.c.log_size.is_not(None))
    )
    asked = {(hold.run, hold.attempt, hold.epoch) for hold in holds}
    return {
        (row.run_id, row.number, row.epoch): revision_spec(tx, row.deployment_id, row.revision).need
        for row in rows
        if (row.run_id, row.number, row.epoch) in asked
    }


def _assign_again(tx: Tx, unknown: list[Row[Any]]) -> list[Assignment]:
    if not unknown:
        return []
    statement = (
        select(runs, deployments.c.name.label("deployment"), payloads.c.parameters)
        .join(payloads, payloads.c.run_id == runs.c.id)
        .join(deployments, deployments.c.id == runs.c.deployment_id)
        .where(runs.c.id.in_([lease.run_id for lease in unknown]))
    )
    found = {row.id: row for row in tx.conn.execute(statement)}
    templates = templates_of(tx, {lease.pool for lease in unknown})
    again = going_on(tx, [lease.run_id for lease in unknown if lease.attempt > 1])
    return [
        assignment(
            tx,
            found[lease.run_id],
            lease.attempt,
            lease.epoch,
            lease.session,
            lease.pool,
            lease.queue,
            templates.get(lease.pool, {}),
            lease.memory,
        ).model_copy(
            update={
                "handed_over": _begun_before(lease),
                "commit": lease.commit,
                "goes_on": lease.run_id in again,
            }
        )
        for lease in unknown
    ]


def _begun_before(lease: Row[Any]) -> Output | None:
    """What is known of an attempt that may be at work already, for who knows nothing of it; sizes of its output
    are filled in later.

    Another agent had it, or an earlier life of this one: then what it knew of it is gone with its folder.
    """
    if not lease.handed_over and (
        lease.session == lease.agent_session or lease.state == AttemptState.CLAIMED.value
    ):
        return None
    return Output(size=0, started=lease.started_at is not None)


def heartbeat(tx: Tx, seen: dict[int, float]) -> None:
    """Note when agents were last heard of, many in one statement; leases marked lost are found again.

    Args:
        seen: agent id -> seconds ago.
    """
    if not seen:
        return
    note_seen(tx, seen)
    lost = tx.conn.execute(
        select(leases.c.run_id, leases.c.attempt, agents.c.name)
        .join(agents, agents.c.id == leases.c.agent_id)
        .where(leases.c.lost, ~LEFT, leases.c.agent_id.in_(list(seen)))
        .order_by(leases.c.run_id)
        .with_for_update(of=leases)
    ).all()
    if lost:
        tx.conn.execute(
            update(leases).where(leases.c.run_id.in_([row.run_id for row in lost])).values(lost=False)
        )
        record(
            tx,
            [
                event_row(row.run_id, "found", Actor.AGENT, tx.now, row.attempt, agent=row.name)
                for row in lost
            ],
        )
        tx.changes.runs.update(row.run_id for row in lost)


def note_seen(tx: Tx, seen: dict[int, float]) -> None:
    """Write when agents were last heard of, unless that is known better; ``seen`` as for :func:`heartbeat`.

    Another server may have heard of one since: a moment is only moved back that was written by a clock that
    has been set back since then.
    """
    if not seen:
        return
    was = agents.c.last_seen_at
    statement = (
        update(agents)
        .where(agents.c.id == bindparam("agent"), (was < bindparam("seen")) | (was > tx.now))
        .values(last_seen_at=bindparam("seen"))
    )
    rows = [
        {"agent": agent_id, "seen": tx.now - round(ago * 1_000_000)} for agent_id, ago in sorted(seen.items())
    ]
    tx.conn.execute(statement, rows)


def release(tx: Tx, agent_id: int, request: ReleaseRequest, lost_after: float) -> list[ReportAck]:
    """Take back attempts that were not started: the runs wait again at once, under the same number.

    An attempt that is to be cancelled ends as Cancelled instead; one that was started (or is no longer
    this agent's) is answered as stale and nothing changes.

    Args:
        lost_after: an agent heard of within so many seconds counts as alive.
    """
    from shunter_work_pools.queue.report import end_cancelled, freed

    acks = []
    hold_limits(tx)
    for held in sorted(request.attempts, key=lambda held: held.run):  # as reports lock them
        lease = tx.conn.execute(
            select(leases).where(leases.c.run_id == held.run).with_for_update()
        ).one_or_none()
        mine = (
            lease is not None
            and lease.agent_id == agent_id
            and (lease.attempt, lease.epoch) == (held.attempt, held.epoch)
        )
        if (
            lease is None
            or not mine
            or lease.handed_over  # it may be at work, whatever this agent found
            or lease.state
            not in (
                AttemptState.CLAIMED.value,
                AttemptState.CANCELLING.value,
            )
        ):
            acks.append(
                ReportAck(run=held.run, attempt=held.attempt, seq=0, stale=True, detail="not held unstarted")
            )
            continue
        if lease.cancelling:
            end_cancelled(tx, lease, Actor.AGENT)
        else:
            put_back(tx, lease, Actor.AGENT, lost_after)
        freed(tx, lease)
        acks.append(ReportAck(run=held.run, attempt=held.attempt, seq=lease.seq))
    return acks


def put_back(tx: Tx, lease: Row[Any], actor: Actor, lost_after: float) -> None:
    """End a lease of which nothing was started: its run is as before the grant.

    Also as to whom it avoids, from now on once more.
    """
    run = tx.conn.execute(select(runs).where(runs.c.id == lease.run_id)).one()
    # Without a cause it was just made, or retried by hand.
    state = RunState.SCHEDULED if run.cause is None else RunState.RETRYING
    spec = revision_spec(tx, run.deployment_id, run.revision)
    places_freed(
        tx,
        [run.id] if lease.limited else [],
        {run.deployment_id},
        [] if lease.backfill_id is None else [lease.backfill_id],
    )
    tx.conn.execute(delete(leases).where(leases.c.run_id == lease.run_id))
    tx.conn.execute(
        update(runs)
        .where(runs.c.id == lease.run_id, runs.c.state == RunState.ACTIVE.value)
        .values(state=state.value)
    )
    lane_id = lane_of(tx, run, spec, lease.queue_id)
    avoid = avoided_still(tx, run.id, lease.attempt, lease.queue_id, spec, lost_after)
    if avoid is not None:
        tx.changes.becomes_due(AVOIDED_FOR / 1_000_000)
    tx.conn.execute(
        insert(ready).values(
            run_id=run.id,
            lane_id=lane_id,
            due_at=first_due(tx, run, spec) if avoid is None else tx.now,
            late=marked(run),
            avoid_agent_id=avoid,
        )
    )
    record(tx, [event_row(run.id, "released", actor, tx.now, lease.attempt, epoch=lease.epoch)])
    tx.changes.runs.add(run.id)
    tx.changes.pools.add(lease.pool_id)
