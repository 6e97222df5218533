"""Output while the server is away, with real servers and agents: all of it, or a mark that counts what is not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shunter_agents.killpoints import RELIEF_POINTS
from shunter_agents.log_shipper import UPLOAD
from shunter_agents.spool import TAIL
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.counted_output import Counted, taken, until
from tests.agents.real_server import Site, site
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)
MIB = 2**20


@pytest.fixture(scope="module")
def in_memory() -> Iterator[Site]:
    """A server and agents on tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, site(Path(folder, "home")) as one:
        yield one


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A server, on a disk (ext4 mostly) unless a test says otherwise, and agents that keep as much as they like."""
    one: Site = request.getfixturevalue(getattr(request, "param", "here"))
    monkeypatch.setitem(one.env, "SHUNTER_AGENT_MIN_DISK", "0")
    monkeypatch.setitem(one.env, "SHUNTER_AGENT_SPOOL_LIMIT", "1GiB")
    return one


def start(place: Site, name: str, run: Counted) -> UUID:
    place.client.deploy(name, DeploymentSpec(work=Work(command=run.command), pool="default"))
    return place.client.create_run(RunRequest(deployment=name)).id


def shunter(place: Site, *words: object) -> bytes:
    """What a command prints."""
    command = [Path(sys.executable).with_name("shunter"), *map(str, words)]
    return subprocess.run(command, env=place.env, check=True, stdout=subprocess.PIPE).stdout


def head_arrives(place: Site, made: UUID, run: Counted) -> None:
    until(lambda: place.client.get_run(str(made)).attempts)
    until(lambda: place.client.read_log(str(made)).size == run.head)


def leave(place: Site) -> None:
    place.server.send_signal(signal.SIGKILL)
    place.server.wait()


def whole_log(place: Site, run: UUID) -> bytes:
    """All of it, in as many parts as it takes."""
    data = b""
    while True:
        part = place.client.read_log(str(run), start=len(data), wait=1.0)
        data += part.data
        if part.complete and len(data) == part.size:
            return data


@pytest.mark.parametrize("place", ["here", "in_memory"], indirect=True)
def test_200_megabytes_while_the_server_is_away(place: Site, tmp_path: Path) -> None:
    """20 MiB may wait: the log has the head, a mark that counts, and the tail; the disk was never used for more."""
    place.env["SHUNTER_AGENT_SPOOL_LIMIT"] = "20MiB"
    run = Counted(tmp_path / "run", head=16, rest=3200, pause=0.02)
    folder = place.home / "agents" / "much" / "attempts"
    with place.agent("much"):
        made = start(place, "much", run)
        head_arrives(place, made, run)
        leave(place)
        run.go()
        most = 0

        def written() -> bool:
            nonlocal most
            most = max(most, taken(folder))
            return run.written

        until(written, 60)
        until(lambda: taken(folder) <= 20 * MIB)
        place.start_server()
        run.end()
        ended = place.ended(made)
        log = whole_log(place, made)
    assert (ended.state, ended.attempts[0].log_size) == ("Completed", run.size)
    ((first, end),) = run.check(log)
    assert run.head <= first <= run.head + UPLOAD
    assert run.size - 20 * MIB <= end <= run.size - TAIL
    assert place.client.get_run(str(made)).attempts[0].log_missing == end - first
    assert shunter(place, "run", "logs", made) == log
    assert f" {end - first:,} bytes of its output\n" in shunter(place, "run", "inspect", made).decode()
    print(f"took {most / MIB:.1f} MiB at the most, {(end - first) / MIB:.1f} MiB are missing")
    assert most <= 20 * MIB + 50 * MIB * 0.3  # what it writes between two looks, on a busy machine


def test_below_the_limit_every_byte_waits(place: Site, tmp_path: Path) -> None:
    run = Counted(tmp_path / "run", head=16, rest=800)
    with place.agent("little"):
        made = start(place, "little", run)
        head_arrives(place, made, run)
        leave(place)
        run.go()
        until(lambda: run.written)
        place.start_server()
        run.end()
        place.ended(made)
        assert run.check(whole_log(place, made)) == []
    assert place.client.get_run(str(made)).attempts[0].log_missing == 0
    assert not list((place.home / "logs").rglob(f"{made}.*.gaps"))


@pytest.mark.parametrize("point", RELIEF_POINTS)
def test_killed_while_output_makes_room(place: Site, tmp_path: Path, point: str) -> None:
    """No byte is lost without a word: each is in the log, or counted in a mark in its place.

    The next life has room enough, so what the log misses is what the first one wrote down before it died.
    """
    place.env["SHUNTER_AGENT_SPOOL_LIMIT"] = "4MiB"
    run = Counted(tmp_path / "run", head=16, rest=320, pause=0.02)
    first = place.start_agent(point, kill_at=f"{point}#3")
    try:
        made = start(place, point, run)
        head_arrives(place, made, run)
        leave(place)
        run.go()
        assert first.wait(SOON) == -signal.SIGKILL, place.log(point)
        until(lambda: run.written)
    finally:
        first.kill()
        first.wait()
    (journal,) = (place.home / "agents" / point / "attempts").glob("*/journal.jsonl")
    gaps = [line["gap"] for line in map(json.loads, journal.read_text().split("\n")[1:-1]) if "gap" in line]
    assert len(gaps) == (2 if point == "before-gap-journaled" else 3)
    place.env["SHUNTER_AGENT_SPOOL_LIMIT"] = "1GiB"
    with place.agent(point):
        place.start_server()
        run.end()
        ended = place.ended(made)
        log = whole_log(place, made)
    assert ended.state == "Completed"
    ((begin, end),) = run.check(log)
    assert run.head <= begin <= run.head + UPLOAD
    assert end == gaps[-1][1]
    assert place.left_over() == []
