"""What a run may do by the token of its attempt, and for how long."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from shunter_work_pools.attempt_tokens import AttemptTokens
from shunter_work_pools.secret_keys import SecretKeys
from tests.api.serving import Served
from tests.api.test_identities import bearing

RUN = UUID(int=5)
SESSION = str(UUID(int=100))


async def token_of(server: Served, granted: Any, name: str = "a1") -> str | None:
    """What the agent that holds an attempt is given for it."""
    body = {"session": SESSION} | {key: granted[key] for key in ("run", "attempt", "epoch")}
    token = (await server.post(f"/agents/{name}/secrets", body))["token"]
    return None if token is None else str(token)


@pytest.fixture
async def granted(server: Served) -> Any:
    """An attempt whose work asks for a token."""
    await server.pool()
    await server.deploy(pool="main", work={"command": ["true"], "token": True})
    await server.submit()
    (one,) = await server.take()
    return one


@pytest.fixture
async def run(server: Served, granted: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The run itself."""
    token = await token_of(server, granted)
    assert token is not None
    assert token.startswith("shr_")
    async with bearing(server, token) as http:
        yield http


async def test_a_run_tells_how_far_it_is_and_its_result(
    server: Served, granted: Any, run: httpx.AsyncClient
) -> None:
    me = (await run.get("/attempt")).json()
    assert (me["run"], me["attempt"], me["state"], me["stopping"]) == (granted["run"], 1, "Claimed", False)
    await server.report(granted, "Starting", "Running")
    assert (await run.post("/attempt/progress", json={"percent": 40, "note": "loading\0"})).status_code == 204
    (attempt,) = (await server.run(granted["run"]))["attempts"]
    assert (attempt["progress"]["percent"], attempt["progress"]["note"]) == (
        40,
        "loading\N{REPLACEMENT CHARACTER}",
    )
    assert (await run.put("/attempt/result", json={"value": {"rows": 7}})).status_code == 204
    await server.report(granted, "Completed", log_size=0)
    ended = await server.run(granted["run"])
    assert ended["result"] == {"rows": 7}
    assert ended["attempts"][0]["progress"]["note"].startswith("loading")


async def test_the_result_of_its_end_goes_before(
    server: Served, granted: Any, run: httpx.AsyncClient
) -> None:
    await run.put("/attempt/result", json={"value": 1})
    await server.report(granted, "Starting", "Running", "Completed", log_size=0, result=2)
    assert (await server.run(granted["run"]))["result"] == 2


async def test_a_token_is_worthless_at_once_when_its_attempt_ends(
    server: Served, granted: Any, run: httpx.AsyncClient
) -> None:
    await server.report(granted, "Starting", "Running", "Failed", log_size=0, exit_code=1, cause="exit_code")
    for method, path, body in (
        ("GET", "/attempt", None),
        ("POST", "/attempt/progress", {"percent": 1}),
        ("PUT", "/attempt/result", {"value": 1}),
        ("GET", "/whoami", None),
        ("GET", "/runs", None),
    ):
        answer = await run.request(method, path, json=body)
        assert answer.status_code == 401, path
        assert "is over" in answer.json()["detail"]
    # Its run goes on with another attempt: that is another's.
    await server.post(f"/runs/{granted['run']}/retry")
    (again,) = await server.take()
    assert again["attempt"] == 2
    assert (await run.get("/attempt")).status_code == 401
    async with bearing(server, str(await token_of(server, again))) as http:
        assert (await http.get("/attempt")).json()["attempt"] == 2


async def test_it_is_good_for_nothing_else(server: Served, granted: Any, run: httpx.AsyncClient) -> None:
    for method, path in (
        ("GET", f"/runs/{granted['run']}"),
        ("POST", f"/runs/{granted['run']}/cancel"),
        ("GET", "/secrets"),
        ("POST", "/agents/a1/secrets"),
    ):
        assert (await run.request(method, path)).status_code == 403


async def test_a_stop_is_told(server: Served, granted: Any, run: httpx.AsyncClient) -> None:
    await server.report(granted, "Starting", "Running")
    await server.post(f"/runs/{granted['run']}/cancel")
    me = (await run.get("/attempt")).json()
    assert (me["state"], me["stopping"]) == ("Cancelling", True)


async def test_only_who_asks_for_one_has_one(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    await server.submit()
    (granted,) = await server.take()
    assert await token_of(server, granted) is None


async def test_too_much_is_refused(run: httpx.AsyncClient) -> None:
    assert (await run.put("/attempt/result", json={"value": "x" * 70_000})).status_code == 413
    assert (await run.post("/attempt/progress", json={"note": "x" * 1001})).status_code == 400
    assert (await run.post("/attempt/progress", json={"percent": 101})).status_code == 400
    assert (await run.put("/attempt/result", json={"value": "\0"})).status_code in (204, 400)


def test_only_a_key_of_the_server_makes_one() -> None:
    old, new = AttemptTokens(SecretKeys(("o" * 32,))), AttemptTokens(SecretKeys(("n" * 32, "o" * 32)))
    token = old.make(RUN, 3)
    assert old.read(token) == new.read(token) == (RUN, 3)
    assert new.make(RUN, 3) != token
    assert old.read(new.make(RUN, 3)) is None
    raw = bytearray(base64.urlsafe_b64decode(token.removeprefix("shr_") + "=="))
    for at in range(len(raw)):
        changed = bytes(raw[:at]) + bytes([raw[at] ^ 1]) + bytes(raw[at + 1 :])
        assert old.read("shr_" + base64.urlsafe_b64encode(changed).decode().rstrip("=")) is None
    for wrong in ("shr_", "shr_!", "shr_ä", token[:-1], token + "A", token[:30]):
        assert old.read(wrong) is None


async def test_a_run_fetches_its_own_secrets_and_no_others(server: Served) -> None:
    for name in ("warehouse", "other"):
        await server.ask("PUT", f"/secrets/{name}", json={"value": f"the value of {name}"})
    await server.pool()
    work = {"command": ["true"], "token": True, "env": {"PLAIN": "x", "PASSWORD": {"secret": "warehouse"}}}
    await server.deploy(pool="main", work=work)
    await server.submit()
    (granted,) = await server.take()
    # What it was granted with is what its agent masks, whatever the secret is later.
    await server.ask("PUT", "/secrets/warehouse", json={"value": "a later one"})
    async with bearing(server, await token_of(server, granted) or "") as http:
        found = await http.get("/attempt/secrets")
        assert found.json() == {"env": {"PASSWORD": "the value of warehouse"}}
        assert (await http.get("/secrets")).status_code == 403
        await server.report(granted, "Starting", "Running", "Completed", log_size=0)
        assert (await http.get("/attempt/secrets")).status_code == 401
