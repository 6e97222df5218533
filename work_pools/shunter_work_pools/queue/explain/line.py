"""Who waits before a run that nothing holds back, as a claim would serve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, func, or_, select, tuple_

from shunter_work_pools.queue.claim import DEMANDING, DUE, KIND, OBSTACLES
from shunter_work_pools.queue.standing import Standing, could_take
from shunter_work_pools.storage.schema import lanes, queues, ready
from shunter_work_pools.storage.store import Tx

#: Runs that are counted; of more it is said that there are more.
COUNTED = 1000
#: Lanes that are looked at first, and whose deployments are counted.
FEW = 100
#: Obstacles of the pool, or of all.
_OF_POOL = frozenset({"server_paused", "pool_paused", "pool_full"})

#: Lanes with something due that nothing holds back, of a pool that nothing holds back.
_FREE = (
    select(lanes.c.id)
    .join(queues, queues.c.id == lanes.c.queue_id)
    .where(
        queues.c.pool_id == bindparam("pool"),
        *(~obstacle for name, obstacle in OBSTACLES.items() if name not in _OF_POOL),
        DUE,
    )
)
_LEVEL = tuple_(queues.c.priority, lanes.c.priority)
_MINE = tuple_(bindparam("queue_priority"), bindparam("priority"))
_BEFORE = _FREE.where(_MINE < _LEVEL).limit(bindparam("most"))
_BESIDE = (
    _FREE.with_only_columns(lanes.c.deployment_id)
    .where(_MINE == _LEVEL, lanes.c.deployment_id != bindparam("deployment"))
    .limit(FEW + 1)
)


@dataclass(frozen=True)
class Line:
    """Who waits before a run.

    Attributes:
        ahead: due runs that come first, ``COUNTED`` + 1 at the most: of higher priority, or of its own deployment
            and due before it.
        turns: other deployments of the same priority, which are served in turn with its own.
        more_turns: there may be more of these.
    """

    ahead: int
    turns: int
    more_turns: bool = False


def line_of(tx: Tx, run: Row[Any], lane: Row[Any], able: Sequence[Standing]) -> Line:
    """Who waits before a run.

    Args:
        run: of runs, with ``due_at``.
        lane: its own.
        able: the agents that could take it; what none of these could take is not before it.
    """
    given = {
        "pool": lane.pool_id,
        "queue_priority": lane.queue_priority,
        "priority": lane.priority,
        "deployment": lane.deployment_id,
        "now": tx.now,
    }
    others = _of_others(tx, lane, able)
    beside = list(tx.conn.scalars(_BESIDE.where(*others), given))
    first = or_(ready.c.due_at < run.due_at, (ready.c.due_at == run.due_at) & (ready.c.run_id < run.id))
    ahead = _count(tx, ready.c.lane_id == lane.id, ready.c.due_at <= run.due_at, first)
    ahead += _in_lanes(tx, _BEFORE.where(*others), given)
    return Line(min(ahead, COUNTED + 1), len(set(beside)), len(beside) > FEW)


def _in_lanes(tx: Tx, before: Select[Any], given: dict[str, Any]) -> int:
    """How many due runs are in some lanes; a few of these are enough as a rule, as they are long where there are many."""
    for most in (FEW, COUNTED):
        ids = list(tx.conn.scalars(before, given | {"most": most + 1}))
        count = _count(tx, ready.c.lane_id.in_(ids), ready.c.due_at <= tx.now) if ids else 0
        if len(ids) <= most or count > COUNTED:
            return count
    return COUNTED + 1


def _of_others(tx: Tx, lane: Row[Any], able: Sequence[Standing]) -> list[ColumnElement[bool]]:
    """What is true of lanes that some agents could take runs from."""
    found: list[ColumnElement[bool]] = []
    if all(one.offer.queues for one in able):
        found.append(queues.c.name.in_({name for one in able for name in one.offer.queues}))
    others = [
        (kind.queue_id, kind.require, kind.need)
        for kind in list[Row[Any]](tx.conn.execute(DEMANDING, {"pools": [lane.pool_id]}))
        if not any(could_take(one.offer, kind) for one in able)
    ]
    if others:
        found.append(KIND.not_in(others))
    return found


def _count(tx: Tx, *conditions: ColumnElement[bool]) -> int:
    some = select(ready.c.run_id).where(*conditions).limit(COUNTED + 1).subquery()
    return tx.conn.scalar(select(func.count()).select_from(some)) or 0
