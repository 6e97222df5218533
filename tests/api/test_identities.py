"""Who is let in, and for how long."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from shunter_work_pools.api import permissions
from shunter_work_pools.api.permissions import GuardedRoute, unguarded
from shunter_work_pools.contracts.base import moment
from shunter_work_pools.contracts.errors import Unauthenticated
from shunter_work_pools.contracts.identities import Kind, Role
from shunter_work_pools.identities import Admission, Identities, Identity
from shunter_work_pools.queue import keys
from shunter_work_pools.secret_keys import passing_keys
from shunter_work_pools.storage.store import PostgresStore, SqliteStore, Tx, system_clock
from tests.api.serving import NO_TLS, SOON, TOKEN, Served, served, until


async def made(server: Served, kind: Kind, name: str, **more: Any) -> str:
    """A token of that kind, made in the server's store."""
    _, token = await server.engine.store.write(lambda tx: keys.create(tx, kind, name, "test", **more))
    return token


def bearing(server: Served, token: str) -> httpx.AsyncClient:
    """A client that has another token."""
    return httpx.AsyncClient(
        base_url=server.http.base_url,
        headers={"authorization": f"Bearer {token}"},
        timeout=30,
        trust_env=False,
        verify=NO_TLS,
    )


async def test_each_is_told_who_it_is(server: Served) -> None:
    expected = {
        TOKEN: {"kind": "person", "name": "local", "role": "admin"},
        await made(server, Kind.PERSON, "ann", role=Role.OPERATOR): {"name": "ann", "role": "operator"},
        await made(server, Kind.AGENT, "a1", pools=["x", "b"], manage_pools=True): {
            "kind": "agent",
            "pools": ["b", "x"],
            "manage_pools": True,
        },
        await made(server, Kind.ENROLMENT, "i", pools=["x"], uses=1): {"kind": "enrolment", "pools": ["x"]},
    }
    for token, told in expected.items():
        async with bearing(server, token) as http:
            answer = (await http.get("/whoami")).json()
            assert {key: answer[key] for key in told} == told


async def test_what_is_revoked_holds_no_more_at_once(server: Served) -> None:
    token = await made(server, Kind.PERSON, "ann", role=Role.VIEWER)
    async with bearing(server, token) as http:
        assert (await http.get("/runs")).status_code == 200
        await server.engine.store.write(lambda tx: keys.revoke(tx, Kind.PERSON, "ann"))
        refused = await http.get("/runs")
        assert refused.status_code == 401
        assert "was revoked" in refused.json()["detail"]
        assert refused.headers["www-authenticate"] == "Bearer"


async def test_a_sync_that_is_held_ends_with_its_credential_and_grants_nothing(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    token = await made(server, Kind.AGENT, "a1", pools=["main"])
    async with bearing(server, token) as http:
        body = server.sync_body(hold_for=10)
        held = asyncio.create_task(http.post("/agents/a1/sync", json=body))
        await server.waits()
        began = time.monotonic()
        await server.engine.store.write(lambda tx: keys.revoke(tx, Kind.AGENT, "a1"))
        assert (await asyncio.wait_for(held, SOON)).status_code == 401
        assert time.monotonic() - began < 1
        assert not server.engine.hub.agents
        run = await server.submit()
        assert (await server.run(run))["state"] == "Scheduled"


async def test_what_is_held_for_a_person_is_not_told_after_the_key_was_revoked(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    run = await server.submit()
    token = await made(server, Kind.PERSON, "ann", role=Role.VIEWER)
    async with bearing(server, token) as http:
        held = asyncio.create_task(http.get(f"/runs/{run}", params={"wait": 10, "seen": "Scheduled:0"}))
        await server.watched()
        await server.engine.store.write(lambda tx: keys.revoke(tx, Kind.PERSON, "ann"))
        await server.post(f"/runs/{run}/cancel")
        answer = await asyncio.wait_for(held, SOON)
        assert answer.status_code == 401
        assert run not in answer.text


async def test_a_key_expires_while_it_is_known(migrated_sqlite: Path, tmp_path: Path) -> None:
    now = system_clock()
    store = SqliteStore(tmp_path / "x.db", lambda: now)
    await store.open()
    identities = Identities(store, passing_keys(), clock=lambda: now)
    _, token = await store.write(
        lambda tx: keys.create(tx, Kind.PERSON, "ann", "test", role=Role.VIEWER, expires_in=60)
    )
    assert (await identities.admit(token.encode(), "")).identity.name == "ann"
    now += 59_999_999
    await identities.admit(token.encode(), "")
    now += 1
    for _ in range(2):  # known, and looked up
        with pytest.raises(Unauthenticated, match="expired") as refused:
            await identities.admit(token.encode(), "")
        assert f"{moment(now):%H:%M:%S}" in refused.value.detail
    await store.close()


async def test_one_server_hears_of_what_another_revoked(migrated_postgres: str, tmp_path: Path) -> None:
    async with (
        served(PostgresStore(migrated_postgres), tmp_path / "1") as one,
        served(PostgresStore(migrated_postgres), tmp_path / "2") as other,
    ):
        name = f"two{system_clock()}"
        token = await made(one, Kind.AGENT, name, pools=["main"])
        if (await one.http.get("/pools/main")).status_code == 404:
            await one.pool()
        async with bearing(other, token) as http:
            body = other.sync_body(hold_for=10)
            held = asyncio.create_task(http.post(f"/agents/{name}/sync", json=body))
            await other.waits()
            began = time.monotonic()
            await one.engine.store.write(lambda tx: keys.revoke(tx, Kind.AGENT, name))
            assert (await asyncio.wait_for(held, SOON)).status_code == 401
            assert (await http.get("/whoami")).status_code == 401
            assert time.monotonic() - began <= 1


async def test_who_is_revoked_while_it_is_looked_up_is_not_kept(plain: Served) -> None:
    token = await made(plain, Kind.PERSON, "ann", role=Role.VIEWER)
    identities = plain.engine.identities
    read = plain.engine.store.read

    async def slow(work: Any) -> Any:
        found = await read(work)
        plain.engine.store.read = read  # type: ignore[method-assign]
        await plain.engine.store.write(lambda tx: keys.revoke(tx, Kind.PERSON, "ann"))
        return found

    plain.engine.store.read = slow  # type: ignore[method-assign]
    with pytest.raises(Unauthenticated, match="revoked"):
        await identities.admit(token.encode(), "")


async def test_the_last_use_is_written_once_a_minute(server: Served) -> None:
    token = await made(server, Kind.PERSON, "ann", role=Role.VIEWER)

    async def last() -> Any:
        (key,) = await server.engine.store.read(keys.list_keys)
        return key

    async with bearing(server, token) as http:
        await http.get("/runs")
        await until(lambda: _used(last))
        first = await last()
        assert first.last_used_from == "127.0.0.1"
        for _ in range(20):
            await http.get("/runs")
        await server.engine.identities.write_uses()
        assert await last() == first


async def _used(last: Any) -> bool:
    return (await last()).last_used_at is not None


async def test_an_agent_is_held_to_its_name_and_pools(server: Served) -> None:
    await server.pool()
    await server.pool("other")
    token = await made(server, Kind.AGENT, "a1", pools=["main"])
    async with bearing(server, token) as http:

        async def asked(name: str, *pools: str) -> Any:
            return await http.post(f"/agents/{name}/sync", json=server.sync_body(pools=pools))

        assert (await asked("a1", "main")).status_code == 200
        for refused, why in (
            (await asked("a2", "main"), "cannot act as agent 'a2'"),
            (await asked("a1", "other"), "may not serve other"),
            (await asked("a1", "main", "other"), "may not serve other"),
            (await http.get("/runs"), "not for agents"),
        ):
            assert refused.status_code == 403
            assert why in refused.json()["detail"]


async def test_an_agent_touches_no_run_that_another_holds(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    await server.submit()
    (granted,) = await server.take("a1")
    token = await made(server, Kind.AGENT, "a2", pools=["main"])
    async with bearing(server, token) as http:
        other = Served(http, server.port, server.engine, server.server)
        session = "00000000-0000-0000-0000-000000000064"
        await other.sync("a2", session=session, identity="00000000-0000-0000-0000-0000000000a2")
        (ack,) = (await other.report(granted, "Starting", "Running", name="a2"))["acks"]
        assert ack["stale"]
        (size,) = (await other.upload(granted, 0, b"forged", name="a2"))["sizes"]
        assert size["stale"]
        released = await other.post(
            "/agents/a2/release",
            {"session": session, "attempts": [{key: granted[key] for key in ("run", "attempt", "epoch")}]},
        )
        assert released["acks"][0]["stale"]
    run = await server.run(granted["run"])
    assert run["state"] == "Claimed"
    assert (await server.http.get(f"/runs/{granted['run']}/logs")).content == b""


async def test_pools_are_managed_by_agents_that_may_and_no_others(server: Served) -> None:
    await server.pool()
    may = await made(server, Kind.AGENT, "a1", pools=["main", "new"], manage_pools=True)
    may_not = await made(server, Kind.AGENT, "a2", pools=["main", "new"])
    async with bearing(server, may) as http:
        for status, method, path, body in (
            (201, "POST", "/pools", {"name": "new"}),
            (403, "POST", "/pools", {"name": "another"}),
            (403, "POST", "/pools", {"name": "new", "priority": 5}),
            (403, "POST", "/pools", {"name": "new", "limit": 5}),
            (200, "PATCH", "/pools/main", {"template": {}}),
            (200, "PATCH", "/pools/main", {"template": {}, "match": ["x"]}),
            (403, "PATCH", "/pools/main", {"limit": 5}),
            (403, "PATCH", "/pools/main", {"match": [], "priority": 5}),
            (403, "PATCH", "/pools/main", {"paused": True}),
            (403, "DELETE", "/pools/new", None),
        ):
            assert (await http.request(method, path, json=body)).status_code == status, (method, path, body)
    async with bearing(server, may_not) as http:
        assert (await http.patch("/pools/main", json={"template": {}})).status_code == 403


class _Foreign:
    """Trusts one token of somebody else's."""

    def __init__(self) -> None:
        self.asked = 0

    async def identify(self, token: str) -> Identity | None:
        self.asked += 1
        known = token == "eyJ.good.one"
        return Identity(Kind.PERSON, "ann", Role.VIEWER, expires_at=system_clock() + 10**9) if known else None


async def test_tokens_of_others_are_for_a_verifier_to_say(plain: Served) -> None:
    verifier = _Foreign()
    plain.engine.identities.verifiers = [verifier]
    for token, status in (("eyJ.good.one", 200), ("eyJ.good.one", 200), ("eyJ.bad.one", 401)):
        async with bearing(plain, token) as http:
            assert (await http.get("/runs")).status_code == status
    assert verifier.asked == 2


def test_an_operation_without_a_rule_is_no_route() -> None:
    router = APIRouter(route_class=GuardedRoute)

    async def forgotten() -> None: ...

    with pytest.raises(LookupError, match=r"forgotten.*has no rule"):
        router.get("/forgotten")(forgotten)
    app = FastAPI(openapi_url=None)
    plain_router = APIRouter()
    plain_router.get("/past")(forgotten)
    app.include_router(plain_router)
    app.get("/beside")(forgotten)
    assert len([path for path in unguarded(app.routes) if path in ("/past", "/beside")]) == 2


async def test_a_route_that_goes_by_no_rule_answers_nobody(plain: Served) -> None:
    async def forgotten() -> dict[str, str]:
        return {"secret": "told"}

    app = plain.server.config.app.app
    app.router.route_class = permissions.APIRoute
    app.get("/api/v1/forgotten")(forgotten)
    answer = await plain.http.get("/forgotten")
    assert answer.status_code == 403
    assert "told" not in answer.text


async def test_what_would_be_held_ends_where_the_key_was_revoked_just_before(server: Served) -> None:
    admission = Admission(Identity(Kind.AGENT, "a1", key_id=1))
    admission.end("the token of 'a1' was revoked")

    async def hold() -> None:
        with admission.holding():
            await asyncio.sleep(SOON)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.create_task(hold()), 1)


async def test_keys_that_ended_go_after_a_time_but_for_names_of_accounts(server: Served) -> None:
    await made(server, Kind.PERSON, "old", role=Role.VIEWER)
    await made(server, Kind.PERSON, "alive", role=Role.VIEWER)
    await made(server, Kind.AGENT, "joined", pools=["main"], expires_in=3600)
    await made(
        server, Kind.AGENT, "account", pools=["main"]
    )  # no end by itself, as the names that accounts took

    def end(tx: Tx) -> None:
        for kind, name in ((Kind.PERSON, "old"), (Kind.AGENT, "joined"), (Kind.AGENT, "account")):
            keys.revoke(tx, kind, name)

    def names(tx: Tx) -> set[str]:
        return {key.name for key in keys.list_keys(tx, all_of_them=True)}

    store = server.engine.store
    await store.write(end)
    await store.write(lambda tx: keys.forget_ended(tx, tx.now - 3_600_000_000))
    assert await store.read(names) == {"old", "alive", "joined", "account"}
    await store.write(lambda tx: keys.forget_ended(tx, tx.now + 1))
    assert await store.read(names) == {"alive", "account"}
