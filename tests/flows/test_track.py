"""``track``: a bar in a real terminal; what it tells a run is shown in ``test_on_a_server``."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

PROGRAM = """
import sys
from shunter import progress, track
progress.time.monotonic = iter(range(10_000)).__next__  # each word is due
{line}
"""


def drawn(line: str, columns: int = 80) -> list[str]:
    """What a program draws on a terminal, one entry for each time that it begins at the left."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    words = [sys.executable, "-c", PROGRAM.format(line=line)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs):
        os.close(theirs)
        told = b""
        while part := _read(ours):
            told += part
    os.close(ours)
    return told.decode().split("\r")[1:]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # its last writer is gone (Linux says EIO)
        return b""


@pytest.mark.parametrize(
    ("line", "last"),
    [
        ("for n in track(range(4), 'reading'): pass", "reading [##############################] 100%"),
        ("for n in track(iter(range(4)), 'reading'): pass", "reading 4"),
        ("for n in track(iter(range(4)), total=3): pass", "[##############################] 100%"),
        ("for n in track(range(4)):\n    if n == 2: break", "[###############...............]  50%"),
        ("for n in track([], 'nothing'): pass", "nothing 0"),
    ],
)
def test_a_bar_in_a_terminal(line: str, last: str) -> None:
    *_, end, newline = drawn(line)
    assert (end, newline) == (last, "\n")


def test_it_is_drawn_over_itself_in_narrow_terminals_too() -> None:
    told = drawn(f"for n in track(range(40), {'a long description ' * 20!r}): pass", columns=60)
    assert len(told) >= 40
    assert {len(one.rstrip("\n")) for one in told[:-1]} == {59}
    assert told[0].endswith(" [..............................]   2%")
    assert told[0].startswith("a long description ")


def test_nothing_is_drawn_where_nobody_looks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(line="print(sum(track(range(4), 'reading')))")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("6\n", "")
