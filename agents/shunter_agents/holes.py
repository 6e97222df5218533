"""Holes in files: giving blocks back to the disk without changing a file's size or anybody's offset in it.

Linux only (``FALLOC_FL_PUNCH_HOLE`` in fallocate(2): ext4, XFS, Btrfs, tmpfs, NFS 4.2 and others). Python has no
call for it; the C library's is loaded when it is first needed.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import cache

#: From linux/falloc.h.
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
#: Far behind the end of any file that is probed.
_BEYOND = 2**30


def punch(fd: int, start: int, length: int) -> None:
    """Give back the blocks that lie wholly in a range; it reads as zeros then.

    Args:
        fd: open for writing.

    Raises:
        OSError: with EOPNOTSUPP where it cannot be done here at all.
    """
    _fallocate()(fd, start, length)


def possible(file: os.PathLike[str]) -> bool:
    """Whether the file system of ``file`` can do it; the file does not change.

    Raises:
        OSError: it cannot be opened for writing, or this try says nothing of the file system.
    """
    fd = os.open(file, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        punch(fd, _BEYOND, 4096)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return False
    finally:
        os.close(fd)
    return True


@cache
def _fallocate() -> Callable[[int, int, int], None]:
    if sys.platform != "linux":

        def impossible(fd: int, start: int, length: int) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        return impossible

    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    # With 64-bit offsets also where `fallocate` has shorter ones; musl has only the one, and that is long.
    call = getattr(library, "fallocate64", None) or library.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

    def fallocate(fd: int, start: int, length: int) -> None:
        while call(fd, _PUNCH_HOLE | _KEEP_SIZE, start, length) != 0:
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))

    return fallocate
