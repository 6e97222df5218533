"""What a home serves already: one process for each deployment, and the name of its agent, which stays the same.

In the folder ``served`` beside that of the agents ``DEPLOYMENT`` is locked by the process that serves it, and says its process
id and its agent's name; ``.AGENT`` is locked as long as an agent has that name.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shunter_work_pools.contracts.errors import InvalidInput


@contextmanager
def alone(names: Sequence[str]) -> Iterator[str]:
    """Be the one process of this home that serves these deployments; gives the name that its agent is to have.

    That is the name which an agent of one of them had before, so that runs which outlived it are found again; else a new one
    that no other home has, nor a machine that calls itself the same.

    Raises:
        InvalidInput: another process serves one of them, or the folder cannot be written.
    """
    from shunter_work_pools.contracts.home import home_from_env

    folder = home_from_env().state / "served"
    held: list[int] = []
    try:
        try:
            agent = _taken(folder, names, held)
        except OSError as exc:
            raise InvalidInput(
                f"the folder {folder} cannot be written: {exc.strerror or exc}",
                "Set SHUNTER_HOME to a folder of your own, or free space there.",
            ) from exc
        yield agent
    finally:
        for file in held:
            os.close(file)


def _taken(folder: Path, names: Sequence[str], held: list[int]) -> str:
    """Lock all that is needed, and write it down; what is held is to be closed in any case."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = []
    for name in names:
        locked = _locked(folder / name, held)
        process, _, agent = os.pread(held[-1], 200, 0).decode("ascii", "replace").strip().partition("\n")
        if not locked:
            raise InvalidInput(
                f"deployment {name!r} is served already, by process {process}",
                "End that one first, or choose another name.",
            )
        before.append(agent)
    files = list(held)
    known = (
        agent for agent in before if agent.startswith(f"{_host()}-")
    )  # an agent does not change its machine
    found = next((agent for agent in known if _locked(folder / f".{agent}", held)), None)
    if found is None:
        found = _new(names[0])
        _locked(folder / f".{found}", held)
    for file in files:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n{found}\n".encode(), 0)
    return found


def _locked(path: Path, held: list[int]) -> bool:
    """Open and lock it; False if another process has."""
    held.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    try:
        fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("._-")[:40].strip("._-") or "host"


def _new(deployment: str) -> str:
    return f"{_host()}-{deployment[:50]}-{secrets.token_hex(3)}"
