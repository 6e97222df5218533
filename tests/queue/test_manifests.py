"""What engines were asked for: kept with the attempt, deleted with the run, and never in the way of an end."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from shunter_work_pools.contracts.agents import MANIFEST_LIMIT
from shunter_work_pools.contracts.errors import NotFound
from shunter_work_pools.queue import retain, views
from shunter_work_pools.storage.schema import manifests
from tests.queue.test_report import granted_one
from tests.queue.world import S, World

JOB: dict[str, Any] = {"kind": "Job", "metadata": {"name": "shunter-1-1"}}


async def manifest(world: World, run: UUID, attempt: int | None = None) -> Any:
    return (await world.store.read(lambda tx: views.manifest(tx, run, attempt))).manifest


async def test_it_is_kept_of_each_attempt(world: World) -> None:
    agent, granted = await granted_one(world, retries={"count": 1})
    await agent.report(granted, S.STARTING, S.RUNNING, manifest=JOB)
    await agent.report(granted, S.FAILED, cause="exit_code", log_size=0)
    (second,) = await agent.claim()
    await agent.report(second, S.STARTING)
    # One that never ran tells it with its end.
    await agent.report(second, S.CRASHED, cause="start_failed", log_size=0, manifest=JOB | {"second": True})
    assert await manifest(world, granted.run) == JOB | {"second": True}
    assert await manifest(world, granted.run, 1) == JOB
    with pytest.raises(NotFound, match="no manifest of attempt 3 is kept"):
        await manifest(world, granted.run, 3)
    with pytest.raises(NotFound, match="there is no run"):
        await manifest(world, UUID(int=1))


async def test_told_again_it_takes_the_place_of_the_older(world: World) -> None:
    agent, granted = await granted_one(world)
    await agent.report(granted, S.STARTING, S.RUNNING, manifest=JOB)
    await agent.report(granted, S.COMPLETED, log_size=0, manifest=JOB | {"again": True})
    assert await manifest(world, granted.run) == JOB | {"again": True}


async def test_told_twice_in_one_batch_the_last_is_kept(world: World) -> None:
    agent, granted = await granted_one(world)
    running = agent.step(granted, S.RUNNING, 2, manifest=JOB)
    ended = agent.step(granted, S.COMPLETED, 3, log_size=0, manifest=JOB | {"again": True})
    await agent.send(agent.step(granted, S.STARTING, 1), running, ended)
    assert await world.state(granted.run) == "Completed"
    assert await manifest(world, granted.run) == JOB | {"again": True}


@pytest.mark.parametrize("bad", [{"much": "x" * MANIFEST_LIMIT}, {"not": float("nan")}], ids=["large", "nan"])
async def test_one_that_cannot_be_kept_loses_no_end(world: World, bad: Any) -> None:
    agent, granted = await granted_one(world)
    await agent.report(granted, S.STARTING, S.RUNNING, manifest=bad)
    assert (await world.run(granted.run)).attempts[0].message.startswith("the manifest was not kept")  # type: ignore[union-attr]
    await agent.report(granted, S.COMPLETED, log_size=0, manifest=bad)
    run = await world.run(granted.run)
    assert run.state == "Completed"
    assert "the manifest was not kept" in (run.attempts[0].message or "")
    with pytest.raises(NotFound):
        await manifest(world, granted.run)


async def test_it_goes_with_its_run(world: World) -> None:
    agent, granted = await granted_one(world)
    await agent.report(granted, S.STARTING, S.RUNNING, manifest=JOB)
    await agent.report(granted, S.COMPLETED, log_size=0)
    await world.store.write(lambda tx: retain.delete_runs(tx, [granted.run]))
    assert await world.store.read(lambda tx: tx.conn.scalar(select(func.count()).select_from(manifests))) == 0
