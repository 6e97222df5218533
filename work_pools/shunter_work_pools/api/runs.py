"""Routes of runs: make, list, look, cancel, retry, logs."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Response

from shunter_work_pools import killpoints
from shunter_work_pools.api.dependencies import TheEngine, answer
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.base import Instant
from shunter_work_pools.contracts.errors import BadRequest, Gone, NotFound
from shunter_work_pools.contracts.explanations import Explanation
from shunter_work_pools.contracts.runs import (
    Attempt,
    EventList,
    ExportPage,
    Manifest,
    Run,
    RunBatch,
    RunCreated,
    RunPage,
    RunPatch,
    RunRequest,
    RunsCreated,
)
from shunter_work_pools.contracts.states import ATTEMPT_ENDS, RUN_ENDS
from shunter_work_pools.engine import Engine
from shunter_work_pools.queue import audit, control, views
from shunter_work_pools.queue.explain import explain
from shunter_work_pools.queue.submit import submit
from shunter_work_pools.storage.log_gaps import Extent

router = APIRouter(route_class=GuardedRoute, prefix="/runs", tags=["runs"])

#: Longest time, in seconds, that a look at a run is held.
HOLD_LIMIT = 10.0
#: Bytes of one log answer.
LOG_CHUNK = 4 * 1024 * 1024
_ENDED = {state.value for state in RUN_ENDS}
_ATTEMPT_ENDED = {state.value for state in ATTEMPT_ENDS}
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")

Wait = Annotated[float, Query(ge=0, le=HOLD_LIMIT, description="seconds the answer may be held")]


@router.post("", status_code=201, response_model=RunCreated)
async def create_run(request: RunRequest, engine: TheEngine) -> Response:
    """Make one run; 200 instead of 201 if its idempotency key had made it before."""
    audit.about(f"deployments/{request.deployment}")
    ((run_id, created),) = await engine.store.write(lambda tx: submit(tx, [request]))
    killpoints.reached("after-run-created")
    return answer(RunCreated.model_construct(id=run_id, created=created), 201 if created else 200)


@router.post("/batch", status_code=201)
async def create_runs(batch: RunBatch, engine: TheEngine) -> RunsCreated:
    """Make many runs, all or none."""
    audit.about("runs", count=len(batch.runs))
    made = await engine.store.write(lambda tx: submit(tx, batch.runs))
    return RunsCreated(runs=[RunCreated(id=run_id, created=created) for run_id, created in made])


def _wanted(
    state: Annotated[list[str], Query(description="any of these")] = [],  # noqa: B006
    tag: Annotated[list[str], Query(description="all of these")] = [],  # noqa: B006
    pool: str | None = None,
    queue: str | None = None,
    deployment: str | None = None,
    late: bool | None = None,
    held: bool | None = None,
    created_after: Instant | None = None,
    created_before: Instant | None = None,
    scheduled_after: Instant | None = None,
    scheduled_before: Instant | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> views.RunFilter:
    if queue is not None and pool is None:
        raise BadRequest("queue needs pool", "Name the pool whose queue it is.")
    return views.RunFilter(
        states=tuple(state),
        tags=tuple(tag),
        pool=pool,
        queue=queue,
        deployment=deployment,
        late=late,
        held=held,
        created_after=created_after,
        created_before=created_before,
        scheduled_after=scheduled_after,
        scheduled_before=scheduled_before,
        cursor=cursor,
        limit=limit,
    )


#: The filters that all lists of runs have.
Wanted = Annotated[views.RunFilter, Depends(_wanted)]


@router.get("", response_model=RunPage)
async def list_runs(engine: TheEngine, wanted: Wanted) -> Response:
    """One page of runs, newest first: by creation, or with a bound of scheduled time by that."""
    found, following = await engine.store.read(lambda tx: views.list_runs(tx, wanted))
    return answer(RunPage.model_construct(runs=found, next=following))


@router.get("/export", response_model=ExportPage)
async def export_runs(engine: TheEngine, wanted: Wanted) -> Response:
    """One page of runs with their attempts and events; filters and order as in the list of runs."""
    found, following = await engine.store.read(lambda tx: views.export_runs(tx, wanted))
    return answer(ExportPage.model_construct(runs=found, next=following))


@router.get("/{run}", response_model=Run)
async def get_run(
    run: str,
    engine: TheEngine,
    wait: Wait = 0,
    seen: Annotated[
        str | None, Query(description="STATE:ATTEMPTS as last seen; held until it differs")
    ] = None,
) -> Response:
    """One run with its attempts, by id or unique suffix."""
    run_id = await find(engine, run)

    def differs(found: Run) -> bool:
        return seen is None or f"{found.state}:{found.attempt_count}" != seen

    found = await watch(engine, run_id, wait, differs)
    for one in found.attempts:
        one.log_missing = engine.logs.extent(run_id, one.number).missing
    return answer(found)


@router.get("/{run}/events")
async def list_events(run: str, engine: TheEngine) -> EventList:
    """What happened to it, oldest first."""
    run_id = await find(engine, run)
    return EventList(events=await engine.store.read(lambda tx: views.events_of(tx, run_id)))


@router.get("/{run}/manifest", response_model=Manifest)
async def get_manifest(
    run: str, engine: TheEngine, attempt: Annotated[int | None, Query(ge=1)] = None
) -> Response:
    """What the engine was asked for, for an attempt; by default for the last of which that is known."""
    run_id = await find(engine, run)
    return answer(await engine.store.read(lambda tx: views.manifest(tx, run_id, attempt)))


@router.patch("/{run}", response_model=Run)
async def patch_run(run: str, patch: RunPatch, engine: TheEngine) -> Response:
    """Change the priority of a run that waits."""
    run_id = await find(engine, run)
    await engine.store.write(lambda tx: control.set_priority(tx, run_id, patch.priority))
    return answer(await engine.store.read(lambda tx: views.run(tx, run_id)))


@router.get("/{run}/explain")
async def explain_run(run: str, engine: TheEngine) -> Explanation:
    """Why it is where it is, in one sentence, and what a person can do about it."""
    run_id = await find(engine, run)
    settings = engine.settings
    return await engine.store.read(
        lambda tx: explain(tx, run_id, settings.lost_after, settings.give_up_after)
    )


@router.post("/{run}/cancel", response_model=Run)
async def cancel_run(run: str, engine: TheEngine) -> Response:
    """End it now if it waits, have it stopped if it is active."""
    run_id = await find(engine, run)
    await engine.store.write(lambda tx: control.cancel(tx, run_id))
    killpoints.reached("after-cancel-committed")
    return answer(await engine.store.read(lambda tx: views.run(tx, run_id)))


@router.post("/{run}/skip", response_model=Run)
async def skip_run(run: str, engine: TheEngine) -> Response:
    """End a run that waits, as skipped."""
    run_id = await find(engine, run)
    await engine.store.write(lambda tx: control.skip(tx, run_id))
    return answer(await engine.store.read(lambda tx: views.run(tx, run_id)))


@router.post("/{run}/retry", response_model=Run)
async def retry_run(run: str, engine: TheEngine) -> Response:
    """Try an ended run again: the same run, next attempt."""
    run_id = await find(engine, run)
    await engine.store.write(lambda tx: control.retry(tx, run_id))
    return answer(await engine.store.read(lambda tx: views.run(tx, run_id)))


@router.delete("/{run}", status_code=204, response_class=Response)
async def delete_run(run: str, engine: TheEngine) -> None:
    """Delete one that has ended, with its log and events."""
    await engine.retention.delete_run(await find(engine, run))


@router.get(
    "/{run}/logs",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "Part of it, or nothing yet", "content": {"application/octet-stream": {}}},
    },
)
async def read_logs(
    run: str,
    engine: TheEngine,
    attempt: Annotated[int | None, Query(ge=1, description="default: the latest")] = None,
    wait: Wait = 0,
    range_: Annotated[str | None, Header(alias="Range")] = None,
) -> Response:
    """The bytes that an attempt wrote, in order, from an offset; 410 if they were deleted.

    Where output is missing, a line takes its place that says so: ``[shunter: N bytes of output are missing
    here: ...]``.

    Headers: ``Shunter-Log-Size`` is what there is to read, ``Shunter-Log-Reached`` how far in the output
    that comes, ``Shunter-Log-Complete`` whether that is all there will ever be.
    """
    run_id = await find(engine, run)
    start, end = _bounds(range_)

    def enough(found: Run) -> bool:
        chosen = _attempt(found, attempt)
        if chosen is None:
            return found.state in _ENDED
        extent = engine.logs.extent(run_id, chosen.number)
        return extent.stored > start or chosen.log_deleted or is_complete(chosen, extent)

    found = await watch(engine, run_id, wait, enough)
    chosen = _attempt(found, attempt)
    if chosen is None:
        if attempt is not None:
            raise NotFound(f"run {run_id} has no attempt {attempt}", f"It has {found.attempt_count}.")
        return _log_answer(b"", Extent(0, 0, 0), found.state in _ENDED, 0, range_)
    extent = engine.logs.extent(run_id, chosen.number)
    size = extent.stored
    if size == 0 and chosen.log_deleted and chosen.log_size != 0:
        raise Gone(
            f"the log of attempt {chosen.number} of run {run_id} was deleted, as it need not be kept any more",
            "The deployment's `keep`, or the server's, says for how long logs are kept.",
        )
    length = min(LOG_CHUNK, size - start if end is None else min(end + 1, size) - start)
    data = b""
    if length > 0:
        data = await asyncio.to_thread(engine.logs.read, run_id, chosen.number, start, length)
    return _log_answer(data, extent, is_complete(chosen, extent), chosen.number, range_, start)


def _log_answer(
    data: bytes, extent: Extent, complete: bool, attempt: int, range_: str | None, start: int = 0
) -> Response:
    size = extent.stored
    headers = {
        "Shunter-Log-Size": str(size),
        "Shunter-Log-Reached": str(extent.size),
        "Shunter-Log-Complete": "true" if complete else "false",
        "Shunter-Attempt": str(attempt),
        "X-Content-Type-Options": "nosniff",
    }
    whole = range_ is None and len(data) == size
    if not whole and data:
        headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{size}"
    return Response(
        data, status_code=200 if whole else 206, headers=headers, media_type="application/octet-stream"
    )


def _bounds(range_: str | None) -> tuple[int, int | None]:
    if range_ is None:
        return 0, None
    match = _RANGE.fullmatch(range_.strip())
    if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
        raise BadRequest(f"the Range {range_!r} is not understood", "Use bytes=FROM-TO or bytes=FROM-.")
    return int(match[1]), None if match[2] is None else int(match[2])


def _attempt(run: Run, number: int | None) -> Attempt | None:
    if number is None:
        return run.attempts[-1] if run.attempts else None
    return next((attempt for attempt in run.attempts if attempt.number == number), None)


def is_complete(attempt: Attempt, extent: Extent) -> bool:
    """All bytes are here, or known to be lost: the attempt has ended and its agent's count is reached."""
    return attempt.state in _ATTEMPT_ENDED and (extent.cut or extent.size >= (attempt.log_size or 0))


async def find(engine: Engine, run: str) -> UUID:
    """The id that is meant; a whole id is not looked up twice."""
    with contextlib.suppress(ValueError):
        if len(run) == 36:
            return UUID(run)
    found = await engine.store.read(lambda tx: views.find_run(tx, run))
    audit.about(f"runs/{found}")
    return found


async def watch(engine: Engine, run_id: UUID, wait: float, enough: Callable[[Run], bool]) -> Run:
    """The run, as soon as it is ``enough`` or ``wait`` seconds are over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    with engine.hub.watching(run_id) as changed:
        while True:
            changed.clear()
            found = await engine.store.read(lambda tx: views.run(tx, run_id))
            left = deadline - loop.time()
            if enough(found) or left <= 0 or engine.hub.stopping:
                return found
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left)
