"""Gives the ids of a dead keeper and its command to other processes, and sees what becomes of the attempt.

``python reused_pids.py FOLDER WHO``, in a process namespace of its own; WHO is ``keeper``, ``command`` or ``both``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from shunter_infrastructure.process import procfs
from shunter_infrastructure.process.launcher import ProcessLauncher
from tests.launchers.attempts import Attempt, assignment, ended, is_gone, until


def _be(pid: int) -> subprocess.Popen[bytes]:
    """A process with that id."""
    while True:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        if stranger.pid == pid:
            return stranger
        stranger.kill()
        stranger.wait()


async def main(folder: Path, who: str) -> None:
    """See the module."""
    attempt = Attempt(assignment(["sleep", "1000"]), folder)
    first = ProcessLauncher()
    handle = await attempt.start(first)
    await first.close()
    found = attempt.record
    assert found.keeper is not None
    assert found.pid is not None
    dead = (found.keeper, found.pid)
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    for pid in dead:
        # Init, which this process is here, has to take them in; its own children it leaves to others.
        await until(lambda pid=pid: _reaped(pid), f"{pid} is gone")  # type: ignore[misc]
    chosen = {"keeper": dead[:1], "command": dead[1:], "both": dead}[who]
    strangers = [_be(pid) for pid in chosen]
    second = ProcessLauncher()
    again = await attempt.recover(second)
    assert again == handle
    await second.stop(handle, 0)
    end = await ended(second, handle)
    await second.close()
    living = all(not is_gone(stranger.pid) for stranger in strangers)
    print(f"{end.error}, the others {'live' if living else 'were killed'}")


def _reaped(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return procfs.look_up(pid) is None


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
