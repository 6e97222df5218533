"""Results of a run take so much of the server's disk and no more."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from uuid import UUID

import pytest

from shunter_work_pools.contracts.errors import BadRequest, TooLarge, Unavailable
from shunter_work_pools.storage.results import FileResultStore

RUN, OTHER = UUID(int=1), UUID(int=2)


def named(data: bytes) -> str:
    return blake2b(data, digest_size=20).hexdigest()


def put(store: FileResultStore, data: bytes, run: UUID = RUN, at: int = 0, end: int | None = None) -> bool:
    return store.put(run, named(data), at, len(data), data[at:end])[1]


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_has_so_much_room_and_no_more(tmp_path: Path) -> None:
    for store in (
        FileResultStore(tmp_path, 1000),
        FileResultStore(tmp_path, 1000),
    ):  # the second one has to look
        assert put(store, b"a" * 600)
        assert not put(store, b"b" * 400, end=100)
        with pytest.raises(TooLarge, match=r"server\.results_limit"):
            put(store, b"c" * 401, end=1)
        assert put(store, b"b" * 400, at=100)
        with pytest.raises(TooLarge, match="has no room"):
            put(store, b"d", end=1)
        assert put(store, b"a" * 600), "what is there stays"
        assert put(store, b"d" * 1000, OTHER)
        assert used(tmp_path) == 2000
        store.delete(RUN)
        store.delete(OTHER)
        assert used(tmp_path) == 0


def test_what_was_not_kept_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileResultStore(tmp_path, 1000)
    for _ in range(3):
        with pytest.raises(BadRequest, match="not what its name says"):
            store.put(RUN, named(b"right"), 0, 600, b"w" * 600)
    # Two that come at once: the one for which there is no room any more leaves nothing.
    assert not put(store, b"a" * 600, end=599)
    assert not put(store, b"b" * 401, end=400)
    assert put(store, b"a" * 600, at=599)
    with pytest.raises(TooLarge):
        put(store, b"b" * 401, at=400)
    assert used(tmp_path) == 600

    written = os.pwrite

    def full(handle: int, data: bytes, at: int) -> int:
        if at >= 100:
            raise OSError(28, "No space left on device")
        return written(handle, bytes(data)[:100], at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Unavailable, match="No space left"):
        put(store, b"c" * 400)
    monkeypatch.undo()
    assert put(store, b"c" * 400, at=100)
    assert used(tmp_path) == 1000


def test_runs_that_have_results(tmp_path: Path) -> None:
    store = FileResultStore(tmp_path / "results")
    assert store.runs() == []
    put(store, b"a")
    put(store, b"a", OTHER)
    (tmp_path / "results" / "ab" / "by-some-body-or-other").mkdir(parents=True)
    assert set(store.runs()) == {RUN, OTHER}


def test_those_that_come_at_the_same_moment_have_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileResultStore(tmp_path, 500)
    start = threading.Barrier(8)
    written = os.pwrite

    def late(handle: int, data: bytes, at: int) -> int:
        with contextlib.suppress(threading.BrokenBarrierError):
            start.wait(0.2)  # whoever was let in writes together with the others
        return written(handle, data, at)

    monkeypatch.setattr(os, "pwrite", late)

    def kept(number: int) -> bool:
        try:
            return put(store, b"%d" % number * 100)
        except TooLarge:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(kept, range(8))) == 5
    assert used(tmp_path) == 500
