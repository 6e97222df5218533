"""The output of a pod's container, copied from the kubelet's log into the attempt's folder, without doubles or holes.

The log comes through the API server: ``TIME BLANK LINE`` for each line, however long; a last line without an end has
none here either. It is read from its beginning, and as much as the file has is passed over.

When the log has grown over a size (10 MiB), the kubelet begins a new one, and only that one can be read then. A new
one is known by the time of its first line. Where it goes on is found by a line that was copied before, by its time to
the nanosecond and its text, never by the order of times: a node's clock may be set. What cannot be found is a gap, and
a mark in the output says so. A stream that is followed goes over to the new log by itself, but the kubelet may leave
out what was written to the old one at that very moment, and nothing in the API could tell: that such a moment
was, is noted at the end of the output.

At most ``MOST_OPEN`` logs are followed at once. The others wait: all of them together are read at most once a second,
in turn, and each is read whole at its end.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from shunter_infrastructure.copied_output import OUTPUT, Mark, end_with, open_output, write_whole
from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_work_pools.contracts.agents import Output

CONTAINER = "run"
#: Logs that are followed at once: each is a connection, here, at the API server and at the kubelet.
MOST_OPEN = 200
GAP = (
    b"\n[shunter: output is missing here, or doubled: the kubelet had begun a new log while nobody read it]\n"
)
CUT = b"\n[shunter: the log was gone before all of it was read: what it wrote last may be missing]\n"
TURNED = (
    b"\n[shunter: the kubelet began a new log while it was read: what was written just then may be missing]\n"
)
#: Seconds until a log whose stream ended is followed again. Of a container that ended, the launcher hears sooner.
_PAUSE = 5.0
#: Seconds between two reads of logs that wait, whichever they are.
_TURN = 1.0
#: Seconds for which the log of what has ended is asked for, while the node does not give it.
_PATIENCE = 30.0
#: A new log needs some growth of the old one, and the kubelet looks every 10 s: after so many bytes, and so many
#: seconds later, whether there is a new one is asked.
_CHECK_BYTES, _CHECK_AFTER = 1 << 20, 5.0
#: Seconds between two notes of how far the copy came.
_NOTE = 1.0
#: https://pkg.go.dev/k8s.io/cri-client/pkg/logs: RFC3339NanoFixed
_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d) ")
_LONGEST_TIME = 36


class Pod(NamedTuple):
    """Whose log."""

    namespace: str
    name: str


class Answer(Protocol):
    """The answer to a request, as it comes."""

    status: int

    def pieces(self) -> AsyncIterator[bytes]:
        """Its body.

        Raises:
            LauncherUnavailable: it was broken off.
        """


class Api(Protocol):
    """What is needed of the API server."""

    def stream(self, path: str, params: Mapping[str, str]) -> AbstractAsyncContextManager[Answer]:
        """A GET that may last for days, over a connection of its own.

        Raises:
            LauncherUnavailable: the API server is away.
        """


class _NodeAway(Exception):
    """The kubelet does not give the log; the message has what was said."""


class _NoLog(Exception):
    """There is no such pod, or it has no log and never will."""


class _OtherLog(Exception):
    """The log is not the one that was copied from before."""


class Lines:
    """Takes the kubelet's stream apart."""

    def __init__(self) -> None:
        self._rest = b""
        self._within = False  # a line whose time has come already

    def feed(self, chunk: bytes) -> Iterator[tuple[str, bytes]]:
        """Time and bytes of each line as far as it is there; without time: more of the line before.

        Raises:
            _NodeAway: what comes is no log, but what the kubelet has to say.
        """
        data, at = (self._rest + chunk if self._rest else chunk), 0
        self._rest = b""
        while at < len(data):
            moment = ""
            if not self._within:
                found = _TIME.match(data, at)
                if found is None:
                    if len(data) - at >= _LONGEST_TIME or b"\n" in data[at:]:
                        raise _NodeAway(data[at : at + 500].decode(errors="replace").strip())
                    self._rest = data[at:]
                    return
                moment, at = data[at : found.end() - 1].decode(), found.end()
            end = data.find(b"\n", at) + 1
            self._within = not end
            end = end or len(data)
            if end > at or moment:
                yield moment, data[at:end]
            at = end

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            _NodeAway: see :meth:`feed`.
        """
        if self._rest and not self._within:
            raise _NodeAway(self._rest.decode(errors="replace").strip())


@dataclass(frozen=True)
class Place(Mark):
    """How file and log belong together.

    Attributes:
        last: time of the last line that was copied, or of an earlier one.
        at: where in the file that line begins.
        turns: how many new logs the kubelet began while they were followed.
    """

    at: int = 0
    turns: int = 0


class Copy:
    """One pass over a log, from its beginning.

    Args:
        folder: the attempt's.
        known: there is output of before its log was found; until it is settled where that is, nothing is copied.
    """

    def __init__(self, folder: Path, *, known: bool = False) -> None:
        self._folder = folder
        self._lines = Lines()
        self._fd = open_output(folder)
        self.place = Place.load(folder)
        self._must_settle = known and self.place is None
        _mend(self._fd, self.place)
        self._size = os.fstat(self._fd).st_size
        self._passed: int | None = None  # bytes of the log; None: it has none yet
        self._noted = 0.0

    def take(self, chunk: bytes) -> None:
        """Copy what is new of a piece of the log.

        Raises:
            _OtherLog: nothing was copied, see :class:`Search`.
            _NodeAway: it is no log.
            OSError: it cannot be written; what was written counts.
        """
        new, last, at = bytearray(), "", 0
        try:
            for moment, data in self._lines.feed(chunk):
                if self._passed is None:
                    self._begin(moment)
                    self._passed = 0
                where = self._base + self._passed
                self._passed += len(data)
                fresh = where + len(data) - self._size - len(new)
                if fresh > 0:
                    new += data[-fresh:]
                if moment:
                    last, at = moment, where
        finally:
            if new:
                write_whole(self._fd, new)
                self._size += len(new)
            if last:
                self._note(last, at)

    def _begin(self, first: str) -> None:
        if self._must_settle:
            raise _OtherLog
        if self.place is None:
            self._put(Place(first, self._size, ""))
        elif not self.place.first:  # it was empty
            self._put(replace(self.place, first=first, base=self._size))
        elif self.place.first != first:
            raise _OtherLog

    @property
    def _base(self) -> int:
        assert self.place is not None
        return self.place.base

    def _note(self, last: str, at: int) -> None:
        """How far it came; now and then, since only the place in another log is found by it."""
        assert self.place is not None
        self.place = replace(self.place, last=last, at=at)
        if time.monotonic() - self._noted > _NOTE:
            self.place.save(self._folder)
            self._noted = time.monotonic()

    def _put(self, place: Place) -> None:
        self.place = place
        place.save(self._folder)

    def finish(self) -> None:
        """The log was read to its end.

        Raises:
            _OtherLog: it is empty, and the one before was not.
            _NodeAway: it was no log.
        """
        self._lines.finish()
        if self._passed is None and (self._must_settle or (self.place is not None and self.place.first)):
            raise _OtherLog

    def close(self) -> None:
        os.close(self._fd)
        if self.place is not None:
            with contextlib.suppress(OSError):  # a full disk, or the folder is gone
                self.place.save(self._folder)


def _mend(fd: int, place: Place | None) -> None:
    """Write the rest of a gap's mark: its place is noted before it is written."""
    if place is not None and (missing := place.base - os.fstat(fd).st_size) > 0:
        write_whole(fd, GAP[-missing:])


class Search:
    """One pass over a log that is not the one of before, or of which another agent has copied: where it goes on.

    Args:
        folder: the attempt's.
        handed_over: what the server has of it, if nothing of it was copied here.
    """

    def __init__(self, folder: Path, handed_over: Output | None) -> None:
        self._folder = folder
        self._lines = Lines()
        self._fd = open_output(folder)
        self._place = Place.load(folder)
        _mend(self._fd, self._place)
        self._size = os.fstat(self._fd).st_size
        self._tail = _Tail(handed_over) if handed_over and self._place is None else None
        self._first: str | None = None
        self._passed = 0
        self._base: int | None = None  # where in the file this log begins

    def take(self, chunk: bytes) -> None:
        """Look at a piece of the log.

        Raises:
            _NodeAway: it is no log.
        """
        for moment, data in self._lines.feed(chunk):
            if self._first is None:
                self._first = moment
            if self._tail is not None:
                self._tail.take(data)
            elif self._base is None and self._place and moment and moment == self._place.last:
                self._compare(self._place, data)
            self._passed += len(data)

    def _compare(self, place: Place, data: bytes) -> None:
        known = os.pread(self._fd, len(data), place.at)
        if known and data.startswith(known):
            self._base = place.at - self._passed

    @property
    def lost(self) -> bool:
        """What was known is not in it."""
        if self._tail is not None:
            return not self._tail.in_place and self._tail.found is None
        return self._place is not None and self._base is None

    def settle(self) -> None:
        """The log was read to its end: write down where it goes on, and mark what is missing before it.

        Raises:
            _NodeAway: it was no log.
            OSError: it cannot be written.
        """
        self._lines.finish()
        first = self._first or ""
        if self._tail is not None:
            self._take_over(first, self._tail)
        elif self._place is None:
            pass  # it was another agent's, that had nothing of it
        elif self._base is not None or not self._first:
            base = self._size if self._base is None else self._base
            replace(self._place, first=first, base=base, turns=self._place.turns + 1).save(self._folder)
        else:
            self._mark_gap(first, self._place.turns)

    def _take_over(self, first: str, tail: _Tail) -> None:
        """Put the file where the server's copy ends."""
        if tail.in_place:
            os.ftruncate(self._fd, 0)
            Place(first, 0, "").save(self._folder)
            return
        os.ftruncate(self._fd, tail.size)
        self._size = tail.size
        if tail.found is not None:
            Place(first, tail.size - tail.found, "", turns=1).save(self._folder)
        else:
            self._mark_gap(first, 0)

    def _mark_gap(self, first: str, turns: int) -> None:
        place = Place(first, self._size + len(GAP), "", turns=turns)
        place.save(self._folder)
        _mend(self._fd, place)

    def close(self) -> None:
        os.close(self._fd)


class _Tail:
    """Looks for the end of the server's copy in a log.

    Attributes:
        size: how much the server has.
        in_place: the log has the same bytes at the same place: its beginning is the run's.
        found: where in the log they end, if they are elsewhere and there only.
    """

    def __init__(self, handed_over: Output) -> None:
        self.size = handed_over.size
        self._tail = base64.b64decode(handed_over.tail)
        self.in_place = False
        self.found: int | None = None
        self._several = False
        self._window = b""
        self._passed = 0

    def take(self, data: bytes) -> None:
        begin = self._passed - len(self._window)
        window = self._window + data
        self._passed += len(data)
        due = self.size - len(self._tail) - begin
        if 0 <= due <= len(window) - len(self._tail) and window.startswith(self._tail, due):
            self.in_place = True
        at = -1 if self._several else window.find(self._tail)
        while at >= 0 and not self._several:
            end = begin + at + len(self._tail)
            self._several = self.found is not None and self.found != end
            self.found = None if self._several else end
            at = window.find(self._tail, at + 1)
        self._window = window[-len(self._tail) + 1 :] if len(self._tail) > 1 else b""


@dataclass(frozen=True)
class _One:
    """What is followed."""

    pod: Pod
    folder: Path
    handed_over: Output | None


class Outputs:
    """Copies the logs of pods, each into the folder of its attempt.

    Args:
        api: the API server.
        most_open: logs that are followed at once.
    """

    def __init__(self, api: Api, *, most_open: int = MOST_OPEN) -> None:
        self._api = api
        self._most_open = most_open
        self._followers: dict[Path, asyncio.Task[None]] = {}
        self._waiting: dict[Path, _One] = {}
        self._turns: asyncio.Task[None] | None = None
        self._read: tuple[Path, asyncio.Task[None]] | None = None  # whose turn it is
        self._closed = False

    def follow(self, pod: Pod, folder: Path, handed_over: Output | None = None) -> None:
        """Copy the output of a container that has begun, from now on.

        Args:
            handed_over: what the server has of it from the agent before; the same in every call.
        """
        if self._closed or folder in self._followers or folder in self._waiting or not folder.exists():
            return
        self._waiting[folder] = _One(pod, folder, handed_over)
        self._fill()

    def _fill(self) -> None:
        """Follow as many as may be; let the others have their turns."""
        while self._waiting and len(self._followers) < self._most_open and not self._closed:
            folder = next((one for one in self._waiting if not self._is_read(one)), None)
            if folder is None:
                break
            one = self._waiting.pop(folder)
            self._followers[folder] = asyncio.create_task(self._follow(one), name=f"output of {one.pod.name}")
        if self._waiting and self._turns is None and not self._closed:
            self._turns = asyncio.create_task(self._take_turns(), name="outputs in turn")

    def _is_read(self, folder: Path) -> bool:
        return self._read is not None and self._read[0] == folder

    async def _follow(self, one: _One) -> None:
        while True:
            with contextlib.suppress(LauncherUnavailable, OSError, _NodeAway):
                try:
                    await self._copy(one, follow=True)
                except _OtherLog:
                    await self._settle(one)
                    continue
                except _NoLog:
                    return
            await asyncio.sleep(_PAUSE)

    async def _take_turns(self) -> None:
        while self._waiting:
            folder, one = next(iter(self._waiting.items()))
            self._waiting[folder] = self._waiting.pop(folder)
            task = asyncio.create_task(self._once(one), name=f"output of {one.pod.name}")
            self._read = folder, task
            await asyncio.wait([task])
            self._read = None
            self._fill()
            await asyncio.sleep(_TURN)
        self._turns = None

    async def _once(self, one: _One) -> None:
        with contextlib.suppress(LauncherUnavailable, OSError, _NodeAway, _NoLog):
            await self._read_whole(one)

    async def complete(self, pod: Pod, folder: Path, handed_over: Output | None = None) -> None:
        """Copy what is missing of a container that has ended, or say at the end of the output that it cannot be had.

        A node that does not answer is waited for, for half a minute at most.

        Args:
            handed_over: as with :meth:`follow`.

        Raises:
            LauncherUnavailable: the API server is away, or the output cannot be written here.
        """
        await self.forget(folder)
        try:
            await self._bring_home(_One(pod, folder, handed_over))
        except OSError as exc:
            raise LauncherUnavailable(
                f"the output of a run cannot be written to {folder}: {exc.strerror}", "Free space there."
            ) from exc

    async def _bring_home(self, one: _One) -> None:
        until = time.monotonic() + _PATIENCE
        try:
            while not await self._is_home(one):
                if time.monotonic() > until:
                    raise _NoLog
                await asyncio.sleep(_TURN)
        except _NoLog:
            end_with(one.folder, CUT)
        place = Place.load(one.folder)
        if place is not None and place.turns:
            end_with(one.folder, TURNED)

    async def _is_home(self, one: _One) -> bool:
        """Whether all of it is here now. A small output that was followed is only compared with the log's end."""
        try:
            if 0 < _size(one.folder) < _CHECK_BYTES and await self._ends_alike(one, read=False):
                return True
            await self._read_whole(one)
            return await self._ends_alike(one, read=True)
        except _NodeAway:
            return False

    async def _ends_alike(self, one: _One, *, read: bool) -> bool:
        """Whether the copy ends as the log does. No stream that ends says that it was whole: the API server hides
        it when the kubelet breaks off.

        Args:
            read: the log was read whole just now.
        """
        lines, found = Lines(), list[tuple[str, bytes]]()
        async with self._log(one.pod, {"tailLines": "1"}) as answer:
            async for piece in answer.pieces():
                found += lines.feed(piece)
            lines.finish()
        place = Place.load(one.folder)
        if not found or place is None:
            return not found and (place is None or not place.first)
        end = b"".join(data for _, data in found)
        begin = _size(one.folder) - len(end)
        with (one.folder / OUTPUT).open("rb") as file:
            file.seek(max(0, begin))
            if file.read() != end:
                return False
        # What is given for the last line may be the last piece of one that was long.
        return (found[0][0], begin) == (place.last, place.at) or (read and begin > place.at)

    async def _read_whole(self, one: _One) -> None:
        while True:
            try:
                return await self._copy(one, follow=False)
            except _OtherLog:
                await self._settle(one)

    async def _copy(self, one: _One, *, follow: bool) -> None:
        """Read the log once, to its end, or until it is another."""
        checking: asyncio.Task[None] | None = None
        known = one.handed_over is not None and one.handed_over.size > 0
        async with self._log(one.pod, {"follow": "true"} if follow else {}) as answer:
            with contextlib.closing(Copy(one.folder, known=known)) as copy:
                try:
                    async with asyncio.timeout(None) as alarm:
                        came = 0
                        async for piece in answer.pieces():
                            copy.take(piece)
                            came += len(piece)
                            if follow and came >= _CHECK_BYTES and (checking is None or checking.done()):
                                came = 0
                                checking = asyncio.create_task(self._check(one.pod, copy, alarm))
                except TimeoutError as exc:
                    raise _OtherLog from exc
                finally:
                    if checking is not None:
                        checking.cancel()
                copy.finish()

    async def _check(self, pod: Pod, copy: Copy, alarm: asyncio.Timeout) -> None:
        """Break the stream off if its log is not the one that is written to any more."""
        await asyncio.sleep(_CHECK_AFTER)
        first = bytearray()
        with contextlib.suppress(LauncherUnavailable, _NodeAway, _NoLog):
            async with self._log(pod, {"limitBytes": str(_LONGEST_TIME)}) as answer:
                async for piece in answer.pieces():
                    first += piece
        found = _TIME.match(first)
        if found and copy.place and found[0].decode().strip() != copy.place.first:
            alarm.reschedule(asyncio.get_running_loop().time())

    async def _settle(self, one: _One) -> None:
        """Find where a log goes on that is another than before. That it cannot be found is believed of two reads:
        one may have been broken off."""
        for again in (True, False):
            async with self._log(one.pod, {}) as answer:
                with contextlib.closing(Search(one.folder, one.handed_over)) as search:
                    async for piece in answer.pieces():
                        search.take(piece)
                    if not (search.lost and again):
                        search.settle()
                        return
            await asyncio.sleep(_TURN)

    @contextlib.asynccontextmanager
    async def _log(self, pod: Pod, params: Mapping[str, str]) -> AsyncIterator[Answer]:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/log"
        async with self._api.stream(path, {"container": CONTAINER, "timestamps": "true", **params}) as answer:
            if answer.status != 200:
                _refuse(answer.status, b"".join([piece async for piece in answer.pieces()]))
            yield answer

    async def forget(self, folder: Path) -> None:
        """Follow it no more."""
        self._waiting.pop(folder, None)
        task = self._followers.pop(folder, None)
        if self._read is not None and self._read[0] == folder:
            task = self._read[1]
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._fill()

    async def close(self) -> None:
        """Follow none any more."""
        self._closed = True
        if self._turns is not None:
            self._turns.cancel()
        for folder in [*self._followers, *self._waiting]:
            await self.forget(folder)


def _size(folder: Path) -> int:
    try:
        return (folder / OUTPUT).stat().st_size
    except FileNotFoundError:
        return 0


def _refuse(status: int, body: bytes) -> None:
    """Tell apart why there is no log."""
    said, about = body[:500].decode(errors="replace").strip(), ""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(body)
        said, about = str(told["message"]), str(told.get("details", {}).get("kind"))
    if status in (401, 403):
        raise LauncherUnavailable(
            f"the API server does not give the log of a pod: {said}", "Allow get on pods/log there."
        )
    if (
        status == 404 and about == "pods"
    ):  # "pods/log": a kubelet that was started just now does not know it yet
        raise _NoLog(said)
    raise _NodeAway(said)
