"""Routes of secrets. None of them gives a value to a person; agents get those of what they hold by their own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from shunter_work_pools.api.dependencies import TheEngine
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.base import Name
from shunter_work_pools.contracts.secrets import Secret, SecretList, SecretValue
from shunter_work_pools.queue import secrets

router = APIRouter(route_class=GuardedRoute, prefix="/secrets", tags=["secrets"])


@router.get("")
async def list_secrets(engine: TheEngine) -> SecretList:
    """All secrets by name, without their values."""
    return SecretList(secrets=await engine.store.read(lambda tx: secrets.list_secrets(tx, engine.sealer)))


@router.get("/{name}")
async def get_secret(name: str, engine: TheEngine) -> Secret:
    """One secret, without its value."""
    return (await engine.store.read(lambda tx: secrets.list_secrets(tx, engine.sealer, name)))[0]


@router.put("/{name}")
async def set_secret(name: Annotated[Name, Path()], body: SecretValue, engine: TheEngine) -> Secret:
    """Make a secret or give it another value, which attempts get that start from now on."""
    return await engine.store.write(lambda tx: secrets.set_secret(tx, engine.sealer, name, body.value))


@router.delete("/{name}", status_code=204, response_class=Response)
async def delete_secret(name: str, engine: TheEngine, force: bool = False) -> None:
    """Delete one that no deployment names; with ``force`` any: runs that need it do not start then."""
    await engine.store.write(lambda tx: secrets.delete_secret(tx, name, force=force))
