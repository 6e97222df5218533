"""What a flow leaves of its tasks where the agent can read it: the journal, and larger results beside it.

``tasks/journal`` and ``tasks/results/NAME`` in a folder of the run's. The run decides what lies there, and the agent may
read more than the run may: no link is followed, and nothing but regular files counts.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shunter_work_pools.contracts.tasks import LINE_LIMIT, OWN_ENDS, RESULT_NAME, TASK_STATES

FOLDER = "tasks"
JOURNAL = "journal"
RESULTS = "results"
#: Beside the journal of a run that brings it to the server itself: how far that has come.
BROUGHT = "journal.brought"

_NAME = re.compile(RESULT_NAME)
_BLOCK = 1024 * 1024

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: a run may have put a named pipe there.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class TaskFiles:
    """Those of one attempt.

    Attributes:
        place: the folder that ``tasks`` is in; nobody but the agent decides what that is.
        owner: user whose files they must be; None: whoever can write there.
    """

    place: Path
    owner: int | None = None

    def journal_size(self) -> int:
        """Bytes of the journal; 0: there is none, or what is there cannot be one."""
        try:
            # Of most runs there is none: this is all that they cost.
            os.lstat(f"{self.place}/{FOLDER}/{JOURNAL}")
        except OSError:
            return 0
        with suppress(OSError), self._opened(JOURNAL) as fd:
            return os.fstat(fd).st_size
        return 0

    def read_journal(self, offset: int, limit: int) -> bytes:
        """Some of it; empty at its end.

        Raises:
            OSError: it cannot be read.
        """
        with self._opened(JOURNAL) as fd:
            return os.pread(fd, limit, offset)

    def read_result(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        """Some of a result, and how large all of it is.

        Raises:
            OSError: it cannot be read.
        """
        with self._opened(RESULTS, os.path.basename(name)) as fd:
            return os.pread(fd, limit, offset), os.fstat(fd).st_size

    def a_flow_has_ended(self) -> bool:
        """Whether an outermost flow has come to an end by itself; all of the journal is read for it.

        Raises:
            OSError: it cannot be read.
        """
        at, rest = 0, b""
        while data := self.read_journal(at, _BLOCK):
            at += len(data)
            *lines, rest = (rest + data).split(b"\n")
            if any(map(_is_end_of_outermost, lines)):
                return True
            if len(rest) > LINE_LIMIT:
                rest = b""
        return False

    @contextmanager
    def _opened(self, *names: str) -> Iterator[int]:
        fd = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in (FOLDER, *names):
                flags = _FILE_FLAGS if name is names[-1] else _FOLDER_FLAGS
                inner = os.open(name, flags, dir_fd=fd)
                os.close(fd)
                fd = inner
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            if self.owner is not None and found.st_uid != self.owner:
                raise OSError(errno.EPERM, "it is a file of another user")
            yield fd
        finally:
            os.close(fd)


def results_in(lines: bytes) -> list[str]:
    """The results that some lines of a journal name, each once."""
    names: dict[str, None] = {}
    for line in lines.split(b"\n"):
        if b'"f":' in line:
            result = parsed(line).get("r")
            name = result.get("f") if isinstance(result, dict) else None
            if isinstance(name, str) and _NAME.fullmatch(name):
                names[name] = None
    return list(names)


def _is_end_of_outermost(line: bytes) -> bool:
    if b'"y":"flow"' not in line:
        return False
    about = parsed(line)
    return about.get("y") == "flow" and "p" not in about and TASK_STATES.get(str(about.get("s"))) in OWN_ENDS


def parsed(line: bytes) -> dict[str, object]:
    """A line of a journal; empty if it is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
