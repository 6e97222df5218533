"""Where a run goes: to the pool it names, or to the one whose match tags it all carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Row, bindparam, insert, select, update

from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.storage.schema import lanes, pools, queues, ready, runs

if TYPE_CHECKING:
    from shunter_work_pools.storage.store import Tx

_NAMED = (
    select(pools.c.id.label("pool_id"), queues.c.id.label("queue_id"))
    .join(queues, queues.c.pool_id == pools.c.id)
    .where(pools.c.name == bindparam("pool"), queues.c.name == bindparam("queue"))
)
_BY_TAGS = (
    select(pools.c.id, pools.c.name, pools.c.match, pools.c.priority, queues.c.id.label("queue_id"))
    .join(queues, queues.c.pool_id == pools.c.id)
    .where(queues.c.name == "default", pools.c.deleted_at.is_(None))
)
_LANES = select(
    lanes.c.id,
    lanes.c.queue_id,
    lanes.c.priority,
    lanes.c.deployment_id,
    lanes.c.require,
    lanes.c.backfill_id,
).where(
    # By the beginning of the unique key, which is an index.
    lanes.c.queue_id.in_(bindparam("queues", expanding=True)),
    lanes.c.priority.in_(bindparam("priorities", expanding=True)),
    lanes.c.deployment_id.in_(bindparam("deployments", expanding=True)),
)
_NEW_LANE = insert(lanes)


def matching_pools(tx: Tx) -> Sequence[Row[Any]]:
    """The pools that take runs by their tags, the first that fits is the one."""
    rows = [row for row in list[Row[Any]](tx.conn.execute(_BY_TAGS)) if row.match]
    return sorted(rows, key=lambda row: (-len(row.match), -row.priority, row.name))


def place(
    tx: Tx, spec: DeploymentSpec, tags: list[str], by_tags: Sequence[Row[Any]] | None = None
) -> tuple[int, int] | None:
    """Pool and queue (their ids) of a run with ``tags``; None while nothing matches.

    A pool matches if the run carries all of its match tags; one without match tags takes only what
    names it. Several: the one with most match tags, then the highest priority, then by name.

    Args:
        by_tags: :func:`matching_pools`, where many runs are placed at once.
    """
    if spec.pool is not None:
        # Not remembered: a name may come to mean another pool.
        found = tx.conn.execute(_NAMED, {"pool": spec.pool, "queue": spec.queue or "default"}).one_or_none()
        return None if found is None else (found.pool_id, found.queue_id)
    carried = set(tags)
    for pool in matching_pools(tx) if by_tags is None else by_tags:
        if carried.issuperset(pool.match):
            return pool.id, pool.queue_id
    return None


#: What an agent can do that speaks a protocol, beside its tags; no tag begins with ~.
_ABILITIES: dict[int, frozenset[str]] = {1: frozenset(), 2: frozenset({"~limits"})}


def abilities(protocol: int) -> frozenset[str]:
    """What an agent that speaks this version of the protocol can do, in the words of :func:`demands`."""
    return _ABILITIES[protocol]


def demands(spec: DeploymentSpec) -> list[str]:
    """What a run asks of its agent: tags, and that it keeps to what older ones would not even read.

    An agent of protocol 1 would let an exclusive run go on past its lease, and would not limit its memory.
    """
    limits = spec.exclusive or spec.work.memory_limit is not None
    return [*spec.require, "~limits"] if limits else spec.require


def marked(run: Any) -> bool:
    """What ``ready.late`` says of a run: it is late already, or a backfill's, which never will be.

    Args:
        run: a row of runs, or a run that is about to be made.
    """
    return bool(run.late) or run.backfill_id is not None


class LaneKey(NamedTuple):
    """What runs of one lane have in common.

    ``require``: their :func:`demands`, sorted, joined by spaces; ``backfill_id``: 0 is none.
    """

    queue_id: int
    priority: int
    deployment_id: int
    require: str
    backfill_id: int


def lane_of(
    tx: Tx,
    queue_id: int,
    priority: int,
    deployment_id: int,
    require: list[str],
    backfill_id: int | None,
) -> int:
    """The lane of runs that are equal in all but their due time; made at the first of them."""
    key = LaneKey(queue_id, priority, deployment_id, " ".join(sorted(require)), backfill_id or 0)
    return lanes_of(tx, [key])[key]


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
        there = _lanes_there(tx, unknown)
        # Made in one order: two transactions that make the same ones cannot wait for each other.
        missing = sorted(set(unknown) - there.keys())
        if missing:
            tx.conn.execute(_new_lanes(tx), [{"served_at": 0, **key._asdict()} for key in missing])
            there |= _lanes_there(tx, missing)
        for key in unknown:
            found[key] = tx.remember(("lane", key), there[key])
    return found


def _lanes_there(tx: Tx, keys: list[LaneKey]) -> dict[LaneKey, int]:
    wanted = {
        "queues": sorted({key.queue_id for key in keys}),
        "priorities": sorted({key.priority for key in keys}),
        "deployments": sorted({key.deployment_id for key in keys}),
    }
    return {LaneKey(*row[1:]): row[0] for row in tx.conn.execute(_LANES, wanted)}


def _new_lanes(tx: Tx) -> Any:
    if not tx.postgres:
        return _NEW_LANE
    from sqlalchemy.dialects.postgresql import insert as upsert

    # Another transaction may be making it at this moment.
    return upsert(lanes).on_conflict_do_nothing()


def place_unplaced(tx: Tx) -> None:
    """Look again at the runs that fit no pool; called when pools change."""
    from shunter_work_pools.queue.catalog import revision_spec
    from shunter_work_pools.queue.events import event_row, record

    waiting = tx.conn.execute(
        select(
            runs.c.id,
            runs.c.deployment_id,
            runs.c.revision,
            runs.c.priority,
            runs.c.tags,
            runs.c.backfill_id,
        )
        .join(ready, ready.c.run_id == runs.c.id)
        .where(ready.c.lane_id.is_(None))
        .order_by(runs.c.id)
        .with_for_update(of=ready)
    ).all()
    rows = []
    by_tags = matching_pools(tx)
    for run in waiting:
        spec = revision_spec(tx, run.deployment_id, run.revision)
        found = place(tx, spec, run.tags, by_tags)
        if found is None:
            continue
        pool_id, queue_id = found
        lane_id = lane_of(tx, queue_id, run.priority, run.deployment_id, demands(spec), run.backfill_id)
        tx.conn.execute(update(runs).where(runs.c.id == run.id).values(pool_id=pool_id, queue_id=queue_id))
        tx.conn.execute(update(ready).where(ready.c.run_id == run.id).values(lane_id=lane_id))
        tx.changes.pools.add(pool_id)
        tx.changes.runs.add(run.id)
        rows.append(event_row(run.id, "routed", Actor.QUEUE, tx.now))
    record(tx, rows)
