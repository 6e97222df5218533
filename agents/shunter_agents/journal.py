"""What the agent writes down about one attempt, before it acts on it.

``assignment.json`` says what it owns: written in one step before anything else is done, so that a
folder without it was never owned. ``reports.jsonl`` grows by one line per step:

* ``{"report": {...}, "at": STAMP}``: a report, in the order of ``seq``;
* ``{"stop": REASON, "at": STAMP}``: the agent is about to stop the work;
* ``{"acked": SEQ, "epoch": EPOCH}``: the server has them up to SEQ (written only where the folder
  outlives the acknowledgement).

Nothing is fsynced: what a killed process wrote is safe in the kernel. After a loss of power the boot id
differs, and nothing is guessed. A last line torn by a full disk is passed over.

The number of a report is fixed by its state (:data:`SEQ`). A report that could not be written down, was
sent, and is made again by the agent's next life has the same number then, and the server knows it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.states import ATTEMPT_ENDS, AttemptState

#: Number of the report of each state.
SEQ: dict[AttemptState, int] = {
    AttemptState.STARTING: 1,
    AttemptState.RUNNING: 2,
    **dict.fromkeys(ATTEMPT_ENDS, 3),
}
END_SEQ = 3

_ASSIGNMENT = "assignment.json"
_REPORTS = "reports.jsonl"


class Damaged(Exception):
    """A journal that cannot be read."""


@dataclass(frozen=True)
class Record:
    """What ``assignment.json`` holds.

    Attributes:
        launcher: name (pool type) of the launcher that it is for.
        received: when this agent got to know of it.
    """

    assignment: Assignment
    launcher: str
    received: Stamp


class Journal:
    """The journal of one attempt, in its folder."""

    __slots__ = ("_torn", "folder")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._torn = False

    def write_record(self, record: Record) -> None:
        """Write ``assignment.json`` in one step, over the one before.

        Raises:
            OSError: it cannot be written; what was there before still is.
        """
        head = json.dumps({"version": 1, "launcher": record.launcher, "received": record.received.to_json()})
        body = f'{head[:-1]}, "assignment": {record.assignment.model_dump_json()}}}\n'
        draft = os.path.join(self.folder, f"{_ASSIGNMENT}.new")
        _write(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, body.encode())
        os.rename(draft, os.path.join(self.folder, _ASSIGNMENT))

    def read_record(self) -> Record | None:
        """What ``assignment.json`` holds; None if there is none: the attempt was never owned.

        Raises:
            Damaged: it cannot be understood.
        """
        try:
            body = json.loads((self.folder / _ASSIGNMENT).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise Damaged(str(exc)) from exc
        try:
            return Record(
                assignment=Assignment.from_answer(json.dumps(body["assignment"])),
                launcher=str(body["launcher"]),
                received=Stamp.from_json(body["received"]),
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise Damaged(str(exc)) from exc

    def append(self, line: dict[str, Any]) -> None:
        """Add one line to ``reports.jsonl``.

        Raises:
            OSError: it cannot be written (a part of it may have been; that is passed over in reading).
        """
        body = json.dumps(line).encode() + b"\n"
        try:
            _write(
                os.path.join(self.folder, _REPORTS),
                os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                b"\n" + body if self._torn else body,
            )
        except OSError:
            self._torn = True
            raise
        self._torn = False

    def read_lines(self) -> Iterator[dict[str, Any]]:
        """The lines of ``reports.jsonl``, without those that are torn."""
        try:
            body = (self.folder / _REPORTS).read_bytes()
        except FileNotFoundError:
            return
        self._torn = bool(body) and not body.endswith(b"\n")
        for text in body.split(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def _write(path: str, flags: int, body: bytes) -> None:
    handle = os.open(path, flags, 0o600)
    try:
        if os.write(handle, body) != len(body):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(handle)
