"""Claim: waiting runs are granted to agents that can take them, a batch in one transaction.

Order: queue priority, then run priority, then in turn between the deployments (the one that was served
longest ago first), within one by due time. Only heads of lanes are looked at, and of them only those that
nothing blocks: lanes under a full limit, of something paused, or that demand what nobody offers are left out
by the first query, so that however many are blocked they neither starve nor slow the free ones.

On Postgres the rows of limits are locked in sorted order before live leases are counted, so two claimers
cannot over-admit; waiting runs are taken ``SKIP LOCKED``.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, Row, bindparam, delete, func, insert, or_, select, tuple_, update

from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.capacity import DIVISIBLE, fits
from shunter_work_pools.contracts.secret_variables import hidden
from shunter_work_pools.contracts.states import Actor, AttemptState, RunState
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.journals import going_on
from shunter_work_pools.queue.lanes import needed
from shunter_work_pools.queue.pinned import commits
from shunter_work_pools.queue.retries import AVOIDED_FOR, memory_after
from shunter_work_pools.storage.schema import (
    agents,
    attempts,
    backfills,
    deployments,
    lane_limits,
    lanes,
    lease_limits,
    leases,
    limit_starts,
    limits,
    pauses,
    payloads,
    pools,
    queues,
    ready,
    runs,
)
from shunter_work_pools.storage.store import Tx

#: Runs that one transaction grants at the most: nobody waits long for it, and the ids fit a statement.
MOST = 1000
_UNLIMITED = 1_000_000
#: Kinds of lanes that a statement leaves out; what is beyond is looked at, and passed over.
_KINDS = 5000


class Demand(Protocol):
    """What an agent has to serve and to have for a run: a row of lanes with its queue, or what would be one."""

    @property
    def pool_id(self) -> int:
        """Of its pool."""

    @property
    def queue(self) -> str:
        """Name of its queue."""

    @property
    def require(self) -> str:
        """Tags, joined by spaces."""

    @property
    def need(self) -> str:
        """See :func:`~shunter_work_pools.queue.lanes.need_text`."""


@dataclass
class Offer:
    """What one agent could take now.

    Attributes:
        agent_id: of the agents table.
        session: the life of the daemon that asks.
        pools: ids of the pools it serves.
        queues: names of the queues it serves; empty: all.
        tags: what runs may demand of it: its tags and those it found.
        free: attempts it can take, as it said.
        limit: attempts it may hold at once; those it holds are counted, since what it said may be old by now.
        capacity: what it has that runs may need.
        free_capacity: what of that is free, as it said; likewise.
        granted: filled in by :func:`claim`.
    """

    agent_id: int
    session: UUID
    pools: frozenset[int]
    queues: frozenset[str]
    tags: frozenset[str]
    free: int
    limit: int = 100_000
    capacity: Mapping[str, float] = field(default_factory=dict)
    free_capacity: dict[str, float] = field(default_factory=dict)
    granted: list[Assignment] = field(default_factory=list)

    def fits(self, lane: Demand) -> bool:
        """Whether a run of this lane may go to this agent."""
        return self.serves(lane) and fits(needed(lane.need), self.free_capacity)

    def serves(self, lane: Demand) -> bool:
        """Whether a run of this lane may go to this agent if enough of its capacity is free."""
        return self.free > 0 and self.reaches(lane) and not self.lacks(lane)

    def reaches(self, lane: Demand) -> bool:
        """Whether it serves the queue of this lane."""
        return lane.pool_id in self.pools and (not self.queues or lane.queue in self.queues)

    def lacks(self, lane: Demand) -> set[str]:
        """The tags that runs of this lane require and it has not."""
        return set(lane.require.split()) - self.tags

    def room(self, need: Mapping[str, float]) -> int:
        """How many runs with this need it can take."""
        amounts = [
            math.floor(self.free_capacity.get(name, 0.0) / amount + 1e-9) for name, amount in need.items()
        ]
        return max(0, min(self.free, *amounts) if amounts else self.free)

    def take(self, need: Mapping[str, float]) -> None:
        """One run with this need is granted to it."""
        self.free -= 1
        for name, amount in need.items():
            self.free_capacity[name] -= amount

    def give_back(self, needs: Iterable[Mapping[str, float]]) -> None:
        """Runs with these needs have ended since it said what it could take."""
        for need in needs:
            self.free += 1
            for name, amount in need.items():
                self.free_capacity[name] = self.free_capacity.get(name, 0.0) + amount

    def remoteness(self, need: Mapping[str, float]) -> tuple[float, int]:
        """How badly a run with this need fits; the smallest is the best fit.

        What is needed is taken from the agent that keeps least of it, so that large needs find room. A run
        that needs nothing goes where nothing can be needed if it can, and there to the one with most slots.
        """
        if need:
            left = sum(
                (self.free_capacity.get(name, 0.0) - amount) / (self.capacity.get(name) or 1.0)
                for name, amount in need.items()
            )
            return left, self.free
        return (0.0 if self.capacity.keys() <= DIVISIBLE else 1.0), -self.free


def _full(kind: Any, most: Any, counted: Any) -> Any:
    """Ids of those of a kind whose live leases have reached what is allowed; counted once in a statement."""
    used = select(func.count()).where(counted == kind.c.id).correlate(kind).scalar_subquery()
    return select(kind.c.id).where(most.is_not(None), most <= used)


#: Ids of shared limits under which nothing may start.
FULL_LIMITS = _full(limits, limits.c.max, lease_limits.c.limit_id).union_all(
    select(limits.c.id).where(limits.c.full_until > bindparam("now"))
)
_UNDER_FULL = select(lane_limits.c.lane_id).where(lane_limits.c.limit_id.in_(FULL_LIMITS))


def obstacles(
    deployment: ColumnElement[Any], backfill_full: ColumnElement[bool], limit_full: ColumnElement[bool]
) -> dict[str, ColumnElement[bool]]:
    """What holds runs back whoever offers, each true of a queue with its pool where it does; in the order in which
    people are told.

    Args:
        deployment: its id.
        backfill_full, limit_full: whether their backfill, or a shared limit that they are under, is full.
    """
    return {
        "server_paused": select(pauses.c.ref_id).where(pauses.c.kind == "server").exists(),
        "pool_paused": pools.c.paused,
        "queue_paused": queues.c.paused,
        "deployment_paused": deployment.in_(select(deployments.c.id).where(deployments.c.paused)),
        "pool_full": pools.c.id.in_(_full(pools, pools.c.limit, leases.c.pool_id)),
        "queue_full": queues.c.id.in_(_full(queues, queues.c.limit, leases.c.queue_id)),
        "deployment_full": deployment.in_(
            _full(deployments, deployments.c.max_active, leases.c.deployment_id)
        ),
        "backfill_full": backfill_full,
        "limit_full": limit_full,
    }


#: What holds lanes back. Deployments are meant by the lane, and not as one that is joined: so they are looked at before
#: the head is.
OBSTACLES = obstacles(
    lanes.c.deployment_id,
    lanes.c.backfill_id.in_(_full(backfills, backfills.c.concurrency, leases.c.backfill_id)),
    lanes.c.id.in_(_UNDER_FULL),
)
_HEAD_DUE = (
    select(func.min(ready.c.due_at)).where(ready.c.lane_id == lanes.c.id).correlate(lanes).scalar_subquery()
)
#: True of lanes with something that is due.
DUE = bindparam("now") >= _HEAD_DUE
#: What waits in some pools, lane by lane, and could be granted now: in the order in which it would be.
HEADS = (
    select(
        lanes.c.id,
        lanes.c.priority,
        lanes.c.deployment_id,
        lanes.c.require,
        lanes.c.need,
        lanes.c.limits,
        lanes.c.served_at,
        lanes.c.backfill_id,
        queues.c.id.label("queue_id"),
        queues.c.name.label("queue"),
        queues.c.priority.label("queue_priority"),
        queues.c.limit.label("queue_limit"),
        pools.c.id.label("pool_id"),
        pools.c.name.label("pool"),
        pools.c.type.label("pool_type"),
        pools.c.limit.label("pool_limit"),
        deployments.c.max_active,
        _HEAD_DUE.label("head"),
    )
    .join(queues, queues.c.id == lanes.c.queue_id)
    .join(pools, pools.c.id == queues.c.pool_id)
    .join(deployments, deployments.c.id == lanes.c.deployment_id)
    .where(
        pools.c.id.in_(bindparam("pools", expanding=True)),
        *(~obstacle for obstacle in OBSTACLES.values()),
        DUE,
    )
    .order_by(queues.c.priority.desc(), lanes.c.priority.desc(), lanes.c.served_at, _HEAD_DUE, lanes.c.id)
)
#: Lanes of one kind are served by the same agents.
KIND = tuple_(lanes.c.queue_id, lanes.c.require, lanes.c.need)
_HEADS_WANTED = HEADS.where(KIND.not_in(bindparam("unwanted", expanding=True)))
#: The kinds of lanes of some pools that not every agent can serve.
DEMANDING = (
    select(
        lanes.c.queue_id,
        lanes.c.require,
        lanes.c.need,
        queues.c.name.label("queue"),
        queues.c.pool_id,
    )
    .join(queues, queues.c.id == lanes.c.queue_id)
    .where(
        or_(lanes.c.require != "", lanes.c.need != ""),
        queues.c.pool_id.in_(bindparam("pools", expanding=True)),
    )
    .distinct()
)
_TAKE = (
    select(ready.c.run_id, ready.c.due_at, ready.c.avoid_agent_id)
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
#: All lanes of a deployment in a queue: it is the deployment whose turn it was.
_SERVED = (
    update(lanes)
    .where(lanes.c.queue_id == bindparam("queue"), lanes.c.deployment_id == bindparam("deployment"))
    .values(served_at=bindparam("at"))
)
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
#: Agents with what they hold, by revision; one row without a revision if that is nothing.
_HELD = (
    select(
        agents.c.id,
        agents.c.paused,
        leases.c.deployment_id,
        leases.c.revision,
        func.count(leases.c.run_id).label("held"),
    )
    .join(leases, leases.c.agent_id == agents.c.id, isouter=True)
    .where(agents.c.id.in_(bindparam("agents", expanding=True)))
    .group_by(agents.c.id, agents.c.paused, leases.c.deployment_id, leases.c.revision)
)


@dataclass(frozen=True)
class _Taken:
    """A run that is granted to an agent."""

    run_id: UUID
    due_at: Micros
    lane: Row[Any]
    offer: Offer


def claim(tx: Tx, offers: list[Offer]) -> int:
    """Grant waiting runs to the agents that offer to take them; how many were granted, ``MOST`` at most.

    Args:
        offers: one per agent; ``granted`` is appended to, ``free`` and ``free_capacity`` are lowered.
    """
    wanted = sorted({pool for offer in offers if offer.free > 0 for pool in offer.pools})
    if not wanted:
        return 0
    heads = _heads(tx, wanted, offers)
    if not heads:
        return 0
    correct(tx, offers)
    room = Room(tx, heads)
    taken: list[_Taken] = []
    for _, level in groupby(heads, key=lambda head: (head.queue_priority, head.priority)):
        _take_in_turn(tx, list(level), offers, room, taken)
        if len(taken) >= MOST or not any(offer.free > 0 for offer in offers):
            break
    if taken:
        _grant(tx, taken, room)
        room.note_starts(tx, taken)
        # In one order and after everything else: two claims that serve the same lanes never wait in a circle.
        served = sorted({(one.lane.queue_id, one.lane.deployment_id) for one in taken})
        tx.conn.execute(
            _SERVED,
            [
                {"queue": queue_id, "deployment": deployment_id, "at": tx.now}
                for queue_id, deployment_id in served
            ],
        )
    return len(taken)


def _heads(tx: Tx, wanted: list[int], offers: list[Offer]) -> Sequence[Row[Any]]:
    """Lanes of some pools with something due that nothing blocks, in the order in which they are served."""
    unwanted = [
        (kind.queue_id, kind.require, kind.need)
        for kind in list[Row[Any]](tx.conn.execute(DEMANDING, {"pools": wanted}))
        if not any(offer.fits(kind) for offer in offers)
    ][:_KINDS]
    given: dict[str, Any] = {"pools": wanted, "now": tx.now}
    if not unwanted:
        return list[Row[Any]](tx.conn.execute(HEADS, given))
    return list[Row[Any]](tx.conn.execute(_HEADS_WANTED, given | {"unwanted": unwanted}))


def correct(tx: Tx, offers: list[Offer]) -> None:
    """No offer is larger than the leases of its agent leave: a network may bring an old one again."""
    held: Counter[int] = Counter()
    used: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    paused = set()
    for row in tx.conn.execute(_HELD, {"agents": [offer.agent_id for offer in offers]}):
        if row.paused:
            paused.add(row.id)
        if row.held:
            held[row.id] += row.held
            for name, amount in revision_spec(tx, row.deployment_id, row.revision).need.items():
                used[row.id][name] += amount * row.held
    for offer in offers:
        offer.free = min(offer.free, offer.limit - held[offer.agent_id])
        if offer.agent_id in paused:
            offer.free = 0
        for name, amount in used[offer.agent_id].items():
            left = offer.capacity.get(name, 0.0) - amount
            offer.free_capacity[name] = min(offer.free_capacity.get(name, 0.0), left)


def _take_in_turn(
    tx: Tx, lanes_left: list[Row[Any]], offers: list[Offer], room: Room, taken: list[_Taken]
) -> None:
    """Take runs from lanes of one priority: an equal share for each deployment, again while there is room."""
    while lanes_left:
        free = min(sum(max(0, offer.free) for offer in offers), MOST - len(taken))
        if free <= 0:
            return
        share = max(1, free // len({head.deployment_id for head in lanes_left}))
        had: Counter[int] = Counter()
        gone: list[UUID] = []
        again = []
        for head in lanes_left:
            if had[head.deployment_id] >= share:
                again.append(head)
                continue
            asked, got = _take(
                tx, head, offers, min(share - had[head.deployment_id], MOST - len(taken)), room
            )
            taken += got
            gone += [one.run_id for one in got]
            had[head.deployment_id] += len(got)
            if asked:
                again.append(head)
        if not gone:
            return
        tx.conn.execute(_UNREADY, {"taken": gone})
        lanes_left = again


def _take(tx: Tx, head: Row[Any], offers: list[Offer], most: int, room: Room) -> tuple[bool, list[_Taken]]:
    """Take up to ``most`` runs of a lane; and whether it may have more."""
    need = needed(head.need)
    fitting = [offer for offer in offers if offer.fits(head)]
    most = min(most, room.left(head), sum(offer.room(need) for offer in fitting))
    if most <= 0:
        return False, []
    # What avoids the only one that offers is passed over, not looked at again and again.
    only = fitting[0].agent_id if len(fitting) == 1 else 0
    until = tx.now - AVOIDED_FOR
    wanted = {"lane": head.id, "now": tx.now, "most": most, "only": only, "avoided_until": until}
    rows = tx.conn.execute(_TAKE, wanted).all()
    got = []
    for row in rows:
        avoid = row.avoid_agent_id if row.due_at > until else None
        possible = [offer for offer in fitting if offer.room(need) > 0 and offer.agent_id != avoid]
        if possible:
            offer = min(possible, key=lambda offer: offer.remoteness(need))
            offer.take(need)
            got.append(_Taken(row.run_id, row.due_at, head, offer))
    room.use(head, len(got))
    return len(rows) == most, got


class Room:
    """How many more live leases and starts limits allow: of pools, queues, backfills, deployments, shared ones.

    Args:
        heads: rows of ``HEADS``.
        locking: as nothing may change until what is taken is written; else it is only to look.
    """

    def __init__(self, tx: Tx, heads: Sequence[Row[Any]], *, locking: bool = True) -> None:
        self._locking = locking
        self._left: dict[tuple[str, int], int] = {}
        self._rates: dict[int, tuple[int, Micros]] = {}  # count and window of those that have a rate
        self._over = {head.id: [int(limit_id) for limit_id in head.limits.split()] for head in heads}
        in_pools = {head.pool_id for head in heads if head.pool_limit is not None}
        in_queues = {head.queue_id for head in heads if head.queue_limit is not None}
        in_backfills = {head.backfill_id for head in heads if head.backfill_id}
        of_deployments = {head.deployment_id for head in heads if head.max_active is not None}
        self._limit(tx, "pool", pools.c.id, pools.c.limit, leases.c.pool_id, in_pools)
        self._limit(tx, "queue", queues.c.id, queues.c.limit, leases.c.queue_id, in_queues)
        self._limit(
            tx, "backfill", backfills.c.id, backfills.c.concurrency, leases.c.backfill_id, in_backfills
        )
        self._limit(
            tx,
            "deployment",
            deployments.c.id,
            deployments.c.max_active,
            leases.c.deployment_id,
            of_deployments,
        )
        shared = {limit_id for over in self._over.values() for limit_id in over}
        self._limit(tx, "limit", limits.c.id, limits.c.max, lease_limits.c.limit_id, shared)
        self.shared = self._read_rates(tx, shared)

    def _limit(self, tx: Tx, kind: str, key: Any, limit: Any, column: Any, ids: set[int]) -> None:
        if not ids:
            return
        statement = select(key, limit.label("limit")).where(key.in_(ids)).order_by(key)
        if self._locking:  # other claims wait, rows that only refer to it do not
            statement = statement.with_for_update(key_share=True)
        rows = tx.conn.execute(statement).all()
        counted = tx.conn.execute(select(column, func.count()).where(column.in_(ids)).group_by(column)).all()
        used = {row[0]: row[1] for row in counted}
        for row in rows:
            if row.limit is not None:
                self._left[kind, row.id] = row.limit - used.get(row.id, 0)

    def _read_rates(self, tx: Tx, ids: set[int]) -> frozenset[int]:
        """Of some limits those that there are; their rows are locked by now, unless this is only a look."""
        if not ids:
            return frozenset()
        there = tx.conn.execute(
            select(limits.c.id, limits.c.rate_count, limits.c.rate_seconds).where(limits.c.id.in_(ids))
        ).all()
        for row in there:
            if row.rate_count is None:
                continue
            window = round(row.rate_seconds * 1_000_000)
            used = tx.conn.scalar(
                select(func.count()).where(
                    limit_starts.c.limit_id == row.id, limit_starts.c.at > tx.now - window
                )
            )
            self._rates[row.id] = row.rate_count, window
            self._left["rate", row.id] = row.rate_count - (used or 0)
        return frozenset(row.id for row in there)

    def _keys(self, head: Row[Any]) -> list[tuple[str, int]]:
        return [
            ("pool", head.pool_id),
            ("queue", head.queue_id),
            ("backfill", head.backfill_id),
            ("deployment", head.deployment_id),
            *(("limit", limit_id) for limit_id in self._over[head.id]),
            *(("rate", limit_id) for limit_id in self._over[head.id]),
        ]

    def left(self, head: Row[Any]) -> int:
        """Places left for runs of a lane."""
        return min(self._left.get(key, _UNLIMITED) for key in self._keys(head))

    def use(self, head: Row[Any], count: int) -> None:
        """Note places taken."""
        for key in self._keys(head):
            if key in self._left:
                self._left[key] -= count

    def over(self, head: Row[Any]) -> list[int]:
        """Ids of the shared limits that runs of a lane count under."""
        return [limit_id for limit_id in self._over[head.id] if limit_id in self.shared]

    def note_starts(self, tx: Tx, taken: list[_Taken]) -> None:
        """Write down what counts under shared limits, and until when a rate is used up."""
        held = [
            {"limit_id": limit_id, "run_id": one.run_id} for one in taken for limit_id in self.over(one.lane)
        ]
        if not held:
            return
        tx.conn.execute(insert(lease_limits), held)
        started = [row | {"at": tx.now} for row in held if row["limit_id"] in self._rates]
        if not started:
            return
        tx.conn.execute(insert(limit_starts), started)
        for limit_id, (count, window) in sorted(self._rates.items()):
            of_it = limit_starts.c.limit_id == limit_id
            tx.conn.execute(delete(limit_starts).where(of_it, limit_starts.c.at <= tx.now - window))
            if self._left["rate", limit_id] <= 0:
                newest = select(limit_starts.c.at).where(of_it).order_by(limit_starts.c.at.desc())
                until = tx.conn.execute(newest.offset(count - 1).limit(1)).scalar_one() + window
                tx.conn.execute(update(limits).where(limits.c.id == limit_id).values(full_until=until))
                tx.changes.becomes_due((until - tx.now) / 1_000_000)


def _grant(tx: Tx, taken: list[_Taken], room: Room) -> None:
    rows: Sequence[Any] = tx.conn.execute(_RUNS, {"taken": [one.run_id for one in taken]}).all()
    found = {row.id: row for row in rows}
    templates = templates_of(tx, {one.lane.pool for one in taken if one.lane.pool_type != "process"})
    memories = _memories(tx, rows)
    pinned = commits(tx, rows)
    again = going_on(tx, [row.id for row in rows if row.attempts])
    lease_rows, run_rows, event_rows = [], [], []
    for one in taken:
        run_id, head, offer = one.run_id, one.lane, one.offer
        run = found[run_id]
        template = templates.get(head.pool, {})
        memory = memories(run, template)
        attempt, epoch = run.attempts + 1, run.epoch + 1
        if attempt == 1:
            tx.changes.claimed_after.append((tx.now - one.due_at) / 1_000_000)
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
                "due_at": one.due_at,
                "granted_at": tx.now,
                "limited": bool(room.over(head)),
                "cancelling": False,
                "lost": False,
                "memory": memory,
                "commit": pinned.get(run_id),
            }
        )
        run_rows.append({"run": run_id, "new_epoch": epoch})
        told = {"epoch": epoch} if memory is None else {"epoch": epoch, "memory": memory}
        event_rows.append(event_row(run_id, AttemptState.CLAIMED.value, Actor.QUEUE, tx.now, attempt, **told))
        granted = assignment(tx, run, attempt, epoch, offer.session, head.pool, head.queue, template, memory)
        granted.commit = pinned.get(run_id)
        granted.goes_on = run_id in again
        offer.granted.append(granted)
        tx.changes.runs.add(run_id)
    tx.conn.execute(_ACTIVATE, run_rows)
    tx.conn.execute(_GRANT, lease_rows)
    record(tx, event_rows)


def _memories(tx: Tx, rows: Sequence[Any]) -> Callable[[Any, Mapping[str, Any]], int | None]:
    """What :func:`memory_after` says of each of some runs, with the template of its pool."""
    asked = [
        run
        for run in rows
        if run.attempts and revision_spec(tx, run.deployment_id, run.revision).retries.more_memory
    ]
    before = {}
    if asked:
        last = select(attempts.c.run_id, attempts.c.cause, attempts.c.memory).where(
            tuple_(attempts.c.run_id, attempts.c.number).in_([(run.id, run.attempts) for run in asked])
        )
        before = {row.run_id: row for row in tx.conn.execute(last)}

    def memory(run: Any, template: Mapping[str, Any]) -> int | None:
        if run.id not in before:
            return None
        spec = revision_spec(tx, run.deployment_id, run.revision)
        return memory_after(spec, before[run.id], {**template, **spec.variables})

    return memory


def templates_of(tx: Tx, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """The templates of pools by name; pools without one are left out."""
    if not names:
        return {}
    rows = tx.conn.execute(select(pools.c.name, pools.c.template).where(pools.c.name.in_(list(names))))
    return {row.name: row.template for row in rows if row.template}


def assignment(
    tx: Tx,
    run: Row[Any],
    attempt: int,
    epoch: int,
    session: UUID,
    pool: str,
    queue: str,
    template: dict[str, Any],
    memory: int | None = None,
) -> Assignment:
    """What an agent needs to launch an attempt.

    Args:
        run: a row of runs with name and parameters.
        template: of its pool; empty: it has none.
        memory: bytes that it gets instead of what its deployment says.
    """
    spec = revision_spec(tx, run.deployment_id, run.revision)
    work = spec.work if memory is None else spec.work.model_copy(update={"memory_limit": memory})
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
        work=work,
        exclusive=spec.exclusive,
        need=spec.need,
        template=hidden(template | spec.variables) if template else {},
    )


_DUE = select(select(ready.c.run_id).where(ready.c.due_at <= bindparam("now")).exists())


def is_due(tx: Tx) -> bool:
    """Whether any run waits that is due: if none does, there is nothing to claim. Reads only, and little."""
    return bool(tx.conn.scalar(_DUE, {"now": tx.now}))


def due_in(tx: Tx) -> float | None:
    """Seconds until something that waits may be claimable by time alone, by the store's clock.

    The next run becomes due, one may go to the agent that it avoids, or a rate allows the next start.
    """
    due: Micros | None = tx.conn.scalar(select(func.min(ready.c.due_at)).where(ready.c.due_at > tx.now))
    avoiding: Micros | None = tx.conn.scalar(
        select(func.min(ready.c.due_at)).where(
            ready.c.avoid_agent_id.is_not(None), ready.c.due_at > tx.now - AVOIDED_FOR
        )
    )
    allowed: Micros | None = tx.conn.scalar(
        select(func.min(limits.c.full_until)).where(limits.c.full_until > tx.now)
    )
    moments = [due, None if avoiding is None else avoiding + AVOIDED_FOR, allowed]
    return min(((at - tx.now) / 1_000_000 for at in moments if at is not None), default=None)
