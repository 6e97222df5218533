"""Routes of checks of pools: make one, look at it. For those, too, who may not look at runs."""

from __future__ import annotations

import asyncio
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from shunter_work_pools.api.dependencies import TheEngine, answer
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.api.runs import Wait, is_complete, watch
from shunter_work_pools.contracts.pool_checks import PoolCheck
from shunter_work_pools.contracts.runs import Run
from shunter_work_pools.contracts.states import RUN_ENDS
from shunter_work_pools.engine import Engine
from shunter_work_pools.queue import pool_checks
from shunter_work_pools.queue.explain import explain

router = APIRouter(route_class=GuardedRoute, prefix="/pools", tags=["pools"])

#: Bytes of its log that a check shows.
LOG_SHOWN = 4096
_ENDED = {state.value for state in RUN_ENDS}


@router.post(
    "/{name}/checks",
    status_code=201,
    response_model=PoolCheck,
    responses={200: {"model": PoolCheck, "description": "One is under way already"}},
)
async def check_pool(name: str, engine: TheEngine) -> Response:
    """Have a harmless command run in a pool; 200 instead of 201 if one is under way already, which is the answer then."""
    run, created = await engine.store.write(
        lambda tx: pool_checks.start(tx, name, engine.times(tx.now), engine.alive_after(tx.now))
    )
    return answer(
        await _shown(engine, name, await watch(engine, run, 0, bool), created), 201 if created else 200
    )


@router.get("/{name}/checks/{run}", response_model=PoolCheck)
async def get_pool_check(
    name: str,
    run: UUID,
    engine: TheEngine,
    wait: Wait = 0,
    seen: Annotated[str | None, Query(description="the mark as last seen; held until it differs")] = None,
) -> Response:
    """One check, with its log."""
    await engine.store.read(lambda tx: pool_checks.belongs(tx, name, run))
    found = await watch(engine, run, wait, lambda found: _mark(engine, found) != seen)
    return answer(await _shown(engine, name, found))


def _has_ended(engine: Engine, run: Run) -> bool:
    """Whether nothing more is to come, also not of its log."""
    return run.state in _ENDED and all(
        one.log_deleted or is_complete(one, engine.logs.extent(run.id, one.number)) for one in run.attempts
    )


def _mark(engine: Engine, run: Run) -> str:
    return f"{run.state}:{run.attempt_count}:{_has_ended(engine, run)}"


async def _shown(engine: Engine, pool: str, run: Run, created: bool = False) -> PoolCheck:
    settings = engine.settings
    why = await engine.store.read(lambda tx: explain(tx, run.id, settings.lost_after, settings.give_up_after))
    last = run.attempts[-1] if run.attempts else None
    log = b""
    if last is not None and engine.logs.extent(run.id, last.number).stored:
        log = await asyncio.to_thread(engine.logs.read, run.id, last.number, 0, LOG_SHOWN)
    return PoolCheck(
        pool=pool,
        queue=run.queue or "",
        run=run.id,
        deployment=run.deployment,
        created=created,
        state=run.state,
        cause=run.cause,
        ended=_has_ended(engine, run),
        agent=last.agent if last is not None else None,
        sentence=why.sentence,
        next_step=why.next_step,
        log=log.decode("utf-8", "replace"),
        mark=_mark(engine, run),
    )
