"""Pauses over HTTP: those who wait are woken when they end, and every server of a store keeps to them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools.storage.store import PostgresStore
from tests.api.serving import SOON, Served, served, until


async def patch(server: Served, path: str, status: int = 200, **body: Any) -> Any:
    return await server.ask("PATCH", path, status, json=body)


async def test_resuming_the_server_wakes_everybody_at_once(server: Served) -> None:
    for pool in ("main", "side"):
        await server.pool(pool)
        await server.deploy(pool, pool=pool)
    info = await patch(server, "/server", paused=True, reason="new disks", by="ann@desk")
    assert (info["pause"]["by"], info["pause"]["reason"]) == ("ann@desk", "new disks")
    assert (await server.get("/status"))["server"]["pause"] == info["pause"]
    runs = [await server.submit(pool) for pool in ("main", "side")]
    assert [(await server.run(run))["held"] for run in runs] == [True, True]
    assert [run["id"] for run in (await server.get("/runs", held="true"))["runs"]] == runs[::-1]
    takers = [
        asyncio.create_task(server.take("a1", pools=["main"])),
        asyncio.create_task(server.take("a2", pools=["side"], identity=str(runs[0]))),
    ]
    await server.waits(2)
    await asyncio.sleep(0.1)
    assert not any(taker.done() for taker in takers)

    began = asyncio.get_running_loop().time()
    assert (await patch(server, "/server", paused=False))["pause"] is None
    granted = [(await taker)[0]["run"] for taker in takers]
    assert granted == runs
    assert asyncio.get_running_loop().time() - began < 1


async def test_resuming_an_agent_wakes_it_at_once(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    await server.sync()
    agent = await patch(server, "/agents/a1", paused=True, reason="a noisy fan")
    assert (agent["paused"], agent["pause"]["reason"], agent["draining"]) == (True, "a noisy fan", False)
    run = await server.submit()
    taker = asyncio.create_task(server.take())
    await server.waits()
    await asyncio.sleep(0.1)
    assert not taker.done()
    began = asyncio.get_running_loop().time()
    await patch(server, "/agents/a1", paused=False)
    assert [one["run"] for one in await taker] == [run]
    assert asyncio.get_running_loop().time() - began < 1


@pytest.mark.parametrize("path", ["/server", "/agents/a1", "/pools/main", "/deployments/job"])
async def test_a_claim_that_is_under_way_is_over_when_the_pause_is_answered(plain: Served, path: str) -> None:
    await plain.pool()
    await plain.deploy(pool="main")
    await plain.sync()
    async with plain.engine._claiming:
        pausing = asyncio.create_task(patch(plain, path, paused=True))
        await until(lambda: _is_paused(plain, path))  # it is written, and a claim may not have seen it
        assert not (await asyncio.wait([pausing], timeout=0.1))[0]
    await pausing


async def _is_paused(server: Served, path: str) -> bool:
    return bool((await server.get(path))["pause"])


async def test_a_higher_priority_is_handed_out_first(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    first, second = await server.submit(), await server.submit()
    assert (await patch(server, f"/runs/{second[-8:]}", priority=3))["priority"] == 3
    granted = [(await server.take(free=1, limit=1))[0]["run"]]
    assert granted == [second]
    told = await patch(server, f"/runs/{second}", 409, priority=4)
    assert "it is active" in told["detail"]
    await patch(server, f"/runs/{first}", 400, priority=1001)
    await patch(server, f"/runs/{first}", 400)


@pytest.mark.parametrize(
    "path",
    [
        "/server",
        "/agents/a1",
        "/pools/main",
        "/pools/main/queues/default",
        "/deployments/job",
        "/deployments/job/schedules/x",
    ],
)
async def test_what_cannot_be_meant_is_refused(plain: Served, path: str) -> None:
    await plain.pool()
    await plain.deploy(pool="main", schedules=[{"name": "x", "when": {"kind": "interval", "seconds": 3600}}])
    await plain.sync()
    told = await patch(plain, path, 400, reason="why?")
    assert "nothing to pause or resume" in told["detail"]
    assert "null" in (await patch(plain, path, 400, paused=None))["detail"]
    await patch(plain, path, 400, paused=True, reason="x" * 1001)
    await patch(plain, path, 400, paused=True, wherefore="x")
    assert (await plain.get("/server"))["pause"] is None


@pytest.mark.parametrize("kind", ["postgres"])
async def test_maintenance_holds_for_every_server_of_a_store(
    migrated_postgres: str, tmp_path: Path, server: Served
) -> None:
    """Paused at one, nothing is handed out by the other, however long an agent waits there."""
    await server.pool()
    await server.deploy(pool="main")
    async with served(PostgresStore(migrated_postgres), tmp_path / "other") as other:
        await patch(server, "/server", paused=True)
        run = await server.submit()
        asked = asyncio.create_task(other.sync(hold_for=0.5))
        assert (await asked)["assignments"] == []
        assert (await other.get("/server"))["pause"] is not None
        await patch(server, "/server", paused=False)
        answer = await asyncio.wait_for(other.sync(hold_for=SOON), SOON)
        assert [one["run"] for one in answer["assignments"]] == [run]
