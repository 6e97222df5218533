"""Routes of who asks: whom the server takes one for, and the keys of people."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from shunter_work_pools.api.dependencies import TheEngine, TheIdentity
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.errors import Conflict
from shunter_work_pools.contracts.identities import KeyList, KeyRequest, Kind, NewKey, WhoAmI
from shunter_work_pools.identities import LOCAL
from shunter_work_pools.queue import audit, keys

router = APIRouter(route_class=GuardedRoute, tags=["identities"])


@router.get("/whoami")
async def whoami(identity: TheIdentity) -> WhoAmI:
    """Whom the server takes you for."""
    return identity.told()


@router.post("/keys", status_code=201)
async def create_key(request: KeyRequest, engine: TheEngine, identity: TheIdentity) -> NewKey:
    """Make a person's key; it is told this once."""
    if request.name == LOCAL:
        raise Conflict(f"{LOCAL!r} is who has the token of the server's home", "Take another name.")
    audit.about(f"keys/person/{request.name}", role=request.role.value)
    key, token = await engine.store.write(
        lambda tx: keys.create(
            tx,
            Kind.PERSON,
            request.name,
            identity.name,
            role=request.role,
            expires_in=request.expires_in,
        )
    )
    return NewKey(key=key, token=token)


@router.get("/keys")
async def list_keys(
    engine: TheEngine, ended: Annotated[bool, Query(description="those that hold no more, too")] = False
) -> KeyList:
    """Keys of people, credentials of agents and invitations, without their tokens."""
    return KeyList(keys=await engine.store.read(lambda tx: keys.list_keys(tx, all_of_them=ended)))


@router.delete("/keys/{kind}/{name}", status_code=204, response_class=Response)
async def revoke_key(kind: Kind, name: str, engine: TheEngine) -> None:
    """Revoke all keys of a kind and name, with effect at once; held requests of theirs end."""
    await engine.store.write(lambda tx: keys.revoke(tx, kind, name))
