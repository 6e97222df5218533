"""Routes of a run that asks and tells of itself, by the token of its attempt."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from shunter_work_pools import killpoints
from shunter_work_pools.api.bodies import BYTES, bytes_of
from shunter_work_pools.api.dependencies import TheEngine, TheIdentity
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.attempts import AttemptResult, OwnAttempt, Progress
from shunter_work_pools.contracts.errors import BadRequest, NotFound
from shunter_work_pools.contracts.result_pieces import ResultPiece
from shunter_work_pools.contracts.secrets import OwnSecrets
from shunter_work_pools.contracts.tasks import (
    BYTES_MEDIA_TYPE,
    PIECE_LIMIT,
    RESULT_FILE_LIMIT,
    RESULT_NAME,
    RESULT_SIZE_HEADER,
    JournalSize,
    OwnTasks,
    ResultSize,
)
from shunter_work_pools.identities import attempt_over
from shunter_work_pools.queue import progress as of_runs
from shunter_work_pools.queue import secrets, task_views

router = APIRouter(route_class=GuardedRoute, prefix="/attempt", tags=["attempts"])

ResultName = Annotated[str, Path(pattern=RESULT_NAME, description="BLAKE2b (20 bytes) of its bytes, in hex")]
Offset = Annotated[int, Query(ge=0, le=2**62)]
Size = Annotated[int, Query(ge=0, le=RESULT_FILE_LIMIT, description="bytes that all of it has")]


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


@router.put("/journal", openapi_extra=BYTES)
async def put_journal(
    request: Request, engine: TheEngine, identity: TheIdentity, offset: Offset
) -> JournalSize:
    """Bytes of your journal by offset; whole lines are taken."""
    run, number = identity.of_attempt
    data = await bytes_of(request)
    live = partial(of_runs.is_live, run_id=run, attempt=number)
    size = await engine.journals.append(run, number, offset, data, live)
    killpoints.reached("after-journals-committed")
    if size is None:
        raise attempt_over(run, number)
    return size


@router.put("/results/{name}", openapi_extra=BYTES)
async def put_task_result(
    name: ResultName,
    request: Request,
    engine: TheEngine,
    identity: TheIdentity,
    offset: Offset,
    size: Size,
) -> ResultSize:
    """Bytes of a task's result by offset; before the journal's line that names it."""
    run, number = identity.of_attempt
    data = await bytes_of(request)
    live = partial(of_runs.is_live, run_id=run, attempt=number)
    piece = ResultPiece(name=name, offset=offset, size=size, length=len(data))
    sizes = await engine.journals.put_results(run, [(piece, memoryview(data))], live)
    if sizes is None:
        raise attempt_over(run, number)
    if (refused := sizes[0].refused) is not None:
        raise BadRequest(refused)
    return sizes[0]


@router.get(
    "/results/{name}",
    response_class=Response,
    responses={200: {"content": {BYTES_MEDIA_TYPE: {}}}},
)
async def get_task_result(
    name: ResultName, engine: TheEngine, identity: TheIdentity, offset: Offset = 0
) -> Response:
    """Bytes of a task's result that this attempt or an earlier one gave, from an offset on."""
    run, _ = identity.of_attempt
    results = engine.journals.results
    size = await asyncio.to_thread(results.size, run, name)
    if size is None:
        raise NotFound(f"run {run} has no result {name}", "Execute its task again.")
    data = await asyncio.to_thread(results.read, run, name, offset, PIECE_LIMIT)
    return Response(data, media_type=BYTES_MEDIA_TYPE, headers={RESULT_SIZE_HEADER: str(size)})


@router.get("/tasks", response_model=OwnTasks)
async def get_own_tasks(
    engine: TheEngine,
    identity: TheIdentity,
    after: Annotated[str | None, Query(max_length=64, description="`next` of the page before")] = None,
    limit: int = task_views.PAGE_LIMIT,
) -> Response:
    """Task runs of this run that were completed, with what is kept of their values, by key."""
    run, number = identity.of_attempt
    page = await engine.store.read(lambda tx: task_views.own_tasks(tx, run, number, after, limit))
    # Not by pydantic: a text may hold what is no Unicode (the name of a file), and must come back as it was.
    text = await asyncio.to_thread(json.dumps, {"lines": page.lines, "next": page.next})
    return Response(text, media_type="application/json")
