"""Where a run goes: to the pool it names, or to the one whose match tags it all carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, bindparam, select, update

from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue.lanes import all_limits, lane_of
from shunter_work_pools.storage.schema import pools, queues, ready, runs

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


def marked(run: Any) -> bool:
    """What ``ready.late`` says of a run: it is late already, or a backfill's, which never will be.

    Args:
        run: a row of runs, or a run that is about to be made.
    """
    return bool(run.late) or run.backfill_id is not None


def place_unplaced(tx: Tx) -> None:
    """Look again at the runs that fit no pool; called when pools change."""
    from shunter_work_pools.queue.catalog import revision_spec
    from shunter_work_pools.queue.events import event_row, record

    waiting: Sequence[Any] = tx.conn.execute(
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
        # Runs, too: the priority that somebody changes at this moment is the one that counts.
        .with_for_update(of=[ready, runs])
    ).all()
    rows = []
    by_tags = matching_pools(tx)
    known = all_limits(tx)
    for run in waiting:
        spec = revision_spec(tx, run.deployment_id, run.revision)
        found = place(tx, spec, run.tags, by_tags)
        if found is None:
            continue
        pool_id, queue_id = found
        lane_id = lane_of(tx, run, spec, queue_id, known=known)
        tx.conn.execute(update(runs).where(runs.c.id == run.id).values(pool_id=pool_id, queue_id=queue_id))
        tx.conn.execute(update(ready).where(ready.c.run_id == run.id).values(lane_id=lane_id))
        tx.changes.pools.add(pool_id)
        tx.changes.runs.add(run.id)
        rows.append(event_row(run.id, "routed", Actor.QUEUE, tx.now))
    record(tx, rows)
