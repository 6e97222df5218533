"""Who did what: written with what was done, and with it only."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from shunter_work_pools.contracts.identities import Kind, Role
from shunter_work_pools.queue import audit
from shunter_work_pools.queue.audit import Deed
from shunter_work_pools.storage.store import Tx
from tests.api.serving import NO_TLS, Served, until
from tests.api.test_identities import bearing, made


async def entries(server: Served, **query: Any) -> list[dict[str, Any]]:
    return list((await server.get("/audit", **query))["entries"])


@pytest.fixture
async def ann(server: Served) -> Any:
    """A deployer, and a run that waits."""
    await server.pool()
    token = await made(server, Kind.PERSON, "ann", role=Role.DEPLOYER)
    async with bearing(server, token) as http:
        yield http


async def test_who_did_what_to_what_and_from_where(server: Served, ann: httpx.AsyncClient) -> None:
    await ann.put("/deployments/job", json={"work": {"command": ["true"]}, "pool": "main"})
    run = (await ann.post("/runs", json={"deployment": "job"})).json()["id"]
    assert (await ann.post(f"/runs/{run[-8:]}/cancel")).status_code == 200
    await ann.post(f"/runs/{run}/retry")
    await ann.patch("/deployments/job", json={"paused": True, "by": "somebody else", "reason": "r"})
    told = [
        (one["action"], one["target"], one["status"]) for one in reversed(await entries(server, who="ann"))
    ]
    assert told == [
        ("apply_deployment", "deployments/job", 200),
        ("create_run", "deployments/job", 201),
        ("cancel_run", f"runs/{run}", 200),
        ("retry_run", f"runs/{run}", 200),
        ("patch_deployment", "deployments/job", 200),
    ]
    (first, *_) = await entries(server, who="ann")
    assert (first["kind"], first["address"]) == ("person", "127.0.0.1")
    events = (await server.get(f"/runs/{run}/events"))["events"]
    assert {one["data"].get("by") for one in events if one["actor"] == "user"} == {"ann"}
    assert (await server.get("/deployments/job"))["pause"]["by"] == "ann"
    assert [one["who"] for one in await entries(server, action="create_pool")] == ["local"]


async def test_explanations_say_who_it_was(server: Served, ann: httpx.AsyncClient) -> None:
    await server.deploy(pool="main")
    run = await server.submit()
    await ann.post(f"/runs/{run}/cancel")
    assert "as ann asked" not in (await server.get(f"/runs/{run}/explain"))["sentence"]
    assert "ann asked for that while it waited" in (await server.get(f"/runs/{run}/explain"))["sentence"]
    active = await server.submit()
    await server.take()
    await ann.post(f"/runs/{active}/cancel")
    assert "as ann asked at" in (await server.get(f"/runs/{active}/explain"))["sentence"]


async def test_what_is_not_done_is_not_written(server: Served, ann: httpx.AsyncClient) -> None:
    """It is one transaction: what fails after the change takes the entry with it."""
    await server.deploy(pool="main")
    run = await server.submit()
    before = await entries(server)
    assert (await ann.post(f"/runs/{run}/retry")).status_code == 409
    assert (await ann.post("/runs", json={"deployment": "none"})).status_code == 404
    plan = {"deployments": [{"name": "x", "spec": {"work": {"command": ["true"]}}}], "dry_run": True}
    assert (await ann.post("/deployments", json=plan)).status_code == 200
    assert await entries(server) == before

    sign = Deed.sign

    def failing(deed: Deed, tx: Tx) -> None:
        sign(deed, tx)
        raise RuntimeError("after the change and its entry")

    Deed.sign = failing  # type: ignore[method-assign]
    try:
        assert (await ann.post(f"/runs/{run}/cancel")).status_code == 500
    finally:
        Deed.sign = sign  # type: ignore[method-assign]
    assert (await server.run(run))["state"] == "Scheduled"
    assert await entries(server) == before


async def test_what_agents_report_is_no_deed(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    await server.submit()
    (granted,) = await server.take()
    before = await entries(server)
    await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    assert await entries(server) == before


async def test_refusals_are_written_many_as_one(server: Served, ann: httpx.AsyncClient) -> None:
    for _ in range(50):
        assert (await ann.post("/pools", json={"name": "x"})).status_code == 403
    async with httpx.AsyncClient(base_url=server.http.base_url, trust_env=False, verify=NO_TLS) as nobody:
        for path in ("/runs", "/pools"):
            assert (await nobody.get(path)).status_code == 401
    await server.engine.refusals.write()

    async def found() -> list[Any]:
        return [
            (one["who"], one["action"], one["status"]) for one in await entries(server) if one["status"] > 400
        ]

    await until(lambda: _all_told(found))
    refused = [one for one in await entries(server, who="ann") if one["status"] == 403]
    assert "it takes the role admin" in refused[0]["detail"]["reason"]
    assert sum(one["detail"].get("times", 1) for one in refused) == 50
    assert len(refused) < 25, "one for each second that it took"


async def _all_told(found: Any) -> bool:
    return set(await found()) == {("ann", "create_pool", 403), ("", "authenticate", 401)}


async def test_refusals_of_thousands_fill_nothing(server: Served) -> None:
    before = len(await entries(server, limit=1000))
    for number in range(5000):
        server.engine.refusals.note(Deed("", "", f"10.0.{number}", "authenticate", "/x", 401))
    await server.engine.refusals.write()
    after = await entries(server, limit=1000)
    assert len(after) - before <= 201 + 5
    assert sum((one["detail"] or {}).get("times", 1) for one in after) >= 5000


async def test_pages_go_back_in_time(server: Served) -> None:
    def fill(tx: Tx) -> None:
        audit.write(tx, [Deed("x", "person", "", "act", f"n/{n}", 200) for n in range(25)])

    await server.engine.store.write(fill)
    seen: list[str] = []
    query: dict[str, Any] = {"who": "x", "limit": 10}
    while True:
        page = await server.get("/audit", **query)
        seen += [one["target"] for one in page["entries"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    assert seen == [f"n/{n}" for n in reversed(range(25))]
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert await entries(server, who="x", since=soon) == []
    assert len(await entries(server, who="x", until=soon)) == 25
    for wrong in ({"cursor": "x"}, {"limit": 0}, {"limit": 1001}):
        await server.get("/audit", 400, **wrong)


async def test_old_entries_go(server: Served) -> None:
    await server.pool()
    await asyncio.sleep(0)
    assert await entries(server)
    await server.engine.store.write(lambda tx: audit.forget(tx, tx.now + 1))
    assert await entries(server) == []


async def test_what_an_operation_itself_refuses_is_written_too(server: Served) -> None:
    await server.pool()
    agent = await made(server, Kind.AGENT, "a1", pools=["main"], manage_pools=True)
    invitation = await made(server, Kind.ENROLMENT, "i", pools=["main"], uses=1)
    async with bearing(server, agent) as http:
        assert (await http.post("/agents/a1/sync", json=server.sync_body(pools=["other"]))).status_code == 403
        assert (await http.post("/pools", json={"name": "other"})).status_code == 403
    async with bearing(server, invitation) as http:
        assert (await http.post("/join", json={"name": "j1", "token_hash": "1" * 64})).status_code == 200
        assert (await http.post("/join", json={"name": "j2", "token_hash": "2" * 64})).status_code == 401
    await server.engine.refusals.write(all_of_them=True)
    refused = {
        (one["who"], one["action"], one["status"]): one["detail"]["reason"]
        for one in await entries(server)
        if one["status"] > 400
    }
    assert refused == {
        ("a1", "sync_agent", 403): "agent 'a1' may not serve other",
        ("a1", "create_pool", 403): "agent 'a1' may not make the pool 'other'",
        ("i", "join", 401): "the invitation 'i' is used up",
    }


async def test_who_goes_on_being_refused_fills_nothing_in_months(server: Served) -> None:
    refusals = server.engine.refusals
    now = 0.0
    refusals._clock = lambda: now
    for _ in range(3600):  # once a second for an hour
        refusals.note(Deed("", "", "10.0.0.1", "authenticate", "/x", 401))
        await refusals.write()
        now += 1.0
    await refusals.write(all_of_them=True)
    found = [one for one in await entries(server, limit=1000) if one["address"] == "10.0.0.1"]
    assert len(found) <= 8
    assert sum((one["detail"] or {}).get("times", 1) for one in found) == 3600
    now += 10_000
    await refusals.write()
    assert not refusals._told, "what is quiet is forgotten"


async def test_strangers_do_not_hide_what_those_do_who_are_known(server: Served) -> None:
    for number in range(5000):
        server.engine.refusals.note(Deed("", "", f"10.0.{number}", "authenticate", "/x", 401))
    server.engine.refusals.note(Deed("a1", "agent", "10.0.0.1", "list_runs", "runs", 403))
    await server.engine.refusals.write(all_of_them=True)
    assert [one["action"] for one in await entries(server, who="a1")] == ["list_runs"]
