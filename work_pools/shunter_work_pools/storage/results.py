"""Results of tasks that are too large for a journal's line: files by the hash of what is in them, below each run.

A result comes in pieces, by offset. Until it is whole it is a draft; only what its name says becomes a result.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Protocol
from uuid import UUID

from shunter_work_pools.contracts.errors import BadRequest, Unavailable
from shunter_work_pools.contracts.tasks import RESULT_FILE_LIMIT
from shunter_work_pools.storage.logs import UNWRITABLE

_BLOCK = 1024 * 1024


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
            Unavailable: it cannot be written now.
        """

    def size(self, run: UUID, name: str) -> int | None:
        """Bytes of a result that is whole; None: there is none."""

    def read(self, run: UUID, name: str, start: int, limit: int) -> bytes:
        """Up to ``limit`` bytes of one that is whole, from the ``start``-th on."""

    def delete(self, run: UUID) -> None:
        """Delete all results of a run; none is fine, too.

        Raises:
            Unavailable: they cannot be deleted now.
        """


class FileResultStore:
    """Results in files below one folder, spread over 256 sub-folders by the end of the run's id.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
                there = os.fstat(handle).st_size
                if offset <= there:
                    there += _write(handle, there, memoryview(data)[there - offset :])
                if there < size:
                    return there, False
                if there > size or _hash(handle) != name:
                    os.ftruncate(handle, 0)
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

    @contextlib.contextmanager
    def _unwritable(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in UNWRITABLE:
                raise Unavailable(
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
