"""Routes by which people sign in with an account of elsewhere; nobody has a token yet who comes here."""

from __future__ import annotations

from fastapi import APIRouter, Request

from shunter_work_pools.api.dependencies import TheEngine
from shunter_work_pools.api.permissions import GuardedRoute, address_of
from shunter_work_pools.contracts.errors import Forbidden, NotFound, Unauthenticated
from shunter_work_pools.contracts.identities import Kind, NewKey
from shunter_work_pools.contracts.sign_in import SIGNED_IN_FOR, SignInInfo, SignInRequest
from shunter_work_pools.queue import keys
from shunter_work_pools.queue.audit import Deed
from shunter_work_pools.storage.store import BEHALF

router = APIRouter(route_class=GuardedRoute, tags=["identities"])


@router.get("/sign-in")
async def sign_in_info(engine: TheEngine) -> SignInInfo:
    """Where people sign in, if they can."""
    return SignInInfo() if engine.sign_in is None else engine.sign_in.info


@router.post("/sign-in", status_code=201)
async def sign_in(body: SignInRequest, request: Request, engine: TheEngine) -> NewKey:
    """Change an ID token of the provider for a key that holds for twelve hours."""
    if engine.sign_in is None:
        raise NotFound("this server knows no provider to sign in with", "Ask an admin for a key.")
    deed = Deed("", "", address_of(request.scope), "sign_in", "sign-in", 201)
    try:
        name, role = await engine.sign_in.known(body.id_token)
    except (Unauthenticated, Forbidden) as refused:
        deed.status, deed.detail = refused.status, {"reason": refused.detail}
        engine.refusals.note(deed)
        raise
    deed.who, deed.name, deed.kind, deed.detail = name, name, Kind.PERSON.value, {"role": role.value}
    BEHALF.set(deed)
    by = f"sign-in at {engine.sign_in.info.issuer}"
    key, token = await engine.store.write(
        lambda tx: keys.create(
            tx, Kind.PERSON, name, by[:200], role=role, expires_in=SIGNED_IN_FOR, beside=True
        )
    )
    return NewKey(key=key, token=token)
