"""What a run asks of its server and brings to it, with a server of this process that is away, refuses and lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from shunter import bringing, earlier_attempts, flow, flow_engine, own_server, task
from shunter.bringing import Bringer
from shunter.earlier_attempts import EarlierAttempts
from shunter.errors import ServerAway, ServerRefused
from shunter.journal import Journal, lines
from shunter.own_server import OwnServer
from shunter.results import NotKept
from shunter.runs import Root
from shunter.states import State
from shunter_work_pools.identities import attempt_over

pytestmark = pytest.mark.timeout(60)

Answer = tuple[int, bytes, dict[str, str]]


class There:
    """Answers by a function of (method, path, query, body), and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.tokens: set[str | None] = set()
        self.heads: list[Message] = []
        self.lines: list[str] = []
        self.answer: Callable[[str, str, dict[str, str], bytes], Answer] = lambda *asked: (200, b"{}", {})
        there = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                asked = (self.command, url.path, query, body)
                there.asked.append(asked)
                there.tokens.add(self.headers["Authorization"])
                there.heads.append(self.headers)
                there.lines.append(self.requestline)
                status, data, headers = there.answer(*asked)
                if status == 0:  # cut off in the middle
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in ({"Shunter-Protocol": "3"} | headers).items():
                    if not value:
                        continue
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_PUT = do_GET

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/api"


@pytest.fixture
def there() -> Iterator[There]:
    one = There()
    thread = threading.Thread(target=one.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.http.shutdown()
    thread.join()
    one.http.server_close()


def test_all_pages_of_what_was_completed_are_asked_for(there: There) -> None:
    pages = {
        None: {"lines": [{"flow": "sums", "c": "1"}, {"k": "a", "s": "C", "r": {"i": 1}}], "next": "a"},
        "a": {"lines": [{"k": "b", "s": "C", "r": {"i": 2}}], "next": None},
    }
    there.answer = lambda method, path, query, body: (200, json.dumps(pages[query.get("after")]).encode(), {})
    found = EarlierAttempts(OwnServer(there.url, "the-token"))
    assert list(found.completed) == ["", "a", "b"]
    assert [path for _, path, _, _ in there.asked] == ["/api/v1/attempt/tasks"] * 2
    assert there.tokens == {"Bearer the-token"}


def test_a_server_that_is_away_is_asked_again(there: There) -> None:
    ways = iter([(503, b"", {}), (0, b"", {}), (429, b"", {}), (502, b"proxy", {})])
    page = (200, b'{"lines": [], "next": null}', {})
    there.answer = lambda *asked: next(ways, page)  # type: ignore[arg-type]
    assert EarlierAttempts(OwnServer(there.url, "t")).completed == {}
    assert len(there.asked) == 5


def test_nothing_goes_on_if_it_is_not_known_from_what(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    there.answer = lambda *asked: (401, b'{"detail": "the attempt is over"}', {})
    with pytest.raises(ServerRefused, match=r"nothing was executed.*401.*the attempt is over"):
        EarlierAttempts(OwnServer(there.url, "t"))
    monkeypatch.setattr(earlier_attempts, "PATIENCE", 0.3)
    there.answer = lambda *asked: (503, b"", {})
    with pytest.raises(ServerAway, match="nothing was executed"):
        EarlierAttempts(OwnServer(there.url, "t"))


def test_a_result_comes_in_pieces_and_is_what_its_name_says(there: There) -> None:
    data = bytes(range(256)) * 100
    name = blake2b(data, digest_size=20).hexdigest()

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if path.endswith("tasks"):
            return 200, b'{"lines": [], "next": null}', {}
        if not path.endswith(name):
            return 404, b'{"detail": "there is no such result"}', {}
        at = int(query.get("offset", 0))
        # In small letters, as servers may write them.
        return 200, sent[at : at + 10_000], {"shunter-result-size": str(len(data))}

    sent = data
    there.answer = answer
    found = EarlierAttempts(OwnServer(there.url, "t"))
    assert found.result(name) == data
    with pytest.raises(NotKept, match="no such result"):
        found.result("0" * 40)
    sent = data[::-1]
    with pytest.raises(NotKept, match="not what was kept"):
        found.result(name)


def test_a_proxy_that_wants_a_password_has_it(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in a run: its agent has told it the way to the server, and nothing else."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    url = "http://server.example/prefix/api"
    monkeypatch.setenv("SHUNTER_API_URL", url)
    monkeypatch.setenv("SHUNTER_API_PROXY", f"http://me:p%40ss@127.0.0.1:{there.http.server_port}")
    there.answer = lambda *asked: (200, b'{"lines": [], "next": null}', {})
    assert EarlierAttempts(OwnServer(url, "t")).completed == {}
    assert there.heads[-1]["Host"] == "server.example"
    assert there.heads[-1]["Proxy-Authorization"] == "Basic bWU6cEBzcw=="
    assert there.lines[-1].startswith("GET http://server.example/prefix/api/v1/attempt/tasks?limit=1000 ")
    # For other servers it is not meant.
    assert own_server._proxy("http://other.example/api") is None


def test_a_proxy_on_the_way_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(ServerAway):
        OwnServer("http://server.example/api", "t").ask("GET", "tasks", {})
    assert own_server._proxy("http://server.example/api").port == 9
    assert own_server._proxy("http://127.0.0.1:4400/api") is None


def journal(there: There) -> Callable[[str, str, dict[str, str], bytes], Answer]:
    """A server that takes journals and results by offset."""
    taken = bytearray()
    results: dict[str, bytearray] = {}
    there.taken, there.results = taken, results  # type: ignore[attr-defined]

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        offset = int(query["offset"])
        kept = taken if path.endswith("journal") else results.setdefault(path.rsplit("/", 1)[1], bytearray())
        if offset <= len(kept):
            kept += body[len(kept) - offset :]
        told = {"size": len(kept), "complete": str(len(kept)) == query.get("size")}
        return 200, json.dumps(told).encode(), {}

    return answer


def test_the_journal_is_brought_after_the_results_that_it_names(
    there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "_PIECE", 1000)
    data = b"x" * 2500
    name = blake2b(data, digest_size=20).hexdigest()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_bytes(data)
    lines = json.dumps({"k": "a", "s": "C", "r": {"f": name}}, separators=(",", ":")).encode() + b"\n"
    path = tmp_path / "journal"
    lost = json.dumps({"k": "b", "s": "C", "r": {"f": "0" * 40}}, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(lines + lost + b'no JSON, "f":\n{"torn')
    there.answer = journal(there)
    bringer = Bringer(str(path), OwnServer(there.url, "t"))
    with path.open("ab") as file:
        file.write(b'"}\n')
    bringer.finish()
    assert bytes(there.taken) == path.read_bytes()  # type: ignore[attr-defined]
    assert bytes(there.results[name]) == data  # type: ignore[attr-defined]
    assert [one[1].rsplit("/", 1)[1] for one in there.asked][:4] == [name, name, name, "journal"]


def test_the_end_of_a_run_waits_for_a_server_that_is_away(
    there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"v":1}\n')
    taken = journal(there)
    away = 6

    def answer(*asked: Any) -> Answer:
        nonlocal away
        away -= 1
        return (503, b"", {}) if away > 0 else taken(*asked)

    there.answer = answer
    bringer = Bringer(str(path), OwnServer(there.url, "t"))
    bringer.finish()
    assert bytes(there.taken) == b'{"v":1}\n'  # type: ignore[attr-defined]


def test_a_server_that_never_answers_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bringing, "DOUBT", 0.3)
    path = tmp_path / "journal"
    path.write_bytes(b'{"v":1}\n')
    Bringer(str(path), OwnServer("http://127.0.0.1:9/api", "t")).finish()
    assert "the journal is not brought to the server any more" in caplog.text
    assert "let its SHUNTER_API_URL be an address that leads there from here, too" in caplog.text


def test_a_result_that_cannot_be_had_now_does_not_have_its_task_executed_again(
    there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(earlier_attempts, "PATIENCE", 0.3)
    executed = []

    @task
    def large() -> bytes:
        executed.append("large")
        return b"x" * 20_000

    @flow
    def inside() -> bytes:
        return large()

    @flow
    def outside() -> int:
        return len(inside())

    def run(journal: Journal) -> State[Any]:
        return flow_engine.run(outside, (), {}, Root(journal))

    assert run(Journal(str(tmp_path / "first"))).name == "Completed"
    kept = [line for line in lines(str(tmp_path / "first")) if "r" in line]
    results: Answer = (200, b"", {})

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        return (
            (200, json.dumps({"lines": kept, "next": None}).encode(), {})
            if path.endswith("tasks")
            else results
        )

    there.answer = answer
    earlier = EarlierAttempts(OwnServer(there.url, "t"))
    for status, name in ((503, "away"), (401, "over")):
        results = status, b'{"detail": "no"}', {}
        (tmp_path / name).mkdir()
        ended = run(Journal(str(tmp_path / name / "journal"), earlier.completed, earlier.result))
        assert ended.name == "Failed"
        assert "a result of an earlier attempt of this run cannot be had now" in str(ended.error)
        # Nor is it said of what was completed that it is not.
        told = [line for line in lines(str(tmp_path / name / "journal")) if "s" in line]
        assert {line["t"] for line in told} == {"outside"}
    assert executed == ["large"]


def test_what_is_no_shunter_server_says_nothing(there: There) -> None:
    """A proxy, whose server is away or is not known to it yet."""
    none = {"Shunter-Protocol": ""}
    ways = iter([(404, b"not found", none), (200, b"<html>", none), (301, b"", none), (403, b"", none)])
    page = (200, b'{"lines": [], "next": null}', {})
    there.answer = lambda *asked: next(ways, page)  # type: ignore[arg-type]
    assert EarlierAttempts(OwnServer(there.url, "t")).completed == {}
    assert len(there.asked) == 5


def test_a_journal_that_does_not_arrive_is_not_sent_for_ever(
    there: There, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"v":1}\n')
    there.answer = lambda *asked: (200, b'{"size": 0}', {})
    Bringer(str(path), OwnServer(there.url, "t")).finish()
    assert len(there.asked) == 1
    assert "it does not get beyond byte 0 there" in caplog.text


_CANCELLED = """
import time
from shunter import flow, task

@task
def step(n):
    time.sleep(0.01)

@flow(on_cancelled=[lambda of, run, state: print("hook of", of.name, state.name, flush=True)])
def endless():
    n = 0
    while True:
        step(n)
        n += 1

endless()
"""


def test_a_flow_whose_attempt_is_over_is_cancelled(there: There, tmp_path: Path) -> None:
    """As in a pod whose node was silent: another attempt may do the same by now."""
    takes = journal(there)
    over = attempt_over(UUID(int=1), 1).problem()

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if int(query["offset"]) > 1000:
            return 401, json.dumps(over).encode(), {}
        return takes(method, path, query, body)

    there.answer = answer
    env = {
        "SHUNTER_RUN_ID": str(UUID(int=1)),
        "SHUNTER_ATTEMPT": "1",
        "SHUNTER_RUN_TOKEN": "t",
        "SHUNTER_API_URL": there.url,
        "SHUNTER_JOURNAL": f"{tmp_path}/journal",
        "SHUNTER_BRING_JOURNAL": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _CANCELLED],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 143, done.stderr
    assert done.stdout == "hook of endless Cancelled\n"
    assert "is over, and with it its token" in done.stderr
