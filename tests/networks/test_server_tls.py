"""The server's certificate: what it does not start with, what it serves, and that it is read anew."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools import server_tls as module
from shunter_work_pools.client import Client
from shunter_work_pools.contracts.configuration import load
from shunter_work_pools.contracts.errors import InvalidInput, ServerUnreachable
from shunter_work_pools.contracts.exposure import check_exposure
from shunter_work_pools.server_tls import ServerTls, server_tls
from tests.networks.certificates import Authority, Pair
from tests.networks.machines import TOKEN, Machine, server


def settings(pair: Pair | None = None, **more: object) -> Mapping[str, Any]:
    named = {"cert": pair.cert, "key": pair.key} if pair is not None else {}
    flags = {f"server.tls_{name}": str(value) for name, value in {**named, **more}.items()}
    return load(flags)


# -- what a server does not start with


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.pair(), authority.pair()
    text = tmp_path / "text"
    text.write_text("hello")
    text.chmod(0o600)
    nowhere = tmp_path / "nowhere"
    encrypted = tmp_path / "encrypted"
    encrypted.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nx\n")
    encrypted.chmod(0o600)
    wrong = [
        (Pair(nowhere, good.key), {}, [str(nowhere), "server.tls_cert", "No such file"]),
        (Pair(good.cert, nowhere), {}, [str(nowhere), "server.tls_key", "No such file"]),
        (Pair(tmp_path, good.key), {}, [str(tmp_path), "Is a directory"]),
        (Pair(text, good.key), {}, [str(text), "no certificate in PEM"]),
        (Pair(good.cert, text), {}, [str(text), "no private key in PEM"]),
        (Pair(good.key, good.cert), {}, ["no certificate in PEM"]),
        (Pair(good.cert, encrypted), {}, [str(encrypted), "encrypted", "openssl pkey"]),
        (Pair(good.cert, other.key), {}, [str(good.cert), str(other.key), "does not belong"]),
        (good, {"client_ca": nowhere}, [str(nowhere), "server.tls_client_ca"]),
        (good, {"client_ca": text}, [str(text), "no certificate in PEM"]),
        (authority.pair(days=-0.5), {}, ["has expired at", "here it is", "Renew"]),
        (authority.pair(began=-1), {}, ["is valid only from"]),
        (None, {"key": good.key}, ["server.tls_key is set, and server.tls_cert is not"]),
        (None, {"client_ca": authority.file}, ["server.tls_client_ca is set, and server.tls_cert is not"]),
    ]
    for pair, more, says in wrong:
        with pytest.raises(InvalidInput) as refused:
            server_tls(settings(pair, **more))
        assert [word for word in says if word not in refused.value.told] == [], refused.value.told


def test_a_certificate_without_a_key_is_told(authority: Authority) -> None:
    with pytest.raises(InvalidInput, match=r"holds no private key") as refused:
        server_tls(settings(cert=authority.pair().cert))
    assert "server.tls_key" in refused.value.told


@pytest.mark.parametrize(
    ("mode", "taken"), [(0o600, True), (0o640, True), (0o440, True), (0o644, False), (0o602, False)]
)
def test_a_key_is_for_its_owner_and_group(authority: Authority, mode: int, taken: bool) -> None:
    pair = authority.pair()
    pair.key.chmod(mode)
    if taken:
        assert server_tls(settings(pair)) is not None
        return
    with pytest.raises(InvalidInput, match="everybody on this machine may") as refused:
        server_tls(settings(pair))
    assert f"chmod o= {pair.key}" in refused.value.remedy


def test_paths_are_whole() -> None:
    with pytest.raises(InvalidInput) as refused:
        load({"server.tls_cert": "server.crt"})
    assert f"Write {Path.cwd() / 'server.crt'}" in refused.value.told
    assert load({"server.tls_cert": "~/server.crt"})["server.tls_cert"] == str(Path.home() / "server.crt")


@pytest.mark.parametrize(
    ("host", "open_to_others"),
    [
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("10.0.0.1", True),
        ("no-such-name.invalid", True),
    ],
)
def test_beyond_this_machine_only_with_tls(authority: Authority, host: str, open_to_others: bool) -> None:
    values = load({"server.host": host})
    if open_to_others:
        with pytest.raises(InvalidInput, match=f"a server on {host}") as refused:
            check_exposure(values)
        assert "--tls-cert" in refused.value.remedy
        assert "--allow-plaintext" in refused.value.remedy
    else:
        check_exposure(values)
    check_exposure(load({"server.host": host, "server.allow_plaintext": True}))
    check_exposure(load({"server.host": host, "server.tls_cert": str(authority.pair().cert)}))


# -- renewal


def shown(tls: ServerTls, authority: Authority) -> int:
    """The serial number of the certificate that a new connection is shown."""
    trust = ssl.create_default_context(cafile=str(authority.file))
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = tls.context.wrap_bio(there, back, server_side=True)
    client_side = trust.wrap_bio(back, there, server_hostname="shunter.test")
    for _ in range(4):
        for side in (client_side, server_side):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = client_side.getpeercert()
    assert certificate is not None
    return int(str(certificate["serialNumber"]), 16)


def replace(old: Path, new: Path) -> None:
    """As certbot does: the name leads to another file."""
    draft = old.with_name(f"{old.name}.new")
    draft.write_bytes(new.read_bytes())
    draft.chmod(new.stat().st_mode & 0o777)
    os.replace(draft, old)


def test_files_that_change_one_after_the_other(
    authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    pair, new = authority.pair(), authority.pair()
    tls = server_tls(settings(pair))
    assert tls is not None
    first = shown(tls, authority)
    assert not tls.renew()
    replace(pair.cert, new.cert)
    assert not tls.renew()  # its key is not there yet
    assert shown(tls, authority) == first
    assert not tls.renew()
    assert capsys.readouterr().out.count("cannot be used; the old one goes on") == 1
    replace(pair.key, new.key)
    assert tls.renew()
    second = shown(tls, authority)
    assert second != first
    pair.cert.unlink()
    assert not tls.renew()
    assert shown(tls, authority) == second
    replace(pair.cert, authority.pair(days=-0.5).cert)
    assert not tls.renew()
    assert shown(tls, authority) == second


def test_a_certificate_that_ends_soon_is_told_once_a_day(
    authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = server_tls(settings(authority.pair(days=20)))
    assert tls is not None
    start = datetime.now(UTC)
    told = []
    for hours in range(0, 24 * 20, 6):
        tls.tell_of_the_end(start + timedelta(hours=hours))
        told.append("ends soon" in capsys.readouterr().out)
    assert not any(told[: 13 * 4])
    assert sum(told) == 7


# -- a server


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.pair()


@pytest.fixture(scope="module")
def running(
    authority: Authority, pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Machine, str]]:
    """A server with TLS that wants a certificate, on all addresses."""
    flags = {
        "server.host": "0.0.0.0",
        "server.tls_cert": str(pair.cert),
        "server.tls_key": str(pair.key),
        "server.tls_client_ca": str(authority.file),
    }
    with server(tmp_path_factory.mktemp("tls") / "home", flags) as (machine, url):
        yield machine, url.replace("0.0.0.0", "127.0.0.1")


def variables(monkeypatch: pytest.MonkeyPatch, **given: object) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"SHUNTER_{name.upper()}", str(value))


def refusal(url: str) -> str:
    with pytest.raises(ServerUnreachable) as refused, Client(url, TOKEN) as client:
        client.server()
    return refused.value.told


def test_who_has_a_certificate_is_let_in(
    running: tuple[Machine, str], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, url = running
    assert url.startswith("https://")
    mine = authority.pair("someone")
    variables(monkeypatch, tls_ca=authority.file, tls_cert=mine.cert, tls_key=mine.key)
    with Client(url, TOKEN) as client:
        assert client.ready()
        assert client.server().store == "sqlite"
    assert "Traceback" not in machine.said()


def test_who_has_none_or_a_wrong_one_is_not(
    running: tuple[Machine, str], authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server hangs up, whatever the token; what it may be is told."""
    machine, url = running
    variables(monkeypatch, tls_ca=authority.file)
    for pair in (None, stranger.pair("someone"), authority.pair("someone", days=-0.5)):
        if pair is not None:
            variables(monkeypatch, tls_cert=pair.cert, tls_key=pair.key)
        assert "If it wants a certificate of this client: SHUNTER_TLS_CERT" in refusal(url)
    assert "Traceback" not in machine.said()


def test_http_to_a_port_of_tls_says_what_it_may_be(running: tuple[Machine, str]) -> None:
    _, url = running
    assert "its address begins with https://" in refusal(url.replace("https:", "http:"))


def test_health_is_asked_as_a_kubelet_does(authority: Authority, tmp_path: Path) -> None:
    """By the pod's address, which no certificate is for, without a name in the handshake and without a token."""
    pair = authority.pair("shunter.example.com")
    flags = {
        "server.host": "0.0.0.0",
        "server.tls_cert": str(pair.cert),
        "server.tls_key": str(pair.key),
        "server.allowed_hosts": "shunter.example.com",
    }
    believing_all = ssl._create_unverified_context()
    with server(tmp_path / "home", flags) as (_, url):
        port = int(url.rpartition(":")[2].partition("/")[0])

        def status(path: str) -> int:
            asking = http.client.HTTPSConnection("127.0.0.2", port, timeout=20, context=believing_all)
            with contextlib.closing(asking):
                asking.request("GET", path, headers={"User-Agent": "kube-probe/1.37", "Connection": "close"})
                return asking.getresponse().status

        assert [status(path) for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 403]


def test_a_server_that_runs_takes_a_renewed_certificate(
    running: tuple[Machine, str],
    pair: Pair,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The key first this time; a connection that there is goes on."""
    machine, url = running
    mine = authority.pair("someone")
    variables(monkeypatch, tls_ca=authority.file, tls_cert=mine.cert, tls_key=mine.key)
    before = authority.pair("127.0.0.1", "renewed.test")
    with Client(url, TOKEN) as client:
        client.server()
        replace(pair.key, before.key)
        replace(pair.cert, before.cert)
        machine.waits_for("the certificate was renewed", seconds=module.LOOK_EVERY * 3)
        client.server()
    trust = ssl.create_default_context(cafile=str(authority.file))
    trust.load_cert_chain(mine.cert, mine.key)
    port = int(url.rpartition(":")[2].partition("/")[0])
    import socket

    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        trust.wrap_socket(plain, server_hostname="renewed.test") as tls,
    ):
        assert ("DNS", "renewed.test") in tls.getpeercert()["subjectAltName"]  # type: ignore[index]
