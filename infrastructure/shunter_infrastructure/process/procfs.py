"""Processes as ``/proc`` shows them (proc_pid_stat(5)): identity, parents, sessions, environments.

A process is identified by its id *and* its start time, in clock ticks since boot: the pair is not reused.
Standard library only, and little of it: the keeper imports this. Without ``/proc`` (macOS) start times
are 0 and nothing is listed.
"""

from __future__ import annotations

import os

AVAILABLE = os.path.exists("/proc/self/stat")


class Process:
    """One line of the process table.

    Attributes:
        pid, parent, session: ids.
        start: clock ticks since boot.
        state: ``R``, ``S``, ``D``, ``T``, ``Z`` ...
    """

    __slots__ = ("parent", "pid", "session", "start", "state")

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        self.pid = pid
        self.state = fields[0].decode("ascii")
        self.parent = int(fields[1])
        self.session = int(fields[3])
        self.start = int(fields[19])


def _read(path: str, limit: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, limit)
    except OSError:  # it ended between the two
        return None
    finally:
        os.close(fd)


def look_up(pid: int) -> Process | None:
    """The process with this id; None if there is none. A zombie is one still."""
    line = _read(f"/proc/{pid}/stat", 1024)
    if not line:
        return None
    # The name, in parentheses, may hold blanks and parentheses itself; fields are counted after it.
    return Process(pid, line[line.rindex(b")") + 2 :].split())


def start_time(pid: int) -> int:
    """Clock ticks since boot at which the process began; 0 if it is gone or cannot be seen."""
    found = look_up(pid)
    return found.start if found else 0


def is_running(pid: int, start: int) -> bool:
    """Whether exactly this process still runs (a zombie does not)."""
    if AVAILABLE:
        found = look_up(pid)
        return found is not None and found.start == start and found.state not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def newest_first() -> list[int]:
    """Ids of all processes, the last made first as far as ids tell (they start over at their limit)."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    pids.sort(reverse=True)
    return pids


def table() -> dict[int, Process]:
    """All processes by id. Not one moment: processes come and go while it is read."""
    found: dict[int, Process] = {}
    for pid in newest_first():
        process = look_up(pid)
        if process is not None:
            found[pid] = process
    return found


def below(roots: set[int], processes: dict[int, Process]) -> list[Process]:
    """All descendants of ``roots`` in ``processes``, zombies left out, parents before children."""
    children: dict[int, list[Process]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    seen = set(roots)
    queue = list(roots)
    while queue:
        for process in children.get(queue.pop(), ()):
            if process.pid not in seen:
                seen.add(process.pid)
                queue.append(process.pid)
                if process.state not in "ZX":
                    found.append(process)
    return found


def environment(pid: int) -> list[bytes]:
    """``NAME=value`` entries the process was started with; empty if they cannot be seen."""
    parts: list[bytes] = []
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return parts
    try:
        while chunk := os.read(fd, 65536):
            parts.append(chunk)
    except OSError:
        pass
    finally:
        os.close(fd)
    return b"".join(parts).split(b"\0")
