"""What a client is told of a handshake that fails: what is wrong, and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shunter_agents.link import Trouble, judge
from shunter_work_pools.client import AsyncClient, Client
from shunter_work_pools.contracts.errors import InvalidInput, ServerUnreachable
from tests.networks.certificates import Authority, Pair

ANSWER = b"HTTP/1.1 200 OK\r\nshunter-protocol: 3\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@contextlib.contextmanager
def listening(
    pair: Pair | None, clients: Authority | None = None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Iterator[int]:
    """A port that answers each connection once: by OpenSSL's own server, which sends its alerts; None: no TLS."""
    context = None
    if pair is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        context.maximum_version = newest
        if clients is not None:
            context.load_verify_locations(clients.file)
            context.verify_mode = ssl.CERT_REQUIRED

    def serve() -> None:
        while True:
            try:
                plain, _ = door.accept()
            except OSError:
                return
            with plain, contextlib.suppress(OSError):
                plain.settimeout(5)
                one = (
                    context.wrap_socket(plain.dup(), server_side=True, do_handshake_on_connect=False)
                    if context
                    else plain
                )
                try:
                    if isinstance(one, ssl.SSLSocket):
                        one.do_handshake()
                    one.recv(65536)
                    one.sendall(ANSWER)
                finally:
                    # As servers do: who closes with something unread resets, and the alert may be lost with it.
                    plain.shutdown(socket.SHUT_WR)
                    while plain.recv(65536):
                        pass
                    one.close()

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield door.getsockname()[1]
        door.shutdown(socket.SHUT_RDWR)
        thread.join(10)


async def refused(url: str) -> str:
    """What both clients say, which is the same; an agent goes on for it."""
    with pytest.raises(ServerUnreachable) as first, Client(url, "x") as client:
        await asyncio.to_thread(client.ready)
    with pytest.raises(ServerUnreachable) as second:
        async with AsyncClient(url, "x") as other:
            await other.ready()
    assert judge(second.value) is Trouble.AWAY
    assert first.value.told == second.value.told
    return first.value.told


async def test_a_server_that_is_not_to_be_believed(
    authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(authority.pair()) as port:
        url = f"https://127.0.0.1:{port}/api"
        told = await refused(url)
        assert "of an authority that this machine does not know" in told
        assert "set SHUNTER_TLS_CA=FILE" in told
        monkeypatch.setenv("SHUNTER_TLS_CA", str(authority.file))
        with Client(url, "x") as client:
            assert client.ready()
        monkeypatch.setenv("SHUNTER_TLS_CA", str(stranger.file))
        assert "does not know" in await refused(url)
    monkeypatch.setenv("SHUNTER_TLS_CA", str(authority.file))
    with listening(authority.pair("elsewhere.test")) as port:
        told = await refused(f"https://127.0.0.1:{port}/api")
        assert "its certificate is for another name" in told
        assert "subjectAltName" in told
    with listening(authority.pair(days=-0.5)) as port:
        told = await refused(f"https://127.0.0.1:{port}/api")
        assert "has expired" in told
        assert "Renew it on the server" in told
    with listening(authority.pair(began=-1)) as port:
        told = await refused(f"https://127.0.0.1:{port}/api")
        assert "not valid yet" in told
        assert "clock" in told


async def test_a_certificate_that_is_listed_itself(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does with a self-signed one; this one has an authority, which is not listed."""
    pair = authority.pair()
    with listening(pair) as port:
        monkeypatch.setenv("SHUNTER_TLS_CA", str(pair.cert))
        with Client(f"https://127.0.0.1:{port}/api", "x") as client:
            assert client.ready()


async def test_the_systems_authorities_stay(
    authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    monkeypatch.setenv("SHUNTER_TLS_CA", str(stranger.file))
    for known in (authority, stranger):
        with listening(known.pair()) as port, Client(f"https://127.0.0.1:{port}/api", "x") as client:
            assert client.ready()


async def test_no_tls_there(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(None) as port:
        told = await refused(f"https://127.0.0.1:{port}/api")
        assert "does not speak TLS" in told
        assert "http://" in told


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_that_is_not_believed(
    authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch, newest: ssl.TLSVersion
) -> None:
    monkeypatch.setenv("SHUNTER_TLS_CA", str(authority.file))
    with listening(authority.pair(), authority, newest) as port:
        url = f"https://127.0.0.1:{port}/api"
        told = await refused(url)
        assert "want" in told.partition("a certificate of this client")[0]
        assert "Set SHUNTER_TLS_CERT" in told
        for pair, says in (
            (stranger.pair("me"), "does not know the authority of this client's certificate"),
            (authority.pair("me", days=-0.5), "this client's certificate has expired"),
        ):
            for name, value in pair.settings().items():
                monkeypatch.setenv(name, value)
            assert says in await refused(url)
        for name, value in authority.pair("me").settings().items():
            monkeypatch.setenv(name, value)
        with Client(url, "x") as client:
            assert client.ready()


def test_files_of_a_client_that_cannot_be_used(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = authority.pair("me")
    pair.key.chmod(0o644)
    for given, says in (
        ({"TLS_CA": tmp_path / "nothing"}, ["nothing (tls_ca)", "No such file"]),
        ({"TLS_CA": pair.key}, ["(tls_ca)", "no certificate"]),
        ({"TLS_CERT": pair.cert, "TLS_KEY": pair.key}, ["(tls_key)", "chmod o="]),
        ({"TLS_CERT": pair.cert}, ["(tls_cert)", "no private key", "tls_key"]),
        ({"TLS_KEY": pair.key}, ["tls_key is set, and tls_cert is not"]),
    ):
        with monkeypatch.context() as patched:
            for name, value in given.items():
                patched.setenv(f"SHUNTER_{name}", str(value))
            with pytest.raises(InvalidInput) as wrong:
                Client("https://127.0.0.1:1/api", "x")
            assert [word for word in says if word not in wrong.value.told] == [], wrong.value.told
            Client("http://127.0.0.1:1/api", "x").close()  # who speaks in the clear needs none of them
