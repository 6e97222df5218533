"""The output of a container, copied from the engine's log into the attempt's folder, without doubles or holes.

The log is read from its beginning, and as much as the file has is passed over: so nothing beside the file says how
far it came, and a copier that is killed at any instruction goes on exactly where it was. What the engine has
thrown away meanwhile (``log_size``) is told by the time of the log's first entry; a mark in the output says so.

The engine writes line by line (a longer one in pieces of 16 KiB): what a run prints without an end of line
appears with the end of the line, or of the run. Lines of stdout are in order, and those of stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

from shunter_infrastructure.copied_output import Mark, end_with, open_output, write_whole
from shunter_infrastructure.docker.engine import Engine
from shunter_infrastructure.launcher import LauncherUnavailable

GAP = b"\n[shunter: output is missing here, or doubled: the engine's log was full while nobody read it]\n"
CUT = b"[shunter: the engine may have been away when it ended: what it wrote last may be missing]\n"
#: Seconds until a log whose stream broke is followed again.
_PAUSE = 0.5
#: Seconds between two notes of how far the copy came.
_NOTE = 1.0
_HEADER = 8


class Entries:
    """Takes the engine's frames apart: 8 bytes (stream, length), then a time, a blank and what was written.

    https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Time and bytes of each entry that is whole by now."""
        data, at = self._rest + chunk, 0
        while len(data) - at >= _HEADER:
            end = at + _HEADER + int.from_bytes(data[at + 4 : at + _HEADER], "big")
            if end > len(data):
                break
            moment, _, written = data[at + _HEADER : end].partition(b" ")
            yield moment, written
            at = end
        self._rest = data[at:]


class Copy:
    """One pass over a log, from its beginning.

    Args:
        folder: the attempt's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries = Entries()
        self._mark = Mark.load(folder)
        self._fd = open_output(folder)
        self._skip: int | None = None  # bytes that the file has already; None: not known yet
        self._passed = 0  # bytes of entries that are known, in a log whose beginning is lost
        self._seek = ""  # while such a log is searched: the time of what is known
        self._first = ""
        self._noted = 0.0

    def take(self, chunk: bytes) -> None:
        """Copy what is new of a piece of the log.

        Raises:
            OSError: it cannot be written; what was written counts.
        """
        new, last = bytearray(), ""
        for moment, data in self._entries.feed(chunk):
            last = moment.decode("ascii", "replace")
            if self._skip is None:
                self._begin(last)
            if self._seek:
                if last <= self._seek:
                    self._passed += len(data)
                    continue
                self._resume_after_gap()
            if self._skip:
                passed = min(self._skip, len(data))
                self._skip -= passed
                data = data[passed:]
            new += data
        if new:
            write_whole(self._fd, new)
            self._note(last)

    def _note(self, last: str) -> None:
        """How far it came; now and then, since only a log that has lost its beginning is searched by it."""
        if self._mark is not None and last > self._mark.last:
            self._mark = replace(self._mark, last=last)
            if time.monotonic() - self._noted > _NOTE:
                self._mark.save(self._folder)
                self._noted = time.monotonic()

    def _begin(self, first: str) -> None:
        size = os.fstat(self._fd).st_size
        self._first = first
        if self._mark is None:
            self._put(Mark(first, size, ""))
            self._skip = 0
        elif self._mark.first == first:
            self._skip = size - self._mark.base
        else:
            self._seek, self._skip = self._mark.last or "0", 0

    def _resume_after_gap(self) -> None:
        """The first entry that is surely new, in a log that has lost its beginning."""
        size = os.fstat(self._fd).st_size
        self._put(Mark(self._first, size + len(GAP) - self._passed, self._seek))
        write_whole(self._fd, GAP)
        self._seek = ""

    def _put(self, mark: Mark) -> None:
        self._mark = mark
        mark.save(self._folder)

    def close(self) -> None:
        os.close(self._fd)
        if self._mark is not None:
            with contextlib.suppress(OSError):  # a full disk, or the folder is gone
                self._mark.save(self._folder)


class Outputs:
    """Follows the logs of containers that run, each over a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._followers: dict[Path, asyncio.Task[None]] = {}
        self._ended: set[Path] = set()  # the last copy has begun: nobody may write beside it
        self._closed = False

    def follow(self, container: str, folder: Path) -> None:
        """Copy its output from now on."""
        if folder in self._followers or folder in self._ended or self._closed:
            return
        if folder.exists():
            task = asyncio.create_task(self._follow(container, folder), name=f"output of {container[:12]}")
            self._followers[folder] = task

    async def _follow(self, container: str, folder: Path) -> None:
        while True:
            with contextlib.suppress(LauncherUnavailable, OSError):
                if not await self._pass(container, folder, follow=True):
                    return
            await asyncio.sleep(_PAUSE)

    async def complete(self, container: str, folder: Path, *, unseen: bool) -> None:
        """Copy what is missing of a container that has ended. A stream that was followed may break off a little
        before the end of the log.

        Args:
            unseen: the engine may have been away when it ended: then it has lost what was written in that time, and
                a mark says so.

        Raises:
            LauncherUnavailable: the engine is away, or the output cannot be written here.
        """
        self._ended.add(folder)
        await self._stop(folder)
        try:
            await self._pass(container, folder, follow=False)
            if unseen:
                end_with(folder, CUT)
        except OSError as exc:
            raise LauncherUnavailable(
                f"the output of a run cannot be written to {folder}: {exc.strerror}", "Free space there."
            ) from exc

    async def _pass(self, container: str, folder: Path, *, follow: bool) -> bool:
        """Read the log once; whether there is such a container."""
        params = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": str(int(follow))}
        async with self._engine.stream(f"/containers/{container}/logs", params) as answer:
            if answer.status != 200:
                return False
            async with _copying(folder) as copy:
                async for piece in answer.pieces():
                    copy.take(piece)
        return True

    async def forget(self, folder: Path) -> None:
        """Nobody will ask for it any more."""
        await self._stop(folder)
        self._ended.discard(folder)

    async def _stop(self, folder: Path) -> None:
        task = self._followers.pop(folder, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Follow none any more."""
        self._closed = True
        for folder in list(self._followers):
            await self._stop(folder)


@contextlib.asynccontextmanager
async def _copying(folder: Path) -> AsyncIterator[Copy]:
    copy = Copy(folder)
    try:
        yield copy
    finally:
        copy.close()
