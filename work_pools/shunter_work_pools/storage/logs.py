"""LogStore in files: one append-only file per attempt, idempotent by offset.

Offsets are those of the attempt's output as it was written. Where some of it is missing, the file holds a
mark, and another one beside it says for how much that stands (:mod:`log_gaps`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from uuid import UUID

from shunter_work_pools.contracts.errors import Unavailable
from shunter_work_pools.storage import log_gaps
from shunter_work_pools.storage.log_gaps import Extent

#: Of a disk, folder or process that is not as it should be; anything else is a bug.
UNWRITABLE = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
        *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EMFILE, errno.ENFILE),
    }
)


class LogStore(Protocol):
    """Where the output of attempts is kept. All calls block: call them from a thread."""

    def append(self, run: UUID, attempt: int, offset: int, data: bytes | memoryview) -> int:
        """Write ``data``, which is the output from ``offset`` on; up to which offset it is known afterwards.

        What is there already is not written again, and data beyond the end is not written at all: the
        answer tells where to go on.

        Raises:
            Unavailable: it cannot be written now (a full disk); what was written before stays.
        """

    def skip(self, run: UUID, attempt: int, offset: int, length: int) -> int:
        """``length`` bytes of output from ``offset`` on are lost; the offset to go on from.

        What of them is there already stays; for the rest there is one mark. As with :meth:`append`, what
        lies beyond the end is not taken.

        Raises:
            Unavailable: it cannot be written now.
        """

    def cut(self, run: UUID, attempt: int, limit: int) -> None:
        """It has reached its limit, in bytes: a mark says so, durably, and nothing more is taken.

        Raises:
            Unavailable: it cannot be written now.
        """

    def extent(self, run: UUID, attempt: int) -> Extent:
        """How far it has come; nothing of an attempt that wrote nothing."""

    def tail(self, run: UUID, attempt: int, limit: int) -> tuple[int, bytes]:
        """Offset in the output up to which it is known, and its last bytes before that: ``limit`` of them at the
        most, fewer where some are missing (then those after the last mark)."""

    def read(self, run: UUID, attempt: int, start: int, limit: int) -> bytes:
        """Up to ``limit`` stored bytes, marks among them, from the ``start``-th on."""

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
        with self._writing(run, attempt) as log:
            size, _, _, cut = log.extent
            if offset > size or cut:
                return size
            rest = memoryview(data)[size - offset :]
            log.add(rest)
            return size + len(rest)

    def skip(self, run: UUID, attempt: int, offset: int, length: int) -> int:
        """See :class:`LogStore`."""
        with self._writing(run, attempt) as log:
            size, _, _, cut = log.extent
            if offset > size or offset + length <= size or cut:
                return size
            log.mark(offset + length - size)
            return offset + length

    def cut(self, run: UUID, attempt: int, limit: int) -> None:
        """See :class:`LogStore`."""
        with self._writing(run, attempt) as log:
            if not log.extent.cut:
                log.mark_cut(limit)

    @contextlib.contextmanager
    def _writing(self, run: UUID, attempt: int) -> Iterator[_Log]:
        """The log, made if need be, ours alone: an upload that was given up may still be at work."""
        path = self._path(run, attempt)
        try:
            handle = _open_for_writing(path)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield _Log(path, handle)
            finally:
                os.close(handle)
        except OSError as exc:
            if exc.errno in UNWRITABLE:
                raise Unavailable(
                    f"the log folder {self.folder} cannot be written: {exc.strerror}",
                    "Free space there; agents keep their logs until then.",
                ) from exc
            raise

    def extent(self, run: UUID, attempt: int) -> Extent:
        """See :class:`LogStore`."""
        path = self._path(run, attempt)
        try:
            stored = path.stat().st_size
        except FileNotFoundError:
            return Extent(0, 0, 0)
        # In this order: a gap that is not among those of now has no mark in what there was before.
        return log_gaps.extent(stored, log_gaps.read(path))

    def tail(self, run: UUID, attempt: int, limit: int) -> tuple[int, bytes]:
        """See :class:`LogStore`."""
        path = self._path(run, attempt)
        try:
            stored = path.stat().st_size
        except FileNotFoundError:
            return 0, b""
        gaps = log_gaps.read(path)
        begin = max([stored - limit, 0, *(min(gap.end, stored) for gap in gaps if gap.at < stored)])
        return log_gaps.extent(stored, gaps).size, self.read(run, attempt, begin, stored - begin)

    def read(self, run: UUID, attempt: int, start: int, limit: int) -> bytes:
        """See :class:`LogStore`."""
        try:
            handle = os.open(self._path(run, attempt), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(handle, limit, start)
        finally:
            os.close(handle)

    def sync(self, run: UUID, attempt: int) -> None:
        """See :class:`LogStore`. (Gaps are durable as soon as they are there.)"""
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
        path = self._path(run, attempt)
        try:
            path.unlink(missing_ok=True)
            log_gaps.path_of(path).unlink(missing_ok=True)
        except OSError as exc:
            if exc.errno in UNWRITABLE:
                raise Unavailable(
                    f"a log in {self.folder} cannot be deleted: {exc.strerror}",
                    "Check the folder's permissions and its disk.",
                ) from exc
            raise


class _Log:
    """A log that is being written; what a crash left half done of a gap is brought to its end first."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path, self._handle = path, handle
        self._stored = os.fstat(handle).st_size
        found = log_gaps.read(path)
        # After a loss of power the log may be shorter than its gaps know: they are told again.
        self._gaps = [gap for gap in found if gap.at <= self._stored]
        if len(self._gaps) < len(found):
            log_gaps.write(path, kept=len(self._gaps))
        if self._gaps and self._gaps[-1].end > self._stored:
            last = self._gaps[-1]
            self.add(memoryview(last.mark)[self._stored - last.at :])

    @property
    def extent(self) -> Extent:
        return log_gaps.extent(self._stored, self._gaps)

    def add(self, rest: memoryview) -> None:
        """Write at the end."""
        while rest:
            written = os.pwrite(self._handle, rest, self._stored)
            self._stored, rest = self._stored + written, rest[written:]

    def mark(self, length: int) -> None:
        """Say that the next ``length`` bytes of output are missing."""
        self._put(log_gaps.make(self._stored, length, line_begins=self._line_begins))

    def mark_cut(self, limit: int) -> None:
        """Say that it ends here, having reached its limit."""
        self._put(log_gaps.make_cut(self._stored, limit, line_begins=self._line_begins))
        os.fsync(self._handle)

    @property
    def _line_begins(self) -> bool:
        before = os.pread(self._handle, 1, self._stored - 1) if self._stored else b"\n"
        return before == b"\n"

    def _put(self, gap: log_gaps.Gap) -> None:
        log_gaps.write(self._path, kept=len(self._gaps), more=[gap])
        self._gaps.append(gap)
        self.add(memoryview(gap.mark))


def _open_for_writing(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, flags, 0o600)
