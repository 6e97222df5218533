"""The cgroup of one attempt, as its keeper makes, enters, reads and removes it. Standard library, and little of it.

Which one can be used, and what is to be written into it, the agent has found out (``memory``).
"""

from __future__ import annotations

import os

#: What the name of an attempt's cgroup begins with.
PREFIX = "shunter-run-"
_PROCESSES = "cgroup.procs"


def path_of(parent: str, keeper: int, start: int) -> str:
    """Path of the cgroup of the attempt with that keeper: process id, and start in clock ticks."""
    return f"{parent}/{PREFIX}{keeper}-{start}"


def make(path: str, settings: list[list[str]]) -> None:
    """Make it and write ``settings``: pairs of a file's name and its content, in that order.

    Raises:
        OSError: it cannot be made as it should be; nothing is left of it.
    """
    os.mkdir(path)
    try:
        for name, value in settings:
            write(f"{path}/{name}", value)
    except OSError:
        remove(path)
        raise


def enter(path: str, pid: int = 0) -> None:
    """Move a process into it, by default this one. Whatever it starts from now on is born there.

    Raises:
        OSError: that is not possible.
    """
    write(f"{path}/{_PROCESSES}", str(pid))


def oom_kills(file: str) -> int:
    """How many processes the kernel killed for memory, by the line ``oom_kill N``; 0 if it cannot be read."""
    for line in _read(file).split("\n"):
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdigit():
            return int(value)
    return 0


def members(path: str) -> list[int]:
    """Ids of all processes in it, and in what was made below it."""
    found = [int(line) for line in _read(f"{path}/{_PROCESSES}").split()]
    for below in _below(path):
        found += members(below)
    return found


def remove(path: str) -> bool:
    """Remove it with what was made below it; False while a process is in there."""
    for below in _below(path):
        remove(below)
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def write(path: str, value: str) -> None:
    """Write a value into a file of the kernel's, in one piece.

    Raises:
        OSError: there is no such file, or the kernel refuses the value.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    parts = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError:
        pass
    finally:
        os.close(fd)
    return b"".join(parts).decode(errors="replace")


def _below(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
