"""How the kubelet's log becomes a file: at whatever byte the copying is broken off, without doubles or holes."""

from __future__ import annotations

import base64
import contextlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter_infrastructure.copied_output import OUTPUT
from shunter_infrastructure.kubernetes.log import (
    CUT,
    GAP,
    TURNED,
    Copy,
    Lines,
    NodeAway,
    OtherLog,
    Place,
    Search,
    ends_with,
    seal,
)
from shunter_work_pools.contracts.agents import Output


def timed(lines: list[tuple[int, bytes]]) -> bytes:
    """A log as the kubelet gives it; each line with its nanosecond."""
    return b"".join(b"2026-11-26T07:00:00.%09dZ " % moment + data for moment, data in lines)


def texts(lines: list[tuple[int, bytes]]) -> bytes:
    return b"".join(data for _, data in lines)


def numbered(begin: int, end: int) -> list[tuple[int, bytes]]:
    return [(n, b"line %d\n" % n) for n in range(begin, end)]


def copy(folder: Path, log: bytes, piece: int = 1 << 16, handed_over: Output | None = None) -> None:
    """One pass over a log, or over the beginning of one; where it is another, that is settled first."""
    while True:
        with contextlib.closing(Copy(folder, known=bool(handed_over and handed_over.size))) as one:
            try:
                for at in range(0, len(log), piece):
                    one.take(log[at : at + piece])
                return one.finish()
            except OtherLog:
                pass
        search = Search(folder, handed_over)
        for at in range(0, len(log), piece):
            search.take(log[at : at + piece])
        search.finish()
        search.settle()


def output(folder: Path) -> bytes:
    return (folder / OUTPUT).read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_lines_are_whole_however_they_come(data: st.DataObject) -> None:
    parts = data.draw(
        st.lists(st.binary(max_size=40).map(lambda part: part.replace(b"\n", b"")), max_size=20)
    )
    lines = [(number, part + b"\n") for number, part in enumerate(parts)]
    if lines and data.draw(st.booleans()):
        lines[-1] = (lines[-1][0], b"unfinished")
    log = timed(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=10)))
    feed, found = Lines(), list[tuple[str, bytes]]()
    for begin, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
        for moment, part in feed.feed(log[begin:end]):
            if moment:
                found.append((moment, part))
            else:
                found[-1] = (found[-1][0], found[-1][1] + part)
    feed.finish()
    assert [part for _, part in found] == [part for _, part in lines]
    assert [int(moment[20:29]) for moment, _ in found] == [number for number, _ in lines]


@pytest.mark.parametrize(
    "said",
    [
        b"unable to retrieve container logs for containerd://12a50797970f164228fb40a12a823e1097a4952109b6d59a2",
        b"no\n",
        b"oh",
    ],
)
def test_what_the_kubelet_has_to_say_is_no_output(tmp_path: Path, said: bytes) -> None:
    """It comes with the status 200, also behind lines of the log."""
    for folder, log in ((tmp_path / "a", b""), (tmp_path / "b", timed(numbered(0, 3)))):
        folder.mkdir()
        with pytest.raises(NodeAway, match=said.decode().strip()):
            copy(folder, log + said)
        assert output(folder) == (texts(numbered(0, 3)) if log else b"")


def test_two_readers_one_after_another_at_every_byte(tmp_path: Path) -> None:
    """The first is killed at any byte of the log, or with any byte of the file written."""
    lines = [
        (n, [b"short\n", b"\n", b"\xff\x00 bytes\n", b"2026-11-26T07:00:00.000000000Z \n"][n % 4])
        for n in range(12)
    ]
    lines.append((99, b"x" * 100 + b" and no end"))
    log = timed(lines)
    for cut in range(len(log) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        with contextlib.closing(Copy(folder)) as first:
            first.take(log[:cut])
        copy(folder, log, piece=random.Random(cut).randint(1, 100))
        assert output(folder) == texts(lines)
        with (folder / OUTPUT).open("ab") as file:
            file.truncate(min(cut, file.tell()))
        copy(folder, log)
        assert output(folder) == texts(lines)


def test_a_new_log_that_was_followed_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    """A stream goes over to it by itself; whoever reads the new log afterwards knows where he is, at every byte."""
    through, new = timed(numbered(0, 20)), timed(numbered(10, 30))
    for cut in range(len(timed(numbered(0, 11))), len(through) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        with contextlib.closing(Copy(folder)) as one:
            one.take(through[:cut])
        copy(folder, new)
        assert output(folder) == texts(numbered(0, 30))
        seal(folder, cut=False)
        assert output(folder) == texts(numbered(0, 30)) + TURNED


def test_what_no_log_has_any_more_is_marked(tmp_path: Path) -> None:
    copy(tmp_path, timed(numbered(0, 10)))
    for end in (40, 45, 45, 50):
        copy(tmp_path, timed(numbered(30, end)))
    assert output(tmp_path) == texts(numbered(0, 10)) + GAP + texts(numbered(30, 50))


def test_a_mark_that_was_cut_off_is_written_to_its_end(tmp_path: Path) -> None:
    for cut in range(len(GAP)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        copy(folder, timed(numbered(0, 10)))
        copy(folder, timed(numbered(30, 31)))
        with (folder / OUTPUT).open("ab") as file:
            file.truncate(len(texts(numbered(0, 10))) + cut)
        copy(folder, timed(numbered(30, 40)))
        assert output(folder) == texts(numbered(0, 10)) + GAP + texts(numbered(30, 40))


def test_a_clock_that_was_set_back_makes_no_gap_and_no_doubles(tmp_path: Path) -> None:
    before, after = numbered(1000, 1010), numbered(0, 10)
    copy(tmp_path, timed(before + after[:5]))
    copy(tmp_path, timed(after))
    assert output(tmp_path) == texts(before + after)


def test_lines_of_the_same_time_are_told_apart_by_their_text(tmp_path: Path) -> None:
    copy(tmp_path, timed([(1, b"old\n"), (5, b"one\n")]))
    copy(tmp_path, timed([(5, b"two\n"), (5, b"one\n"), (6, b"three\n")]))
    assert output(tmp_path) == b"old\none\nthree\n"


def test_a_new_log_that_is_empty_is_said_and_goes_on(tmp_path: Path) -> None:
    copy(tmp_path, timed(numbered(0, 10)))
    copy(tmp_path, b"")
    copy(tmp_path, timed(numbered(10, 20)))
    assert output(tmp_path) == texts(numbered(0, 20))
    place = Place.load(tmp_path)
    assert place is not None
    assert place.turns == 1


# -- taken over from another agent


def handed_over(data: bytes) -> Output:
    return Output(size=len(data), tail=base64.b64encode(data[-256:]).decode())


def test_a_copy_that_is_taken_over_at_every_byte_has_the_same_offsets(tmp_path: Path) -> None:
    whole = texts(numbered(0, 30))
    for cut in range(len(whole) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        copy(folder, timed(numbered(0, 30)), random.Random(cut).randint(1, 300), handed_over(whole[:cut]))
        assert output(folder) == whole


def test_a_copy_that_is_taken_over_goes_on_in_a_log_without_a_beginning(tmp_path: Path) -> None:
    known = texts(numbered(0, 500))
    for piece in (1, 7, 255, 256, 257, 10_000):
        folder = tmp_path / str(piece)
        folder.mkdir()
        copy(folder, timed(numbered(400, 600)), piece, handed_over(known))
        copy(folder, timed(numbered(400, 700)), piece, handed_over(known))
        assert output(folder)[len(known) :] == texts(numbered(500, 700))
        assert output(folder)[: len(known)].strip(b"\0") == b""


SECRET = b"of-the-warehouse"


def with_secrets(begin: int, end: int) -> list[tuple[int, bytes]]:
    return [(n, b"%d %s\n" % (n, SECRET if n % 2 else b"*")) for n in range(begin, end)]


@pytest.mark.parametrize("kept", [0, 40], ids=["from the beginning", "without a beginning"])
def test_a_copy_whose_secrets_are_masked_is_taken_over_at_every_byte(tmp_path: Path, kept: int) -> None:
    """The server has asterisks where the log has secrets; what was cut within one, too."""
    whole = texts(with_secrets(0, 60))
    known = whole.replace(SECRET, b"*" * len(SECRET))
    first = len(texts(with_secrets(0, kept))) + 256 if kept else 1
    for cut in range(first, len(whole) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        piece = random.Random(cut).randint(1, 300)
        copy(folder, timed(with_secrets(kept, 60)), piece, handed_over(known[:cut]))
        assert output(folder)[cut:] == whole[cut:]
        assert GAP not in output(folder)


def test_a_copy_whose_end_is_nothing_but_a_secret_is_marked(tmp_path: Path) -> None:
    """It would fit everywhere."""
    known = b"x\n" + b"*" * 300
    lines = [(n, b"y" * 299 + b"\n") for n in range(5)]
    copy(tmp_path, timed(lines), 100, handed_over(known))
    assert output(tmp_path) == b"\0" * len(known) + GAP + texts(lines)


@pytest.mark.parametrize("begin", [600, 0], ids=["gone", "several times"])
def test_a_copy_that_is_taken_over_and_not_found_is_marked(tmp_path: Path, begin: int) -> None:
    known = texts(numbered(0, 500)) if begin else b"tick\n" * 500
    lines = numbered(600, 610) if begin else [(n, b"tick\n") for n in range(300)]
    for _ in range(2):
        copy(tmp_path, timed(lines), 100, handed_over(known))
    assert output(tmp_path) == b"\0" * len(known) + GAP + texts(lines)


def test_a_copy_that_is_taken_over_with_no_log_left_is_marked(tmp_path: Path) -> None:
    for _ in range(2):
        copy(tmp_path, b"", handed_over=handed_over(b"known\n"))
    assert output(tmp_path) == b"\0" * 6 + GAP


# -- the end


def test_the_end_is_said_once_at_whatever_byte_it_was_cut_off(tmp_path: Path) -> None:
    whole = texts(numbered(0, 20)) + CUT + TURNED
    for cut in range(len(texts(numbered(0, 20))), len(whole) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        copy(folder, timed(numbered(0, 20)))
        copy(folder, timed(numbered(10, 20)))
        seal(folder, cut=True)
        with (folder / OUTPUT).open("ab") as file:
            file.truncate(cut)
        seal(folder, cut=False)
        assert output(folder) == whole


def test_a_copy_without_the_last_line_does_not_end_as_the_log_does(tmp_path: Path) -> None:
    def tail(*lines: tuple[int, bytes]) -> list[tuple[str, bytes]]:
        return list(Lines().feed(timed(list(lines))))

    same = [(n, b"tick\n") for n in range(10)]
    copy(tmp_path, timed(same[:9]))
    assert ends_with(tmp_path, tail(same[8]), whole=False)
    assert not ends_with(tmp_path, tail(same[9]), whole=False)
    assert not ends_with(tmp_path, [], whole=False)
    copy(tmp_path, timed([*same, (11, b"long" * 5000)]))
    assert not ends_with(tmp_path, tail((12, b"long")), whole=False)
    assert ends_with(tmp_path, tail((12, b"long")), whole=True)
    (tmp_path / "other").mkdir()
    assert ends_with(tmp_path / "other", [], whole=True)
    assert not ends_with(tmp_path / "other", tail(same[0]), whole=True)
