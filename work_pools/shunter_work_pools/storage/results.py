"""Results of tasks that are too large for a journal's line: files by the hash of what is in them, below each run.

A result comes in pieces, by offset. Until it is whole it is a draft; only what its name says becomes a result.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Protocol
from uuid import UUID

from shunter_work_pools.contracts.errors import BadRequest, NoRoom, TooLarge
from shunter_work_pools.contracts.tasks import RESULT_FILE_LIMIT
from shunter_work_pools.storage.logs import UNWRITABLE

_BLOCK = 1024 * 1024
#: Runs of which it is remembered how much they have.
_COUNTED = 10_000


class ResultStore(Protocol):
    """Where large results are kept. All calls block: call them from a thread."""

    def put(self, run: UUID, name: str, offset: int, size: int, data: bytes | memoryview) -> tuple[int, bool]:
        """Keep ``data``, the bytes from ``offset`` on of a result of ``size`` bytes; up to where it is there afterwards,
        and whether it is whole.

        What is there already is not written again; data beyond the end are not written at all: the answer tells
        where to go on.

        Raises:
            BadRequest: it is larger than any may be; or all of it is there now, and is not what its name says: it begins
                anew.
            TooLarge: the run has no room for it any more: none of it is kept.
            NoRoom: it cannot be written now.
        """

    def size(self, run: UUID, name: str) -> int | None:
        """Bytes of a result that is whole; None: there is none."""

    def read(self, run: UUID, name: str, start: int, limit: int) -> bytes:
        """Up to ``limit`` bytes of one that is whole, from the ``start``-th on."""

    def delete(self, run: UUID) -> None:
        """Delete all results of a run; none is fine, too.

        Raises:
            NoRoom: they cannot be deleted now.
        """

    def runs(self) -> list[UUID]:
        """Runs that have results."""


class FileResultStore:
    """Results in files below one folder, spread over 256 sub-folders by the end of the run's id.

    Args:
        folder: made when first written to.
        limit: bytes that all results of a run may have; None: as many as there are.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self._used: dict[UUID, int] = {}
        self._counting = threading.Lock()

    def _of_run(self, run: UUID) -> Path:
        return self.folder / run.hex[-2:] / str(run)

    def put(self, run: UUID, name: str, offset: int, size: int, data: bytes | memoryview) -> tuple[int, bool]:
        """See :class:`ResultStore`."""
        if size > RESULT_FILE_LIMIT:
            raise BadRequest(f"result {name} has {size} bytes; it may have {RESULT_FILE_LIMIT}")
        path = self._of_run(run) / name
        with self._unwritable("written"):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size, True
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = path.with_name(f"{name}.draft")
            with _alone(draft) as handle:
                with contextlib.suppress(FileNotFoundError):  # whoever had the draft before has finished it
                    return path.stat().st_size, True
                there = before = os.fstat(handle).st_size
                new = memoryview(data)[there - offset :] if offset <= there else memoryview(b"")
                if not self._take_room(run, len(new), size - there):
                    os.ftruncate(handle, 0)
                    self._count(run, -there)
                    raise TooLarge(
                        f"all results of run {run} may have {self.limit} bytes (server.results_limit); result {name} of "
                        f"{size} bytes has no room",
                        "Keep large values elsewhere: result_storage of the flow.",
                    )
                try:
                    there += _write(handle, there, new)
                finally:
                    self._count(run, os.fstat(handle).st_size - before - len(new))
                if there < size:
                    return there, False
                if there > size or _hash(handle) != name:
                    os.ftruncate(handle, 0)
                    self._count(run, -there)
                    raise BadRequest(
                        f"the {there} bytes sent as result {name} are not what its name says",
                        "Send it from its beginning.",
                    )
                os.fsync(handle)
                os.rename(draft, path)
                return size, True

    def size(self, run: UUID, name: str) -> int | None:
        """See :class:`ResultStore`."""
        try:
            return (self._of_run(run) / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, run: UUID, name: str, start: int, limit: int) -> bytes:
        """See :class:`ResultStore`."""
        try:
            with (self._of_run(run) / name).open("rb") as file:
                file.seek(start)
                return file.read(limit)
        except FileNotFoundError:
            return b""

    def delete(self, run: UUID) -> None:
        """See :class:`ResultStore`."""
        with self._unwritable("deleted"), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._of_run(run))
        with self._counting:
            self._used.pop(run, None)

    def runs(self) -> list[UUID]:
        """See :class:`ResultStore`."""
        found = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(ValueError):  # not ours
                found.append(UUID(path.name))
        return found

    def _take_room(self, run: UUID, more: int, rest: int) -> bool:
        """Count so many bytes more, if there is room for the rest of the result; others ask at the same time."""
        if self.limit is None:
            return True
        with self._counting:
            if run not in self._used:
                if len(self._used) >= _COUNTED:
                    self._used.clear()
                self._used[run] = _size_of(self._of_run(run))
            if self._used[run] + rest > self.limit:
                return False
            self._used[run] += more
            return True

    def _count(self, run: UUID, more: int) -> None:
        with self._counting:
            if run in self._used:
                self._used[run] += more

    @contextlib.contextmanager
    def _unwritable(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in UNWRITABLE or exc.errno == errno.ENOTEMPTY:  # one came while they were deleted
                raise NoRoom(
                    f"results in {self.folder} cannot be {what}: {exc.strerror}",
                    "Free space there, and check its permissions.",
                ) from exc
            raise


@contextlib.contextmanager
def _alone(draft: Path) -> Iterator[int]:
    """The draft, made if need be, ours alone: an upload that was given up may still be at work."""
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a draft that just got its name
            size += path.stat().st_size
    return size


def _write(handle: int, at: int, rest: memoryview) -> int:
    written = 0
    while rest:
        count = os.pwrite(handle, rest, at + written)
        written, rest = written + count, rest[count:]
    return written


def _hash(handle: int) -> str:
    made, at = blake2b(digest_size=20), 0
    while block := os.pread(handle, _BLOCK, at):
        made.update(block)
        at += len(block)
    return made.hexdigest()
