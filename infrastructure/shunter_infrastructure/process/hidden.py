"""Secrets on their way from the agent to the command: in memory alone, in no file, argument or other environment.

The agent writes them into a sealed memfd and hands its descriptor over with the launch; the keeper reads it and puts
them into the environment of the command. Standard library, and little of it: the keeper imports this.
"""

from __future__ import annotations

import errno
import os

from shunter_infrastructure.process.lean import decode_json, quote

_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # fcntl(2): nobody can seal, shrink, grow or write it any more
_ADD_SEALS = 1033


def make(secrets: dict[str, str]) -> int:
    """A descriptor of a sealed memfd with these variables; the caller closes it.

    Raises:
        OSError: it cannot be made; ENOSYS where the system has none (macOS).
    """
    import fcntl

    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    data = ",".join(f"{quote(name)}:{quote(value)}" for name, value in secrets.items())
    fd: int = os.memfd_create("launch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(f"{{{data}}}".encode("ascii"))
        while rest:
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> dict[str, str]:
    """The variables behind a descriptor, however often it was read before.

    Raises:
        OSError: there is no such descriptor.
        ValueError: it holds something else.
    """
    parts: list[bytes] = []
    at = 0
    while part := os.pread(fd, 1 << 20, at):
        parts.append(part)
        at += len(part)
    found: dict[str, str] = decode_json(b"".join(parts).decode("ascii"))
    return found
