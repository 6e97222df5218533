"""Checks of pools: a deployment of the server's own for each pool that was ever checked, and one run of it at a time.

It is a deployment like any other, seen by everybody, so that what delays or refuses other runs does so with its runs.
Its command is fixed here: who may ask for a check, an agent among them, may not say what is run.
"""

from __future__ import annotations

import zlib
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select, text

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import DeploymentSpec, Keep, Named, Work
from shunter_work_pools.contracts.errors import Conflict, NotFound
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.queue import remove
from shunter_work_pools.queue.apply import Times, apply
from shunter_work_pools.queue.catalog import DEFAULT_QUEUE, deployment, deployment_row, pool_row
from shunter_work_pools.queue.submit import submit
from shunter_work_pools.storage.schema import agents, lanes, queues, ready, runs
from shunter_work_pools.storage.store import Tx

TAG = "check"
#: What is run: a program that nearly every image and machine has, and that does nothing.
COMMAND = ("echo", "This pool runs what it is given.")
#: Seconds that it may take, once it runs.
TIMEOUT = 60.0
#: By this a deployment is known for the server's own.
DESCRIPTION = (
    "Made by the server, for `shunter pool check`: see that runs come through. It is changed by no deploy."
)
#: Before all that waits.
_PRIORITY = 1000
_KEPT = 10
#: Characters of a name.
_LONGEST = 100
_LOCK = text("SELECT pg_advisory_xact_lock(1936225907, :pool)")


def name_of(pool: str) -> str:
    """The name of a pool's deployment."""
    name = f"check-{pool}"
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{zlib.crc32(pool.encode()):08x}"


def start(tx: Tx, pool: str, times: Times, alive_after: Micros) -> tuple[UUID, bool]:
    """The check of a pool that has not ended: its run, and whether it was made now.

    One that waits for a later time, or in a queue that nobody serves by now, is none: it would be waited for in vain.

    Args:
        alive_after: agents heard of since this moment count as alive.

    Raises:
        NotFound: there is no such pool.
        Conflict: somebody has a deployment of that name.
    """
    row = pool_row(tx, pool)
    if tx.postgres:  # two that ask at once shall not make two
        tx.conn.execute(_LOCK, {"pool": row.id})
    found, queue = _own(tx, pool), _queue(tx, row, alive_after)
    if found is not None:
        elsewhere = (
            select(ready.c.run_id)
            .join(lanes, lanes.c.id == ready.c.lane_id)
            .join(queues, queues.c.id == lanes.c.queue_id)
            .where(lanes.c.deployment_id == found.id, queues.c.name != queue)
        )
        its = (
            runs.c.deployment_id == found.id,
            runs.c.ended_at.is_(None),
            runs.c.scheduled_at <= tx.now,
            runs.c.id.not_in(elsewhere),
        )
        under_way: UUID | None = tx.conn.scalar(
            select(runs.c.id).where(*its).order_by(runs.c.id.desc()).limit(1)
        )
        if under_way is not None:
            return under_way, False
    spec = DeploymentSpec(
        work=Work(command=list(COMMAND), timeout=TIMEOUT),
        tags=[TAG],
        pool=pool,
        queue=queue,
        priority=_PRIORITY,
        keep=Keep(runs=_KEPT),
        description=DESCRIPTION,
    )
    apply(tx, [Named(name=name_of(pool), spec=spec)], times)
    ((run, _),) = submit(tx, [RunRequest(deployment=name_of(pool))])
    return run, True


def belongs(tx: Tx, pool: str, run: UUID) -> None:
    """See that a run is a check of a pool.

    Raises:
        NotFound: there is no such pool, or the run is none of its checks.
    """
    pool_row(tx, pool)
    found = _own(tx, pool, refusing=False)
    its = None if found is None else tx.conn.scalar(select(runs.c.deployment_id).where(runs.c.id == run))
    if found is None or its != found.id:
        raise NotFound(f"{run} is no check of pool {pool!r}", f"`shunter pool check {pool}` makes one.")


def forget(tx: Tx, pool: str, queue: str | None = None) -> None:
    """Delete a pool's check, and the run of it that waits, as the pool, or the queue of it, is to go.

    Args:
        queue: only if it is there.

    Raises:
        Conflict: it is active.
    """
    found = _own(tx, pool, refusing=False)
    if found is not None and queue in (None, deployment(tx, found.name).spec.queue):
        remove.cancel_waiting(tx, remove.delete_deployment(tx, found.name))


def _own(tx: Tx, pool: str, *, refusing: bool = True) -> Row[Any] | None:
    """The pool's deployment; None: it has none, or, unless that is refused, it is somebody else's.

    Raises:
        Conflict: it is somebody else's.
    """
    try:
        row = deployment_row(tx, name_of(pool))
    except NotFound:
        return None
    if deployment(tx, row.name).spec.description == DESCRIPTION:
        return row
    if refusing:
        raise Conflict(
            f"there is a deployment {row.name!r} that the server has not made, and by that name it would check pool {pool!r}",
            "Deploy it under another name, and delete this one.",
        )
    return None


def _queue(tx: Tx, pool: Row[Any], alive_after: Micros) -> str:
    """The default one; if no agent of the pool takes from that, the first that one takes from."""
    its = select(queues.c.name).where(queues.c.pool_id == pool.id, queues.c.deleted_at.is_(None))
    there = set(tx.conn.scalars(its))
    alive = tx.conn.execute(
        select(agents.c.pools, agents.c.queues).where(agents.c.last_seen_at > alive_after)
    )
    served: set[str] = set()
    for one in alive:
        if pool.name in one.pools:
            served |= there.intersection(one.queues) if one.queues else there
    return DEFAULT_QUEUE if DEFAULT_QUEUE in served or not served else min(served)
