"""The user as whom a run is to run (``run_as``): who that is, and whether the agent may start something as somebody else."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter_infrastructure.launcher import LaunchFailed
from shunter_work_pools.contracts.states import Cause

#: The highest id; the number after it means "none" to the kernel, which would leave the run the agent's own.
_HIGHEST = 2**32 - 2
#: What it takes, as capabilities(7) counts them: to give a run its folder, to look after that folder, to stop the
#: run, and to become its user.
_NEEDED = {0: "CAP_CHOWN", 1: "CAP_DAC_OVERRIDE", 5: "CAP_KILL", 6: "CAP_SETGID", 7: "CAP_SETUID"}


@dataclass(frozen=True)
class User:
    """A user of this machine.

    Attributes:
        groups: all of its groups, ``gid`` among them.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    def to_json(self) -> dict[str, Any]:
        """As the keeper is told."""
        return {"name": self.name, "uid": self.uid, "gid": self.gid, "groups": list(self.groups)}

    @property
    def variables(self) -> dict[str, str]:
        """What login(1) would set."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}


def find(run_as: str) -> User:
    """The user of a name, or of a number, which need not have an entry in the user database.

    Raises:
        LaunchFailed: there is none.
    """
    try:
        if not run_as.isdecimal():
            return _of_entry(pwd.getpwnam(run_as))
        number = int(run_as)
        if number <= _HIGHEST:
            return _of_number(number)
    except KeyError:
        pass
    raise LaunchFailed(
        Cause.REJECTED,
        f"the agent's machine has no user {run_as}, as whom it is to run",
        "Correct the deployment's run_as, or make that user there.",
    )


def _of_number(number: int) -> User:
    try:
        return _of_entry(pwd.getpwuid(number))
    except KeyError:
        pass
    try:
        group = grp.getgrgid(number).gr_name
    except KeyError:
        return User(str(number), number, number, (number,), "/", "/bin/sh")
    raise LaunchFailed(
        Cause.REJECTED,
        f"user {number} has no entry on the agent's machine, and the group of that number is {group}'s",
        "Make an entry for the user, which says what its group is.",
    )


def _of_entry(entry: pwd.struct_passwd) -> User:
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return User(
        entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir or "/", entry.pw_shell or "/bin/sh"
    )


def other(run_as: str | None) -> User | None:
    """Whom a run must be given to; None: it is the agent's own user.

    Raises:
        LaunchFailed: there is no such user, or the agent may not start anything as another one.
    """
    if run_as is None:
        return None
    user = find(run_as)
    if user.uid == os.geteuid():
        return None
    missing = _missing()
    if missing:
        raise LaunchFailed(
            Cause.REJECTED,
            f"it is to run as {user.name}, and this agent, of user {os.geteuid()}, may not start anything as another "
            f"user: it has no {', '.join(missing)}",
            "Run the agent as root or with these capabilities, deploy without run_as, or to another pool.",
        )
    return user


def _missing() -> list[str]:
    if sys.platform != "linux":
        return [] if os.geteuid() == 0 else ["rights of root"]
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return [name for bit, name in _NEEDED.items() if not held >> bit & 1]
    return []
