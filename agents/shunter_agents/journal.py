"""What the agent writes down about one attempt, before it acts on it.

``journal.jsonl`` in the attempt's folder, one line per entry, appended only. Its first line says what is
owned, and is there before anything else is done with the attempt: a folder without a whole first line was
never owned.

* ``{"assignment": {...}, "launcher": NAME, "received": STAMP, "devices": {NAME: [NUMBER, ...]}}``: what it is,
  and which devices are its own (left out if none are); again, if it is granted again under a higher epoch;
* ``{"report": {...}, "at": STAMP}``: a report, in the order of ``seq``;
* ``{"stop": REASON, "at": STAMP}``: the agent is about to stop the work;
* ``{"gap": [FROM, TO]}``: these bytes of its output are given up; a hole in the file may take their place;
* ``{"crashed": SIZE}``: its output had so many bytes when its flow crashed; behind them is what hooks say;
* ``{"acked": SEQ, "epoch": EPOCH}``: the server has them up to SEQ (written only where the folder
  outlives the acknowledgement).

One file, since making files is the dear part of a short run (on ext4 it waits for other people's fsyncs).
Nothing is fsynced: what a killed process wrote is safe in the kernel. After a loss of power the boot id
differs, and nothing is guessed. A line torn by a full disk, and a blank one, is passed over.

The number of a report is fixed by its state (:data:`SEQ`). A report that could not be written down, was
sent, and is made again by the agent's next life has the same number then, and the server knows it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
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

_FILE = "journal.jsonl"


class Damaged(Exception):
    """A journal that cannot be read."""


@dataclass(frozen=True)
class Record:
    """What is owned.

    Attributes:
        launcher: name (pool type) of the launcher that it is for.
        received: when this agent got to know of it.
        devices: numbers of those that it needs, by name; nobody else's while anything of it runs.
    """

    assignment: Assignment
    launcher: str
    received: Stamp
    devices: Mapping[str, list[int]] = field(default_factory=dict)


class Journal:
    """The journal of one attempt, in its folder."""

    __slots__ = ("_torn", "folder")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._torn = False

    def write_record(self, record: Record) -> None:
        """Write down what is owned.

        Raises:
            OSError: it cannot be written; what was there before still is.
        """
        facts: dict[str, Any] = {"launcher": record.launcher, "received": record.received.to_json()}
        if record.devices:
            facts["devices"] = record.devices
        about = json.dumps(facts)
        # On a line of its own also where a full disk tore what a journal of the same folder began with.
        self._append(f'\n{{"assignment": {record.assignment.model_dump_json()}, {about[1:]}\n'.encode())

    def append(self, line: dict[str, Any]) -> None:
        """Add one line.

        Raises:
            OSError: it cannot be written (a part of it may have been; that is passed over in reading).
        """
        self._append(json.dumps(line).encode() + b"\n")

    def clear(self) -> None:
        """Forget everything, for another attempt in the same folder.

        A blank line stays: ext4 writes out at once what was emptied and closed.

        Raises:
            OSError: it cannot be written.
        """
        handle = os.open(os.path.join(self.folder, _FILE), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(handle, b"\n", 0)
            os.ftruncate(handle, 1)
        finally:
            os.close(handle)

    def read(self) -> tuple[Record | None, list[dict[str, Any]]]:
        """What is owned, and the other lines. None: the attempt was never owned.

        Raises:
            Damaged: it cannot be understood.
        """
        try:
            body = (self.folder / _FILE).read_bytes()
        except FileNotFoundError:
            return None, []
        except OSError as exc:
            raise Damaged(str(exc)) from exc
        self._torn = bool(body) and not body.endswith(b"\n")
        record: Record | None = None
        lines: list[dict[str, Any]] = []
        for text in body.split(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if not isinstance(line, dict):
                continue
            if "assignment" in line:
                record = _read_record(line)
            else:
                lines.append(line)
        if record is None and lines:
            raise Damaged("it does not say what it is about")
        return record, lines

    def _append(self, body: bytes) -> None:
        try:
            handle = os.open(
                os.path.join(self.folder, _FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                whole = b"\n" + body if self._torn else body
                if os.write(handle, whole) != len(whole):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
            finally:
                os.close(handle)
        except OSError:
            self._torn = True
            raise
        self._torn = False


def _read_record(line: dict[str, Any]) -> Record:
    try:
        return Record(
            assignment=Assignment.from_answer(json.dumps(line["assignment"])),
            launcher=str(line["launcher"]),
            received=Stamp.from_json(line["received"]),
            devices={
                str(name): [int(number) for number in numbers]
                for name, numbers in line.get("devices", {}).items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Damaged(str(exc)) from exc
