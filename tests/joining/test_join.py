"""Agents join: each use of an invitation makes one agent, a name has one owner, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from shunter_agents.credential import hash_of, new_token
from shunter_work_pools.client import AsyncClient
from shunter_work_pools.contracts.agents import SyncRequest
from shunter_work_pools.contracts.identities import Kind
from shunter_work_pools.queue import keys
from shunter_work_pools.storage import schema
from tests.api.serving import SOON, Served, held
from tests.api.test_identities import bearing


async def invited(server: Served, uses: int = 1, pool: str = "main", **more: Any) -> str:
    made = await server.post("/invitations", {"pool": pool, "uses": uses, **more}, 201)
    return str(made["token"])


async def join(server: Served, invitation: str, name: str = "a1", token: str | None = None) -> httpx.Response:
    body = {"name": name, "token_hash": hash_of(token or new_token())}
    async with bearing(server, invitation) as http:
        return await http.post("/join", json=body)


async def joined(server: Served, name: str = "a1", pool: str = "main", **more: Any) -> str:
    """The token of an agent that has joined."""
    token = new_token()
    answer = await join(server, await invited(server, pool=pool, **more), name, token)
    assert answer.status_code == 200, answer.text
    return token


async def whoami(server: Served, token: str) -> Any:
    async with bearing(server, token) as http:
        return (await http.get("/whoami")).json()


async def renew(server: Served, token: str, following: str, name: str = "a1") -> httpx.Response:
    async with bearing(server, token) as http:
        return await http.post(f"/agents/{name}/credential", json={"token_hash": hash_of(following)})


async def uses_left(server: Served) -> list[int]:
    found = (
        select(schema.keys.c.uses_left).where(schema.keys.c.kind == "enrolment").order_by(schema.keys.c.id)
    )
    return await server.engine.store.read(lambda tx: list(tx.conn.scalars(found)))


async def silence(server: Served) -> None:
    """No agent has been heard of for an hour, and the server has listened all the while."""
    await server.engine._write_heartbeats()
    silent = update(schema.agents).values(last_seen_at=schema.agents.c.last_seen_at - 3_600_000_000)
    await server.engine.store.write(lambda tx: tx.conn.execute(silent))
    server.engine._hearing_since -= 3600


def detail(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    problem = answer.json()
    return f"{problem['type'].rpartition(':')[2]}: {problem['detail']}"


@pytest.fixture
async def site(server: Served) -> Served:
    await server.pool()
    return server


async def test_an_invitation_is_changed_for_an_agent_of_its_pool(site: Served) -> None:
    made = await site.post("/invitations", {"pool": "main", "expires_in": 600, "manage_pools": True}, 201)
    assert made["key"]["kind"] == "enrolment"
    assert made["key"]["created_by"] == "local"
    assert made["key"]["name"].startswith("main-")
    token, began = new_token(), time.monotonic()
    answer = await join(site, made["token"], "a1", token)
    assert time.monotonic() - began < 2
    assert answer.status_code == 200
    assert answer.json()["agent"] == "a1"
    assert answer.json()["renew_after"] == pytest.approx(10 * 86_400)
    me = await whoami(site, token)
    assert (me["kind"], me["name"], me["pools"], me["manage_pools"]) == ("agent", "a1", ["main"], True)
    await site.deploy(pool="main")
    run = await site.submit()
    async with bearing(site, token) as http:
        granted = (await http.post("/agents/a1/sync", json=site.sync_body(hold_for=SOON))).json()[
            "assignments"
        ]
        assert [one["run"] for one in granted] == [run]
        assert (await http.post("/agents/a2/sync", json=site.sync_body())).status_code == 403
        assert (await http.post("/invitations", json={"pool": "main"})).status_code == 403
        assert (await http.get("/pools/main")).status_code == 200
    assert await uses_left(site) == [0]
    assert detail(await join(site, made["token"], "a2"), 401).endswith("is used up")
    assert "there is no pool" in (await site.post("/invitations", {"pool": "none"}, 404))["detail"]


async def test_the_last_use_is_had_by_one_of_two(site: Served) -> None:
    for _ in range(5):
        token = await invited(site, uses=2)
        names = [f"b{number}-{token[-4:].strip('-_')}x" for number in range(6)]
        answers = await asyncio.gather(*(join(site, token, name) for name in names))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 401, 401, 401, 401]
    assert await uses_left(site) == [0] * 5


async def test_of_two_that_join_under_one_name_one_does(site: Served) -> None:
    for number in range(5):
        first, second = await invited(site), await invited(site)
        answers = await asyncio.gather(*(join(site, token, f"c{number}") for token in (first, second)))
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        refused = max(answers, key=lambda answer: answer.status_code)
        assert "agent-name-in-use: an agent named" in detail(refused, 409)
    assert sorted(await uses_left(site)) == [0] * 5 + [1] * 5, "who is refused has spent nothing"


async def test_the_same_join_again_is_answered_alike_and_spends_nothing(site: Served) -> None:
    """As an agent says it whose answer was lost; also with another invitation, for the first one may have expired."""
    invitation, token = await invited(site, uses=2), new_token()
    first = await join(site, invitation, "a1", token)
    again = await join(site, invitation, "a1", token)
    assert again.json() == first.json()
    other = await invited(site)
    assert (await join(site, other, "a1", token)).json() == first.json()
    assert await uses_left(site) == [1, 1]
    assert (await join(site, invitation, "a2")).status_code == 200
    assert (await join(site, invitation, "a1", token)).json() == first.json(), "also once it is used up"

    # But nothing else by the same token: not under another name, not for other pools.
    assert "conflict: the token is taken" in detail(await join(site, other, "a3", token), 409)
    await site.pool("beside")
    beside = await invited(site, pool="beside")
    assert "joined for main already" in detail(await join(site, beside, "a1", token), 409)
    assert await uses_left(site) == [0, 1, 1]


async def test_names_that_are_not_free(site: Served) -> None:
    await site.sync("alive")
    invitation = await invited(site, uses=5)
    assert "'alive' is alive" in detail(await join(site, invitation, "alive"), 409)
    await joined(site, "taken")
    assert "'taken' has joined already" in detail(await join(site, invitation, "taken"), 409)

    # One that is lost, and served more than the invitation is for: what it holds is not for whoever comes.
    await site.pool("secret")
    await site.sync("wide", pools=["main", "secret"])
    await site.sync("narrow", pools=["main"])
    assert "'narrow' is alive" in detail(await join(site, invitation, "narrow"), 409)
    await silence(site)
    assert "'wide' served secret, too" in detail(await join(site, invitation, "wide"), 409)
    assert (await join(site, invitation, "narrow")).status_code == 200
    assert (await join(site, invitation, "no name!")).status_code == 400
    assert await uses_left(site) == [4, 0]


async def test_invitations_that_hold_no_more(site: Served) -> None:
    revoked = await site.post("/invitations", {"pool": "main", "name": "late"}, 201)
    await site.engine.store.write(lambda tx: keys.revoke(tx, Kind.ENROLMENT, "late"))
    assert "'late' was revoked" in detail(await join(site, revoked["token"]), 401)
    brief = await invited(site, expires_in=0.05)
    await asyncio.sleep(0.06)
    assert "expired" in detail(await join(site, brief), 401)
    async with bearing(site, await invited(site)) as http:
        assert (await http.get("/runs")).status_code == 403
        assert (await http.post("/agents/a1/sync", json=site.sync_body())).status_code == 403
        for wrong in ("", "0" * 63, "G" * 64, "0" * 65):
            assert (await http.post("/join", json={"name": "a1", "token_hash": wrong})).status_code == 400
    async with bearing(site, await joined(site)) as http:
        assert (await http.post("/join", json={"name": "a2", "token_hash": "0" * 64})).status_code == 403
    assert (await join(site, "she_" + "x" * 43)).status_code == 401


async def test_somebody_elses_hash_makes_nobody(site: Served) -> None:
    """Who knows the hash of another's token (from the database) gets nothing by it."""
    other = await joined(site, "other")
    invitation = await invited(site)
    assert "taken" in detail(await join(site, invitation, "a1", other), 409)
    assert "taken" in detail(await join(site, invitation, "a1", invitation), 409)
    assert "taken" in detail(await renew(site, await joined(site), other), 409)


# ---- renewal


async def test_the_old_token_holds_until_the_new_one_is_used(site: Served) -> None:
    old, new = await joined(site), new_token()
    made = await renew(site, old, new)
    assert made.status_code == 200
    assert (await renew(site, old, new)).json() == made.json(), "the same again is answered alike"
    assert (await whoami(site, old))["name"] == "a1"
    assert (await whoami(site, new))["name"] == "a1"
    async with bearing(site, old) as http:
        assert "replaced by a newer one" in detail(await http.get("/whoami"), 401)
    assert (await whoami(site, new))["name"] == "a1"
    assert (await renew(site, new, new_token())).status_code == 200


async def test_a_sync_that_is_held_by_the_old_token_ends_with_it(site: Served) -> None:
    old, new = await joined(site), new_token()
    await renew(site, old, new)
    async with bearing(site, old) as http:
        held = asyncio.create_task(http.post("/agents/a1/sync", json=site.sync_body(hold_for=10)))
        await site.waits()
        began = time.monotonic()
        await whoami(site, new)
        assert (await held).status_code == 401
        assert time.monotonic() - began < 1


async def test_a_client_says_again_what_was_under_way_with_the_old_token(site: Served) -> None:
    old, new = await joined(site), new_token()
    shown = [old]
    async with AsyncClient(f"http://127.0.0.1:{site.port}/api", lambda: shown[0]) as client:
        request = SyncRequest.model_validate(site.sync_body(hold_for=10))
        held = asyncio.create_task(client.sync("a1", request))
        await site.waits()
        await renew(site, old, new)
        shown[0] = new
        assert (await client.whoami()).name == "a1"  # which ends the old one, and the sync that it holds
        site.engine.release_waiters()
        assert (await held).assignments == []


async def test_what_a_renewal_left_behind_is_nobodys(site: Served) -> None:
    """A token that the agent lost with its disk before it used it must not hold for months."""
    own, lost, new = await joined(site), new_token(), new_token()
    await whoami(site, own)
    await renew(site, own, lost)
    await renew(site, own, new)
    async with bearing(site, lost) as http:
        assert (await http.get("/whoami")).status_code == 401
    assert (await whoami(site, own))["name"] == "a1"
    assert (await whoami(site, new))["name"] == "a1"


async def test_only_an_agent_renews_and_only_its_own(site: Served) -> None:
    own = await joined(site)
    other = await joined(site, "a2")
    assert (await renew(site, other, new_token(), "a1")).status_code == 403
    assert (await site.ask("POST", "/agents/a1/credential", 403, json={"token_hash": "0" * 64}))["detail"]
    await site.engine.store.write(lambda tx: keys.revoke(tx, Kind.AGENT, "a1"))
    assert "was revoked" in detail(await renew(site, own, new_token()), 401)


async def test_a_credential_expires_and_its_name_is_free_then(site: Served) -> None:
    token = await joined(site)
    await whoami(site, token)
    past = update(schema.keys).where(schema.keys.c.name == "a1").values(expires_at=1)
    await site.engine.store.write(lambda tx: tx.conn.execute(past))
    site.engine.identities._admitted.clear()
    async with bearing(site, token) as http:
        assert "expired" in detail(await http.get("/whoami"), 401)
    await joined(site)


async def test_removing_an_agent_revokes_its_credential_and_frees_its_name(site: Served) -> None:
    token = await joined(site)
    async with bearing(site, token) as http:
        assert (await http.post("/agents/a1/sync", json=site.sync_body())).status_code == 200
        await silence(site)
        assert (await site.http.delete("/agents/a1")).status_code == 204
        assert "was revoked" in detail(await http.post("/agents/a1/sync", json=site.sync_body()), 401)
    await joined(site)


async def test_what_a_lost_agent_holds_of_another_pool_is_not_for_who_takes_its_name(site: Served) -> None:
    await site.pool("secret")
    await site.deploy(pool="secret")
    await site.submit()
    (granted,) = await site.take("a1", pools=["main", "secret"])
    held_still = [held(granted)]
    await site.sync("a1", pools=["main"], holds=held_still)  # it was started anew, for one pool
    await silence(site)
    assert "'a1' served secret, too" in detail(await join(site, await invited(site), "a1"), 409)
