"""What keeps an agent from taking runs: found, told once, no harm to what runs already, and over."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from structlog.testing import capture_logs

from shunter_agents import breaker, checkup
from shunter_agents.breaker import FIRST, LIMIT, THRESHOLD, Breaker
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_work_pools.contracts.deployments import Work
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import Life, life
from tests.engines.small_disk import fill, read_only, small_disk
from tests.patience import SOON

MIB = 2**20


def starts(launcher: FakeLauncher) -> list[str]:
    return [folder for call, folder in launcher.calls if call == "start"]


def runs(server: FakeServer, key: Key) -> bool:
    return key in server.leases and len(server.leases[key].steps) == 2


def outcome(server: FakeServer, key: Key) -> tuple[str, str | None]:
    end = server.leases[key].end
    assert end is not None
    return end.state.value, end.cause and end.cause.value


async def until(true: Callable[[], object], seconds: float = SOON) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for is outside of this loop
            await asyncio.sleep(0.01)


async def troubled(server: FakeServer, words: str) -> None:
    """Until the server knows that nothing is taken, and why."""
    await server.until(
        lambda: (
            bool(server.syncs)
            and not server.syncs[-1].taking
            and any(words in trouble for trouble in server.syncs[-1].troubles)
        )
    )


async def well(server: FakeServer) -> None:
    await server.until(lambda: server.syncs[-1].taking and not server.syncs[-1].troubles)


@pytest.fixture(autouse=True)
def _looks_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "AGAIN", 0.1)


@contextmanager
def told() -> Iterator[list[str]]:
    """What the log says of troubles, in order; filled at the end."""
    said: list[str] = []
    with capture_logs() as lines:
        yield said
    said += [line["event"] for line in lines if "trouble" in line]


def filled(disk: Path, one: Life, key: Key) -> Path:
    """Fill the disk so that not even the journal of a run can grow; the file to remove."""
    journal = journal_of(one, key)
    with journal.open("ab") as file:  # blank lines are passed over: its last page is full as well
        file.write(b"\n" * (-journal.stat().st_size % 4096))
    return fill(disk)


def journal_of(one: Life, key: Key) -> Path:
    return one.folder.attempts / f"{key[0]}.1" / "journal.jsonl"


# -- the disk: real file systems


async def test_a_full_disk_takes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    with small_disk(tmp_path / "disk", 4) as disk, told() as said:
        async with life(server, disk, launcher) as one:
            running = server.add("sleep=1", "exit=5", "output=abc")
            await server.until(lambda: runs(server, running))
            ballast = filled(disk, one, running)
            refused = server.add()  # its assignment cannot be written down
            await server.until(lambda: bool(server.released))
            assert server.released == [refused]
            await troubled(server, "cannot be written: No space left")
            await server.ended(running)
            assert outcome(server, running) == ("Failed", "exit_code")
            assert b'"Failed"' not in journal_of(one, running).read_bytes(), "the disk was not full"
            assert not one.done.done()
            ballast.unlink()
            await well(server)
            taken = server.add()
            await server.ended(taken)
            await until(lambda: not one.attempts())
            assert bytes(server.leases[running].log) == b"abc"
            assert f"{refused[0]}.1" not in starts(launcher)
    assert said == ["nothing new is taken", "a trouble is over"]


async def test_what_cannot_be_known_is_not_given_back_by_a_full_disk(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    with small_disk(tmp_path / "disk", 4) as disk:
        async with life(server, disk, launcher) as one:
            running = server.add("sleep=2")
            await server.until(lambda: runs(server, running))
            ballast = filled(disk, one, running)
            key = server.add()
            server.grant(server.waiting.pop(), uuid4())
            server.touch()
            await server.ended(key)
            assert outcome(server, key) == ("Crashed", "agent_lost")
            assert server.released == []
            ballast.unlink()
            await server.ended(running)
            await until(lambda: not one.attempts())
        assert f"{key[0]}.1" not in starts(launcher)


async def test_an_end_that_could_not_be_written_down_is_told_by_the_next_life(tmp_path: Path) -> None:
    server = FakeServer()
    with small_disk(tmp_path / "disk", 4) as disk:
        async with life(server, disk) as one:
            key = server.add("sleep=0.5", "exit=5")
            await server.until(lambda: runs(server, key))
            server.away = OSError("nobody there")
            server.touch()
            ballast = filled(disk, one, key)
            await until(lambda: not one.agent._holdings.working)
            assert b'"Failed"' not in journal_of(one, key).read_bytes(), "the disk was not full"
            await one.die()
        ballast.unlink()
        server.back()
        async with life(server, disk):
            await server.ended(key)
            assert outcome(server, key) == ("Failed", "exit_code")


async def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    server = FakeServer()
    with small_disk(tmp_path / "disk", 4) as disk:
        async with life(server, disk, health_every=0.1) as one:
            running = server.add("sleep=0.8")
            await server.until(lambda: runs(server, running))
            with read_only(disk):
                await troubled(server, "Read-only file system")
                waiting = server.add()
                await server.ended(running)
                assert outcome(server, running) == ("Completed", None)
                assert waiting not in server.leases
                one.agent.drain()  # its folder cannot be removed now: that keeps nobody
                assert await one.done == 0
        async with life(server, disk) as one:
            await server.ended(waiting)
            await until(lambda: not one.attempts())


async def test_little_room_on_the_disk(tmp_path: Path) -> None:
    server = FakeServer()
    with small_disk(tmp_path / "disk", 8) as disk:
        ballast = fill(disk, leave=3 * MIB)
        async with life(server, disk, min_disk=4 * MIB, health_every=0.1):
            await troubled(server, "less than 4MiB (agent.min_disk) is free")
            assert not any(sync.taking for sync in server.syncs), "it is known before the first sync"
            ballast.unlink()
            await well(server)


async def test_a_disk_that_hangs_holds_up_no_heartbeat(tmp_path: Path) -> None:
    server, answer = FakeServer(), threading.Event()
    async with life(server, tmp_path, health_every=0.1) as one:
        await server.until(lambda: bool(server.syncs) and server.syncs[-1].taking)
        one.folder.try_writing = answer.wait  # type: ignore[method-assign, assignment]
        await troubled(server, "is slow: a small write takes more than 1 s")
        key = server.add()
        server.touch()
        await asyncio.sleep(0.2)
        assert key not in server.leases
        del one.folder.try_writing
        answer.set()
        await well(server)
        await server.ended(key)


# -- memory


async def test_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    plenty = psutil.virtual_memory().total * 2
    async with life(server, tmp_path, min_memory=plenty, health_every=0.1):
        await troubled(server, "(agent.min_memory) of memory is available")
        assert not any(sync.taking for sync in server.syncs)
        monkeypatch.setattr(checkup, "available_memory", lambda: plenty)
        await well(server)


def test_available_memory_is_what_the_kernel_says() -> None:
    found = checkup.available_memory()
    assert found is not None
    assert 0.5 < found / psutil.virtual_memory().available < 2
    assert checkup.available_memory(Path("/nothing")) is None


# -- the user's own check


async def test_a_check_of_ones_own(tmp_path: Path) -> None:
    server, broken = FakeServer(), tmp_path / "broken"
    broken.touch()
    command = f"echo looking; test ! -e {broken} || {{ echo the licence server is away >&2; exit 3; }}"
    async with life(server, tmp_path / "a", health_check=command, health_every=0.1):
        await troubled(server, "its health check fails: the licence server is away")
        assert not any(sync.taking for sync in server.syncs), "nothing is taken before the first check"
        key = server.add()
        broken.unlink()
        await server.ended(key)
        assert not server.syncs[-1].troubles
        broken.touch()
        await troubled(server, "the licence server")


async def test_what_is_granted_to_an_agent_that_is_unwell_is_given_back(tmp_path: Path) -> None:
    """As when the trouble came while the answer was under way."""
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, health_check="exit 1") as one:
        await troubled(server, "its health check fails")
        key = server.add()
        server.grant(server.waiting.pop(), one.folder.session)
        server.touch()
        await server.until(lambda: bool(server.released))
        assert server.released == [key]
        assert starts(launcher) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [("exit 7", "exit code 7"), ("kill -9 $$", "signal 9"), ("no-such-command-here", "not found")],
)
async def test_a_check_that_says_nothing_of_its_own(tmp_path: Path, command: str, words: str) -> None:
    server = FakeServer()
    async with life(server, tmp_path, health_check=command):
        await troubled(server, words)


async def test_a_check_that_hangs_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "CHECK_LIMIT", 0.5)
    server, pids = FakeServer(), tmp_path / "pids"
    command = f"sleep 600 & echo $! $$ > {pids}; wait"
    async with life(server, tmp_path / "a", health_check=command, health_every=60):
        await troubled(server, "it took more than 0.5 s and was ended")
        started = [int(pid) for pid in pids.read_text().split()]
        assert len(started) == 2
        await until(lambda: not any(_alive(pid) for pid in started))


async def test_a_check_is_over_when_its_command_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "CHECK_LIMIT", 2.0)
    pids = tmp_path / "pids"
    assert await checkup._complaint(f"sleep 600 & echo $! > {pids}; exit 0") is None
    await until(lambda: not _alive(int(pids.read_text())))
    assert await checkup._complaint("sleep 600 & echo no; exit 1") == "no"


async def test_a_check_that_starts_a_daemon_costs_no_file_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "CHECK_LIMIT", 2.0)
    pids = tmp_path / "pids"
    pids.touch()
    daemon = f"setsid sh -c 'echo $$ >> {pids}; exec sleep 600' & "
    try:
        before = psutil.Process().num_fds()
        for number in range(1, 4):
            begun = f"until test $(wc -l < {pids}) -ge {number}; do sleep 0.01; done"
            assert await checkup._complaint(daemon + begun) is None
        assert psutil.Process().num_fds() == before
    finally:
        for pid in pids.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


async def test_only_the_end_of_what_a_check_says_is_kept() -> None:
    assert await checkup._complaint("yes | head -c 3000000; echo; echo at last; exit 1") == "at last"


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_checks_are_never_two_at_once_and_end_with_the_agent(tmp_path: Path) -> None:
    server, log = FakeServer(), tmp_path / "log"
    command = f"echo begin $$ >> {log}; sleep 0.3; echo end >> {log}"
    async with life(server, tmp_path / "a", health_check=command, health_every=0.05):
        await until(lambda: log.exists() and log.read_text().count("begin") >= 3)
    words = [line.split()[0] for line in log.read_text().splitlines()]
    assert words[:4] == ["begin", "end", "begin", "end"]
    last = int(log.read_text().split("begin ")[-1].split()[0])
    await until(lambda: not _alive(last))


# -- launches that fail


def test_the_breaker_opens_waits_longer_each_time_and_closes() -> None:
    now = 0.0
    one = Breaker(lambda: now)
    for _ in range(THRESHOLD - 1):
        one.failed()
    one.succeeded(0.0)
    for _ in range(THRESHOLD - 1):
        one.failed()
    assert not one.open
    one.failed()
    one.failed()  # was under way when it opened: no probe
    assert one.open
    waits = []
    for _ in range(10):
        waits.append(one.probe_in())
        now += one.probe_in()
        one.failed()
    assert waits == [FIRST, 10, 20, 40, 80, 160, LIMIT, LIMIT, LIMIT, LIMIT]
    one.succeeded(now - 1)
    assert one.open, "what began before the last failure proves nothing"
    one.succeeded(now)
    assert not one.open
    assert one.probe_in() == 0


async def test_a_broken_machine_does_not_eat_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST", 0.4)
    server, launcher = FakeServer(), FakeLauncher()
    with told() as said:
        async with life(server, tmp_path, launcher, limit=2):
            bad = [server.add("start_error=no such interpreter") for _ in range(40)]
            await troubled(server, "launches in a row have failed, the last one: no such interpreter")
            tried = len(starts(launcher))
            assert THRESHOLD <= tried <= THRESHOLD + 1, "one more may be under way"
            await until(lambda: len(starts(launcher)) == tried + 1)  # a probe
            await troubled(server, "no such interpreter")
            assert server.syncs[-1].free == 0
            probes = [sync for sync in server.syncs if sync.taking and sync.troubles]
            assert {sync.free for sync in probes} == {1}
            server.waiting.clear()
            good = [server.add() for _ in range(6)]
            await server.ended(*good)
            assert not server.syncs[-1].troubles or await _is_well(server)
            assert sum(key in server.leases for key in bad) <= tried + 2
    assert said[-1] == "a trouble is over"


async def _is_well(server: FakeServer) -> bool:
    await well(server)
    return True


async def test_a_probe_that_runs_for_long_closes_the_breaker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST", 0.2)
    monkeypatch.setattr("shunter_agents.supervisor.PROVEN", 0.2)
    server = FakeServer()
    async with life(server, tmp_path):
        bad = [server.add("start_error=no", "start_cause=source") for _ in range(THRESHOLD)]
        await server.ended(*bad)
        await troubled(server, "launches in a row")
        probe = server.add("hang")
        await server.until(lambda: runs(server, probe))
        await well(server)
        assert server.leases[probe].end is None


async def test_failures_of_the_users_code_are_no_failures_of_launches(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path):
        keys = [server.add("exit=1") for _ in range(2 * THRESHOLD)]
        await server.ended(*keys)
        assert not any(sync.troubles for sync in server.syncs)


# -- engines


async def test_nothing_is_taken_while_an_engine_is_away(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher):
        await server.until(lambda: bool(server.syncs))
        launcher.away = "the engine's socket is not there"
        waits = server.add()
        await troubled(server, "an engine is away: the engine's socket is not there")
        other = server.add()
        await asyncio.sleep(0.2)
        assert other not in server.leases
        launcher.away = None
        await server.ended(waits, other)
        assert not server.syncs[-1].troubles


def commanded(server: FakeServer, *command: str) -> Key:
    key = server.add()
    server.waiting[-1] = server.waiting[-1].model_copy(update={"work": Work(command=list(command))})
    return key


async def test_a_launch_that_waits_for_its_own_reasons_holds_up_no_other(tmp_path: Path) -> None:
    server, program = FakeServer(), tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    async with life(server, tmp_path / "a", ProcessLauncher()):
        with program.open("a"):  # a program that is being written cannot be executed (ETXTBSY)
            busy, other = commanded(server, str(program)), commanded(server, "/bin/true")
            await server.ended(other)
            assert not any(sync.troubles for sync in server.syncs)
            assert server.leases[busy].states == ["Starting"]
        await server.ended(busy)
        assert outcome(server, busy) == ("Completed", None)


async def test_a_run_that_no_longer_waits_for_its_engine_frees_the_agent(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher):
        await server.until(lambda: bool(server.syncs))
        launcher.away = "no engine"
        waits = server.add()
        await troubled(server, "an engine is away")
        server.cancel(waits)
        await server.ended(waits)
        await well(server)
