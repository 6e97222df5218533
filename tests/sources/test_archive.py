"""Code in archives: fetched once, again when it has changed, and only what it should be."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shunter_agents.sources import archive as module
from shunter_agents.sources.archive import Archives
from shunter_agents.sources.shelf import Shelf
from shunter_infrastructure.launcher import LaunchFailed, NotReady
from shunter_work_pools.contracts.code_sources import ArchiveSource
from shunter_work_pools.contracts.sizes import size
from shunter_work_pools.contracts.states import Cause
from tests.sources.test_extraction import tar, zipped

TOKEN = "s3cr3t-of-the-archive"


@dataclass
class Files:
    """A web server with one file.

    Attributes:
        token: it is given to who says this alone; None: to everybody.
        answer: status that it gives to everything; None: it serves.
        redirect: where it sends everybody instead.
    encoding: as what it says that it sends, whatever is wanted.
        encoding: as what it says that it sends, whatever is wanted.
        sent: how often it sent the file.
        given: what it was told as authorization.
    """

    url: str = ""
    content: bytes = b""
    token: str | None = None
    answer: int | None = None
    redirect: str | None = None
    encoding: str | None = None
    sent: int = 0
    given: list[str] = field(default_factory=list)


@contextlib.contextmanager
def files() -> Iterator[Files]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            etag = f'"{hashlib.sha256(served.content).hexdigest()}"'
            given = self.headers.get("X-Token")
            if given:
                served.given.append(given)
            status = served.answer or 200
            if served.redirect is not None:
                status = 302
            elif served.token is not None and given != served.token:
                status = 403
            elif self.headers.get("If-None-Match") == etag and status == 200:
                status = 304
            body = served.content if status == 200 else b""
            served.sent += bool(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", etag)
            if served.encoding is not None:
                self.send_header("Content-Encoding", served.encoding)
            if status == 302:
                self.send_header("Location", str(served.redirect))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Files(f"http://127.0.0.1:{server.server_port}/code.tar.gz")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Files]:
    with files() as one:
        one.content = packed(tmp_path, "1")
        yield one


def packed(folder: Path, text: str) -> bytes:
    return tar(folder / "packed.tar.gz", [("code/a.txt", "file", text)]).read_bytes()


async def fetch(root: Path, url: str, secret: str | None = None, run: str = "run.1", **more: str) -> Path:
    archives = Archives(Shelf(root / "cache" / "code"), root / "cache" / "archives")
    user = root / "attempts" / run
    user.mkdir(parents=True, exist_ok=True)
    return await archives.fetch(ArchiveSource(archive=url, **more), secret, user, lambda words: None)


async def test_it_is_fetched_once_and_again_when_it_has_changed(tmp_path: Path, served: Files) -> None:
    first = await fetch(tmp_path, served.url)
    assert (first / "code/a.txt").read_text() == "1"
    assert await fetch(tmp_path, served.url) == first
    assert served.sent == 1
    served.content = packed(tmp_path, "2")
    second = await fetch(tmp_path, served.url)
    assert (second / "code/a.txt").read_text() == "2"
    assert (first / "code/a.txt").read_text() == "1", "who works with it goes on"
    assert served.sent == 2


async def test_what_differs_from_its_sha256_is_not_run_and_what_does_not_is_not_asked_for(
    tmp_path: Path, served: Files
) -> None:
    sha256 = hashlib.sha256(served.content).hexdigest()
    with pytest.raises(LaunchFailed, match=f"its sha256 is {sha256}, and not 0000"):
        await fetch(tmp_path, served.url, sha256="0" * 64)
    assert list((tmp_path / "cache/code").glob("*-*")) == [], "nothing of it was unpacked"
    await fetch(tmp_path, served.url, sha256=sha256)
    served.answer = 503
    await fetch(tmp_path, served.url, sha256=sha256)
    with pytest.raises(NotReady, match="its server answers 503") as caught:
        await fetch(tmp_path, served.url)
    assert caught.value.cause is Cause.SOURCE


async def test_many_at_once_fetch_it_once_or_twice(tmp_path: Path, served: Files) -> None:
    archives = Archives(Shelf(tmp_path / "cache" / "code"), tmp_path / "cache" / "archives")
    users = [tmp_path / f"run.{n}" for n in range(10)]
    for user in users:
        user.mkdir()
    source = ArchiveSource(archive=served.url)
    found = await asyncio.gather(*(archives.fetch(source, None, user, lambda words: None) for user in users))
    assert len(set(found)) == 1
    assert served.sent <= 2


async def test_a_secret_opens_it_for_its_own_host_alone(tmp_path: Path, served: Files) -> None:
    served.token = TOKEN
    with pytest.raises(LaunchFailed, match="its server answers 403"):
        await fetch(tmp_path, served.url)
    secret = json.dumps({"headers": {"X-Token": TOKEN}})
    await fetch(tmp_path, served.url, secret)
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    with files() as other:
        other.content = served.content
        served.redirect = other.url
        await fetch(tmp_path, served.url, secret)
        assert other.sent == 1
        assert other.given == []
    with pytest.raises(LaunchFailed, match="its secret is no JSON object"):
        await fetch(tmp_path, served.url, TOKEN)


async def test_it_is_not_followed_to_files_nor_round_and_round(tmp_path: Path, served: Files) -> None:
    served.redirect = "file:///etc/passwd"
    with pytest.raises(LaunchFailed, match="which is not followed"):
        await fetch(tmp_path, served.url)
    served.redirect = served.url
    with pytest.raises(LaunchFailed, match="more than 5 times"):
        await fetch(tmp_path, served.url)


async def test_signatures_in_urls_are_not_told(tmp_path: Path, served: Files) -> None:
    served.answer = 404
    with pytest.raises(LaunchFailed) as caught:
        await fetch(tmp_path, f"{served.url}?signature={TOKEN}")
    assert TOKEN not in caught.value.told


async def test_what_grows_without_end_is_given_up(
    tmp_path: Path, served: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ARCHIVE_LIMIT", 50)
    with pytest.raises(LaunchFailed, match="it is larger than 50"):
        await fetch(tmp_path, served.url)


async def test_other_file_systems_are_read_by_fsspec(tmp_path: Path) -> None:
    import fsspec

    content = zipped(tmp_path / "x.zip", [("a.txt", "file", "1")]).read_bytes()
    fsspec.filesystem("memory").pipe("/code.zip", content)
    assert ((await fetch(tmp_path, "memory://code.zip")) / "a.txt").read_text() == "1"
    url = (tmp_path / "x.zip").as_uri()
    first = await fetch(tmp_path, url)
    assert await fetch(tmp_path, url) == first
    zipped(tmp_path / "x.zip", [("a.txt", "file", "2")])
    assert ((await fetch(tmp_path, url)) / "a.txt").read_text() == "2"
    with pytest.raises(LaunchFailed, match="FileNotFoundError"):
        await fetch(tmp_path, "memory://none.zip")


async def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchFailed, match="s3fs"):
        await fetch(tmp_path, "s3://bucket/code.zip")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(LaunchFailed) as caught:
        await fetch(tmp_path, "memory://code.zip")
    assert "Install shunter[code] where the agent is" in caught.value.told


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("simplecache::file://{file}", {"simplecache": {"cache_storage": "{into}", "same_names": True}}),
        ("simplecache://{file}", {"target_protocol": "file", "cache_storage": "{into}", "same_names": True}),
        ("blockcache://{file}", {"target_protocol": "file", "cache_storage": "{into}"}),
        ("filecache://{file}", {"target_protocol": "file", "cache_storage": "{into}"}),
    ],
)
async def test_options_do_not_say_where_the_agent_writes(
    tmp_path: Path, url: str, options: dict[str, object]
) -> None:
    """A secret with options is the deployer's, the rights to write are those of the agent's user."""
    file, into = tmp_path / "authorized_keys", tmp_path / "home"
    file.write_bytes(packed(tmp_path, "1"))
    secret = json.dumps(options).replace("{into}", str(into))
    with pytest.raises(LaunchFailed, match="by way of another address"):
        await fetch(tmp_path, url.format(file=file), secret)
    assert not into.exists()


async def test_what_a_server_compressed_for_the_way_is_not_blown_up_in_memory(
    tmp_path: Path, served: Files
) -> None:
    """A million bytes of zeros, compressed twice, are some dozens; thrice as much again is more than any machine has."""
    served.content, served.encoding = gzip.compress(gzip.compress(bytes(2**20))), "gzip, gzip"
    told: list[str] = []
    archives = Archives(Shelf(tmp_path / "code"), tmp_path / "archives")
    (tmp_path / "run.1").mkdir()
    with pytest.raises(LaunchFailed, match="no archive"):
        await archives.fetch(ArchiveSource(archive=served.url), None, tmp_path / "run.1", told.append)
    assert told == [f"its code is being fetched: {size(len(served.content))}"]


async def test_what_a_killed_agent_left_half_fetched_is_removed(tmp_path: Path, served: Files) -> None:
    marks = tmp_path / "cache" / "archives"
    await fetch(tmp_path, served.url)
    (lock,) = marks.glob("*.lock")

    def leave() -> Path:
        left = marks / f"{lock.stem}.fetch-abc"
        left.mkdir()
        (left / "archive").write_bytes(b"half")
        return left

    left = leave()
    await fetch(tmp_path, served.url, run="run.2")
    assert not left.exists(), "who fetches it again removes it"
    left, archives = leave(), Archives(Shelf(tmp_path / "cache" / "code"), marks)
    archives.collect(3600)
    assert left.exists(), "it was used just now"
    os.utime(lock, (1, 1))
    archives.collect(3600)
    assert not list(marks.iterdir())
