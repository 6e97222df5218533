"""The application: routes below ``/api/v1``, health, and errors as problem documents."""

from __future__ import annotations

import math
import traceback
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shunter_work_pools.api import (
    agents,
    attempts,
    audit,
    deployments,
    identities,
    joining,
    limits,
    metrics,
    pool_checks,
    pools,
    runs,
    schedules,
    secrets,
    sign_in,
    tasks,
)
from shunter_work_pools.api.dependencies import answer
from shunter_work_pools.api.permissions import GuardedRoute, unguarded
from shunter_work_pools.contracts.agents import ServerInfo, ServerPatch, SyncAnswer
from shunter_work_pools.contracts.base import Instant
from shunter_work_pools.contracts.errors import BadRequest, NotFound, Refused, Unavailable
from shunter_work_pools.contracts.status import Status
from shunter_work_pools.daemon_log import get_logger
from shunter_work_pools.engine import Engine
from shunter_work_pools.queue import pausing, status
from shunter_work_pools.storage.store import Tx
from shunter_work_pools.version import version

log = get_logger()

#: Operations of whose bodies nothing is repeated: what is told of a fault comes to be in terminals and logs of others.
_SECRET_BODIES = frozenset({"set_secret", "sign_in"})


def build_app(engine: Engine) -> FastAPI:
    """The application around an engine that somebody else starts and stops.

    Raises:
        LookupError: a route goes by no rule of ``permissions``.
    """
    app = FastAPI(
        title="Shunter",
        version=version(),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to an address made of what the client says of itself
        responses={
            "4XX": {"description": "Refused: an RFC 9457 problem with a stable `type`"},
        },
    )
    app.router.route_class = GuardedRoute
    app.state.engine = engine
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _broken_off)
    app.add_exception_handler(Exception, _bug)
    # Routes are matched in turn: the busiest first.
    app.router.add_api_route(
        "/api/v1/agents/{name}/sync",
        agents.sync_agent,
        methods=["POST"],
        tags=["agents"],
        response_model=SyncAnswer,
        route_class_override=agents.SyncRoute,
    )
    for module in (
        identities,
        runs,
        tasks,
        agents,
        pools,
        pool_checks,
        limits,
        deployments,
        schedules,
        secrets,
        joining,
        sign_in,
        audit,
        attempts,
    ):
        app.include_router(module.router, prefix="/api/v1")

    def _info(tx: Tx) -> ServerInfo:
        return status.server_info(tx, engine.store.kind, engine.started_at)

    @app.get("/api/v1/server", tags=["server"])
    async def server() -> ServerInfo:
        """What this server is."""
        return await engine.store.read(_info)

    @app.patch("/api/v1/server", tags=["server"])
    async def patch_server(patch: ServerPatch) -> ServerInfo:
        """Begin or end maintenance: meanwhile no server of this store hands out runs; what runs goes on."""
        await engine.pausing(lambda tx: pausing.patch_server(tx, patch), patch, server="all")
        return await engine.store.read(_info)

    @app.get("/api/v1/status", tags=["server"], response_model=Status)
    async def status_(since: Instant | None = None) -> Response:
        """What runs, what is late, what failed since a moment (default: a day ago), which agents there are."""
        lost_after = engine.settings.lost_after
        return answer(await engine.store.read(lambda tx: status.status(tx, _info(tx), since, lost_after)))

    for prefix in ("", "/api"):
        app.add_api_route(f"{prefix}/healthz", healthz, tags=["server"], include_in_schema=not prefix)
        app.include_router(metrics.router, prefix=prefix, include_in_schema=not prefix)
        app.add_api_route(f"{prefix}/readyz", readyz, tags=["server"], include_in_schema=not prefix)

    @app.get("/api/v1/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    open_to_all = unguarded(app.routes)
    if open_to_all:
        raise LookupError(f"routes that go by no rule: {', '.join(open_to_all)}")
    return app


async def healthz() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


async def readyz(request: Request) -> dict[str, str]:
    """Whether it can serve: started, not stopping, and its store answers."""
    engine: Engine = request.app.state.engine
    if not engine.ready:
        raise Unavailable("the server is starting or stopping", "Ask again.")
    await engine.store_answers()
    return {"status": "ready"}


def problem(refused: Refused) -> JSONResponse:
    """The answer of a refusal."""
    return JSONResponse(refused.problem(), status_code=refused.status, media_type="application/problem+json")


async def _refused(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, Refused)
    if exc.status in (401, 403):
        request.scope["operation"].note(request.scope, exc)
    return problem(exc)


async def _invalid(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    faults = []
    secret = request.scope["operation"].name in _SECRET_BODIES
    for error in exc.errors()[:10]:
        place = ".".join(str(step) for step in error["loc"] if step not in ("body", "query", "path"))
        value = error.get("input")
        shown = (
            f" (got {value!r})"
            if isinstance(value, str | int | float | bool) and len(repr(value)) < 80 and not secret
            else ""
        )
        faults.append(f"{place}: {error['msg']}{shown}" if place else f"{error['msg']}{shown}")
    more: dict[str, Any] = {}
    if request.url.path == "/api/v1/deployments" or request.method == "PUT":
        more["faults"] = [_fault(error) for error in exc.errors()]
    return problem(
        BadRequest("; ".join(faults), errors=[_plain(error) for error in exc.errors()[:10]], **more)
    )


def _fault(error: Any) -> dict[str, Any]:
    """A fault of a deployment's spec, as those that are found later are told."""
    loc = [_finite(step) for step in error["loc"] if step != "body"]
    place = 0
    if loc[:1] == ["deployments"] and len(loc) > 1:
        place, loc = loc[1], loc[2:]
    if loc[:1] == ["spec"]:
        loc = loc[1:]
    if len(loc) > 4 and loc[0] == "schedules" and loc[2] == "when":
        del loc[3]  # the kind of schedule, which is no step of the document
    return {"deployment": place, "loc": loc, "detail": error["msg"], "remedy": ""}


def _plain(error: Any) -> dict[str, Any]:
    return {"loc": [_finite(step) for step in error["loc"]], "msg": error["msg"], "type": error["type"]}


def _finite(step: Any) -> Any:
    return step if not isinstance(step, float) or math.isfinite(step) else str(step)


async def _http(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 404:
        return problem(NotFound(f"there is nothing at {request.url.path}", "See /api/v1/openapi.json."))
    remedy = "Send JSON in UTF-8." if exc.status_code == 400 else ""
    refused = Refused(f"{request.method} {request.url.path}: {exc.detail}", remedy)
    body = refused.problem() | {"status": exc.status_code}
    return JSONResponse(
        body, status_code=exc.status_code, headers=exc.headers, media_type="application/problem+json"
    )


async def _broken_off(request: Request, exc: Exception) -> JSONResponse:
    return problem(BadRequest("the request broke off", "Send it again."))


async def _bug(request: Request, exc: Exception) -> JSONResponse:
    # Not exc_info: a log that shows the variables of each frame would show the token.
    told = "".join(traceback.format_exception(exc))
    log.error("a request failed", method=request.method, path=request.url.path, exception=told)
    body = {
        "type": "urn:shunter:problem:internal",
        "title": "The server failed",
        "status": 500,
        "detail": f"{type(exc).__name__} while serving {request.method} {request.url.path}",
        "remedy": "The server's log has the details.",
    }
    return JSONResponse(body, status_code=500, media_type="application/problem+json")
