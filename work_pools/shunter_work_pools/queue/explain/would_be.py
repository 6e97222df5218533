"""A lane as a run would be in that were made now, for what is asked of lanes before there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Integer, Row, bindparam, false, select

from shunter_work_pools.queue.catalog import Placed
from shunter_work_pools.queue.claim import FULL_LIMITS, obstacles
from shunter_work_pools.queue.lanes import limits_there
from shunter_work_pools.storage.schema import deployments, limits, pools, queues
from shunter_work_pools.storage.store import Tx

_DEPLOYMENT: Any = bindparam("deployment", type_=Integer)
_UNDER_FULL = (
    select(limits.c.id)
    .where(limits.c.id.in_(bindparam("over", expanding=True)), limits.c.id.in_(FULL_LIMITS))
    .exists()
)
_LANE = (
    select(
        queues.c.id.label("queue_id"),
        queues.c.name.label("queue"),
        queues.c.limit.label("queue_limit"),
        pools.c.id.label("pool_id"),
        pools.c.name.label("pool"),
        pools.c.limit.label("pool_limit"),
        deployments.c.id.label("deployment_id"),
        deployments.c.name.label("deployment"),
        deployments.c.max_active,
        bindparam("limits", type_=limits.c.name.type).label("limits"),
        # A backfill's limit is that of its own runs.
        *(held.label(name) for name, held in obstacles(_DEPLOYMENT, false(), _UNDER_FULL).items()),
    )
    .join(pools, pools.c.id == queues.c.pool_id)
    .join(deployments, deployments.c.id == _DEPLOYMENT)
    .where(pools.c.id == bindparam("pool"), queues.c.name == bindparam("queue"))
)


def lane_that_would_be(tx: Tx, target: Placed, tags: Sequence[str], pool_id: int, queue: str) -> Row[Any]:
    """What explanations ask of a lane: names and limits of what it belongs to, and a column for each obstacle.

    Args:
        tags: of the run.
        queue: its name.
    """
    over = limits_there(tx).over(target.spec, tags)
    given = {
        "deployment": target.id,
        "over": over,
        "limits": " ".join(map(str, over)),
        "pool": pool_id,
        "queue": queue,
        "now": tx.now,
    }
    (lane,) = list[Row[Any]](tx.conn.execute(_LANE, given))
    return lane
