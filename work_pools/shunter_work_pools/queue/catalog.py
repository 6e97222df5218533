"""Pools, queues, deployments and their revisions: what runs refer to."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, insert, select, update

from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.errors import BadRequest, Conflict, NotFound
from shunter_work_pools.contracts.pools import PoolPatch, PoolSpec, QueuePatch, QueueSpec
from shunter_work_pools.contracts.secret_variables import kept
from shunter_work_pools.queue import pauses, templates
from shunter_work_pools.queue.routing import place_unplaced
from shunter_work_pools.storage.schema import deployments, pools, queues, revisions
from shunter_work_pools.storage.store import Tx

DEFAULT_QUEUE = "default"


@dataclass(frozen=True)
class Placed:
    """A deployment as submitting needs it."""

    id: int
    name: str
    revision: int
    paused: bool
    spec: DeploymentSpec


def nearest(name: str, names: list[str]) -> str:
    """A remedy that offers the closest known name, or lists what there is."""
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    if not names:
        return "There is none yet."
    return "Known: " + ", ".join(sorted(names)[:10]) + (", ..." if len(names) > 10 else ".")


# ---- pools and queues


def pool_row(tx: Tx, name: str) -> Row[Any]:
    """The pool of a name.

    Raises:
        NotFound: there is none.
    """
    there = pools.c.deleted_at.is_(None)
    row = tx.conn.execute(select(pools).where(pools.c.name == name, there)).one_or_none()
    if row is None:
        names = list(tx.conn.scalars(select(pools.c.name).where(there).limit(1000)))
        raise NotFound(f"there is no pool {name!r}", nearest(name, names))
    return row


def queue_row(tx: Tx, pool_name: str, name: str) -> Row[Any]:
    """The queue of a name in a pool.

    Raises:
        NotFound: there is no such pool, or no such queue in it.
    """
    pool = pool_row(tx, pool_name)
    its = (queues.c.pool_id == pool.id, queues.c.deleted_at.is_(None))
    row = tx.conn.execute(select(queues).where(queues.c.name == name, *its)).one_or_none()
    if row is None:
        names = list(tx.conn.scalars(select(queues.c.name).where(*its).limit(1000)))
        raise NotFound(f"there is no queue {name!r} in pool {pool_name!r}", nearest(name, names))
    return row


def create_pool(tx: Tx, spec: PoolSpec) -> None:
    """Make a pool with its default queue; runs that fit no pool yet are looked at again.

    Raises:
        BadRequest: no run could be launched by its template.
        Conflict: the name is taken.
    """
    templates.check(spec.type, spec.template)
    if tx.conn.scalar(select(pools.c.id).where(pools.c.name == spec.name)) is not None:
        raise Conflict(
            f"there is a pool {spec.name!r} already", "Choose another name, or `shunter pool update`."
        )
    pool_id = tx.conn.execute(
        insert(pools)
        .values(
            name=spec.name,
            type=spec.type,
            match=list(spec.match),
            limit=spec.limit,
            priority=spec.priority,
            template=spec.template,
            paused=False,
            created_at=tx.now,
        )
        .returning(pools.c.id)
    ).scalar_one()
    tx.conn.execute(
        insert(queues).values(pool_id=pool_id, name=DEFAULT_QUEUE, priority=0, limit=None, paused=False)
    )
    place_unplaced(tx)


def patch_pool(tx: Tx, name: str, patch: PoolPatch) -> None:
    """Change a pool.

    Raises:
        NotFound: there is no such pool.
        BadRequest: a field that must have a value was set to null, there is a reason for nothing, or no run
            could be launched by the new template.
    """
    pool = pool_row(tx, name)
    changes = _changes(patch)
    if "template" in changes:
        changes["template"] = kept(changes["template"], pool.template)
        templates.check(pool.type, changes["template"])
    if changes:
        tx.conn.execute(update(pools).where(pools.c.id == pool.id).values(**changes))
        pauses.note(tx, "pool", pool.id, patch)
        tx.changes.pools.add(pool.id)
        if "match" in changes or "priority" in changes:
            place_unplaced(tx)


def create_queue(tx: Tx, pool_name: str, spec: QueueSpec) -> None:
    """Make a queue in a pool; runs whose queue was deleted are looked at again.

    Raises:
        NotFound: there is no such pool.
        Conflict: the pool has a queue of that name.
    """
    pool = pool_row(tx, pool_name)
    taken = select(queues.c.id).where(queues.c.pool_id == pool.id, queues.c.name == spec.name)
    if tx.conn.scalar(taken) is not None:
        raise Conflict(
            f"pool {pool_name!r} has a queue {spec.name!r} already",
            "Choose another name, or `shunter queue update`.",
        )
    tx.conn.execute(
        insert(queues).values(
            pool_id=pool.id, name=spec.name, priority=spec.priority, limit=spec.limit, paused=False
        )
    )
    place_unplaced(tx)


def patch_queue(tx: Tx, pool_name: str, name: str, patch: QueuePatch) -> None:
    """Change a queue.

    Raises:
        NotFound: there is no such pool or queue.
        BadRequest: a field that must have a value was set to null, or there is a reason for nothing.
    """
    row = queue_row(tx, pool_name, name)
    changes = _changes(patch)
    if changes:
        tx.conn.execute(update(queues).where(queues.c.id == row.id).values(**changes))
        pauses.note(tx, "queue", row.id, patch)
        tx.changes.pools.add(row.pool_id)


def _changes(patch: PoolPatch | QueuePatch) -> dict[str, Any]:
    pauses.wanted(patch)
    changes = patch.model_dump(exclude_unset=True, exclude={"reason", "by"})
    empty = [name for name, value in changes.items() if value is None and name != "limit"]
    if empty:
        raise BadRequest(f"{empty[0]} cannot be null", "Leave it out to keep it as it is.")
    return changes


# ---- deployments


def deployment_row(tx: Tx, name: str) -> Row[Any]:
    """The deployment of a name.

    Raises:
        NotFound: there is none.
    """
    there = deployments.c.deleted_at.is_(None)
    row = tx.conn.execute(select(deployments).where(deployments.c.name == name, there)).one_or_none()
    if row is None:
        names = list(tx.conn.scalars(select(deployments.c.name).where(there).limit(1000)))
        raise NotFound(f"there is no deployment {name!r}", nearest(name, names))
    return row


def deployment(tx: Tx, name: str) -> Placed:
    """The deployment of a name with its current revision.

    Raises:
        NotFound: there is none.
    """
    row = deployment_row(tx, name)
    return Placed(row.id, row.name, row.revision, row.paused, revision_spec(tx, row.id, row.revision))


def revision_spec(tx: Tx, deployment_id: int, number: int) -> DeploymentSpec:
    """The spec of a revision; revisions never change, so they are kept parsed."""
    key = ("revision", deployment_id, number)
    spec: DeploymentSpec | None = tx.recall(key)
    if spec is None:
        raw = tx.conn.execute(
            select(revisions.c.spec).where(
                revisions.c.deployment_id == deployment_id, revisions.c.number == number
            )
        ).scalar_one()
        spec = tx.remember(key, DeploymentSpec.model_validate(raw, extra="ignore"))
    return spec


def current(tx: Tx, deployment_ids: list[int]) -> dict[int, Placed]:
    """Deployments by id with their current revisions; those that are not kept yet are read at once."""
    rows = tx.conn.execute(select(deployments).where(deployments.c.id.in_(deployment_ids))).all()
    unread = [row.id for row in rows if tx.recall(("revision", row.id, row.revision)) is None]
    if unread:
        statement = select(revisions.c.deployment_id, revisions.c.number, revisions.c.spec).join(
            deployments,
            and_(deployments.c.id == revisions.c.deployment_id, deployments.c.revision == revisions.c.number),
        )
        for row in tx.conn.execute(statement.where(deployments.c.id.in_(unread))):
            spec = DeploymentSpec.model_validate(row.spec, extra="ignore")
            tx.remember(("revision", row.deployment_id, row.number), spec)
    return {
        row.id: Placed(row.id, row.name, row.revision, row.paused, revision_spec(tx, row.id, row.revision))
        for row in rows
    }
