"""Deaths of more than one, deaths that are none, and what is torn: each has one truthful outcome."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_work_pools.contracts.states import Cause
from tests.engines.closing_words import not_applicable
from tests.launchers.attempts import Attempt, ended, is_gone, lease, shell, until, written

Attempts = Callable[..., Attempt]
Launchers = Callable[..., ProcessLauncher]

REUSE = Path(__file__).with_name("reused_pids.py")


async def test_agent_forker_and_keeper_die_at_once(
    attempts: Attempts, process_launchers: Launchers, tmp_path: Path
) -> None:
    first = process_launchers()
    attempt = attempts(
        shell('echo begun >> "$1"; setsid sleep 1000 & exec sleep 1000', str(tmp_path / "log"))
    )
    handle = await attempt.start(first)
    await until((tmp_path / "log").exists, "it began")
    assert first.forker_pid is not None
    assert attempt.record.keeper is not None
    for pid in (attempt.record.keeper, first.forker_pid):
        os.kill(pid, signal.SIGKILL)
    await first.close()
    second = process_launchers()
    found = await attempt.recover(second)
    assert found == handle
    end = await ended(second, handle)
    assert (end.error, end.exit_code, end.signal) == (Cause.KEEPER_LOST, None, None)
    assert await attempt.start(second) == handle
    assert (tmp_path / "log").read_text() == "begun\n"
    assert handle.pid is not None
    assert is_gone(handle.pid)


async def test_a_keeper_that_stands_still_loses_nothing(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    attempt = attempts(shell('echo up; read x < "$1"; echo last; exit 7', str(tmp_path / "gate")))
    handle = await attempt.start(processes)
    await written(processes, handle, b"up")
    keeper = attempt.record.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGSTOP)
    (tmp_path / "gate").write_text("go\n")
    assert handle.pid is not None
    pid = handle.pid
    await until(lambda: is_gone(pid), "the command has ended")
    waiting = asyncio.create_task(ended(processes, handle))
    await asyncio.sleep(0.1)
    assert not waiting.done()  # not known yet, so not told
    os.kill(keeper, signal.SIGCONT)
    assert (await waiting).exit_code == 7
    assert (attempt.folder / "output").read_bytes() == b"up\nlast\n"


@pytest.mark.parametrize("grace", [0, 0.2])
async def test_a_stop_wakes_a_keeper_that_stands_still(
    attempts: Attempts, processes: ProcessLauncher, grace: float
) -> None:
    attempt = attempts(shell("trap '' TERM; echo up; while :; do sleep 1000; done"))
    handle = await attempt.start(processes)
    await written(processes, handle, b"up")
    keeper = attempt.record.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGSTOP)
    await processes.stop(handle, grace)
    assert (await ended(processes, handle)).signal == "SIGKILL"


async def test_a_lease_that_ended_while_the_keeper_stood_still(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    await processes.check()
    attempt = attempts(shell("exec sleep 1000"))
    promised = lease(1.0, 1.0)
    handle = await attempt.start(processes, promised)
    keeper = attempt.record.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGSTOP)
    await asyncio.sleep(1.2)  # past the lease: nobody is there to keep it, see docs/guarantees.md
    os.kill(keeper, signal.SIGCONT)
    assert (await ended(processes, handle)).error is Cause.AGENT_LOST


async def test_a_record_torn_at_any_byte_is_told_truthfully(
    attempts: Attempts, process_launchers: Launchers, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    attempt = attempts(shell('echo begun >> "$1"; exit 3', str(log)))
    first = process_launchers()
    whole = await attempt.run(first)
    data = (attempt.folder / "record").read_bytes()
    assert data.count(b"\n") == 3
    known = 0
    for size in range(len(data) + 1):
        (attempt.folder / "record").write_bytes(data[:size])
        handle = await attempt.recover(first)
        assert handle is not None
        again = await attempt.start(first)
        assert (handle, again.pid) == (again, handle.pid)
        if size == len(data):
            assert await ended(first, handle) == whole
        elif size % 20 == 0 or data[size - 1 : size] == b"\n":  # how it is told takes a moment each time
            end = await ended(first, handle)
            assert (end.error, end.exit_code, end.signal) == (Cause.KEEPER_LOST, None, None)
            assert (f"process {handle.pid} was started" in str(end.message)) == (handle.pid is not None)
        known += handle.pid is not None
    assert 0 < known < len(data)
    assert log.read_text() == "begun\n"


async def test_a_launch_torn_at_any_byte_launches_nothing(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    attempt = attempts(shell('echo begun >> "$1"', str(log)))
    await attempt.run(processes)
    data = (attempt.folder / "launch.json").read_bytes()
    log.unlink()
    folder = attempt.folder
    for size in range(0, len(data), 7):
        (folder / "record").unlink()
        (folder / "launch.json").write_bytes(data[:size])
        answer = await processes._forker.launch(folder)
        assert answer.kind == "record", (size, answer)
        assert '"is":"failed","step":"launch"' in answer.detail
    assert not log.exists()
    shutil.rmtree(folder)


@pytest.mark.parametrize("who", ["keeper", "command", "both"])
def test_process_ids_that_belong_to_others_now(who: str, tmp_path: Path) -> None:
    """In a process namespace of its own, where the next id can be chosen, the ids of the dead are given to others."""
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    possible = subprocess.run(
        [*inside, "sh", "-c", "echo 100 > /proc/sys/kernel/ns_last_pid"], capture_output=True, text=True
    )
    if possible.returncode:
        not_applicable(
            f"ids cannot be chosen here ({possible.stderr.strip()}); a record that names a stranger can be"
        )
    told = subprocess.run(
        [*inside, sys.executable, str(REUSE), str(tmp_path), who], capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1] == "keeper_lost, the others live"
