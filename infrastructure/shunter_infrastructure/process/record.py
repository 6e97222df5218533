"""The keeper's ``record``, as the agent reads it: who keeps, what was started, how it ended."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_infrastructure.process import procfs
from shunter_infrastructure.process.lean import VERSION
from shunter_infrastructure.stamp import Stamp, boot_id

RECORD = "record"
#: A record is a few hundred bytes; what is longer was not written by a keeper.
_LIMIT = 64 * 1024


@dataclass(frozen=True)
class Failed:
    """The command could not be started: at which step, and the system's error."""

    step: str
    errno: int
    text: str
    at: Stamp


@dataclass(frozen=True)
class Ended:
    """How the command ended.

    Attributes:
        status: as wait(2) gave it.
        stopped: it was asked to stop before.
        leftovers: processes that were still running after it, and were stopped.
        left_alive: of those, such as could not be killed, being another user's.
        lease: it was made to end because its lease did.
        oom_kills: processes of it that the kernel killed for memory, where that is counted.
        at: when the command itself ended.
    """

    status: int
    stopped: bool
    leftovers: int
    left_alive: int
    cpu_seconds: float
    max_rss_bytes: int
    at: Stamp
    lease: bool = False
    oom_kills: int = 0

    @property
    def exit_code(self) -> int | None:
        """None if a signal ended it."""
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else None

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended it; None if it exited."""
        if not os.WIFSIGNALED(self.status):
            return None
        number = os.WTERMSIG(self.status)
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > 31 else f"SIG{number}"


@dataclass(frozen=True)
class Record:
    """What is known of an attempt's process. All None: the record is there, but nothing in it is whole.

    Attributes:
        keeper, keeper_start, boot: identity of the keeper: process id, start in clock ticks, boot id.
        pid, pid_start: identity of the command's process.
        started: when that began.
    """

    keeper: int | None = None
    keeper_start: int = 0
    boot: str | None = None
    pid: int | None = None
    pid_start: int = 0
    started: Stamp | None = None
    failed: Failed | None = None
    ended: Ended | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing more will be written."""
        return self.failed is not None or self.ended is not None

    @property
    def is_of_this_boot(self) -> bool:
        """Whether its process ids mean anything now."""
        return self.boot == boot_id()

    def keeper_runs(self) -> bool:
        """Whether the keeper is alive now."""
        return (
            self.keeper is not None
            and self.is_of_this_boot
            and procfs.is_running(self.keeper, self.keeper_start)
        )


def parse(lines: list[str]) -> Record:
    """The record of these lines; one that is torn or not understood is left out.

    Raises:
        LauncherUnavailable: a newer version wrote them; what they mean is not guessed.
    """
    found: dict[str, Any] = {}
    for line in lines:
        try:
            value = json.loads(line)
            if value["is"] == "keeper" and value["version"] > VERSION:
                raise LauncherUnavailable(
                    f"an attempt was started by a newer version of Shunter: its record, of process {value['pid']}, "
                    f"has version {value['version']}, and this agent knows {VERSION} and older",
                    "Its run goes on. Start the newer version of the agent again to see it to its end.",
                )
            found |= _members(value)
        except (ValueError, KeyError, TypeError):
            continue
    return Record(**found)


def _members(value: dict[str, Any]) -> dict[str, Any]:
    kind = value["is"]
    if kind == "keeper":
        return {"keeper": int(value["pid"]), "keeper_start": int(value["start"]), "boot": str(value["boot"])}
    at = Stamp.from_json(value)
    if kind == "started":
        return {"pid": int(value["pid"]), "pid_start": int(value["start"]), "started": at}
    if kind == "failed":
        return {"failed": Failed(str(value["step"]), int(value["errno"]), str(value["text"]), at)}
    if kind == "ended":
        ended = Ended(
            status=int(value["status"]),
            stopped=bool(value["stopped"]),
            leftovers=int(value["leftovers"]),
            left_alive=int(value["left_alive"]),
            cpu_seconds=float(value["cpu_seconds"]),
            max_rss_bytes=int(value["max_rss_bytes"]),
            at=at,
            lease=bool(value.get("lease", False)),
            oom_kills=int(value.get("oom_kills", 0)),
        )
        return {"ended": ended}
    return {}


def read(folder: Path | str) -> Record | None:
    """The record in an attempt's folder; None if there is none.

    Raises:
        OSError: it is there but cannot be read.
        LauncherUnavailable: a newer version wrote it.
    """
    try:
        fd = os.open(os.path.join(folder, RECORD), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        data = os.read(fd, _LIMIT)
    finally:
        os.close(fd)
    # What follows the last line end is torn: its writer died, or is about to go on.
    return parse(data.decode(errors="replace").split("\n")[:-1])
