"""Routes of pools and queues."""

from __future__ import annotations

from collections.abc import Set

from fastapi import APIRouter, Response

from shunter_work_pools.api.dependencies import TheEngine, TheIdentity
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.errors import Forbidden
from shunter_work_pools.contracts.identities import Kind
from shunter_work_pools.contracts.pools import (
    Pool,
    PoolList,
    PoolPatch,
    PoolSpec,
    Queue,
    QueuePatch,
    QueueSpec,
)
from shunter_work_pools.identities import Identity
from shunter_work_pools.queue import audit, catalog, pool_checks, remove, views
from shunter_work_pools.storage.store import Tx

#: What an agent with ``manage_pools`` says of a pool.
MANAGED = frozenset({"match", "template"})

router = APIRouter(route_class=GuardedRoute, prefix="/pools", tags=["pools"])


@router.post("", status_code=201)
async def create_pool(spec: PoolSpec, engine: TheEngine, identity: TheIdentity) -> Pool:
    """Make a pool with a queue named default."""
    if identity.kind is Kind.AGENT and spec.name not in identity.pools:
        raise Forbidden(f"agent {identity.name!r} may not make the pool {spec.name!r}", "Ask an admin.")
    _only_managed(identity, spec.model_dump(exclude_defaults=True).keys() - {"name", "type"})
    audit.about(f"pools/{spec.name}")
    template = engine.sealer.seal_variables(spec.template, "pool", spec.name)
    sealed = spec.model_copy(update={"template": template})
    await engine.store.write(lambda tx: catalog.create_pool(tx, sealed))
    return await _pool(engine, spec.name)


@router.get("")
async def list_pools(engine: TheEngine) -> PoolList:
    """All pools by name."""
    lost_after = engine.settings.lost_after
    return PoolList(pools=await engine.store.read(lambda tx: views.list_pools(tx, lost_after)))


@router.get("/{name}")
async def get_pool(name: str, engine: TheEngine) -> Pool:
    """One pool."""
    return await _pool(engine, name)


@router.patch("/{name}")
async def patch_pool(name: str, patch: PoolPatch, engine: TheEngine, identity: TheIdentity) -> Pool:
    """Change a pool; only the fields that are set."""
    _only_managed(identity, patch.model_fields_set)
    if patch.template is not None:
        template = engine.sealer.seal_variables(patch.template, "pool", name)
        patch = patch.model_copy(update={"template": template})
    await engine.pausing(lambda tx: catalog.patch_pool(tx, name, patch), patch, pool=name)
    return await _pool(engine, name)


@router.post("/{name}/queues", status_code=201)
async def create_queue(name: str, spec: QueueSpec, engine: TheEngine) -> Queue:
    """Make a queue in a pool."""
    await engine.store.write(lambda tx: catalog.create_queue(tx, name, spec))
    return await engine.store.read(lambda tx: views.queue_view(tx, name, spec.name))


@router.patch("/{name}/queues/{queue}")
async def patch_queue(name: str, queue: str, patch: QueuePatch, engine: TheEngine) -> Queue:
    """Change a queue; only the fields that are set."""
    await engine.pausing(
        lambda tx: catalog.patch_queue(tx, name, queue, patch), patch, pool=name, queue=queue
    )
    return await engine.store.read(lambda tx: views.queue_view(tx, name, queue))


@router.delete("/{name}", status_code=204, response_class=Response)
async def delete_pool(name: str, engine: TheEngine) -> None:
    """Delete one that nobody needs: no run waits or is active in it, no deployment names it, none serves it."""

    def delete(tx: Tx) -> None:
        pool_checks.forget(tx, name)
        remove.delete_pool(tx, name, engine.alive_after(tx.now))

    await engine.store.write(delete)
    engine.retain_soon()


@router.delete("/{name}/queues/{queue}", status_code=204, response_class=Response)
async def delete_queue(name: str, queue: str, engine: TheEngine) -> None:
    """Delete one that nobody needs; not ``default``."""

    def delete(tx: Tx) -> None:
        pool_checks.forget(tx, name, queue)
        remove.delete_queue(tx, name, queue, engine.alive_after(tx.now))

    await engine.store.write(delete)


def _only_managed(identity: Identity, said: Set[str]) -> None:
    """An agent that manages its pools says by what template runs start there, and which come there; how many, and
    before whom, is for people."""
    if identity.kind is Kind.AGENT and not said <= MANAGED:
        raise Forbidden(
            f"agent {identity.name!r} may set the template and the match tags of a pool only", "Ask an admin."
        )


async def _pool(engine: TheEngine, name: str) -> Pool:
    lost_after = engine.settings.lost_after
    return (await engine.store.read(lambda tx: views.list_pools(tx, lost_after, name)))[0]
