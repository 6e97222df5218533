"""Lanes: lines of waiting runs that are equal in all that a claim looks at but their due time.

One run of a lane is blocked exactly if all are, so a claim looks at lanes, not at runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, func, insert, select, text

from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.storage.schema import lane_limits, lanes, limits
from shunter_work_pools.storage.store import Tx


class LaneKey(NamedTuple):
    """What runs of one lane have in common.

    ``require``: tags that the agent must have, sorted, joined by spaces; ``need``: see :func:`need_text`;
    ``limits``: ids of shared limits, sorted, joined by spaces; ``backfill_id``: 0 is none.
    """

    queue_id: int
    priority: int
    deployment_id: int
    require: str
    need: str
    limits: str
    backfill_id: int


@dataclass(frozen=True)
class Limits:
    """The shared limits there are: ids of those that deployments name, and of those of each tag."""

    named: Mapping[str, int]
    tagged: Mapping[str, tuple[int, ...]]

    def over(self, spec: DeploymentSpec, tags: Iterable[str]) -> list[int]:
        """Ids of those that a run is under, sorted."""
        found = {self.named[name] for name in spec.limits if name in self.named}
        if self.tagged:
            found.update(limit_id for tag in tags for limit_id in self.tagged.get(tag, ()))
        return sorted(found)


_LIMITS = select(limits.c.id, limits.c.name, limits.c.tag)


def all_limits(tx: Tx) -> Limits:
    """The shared limits there are; they stay so until this transaction is over."""
    hold_limits(tx)
    return limits_there(tx)


def limits_there(tx: Tx) -> Limits:
    """The same for who only looks."""
    named: dict[str, int] = {}
    tagged: dict[str, tuple[int, ...]] = {}
    for limit_id, name, tag in tx.conn.execute(_LIMITS):
        if tag is None:
            named[name] = limit_id
        else:
            tagged[tag] = (*tagged.get(tag, ()), limit_id)
    return Limits(named, tagged)


_HOLD = text("LOCK TABLE limits IN ROW SHARE MODE")


def hold_limits(tx: Tx) -> None:
    """Nobody makes or deletes a limit until this transaction is over.

    To be called by whoever looks for lanes after it has locked leases or waiting runs, before it does: who makes
    a limit has the table first and these rows then, so the other way round they would wait for each other.
    """
    if tx.postgres:
        tx.conn.execute(_HOLD)


def need_text(need: Mapping[str, float]) -> str:
    """What runs of a lane take of an agent, ``gpu=1.0 memory=1024.0``, by name; empty: a slot alone."""
    return " ".join(f"{name}={amount!r}" for name, amount in sorted(need.items()))


@lru_cache(4096)
def needed(text: str) -> dict[str, float]:
    """What :func:`need_text` wrote; not to be changed."""
    return {name: float(amount) for name, amount in (word.split("=") for word in text.split())}


def lane_key(
    known: Limits,
    queue_id: int,
    priority: int,
    deployment_id: int,
    spec: DeploymentSpec,
    tags: Iterable[str],
    backfill_id: int | None,
) -> LaneKey:
    """The key of a run's lane.

    Args:
        known: :func:`all_limits`.
        tags: the run's.
    """
    return LaneKey(
        queue_id,
        priority,
        deployment_id,
        " ".join(sorted(spec.require)),
        need_text(spec.need),
        " ".join(map(str, known.over(spec, tags))),
        backfill_id or 0,
    )


def lane_of(
    tx: Tx,
    run: Row[Any],
    spec: DeploymentSpec,
    queue_id: int,
    *,
    priority: int | None = None,
    known: Limits | None = None,
) -> int:
    """The lane of a run; made if it is the first of its kind.

    Args:
        run: of runs, with priority, deployment_id, tags and backfill_id.
        spec: of its revision.
        priority: instead of the run's.
        known: :func:`all_limits`, where it was read already.
    """
    key = lane_key(
        all_limits(tx) if known is None else known,
        queue_id,
        run.priority if priority is None else priority,
        run.deployment_id,
        spec,
        run.tags,
        run.backfill_id,
    )
    return lanes_of(tx, [key])[key]


_LANES = select(lanes.c.id, *(lanes.c[name] for name in LaneKey._fields)).where(
    # By the beginning of the unique key, which is an index.
    lanes.c.queue_id.in_(bindparam("queues", expanding=True)),
    lanes.c.priority.in_(bindparam("priorities", expanding=True)),
    lanes.c.deployment_id.in_(bindparam("deployments", expanding=True)),
)
_SERVED_AT = (
    select(lanes.c.queue_id, lanes.c.deployment_id, func.max(lanes.c.served_at))
    .where(
        lanes.c.queue_id.in_(bindparam("queues", expanding=True)),
        lanes.c.deployment_id.in_(bindparam("deployments", expanding=True)),
    )
    .group_by(lanes.c.queue_id, lanes.c.deployment_id)
)
_NEW_LANE = insert(lanes)


def lanes_of(tx: Tx, keys: Iterable[LaneKey]) -> dict[LaneKey, int]:
    """Many lanes at once; those that do not exist are made."""
    found: dict[LaneKey, int] = {}
    unknown = []
    for key in keys:
        lane_id: int | None = tx.recall(("lane", key))
        if lane_id is None:
            unknown.append(key)
        else:
            found[key] = lane_id
    if unknown:
        there = _there(tx, unknown)
        # Made in one order: two transactions that make the same ones cannot wait for each other.
        missing = sorted(set(unknown) - there.keys())
        if missing:
            _make(tx, missing)
            there |= _there(tx, missing)
            _note_limits(tx, missing, there)
        for key in unknown:
            found[key] = tx.remember(("lane", key), there[key])
    return found


def _there(tx: Tx, keys: list[LaneKey]) -> dict[LaneKey, int]:
    wanted = {
        "queues": sorted({key.queue_id for key in keys}),
        "priorities": sorted({key.priority for key in keys}),
        "deployments": sorted({key.deployment_id for key in keys}),
    }
    return {LaneKey(*row[1:]): row[0] for row in tx.conn.execute(_LANES, wanted)}


def _make(tx: Tx, keys: list[LaneKey]) -> None:
    wanted = {
        "queues": sorted({key.queue_id for key in keys}),
        "deployments": sorted({key.deployment_id for key in keys}),
    }
    # A deployment's turn does not come sooner because its runs are of another kind now.
    served = {(row[0], row[1]): row[2] for row in tx.conn.execute(_SERVED_AT, wanted)}
    rows = [{"served_at": served.get((key.queue_id, key.deployment_id), 0), **key._asdict()} for key in keys]
    tx.conn.execute(_unless_there(tx, _NEW_LANE), rows)


def _note_limits(tx: Tx, keys: list[LaneKey], there: dict[LaneKey, int]) -> None:
    rows = [
        {"lane_id": there[key], "limit_id": int(limit_id)} for key in keys for limit_id in key.limits.split()
    ]
    if rows:
        tx.conn.execute(_unless_there(tx, insert(lane_limits)), rows)


def _unless_there(tx: Tx, statement: Any) -> Any:
    if not tx.postgres:
        return statement
    from sqlalchemy.dialects.postgresql import insert as upsert

    # Another transaction may be making it at this moment.
    return upsert(statement.table).on_conflict_do_nothing()
