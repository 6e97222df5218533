"""A run whose every byte can be told from its place, and a reader of logs that knows what a mark means.

Output comes in blocks of 64 KiB, each beginning with its number. The run writes its head, waits for the file
``go``, writes the rest at its own pace, says so by the file ``written``, and waits for ``end``.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.patience import SOON

BLOCK = 64 * 1024
#: All that is lost of it begins with a line.
MARK = re.compile(rb"(?:(?<=\n)|\A)\[shunter: ([\d,]+) bytes of output are missing here: [^\n]*\]\n")

_FILL = b"abcdefghijklmno\n" * (BLOCK // 16 - 1)
_WRITER = """
import os, signal, sys, time
signal.alarm(100)  # whatever becomes of the test
head, rest, pause, folder = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
fill = b"abcdefghijklmno\\n" * (65536 // 16 - 1)
def write(first, last):
    for number in range(first, last):
        block = b"%015d\\n" % number + fill
        while block:
            block = block[os.write(1, block):]
        if number % 16 == 15:
            time.sleep(pause)
def wait(name):
    while not os.path.exists(folder + "/" + name):
        time.sleep(0.01)
write(0, head)
wait("go")
write(head, head + rest)
open(folder + "/written", "w").close()
wait("end")
"""


class Counted:
    """One such run, in the eyes of a test.

    Args:
        folder: for its signs.
        head, rest: blocks before and after ``go``.
        pause: seconds after each MiB.
    """

    def __init__(self, folder: Path, head: int, rest: int, pause: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size = folder, (head + rest) * BLOCK
        self.head = head * BLOCK
        self.command = [sys.executable, "-S", "-c", _WRITER, *map(str, (head, rest, pause, folder))]

    def go(self) -> None:
        (self.folder / "go").touch()

    def end(self) -> None:
        (self.folder / "end").touch()

    @property
    def written(self) -> bool:
        return (self.folder / "written").exists()

    def output(self, start: int, length: int) -> bytes:
        """What it wrote at some place."""
        first, last = start // BLOCK, (start + length - 1) // BLOCK + 1
        data = b"".join(b"%015d\n" % number + _FILL for number in range(first, last))
        return data[start - first * BLOCK :][:length]

    def check(self, log: bytes) -> list[tuple[int, int]]:
        """The gaps in a log that is otherwise exactly what it wrote, up to the last byte: (from, to)."""
        gaps, at = [], 0
        for number, piece in enumerate(MARK.split(log)):
            if number % 2:
                lost = int(piece.replace(b",", b""))
                gaps.append((at, at + lost))
                at += lost
            else:
                assert piece == self.output(at, len(piece)), f"other bytes than were written, after {at}"
                at += len(piece)
        assert at == self.size, f"{at} bytes are told of, {self.size} were written"
        return gaps


def taken(*folders: Path) -> int:
    """Bytes of the disk that the output below some folders takes."""
    total = 0
    for folder in folders:
        for path in folder.glob("*/output"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def until(true: Callable[[], object], seconds: float = SOON) -> None:
    """Wait until something is true that only the disk tells."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
