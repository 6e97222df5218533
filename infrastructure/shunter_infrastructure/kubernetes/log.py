"""The kubelet's log of a container, and how it becomes a file that is the same as what the container wrote.

It comes as ``TIME BLANK LINE`` for each line, however long; a last line without an end has none here either. It is read
from its beginning, and as much as the file has is passed over.

When the log has grown over a size (10 MiB), the kubelet begins a new one, and only that one can be read then. A new
one is known by the time of its first line. Where it goes on is found by a line that was copied before, by its time to
the nanosecond and its text, never by the order of times: a node's clock may be set. What cannot be found is a gap, and
a mark in the output says so.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shunter_infrastructure.copied_output import OUTPUT, Mark, open_output, write_whole
from shunter_work_pools.contracts.agents import Output

GAP = (
    b"\n[shunter: output is missing here, or doubled: the kubelet had begun a new log while nobody read it]\n"
)
CUT = b"\n[shunter: the log was gone before all of it was read: what it wrote last may be missing]\n"
TURNED = (
    b"\n[shunter: the kubelet began a new log while it was read: what was written just then may be missing]\n"
)
#: https://pkg.go.dev/k8s.io/cri-client/pkg/logs: RFC3339NanoFixed
TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d) ")
LONGEST_TIME = 36
#: Of the end of the server's copy: what no mask covers, and what one may; and how many bytes of the first are enough.
_PLAIN, _MASKED, _ENOUGH = re.compile(rb"[^*]+"), re.compile(rb"\\\*"), 16
#: Seconds between two notes of how far the copy came.
_NOTE = 1.0


class NodeAway(Exception):
    """The kubelet does not give the log; the message has what was said."""


class NoLog(Exception):
    """There is no such pod, or it has no log and never will."""


class OtherLog(Exception):
    """The log is not the one that was copied from before."""


class Unwritable(Exception):
    """The file cannot be written; it was caused by an OSError. (One itself would be taken for the connection's.)"""


class Lines:
    """Takes the kubelet's stream apart."""

    def __init__(self) -> None:
        self._rest = b""
        self._within = False  # a line whose time has come already

    def feed(self, chunk: bytes) -> Iterator[tuple[str, bytes]]:
        """Time and bytes of each line as far as it is there; without time: more of the line before.

        Raises:
            NodeAway: what comes is no log, but what the kubelet has to say.
        """
        data, at = (self._rest + chunk if self._rest else chunk), 0
        self._rest = b""
        while at < len(data):
            moment = ""
            if not self._within:
                found = TIME.match(data, at)
                if found is None and (len(data) - at >= LONGEST_TIME or b"\n" in data[at:]):
                    raise NodeAway(data[at : at + 500].decode(errors="replace").strip())
                if found is None or found.end() == len(data):
                    self._rest = data[at:]
                    return
                moment, at = data[at : found.end() - 1].decode(), found.end()
            end = data.find(b"\n", at) + 1
            self._within = not end
            end = end or len(data)
            yield moment, data[at:end]
            at = end

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            NodeAway: see :meth:`feed`.
        """
        if self._rest and not TIME.fullmatch(self._rest):
            raise NodeAway(self._rest.decode(errors="replace").strip())


@dataclass(frozen=True)
class Place(Mark):
    """How file and log belong together.

    Attributes:
        last: time of the last line that was copied, or of an earlier one.
        at: where in the file that line begins.
        turns: how many new logs the kubelet began while they were followed.
        end: where in the file ``notes`` begin, once nothing more is copied; -1 before.
        notes: what is said after the output.
    """

    at: int = 0
    turns: int = 0
    end: int = -1
    notes: str = ""


class Copy:
    """One pass over a log, from its beginning.

    Args:
        folder: the attempt's.
        known: there is output of before its log was found; until it is settled where that is, nothing is copied.

    Attributes:
        passed: bytes of output that came.
    """

    def __init__(self, folder: Path, *, known: bool = False) -> None:
        self._folder = folder
        self._lines = Lines()
        self._fd = open_output(folder)
        self.place = Place.load(folder)
        self._must_settle = known and self.place is None
        _mend(self._fd, self.place)
        self._size = os.fstat(self._fd).st_size
        self._begun = False
        self.passed = 0
        self._noted = time.monotonic()
        self._saved = self.place

    def take(self, chunk: bytes) -> None:
        """Copy what is new of a piece of the log.

        Raises:
            OtherLog: nothing was copied, see :class:`Search`.
            NodeAway: it is no log.
            OSError: it cannot be written; what was written counts.
        """
        new, last, at = bytearray(), "", 0
        try:
            for moment, data in self._lines.feed(chunk):
                if not self._begun:
                    self._begin(moment)
                where = self._start + self.passed
                self.passed += len(data)
                fresh = where + len(data) - self._size
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
            raise OtherLog
        if self.place is None:
            self._put(Place(first, self._size, ""))
        elif not self.place.first:  # it was empty
            self._put(replace(self.place, first=first, base=self._size))
        elif self.place.first != first:
            raise OtherLog
        assert self.place is not None
        self._start, self._begun = self.place.base, True

    def go_over(self, first: str, base: int) -> None:
        """What comes is of another log by now.

        Args:
            first: time of its first line.
            base: where in the file it begins.

        Raises:
            OSError: that cannot be written down.
        """
        assert self.place is not None
        self._put(replace(self.place, first=first, base=base, turns=self.place.turns + 1))

    def _note(self, last: str, at: int) -> None:
        """How far it came; now and then, since only the place in another log is found by it."""
        assert self.place is not None
        self.place = replace(self.place, last=last, at=at)
        if time.monotonic() - self._noted > _NOTE:
            self._put(self.place)

    def note(self) -> None:
        """Write down how far it came, if that is not yet.

        Raises:
            OSError: it cannot be written.
        """
        if self.place is not None and self.place != self._saved:
            self._put(self.place)

    def _put(self, place: Place) -> None:
        place.save(self._folder)
        self.place = self._saved = place
        self._noted = time.monotonic()

    def finish(self) -> None:
        """The log was read to its end.

        Raises:
            OtherLog: it is empty, and the one before was not.
            NodeAway: it was no log.
        """
        self._lines.finish()
        if not self._begun and (self._must_settle or (self.place is not None and self.place.first)):
            raise OtherLog

    def close(self) -> None:
        os.close(self._fd)
        with contextlib.suppress(OSError):  # a full disk, or the folder is gone
            self.note()


def _mend(fd: int, place: Place | None) -> None:
    """Write the rest of a gap's mark: its place is noted before it is written."""
    if place is not None and (missing := place.base - os.fstat(fd).st_size) > 0:
        write_whole(fd, GAP[-missing:])


class Search:
    """One pass over a log that is not the one of before, or of which another agent has copied: where it goes on.

    Args:
        folder: the attempt's.
        handed_over: what the server has of it, if nothing of it was copied here.

    Attributes:
        first: time of its first line; empty: it has none.
        base: where in the file it begins, if that is known by a line that is in both.
    """

    def __init__(self, folder: Path, handed_over: Output | None) -> None:
        self._folder = folder
        self._lines = Lines()
        self._place = Place.load(folder)
        self._tail = _Tail(handed_over) if handed_over and self._place is None else None
        self._passed = 0
        self.first = ""
        self.base: int | None = None

    def take(self, chunk: bytes) -> None:
        """Look at a piece of the log.

        Raises:
            NodeAway: it is no log.
            OSError: the file cannot be read.
        """
        for moment, data in self._lines.feed(chunk):
            self.first = self.first or moment
            if self._tail is not None:
                self._tail.take(data)
            elif self.base is None and self._place and moment and moment == self._place.last:
                self._compare(self._place, data)
            self._passed += len(data)

    def _compare(self, place: Place, data: bytes) -> None:
        with (self._folder / OUTPUT).open("rb") as file:
            known = os.pread(file.fileno(), len(data), place.at)
        if known and data.startswith(known):
            self.base = place.at - self._passed

    def finish(self) -> None:
        """The log was read to its end.

        Raises:
            NodeAway: it was no log.
        """
        self._lines.finish()

    @property
    def lost(self) -> bool:
        """What was known is not in it."""
        if self._tail is not None:
            return not self._tail.in_place and self._tail.found is None
        return self._place is not None and self.base is None

    def settle(self) -> None:
        """Write down where it goes on, and mark what is missing before it.

        Raises:
            OSError: it cannot be written.
        """
        fd = open_output(self._folder)
        try:
            _mend(fd, self._place)
            if self._tail is not None:
                self._take_over(fd, self._tail)
            elif self._place is not None:
                self._go_on(fd, self._place)
        finally:
            os.close(fd)

    def _go_on(self, fd: int, place: Place) -> None:
        size = os.fstat(fd).st_size
        if self.lost and self.first:
            self._mark_gap(fd, size, place.turns)
        else:
            base = size if self.base is None else self.base
            replace(place, first=self.first, base=base, turns=place.turns + 1).save(self._folder)

    def _take_over(self, fd: int, tail: _Tail) -> None:
        """Put the file where the server's copy ends."""
        os.ftruncate(fd, 0 if tail.in_place else tail.size)
        if tail.in_place:
            Place(self.first, 0, "").save(self._folder)
        elif tail.found is not None:
            Place(self.first, tail.size - tail.found, "", turns=1).save(self._folder)
        else:
            self._mark_gap(fd, tail.size, 0)

    def _mark_gap(self, fd: int, size: int, turns: int) -> None:
        place = Place(self.first, size + len(GAP), "", turns=turns)
        place.save(self._folder)
        _mend(fd, place)


class _Tail:
    """Looks for the end of the server's copy in a log. Asterisks of the copy may be masked secrets: they fit whatever
    is within a line.

    Attributes:
        size: how much the server has.
        in_place: the log has the same bytes at the same place: its beginning is the run's.
        found: where in the log they end, if they are elsewhere and there only.
    """

    def __init__(self, handed_over: Output) -> None:
        self.size = handed_over.size
        tail = base64.b64decode(handed_over.tail)
        self._length = len(tail)
        self._tells = b"*" not in tail or len(tail) >= self.size or len(tail.replace(b"*", b"")) >= _ENOUGH
        plain = max(_PLAIN.finditer(tail), key=lambda run: len(run[0]), default=None)
        # What is looked for first, and where in the tail it is.
        self._sure, self._at = (b"", 0) if plain is None else (plain[0], plain.start())
        self._fits = re.compile(_MASKED.sub(rb"[^\n]", re.escape(tail)), re.DOTALL)
        self.in_place = False
        self.found: int | None = None
        self._several = False
        self._window = b""
        self._passed = 0

    def take(self, data: bytes) -> None:
        begin = self._passed - len(self._window)
        window = self._window + data
        self._passed += len(data)
        due = self.size - self._length - begin
        if self._tells and 0 <= due <= len(window) - self._length and self._fits.match(window, due):
            self.in_place = True
        at = -1 if self._several else self._next(window, 0)
        while at >= 0 and not self._several:
            end = begin + at + self._length
            self._several = self.found is not None and self.found != end
            self.found = None if self._several else end
            at = self._next(window, at + 1)
        self._window = window[-self._length + 1 :] if self._length > 1 else b""

    def _next(self, window: bytes, start: int) -> int:
        """Where the tail begins, from ``start`` on; -1: nowhere."""
        if not (self._tells and self._sure):
            return -1
        at = window.find(self._sure, start + self._at) - self._at
        while at >= start and not self._fits.match(window, at):
            at = window.find(self._sure, at + self._at + 1) - self._at
        return at if at >= start else -1


def seal(folder: Path, *, cut: bool) -> None:
    """Nothing more is copied: say at the end of the output what may be missing. The second time is as the first.

    Args:
        cut: not all of the log could be read.

    Raises:
        OSError: it cannot be written.
    """
    fd = open_output(folder)
    try:
        place, size = Place.load(folder) or Place("", 0, ""), os.fstat(fd).st_size
        if place.end < 0:
            notes = (CUT if cut else b"") + (TURNED if place.turns else b"")
            if not notes:
                return
            place = replace(place, end=size, notes=notes.decode())
            place.save(folder)
        write_whole(fd, place.notes.encode()[size - place.end :])
    finally:
        os.close(fd)


def is_sealed(folder: Path) -> bool:
    """Whether nothing more is to be copied."""
    place = Place.load(folder)
    return place is not None and place.end >= 0


def ends_with(folder: Path, tail: list[tuple[str, bytes]], *, whole: bool) -> bool:
    """Whether the copy ends as the log does.

    Args:
        tail: the last line of the log, or the last piece of one that is long; empty: there is none.
        whole: the log was read whole just now.
    """
    place = Place.load(folder)
    if not tail or place is None:
        return not tail and (place is None or not place.first)
    end = b"".join(data for _, data in tail)
    with (folder / OUTPUT).open("rb") as file:
        begin = file.seek(0, os.SEEK_END) - len(end)
        if begin < 0 or os.pread(file.fileno(), len(end), begin) != end:
            return False
    return (tail[0][0], begin) == (place.last, place.at) or (whole and begin > place.at)
