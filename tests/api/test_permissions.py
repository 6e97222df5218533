"""Every operation of the OpenAPI document, asked for by everybody, against a table written by hand."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from shunter_work_pools.contracts.identities import Kind, Role
from shunter_work_pools.queue import keys
from shunter_work_pools.throttle import Throttle
from tests.api.permitted import INVITED, MANAGER, OPEN, OTHER, OWN, RUN, TABLE
from tests.api.serving import Served, held
from tests.api.test_attempt_tokens import token_of
from tests.api.test_identities import made

#: Those who are nobody, or nobody any more.
NOBODY = ("nobody", "a wrong token", "revoked", "expired", "ended attempt", "forged attempt")
_NAMES = {"name": "a1", "run": "0" * 32, "kind": "person", "queue": "none", "schedule": "none"}
_NAMES |= {"key": "none", "attempt": "1", "result": "0" * 40}


def operations(document: Any) -> list[tuple[str, str]]:
    return [(method.upper(), path) for path, found in document["paths"].items() for method in found]


def path_of(method: str, path: str) -> str:
    """With names in it; pools are named ``main``, everything that could be deleted is not there."""
    name = "a1" if "/agents/" in path else "main" if "/pools/" in path else "none"
    return path.format(**(_NAMES | {"name": name}))


async def tokens(server: Served) -> dict[str, str]:
    """A token of everybody."""
    await server.pool()
    await server.pool("other")
    await server.deploy(pool="main", work={"command": ["true"], "token": True})
    found = {role.value: await made(server, Kind.PERSON, role.value, role=role) for role in Role}
    found[OWN] = await made(server, Kind.AGENT, "a1", pools=["main"])
    found[OTHER] = await made(server, Kind.AGENT, "b1", pools=["other"])
    found[MANAGER] = await made(server, Kind.AGENT, "m1", pools=["main"], manage_pools=True)
    found[INVITED] = await made(server, Kind.ENROLMENT, "i1", pools=["main"], uses=1)
    holds: list[Any] = []
    for name in (RUN, "ended attempt"):
        await server.submit()
        (granted,) = await server.take("other", holds=holds)
        holds.append(held(granted))
        found[name] = str(await token_of(server, granted, "other"))
        if name != RUN:
            done = {"log_size": 0, "exit_code": 1, "cause": "exit_code"}
            await server.report(granted, "Starting", "Running", "Failed", name="other", **done)
    found["forged attempt"] = found[RUN][:-4] + ("AAAA" if found[RUN][-4:] != "AAAA" else "BBBB")
    found["revoked"] = await made(server, Kind.PERSON, "revoked", role=Role.ADMIN)
    await server.engine.store.write(lambda tx: keys.revoke(tx, Kind.PERSON, "revoked"))
    found["expired"] = await made(server, Kind.PERSON, "expired", role=Role.ADMIN, expires_in=0.000_001)
    found["a wrong token"] = "shk_" + "x" * 43
    return found


@pytest.fixture
async def everybody(plain: Served) -> tuple[Served, dict[str, str]]:
    """A server that lets everybody try as often as he likes."""
    plain.engine.identities._wrong = Throttle(1e6, 1e6)
    return plain, await tokens(plain)


async def answered(server: Served, token: str | None, method: str, path: str, body: Any) -> httpx.Response:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{server.port}{path}"
    return await server.http.send(httpx.Request(method, url, headers=headers, json=body))


#: A body that is taken, where one that is wrong would hide what is asked here.
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/api/v1/pools"): {"name": "main"},
    ("PATCH", "/api/v1/pools/{name}"): {"template": {}},
    ("PATCH", "/api/v1/server"): {"paused": None},
}


async def test_everybody_may_do_what_the_table_says_and_nothing_else(
    everybody: tuple[Served, dict[str, str]],
) -> None:
    server, known = everybody
    document = await server.get("/openapi.json")
    asked = operations(document)
    unlisted = sorted(set(asked) - set(TABLE) - OPEN)
    assert not unlisted, f"who may do these? Say so in tests/api/permitted.py: {unlisted}"
    assert set(TABLE) | OPEN <= set(asked), "no such operation any more"
    everyone: dict[str, str | None] = {"nobody": None, **known}
    wrong: list[str] = []
    count = 0
    for method, path in asked:
        if (method, path) in OPEN:
            continue
        for who, token in everyone.items():
            body = BODIES.get(
                (method, path), {"no such field": 1} if method not in ("GET", "DELETE") else None
            )
            answer = await answered(server, token, method, path_of(method, path), body)
            count += 1
            if who in NOBODY:
                fits = answer.status_code == 401
            elif who in TABLE[method, path]:
                fits = answer.status_code not in (401, 403) and answer.status_code < 500
            else:
                fits = answer.status_code == 403
            if not fits:
                wrong.append(f"{who}: {method} {path} is answered {answer.status_code} {answer.text[:120]}")
    assert not wrong, "\n".join(wrong)
    assert count > 800


async def test_what_is_open_tells_nothing_of_what_is_in_there(plain: Served) -> None:
    for path in ("/healthz", "/readyz"):
        assert set((await answered(plain, None, "GET", path, None)).json()) == {"status"}
    told = (await answered(plain, None, "GET", "/api/v1/sign-in", None)).json()
    assert set(told) == {"issuer", "client_id", "scopes"}
    assert (
        await answered(plain, None, "POST", "/api/v1/sign-in", {"id_token": "eyJ.x.y"})
    ).status_code >= 400


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR, Role.DEPLOYER])
async def test_what_a_person_may_not_changes_nothing(plain: Served, role: Role) -> None:
    """Well-formed requests that would take effect if they were let through."""
    await plain.pool()
    await plain.deploy(pool="main")
    token = await made(plain, Kind.PERSON, "ann", role=role)
    before = [await plain.get(path) for path in ("/pools", "/limits", "/keys", "/server")]
    for method, path, body in (
        ("POST", "/pools", {"name": "new"}),
        ("PATCH", "/pools/main", {"limit": 1}),
        ("POST", "/limits", {"name": "l", "max": 1}),
        ("POST", "/keys", {"name": "me", "role": "admin"}),
        ("PATCH", "/server", {"paused": True}),
        ("POST", "/agents/a1/sync", plain.sync_body()),
    ):
        answer = await answered(plain, token, method, f"/api/v1{path}", body)
        assert answer.status_code == 403, path
    after = [await plain.get(path) for path in ("/pools", "/limits", "/keys", "/server")]
    for one, other in zip(before, after, strict=True):
        assert _steady(one) == _steady(other)


def _steady(document: Any) -> Any:
    return {key: value for key, value in document.items() if key not in ("server_time", "database_bytes")}
