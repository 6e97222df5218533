"""Routes of a run that asks and tells of itself, by the token of its attempt."""

from __future__ import annotations

from fastapi import APIRouter, Response

from shunter_work_pools.api.dependencies import TheEngine, TheIdentity
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.attempts import AttemptResult, OwnAttempt, Progress
from shunter_work_pools.contracts.secrets import OwnSecrets
from shunter_work_pools.identities import attempt_over
from shunter_work_pools.queue import progress as of_runs
from shunter_work_pools.queue import secrets

router = APIRouter(route_class=GuardedRoute, prefix="/attempt", tags=["attempts"])


@router.get("")
async def get_attempt(engine: TheEngine, identity: TheIdentity) -> OwnAttempt:
    """What you are, and whether you are to stop."""
    run, number = identity.of_attempt
    found = await engine.store.read(lambda tx: of_runs.own_attempt(tx, run, number))
    if found is None:
        raise attempt_over(run, number)
    return found


@router.get("/secrets")
async def get_own_secrets(engine: TheEngine, identity: TheIdentity) -> OwnSecrets:
    """Your secrets that the server keeps, by the names of their variables."""
    run, number = identity.of_attempt
    found = await engine.store.read(lambda tx: secrets.own_secrets(tx, engine.sealer, run, number))
    if found is None:
        raise attempt_over(run, number)
    return found


@router.post("/progress", status_code=204, response_class=Response)
async def tell_progress(progress: Progress, engine: TheEngine, identity: TheIdentity) -> None:
    """Say how far you are; `run inspect` shows it."""
    run, number = identity.of_attempt
    mask = await engine.store.read(lambda tx: secrets.mask_of(tx, engine.sealer, run, number))
    shown = progress.model_copy(update={"note": mask.text(progress.note)})
    if not await engine.store.write(lambda tx: of_runs.set_progress(tx, run, number, shown)):
        raise attempt_over(run, number)


@router.put("/result", status_code=204, response_class=Response)
async def put_result(result: AttemptResult, engine: TheEngine, identity: TheIdentity) -> None:
    """Give your result; what your process leaves at its end goes before it."""
    run, number = identity.of_attempt
    mask = await engine.store.read(lambda tx: secrets.mask_of(tx, engine.sealer, run, number))
    value = mask.document(result.value)
    if not await engine.store.write(lambda tx: of_runs.set_result(tx, run, number, value)):
        raise attempt_over(run, number)
