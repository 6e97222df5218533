"""Gaps of one log: which bytes of the output are missing, and where the marks lie that stand for them.

A log with gaps has a file beside it, ``RUN.N.gaps``, one JSON line per gap, written (and on the disk) before
the mark is: whoever finds a gap there and no whole mark knows which one to write. A log without gaps has no
such file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shunter_work_pools.contracts.sizes import size as in_words

_CUT = "[shunter: the log is cut here: {} of output are kept of an attempt (server.log_limit)]\n"
_MARK = "[shunter: {:,} bytes of output are missing here: the agent could not keep them until the server had them]\n"


class Gap(NamedTuple):
    """Bytes of output that are missing.

    Attributes:
        at: where its mark lies in the stored log.
        mark: the mark, as stored.
        length: how many bytes are missing; 0: all that comes after it, which may still grow.
    """

    at: int
    mark: bytes
    length: int

    @property
    def end(self) -> int:
        """Where the stored log goes on after the mark."""
        return self.at + len(self.mark)


class Extent(NamedTuple):
    """How far a log has come.

    Attributes:
        size: offset in the attempt's output up to which it is known, as text or as missing.
        stored: bytes that can be read, marks among them.
        missing: bytes of the output that marks stand for.
        cut: there is no more to come, whatever the attempt writes.
    """

    size: int
    stored: int
    missing: int
    cut: bool = False


def make(at: int, length: int, *, line_begins: bool) -> Gap:
    """A gap with its mark, which is a line of its own.

    Args:
        line_begins: what lies before the mark is a whole line, or nothing.
    """
    return _gap(at, length, _MARK.format(length), line_begins)


def make_cut(at: int, limit: int, *, line_begins: bool) -> Gap:
    """The end of a log that has reached its limit, in bytes."""
    return _gap(at, 0, _CUT.format(in_words(limit)), line_begins)


def _gap(at: int, length: int, text: str, line_begins: bool) -> Gap:
    return Gap(at, (text if line_begins else "\n" + text).encode(), length)


def extent(stored: int, gaps: Sequence[Gap]) -> Extent:
    """How far a log of ``stored`` bytes has come. A gap whose mark is not whole has not happened yet."""
    size, missing, cut = stored, 0, False
    for gap in gaps:
        if gap.at >= stored:
            break
        size -= min(gap.end, stored) - gap.at
        if gap.end <= stored:
            size += gap.length
            missing += gap.length
            cut = gap.length == 0
    return Extent(size, stored, missing, cut)


def path_of(log: Path) -> Path:
    """Where the gaps of a log are."""
    return log.with_name(f"{log.name}.gaps")


def read(log: Path) -> list[Gap]:
    """The gaps of a log, in order."""
    return [_parse(line) for line in _lines(path_of(log))]


def write(log: Path, kept: int, more: Sequence[Gap] = ()) -> None:
    """Keep the first ``kept`` gaps of a log and put ``more`` behind them, durably.

    Raises:
        OSError: they cannot be written; those that were kept are there.
    """
    path = path_of(log)
    at = sum(len(line) for line in _lines(path)[:kept])
    rest = b"".join(map(_line, more))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(handle, at)
        while rest:
            written = os.pwrite(handle, rest, at)
            at, rest = at + written, rest[written:]
        os.fsync(handle)
    finally:
        os.close(handle)
    _sync_folder(path.parent)


def _lines(path: Path) -> list[bytes]:
    """The lines that are whole: one that a crash has torn is none yet."""
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return []
    return [line for line in body.splitlines(keepends=True) if line.endswith(b"\n")]


def _line(gap: Gap) -> bytes:
    return json.dumps({"at": gap.at, "length": gap.length, "mark": gap.mark.decode()}).encode() + b"\n"


def _parse(line: bytes) -> Gap:
    fields = json.loads(line)
    return Gap(int(fields["at"]), fields["mark"].encode(), int(fields["length"]))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
