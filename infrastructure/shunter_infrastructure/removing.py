"""Removing a folder that a run could write to, whatever it made of it.

No link is followed, also none that is put in the place of a folder meanwhile: everything is reached from the folder
that holds it, by a descriptor. A few of those are enough, however deep the folders are, and there is no recursion.
Folders that their owner closed are opened again.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RWX = 0o700


class _Moved(Exception):
    """A folder is not any more where it was entered."""


@dataclass
class _Level:
    """A folder that was entered: its name, which folder it was entered from, and what is to be entered in it."""

    name: str
    above: tuple[int, int]
    below: list[str]


def remove(folder: Path) -> bool:
    """Remove a folder with all that is in it; False if something could not be removed, which stays."""
    try:
        here = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        here = _remove(here, folder.name)
    except (OSError, _Moved):
        return False
    finally:
        with contextlib.suppress(OSError):
            os.close(here)
    return not os.path.lexists(folder)


def _remove(here: int, name: str) -> int:
    """Remove what has this name in the folder that is open as ``here``; what is open in its place afterwards.

    Raises:
        _Moved: somebody moved a folder away while it was emptied. ``here`` is closed.
    """
    trail: list[_Level] = []
    wanted = [name]
    while True:
        if wanted:
            inner = _enter(here, wanted[-1])
            if inner is None:
                wanted.pop()
                continue
            trail.append(_Level(wanted.pop(), _identity(here), wanted))
            os.close(here)
            here = inner
            wanted = _empty(here)
        elif trail:
            level = trail.pop()
            here = _leave(here, level.above)
            with contextlib.suppress(OSError):
                os.rmdir(level.name, dir_fd=here)
            wanted = level.below
        else:
            return here


def _enter(here: int, name: str) -> int | None:
    """A descriptor of a folder in ``here`` that can be emptied; None if there is no way in."""
    with contextlib.suppress(OSError):
        try:
            inner = os.open(name, _FOLDER, dir_fd=here)
        except PermissionError:
            _open_up(here, name)
            inner = os.open(name, _FOLDER, dir_fd=here)
        if os.fstat(inner).st_mode & _RWX != _RWX:
            with contextlib.suppress(OSError):
                os.fchmod(inner, _RWX)
        return inner
    return None


def _open_up(here: int, name: str) -> None:
    """Let its owner into a folder. What took its place meanwhile is left as it is."""
    if sys.platform != "linux":
        os.chmod(name, _RWX, dir_fd=here, follow_symlinks=False)
        return
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    try:
        os.chmod(f"/proc/self/fd/{fd}", _RWX)  # fchmod(2) refuses a descriptor of this kind
    finally:
        os.close(fd)


def _empty(here: int) -> list[str]:
    """Remove the files of a folder; the names of its folders."""
    folders = []
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.name, dir_fd=here)
    return folders


def _leave(here: int, above: tuple[int, int]) -> int:
    try:
        upper = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
    if _identity(upper) != above:
        os.close(upper)
        raise _Moved
    return upper


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
