"""Folders that are made once, shared between runs and agents, and removed when nobody has used them for long.

::

    KEY             the folder as it was made; whole, since it came by a rename
    KEY.json        what is known of it: bytes, when it was made
    KEY.lock        flock: exclusive while it is made or removed, shared while a user is written down;
                    its time of change is when it was used last
    KEY.log         what the programs said that made it
    KEY.draft-X     being made; what a maker that died has left is removed by the next one
    users/KEY@RUN.N a link to the folder of an attempt that uses it

A user is an attempt, for as long as its folder is where the agent made it: that outlives the agent, as the attempt's
process does, and needs no word at its end. (A file lock would go with the agent.)
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import stat
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from shunter_agents.sources.locks import ALONE, SHARED, locked, try_lock
from shunter_infrastructure.removing import remove

_USERS = "users"

#: Makes a folder that does not exist yet; its errors are those of :meth:`Shelf.take`.
Make = Callable[[Path], Awaitable[None]]


@dataclass(frozen=True)
class Kept:
    """A folder on the shelf.

    Attributes:
        used: when it was used last, seconds since the epoch.
        size: bytes.
    """

    key: str
    used: float
    size: int


class Shelf:
    """See the module.

    Args:
        folder: its own; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def take(self, key: str, user: Path, make: Make) -> Path:
        """The folder of a key, made if need be; it stays as long as the user's folder does.

        Args:
            key: says all that the content depends on.
            user: the folder of an attempt.
            make: may be cancelled; what it left is removed.

        Raises:
            OSError: the shelf cannot be written.
        """
        self._open()
        place = self.folder / key
        # Who looks for what is there waits for nobody but a remover, and that is quick.
        async with locked(self._lock(key), SHARED):
            if self._use(key, user):
                return place
        async with locked(self._lock(key), ALONE):
            if not self._use(key, user):
                await self._make(key, make)
                self._use(key, user)
        return place

    def has(self, key: str) -> bool:
        """Whether it is there at this moment."""
        return (self.folder / key).is_dir()

    async def discard(self, key: str) -> None:
        """Remove a folder that is of no use to anybody any more."""
        async with locked(self._lock(key), ALONE):
            self._remove(key)

    def log_of(self, key: str) -> Path:
        """The file for what programs say that make it."""
        return self.folder / f"{key}.log"

    def kept(self) -> list[Kept]:
        """What there is, used longest ago first."""
        found = []
        for path in sorted(self.folder.glob("*.lock")):
            key = path.name.removesuffix(".lock")
            with contextlib.suppress(OSError):
                found.append(Kept(key, path.stat().st_mtime, self._size(key)))
        return sorted(found, key=lambda one: one.used)

    def collect(self, keep: float, limit: int | None) -> list[str]:
        """Remove what was not used for long, and of the rest as much as is over a limit; never what is in use.

        Args:
            keep: seconds since its last use.
            limit: bytes of all together; None: no limit.

        Returns:
            the keys of what was removed.
        """
        self._collect_drafts()
        kept = self.kept()
        total, removed = sum(one.size for one in kept), []
        for one in kept:
            old = time.time() - one.used > keep
            if not (old or (limit is not None and total > limit)):
                continue
            if self._collect_one(one):
                total -= one.size
                removed.append(one.key)
        return removed

    # -- details

    def _collect_drafts(self) -> None:
        """What makers have left that died, once the programs that they had started have ended, too."""
        for draft in self.folder.glob("*.draft-*"):
            lock = try_lock(self._lock(draft.name.partition(".draft-")[0]), ALONE)
            if lock is not None:
                try:
                    remove(draft)
                finally:
                    os.close(lock)

    def _collect_one(self, one: Kept) -> bool:
        lock = try_lock(self._lock(one.key), ALONE)
        if lock is None:
            return False  # it is being made, or taken
        try:
            if self._users_of(one.key) or os.fstat(lock).st_mtime != one.used:
                return False
            self._remove(one.key)
            (self.folder / f"{one.key}.log").unlink(missing_ok=True)
            self._lock(one.key).unlink(missing_ok=True)
        finally:
            os.close(lock)
        return True

    def _remove(self, key: str) -> None:
        place = self.folder / key
        if place.exists():
            draft = self._draft(key)  # out of sight in one step
            place.rename(draft)
        self._remove_drafts(key)
        (self.folder / f"{key}.json").unlink(missing_ok=True)

    async def _make(self, key: str, make: Make) -> None:
        await asyncio.to_thread(self._remove_drafts, key)
        draft = self._draft(key)
        try:
            await make(draft)
            size = await asyncio.to_thread(_finish, draft)
            facts = {"bytes": size, "made": time.time()}
            (self.folder / f"{key}.json").write_text(json.dumps(facts), "ascii")
            draft.rename(self.folder / key)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(remove, draft))
            raise

    def _lock(self, key: str) -> Path:
        return self.folder / f"{key}.lock"

    def _draft(self, key: str) -> Path:
        return self.folder / f"{key}.draft-{secrets.token_hex(6)}"

    def _remove_drafts(self, key: str) -> None:
        for path in self.folder.glob(f"{key}.draft-*"):
            remove(path)

    def _use(self, key: str, user: Path) -> bool:
        """Write a user down, if there is something to use."""
        if not self.has(key):
            return False
        with contextlib.suppress(FileExistsError):
            os.symlink(user, self._users() / f"{key}@{user.name}")
        os.utime(self._lock(key))
        return True

    def _open(self) -> None:
        """Who knows a key, since a secret of its run is in it, can enter what has it; nobody else can see what there
        is."""
        if not self._users().is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o711)  # nosec B103 # passed through, not listed; whatever the umask is
            self._users().mkdir(mode=0o700, exist_ok=True)

    def _users(self) -> Path:
        return self.folder / _USERS

    def _users_of(self, key: str) -> list[Path]:
        """Links of those that use it; the others are removed."""
        found = []
        for link in self._users().glob(f"{key}@*"):
            if link.exists():
                found.append(link)
            else:
                link.unlink(missing_ok=True)
        return found

    def _size(self, key: str) -> int:
        try:
            return int(json.loads((self.folder / f"{key}.json").read_bytes())["bytes"])
        except (OSError, ValueError, LookupError, TypeError):
            return 0


def _finish(draft: Path) -> int:
    """Make a folder read-only, and sure to be on disk before it gets its name; its bytes."""
    total = 0
    for folder, names, files in os.walk(draft, topdown=False):
        for path in (os.path.join(folder, name) for name in files + names):
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode):
                total += found.st_size
            if not stat.S_ISLNK(found.st_mode):
                executable = 0o111 if found.st_mode & 0o100 else 0
                os.chmod(path, 0o444 | executable)
    os.chmod(draft, 0o555)  # nosec B103 # runs of other users read it, and nobody writes
    _sync(draft)
    return total


def _sync(folder: Path) -> None:
    """Have the file system of a folder write what it has not written yet: a machine that loses its power must not
    come back with a folder of empty files."""
    if sys.platform != "linux":
        os.sync()
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ctypes.CDLL(None, use_errno=True).syncfs(fd)
    finally:
        os.close(fd)
