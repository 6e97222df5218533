"""Routes by which agents come: invitations, joining, the renewal of credentials."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from shunter_work_pools import killpoints
from shunter_work_pools.api.dependencies import TheEngine, TheIdentity
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.base import Name
from shunter_work_pools.contracts.identities import (
    Credential,
    CredentialRequest,
    InvitationRequest,
    JoinRequest,
    NewKey,
)
from shunter_work_pools.queue import audit, joining

router = APIRouter(route_class=GuardedRoute, tags=["agents"])


@router.post("/invitations", status_code=201)
async def invite_agents(body: InvitationRequest, engine: TheEngine, identity: TheIdentity) -> NewKey:
    """Make an enrolment token, by which agents join a pool; it is shown this once."""
    audit.about(f"invitations/{body.name or body.pool}", pool=body.pool, uses=body.uses)
    return await engine.store.write(lambda tx: joining.invite(tx, body, identity.name))


@router.post("/join")
async def join(body: JoinRequest, engine: TheEngine, identity: TheIdentity) -> Credential:
    """Become an agent, by an enrolment token; the same request again is answered alike, and spends nothing."""
    assert identity.key_id is not None
    key_id, holds_for = identity.key_id, engine.settings.credential_for
    audit.about(f"agents/{body.name}", host=body.host)
    made = await engine.store.write(
        lambda tx: joining.join(tx, key_id, body, engine.silence(tx.now).alive_after, holds_for)
    )
    killpoints.reached("after-join-committed")
    return made


@router.post("/agents/{name}/credential")
async def renew_credential(
    name: Annotated[Name, Path()], body: CredentialRequest, engine: TheEngine, identity: TheIdentity
) -> Credential:
    """Give an agent a new token of its own making; its old one holds until the new one was used."""
    key_id, holds_for = identity.key_id, engine.settings.credential_for
    made = await engine.store.write(lambda tx: joining.renew(tx, key_id, body, holds_for))
    killpoints.reached("after-renewal-committed")
    return made
