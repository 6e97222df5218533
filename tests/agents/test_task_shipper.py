"""Journals of flows on their way to a server of this process; what a run may leave in their place."""

from __future__ import annotations

import asyncio
import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from shunter_agents import task_shipper
from shunter_agents.attempt import Key
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.launcher import Handle
from shunter_infrastructure.task_files import TaskFiles
from shunter_work_pools.contracts.agents import LogAnswer
from shunter_work_pools.contracts.errors import BadRequest, NoRoom, ServerUnreachable
from shunter_work_pools.contracts.log_frames import decode_frames
from shunter_work_pools.contracts.secrets import AttemptSecrets, FromSecret
from shunter_work_pools.masking import Mask
from tests.agents.fake_server import FakeServer
from tests.agents.lives import Life, life
from tests.patience import SOON

HEAD = b'{"v":1,"flow":"sums"}\n'


def line(**about: Any) -> bytes:
    return json.dumps(about, separators=(",", ":")).encode() + b"\n"


class Flows(FakeLauncher):
    """Each of its runs leaves the same files."""

    def __init__(self, journal: bytes, results: dict[str, bytes] | None = None) -> None:
        super().__init__()
        self._journal, self._results = journal, results or {}

    async def start(self, assignment: Any, folder: Path, *args: Any, **more: Any) -> Handle:
        (folder / "tasks" / "results").mkdir(parents=True, exist_ok=True)
        for name, data in self._results.items():
            (folder / "tasks" / "results" / name).write_bytes(data)
        (folder / "tasks" / "journal").write_bytes(self._journal)
        return await super().start(assignment, folder, *args, **more)


async def test_the_end_of_a_run_is_told_when_the_server_has_its_journal(tmp_path: Path) -> None:
    server = FakeServer()
    server.journals_away = ServerUnreachable("as the test wants it")
    journal = HEAD + line(k="a", s="C") * 3
    async with life(server, tmp_path, Flows(journal + b'{"torn')) as one:
        key = server.add("output=hello\n", "sleep=0.05")
        await server.until(lambda: server.journal_tries > 3 and server.leases[key].log == b"hello\n")
        assert server.leases[key].states == ["Starting", "Running"]
        server.journals_away = None
        server.lose = ["journals"]  # what took effect is not taken twice
        await server.ended(key)
        assert server.leases[key].journal == journal
        await _gone(one)


async def test_an_end_is_held_by_the_next_life_too(tmp_path: Path) -> None:
    server = FakeServer()
    server.journals_away = ServerUnreachable("as the test wants it")
    launcher = Flows(HEAD)
    async with life(server, tmp_path, launcher):
        key = server.add()
        await server.until(lambda: server.journal_tries > 1)
    before = server.journal_tries
    async with life(server, tmp_path, launcher):
        await server.until(lambda: server.journal_tries > before + 1)
        assert "Completed" not in server.leases[key].states
        server.journals_away = None
        await server.ended(key)
        assert server.leases[key].journal == HEAD


async def test_a_journal_that_is_refused_holds_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_shipper, "PARKED", 0.1)
    server = FakeServer()
    server.journals_away = BadRequest("as the test wants it")
    async with life(server, tmp_path, Flows(HEAD)) as one:
        keys = [server.add() for _ in range(3)]
        await server.ended(*keys)
        assert len(one.attempts()) == 3  # it is tried again
        server.journals_away = None
        await server.until(lambda: all(server.leases[key].journal == HEAD for key in keys))


@pytest.mark.parametrize("next_life", [False, True])
async def test_what_a_run_completed_is_brought_though_it_was_given_up(
    tmp_path: Path, next_life: bool
) -> None:
    """Its agent was away for too long: whoever retries the run now is to go on from there."""
    server = FakeServer()
    server.journals_away = ServerUnreachable("as the test wants it")
    launcher = Flows(HEAD)
    async with life(server, tmp_path, launcher) as one:
        key = server.add("hang")
        await server.until(lambda: server.journal_tries > 1)
        if not next_life:
            server.take_away(key)
            await _brought_and_gone(server, one, key)
    if next_life:
        server.take_away(key)
        async with life(server, tmp_path, launcher) as one:
            await _brought_and_gone(server, one, key)
    assert server.leases[key].states == ["Starting", "Running"]


async def _brought_and_gone(server: FakeServer, one: Life, key: Key) -> None:
    before = server.journal_tries
    await server.until(lambda: server.journal_tries > before + 1 and not one.agent._holdings.working)
    assert one.attempts()
    server.journals_away = None
    await _gone(one)
    assert server.leases[key].journal == HEAD


async def _gone(one: Life) -> None:
    async with asyncio.timeout(SOON):
        while one.attempts():  # noqa: ASYNC110 - the folder is the truth
            await asyncio.sleep(0.01)


async def test_a_journal_of_a_run_that_was_given_up_is_not_kept_for_a_server_that_refuses_it(
    tmp_path: Path,
) -> None:
    server = FakeServer()
    server.journals_away = BadRequest("as the test wants it")
    async with life(server, tmp_path, Flows(HEAD)) as one:
        key = server.add("hang")
        await server.until(lambda: server.journal_tries > 0)
        server.take_away(key)
        await _gone(one)


async def test_results_are_there_before_the_lines_that_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeServer()
    large = os.urandom(3 * task_shipper.PIECE + 5)
    results = {blake2b(data, digest_size=20).hexdigest(): data for data in (large, b"x" * 20_000)}
    journal = b"".join(line(k=name[:8], s="C", r={"f": name, "n": 1, "z": "p"}) for name in results)
    lost = "0" * 40
    journal += line(k="lost", s="C", r={"f": lost}) + line(k="bad", s="C", r={"f": "../../secret"})
    there: list[dict[str, bytes]] = []
    take = server.upload_journals

    async def taken(name: str, body: bytes) -> LogAnswer:
        if any(frame.length for frame, _ in decode_frames(body)):  # it does not just ask how far it is
            there.append({name: bytes(data) for name, data in server.leases[key].results.items()})
        return await take(name, body)

    monkeypatch.setattr(server, "upload_journals", taken)
    async with life(server, tmp_path, Flows(journal, results)):
        key = server.add()
        await server.ended(key)
        assert there == [results]
        assert server.leases[key].journal == journal


async def test_small_results_travel_together(tmp_path: Path) -> None:
    many = [b"%05d" % number * 4000 for number in range(400)]
    results = {blake2b(data, digest_size=20).hexdigest(): data for data in many}
    refused = set(list(results)[5:7])
    journal = b"".join(line(k=name[:8], s="C", r={"f": name, "n": 1, "z": "p"}) for name in results)
    server = FakeServer()
    server.refused_results = refused  # that they cannot be kept keeps nothing else back
    async with life(server, tmp_path, Flows(journal, results)):
        key = server.add()
        await server.ended(key)
        there = {name: bytes(data) for name, data in server.leases[key].results.items()}
        assert there == {name: data for name, data in results.items() if name not in refused}
        assert server.leases[key].journal == journal
    assert server.result_uploads == 2  # 8 MB, a PIECE in each


async def test_a_server_that_has_no_room_for_results_holds_no_end_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_shipper, "PATIENCE", 0.5)
    name = blake2b(b"x" * 20_000, digest_size=20).hexdigest()
    journal = line(k="a", s="C", r={"f": name, "n": 20_000, "z": "p"})
    server = FakeServer()
    server.results_away = ServerUnreachable("it is away, and waited for")
    async with life(server, tmp_path, Flows(journal, {name: b"x" * 20_000})):
        key = server.add()
        with pytest.raises(TimeoutError):
            await server.until(lambda: key in server.leases and server.leases[key].end is not None, 1.5)
        server.results_away = NoRoom("as the test wants it")
        await server.ended(key)
        assert (server.leases[key].journal, server.leases[key].results) == (journal, {})
        server.results_away = None
        other = server.add()
        await server.ended(other)
        assert set(server.leases[other].results) == {name}


async def test_a_line_that_is_too_long_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_shipper, "UPLOAD", 1000)
    journal = HEAD + line(k="a" * 5000, s="C") + line(k="b", s="C") * 100
    server = FakeServer()
    async with life(server, tmp_path, Flows(journal)):
        key = server.add()
        await server.ended(key)
        assert server.leases[key].journal == journal


async def test_secrets_are_masked_but_in_results(tmp_path: Path) -> None:
    secret = "a-very-secret-value"  # nosec B105
    told = line(k="a", s="F", e={"message": f"it is {secret}"})
    kept = line(k="b", s="C", r={"i": secret})
    server = FakeServer()
    server.secrets = AttemptSecrets(env={"TOKEN": secret})
    async with life(server, tmp_path, Flows(told + kept)):
        key = server.add(env={"TOKEN": FromSecret(secret="token")})
        await server.ended(key)
        journal = bytes(server.leases[key].journal)
        assert journal == told.replace(secret.encode(), b"*" * len(secret)) + kept


def test_masking_keeps_offsets() -> None:
    lines = (
        line(k="a", e="secret-one")
        + b"\n"
        + b"not json secret-one\n"
        + line(r={"i": "secret-one"})
        + b"torn secret-one"
    )
    covered = task_shipper.masked(lines, Mask(["secret-one"]))
    assert len(covered) == len(lines)
    assert covered.count(b"secret-one") == 1


# -- what a run may leave there


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place" / "tasks" / "results").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"not the run's")
    return tmp_path / "place"


def test_what_is_there_is_read(place: Path) -> None:
    files = TaskFiles(place, owner=os.getuid())
    assert files.journal_size() == 0
    (place / "tasks" / "journal").write_bytes(b"0123456789")
    (place / "tasks" / "results" / "abc").write_bytes(b"abcdef")
    assert files.journal_size() == 10
    assert files.read_journal(3, 4) == b"3456"
    assert files.read_result("abc", 2, 2) == (b"cd", 6)


@pytest.mark.timeout(10)
def test_no_link_pipe_or_file_of_others_is_read(place: Path, tmp_path: Path) -> None:
    files, journal = TaskFiles(place), place / "tasks" / "journal"
    journal.symlink_to(tmp_path / "secret")
    assert files.journal_size() == 0
    with pytest.raises(OSError, match="symbolic links"):
        files.read_journal(0, 100)
    journal.unlink()
    os.mkfifo(journal)
    assert files.journal_size() == 0
    with pytest.raises(OSError, match="regular"):
        files.read_journal(0, 100)
    journal.unlink()
    journal.write_bytes(b"of this user")
    assert TaskFiles(place, owner=os.getuid() + 1).journal_size() == 0
    (place / "tasks" / "results").rmdir()
    (place / "tasks" / "results").symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        files.read_result("secret", 0, 100)
    (place / "tasks" / "results").unlink()
    (place / "tasks" / "results").mkdir()
    with pytest.raises(FileNotFoundError):
        files.read_result("../../../secret", 0, 100)
