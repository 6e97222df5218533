"""Locks between processes on files beside what they guard: held by a descriptor, so that no crash leaves one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

SHARED, ALONE = fcntl.LOCK_SH, fcntl.LOCK_EX
#: Seconds between two looks at a lock that another process holds.
LOOK = 0.05


def try_lock(path: Path, how: int) -> int | None:
    """A descriptor that holds the lock of a file, which is made if need be; None if somebody else has it.

    The file may be removed by who holds it alone: whoever opened it before then finds that it is not the one of
    that name any more.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == os.stat(path).st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


@contextlib.asynccontextmanager
async def locked(path: Path, how: int) -> AsyncIterator[None]:
    """Hold the lock of a file, waited for as long as it takes."""
    while (lock := try_lock(path, how)) is None:  # noqa: ASYNC110 - to be woken takes a thread for each who waits
        await asyncio.sleep(LOOK)
    try:
        yield
    finally:
        os.close(lock)


def left_alone(folder: Path, keep: float) -> Iterator[Path]:
    """Locks (``*.lock``) of a folder that nobody had for so many seconds: each is held while it is looked at, and gone
    afterwards."""
    for path in folder.glob("*.lock"):
        if time.time() - path.stat().st_mtime <= keep:
            continue
        lock = try_lock(path, ALONE)
        if lock is None:
            continue
        try:
            yield path
            path.unlink(missing_ok=True)
        finally:
            os.close(lock)
