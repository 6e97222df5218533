"""Routes of who asks."""

from __future__ import annotations

from fastapi import APIRouter

from shunter_work_pools.api.dependencies import TheIdentity
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.identities import WhoAmI

router = APIRouter(route_class=GuardedRoute, tags=["identities"])


@router.get("/whoami")
async def whoami(identity: TheIdentity) -> WhoAmI:
    """Whom the server takes you for."""
    return identity.told()
