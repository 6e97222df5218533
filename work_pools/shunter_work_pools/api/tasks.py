"""Routes of what a run's tasks do: the list of them, their graph, and what they left to be looked at."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Response

from shunter_work_pools.api.dependencies import TheEngine, answer
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.api.runs import find
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.contracts.tasks import Artifact, ArtifactList, TaskGraph, TaskPage
from shunter_work_pools.queue import task_views
from shunter_work_pools.queue.task_graph import Told, graph_of
from shunter_work_pools.queue.task_views import told

#: Task runs that a graph shows one by one, and that it counts at all.
EACH_LIMIT, GRAPH_LIMIT = 2000, 250_000

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
    most = EACH_LIMIT if each else GRAPH_LIMIT
    count = await engine.store.read(lambda tx: task_views.task_count(tx, run_id, most))
    if count > most:
        raise BadRequest(
            f"run {run_id} has more than {most} task runs, which is more than a graph shows"
            + (" one by one" if each else ""),
            "Ask for the graph in which equals are one node." if each else "See `shunter run tasks`.",
        )
    found: list[Told] = []
    while True:  # not all at once: the server has more to do
        page = await engine.store.read(partial(told, run_id=run_id, after=found[-1].key if found else ""))
        found += page
        if len(page) < task_views.TOLD_PAGE:
            break
    return await asyncio.to_thread(lambda: answer(graph_of(run_id, found, each=each)))


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
