"""The route of the audit."""

from __future__ import annotations

from fastapi import APIRouter

from shunter_work_pools.api.dependencies import TheEngine
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.audit import AuditPage
from shunter_work_pools.contracts.base import Instant
from shunter_work_pools.queue import audit

router = APIRouter(route_class=GuardedRoute, tags=["identities"])


@router.get("/audit")
async def list_audit(
    engine: TheEngine,
    who: str | None = None,
    action: str | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> AuditPage:
    """Who did what, and what was refused to whom; newest first."""
    found, following = await engine.store.read(
        lambda tx: audit.entries(
            tx, who=who, action=action, since=since, until=until, cursor=cursor, limit=limit
        )
    )
    return AuditPage(entries=found, next=following)
