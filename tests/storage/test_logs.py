"""The LogStore: idempotent by offset, whatever order and whatever overlap bytes come in."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter_work_pools.contracts.errors import Unavailable
from shunter_work_pools.storage.logs import FileLogStore

OUTPUT = bytes(range(256)) * 2 + "Grüße\r\n\0☃".encode()


@pytest.fixture
def logs(tmp_path: Path) -> FileLogStore:
    return FileLogStore(tmp_path / "logs")


@pytest.fixture(scope="module")
def shared() -> Iterator[FileLogStore]:
    """One store for all examples, each of which has a run of its own."""
    with tempfile.TemporaryDirectory() as folder:
        yield FileLogStore(Path(folder))


pieces = st.lists(
    st.tuples(st.integers(0, len(OUTPUT)), st.integers(0, len(OUTPUT))).map(sorted).map(tuple), max_size=12
)


@given(pieces=pieces)
@settings(max_examples=300, deadline=None)
def test_any_appends_leave_a_prefix_and_going_on_from_it_gives_all(
    shared: FileLogStore, pieces: list[tuple[int, int]]
) -> None:
    """Overlapping, repeated, reordered, with gaps: only a beginning of the truth is ever there."""
    run = uuid4()
    expected = 0
    for start, end in pieces:
        size = shared.append(run, 1, start, OUTPUT[start:end])
        if start <= expected:
            expected = max(expected, end)
        assert size == expected == shared.extent(run, 1).size
        assert shared.read(run, 1, 0, len(OUTPUT) + 1) == OUTPUT[:expected]
    while shared.extent(run, 1).size < len(OUTPUT):
        at = shared.extent(run, 1).size
        assert shared.append(run, 1, at, memoryview(OUTPUT)[at : at + 100]) == min(at + 100, len(OUTPUT))
    assert shared.read(run, 1, 0, len(OUTPUT) + 1) == OUTPUT


def test_attempts_and_runs_have_their_own_output(logs: FileLogStore) -> None:
    one, other = UUID(int=1), UUID(int=2)
    for run, attempt, data in ((one, 1, b"a"), (one, 2, b"bb"), (other, 1, b"ccc")):
        logs.append(run, attempt, 0, data)
    assert [logs.extent(one, 1).size, logs.extent(one, 2).size, logs.extent(other, 1).size] == [1, 2, 3]
    assert logs.read(one, 2, 0, 10) == b"bb"


def test_what_wrote_nothing_is_empty(logs: FileLogStore) -> None:
    run = uuid4()
    assert logs.extent(run, 1).size == 0
    assert logs.read(run, 1, 0, 10) == b""
    logs.sync(run, 1)
    assert logs.append(run, 1, 10, b"beyond") == 0
    assert logs.append(run, 1, 0, b"") == 0


def test_parts_are_read(logs: FileLogStore) -> None:
    run = uuid4()
    logs.append(run, 1, 0, OUTPUT)
    assert logs.read(run, 1, 100, 50) == OUTPUT[100:150]
    assert logs.read(run, 1, len(OUTPUT) - 3, 50) == OUTPUT[-3:]
    assert logs.read(run, 1, len(OUTPUT) + 3, 50) == b""


def test_the_same_bytes_from_many_threads_at_once(logs: FileLogStore) -> None:
    run = uuid4()
    data = os.urandom(1_000_000)

    def send(step: int) -> None:
        at = 0
        while at < len(data):
            at = max(at, logs.append(run, 1, at, data[at : at + step]))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(send, [7001, 10_000, 65_536, 300_000]))
    assert logs.read(run, 1, 0, len(data) + 1) == data


def test_a_big_output_is_whole_and_others_cannot_read_it(logs: FileLogStore) -> None:
    run = uuid4()
    block = os.urandom(4 * 1024 * 1024)
    digest = hashlib.sha256()
    for at in range(32):
        logs.append(run, 1, at * len(block), block)
        digest.update(block)
    logs.sync(run, 1)
    assert logs.extent(run, 1).size == 32 * len(block)
    found = hashlib.sha256()
    at = 0
    while part := logs.read(run, 1, at, 1_000_003):
        found.update(part)
        at += len(part)
    assert found.digest() == digest.digest()
    for file in logs.folder.rglob("*"):
        assert file.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_unavailable_keeps_what_was_written_and_goes_on_with_room(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        logs = FileLogStore(folder)
        run, data = uuid4(), os.urandom(400_000)
        ballast = folder / "ballast"
        ballast.write_bytes(b"x" * 150_000)
        with pytest.raises(Unavailable, match="cannot be written") as caught:
            logs.append(run, 1, 0, data)
        assert caught.value.remedy
        kept = logs.extent(run, 1).size
        assert 0 < kept < 150_000
        assert logs.read(run, 1, 0, len(data)) == data[:kept]
        with pytest.raises(Unavailable):
            logs.append(run, 1, kept, data[kept:])
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=2m", str(folder)], check=True)
        assert logs.append(run, 1, 0, data) == len(data)
        assert logs.read(run, 1, 0, len(data) + 1) == data
    finally:
        subprocess.run(["umount", str(folder)], check=True)


_LIMITED = """
import resource, sys
from pathlib import Path
from uuid import UUID
from shunter_work_pools.contracts.errors import Unavailable
from shunter_work_pools.storage.logs import FileLogStore

logs = FileLogStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
data = bytes(range(250)) * 1000
try:
    logs.append(UUID(int=1), 1, 0, data)
except Unavailable as exc:
    print("unavailable", logs.extent(UUID(int=1), 1).size)
"""


def test_a_file_that_may_not_grow_is_unavailable_and_holds_a_prefix(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "unavailable 100000\n"
    kept = FileLogStore(tmp_path).read(UUID(int=1), 1, 0, 1_000_000)
    assert kept == (bytes(range(250)) * 1000)[:100_000]


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot be written"):
        FileLogStore(tmp_path / "file").append(uuid4(), 1, 0, b"x")
