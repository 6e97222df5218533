"""LogStore in files: one append-only file per attempt, idempotent by offset."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol
from uuid import UUID

from shunter_work_pools.contracts.errors import Unavailable

#: Of a disk, folder or process that is not as it should be; anything else is a bug.
_UNWRITABLE = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
        *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EMFILE, errno.ENFILE),
    }
)


class LogStore(Protocol):
    """Where the output of attempts is kept. All calls block: call them from a thread."""

    def append(self, run: UUID, attempt: int, offset: int, data: bytes | memoryview) -> int:
        """Write ``data`` at ``offset``; the size afterwards.

        What is there already is not written again, and data beyond the end is not written at all: the
        answer tells where to go on.

        Raises:
            Unavailable: it cannot be written now (a full disk); what was written before stays.
        """

    def size(self, run: UUID, attempt: int) -> int:
        """Bytes that are there; 0 for an attempt that wrote nothing."""

    def read(self, run: UUID, attempt: int, offset: int, limit: int) -> bytes:
        """Up to ``limit`` bytes from ``offset``."""

    def sync(self, run: UUID, attempt: int) -> None:
        """Make what is there durable."""

    def delete(self, run: UUID, attempt: int) -> None:
        """Delete what is there; nothing is fine, too.

        Raises:
            Unavailable: it cannot be deleted now.
        """


class FileLogStore:
    """Logs below one folder, spread over 256 sub-folders by the end of the run's id.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, run: UUID, attempt: int) -> Path:
        return self.folder / run.hex[-2:] / f"{run}.{attempt}"

    def append(self, run: UUID, attempt: int, offset: int, data: bytes | memoryview) -> int:
        """See :class:`LogStore`."""
        path = self._path(run, attempt)
        try:
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(handle).st_size
                if offset > size:
                    return size
                rest = memoryview(data)[size - offset :]
                while rest:
                    # At its place and not at the end: two uploads of the same bytes do no harm.
                    written = os.pwrite(handle, rest, size)
                    size, rest = size + written, rest[written:]
                return size
            finally:
                os.close(handle)
        except OSError as exc:
            if exc.errno in _UNWRITABLE:
                raise Unavailable(
                    f"the log folder {self.folder} cannot be written: {exc.strerror}",
                    "Free space there; agents keep their logs until then.",
                ) from exc
            raise

    def size(self, run: UUID, attempt: int) -> int:
        """See :class:`LogStore`."""
        try:
            return self._path(run, attempt).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, run: UUID, attempt: int, offset: int, limit: int) -> bytes:
        """See :class:`LogStore`."""
        try:
            handle = os.open(self._path(run, attempt), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(handle, limit, offset)
        finally:
            os.close(handle)

    def sync(self, run: UUID, attempt: int) -> None:
        """See :class:`LogStore`."""
        try:
            handle = os.open(self._path(run, attempt), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def delete(self, run: UUID, attempt: int) -> None:
        """See :class:`LogStore`."""
        try:
            self._path(run, attempt).unlink(missing_ok=True)
        except OSError as exc:
            if exc.errno in _UNWRITABLE:
                raise Unavailable(
                    f"a log in {self.folder} cannot be deleted: {exc.strerror}",
                    "Check the folder's permissions and its disk.",
                ) from exc
            raise
