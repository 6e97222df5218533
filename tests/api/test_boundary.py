"""What every request passes: Host, token, media type, size; and how a no is said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator

from shunter_work_pools import engine
from shunter_work_pools.api import (
    agents,
    attempts,
    audit,
    deployments,
    identities,
    joining,
    limits,
    pool_checks,
    pools,
    runs,
    schedules,
    secrets,
    sign_in,
    tasks,
)
from shunter_work_pools.api.app import build_app
from shunter_work_pools.api.boundary import BODY_LIMIT, OPEN_BODY_LIMIT
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import LOG_MEDIA_TYPE
from shunter_work_pools.contracts.errors import from_problem
from tests.api.serving import NO_TLS, TOKEN, Served

PREFIX = "urn:shunter:problem:"


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """An answer that is a problem document (RFC 9457) of this type."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["shunter-protocol"] == str(PROTOCOL)
    body: dict[str, Any] = response.json()
    assert (body["type"], body["status"]) == (PREFIX + slug, status)
    assert body["title"]
    assert body["detail"]
    assert type(from_problem(status, body)).__name__ != "Refused" or slug == "refused"
    return body


# ---- token and Host


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN]
)
async def test_without_the_token_nothing_is_told(plain: Served, value: str | None) -> None:
    headers = {} if value is None else {"authorization": value}
    async with httpx.AsyncClient(
        base_url=str(plain.http.base_url), trust_env=False, verify=NO_TLS, timeout=30
    ) as stranger:
        for method, path in (("GET", "/runs"), ("POST", "/runs"), ("GET", "/openapi.json"), ("GET", "/x")):
            response = await stranger.request(method, path, headers=headers)
            body = problem(response, 401, "unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in response.text
            assert "SHUNTER_TOKEN" in body["remedy"]


async def test_health_needs_no_token(plain: Served) -> None:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{plain.port}", trust_env=False, verify=NO_TLS, timeout=30
    ) as stranger:
        for path in ("/healthz", "/readyz", "/api/healthz", "/api/readyz"):
            assert (await stranger.get(path)).status_code == 200
        plain.engine.ready = False
        problem(await stranger.get("/readyz"), 503, "unavailable")
        assert (await stranger.get("/healthz")).status_code == 200


@pytest.mark.parametrize("host", ["10.244.1.7:4400", "[fd00::7]:4400", "evil.example", ""])
async def test_health_is_asked_by_any_name(plain: Served, host: str) -> None:
    """A kubelet knows a pod by its address alone. Nobody else is let in by that."""
    for path in ("/healthz", "/readyz", "/api/healthz", "/api/readyz"):
        found = await plain.http.get(f"http://127.0.0.1:{plain.port}{path}", headers={"host": host})
        assert found.status_code == 200, (path, found.text)
    for path in ("/metrics", "/healthz/", "/api/v1/healthz", "/api/v1/sign-in"):
        found = await plain.http.get(f"http://127.0.0.1:{plain.port}{path}", headers={"host": host})
        problem(found, 403, "forbidden")


async def test_health_is_asked_as_often_as_one_likes(plain: Served) -> None:
    """With any token, a wrong one, too: nobody looks at it, counts it or writes it down."""
    headers = {"authorization": "Bearer shk_nobody", "host": "10.0.0.1"}
    for _ in range(60):
        found = await plain.http.get(f"http://127.0.0.1:{plain.port}/readyz", headers=headers)
        assert found.status_code == 200
    await plain.engine.refusals.write(all_of_them=True)
    assert (await plain.get("/audit"))["entries"] == []


async def test_who_asks_at_once_shares_one_look_at_the_store(
    plain: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, go = [0], asyncio.Event()
    url = f"http://127.0.0.1:{plain.port}/readyz"
    look = plain.engine._look_at_store

    async def slow() -> Any:
        looks[0] += 1
        await go.wait()
        return await look()

    monkeypatch.setattr(plain.engine, "_look_at_store", slow)
    monkeypatch.setattr(engine, "_ANSWER", 0.2)
    asked = await asyncio.gather(*(plain.http.get(url) for _ in range(20)))
    for one in asked:
        assert "has not answered" in problem(one, 503, "unavailable")["detail"]
    assert looks == [1]
    monkeypatch.setattr(engine, "_ANSWER", 10.0)
    go.set()
    assert (await plain.http.get(url)).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:4400", "127.0.0.1.evil.example", "", "[::2]"])
async def test_a_name_that_is_not_the_servers_is_refused(plain: Served, host: str) -> None:
    """DNS rebinding: a page's own name that leads to the loopback."""
    response = await plain.http.get("/runs", headers={"host": host})
    body = problem(response, 403, "forbidden")
    assert "--allowed-host" in body["remedy"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1234", "127.0.0.1:80", "[::1]", "[::1]:4400", "LOCALHOST"]
)
async def test_local_names_are_the_servers(plain: Served, host: str) -> None:
    assert (await plain.http.get("/runs", headers={"host": host})).status_code == 200


# ---- bodies


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
async def test_writes_come_as_json_only(plain: Served, media: str) -> None:
    """What a page of another origin can send without asking first is not taken."""
    await plain.pool()
    await plain.deploy()
    for method, path in (("POST", "/runs"), ("PATCH", "/pools/main"), ("PUT", "/deployments/job")):
        response = await plain.http.request(
            method, path, content=b'{"deployment": "job"}', headers={"content-type": media}
        )
        problem(response, 400, "bad-request")
    assert (await plain.get("/runs"))["runs"] == []


async def test_json_with_a_charset_is_json(plain: Served) -> None:
    await plain.deploy()
    response = await plain.http.post(
        "/runs", content=b'{"deployment": "job"}', headers={"content-type": "Application/JSON; charset=utf-8"}
    )
    assert response.status_code == 201


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/runs", {"deployment": "job", "wiat": 1}, ["wiat", "Extra inputs"]),
        ("/runs", {"deployment": "a b"}, ["deployment", "'a b'"]),
        ("/runs", {}, ["deployment", "required"]),
        ("/runs", {"deployment": "job", "priority": "high"}, ["priority"]),
        ("/runs", {"deployment": "job", "scheduled_at": "2026-01-01T00:00:00"}, ["scheduled_at"]),
        ("/runs", {"deployment": "job", "tags": ["a b"]}, ["tags.0"]),
        ("/runs", [], []),
        ("/runs/batch", {"runs": []}, ["runs"]),
        ("/pools", {"name": "x", "type": "lorry"}, ["type", "lorry"]),
        ("/pools", {"name": "../x"}, ["name"]),
        ("/pools", {"name": "x", "limit": -1}, ["limit"]),
        ("/agents/a1/sync", {"protocol": 1}, ["session", "identity", "pools"]),
    ],
)
async def test_what_is_wrong_in_a_body_is_named(
    plain: Served, path: str, body: Any, words: list[str]
) -> None:
    await plain.deploy()
    told = problem(await plain.http.post(path, json=body), 400, "bad-request")
    for word in words:
        assert word in told["detail"]
    assert told["errors"]
    assert (await plain.get("/runs"))["runs"] == []
    assert (await plain.get("/pools"))["pools"] == []


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"null", b'"x"', b"{" * 100_000, b'{"deployment": NaN}'])
async def test_what_is_no_json_is_refused(plain: Served, body: bytes) -> None:
    response = await plain.http.post("/runs", content=body, headers={"content-type": "application/json"})
    problem(response, 400, "bad-request")


async def test_numbers_that_json_does_not_have_are_refused_everywhere(server: Served) -> None:
    for path, body in (
        ("/pools", b'{"name": "x", "template": {"a": NaN}}'),
        ("/pools", b'{"name": "x", "limit": Infinity}'),
    ):
        response = await server.http.post(path, content=body, headers={"content-type": "application/json"})
        problem(response, 400, "bad-request")
    response = await server.http.put(
        "/deployments/x",
        content=b'{"work": {"command": ["x"]}, "parameter_schema": {"maximum": NaN}}',
        headers={"content-type": "application/json"},
    )
    problem(response, 400, "bad-request")


async def test_a_nul_in_names_and_queries_is_refused_and_not_a_failure(server: Served) -> None:
    for path in (
        "/pools/%00",
        "/deployments/a%00b",
        "/deployments?cursor=%00",
        "/runs?pool=%00",
        "/runs?deployment=x%00",
        "/runs?tag=%00",
        "/runs/%00",
        "/runs?cursor=%00",
        "/runs?state=%00",
    ):
        response = await server.http.get(path)
        assert response.status_code in (200, 400, 404), f"{path}: {response.text}"


async def test_a_body_that_is_too_large_is_refused_whether_its_length_is_announced_or_not(
    plain: Served,
) -> None:
    big = b'{"deployment": "' + b"x" * BODY_LIMIT + b'"}'
    headers = {"content-type": "application/json"}
    problem(await plain.http.post("/runs", content=big, headers=headers), 413, "too-large")

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(big), 1_000_000):
            yield big[at : at + 1_000_000]

    problem(await plain.http.post("/runs", content=pieces(), headers=headers), 413, "too-large")
    assert (await plain.get("/runs"))["runs"] == []


async def test_parameters_that_are_too_large_are_refused_as_such(plain: Served) -> None:
    await plain.deploy()
    body = {"deployment": "job", "parameters": {"x": "y" * 600_000}}
    told = problem(await plain.http.post("/runs", json=body), 413, "too-large")
    assert "600" in told["detail"]


# ---- what is not there


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("GET", "/runs/0123456789ab"),
        ("GET", "/runs/01890000-0000-7000-8000-000000000000"),
        ("GET", "/runs/01890000-0000-7000-8000-000000000000/logs"),
        ("GET", "/runs/01890000-0000-7000-8000-000000000000/events"),
        ("POST", "/runs/01890000-0000-7000-8000-000000000000/cancel"),
        ("POST", "/runs/01890000-0000-7000-8000-000000000000/retry"),
        ("GET", "/pools/nowhere"),
        ("GET", "/deployments/nowhere"),
        ("GET", "/deployments/nowhere/revisions"),
        ("GET", "/runs?pool=nowhere"),
        ("GET", "/runs?deployment=nowhere"),
    ],
)
async def test_what_is_not_there_is_a_problem_that_says_so(plain: Served, method: str, path: str) -> None:
    problem(await plain.http.request(method, path), 404, "not-found")


async def test_paths_outside_the_api_are_problems_too(plain: Served) -> None:
    for path in ("/", "/api", "/api/v2/runs", "/docs", "/favicon.ico"):
        problem(await plain.http.get(f"http://127.0.0.1:{plain.port}{path}"), 404, "not-found")


async def test_a_method_that_is_not_there_says_which_are(plain: Served) -> None:
    response = await plain.http.delete("/runs")
    assert response.status_code == 405
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == 405
    assert response.headers["allow"]


async def test_a_failure_of_the_server_is_a_problem_without_its_insides(
    plain: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("secret inside")

    from shunter_work_pools.queue import views

    monkeypatch.setattr(views, "list_pools", broken)
    response = await plain.http.get("/pools")
    assert response.status_code == 500
    assert response.json()["type"] == PREFIX + "internal"
    assert "secret inside" not in response.text
    logged = capsys.readouterr().out
    assert "secret inside" in logged
    assert TOKEN not in logged, "a log that shows the variables of each frame shows the token"


async def test_a_store_that_is_away_is_unavailable(plain: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from shunter_work_pools.contracts.errors import Unavailable

    async def away(work: Any) -> Any:
        raise Unavailable("the store is away", "Wait.")

    with monkeypatch.context() as patched:
        patched.setattr(plain.engine.store, "read", away)
        problem(await plain.http.get("/pools"), 503, "unavailable")
        problem(await plain.http.get(f"http://127.0.0.1:{plain.port}/readyz"), 503, "unavailable")


# ---- OpenAPI


async def test_the_openapi_document_is_sound_and_lists_every_route(plain: Served) -> None:
    document = await plain.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        Draft202012Validator.check_schema(schema)
        assert name

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            found = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return found.union(*(references(child) for child in node.values()))
        if isinstance(node, list):
            return set().union(*(references(child) for child in node))
        return set()

    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    listed = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    ids = [operation["operationId"] for operation in listed.values()]
    assert len(set(ids)) == len(ids)
    for (method, path), operation in listed.items():
        named = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        given = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
        assert named == given, f"{method} {path}"
        assert operation["responses"]
    routed = {
        (method, "/api/v1" + route.path)
        for module in (
            agents,
            attempts,
            audit,
            deployments,
            identities,
            joining,
            limits,
            pool_checks,
            pools,
            runs,
            schedules,
            secrets,
            sign_in,
            tasks,
        )
        for route in module.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert len(routed) > 20
    alone = ("/api/v1/server", "/api/v1/status", "/api/v1/agents/{name}/sync", "/metrics")
    assert {(method, path) for method, path in listed if path not in alone and path[-1] != "z"} == routed
    for method, path in (
        ("POST", "/api/v1/runs"),
        ("GET", "/api/v1/runs/{run}/logs"),
        ("POST", "/api/v1/agents/{name}/sync"),
        ("PUT", "/api/v1/deployments/{name}"),
        ("GET", "/healthz"),
    ):
        assert (method, path) in listed


async def test_every_answer_names_the_protocol(plain: Served) -> None:
    for path in ("/runs", "/nothing", f"http://127.0.0.1:{plain.port}/healthz"):
        assert (await plain.http.get(path)).headers["shunter-protocol"] == str(PROTOCOL)


@pytest.mark.parametrize(
    ("path", "media"),
    [("sync", "application/json"), ("reports", "application/json"), ("logs", LOG_MEDIA_TYPE)],
)
async def test_a_body_that_breaks_off_is_no_failure_of_the_server(
    plain: Served, capsys: pytest.CaptureFixture[str], path: str, media: str
) -> None:
    told: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    address = f"/api/v1/agents/a1/{path}"
    scope = {"type": "http", "method": "POST", "path": address, "raw_path": address.encode()}
    scope |= {"query_string": b"", "headers": [(b"content-type", media.encode())], "root_path": ""}
    scope["admission"] = await plain.engine.identities.admit(TOKEN.encode(), "")
    await build_app(plain.engine)(scope, receive, send)
    assert told[0]["status"] == 400
    assert "a request failed" not in capsys.readouterr().out


async def test_requests_that_are_cut_short_harm_nobody(plain: Served) -> None:
    for text in (
        b"POST /api/v1/runs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n",
        b"\x00\xff\r\n\r\n",
    ):
        head = text + f"authorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n\r\n{{".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", plain.port)
        writer.write(head)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        del reader
    assert json.loads((await plain.http.get("/runs")).content) == {"runs": [], "next": None}


async def test_a_stranger_sends_no_more_than_a_token(plain: Served) -> None:
    big = b'{"id_token": "' + b"x" * OPEN_BODY_LIMIT + b'"}'

    async def parts() -> AsyncIterator[bytes]:
        yield big[:1000]
        yield big[1000:]

    async with httpx.AsyncClient(
        base_url=plain.http.base_url, trust_env=False, verify=NO_TLS, timeout=30
    ) as stranger:
        for content in (big, parts()):
            answer = await stranger.post(
                "/sign-in", content=content, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 413, answer.text
            assert f"larger than {OPEN_BODY_LIMIT} bytes" in answer.json()["detail"]
