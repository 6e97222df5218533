"""Census: what waits and what runs at this moment, counted for those who watch from outside; reads only.

What is counted are the hot tables, so that history costs nothing. And what is told of is bounded: of queues,
pools, limits and resources the oldest are told of by name, of tags the most frequent; the rest is added up.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Text, case, cast, func, select

from shunter_work_pools.contracts.agents import ServerInfo
from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.drain import has_stopped
from shunter_work_pools.queue.status import late
from shunter_work_pools.queue.wanted import could_start
from shunter_work_pools.storage.schema import (
    agents,
    deployments,
    lanes,
    lease_limits,
    leases,
    limits,
    pools,
    queues,
    ready,
    runs,
)
from shunter_work_pools.storage.store import Tx

#: Queues, pools, limits and names of resources that are told of; those beyond are added up under ``OTHER``.
NAMED = 200
#: Tags that are told of, the most frequent ones.
TAGS = 100
#: What cannot be a name, nor a tag.
OTHER = "(other)"

AGENT_STATUSES = ("ready", "unwell", "paused", "draining", "stopped", "lost")


@dataclass
class Line:
    """What waits in a queue.

    Attributes:
        due: runs that could start now, were there room and nothing paused.
        upcoming: runs whose time has not come.
        oldest: seconds since the first of them was due that is not held; 0: none is.
    """

    due: int = 0
    upcoming: int = 0
    oldest: float = 0.0

    def add(self, due: int, upcoming: int, oldest: float) -> None:
        """Take in others that wait."""
        self.due += due
        self.upcoming += upcoming
        self.oldest = max(self.oldest, oldest)


@dataclass
class Room:
    """What the live agents of a pool have, and what of it is in use.

    Attributes:
        slots, capacity: of agents that were heard of lately. One that serves several pools counts in each.
        slots_used, capacity_used: what the attempts take that these agents hold, of whatever pool.
    """

    slots: int = 0
    slots_used: int = 0
    capacity: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    capacity_used: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class Limited:
    """How many live attempts count under a limit; ``most`` is None for one that only has a rate."""

    active: int = 0
    most: int | None = None


@dataclass
class Census:
    """What there is; keys are names.

    Attributes:
        waiting: by pool and queue.
        tags: waiting runs by tag.
        unplaced: waiting runs that no pool matches.
        oldest_unplaced: seconds since the first of them was due that is not held; 0: none is.
        held: waiting runs of something that is paused.
        late: waiting runs that are late.
        active: live attempts by pool.
        lost: those of agents that are silent for too long.
        wanted: live attempts by pool, and runs that could be such now, were there agents without end.
    """

    server: ServerInfo
    waiting: dict[tuple[str, str], Line]
    tags: dict[str, int]
    unplaced: int
    oldest_unplaced: float
    held: int
    late: int
    active: dict[str, int]
    lost: int
    rooms: dict[str, Room]
    agents: dict[str, int]
    limits: dict[str, Limited]
    wanted: dict[str, int] = field(default_factory=dict)


def census(tx: Tx, server: ServerInfo, lost_after: float) -> Census:
    """Count.

    Args:
        server: what the server says of itself.
        lost_after: seconds of silence after which an agent counts as lost.
    """
    waiting, in_lanes_held = _waiting(tx, everything=server.pause is not None)
    unplaced, unplaced_held, oldest_unplaced = _unplaced(tx, everything=server.pause is not None)
    active, wanted, lost = _active(tx)
    rooms, statuses = _agents(tx, tx.now - round(lost_after * 1_000_000))
    return Census(
        server=server,
        waiting=waiting,
        tags=_tags(tx),
        unplaced=unplaced,
        oldest_unplaced=oldest_unplaced,
        held=in_lanes_held + unplaced_held,
        late=late(tx),
        active=active,
        lost=lost,
        rooms=rooms,
        agents=statuses,
        limits=_limits(tx),
        wanted=wanted,
    )


def _bounded(names: Iterable[Any], other: Any) -> Mapping[Any, Any]:
    """What each of some names, oldest first, is told of as."""
    return {name: name if at < NAMED else other for at, name in enumerate(names)}


def _waiting(tx: Tx, *, everything: bool) -> tuple[dict[tuple[str, str], Line], int]:
    """What waits in lanes by pool and queue, and how many of them are held (all of them: ``everything``)."""
    in_lane = (
        select(
            ready.c.lane_id,
            func.count().label("all"),
            func.sum(case((ready.c.due_at <= tx.now, 1), else_=0)).label("due"),
            func.min(ready.c.due_at).label("oldest"),
        )
        .where(ready.c.lane_id.is_not(None))
        .group_by(ready.c.lane_id)
        .subquery()
    )
    counted = (
        select(
            lanes.c.queue_id,
            deployments.c.paused,
            func.sum(in_lane.c.all).label("all"),
            func.sum(in_lane.c.due).label("due"),
            func.min(in_lane.c.oldest).label("oldest"),
        )
        .join(lanes, lanes.c.id == in_lane.c.lane_id)
        .join(deployments, deployments.c.id == lanes.c.deployment_id)
        .group_by(lanes.c.queue_id, deployments.c.paused)
        .subquery()
    )
    rows = tx.conn.execute(
        select(
            pools.c.name.label("pool"),
            queues.c.name.label("queue"),
            (pools.c.paused | queues.c.paused).label("paused"),
            counted.c.paused.label("deployment_paused"),
            func.coalesce(counted.c.all, 0).label("all"),
            func.coalesce(counted.c.due, 0).label("due"),
            counted.c.oldest,
        )
        .select_from(queues)
        .join(pools, pools.c.id == queues.c.pool_id)
        .outerjoin(counted, counted.c.queue_id == queues.c.id)
        .where(pools.c.deleted_at.is_(None), queues.c.deleted_at.is_(None))
        .order_by(queues.c.id)
    ).all()
    told = _bounded(dict.fromkeys((row.pool, row.queue) for row in rows), (OTHER, OTHER))
    found: dict[tuple[str, str], Line] = defaultdict(Line)
    held = 0
    for row in rows:
        due, total = int(row.due), int(row.all)
        is_held = everything or row.paused or row.deployment_paused
        found[told[row.pool, row.queue]].add(due, total - due, 0.0 if is_held else _age(row.oldest, tx.now))
        if is_held:
            held += total
    return dict(found), held


def _age(due_at: Micros | None, now: Micros) -> float:
    """Seconds since what was due first was due."""
    return 0.0 if due_at is None else max(0.0, (now - due_at) / 1_000_000)


def _unplaced(tx: Tx, *, everything: bool) -> tuple[int, int, float]:
    """Runs that wait in no lane, how many of them are held, and since when the first of the others is due."""
    statement = (
        select(deployments.c.paused, func.count().label("all"), func.min(ready.c.due_at).label("oldest"))
        .select_from(ready)
        .join(runs, runs.c.id == ready.c.run_id)
        .join(deployments, deployments.c.id == runs.c.deployment_id)
        .where(ready.c.lane_id.is_(None))
        .group_by(deployments.c.paused)
    )
    rows = tx.conn.execute(statement).all()
    held = [row for row in rows if row.paused or everything]
    oldest = max((_age(row.oldest, tx.now) for row in rows if row not in held), default=0.0)
    return sum(row.all for row in rows), sum(row.all for row in held), oldest


def _tags(tx: Tx) -> dict[str, int]:
    """Waiting runs by tag. By whole sets of tags first: there are few, and ``run_tags`` is not by run."""
    tags = cast(runs.c.tags, Text).label("tags")
    statement = select(tags, func.count()).join(ready, ready.c.run_id == runs.c.id).group_by(tags)
    counted: Counter[str] = Counter()
    for text, count in tx.conn.execute(statement):
        for tag in json.loads(text):
            counted[tag] += count
    order = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in order[TAGS:])
    return dict(order[:TAGS]) | ({OTHER: rest} if rest else {})


def _active(tx: Tx) -> tuple[dict[str, int], dict[str, int], int]:
    """Live attempts by pool, those that are wanted, and how many of them are lost."""
    rows = tx.conn.execute(
        select(
            pools.c.id,
            pools.c.name,
            func.count(leases.c.run_id).label("active"),
            func.coalesce(func.sum(case((leases.c.lost, 1), else_=0)), 0).label("lost"),
        )
        .select_from(pools)
        .outerjoin(leases, leases.c.pool_id == pools.c.id)
        .where(pools.c.deleted_at.is_(None))
        .group_by(pools.c.id, pools.c.name)
        .order_by(pools.c.id)
    ).all()
    told = _bounded([row.name for row in rows], OTHER)
    startable = could_start(tx, [row.id for row in rows])
    active: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    for row in rows:
        active[told[row.name]] += row.active
        wanted[told[row.name]] += row.active + startable[row.id]
    return dict(active), dict(wanted), sum(int(row.lost) for row in rows)


def _agents(tx: Tx, alive_after: Micros) -> tuple[dict[str, Room], dict[str, int]]:
    """The room in each pool, and how many agents there are of each status."""
    names = list(
        tx.conn.scalars(select(pools.c.name).where(pools.c.deleted_at.is_(None)).order_by(pools.c.id))
    )
    told = _bounded(names, OTHER)
    resources: dict[str, str] = {}
    rooms: dict[str, Room] = {told[name]: Room() for name in names}
    statuses = dict.fromkeys(AGENT_STATUSES, 0)
    holds, takes = _held(tx)
    for row in tx.conn.execute(select(agents).order_by(agents.c.id)):
        status = _status(row, alive_after, holds[row.id])
        statuses[status] += 1
        gone = status in ("lost", "stopped")
        # Twice in what is added up is still one agent.
        for pool in dict.fromkeys(told[name] for name in row.pools if name in told):
            room = rooms[pool]
            if not gone:
                room.slots += row.limit
                room.slots_used += holds[row.id]
            for amounts, into in ((row.capacity, room.capacity), (takes[row.id], room.capacity_used)):
                for name, amount in amounts.items():
                    known = resources.setdefault(name, name if len(resources) < NAMED else OTHER)
                    into[known] += 0.0 if gone else amount  # what is gone is none, and told of
    return rooms, statuses


def _status(row: Any, alive_after: Micros, holds: int) -> str:
    if row.last_seen_at <= alive_after:
        return "stopped" if has_stopped(row, holds) else "lost"
    if row.draining or row.drain_session == row.session:
        return "draining"
    if row.paused:
        return "paused"
    return "unwell" if row.troubles else "ready"


def _held(tx: Tx) -> tuple[Counter[int], dict[int, dict[str, float]]]:
    """How many attempts each agent holds, and what they take of its capacity."""
    holds: Counter[int] = Counter()
    takes: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    what = (leases.c.agent_id, leases.c.deployment_id, leases.c.revision)
    for agent_id, deployment_id, revision, count in tx.conn.execute(
        select(*what, func.count()).group_by(*what)
    ):
        holds[agent_id] += count
        for name, amount in revision_spec(tx, deployment_id, revision).need.items():
            takes[agent_id][name] += amount * count
    return holds, takes


def _limits(tx: Tx) -> dict[str, Limited]:
    rows = tx.conn.execute(
        select(limits.c.name, limits.c.max, func.count(lease_limits.c.run_id).label("active"))
        .select_from(limits)
        .outerjoin(lease_limits, lease_limits.c.limit_id == limits.c.id)
        .group_by(limits.c.id, limits.c.name, limits.c.max)
        .order_by(limits.c.id)
    ).all()
    told = _bounded([row.name for row in rows], OTHER)
    found: dict[str, Limited] = defaultdict(Limited)
    for row in rows:
        one = found[told[row.name]]
        one.active += row.active
        if row.max is not None:
            one.most = (one.most or 0) + row.max
    return dict(found)
