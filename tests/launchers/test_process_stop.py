"""Stopping a tree of processes, and what a command leaves running: nothing may be left, whatever it tries."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter_infrastructure.launcher import Handle
from shunter_infrastructure.process import keeper, launcher
from shunter_infrastructure.process.launcher import ProcessLauncher
from tests.launchers.attempts import Attempt, ended, is_gone, output, shell, until, written

Attempts = Callable[..., Attempt]

#: Starts three children of which each hides in its own way, says their pids, and goes on by ``{then}``.
HIDING = """
import os, signal, sys, time
def ignoring():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def daemon():
    if os.fork(): os._exit(0)
    os.setsid()
    if os.fork(): os._exit(0)
def nameless():
    daemon()
    ignoring()
    os.execve({python!r}, [{python!r}, "-c", "import os,time;os.write(1,b'nameless %d\\\\n' % os.getpid());time.sleep(1000)"], {{}})
for hide in (ignoring, daemon, nameless):
    if os.fork() == 0:
        hide()
        os.write(1, b"%s %d\\n" % (hide.__name__.encode(), os.getpid()))
        time.sleep(1000)
        os._exit(0)
{then}
"""


def hiding(then: str) -> list[str]:
    return [sys.executable, "-c", HIDING.format(python=sys.executable, then=then)]


def pids(text: bytes) -> dict[str, int]:
    return {name: int(pid) for name, pid in (line.split() for line in text.decode().splitlines())}


async def hidden(processes: ProcessLauncher, attempt: Attempt) -> dict[str, int]:
    handle = await attempt.start(processes)
    await until(lambda: _lines(processes, handle, 3), "three children")
    return pids(await output(processes, handle))


@pytest.mark.parametrize("grace", [0, 0.3])
async def test_children_that_hide_are_stopped(
    attempts: Attempts, processes: ProcessLauncher, grace: float
) -> None:
    attempt = attempts(hiding("time.sleep(1000)"))
    found = await hidden(processes, attempt)
    assert set(found) == {"ignoring", "daemon", "nameless"}
    assert not any(is_gone(pid) for pid in found.values())
    handle = await attempt.start(processes)
    await processes.stop(handle, grace)
    await ended(processes, handle)
    assert all(is_gone(pid) for pid in found.values())


async def test_children_that_are_left_over_are_stopped(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    attempt = attempts(hiding("sys.stdin.read(); time.sleep(0.3); sys.exit(3)"), grace=0.3)
    handle = await attempt.start(processes)
    end = await ended(processes, handle)
    found = pids(await output(processes, handle))
    assert set(found) == {"ignoring", "daemon", "nameless"}
    assert all(is_gone(pid) for pid in found.values())
    assert end.exit_code == 3
    assert end.message is not None
    assert end.message.startswith("3 process(es) still running")


async def test_a_left_over_child_gets_its_chance(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(
        shell("(trap 'echo tidied; exit' TERM; echo up; while :; do sleep 0.01; done) & sleep 0.2")
    )
    handle = await attempt.start(processes)
    end = await ended(processes, handle)
    assert end.exit_code == 0
    assert (await output(processes, handle)).endswith(b"tidied\n")


async def test_the_grace_is_for_the_whole_tree(attempts: Attempts, processes: ProcessLauncher) -> None:
    """The command ends at once; a child of it needs its time to tidy up, and has it."""
    attempt = attempts(
        shell("(trap 'sleep 2.5; echo tidied; exit' TERM; echo up; while :; do sleep 0.01; done) & wait")
    )
    handle = await attempt.start(processes)
    await written(processes, handle, b"up")
    await processes.stop(handle, 30)
    assert (await ended(processes, handle)).signal == "SIGTERM"
    assert (await output(processes, handle)).endswith(b"tidied\n")


async def test_a_stopped_process_can_be_asked(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("trap 'echo tidied; exit 7' TERM; echo up; while :; do sleep 0.01; done"))
    handle = await attempt.start(processes)
    await written(processes, handle, b"up")
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGSTOP)
    await processes.stop(handle, 30)
    assert (await ended(processes, handle)).exit_code == 7
    assert (await output(processes, handle)).endswith(b"tidied\n")


#: A lineage of which every member lives for a moment: it forks, and its child is an orphan at once.
#: ``{branches}`` of them, each in a new session all the time, for a minute at most.
BREEDING = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 60
if os.fork(): time.sleep(60)
for _ in range({branches} - 1):
    if os.fork() == 0: break
os.write(1, b"up\\n")
while time.monotonic() < end:
    if os.fork(): os._exit(0)
    os.setsid()
"""


@pytest.mark.parametrize("branches", [1, 8])
async def test_processes_that_fork_while_they_are_killed(
    attempts: Attempts, processes: ProcessLauncher, branches: int
) -> None:
    attempt = attempts([sys.executable, "-I", "-S", "-c", BREEDING.format(branches=branches)])
    handle = await attempt.start(processes)
    await until(lambda: _lines(processes, handle, branches), "all branches")
    began = time.monotonic()
    await processes.stop(handle, 0)
    await ended(processes, handle)
    assert time.monotonic() - began < 15


async def _lines(processes: ProcessLauncher, handle: Handle, count: int) -> bool:
    return (await output(processes, handle)).count(b"\n") == count


async def test_usage_is_of_the_whole_tree(attempts: Attempts, processes: ProcessLauncher) -> None:
    """Also of a child that daemonized and has ended before the command does."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\nx = bytearray(80_000_000)"
    script = f"""
import os, subprocess, sys, time
burn = [sys.executable, "-c", {burn!r}]
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        subprocess.run(burn)
        open("done", "w").close()
    os._exit(0)
os.wait()
subprocess.run(burn)
while not os.path.exists("done"): time.sleep(0.01)
"""
    end = await attempts([sys.executable, "-c", script]).run(processes)
    assert end.cpu_seconds is not None
    assert end.max_rss_bytes is not None
    assert 0.6 < end.cpu_seconds < 3
    assert 80_000_000 < end.max_rss_bytes < 200_000_000


async def test_a_full_disk_keeps_nobody_from_stopping(
    attempts: Attempts, processes: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    attempt = attempts(shell("trap '' TERM; echo up; while :; do sleep 1000; done"), grace=0.1)
    handle = await attempt.start(processes)
    await written(processes, handle, b"up")
    monkeypatch.setattr(launcher, "_add_line", full)
    await processes.stop(handle, 60)
    assert (await ended(processes, handle)).signal == "SIGKILL"


def test_a_full_disk_delays_the_record_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_RETRY_WRITE", 0)
    tries = iter([None, 7, None, 3, None])
    real = os.write

    def nearly_full(fd: int, data: bytes) -> int:
        room = next(tries, len(data))
        if room is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:room])

    kept = keeper._Keeper(keeper.Line(-1), 1, str(tmp_path), -1)
    kept.record = os.open(tmp_path / "record", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(os, "write", nearly_full)
    kept._append('{"is":"ended","status":0}')
    os.close(kept.record)
    assert (tmp_path / "record").read_text() == '{"is":"ended","status":0}\n'
