"""Gaps in the LogStore: whatever comes in which order, and wherever the server dies, the log tells the truth.

The log is the output with a mark in the place of what was said to be lost; each byte is in it or counted in a
mark, never both.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter_work_pools.contracts.errors import Unavailable
from shunter_work_pools.storage import log_gaps
from shunter_work_pools.storage.logs import FileLogStore

OUTPUT = b"".join(b"line %d of the run\n" % number for number in range(40))
MARK = re.compile(rb"\[shunter: ([\d,]+) bytes of output are missing here: [^\n]*\]\n")

#: What a log tells, in order: kind, from, to.
Parts = tuple[tuple[str, int, int], ...]


class Died(BaseException):
    """The server, at some instruction."""


class Disk:
    """``os`` with a number of writing calls left (None: no end); the one after them does half, and no more."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        for name in ("ftruncate", "fsync", "pwrite"):
            patch.setattr(os, name, self._dying(name, getattr(os, name)))

    def _dying(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def do(handle: int, *args: Any) -> Any:
            if self.left is None:
                return call(handle, *args)
            if self.left == 0:
                if name == "pwrite":
                    call(handle, bytes(args[0])[: len(args[0]) // 2], *args[1:])
                raise Died
            self.left -= 1
            return call(handle, *args)

        return do


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as patch:
        yield Disk(patch)


@pytest.fixture(scope="module")
def shared() -> Iterator[FileLogStore]:
    with tempfile.TemporaryDirectory() as folder:
        yield FileLogStore(Path(folder))


@pytest.fixture
def logs(tmp_path: Path) -> FileLogStore:
    return FileLogStore(tmp_path / "logs")


def size(parts: Parts) -> int:
    return parts[-1][2] if parts else 0


def missing(parts: Parts) -> int:
    return sum(end - start for kind, start, end in parts if kind == "skip")


def text(parts: Parts) -> bytes:
    """The log that tells it."""
    found = b""
    for kind, start, end in parts:
        if kind == "append":
            found += OUTPUT[start:end]
        else:
            found += log_gaps.make(0, end - start, line_begins=found[-1:] in (b"", b"\n")).mark
    return found


def do(logs: FileLogStore, run: UUID, kind: str, start: int, end: int) -> int:
    if kind == "append":
        return logs.append(run, 1, start, OUTPUT[start:end])
    return logs.skip(run, 1, start, end - start)


def after(parts: Parts, kind: str, start: int, end: int) -> Parts:
    """What a log tells after something came."""
    at = size(parts)
    return (*parts, (kind, at, end)) if start <= at < end else parts


def fits(parts: Parts, extent: log_gaps.Extent, found: bytes) -> bool:
    """Whether that is what is seen; a last gap may be decided, and its mark not whole yet."""
    if text(parts) == found:
        return extent[:3] == (size(parts), len(found), missing(parts))
    if not parts or parts[-1][0] != "skip":
        return False
    before = parts[:-1]
    return (
        found.startswith(text(before))
        and text(parts).startswith(found)
        and extent[:3] == (size(before), len(found), missing(before))
    )


def tells_all(log: bytes, start: int, end: int) -> bool:
    """Without the model: whether each byte of the output is there, or counted in a mark in its place."""
    mark = MARK.search(log)
    if mark is None:
        return log == OUTPUT[start:end]
    before, lost = log[: mark.start()], int(mark[1])
    # The line end before a mark is the output's, or its own where it does not begin a line.
    return any(
        OUTPUT[start:].startswith(piece) and tells_all(log[mark.end() :], start + len(piece) + lost, end)
        for piece in {before, before.removesuffix(b"\n")}
    )


def whole(logs: FileLogStore, run: UUID) -> bytes:
    return logs.read(run, 1, 0, 1_000_000)


_step = st.tuples(
    st.sampled_from(["append", "append", "skip"]),
    st.integers(0, len(OUTPUT)),
    st.integers(0, len(OUTPUT)),
    st.none() | st.integers(0, 6),
)


@given(steps=st.lists(_step, max_size=12), near=st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_appends_and_skips_with_crashes_anywhere_tell_the_truth(
    shared: FileLogStore, disk: Disk, steps: list[tuple[str, int, int, int | None]], near: bool
) -> None:
    """A crash leaves one of several worlds; whatever is seen afterwards must fit one of them."""
    run = uuid4()
    worlds: set[Parts] = {()}
    for kind, start, end, dies in steps:
        if near:  # otherwise most of them are far from where the log ends
            start = min(start, shared.extent(run, 1).size)
        start, end = min(start, end), max(start, end)
        disk.left = dies
        try:
            told = do(shared, run, kind, start, end)
        except Died:
            if kind == "append":  # any beginning of it may be there
                worlds |= {after(one, kind, start, cut) for one in worlds for cut in range(start, end)}
            worlds |= {after(one, kind, start, end) for one in worlds}
        else:
            worlds = {after(one, kind, start, end) for one in worlds}
            worlds = {one for one in worlds if size(one) == told}
        finally:
            disk.left = None
        extent, found = shared.extent(run, 1), whole(shared, run)
        worlds = {one for one in worlds if fits(one, extent, found)}
        assert worlds, (extent, found)
    shared.append(run, 1, 0, b"")  # what a crash left half done is brought to its end by the next that comes
    while (at := shared.extent(run, 1).size) < len(OUTPUT):
        shared.append(run, 1, at, OUTPUT[at : at + 100])
        worlds = {after(one, "append", at, min(at + 100, len(OUTPUT))) for one in worlds}
    extent, found = shared.extent(run, 1), whole(shared, run)
    assert any(text(one) == found and extent[:3] == (len(OUTPUT), len(found), missing(one)) for one in worlds)
    assert tells_all(found, 0, len(OUTPUT))


def test_a_gap_shows_as_a_line_of_its_own(logs: FileLogStore) -> None:
    run = uuid4()
    logs.append(run, 1, 0, b"half a li")
    assert logs.skip(run, 1, 9, 1_234_567) == 1_234_576
    assert logs.append(run, 1, 1_234_576, b"and on\n") == 1_234_583
    found = whole(logs, run)
    assert found.startswith(b"half a li\n[shunter: 1,234,567 bytes of output are missing here: ")
    assert found.endswith(b"]\nand on\n")
    assert logs.extent(run, 1) == (1_234_583, len(found), 1_234_567, False)


def test_a_gap_is_clipped_to_what_is_not_there(logs: FileLogStore) -> None:
    run = uuid4()
    logs.append(run, 1, 0, OUTPUT[:100])
    assert logs.skip(run, 1, 0, 100) == 100  # all of it is there
    assert logs.skip(run, 1, 200, 50) == 100  # the log has not come so far
    assert whole(logs, run) == OUTPUT[:100]
    assert logs.skip(run, 1, 50, 100) == 150
    assert logs.skip(run, 1, 50, 100) == 150
    assert logs.extent(run, 1).missing == 50
    assert logs.append(run, 1, 90, OUTPUT[90:160]) == 160
    assert MARK.split(whole(logs, run)) == [OUTPUT[:100] + b"\n", b"50", OUTPUT[150:160]]


def test_a_log_without_gaps_has_one_file_and_deleting_leaves_none(logs: FileLogStore) -> None:
    one, other = uuid4(), uuid4()
    logs.append(one, 1, 0, b"x")
    logs.append(other, 1, 0, b"x")
    logs.skip(other, 1, 1, 5)
    files = {path.name for path in logs.folder.rglob("*") if path.is_file()}
    assert files == {f"{one}.1", f"{other}.1", f"{other}.1.gaps"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in logs.folder.rglob("*"))
    for run in (one, other):
        logs.delete(run, 1)
        logs.delete(run, 1)
    assert not [path for path in logs.folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("length", "lost"), [(200, 150), (300, 100), (310, 100)])
def test_a_log_shorter_than_its_gaps_is_told_them_again(logs: FileLogStore, length: int, lost: int) -> None:
    """As a loss of power leaves it: before a mark, at it, within it. Gaps are on the disk before marks are."""
    run = uuid4()
    logs.append(run, 1, 0, OUTPUT[:300])
    logs.skip(run, 1, 300, 100)
    logs.append(run, 1, 400, OUTPUT[400:500])
    (path,) = logs.folder.rglob(f"{run}.1")
    os.truncate(path, length)
    assert logs.extent(run, 1).size == min(length, 300)
    if length == 200:
        assert logs.append(run, 1, 200, OUTPUT[200:250]) == 250  # past the old gap, which is none any more
    assert logs.skip(run, 1, 0, 400) == 400
    assert logs.append(run, 1, 400, OUTPUT[400:]) == len(OUTPUT)
    assert MARK.split(whole(logs, run)) == [OUTPUT[: 400 - lost] + b"\n", b"%d" % lost, OUTPUT[400:]]


def test_a_copy_of_a_log_from_before_its_gaps_is_sound(logs: FileLogStore) -> None:
    """``rsync`` copies a log, then what lies beside it: gaps that came meanwhile are no part of the copy."""
    run = uuid4()
    logs.append(run, 1, 0, OUTPUT[:100])
    (path,) = logs.folder.rglob(f"{run}.1")
    copied = path.read_bytes()
    logs.append(run, 1, 100, OUTPUT[100:150])
    logs.skip(run, 1, 150, 50)
    path.write_bytes(copied)
    assert logs.extent(run, 1) == (100, 100, 0, False)
    assert logs.append(run, 1, 100, OUTPUT[100:]) == len(OUTPUT)
    assert whole(logs, run) == OUTPUT


def test_bytes_and_gaps_of_the_same_place_from_many_threads(logs: FileLogStore) -> None:
    """An upload that was given up still comes while its successor does: no byte twice, none overwritten."""
    kinds = [("append", 400), ("skip", 300), ("append", 500), ("skip", 450)] * 2
    for _ in range(30):
        run = uuid4()
        with ThreadPoolExecutor(8) as threads:
            jobs = [threads.submit(do, logs, run, kind, 0, end) for kind, end in kinds]
        assert max(job.result() for job in jobs) == 500
        assert logs.extent(run, 1).size == 500
        assert tells_all(whole(logs, run), 0, 500)


@pytest.mark.parametrize("refused", [1, 2])
def test_a_gap_on_a_full_disk(logs: FileLogStore, monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    """Unavailable, whether the gap or its mark finds no room; later the same again is as if nothing had been."""
    run, real, calls = uuid4(), os.pwrite, iter(range(1, 100))
    logs.append(run, 1, 0, OUTPUT[:100])

    def full(handle: int, data: memoryview, at: int) -> int:
        if next(calls) >= refused:
            real(handle, bytes(data)[:7], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for _ in range(2):
            with pytest.raises(Unavailable, match="No space left"):
                logs.skip(run, 1, 100, 60)
            assert (logs.extent(run, 1).size, logs.extent(run, 1).missing) == (100, 0)
    assert logs.skip(run, 1, 100, 60) == 160
    logs.append(run, 1, 160, OUTPUT[160:170])
    assert MARK.split(whole(logs, run)) == [OUTPUT[:100] + b"\n", b"60", OUTPUT[160:170]]


def test_the_tail_has_no_mark_in_it(logs: FileLogStore) -> None:
    """By its tail an output is found in an engine's log, which knows of no marks."""
    run = uuid4()
    assert logs.tail(run, 1, 4) == (0, b"")
    logs.append(run, 1, 0, b"abcdef")
    assert logs.tail(run, 1, 4) == (6, b"cdef")
    assert logs.tail(run, 1, 100) == (6, b"abcdef")
    logs.skip(run, 1, 6, 10)
    assert logs.tail(run, 1, 4) == (16, b"")
    logs.append(run, 1, 16, b"gh")
    assert logs.tail(run, 1, 4) == (18, b"gh")
    logs.append(run, 1, 18, b"ijk")
    assert logs.tail(run, 1, 4) == (21, b"hijk")
