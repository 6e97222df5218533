"""Routes of schedules: list, preview, pause, resume; and of what was missed: backfill, flush."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query

from shunter_work_pools import schedules as slots
from shunter_work_pools.api.dependencies import TheEngine
from shunter_work_pools.api.permissions import GuardedRoute
from shunter_work_pools.contracts.base import Instant, moment
from shunter_work_pools.contracts.deployments import (
    BackfillAnswer,
    BackfillRequest,
    Preview,
    PreviewRequest,
    Schedule,
    SchedulePage,
    SchedulePatch,
    ScheduleView,
    Skipped,
)
from shunter_work_pools.engine import Engine
from shunter_work_pools.queue import backfill as past
from shunter_work_pools.queue import control, pausing, schedule_views
from shunter_work_pools.storage.store import Tx

router = APIRouter(route_class=GuardedRoute, tags=["schedules"])


@router.get("/schedules")
async def list_schedules(
    engine: TheEngine, deployment: str | None = None, cursor: str | None = None, limit: int = 100
) -> SchedulePage:
    """One page of schedules, by deployment and name."""
    found, following = await engine.store.read(
        lambda tx: schedule_views.list_schedules(tx, deployment, cursor, limit)
    )
    return SchedulePage(schedules=found, next=following)


@router.post("/schedules/preview")
async def preview(request: PreviewRequest, engine: TheEngine) -> Preview:
    """The next slots of a schedule that need not be deployed."""
    now = moment(await engine.store.read(lambda tx: tx.now))
    # In a thread, as all reckoning that may take a while: others are served meanwhile.
    await asyncio.to_thread(slots.check, request.schedule)
    return await _preview(request.schedule, request.after or now, now, request.count)


@router.get("/deployments/{name}/schedules/{schedule}/preview")
async def preview_schedule(
    name: str,
    schedule: str,
    engine: TheEngine,
    after: Annotated[Instant | None, Query(description="slots from then on; default: now")] = None,
    count: Annotated[int, Query(ge=1, le=1000)] = 10,
) -> Preview:
    """The next slots of a schedule, paused or not."""

    def look(tx: Tx) -> tuple[Schedule, datetime, datetime]:
        found, row = schedule_views.find_schedule(tx, name, schedule)
        return found, moment(tx.now), moment(row.anchor_at)

    found, now, anchor = await engine.store.read(look)
    return await _preview(found, after or now, anchor, count)


async def _preview(schedule: Schedule, after: datetime, anchor: datetime, count: int) -> Preview:
    found = await asyncio.to_thread(slots.preview, schedule, after, anchor, count)
    return Preview(words=slots.in_words(schedule.when), slots=found)


@router.patch("/deployments/{name}/schedules/{schedule}")
async def patch_schedule(name: str, schedule: str, patch: SchedulePatch, engine: TheEngine) -> ScheduleView:
    """Pause or resume it; what it missed in the pause its policy decides."""

    def work(tx: Tx) -> ScheduleView:
        since = engine.fires_since(tx.now)
        pausing.patch_schedule(tx, name, schedule, patch, engine.late_after, since)
        return schedule_views.schedule_view(tx, name, schedule)

    return await engine.pausing(work, patch, deployment=name, schedule=schedule)


@router.post("/deployments/{name}/backfill")
async def backfill(name: str, request: BackfillRequest, engine: TheEngine) -> BackfillAnswer:
    """Make runs of past slots that have none; ask again with ``after`` set to ``next`` until it is null."""
    if request.dry_run:
        return await _count(engine, name, request)
    return await engine.store.write(lambda tx: past.backfill(tx, name, request))


async def _count(engine: Engine, name: str, request: BackfillRequest) -> BackfillAnswer:
    planned = await engine.store.read(lambda tx: past.plan(tx, name, request))
    found = await asyncio.to_thread(planned.all_slots)
    unmade = await engine.store.read(lambda tx: planned.unmade(tx, found))
    return BackfillAnswer(schedule=planned.row.name, slots=len(found), made=len(unmade))


@router.post("/deployments/{name}/flush-late")
async def flush_late(name: str, engine: TheEngine) -> Skipped:
    """End late runs of a deployment that wait, as skipped; ask again while there are ``more``."""
    return await engine.store.write(lambda tx: control.flush_late(tx, name))
