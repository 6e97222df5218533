"""Limits over HTTP: made, shown, changed and deleted; and that the server keeps to them by itself."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.api.serving import SOON, Served, held, until

#: Of a second agent.
SECOND = UUID(int=2)


async def test_a_limit_from_its_making_to_its_end(server: Served) -> None:
    made = await server.post("/limits", {"name": "warehouse", "max": 3}, 201)
    assert {key: made[key] for key in ("name", "tag", "max", "rate", "strategy", "active", "waiting")} == {
        "name": "warehouse",
        "tag": None,
        "max": 3,
        "rate": None,
        "strategy": "enqueue",
        "active": 0,
        "waiting": 0,
    }
    rate = {"count": 10, "seconds": 60.0}
    await server.post("/limits", {"name": "api", "tag": "api", "rate": rate}, 201)
    listed = (await server.get("/limits"))["limits"]
    assert [one["name"] for one in listed] == ["api", "warehouse"]
    assert (listed[0]["tag"], listed[0]["rate"], listed[0]["max"]) == ("api", rate, None)
    assert await server.get("/limits/warehouse") == made
    patched = await server.ask(
        "PATCH", "/limits/api", json={"max": 2, "rate": None, "strategy": "cancel_new"}
    )
    assert (patched["max"], patched["rate"], patched["strategy"]) == (2, None, "cancel_new")
    assert await server.ask("PATCH", "/limits/api", json={}) == patched
    await server.pool()
    await server.deploy(pool="main", limits=["warehouse"])
    await server.submit()
    shown = await server.get("/limits/warehouse")
    assert (shown["deployments"], shown["waiting"]) == (["job"], 1)
    refused = await server.ask("DELETE", "/limits/warehouse", 409)
    assert refused["detail"] == "limit 'warehouse' is named by deployment 'job'"
    response = await server.http.delete("/limits/api")
    assert (response.status_code, response.content) == (204, b"")
    assert [one["name"] for one in (await server.get("/limits"))["limits"]] == ["warehouse"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"name": "x"}, 400, "a limit needs max, rate or both"),
        ({"name": "x", "max": -1}, 400, "max"),
        ({"name": "x", "max": 1.5}, 400, "max"),
        ({"name": "x", "max": 0, "strategy": "cancel_new"}, 400, "cancel_new needs a max of at least 1"),
        ({"name": "x", "rate": {"count": 1, "seconds": 1}, "strategy": "cancel_running"}, 400, "needs a max"),
        ({"name": "x", "max": 1, "strategy": "cancel"}, 400, "strategy"),
        ({"name": "x", "rate": {"count": 0, "seconds": 60}}, 400, "rate.count"),
        ({"name": "x", "rate": {"count": 1, "seconds": 0}}, 400, "rate.seconds"),
        ({"name": "x", "rate": "10/60s"}, 400, "rate"),
        ({"name": "a b", "max": 1}, 400, "name"),
        ({"name": "x", "tag": "a b", "max": 1}, 400, "tag"),
        ({"name": "x", "max": 1, "color": "red"}, 400, "color"),
        ({"name": "few", "max": 1}, 409, "there is a limit 'few' already"),
    ],
)
async def test_bad_limits_are_told(plain: Served, body: Any, status: int, says: str) -> None:
    await plain.post("/limits", {"name": "few", "max": 1}, 201)
    problem = await plain.post("/limits", body, status)
    assert says in problem["detail"]
    assert [one["name"] for one in (await plain.get("/limits"))["limits"]] == ["few"]


async def test_bad_changes_are_told_and_change_nothing(plain: Served) -> None:
    before = await plain.post("/limits", {"name": "few", "max": 1}, 201)
    for body, says in (
        ({"max": None}, "limit 'few': a limit needs max, rate or both"),
        ({"max": 0, "strategy": "cancel_new"}, "limit 'few': cancel_new needs a max of at least 1"),
        ({"strategy": None}, "strategy cannot be null"),
        ({"name": "other"}, "name"),
        ({"tag": "t"}, "tag"),
    ):
        problem = await plain.ask("PATCH", "/limits/few", 400, json=body)
        assert says in problem["detail"], body
    problem = await plain.ask("PATCH", "/limits/fwe", 404, json={"max": 1})
    assert (problem["detail"], problem["remedy"]) == ("there is no limit 'fwe'", "Did you mean 'few'?")
    await plain.get("/limits/fwe", 404)
    await plain.ask("DELETE", "/limits/fwe", 404)
    assert await plain.get("/limits/few") == before


async def test_a_deploy_that_names_no_limit_is_refused_with_the_nearest(plain: Served) -> None:
    await plain.post("/limits", {"name": "warehouse", "max": 1}, 201)
    spec = {"work": {"command": ["true"]}, "limits": ["warehosue"]}
    problem = await plain.ask("PUT", "/deployments/job", 400, json=spec)
    assert problem["remedy"] == "Did you mean 'warehouse'?"
    assert problem["faults"][0]["loc"] == ["limits", 0]
    for wrong, says in (
        ({"need": {"gpu": 1.5}}, "gpu=1.5: a device cannot be divided"),
        ({"need": {"GPU": 1}}, "need"),
        ({"need": {"gpu": -1}}, "need"),
        ({"when_full": "cancel_new"}, "when_full cancel_new needs a max_active of at least 1"),
        ({"max_active": -1}, "max_active"),
    ):
        spec = {"work": {"command": ["true"]}, **wrong}
        assert says in (await plain.ask("PUT", "/deployments/job", 400, json=spec))["detail"]
    await plain.get("/deployments/job", 404)


async def test_a_place_is_filled_at_once_by_whoever_waits_in_another_pool(server: Served) -> None:
    await server.post("/limits", {"name": "few", "max": 1}, 201)
    for name in ("one", "two"):
        await server.pool(name)
        await server.deploy(f"in-{name}", pool=name, limits=["few"])
    await server.submit("in-one")
    (first,) = await server.take("a1", pools=["one"])
    second = await server.submit("in-two")
    waiting = asyncio.create_task(server.take("a2", pools=["two"], identity=str(SECOND)))
    await server.waits()
    await server.report(first, "Starting", "Running", "Completed", exit_code=0, log_size=0)
    ended = time.monotonic()
    (granted,) = await waiting
    assert granted["run"] == second
    assert time.monotonic() - ended < 1
    assert (await server.get("/limits/few"))["active"] == 1


async def test_a_rate_lets_the_next_one_go_when_it_may(server: Served) -> None:
    await server.post("/limits", {"name": "slow", "rate": {"count": 1, "seconds": 2}}, 201)
    await server.pool()
    await server.deploy(pool="main", limits=["slow"])
    for _ in range(2):
        await server.submit()
    (first,) = await server.take()
    until_ = (await server.get("/limits/slow"))["full_until"]
    (second,) = await server.take(holds=[held(first)], free=9)
    began, allowed, then = (
        datetime.fromisoformat(one)
        for one in (await _claimed(server, first), until_, await _claimed(server, second))
    )
    assert allowed - began == timedelta(seconds=2)
    assert timedelta(0) <= then - allowed < timedelta(seconds=1)


async def _claimed(server: Served, granted: Any) -> str:
    return str((await server.run(granted["run"]))["attempts"][0]["claimed_at"])


async def test_the_server_acts_when_a_limit_is_full(server: Served) -> None:
    await server.post("/limits", {"name": "one", "max": 1, "strategy": "cancel_running"}, 201)
    await server.pool()
    await server.deploy(pool="main", limits=["one"])
    await server.deploy("alone", pool="main", max_active=1, when_full="cancel_new")
    await server.submit("alone")
    await server.submit()
    first = sorted(await server.take(), key=lambda one: one["deployment"])
    assert [one["deployment"] for one in first] == ["alone", "job"]
    asked = asyncio.create_task(server.sync(hold_for=SOON, holds=[held(one) for one in first]))
    await server.waits()
    skipped = await server.submit("alone")
    newer = await server.submit()
    answer = await asked
    assert [one["run"] for one in answer["cancel"]] == [first[1]["run"]]

    async def was_skipped() -> bool:
        return (await server.run(skipped))["cause"] == "skipped"

    await until(was_skipped)
    assert (await server.run(skipped))["message"] == "deployment alone was full when it was due"
    await server.report(first[1], "Starting", "Running", "Cancelled", cause="cancelled", log_size=0)
    beaten = await server.run(first[1]["run"])
    assert (beaten["cause"], beaten["message"]) == (
        "superseded",
        "a newer run took its place: limit one is full",
    )
    (granted,) = await server.take(holds=[held(first[0])])
    assert granted["run"] == newer
