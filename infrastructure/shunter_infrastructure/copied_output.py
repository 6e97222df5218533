"""The output of an attempt, copied from an engine's log into its folder, and what is written beside it of the log.

Both launchers whose engine keeps the output pass over as much of the log as the file has already, so that a copier
that is killed at any instruction goes on exactly where it was.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

OUTPUT, MARK = "output", "output.mark"


@dataclass(frozen=True)
class Mark:
    """How file and log belong together.

    Attributes:
        first: time of the log's first entry.
        base: where in the file the log begins; less than 0 if its beginning was never copied.
        last: time of the last entry that was copied, or of an earlier one.
    """

    first: str
    base: int
    last: str

    def save(self, folder: Path) -> None:
        draft = folder / f"{MARK}.new"
        draft.write_text(json.dumps(asdict(self)))
        os.replace(draft, folder / MARK)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        try:
            return cls(**json.loads((folder / MARK).read_text()))
        except FileNotFoundError:
            return None


def open_output(folder: Path) -> int:
    """A descriptor of the file, for reading and appending; made if it is missing."""
    return os.open(folder / OUTPUT, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def write_whole(fd: int, data: bytes | bytearray) -> None:
    """Write all of it, however few bytes each call takes.

    Raises:
        OSError: it cannot be written; what was written stays.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def end_with(folder: Path, note: bytes) -> None:
    """Append a note, unless the output ends with it already; the rest of one that was cut off is written."""
    fd = open_output(folder)
    try:
        size = os.fstat(fd).st_size
        end = os.pread(fd, len(note), max(0, size - len(note)))
        had = next(count for count in range(len(note), -1, -1) if end.endswith(note[:count]))
        write_whole(fd, note[had:])
    finally:
        os.close(fd)
