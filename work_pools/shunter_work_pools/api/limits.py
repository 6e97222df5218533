"""Routes of limits."""

from __future__ import annotations

from fastapi import APIRouter, Response

from shunter_work_pools.api.dependencies import TheEngine
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.limits import Limit, LimitList, LimitPatch, LimitSpec
from shunter_work_pools.queue import audit, limits

router = APIRouter(route_class=GuardedRoute, prefix="/limits", tags=["limits"])


@router.post("", status_code=201)
async def create_limit(spec: LimitSpec, engine: TheEngine) -> Limit:
    """Make a limit; one of a tag holds at once, also for the runs that wait and run."""
    audit.about(f"limits/{spec.name}")
    await engine.store.write(lambda tx: limits.create_limit(tx, spec))
    return await _limit(engine, spec.name)


@router.get("")
async def list_limits(engine: TheEngine) -> LimitList:
    """All limits by name."""
    return LimitList(limits=await engine.store.read(limits.list_limits))


@router.get("/{name}")
async def get_limit(name: str, engine: TheEngine) -> Limit:
    """One limit, with what it counts now."""
    return await _limit(engine, name)


@router.patch("/{name}")
async def patch_limit(name: str, patch: LimitPatch, engine: TheEngine) -> Limit:
    """Change a limit; only the fields that are set."""
    await engine.store.write(lambda tx: limits.patch_limit(tx, name, patch))
    return await _limit(engine, name)


@router.delete("/{name}", status_code=204, response_class=Response)
async def delete_limit(name: str, engine: TheEngine) -> None:
    """Delete one that no deployment names; what it held back goes on."""
    await engine.store.write(lambda tx: limits.delete_limit(tx, name))


async def _limit(engine: TheEngine, name: str) -> Limit:
    return (await engine.store.read(lambda tx: limits.list_limits(tx, name)))[0]
