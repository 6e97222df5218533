"""What the client makes of answers that no well-meaning server of its version gives."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shunter_agents.link import Backoff, Trouble, asked_delay, judge
from shunter_work_pools.client import AsyncClient, Client, endpoint
from shunter_work_pools.contracts import PROTOCOL, PROTOCOL_HEADER
from shunter_work_pools.contracts.deployments import DeploymentPatch
from shunter_work_pools.contracts.errors import (
    InvalidInput,
    NameInUse,
    NotFound,
    ProtocolMismatch,
    Refused,
    ServerUnreachable,
    ShunterError,
)
from shunter_work_pools.contracts.pools import PoolPatch
from tests.cli.console import Console, free_port

OURS = {PROTOCOL_HEADER: str(PROTOCOL), "Content-Type": "application/json"}


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[Any]]]:
    """A server that gives one answer to everything, and keeps what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, self.headers, content))
            self.send_response_only(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = _any

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "headers", "body", "error", "says"),
    [
        (
            200,
            {PROTOCOL_HEADER: "99"},
            b"{}",
            ProtocolMismatch,
            f"speaks protocol 99, this client speaks {PROTOCOL}",
        ),
        (200, {}, b"<html>", ProtocolMismatch, "is not a Shunter server"),
        (404, {}, b"nothing", ProtocolMismatch, "is not a Shunter server"),
        (502, {}, b"bad gateway", ServerUnreachable, "a proxy there says 502"),
        (500, {}, b"<html>", ServerUnreachable, "a proxy there says 500"),
        (429, {}, b"<html>", ServerUnreachable, "a proxy there says 429"),
        (200, OURS | {"Content-Encoding": "gzip"}, b"no gzip", ServerUnreachable, "no server answers"),
        (200, OURS, b'{"pools": [', ShunterError, "is not understood: Invalid JSON"),
        (200, OURS, b"{}", ShunterError, "is not understood: pools: Field required"),
        (200, OURS, b"<html>", ShunterError, "is not understood: Invalid JSON"),
        (500, OURS, b"oops", Refused, "was answered 500"),
        (500, OURS, b"[1]", Refused, "was answered 500"),
        (404, OURS, b'{"type": "urn:shunter:problem:not-found", "detail": "no x"}', NotFound, "no x"),
        (409, OURS, b'{"type": "urn:shunter:problem:agent-name-in-use", "detail": "x"}', NameInUse, "x"),
        (418, OURS, b'{"type": "urn:shunter:problem:of-tomorrow", "detail": "new"}', Refused, "new"),
    ],
)
async def test_an_answer_becomes_the_error_it_means(
    status: int, headers: dict[str, str], body: bytes, error: type[Exception], says: str
) -> None:
    with answering(status, headers, body) as (url, _):
        with Client(url, "t") as client, pytest.raises(error) as sync:
            client.list_pools()
        async with AsyncClient(url, "t") as other:
            with pytest.raises(error) as unsync:
                await other.list_pools()
    for caught in (sync, unsync):
        assert type(caught.value) is error
        assert says in str(caught.value)


_UNAVAILABLE = b'{"type": "urn:shunter:problem:unavailable", "detail": "stopping"}'
_NOON, _LATER = "Sun, 22 Nov 2026 12:00:00 GMT", "Sun, 22 Nov 2026 12:00:42 GMT"


@pytest.mark.parametrize(
    ("status", "headers", "body", "seconds"),
    [
        (429, {"Retry-After": "7"}, b"<html>", 7),
        (503, {"Retry-After": "42"}, b"", 42),
        (503, OURS | {"Retry-After": "3"}, _UNAVAILABLE, 3),
        (429, {"Retry-After": _LATER, "Date": _NOON}, b"", 42),  # whatever this machine's clock says
        (429, {"Retry-After": _NOON, "Date": _LATER}, b"", 0),
        (429, {"Retry-After": "Sun, 22 Nov 2099 12:00:00 GMT"}, b"", 60),  # agents ask once a minute at least
        (429, {"Retry-After": "-5"}, b"", 0),
        (429, {"Retry-After": "soon"}, b"", 0),
        (429, {}, b"", 0),
    ],
)
async def test_how_long_a_proxy_wants_to_be_left_alone_reaches_the_agent(
    status: int, headers: dict[str, str], body: bytes, seconds: float
) -> None:
    with answering(status, headers, body) as (url, _):
        async with AsyncClient(url, "t") as client:
            with pytest.raises(ShunterError) as caught:
                await client.list_pools()
    assert judge(caught.value) is Trouble.AWAY, "it waits, and sends the same again"
    assert min(asked_delay(caught.value), 60) == seconds
    assert Backoff().next(asked_delay(caught.value)) >= seconds


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (404, b""), (403, b"<html>"), (302, b"")])
async def test_what_is_no_server_of_ours_is_waited_for(status: int, body: bytes) -> None:
    with answering(status, {"Location": "/login"}, body) as (url, _):
        async with AsyncClient(url, "t") as client:
            with pytest.raises(ProtocolMismatch) as caught:
                await client.list_pools()
    assert judge(caught.value) is Trouble.DENIED, "a person must do something; the agent asks on"


def test_unknown_fields_of_answers_are_ignored() -> None:
    with answering(200, OURS, b'{"pools": [], "of_tomorrow": 1}') as (url, _), Client(url, "t") as client:
        assert client.list_pools().pools == []


def test_what_is_sent() -> None:
    body = b'{"runs": [], "next": null}'
    with answering(200, OURS, body) as (url, asked), Client(url, "secret") as client:
        client.list_runs(states=["Failed", "Crashed"], tags=["a=b/c"], late=True)
        with pytest.raises(ShunterError):
            client.update_pool("p", PoolPatch(limit=None))
        with pytest.raises(ShunterError):
            client.update_deployment("näme/..", DeploymentPatch(paused=True))
        with pytest.raises(ShunterError):
            client.cancel_run("x")
    listed, patched, quoted, cancelled = asked
    assert listed[:2] == ("GET", "/api/v1/runs?state=Failed&state=Crashed&tag=a%3Db%2Fc&late=true")
    assert listed[2]["Authorization"] == "Bearer secret"
    assert listed[2][PROTOCOL_HEADER] == str(PROTOCOL)
    assert patched[3] == b'{"limit":null}'  # only what is set, also if it is set to nothing
    assert quoted[1] == "/api/v1/deployments/n%C3%A4me%2F.."
    assert cancelled[2]["Content-Type"] == "application/json"


def test_log_parts_are_read_by_range() -> None:
    headers = OURS | {"Shunter-Log-Size": "10", "Shunter-Log-Complete": "true", "Shunter-Attempt": "2"}
    with answering(206, headers, b"56789") as (url, asked), Client(url, "t") as client:
        part = client.read_log("x", start=5)
        assert (part.data, part.end, part.size, part.complete, part.attempt) == (b"56789", 10, 10, True, 2)
        client.read_log("x", start=5, end=7, attempt=2, wait=0.5)
    assert [request[2]["Range"] for request in asked] == ["bytes=5-", "bytes=5-6"]
    assert asked[1][1] == "/api/v1/runs/x/logs?attempt=2&wait=0.5"
    with (
        answering(206, OURS, b"") as (url, _),
        Client(url, "t") as client,
        pytest.raises(ShunterError, match="Shunter-Log-Size"),
    ):
        client.read_log("x")


async def test_what_was_sent_does_not_stay() -> None:
    body = b"x" * 1_000_000
    held = sys.getrefcount(body)
    gc.disable()  # nor does it wait for the collector, which counts few objects, however large they are
    try:
        with answering(200, OURS, b'{"sizes": []}') as (url, _):
            async with AsyncClient(url, "t") as client:
                assert (await client.upload_journals("a1", body)).sizes == []
                assert sys.getrefcount(body) == held
            with Client(url, "t") as sync:
                assert sync.upload_journals("a1", body).sizes == []
                assert sys.getrefcount(body) == held
    finally:
        gc.enable()


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # no proxy leads to this machine's loopback
    url = f"http://127.0.0.1:{free_port()}/api"
    with Client(url, "t") as client, pytest.raises(ServerUnreachable, match=f"no server answers at {url}"):
        client.server()
    with answering(200, OURS, b'{"pools": []}') as (there, _), Client(there, "t") as client:
        client.list_pools()


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://x/api", "http://", "http://[", "http://x:99999999"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InvalidInput, match="is not the address of a server"):
        Client(url, "t")


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_lead_elsewhere_is_not_sent(name: str) -> None:
    with Client("http://127.0.0.1:1/api", "t") as client, pytest.raises(InvalidInput, match="is not a name"):
        client.get_pool(name)


def test_both_clients_have_every_method_with_its_words() -> None:
    methods = [value for value in vars(Client.__mro__[2]).values() if isinstance(value, endpoint)]
    assert len(methods) >= 25
    assert all(method.__doc__ for method in methods)


def test_the_command_line_tells_of_a_server_of_another_version(alone: Console) -> None:
    with answering(200, {PROTOCOL_HEADER: "99"}, b"{}") as (url, _):
        done = alone.having(SHUNTER_API_URL=url)("run", "list")
    assert done.code == 1
    assert f"Error: the server at {url} speaks protocol 99" in done.err
    assert "Install the version" in done.err
