"""Routes of what a run's tasks do: the list of them, their graph, and what they left to be looked at."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Response

from shunter_work_pools.api.dependencies import TheEngine, answer
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.api.runs import find
from shunter_work_pools.contracts.tasks import Artifact, ArtifactList, TaskGraph, TaskPage
from shunter_work_pools.queue import task_views

router = APIRouter(route_class=GuardedRoute, prefix="/runs", tags=["tasks"])


@router.get("/{run}/tasks", response_model=TaskPage)
async def list_tasks(
    run: str,
    engine: TheEngine,
    state: Annotated[list[str], Query(description="any of these")] = [],  # noqa: B006
    name: Annotated[str | None, Query(description="of the task")] = None,
    cursor: str | None = None,
    limit: int = task_views.PAGE_LIMIT,
) -> Response:
    """One page of a run's task runs, in the order in which they were made."""
    run_id = await find(engine, run)
    page = await engine.store.read(lambda tx: task_views.list_tasks(tx, run_id, state, name, cursor, limit))
    return await asyncio.to_thread(answer, page)


@router.get("/{run}/graph", response_model=TaskGraph)
async def get_graph(
    run: str,
    engine: TheEngine,
    each: Annotated[bool, Query(description="each task run by itself, not equals as one node")] = False,
) -> Response:
    """How a run's task runs depend on each other, as far as they are known."""
    run_id = await find(engine, run)
    return answer(await engine.store.read(lambda tx: task_views.graph(tx, run_id, each=each)))


@router.get("/{run}/artifacts", response_model=ArtifactList)
async def list_artifacts(run: str, engine: TheEngine) -> Response:
    """What a run left for people to look at, by key, without the data."""
    run_id = await find(engine, run)
    found = await engine.store.read(lambda tx: task_views.list_artifacts(tx, run_id))
    return answer(ArtifactList.model_construct(artifacts=found))


@router.get("/{run}/artifacts/{key}", response_model=Artifact)
async def get_artifact(run: str, key: str, engine: TheEngine) -> Response:
    """One artifact, with its data."""
    run_id = await find(engine, run)
    return answer(await engine.store.read(lambda tx: task_views.artifact(tx, run_id, key)))
