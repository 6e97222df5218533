"""The folder of a run that runs as another user: apart from the agent's state, which that user cannot enter.

``RUNS/AGENT/RUN.N`` (0700, the user's) holds the working folder, parameters, result and failure. What is above it is
the agent's, and nobody else can write there. The attempt's own folder has a link ``apart`` to it, made before it.

Once the folder is the user's, the agent never writes in it again: whatever is in there may be a trap by then.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from shunter_infrastructure.launcher import LauncherUnavailable, LaunchFailed
from shunter_infrastructure.process.users import User
from shunter_infrastructure.removing import remove
from shunter_work_pools.contracts.states import Cause

LINK = "apart"
WORK = "work"
PARAMETERS = "parameters.json"
#: Where they are unless the agent's policy names another folder.
RUNS = Path("/var/lib/shunter-runs")


def of(folder: Path) -> Path | None:
    """The folder apart of an attempt; None: it has none."""
    try:
        return Path(os.readlink(folder / LINK))
    except OSError:
        return None


def path(runs: Path, agent: str, folder: Path) -> Path:
    """Where that of an attempt is to be."""
    return runs / agent / folder.name


def make(place: Path, folder: Path, user: User, parameters: bytes) -> None:
    """Make it, unless it is there and the user's already.

    Raises:
        LaunchFailed: others could put something else in its place.
        LauncherUnavailable: it cannot be made.
    """
    try:
        for above in (place.parent.parent, place.parent):
            _make_closed(above)
        with contextlib.suppress(FileExistsError):
            os.symlink(place, folder / LINK)
        with contextlib.suppress(FileExistsError):
            os.mkdir(place, 0o700)
        owner = os.lstat(place).st_uid
        if owner == user.uid:
            return
        if owner != os.geteuid():
            raise _not_alone(place)
        with contextlib.suppress(FileExistsError):
            os.mkdir(place / WORK, 0o700)
        os.chown(place / WORK, user.uid, user.gid, follow_symlinks=False)
        _write(place / PARAMETERS, parameters, user)
        os.chown(place, user.uid, user.gid, follow_symlinks=False)  # last: from now on it is the user's
    except OSError as exc:
        raise LauncherUnavailable(
            f"the folder {place} of a run of {user.name} cannot be made: {exc.strerror}",
            "Free space there, or name another place under [users] folder in the agent's policy.",
        ) from exc


def _make_closed(above: Path) -> None:
    """A folder that others can pass through, if they know what is below, and do nothing else with."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(above, 0o711)
        os.chmod(above, 0o711)  # whatever the umask is  # nosec B103 # the users of runs pass through it, and cannot list it
    found = os.lstat(above)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise _not_alone(above)


def _not_alone(path: Path) -> LaunchFailed:
    return LaunchFailed(
        Cause.START_FAILED,
        f"{path}, for the folders of runs of other users, is not a folder of the agent's alone",
        "Remove it, or name another place under [users] folder in the agent's policy.",
    )


def _write(path: Path, data: bytes, user: User) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(data)
        os.fchown(fd, user.uid, user.gid)
    finally:
        os.close(fd)


def clean(folder: Path) -> None:
    """Remove that of an attempt that is over, if it has one.

    Raises:
        OSError: something of it cannot be removed yet.
    """
    place = of(folder)
    if place is not None and not remove(place):
        raise OSError(f"the folder {place} could not be removed whole")


def sweep(runs: Path, agent: str, attempts: Path) -> None:
    """Remove those whose attempts are not there any more: a former life was killed while it removed them."""
    try:
        names = os.listdir(runs / agent)
    except OSError:
        return
    for name in names:
        if not os.path.lexists(attempts / name):
            remove(runs / agent / name)
