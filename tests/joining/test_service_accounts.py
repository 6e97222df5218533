"""An agent that shows a service account's token: which names it has, what it may, and what becomes of it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools.contracts.identities import Kind
from shunter_work_pools.contracts.trust import parsed
from shunter_work_pools.queue import keys
from shunter_work_pools.storage.store import PostgresStore
from shunter_work_pools.trust import Trusted
from tests.api.serving import Served, served, until
from tests.api.test_identities import bearing
from tests.joining.signing import ISSUER, RSA_KEY, public, token
from tests.joining.test_join import detail, invited, join, joined, silence, whoami


def shown(account: str = "runs:agent", **more: Any) -> str:
    """A token that is good now."""
    now = time.time()
    subject = f"system:serviceaccount:{account}"
    return token(**{"sub": subject, "iat": now, "nbf": now, "exp": now + 600, **more})


@pytest.fixture
async def site(server: Served, tmp_path: Path) -> AsyncIterator[Served]:
    """A server that trusts two accounts: one of the pool main that manages it, one of the pool side."""
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [public(RSA_KEY)]}))
    rule = {"issuer": ISSUER, "jwks": str(file)}
    rules = [
        rule | {"serviceAccount": "runs/agent", "pools": ["main", "made"], "managePools": True},
        rule | {"serviceAccount": "side/agent", "pools": ["side"]},
    ]
    trusted = Trusted(parsed(rules), {})
    server.engine.identities.verifiers = (trusted,)
    await server.pool()
    await server.pool("side")
    yield server
    await trusted.close()


async def sync(
    site: Served, text: str, name: str = "k1", status: int = 200, pools: tuple[str, ...] = ("main",)
) -> str:
    async with bearing(site, text) as http:
        answer = await http.post(f"/agents/{name}/sync", json=site.sync_body(pools=list(pools)))
    return "" if status == answer.status_code == 200 else detail(answer, status)


async def test_it_serves_the_pools_that_it_is_trusted_with(site: Served) -> None:
    me = await whoami(site, shown())
    assert (me["kind"], me["name"], me["pools"]) == ("agent", "runs/agent", ["made", "main"])
    await sync(site, shown())
    assert "side" in await sync(site, shown(), pools=("side",), status=403)
    async with bearing(site, shown()) as http:
        assert (await http.get("/runs")).status_code == 403
        assert (await http.get("/pools/side")).status_code == 403
        assert (await http.post("/invitations", json={"pool": "main"})).status_code == 403
        assert "joined" in detail(
            await http.post("/agents/k1/credential", json={"token_hash": "0" * 64}), 409
        )


async def test_a_name_belongs_to_the_account_that_came_first(site: Served) -> None:
    await sync(site, shown())
    await sync(site, shown(jti="another token of the same account"))
    assert "'k1' has joined already" in await sync(site, shown("side:agent"), pools=("side",), status=409)
    assert "'k1' has joined already" in detail(await join(site, await invited(site), "k1"), 409)
    await joined(site, "j1")
    assert "'j1' has joined already" in await sync(site, shown(), "j1", status=409)
    await site.sync("alive")
    assert "'alive' is alive" in await sync(site, shown(), "alive", status=409)
    assert await sync(site, shown(), "no%20name", status=403)
    listed = await site.engine.store.read(lambda tx: keys.list_keys(tx))
    assert {(one.name, one.created_by) for one in listed if one.kind is Kind.AGENT} == {
        ("k1", "service account runs/agent"),
        ("j1", next(one.created_by for one in listed if one.name == "j1")),
    }


async def test_one_agent_of_an_account_is_revoked_at_once(site: Served) -> None:
    text = shown()
    await sync(site, text)
    await sync(site, text, "k2")
    await site.engine.store.write(lambda tx: keys.revoke(tx, Kind.AGENT, "k1"))
    assert "of the service account runs/agent was revoked" in await sync(site, text, status=401)
    assert "was revoked" in await sync(site, shown(jti="a fresh one"), status=401)
    await sync(site, text, "k2")

    await silence(site)
    assert (await site.http.delete("/agents/k1")).status_code == 204
    await sync(site, text)  # removed, its name is free


async def test_who_manages_pools_makes_and_changes_his_own(site: Served) -> None:
    async with bearing(site, shown()) as http:
        assert (await http.post("/pools", json={"name": "made"})).status_code == 201
        assert (await http.patch("/pools/made", json={"template": {}})).status_code == 200
        assert (await http.post("/pools", json={"name": "other"})).status_code == 403
        assert (await http.patch("/pools/side", json={"template": {}})).status_code == 403
        assert (await http.delete("/pools/made")).status_code == 403
    async with bearing(site, shown("side:agent")) as http:
        assert (await http.patch("/pools/side", json={"template": {}})).status_code == 403


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"exp": time.time() - 100}, "expired"),
        ({"nbf": time.time() + 3000}, "(nbf)"),
        ({"aud": ["https://kubernetes.default.svc"]}, "audience"),
        ({"iss": "https://elsewhere.example"}, "issuer"),
        ({"account": "runs:default"}, "nobody who is trusted"),
        ({"kid": "k9"}, "key that its issuer does not have"),
    ],
)
async def test_a_token_that_is_refused_says_why(site: Served, more: dict[str, Any], reason: str) -> None:
    text = shown(**more)
    told = await sync(site, text, status=401)
    assert reason in told
    assert text not in told


async def test_a_token_counts_until_it_expires_and_no_longer(site: Served) -> None:
    clock = [time.time()]
    site.engine.identities._clock = lambda: int(clock[0] * 1_000_000)
    site.engine.identities.verifiers[0]._clock = lambda: clock[0]  # type: ignore[attr-defined]
    text = shown()
    await sync(site, text)
    clock[0] += 629
    await sync(site, text)
    clock[0] += 2
    assert "expired" in await sync(site, text, status=401)


async def test_where_nobody_is_trusted(site: Served) -> None:
    site.engine.identities.verifiers = ()
    assert "nobody whom this server trusts" in await sync(site, shown(), status=401)
    assert "not one of this server" in await sync(site, "x" * 60_000, status=401)


async def test_other_servers_hear_that_an_agent_of_an_account_was_removed(
    migrated_postgres: str, tmp_path: Path
) -> None:
    file, name, account = tmp_path / "keys.json", f"k{time.time_ns()}", f"acc{time.time_ns()}"
    file.write_text(json.dumps({"keys": [public(RSA_KEY)]}))
    rule = {"issuer": ISSUER, "jwks": str(file), "serviceAccount": f"runs/{account}", "pools": ["main"]}
    async with (
        served(PostgresStore(migrated_postgres), tmp_path / "1") as one,
        served(PostgresStore(migrated_postgres), tmp_path / "2") as other,
    ):
        trusted = Trusted(parsed([rule]), {})
        for server in (one, other):
            server.engine.identities.verifiers = (trusted,)
        if (await one.http.get("/pools/main")).status_code == 404:
            await one.pool()
        text = shown(f"runs:{account}")
        await sync(other, text, name)
        (admission,) = [
            one for one in other.engine.identities._admitted.values() if one.identity.name == name
        ]
        await silence(one)
        assert (await one.http.delete(f"/agents/{name}")).status_code == 204
        await until(lambda: admission.ended is not None, 1.0)
        await sync(one, text, name)  # its name is free
        await trusted.close()


async def test_who_only_looks_at_a_name_does_not_get_it(site: Served) -> None:
    async with bearing(site, shown()) as http:
        for method, path in (("GET", "/agents/free"), ("DELETE", "/agents/free"), ("PATCH", "/agents/free")):
            answer = await http.request(method, path, json={"paused": True} if method == "PATCH" else None)
            assert answer.status_code == 403, answer.text
    assert not await site.engine.store.read(lambda tx: keys.list_keys(tx))
