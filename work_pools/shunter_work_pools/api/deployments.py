"""Routes of deployments and their revisions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from shunter_work_pools.api.dependencies import TheEngine
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.base import Name, Tag
from shunter_work_pools.contracts.deployments import (
    Applied,
    ApplyAnswer,
    ApplyRequest,
    Change,
    Deployment,
    DeploymentPage,
    DeploymentPatch,
    DeploymentSpec,
    Named,
    RevisionList,
    RollbackRequest,
)
from shunter_work_pools.contracts.explanations import Route
from shunter_work_pools.contracts.runs import EventList
from shunter_work_pools.contracts.secret_variables import SECRETS
from shunter_work_pools.engine import Engine
from shunter_work_pools.queue import apply, audit, pausing, remove, views
from shunter_work_pools.queue.explain.route import route
from shunter_work_pools.storage.store import Tx

router = APIRouter(route_class=GuardedRoute, prefix="/deployments", tags=["deployments"])


@router.post("")
async def apply_deployments(request: ApplyRequest, engine: TheEngine) -> ApplyAnswer:
    """Make or change several, all or none; with ``dry_run`` only say what would change."""
    audit.about("deployments", names=[one.name for one in request.deployments][:100])
    sealed = [_sealed(one, engine) for one in request.deployments]

    def do(tx: Tx) -> list[Change]:
        changes = apply.apply(tx, sealed, engine.times(tx.now))
        if request.dry_run:
            raise apply.DryRun(changes)
        return changes

    try:
        return ApplyAnswer(deployments=await engine.store.write(do))
    except apply.DryRun as shown:
        changes = [change.model_copy(update={"next_at": None}) for change in shown.changes]
        return ApplyAnswer(deployments=changes)


@router.put("/{name}")
async def apply_deployment(name: Annotated[Name, Path()], spec: DeploymentSpec, engine: TheEngine) -> Applied:
    """Make a deployment, or a new revision of it where the spec differs."""
    named = [_sealed(Named(name=name, spec=spec), engine)]
    (change,) = await engine.store.write(lambda tx: apply.apply(tx, named, engine.times(tx.now)))
    return await _applied(engine, change)


@router.post("/{name}/rollback")
async def rollback_deployment(name: str, request: RollbackRequest, engine: TheEngine) -> Applied:
    """Make an earlier revision the current one, as a new revision."""
    change = await engine.store.write(lambda tx: apply.rollback(tx, name, request.to, engine.times(tx.now)))
    return await _applied(engine, change)


def _sealed(one: Named, engine: Engine) -> Named:
    """With its secret values as they are stored."""
    if SECRETS not in one.spec.variables:
        return one
    variables = engine.sealer.seal_variables(one.spec.variables, "deployment", one.name)
    return one.model_copy(update={"spec": one.spec.model_copy(update={"variables": variables})})


async def _applied(engine: Engine, change: Change) -> Applied:
    found = await engine.store.read(lambda tx: views.deployment_view(tx, change.name))
    return Applied(deployment=found, changed=change.change != "unchanged", warnings=change.warnings)


@router.get("")
async def list_deployments(engine: TheEngine, cursor: str | None = None, limit: int = 100) -> DeploymentPage:
    """One page of deployments by name."""
    found, following = await engine.store.read(lambda tx: views.list_deployments(tx, cursor, limit))
    return DeploymentPage(deployments=found, next=following)


@router.get("/{name}")
async def get_deployment(name: str, engine: TheEngine) -> Deployment:
    """One deployment with its current revision."""
    return await engine.store.read(lambda tx: views.deployment_view(tx, name))


@router.get("/{name}/route")
async def route_deployment(
    name: str,
    engine: TheEngine,
    tag: Annotated[list[Tag], Query(max_length=50, description="a run's, over the deployment's")] = [],  # noqa: B006
) -> Route:
    """Where its runs go: every pool and agent, with the reason for or against."""
    return await engine.store.read(lambda tx: route(tx, name, tag, engine.settings.lost_after))


@router.patch("/{name}")
async def patch_deployment(name: str, patch: DeploymentPatch, engine: TheEngine) -> Deployment:
    """Pause or resume it."""
    await engine.pausing(
        lambda tx: pausing.patch_deployment(tx, name, patch, engine.late_after, engine.fires_since(tx.now)),
        patch,
        deployment=name,
    )
    return await engine.store.read(lambda tx: views.deployment_view(tx, name))


@router.delete("/{name}", status_code=204, response_class=Response)
async def delete_deployment(name: str, engine: TheEngine) -> None:
    """Delete one none of whose runs is active; those that wait are cancelled, its history goes."""
    deployment_id = await engine.store.write(lambda tx: remove.delete_deployment(tx, name))
    # If this is cut short, the retention loop goes on with it.
    while await engine.store.write(lambda tx: remove.cancel_waiting(tx, deployment_id)) == remove.BATCH:
        pass
    engine.retain_soon()


@router.get("/{name}/revisions")
async def list_revisions(name: str, engine: TheEngine) -> RevisionList:
    """Its revisions, newest first."""
    return RevisionList(revisions=await engine.store.read(lambda tx: views.list_revisions(tx, name)))


@router.get("/{name}/events")
async def list_deployment_events(name: str, engine: TheEngine) -> EventList:
    """What happened to it apart from its runs, oldest first."""
    return EventList(events=await engine.store.read(lambda tx: views.deployment_events(tx, name)))
