"""How the engine's log becomes a file: at whatever byte the copying is broken off, without doubles or holes."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter_infrastructure.copied_output import OUTPUT
from shunter_infrastructure.docker.output import GAP, Copy, Entries
from shunter_infrastructure.docker.streams import Address, Broken, _chunks, ask


def framed(entries: list[tuple[int, bytes]], stream: int = 1) -> bytes:
    """A log as the engine gives it; each entry with its second."""
    log = b""
    for second, data in entries:
        body = b"2026-11-26T07:%02d:%02d.000000000Z " % (second // 60, second % 60) + data
        log += bytes([stream, 0, 0, 0]) + len(body).to_bytes(4, "big") + body
    return log


def copy(folder: Path, log: bytes, piece: int = 1 << 16) -> None:
    """One pass over a log, or over the beginning of one."""
    one = Copy(folder)
    try:
        for at in range(0, len(log), piece):
            one.take(log[at : at + piece])
    finally:
        one.close()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_entries_are_whole_however_they_come(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.binary(max_size=40), max_size=20))
    log = framed(list(enumerate(texts)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=10)))
    entries, found = Entries(), []
    for begin, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
        found += [written for _, written in entries.feed(log[begin:end])]
    assert found == texts


def test_a_copy_broken_off_anywhere_goes_on_exactly_there(tmp_path: Path) -> None:
    """Also between two bytes of an entry: as when the disk was full, or the copier was killed in its write."""
    entries = [(n // 3, b"line %d\n" % n) for n in range(60)]
    whole = b"".join(data for _, data in entries)
    log = framed(entries)
    for cut in range(len(whole) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        copy(folder, log[: len(log) // 2])
        with (folder / OUTPUT).open("ab") as file:
            file.truncate(min(cut, file.tell()))
        copy(folder, log, piece=random.Random(cut).randint(1, 100))
        copy(folder, log)
        assert (folder / OUTPUT).read_bytes() == whole


def test_a_log_that_lost_its_beginning_is_marked(tmp_path: Path) -> None:
    """What was thrown away while nobody read is missing, and the place says so; afterwards all goes on as before."""
    entries = [(n, b"line %d\n" % n) for n in range(50)]
    copy(tmp_path, framed(entries[:10]))
    for end in (40, 45, 45, 50):
        copy(tmp_path, framed(entries[30:end]))
    expected = [data for _, data in entries[:10]] + [GAP] + [data for _, data in entries[30:]]
    assert (tmp_path / OUTPUT).read_bytes() == b"".join(expected)


def test_a_log_that_lost_only_what_is_known_has_one_mark_and_no_doubles(tmp_path: Path) -> None:
    entries = [(n, b"line %d\n" % n) for n in range(50)]
    copy(tmp_path, framed(entries[:40]))
    for _ in range(2):
        copy(tmp_path, framed(entries[30:]))
    expected = [data for _, data in entries[:40]] + [GAP] + [data for _, data in entries[40:]]
    assert (tmp_path / OUTPUT).read_bytes() == b"".join(expected)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.binary(min_size=1, max_size=50), max_size=10), cut=st.integers(0, 1000))
def test_chunks_are_put_together(parts: list[bytes], cut: int) -> None:
    sent = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    cut = min(cut, len(sent))
    first, rest, ended = _chunks(sent[:cut])
    second = b"" if ended else _chunks(rest + sent[cut:])[0]
    assert first + second == b"".join(parts)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Enc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
    ],
)
async def test_an_answer_that_is_broken_off_is_not_taken_for_whole(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    path = str(tmp_path / "socket")
    async with await asyncio.start_unix_server(serve, path):
        with pytest.raises(Broken):
            await _whole(path)


async def _whole(path: str) -> bytes:
    async with ask(Address(path), "/x", {}, 5) as found:
        return b"".join([piece async for piece in found.pieces()])


async def test_an_engine_that_says_nothing_is_away(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    path = str(tmp_path / "socket")
    async with await asyncio.start_unix_server(serve, path):
        with pytest.raises(TimeoutError):
            async with ask(Address(path), "/x", {}, 0.1):
                pass
