"""Requests as nobody friendly sends them: raw bytes, other pages' writes, other names, two lengths, forged headers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shunter_work_pools.api.arrival import Arrival
from shunter_work_pools.storage.store import open_store
from tests.api.serving import TOKEN, Served, served

RUNS = {"deployment": "job"}


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Served]:
    """A server with a deployment; a write that comes through makes a run."""
    async with served(open_store(None, tmp_path / "db"), tmp_path / "logs") as one:
        await one.pool()
        await one.deploy(pool="main")
        yield one


async def runs(there: Served) -> int:
    return len((await there.get("/runs"))["runs"])


# -- pages of others


PAGES: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"sec-fetch-site": "same-origin"}, True),
    ({"sec-fetch-site": "none"}, True),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "same-site"}, False),
    ({"sec-fetch-site": "SAME-ORIGIN"}, False),
    ({"origin": "http://127.0.0.1:{port}"}, True),
    ({"origin": "https://127.0.0.1:{port}"}, True),  # a proxy in front speaks TLS
    ({"origin": "http://127.0.0.1:1"}, False),
    ({"origin": "http://localhost:3000"}, False),
    ({"origin": "https://evil.example"}, False),
    ({"origin": "https://127.0.0.1:{port}.evil.example"}, False),
    ({"origin": "https://evil.example#127.0.0.1:{port}"}, False),
    ({"origin": "https://user@127.0.0.1:{port}"}, False),
    ({"origin": "null"}, False),
    ({"origin": ""}, False),
    ({"origin": "http://[127"}, False),
    ({"origin": "file://"}, False),
    ({"sec-fetch-site": "same-origin", "origin": "https://evil.example"}, False),
]


async def test_a_write_for_a_page_of_another_server(there: Served) -> None:
    for headers, taken in PAGES:
        before = await runs(there)
        filled = {name: value.format(port=there.port) for name, value in headers.items()}
        response = await there.http.post("/runs", json=RUNS, headers=filled)
        assert response.status_code == (201 if taken else 403), (filled, response.text)
        assert taken or "--allowed-host" in response.json()["remedy"]
        assert await runs(there) == before + taken
        read = await there.http.get("/runs", headers=filled)
        assert read.status_code == 200  # a page could not read it


async def test_what_a_page_can_send_without_asking_makes_nothing(there: Served) -> None:
    """Even if it knew the token: forms, and fetch without headers of its own."""
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        headers = {"content-type": media} if media else {}
        response = await there.http.post("/runs", content=json.dumps(RUNS).encode(), headers=headers)
        assert response.status_code == 400
    assert await runs(there) == 0


async def test_no_page_is_ever_allowed_to_read_or_to_ask(there: Served) -> None:
    origin = {"origin": "https://evil.example"}
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with httpx.AsyncClient(trust_env=False) as stranger:
        preflight = await stranger.options(
            f"http://127.0.0.1:{there.port}/api/v1/runs", headers=origin | asking
        )
    assert preflight.status_code >= 400
    for response in (preflight, await there.http.get("/runs", headers=origin)):
        assert not [name for name in response.headers if name.startswith("access-control-")]


# -- names


async def test_a_path_leads_nowhere_else(there: Served) -> None:
    """An answer that sends elsewhere would be made of the Host, which everybody may write."""
    response = await there.http.get("/runs/", headers={"host": "localhost"}, follow_redirects=False)
    assert response.status_code == 404
    assert "location" not in response.headers


async def test_names_have_no_line_ends(there: Served) -> None:
    for name in ("a\r\nX-Evil: 1", "a\nb", "a\x1b[2Jb", "a\u202eb", "a\x00b"):
        made = await there.http.post("/pools", json={"name": name})
        assert made.status_code == 400
        for path in ("/pools/{}", "/agents/{}", "/deployments/{}", "/runs/{}", "/runs/{}/logs"):
            from urllib.parse import quote

            response = await there.http.get(path.format(quote(name, safe="")))
            assert response.status_code in (400, 404)
            assert "x-evil" not in response.headers


# -- raw bytes


async def answers(port: int, data: bytes) -> list[bytes]:
    """The statuses that come back, until the server hangs up or says nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    seen = b""
    try:
        async with asyncio.timeout(1.0):
            while part := await reader.read(65536):
                seen += part
    except (TimeoutError, OSError):
        pass
    writer.close()
    return re.findall(rb"HTTP/1\.1 (\d+)", seen)


BODY = json.dumps(RUNS).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def head(*lines: bytes, host: bytes = b"host: localhost") -> bytes:
    common = [b"POST /api/v1/runs HTTP/1.1", host, b"authorization: Bearer " + TOKEN.encode()]
    return b"\r\n".join([*common, b"content-type: application/json", *lines, b"", b""])


LENGTH = b"content-length: %d" % len(BODY)

SMUGGLED = {
    "both lengths": head(LENGTH, b"transfer-encoding: chunked") + CHUNKED,
    "both lengths, the other way round": head(b"transfer-encoding: chunked", LENGTH) + CHUNKED,
    "length 0 and chunks": head(b"content-length: 0", b"transfer-encoding: chunked") + CHUNKED,
    "two lengths": head(LENGTH, b"content-length: 1") + BODY,
    "two lengths in one": head(LENGTH + b", 1") + BODY,
    "a length with a sign": head(b"content-length: +%d" % len(BODY)) + BODY,
    "a length that is none": head(b"content-length: 0x%x" % len(BODY)) + BODY,
    "an encoding that is none": head(b"transfer-encoding: xchunked") + CHUNKED,
    "an encoding that is hidden": head(b"transfer-encoding : chunked") + CHUNKED,
    "an encoding by another line end": head(b"x: y\ntransfer-encoding: chunked", LENGTH) + CHUNKED,
    "chunked and then something": head(b"transfer-encoding: chunked, identity") + CHUNKED,
    "a header that goes on": head(b"x: y\r\n transfer-encoding: chunked", LENGTH, b"x-no\x00: y") + BODY,
    "a chunk size that is none": head(b"transfer-encoding: chunked") + b"-1\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a name with a blank": head(b"content-length : %d" % len(BODY)) + BODY,
    "a line end in a value": head(b"x: a\rb", LENGTH) + BODY,
}


async def test_a_request_that_two_would_read_differently_makes_nothing(there: Served) -> None:
    """Behind each stands another one, which who reads the first wrongly would take for its body."""
    hidden = head(LENGTH) + BODY
    found = await asyncio.gather(*(answers(there.port, data + hidden) for data in SMUGGLED.values()))
    assert {how: seen for how, seen in zip(SMUGGLED, found, strict=True) if seen not in ([b"400"], [])} == {}
    assert await runs(there) == 0


async def test_two_hosts_are_refused(there: Served) -> None:
    """The length is clear: what follows is a request of its own."""
    two = head(LENGTH, b"host: evil.example") + BODY
    assert await answers(there.port, two + head(LENGTH) + BODY) == [b"400", b"201"]
    assert await runs(there) == 1


async def test_a_right_one_is_taken(there: Served) -> None:
    chunked = head(b"transfer-encoding: chunked") + CHUNKED
    assert await answers(there.port, head(LENGTH) + BODY + chunked + chunked) == [b"201", b"201", b"201"]
    assert await runs(there) == 3


# -- how it arrived


async def seen(arrival: Any, address: str, path: str = "/api/v1/runs", **headers: str) -> dict[str, Any]:
    """What is inside sees of a request from an address."""
    found: list[dict[str, Any]] = []

    async def inside(scope: dict[str, Any], receive: Any, send: Any) -> None:
        found.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(arrival(inside), client=(address, 4711))
    async with httpx.AsyncClient(transport=transport) as client:
        await client.get(
            f"http://server.test{path}", headers={name.replace("_", "-"): headers[name] for name in headers}
        )
    return found[0]


@pytest.mark.parametrize(
    ("address", "told", "truth"),
    [
        ("10.1.0.5", "192.0.2.7", "192.0.2.7"),
        ("10.2.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.2.0.2", "192.0.2.7", "10.2.0.2"),
        ("127.0.0.1", "192.0.2.7", "127.0.0.1"),
        ("10.1.0.5", "203.0.113.9, 192.0.2.7", "192.0.2.7"),  # what the client wrote itself stands before
        ("10.1.0.5", "203.0.113.9, 192.0.2.7, 10.2.0.1", "192.0.2.7"),
        ("10.1.0.5", "2001:db8::1", "2001:db8::1"),
        ("10.1.0.5", "", "10.1.0.5"),
    ],
)
async def test_whom_a_request_comes_from(address: str, told: str, truth: str) -> None:
    def behind(app: Any) -> Arrival:
        return Arrival(app, ("10.1.0.0/16", "10.2.0.1"))

    scope = await seen(behind, address, x_forwarded_for=told, x_forwarded_proto="https")
    assert scope["client"][0] == truth
    assert scope["scheme"] == ("https" if address in ("10.1.0.5", "10.2.0.1") else "http")


async def test_nobody_is_believed_unless_named() -> None:
    scope = await seen(Arrival, "127.0.0.1", x_forwarded_for="192.0.2.7", x_forwarded_proto="https")
    assert (scope["client"][0], scope["scheme"]) == ("127.0.0.1", "http")


async def test_a_prefix_that_a_proxy_leaves_on() -> None:
    def below(app: Any) -> Arrival:
        return Arrival(app, (), "/a/shunter")

    for path, inside in (
        ("/a/shunter/api/v1/runs", "/api/v1/runs"),
        ("/api/v1/runs", "/api/v1/runs"),
        ("/a/shunter", "/a/shunter"),
        ("/a/shunters/api", "/a/shunters/api"),
        ("/b/a/shunter/api", "/b/a/shunter/api"),
        ("/a/shunter/a/shunter/api", "/a/shunter/api"),
        ("/a/shunter/runs/a%2Fb", "/runs/a/b"),
    ):
        scope = await seen(below, "127.0.0.1", path)
        assert scope["path"] == inside
    assert scope["raw_path"] == b"/runs/a%2Fb"
