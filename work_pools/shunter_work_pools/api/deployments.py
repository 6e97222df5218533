"""Routes of deployments and their revisions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from shunter_work_pools.api.dependencies import TheEngine
from shunter_work_pools.contracts.base import Name
from shunter_work_pools.contracts.deployments import (
    Applied,
    Deployment,
    DeploymentPage,
    DeploymentPatch,
    DeploymentSpec,
    RevisionList,
)
from shunter_work_pools.contracts.pools import Pool
from shunter_work_pools.queue import catalog, routing, views
from shunter_work_pools.storage.store import Tx

router = APIRouter(prefix="/deployments", tags=["deployments"])


@router.put("/{name}")
async def apply_deployment(name: Annotated[Name, Path()], spec: DeploymentSpec, engine: TheEngine) -> Applied:
    """Make a deployment, or a new revision of it where the spec differs."""
    changed = await engine.store.write(lambda tx: catalog.apply_deployment(tx, name, spec))
    lost_after = engine.settings.lost_after

    def look(tx: Tx) -> Applied:
        warnings = _warnings(spec, routing.place(tx, spec, spec.tags), views.list_pools(tx, lost_after))
        return Applied(deployment=views.deployment_view(tx, name), changed=changed, warnings=warnings)

    return await engine.store.read(look)


def _warnings(spec: DeploymentSpec, place: tuple[int, int] | None, pools: list[Pool]) -> list[str]:
    """What will keep its runs waiting."""
    if place is None:
        return ["no pool matches its tags: its runs will wait until one does"]
    if spec.pool is None:
        return []
    pool = next(pool for pool in pools if pool.name == spec.pool)
    if not pool.agents:
        return [f"no agent serves pool {pool.name}: its runs will wait until one does"]
    return []


@router.get("")
async def list_deployments(engine: TheEngine, cursor: str | None = None, limit: int = 100) -> DeploymentPage:
    """One page of deployments by name."""
    found, following = await engine.store.read(lambda tx: views.list_deployments(tx, cursor, limit))
    return DeploymentPage(deployments=found, next=following)


@router.get("/{name}")
async def get_deployment(name: str, engine: TheEngine) -> Deployment:
    """One deployment with its current revision."""
    return await engine.store.read(lambda tx: views.deployment_view(tx, name))


@router.patch("/{name}")
async def patch_deployment(name: str, patch: DeploymentPatch, engine: TheEngine) -> Deployment:
    """Pause or resume it."""
    await engine.store.write(
        lambda tx: catalog.patch_deployment(tx, name, patch, engine.late_after, engine.fires_since(tx.now))
    )
    return await engine.store.read(lambda tx: views.deployment_view(tx, name))


@router.get("/{name}/revisions")
async def list_revisions(name: str, engine: TheEngine) -> RevisionList:
    """Its revisions, newest first."""
    return RevisionList(revisions=await engine.store.read(lambda tx: views.list_revisions(tx, name)))
