"""What is left of an attempt whose keeper is gone: found by everything that can still tell, and killed.

With the keeper went the certain knowledge of whose child is whose: orphans have become children of init.
Three marks are left: the command's own process (by id and start time), its session, and the run's id and
attempt in the environment a process was started with. Whatever descends from one of these belongs too.
A process that daemonized *and* cleared its environment has none of them; only a keeper finds it, or the cgroup of
a run whose memory is limited: whoever is in there belongs to it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from shunter_infrastructure.process import cgroup, procfs
from shunter_infrastructure.process.record import Record

_PAUSE = 0.02
_GIVE_UP_AFTER = 10.0


async def kill(record: Record, run: str, attempt: str, own_cgroup: str | None) -> tuple[int, int]:
    """SIGKILL to everything that is left, until nothing is found twice in a row.

    Args:
        own_cgroup: path of the attempt's cgroup, if it had one.

    Returns:
        How many processes there were, and how many of them could not be killed.
    """
    marks = {f"SHUNTER_RUN_ID={run}".encode(), f"SHUNTER_ATTEMPT={attempt}".encode()}
    seen: set[tuple[int, int]] = set()
    quiet, until = 0, time.monotonic() + _GIVE_UP_AFTER
    while True:
        found = await asyncio.to_thread(_find, record, marks, own_cgroup)
        seen |= {(process.pid, process.start) for process in found}
        # Twice: one that was just being made when the keeper died shows itself a moment later.
        quiet = 0 if found else quiet + 1
        if quiet == 2 or time.monotonic() > until:
            return len(seen), len(found)
        for process in found:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        await asyncio.sleep(_PAUSE)


def _find(record: Record, marks: set[bytes], own_cgroup: str | None) -> list[procfs.Process]:
    processes = procfs.table()
    roots = {process.pid for process in processes.values() if marks <= set(procfs.environment(process.pid))}
    if own_cgroup is not None:
        roots |= set(cgroup.members(own_cgroup)) & processes.keys()
    if record.pid is not None and record.is_of_this_boot:
        leader = processes.get(record.pid)
        # A process of that id which began at another time is a stranger, and so is its session.
        if leader is None or leader.start == record.pid_start:
            roots |= {
                process.pid
                for process in processes.values()
                if process.pid == record.pid or process.session == record.pid
            }
    roots.discard(os.getpid())
    own = [processes[pid] for pid in roots if processes[pid].state not in "ZX"]
    return own + [process for process in procfs.below(roots, processes) if process.pid != os.getpid()]
