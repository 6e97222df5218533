"""Routes of agents: the protocol, and the list of them for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from shunter_work_pools import killpoints
from shunter_work_pools.api.bodies import BYTES, bytes_of
from shunter_work_pools.api.dependencies import TheEngine, answer
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.agents import (
    LOG_MEDIA_TYPE,
    Agent,
    AgentList,
    AgentPatch,
    LogAnswer,
    LogFrame,
    LogSize,
    ReleaseRequest,
    ReportAnswer,
    ReportBatch,
    SyncRequest,
)
from shunter_work_pools.contracts.base import Name
from shunter_work_pools.contracts.errors import BadRequest, Forbidden, StaleEpoch
from shunter_work_pools.contracts.identities import Kind
from shunter_work_pools.contracts.log_frames import decode_frames
from shunter_work_pools.contracts.result_pieces import decode_pieces
from shunter_work_pools.contracts.secrets import AttemptSecrets, SecretsRequest
from shunter_work_pools.contracts.tasks import ResultSizes
from shunter_work_pools.engine import Engine
from shunter_work_pools.identities import Admission, Identity
from shunter_work_pools.queue import handover, pausing, remove, sync, views
from shunter_work_pools.queue.report import owned_logs, owns

router = APIRouter(route_class=GuardedRoute, prefix="/agents", tags=["agents"])

AgentName = Annotated[Name, Path()]
_NAME: TypeAdapter[str] = TypeAdapter(Name)
#: How the document of the API tells of frames.
FRAMES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {LOG_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("")
async def list_agents(engine: TheEngine) -> AgentList:
    """All agents by name."""
    lost_after = engine.settings.lost_after
    return AgentList(agents=await engine.store.read(lambda tx: views.list_agents(tx, lost_after)))


@router.get("/{name}")
async def get_agent(name: str, engine: TheEngine) -> Agent:
    """One agent."""
    lost_after = engine.settings.lost_after
    return (await engine.store.read(lambda tx: views.list_agents(tx, lost_after, name)))[0]


@router.delete("/{name}", status_code=204, response_class=Response)
async def remove_agent(name: str, engine: TheEngine, give_up: bool = False) -> None:
    """Forget one that is gone; should it come back, it is registered anew.

    With ``give_up`` the attempts that it holds are ended as after a long silence.
    """
    await engine.store.write(
        lambda tx: remove.remove_agent(tx, name, engine.silence(tx.now), give_up=give_up)
    )
    engine.forget_agent(name)


@router.patch("/{name}")
async def patch_agent(name: str, patch: AgentPatch, engine: TheEngine) -> Agent:
    """Pause or resume it: paused, it is given nothing new; what it holds goes on, and so does the agent."""
    await engine.pausing(lambda tx: pausing.patch_agent(tx, name, patch), patch, agent=name)
    return await get_agent(name, engine)


@router.post("/{name}/drain")
async def drain_agent(name: str, engine: TheEngine) -> Agent:
    """Tell it to take nothing new, and to end once nothing is left; its next start takes runs again."""
    await engine.drain(name)
    killpoints.reached("after-drain-committed")
    return await get_agent(name, engine)


async def sync_agent(name: AgentName, body: SyncRequest, request: Request, engine: TheEngine) -> Response:
    """Held until something should be different on the agent, ``hold_for`` seconds at the most."""
    _check_pools(request.scope["admission"].identity, body.pools)
    engine.metrics.requests["sync"].inc()
    return answer(await engine.sync(name, body, _hung_up(request)))


class SyncRoute(GuardedRoute):
    """The route of :func:`sync_agent`, which finds out by itself what that wants.

    Each of thousands of agents comes every ten seconds, and FastAPI's way takes several times what a sync does.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI: what answers a request."""
        return self._answer

    async def _answer(self, request: Request) -> Response:
        try:
            where: tuple[str, ...] = ("path", "name")
            name = _NAME.validate_python(request.path_params["name"])
            where = ("body",)
            body = SyncRequest.model_validate_json(await request.body())
        except ValidationError as exc:
            faults = exc.errors(include_url=False)
            raise RequestValidationError(
                [fault | {"loc": (*where, *fault["loc"])} for fault in faults]
            ) from exc
        return await sync_agent(name, body, request, request.app.state.engine)


async def _hung_up(request: Request) -> None:
    """Done when the other side has closed the connection, or is not let in any more."""
    admission: Admission = request.scope["admission"]
    with admission.holding():
        while True:
            message: Any = await request.receive()
            if message["type"] == "http.disconnect":
                return


def _check_pools(identity: Identity, pools: list[str]) -> None:
    if identity.kind is Kind.AGENT and not identity.pools.issuperset(pools):
        foreign = sorted(set(pools) - identity.pools)
        raise Forbidden(
            f"agent {identity.name!r} may not serve {', '.join(foreign)}",
            f"Its credential is for {', '.join(sorted(identity.pools))}: invite it for the others, too.",
        )


@router.post("/{name}/reports", response_model=ReportAnswer)
async def take_reports(name: AgentName, batch: ReportBatch, engine: TheEngine) -> Response:
    """Steps of attempts, numbered; sending twice is harmless."""
    engine.metrics.requests["reports"].inc()
    engine.metrics.reports.inc(len(batch.reports))
    acks = await engine.report(name, batch)
    killpoints.reached("after-reports-committed")
    return answer(ReportAnswer.model_construct(acks=acks))


@router.post("/{name}/release", response_model=ReportAnswer)
async def release_attempts(name: AgentName, body: ReleaseRequest, engine: TheEngine) -> Response:
    """Attempts that were not started; their runs wait again at once."""
    agent_id = engine.agent(name, body.session)
    engine.metrics.requests["release"].inc()
    acks = await engine.store.write(lambda tx: sync.release(tx, agent_id, body, engine.settings.lost_after))
    killpoints.reached("after-release-committed")
    return answer(ReportAnswer.model_construct(acks=acks))


@router.post("/{name}/leave", response_model=ReportAnswer)
async def leave_attempts(name: AgentName, body: ReleaseRequest, engine: TheEngine) -> Response:
    """Attempts that an agent which goes follows no more: others that reach their work go on with them."""
    agent_id = engine.agent(name, body.session)
    engine.metrics.requests["release"].inc()
    lost_after = engine.settings.lost_after
    acks = await engine.store.write(lambda tx: handover.leave(tx, agent_id, body.attempts, lost_after))
    killpoints.reached("after-leave-committed")
    return answer(ReportAnswer.model_construct(acks=acks))


@router.post("/{name}/secrets", response_model=AttemptSecrets)
async def give_secrets(name: AgentName, body: SecretsRequest, engine: TheEngine) -> Response:
    """The secrets of an attempt, for the agent that holds it."""
    engine.metrics.requests["secrets"].inc()
    return answer(await engine.attempt_secrets(name, body))


@router.post("/{name}/logs", response_model=LogAnswer, openapi_extra=FRAMES)
async def take_logs(name: AgentName, request: Request, engine: TheEngine) -> Response:
    """Output of attempts by offset: frames of a JSON line, then raw bytes."""
    frames = await _frames(request)
    engine.metrics.requests["logs"].inc()
    engine.metrics.log_bytes.inc(sum(len(data) for _, data in frames))
    runs = {frame.run for frame, _ in frames}
    with engine.retention.receiving(runs) as going:
        keys = {(frame.run, frame.attempt, frame.epoch) for frame, _ in frames if frame.run not in going}
        owned = await engine.store.read(lambda tx: owned_logs(tx, name, keys))
        sizes = await asyncio.to_thread(_append, engine, frames, owned)
    killpoints.reached("after-logs-appended")
    for run_id in runs:
        engine.hub.touch(run_id)
    return answer(LogAnswer.model_construct(sizes=sizes))


@router.post("/{name}/journals", response_model=LogAnswer, openapi_extra=FRAMES)
async def take_journals(name: AgentName, request: Request, engine: TheEngine) -> Response:
    """Journals of attempts by offset: frames as of logs. ``size`` is the end of the last whole line that is here."""
    sizes: dict[tuple[UUID, int], LogSize] = {}
    frames = await _frames(request)
    engine.metrics.requests["journals"].inc()
    for frame, data in frames:
        may = partial(owns, agent=name, key=(frame.run, frame.attempt, frame.epoch))
        kept = await engine.journals.append(frame.run, frame.attempt, frame.offset, bytes(data), may)
        sizes[frame.run, frame.attempt] = LogSize(
            run=frame.run,
            attempt=frame.attempt,
            size=0 if kept is None else kept.size,
            stale=kept is None,
            full=kept is not None and kept.full,
            crash_hooks=kept is not None and kept.crash_hooks,
        )
    killpoints.reached("after-journals-committed")
    return answer(LogAnswer.model_construct(sizes=list(sizes.values())))


@router.post("/{name}/results/{run}/{attempt}", openapi_extra=BYTES)
async def take_task_results(
    name: AgentName,
    run: UUID,
    attempt: Annotated[int, Path(ge=1, le=2**31 - 1)],
    request: Request,
    engine: TheEngine,
    epoch: Annotated[int, Query(ge=1, le=2**31 - 1)],
) -> ResultSizes:
    """Bytes of results of tasks, by offset; before the journal's lines that name them. A line of JSON lists the pieces
    (``name``, ``offset``, ``size`` of all of it, ``length``), their bytes follow."""
    pieces = decode_pieces(await bytes_of(request))
    may = partial(owns, agent=name, key=(run, attempt, epoch))
    sizes = await engine.journals.put_results(run, pieces, may)
    if sizes is None:
        raise StaleEpoch(
            f"attempt {attempt} of run {run} is not held under epoch {epoch} (any more)",
            "Send no more of it.",
        )
    return ResultSizes(results=sizes)


async def _frames(request: Request) -> list[tuple[LogFrame, memoryview]]:
    if request.headers.get("content-type") != LOG_MEDIA_TYPE:
        raise BadRequest("frames do not come as JSON", f"Send {LOG_MEDIA_TYPE}.")
    return decode_frames(await request.body())


def _append(
    engine: Engine, frames: list[Any], owned: dict[tuple[UUID, int, int], int | None]
) -> list[LogSize]:
    sizes: dict[tuple[UUID, int], LogSize] = {}
    for frame, data in frames:
        key = (frame.run, frame.attempt)
        if (frame.run, frame.attempt, frame.epoch) not in owned:
            sizes[key] = LogSize(run=frame.run, attempt=frame.attempt, size=0, stale=True)
            continue
        size, full = _kept(engine, frame, data)
        total = owned[frame.run, frame.attempt, frame.epoch]
        if total is not None and size >= total:
            # The agent forgets the output once this is answered.
            engine.logs.sync(frame.run, frame.attempt)
        sizes[key] = LogSize(run=frame.run, attempt=frame.attempt, size=size, full=full)
    return list(sizes.values())


def _kept(engine: Engine, frame: LogFrame, data: memoryview) -> tuple[int, bool]:
    """Keep a frame as far as may be: up to where the output is known now, and whether that is all that is kept."""
    limit = engine.settings.log_limit
    if frame.gap:
        return engine.logs.skip(frame.run, frame.attempt, frame.offset, frame.gap), False
    room = len(data) if limit is None else max(0, limit - frame.offset)
    size = engine.logs.append(frame.run, frame.attempt, frame.offset, data[:room])
    if limit is None or len(data) <= room or size < min(limit, frame.offset + len(data)):
        return size, False
    engine.logs.cut(frame.run, frame.attempt, limit)
    # An agent of the version before goes on sending: it is to get on.
    return frame.offset + len(data), True
