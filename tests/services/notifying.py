"""A service manager's end of sd_notify(3): a socket, and what daemons said to it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.patience import SOON

#: Seconds between two signs of life that the daemons of these tests are asked for.
WATCHDOG = 0.4


@dataclass(frozen=True)
class Message:
    """One datagram: its lines, and when it came, by ``time.monotonic()``."""

    lines: dict[str, str]
    at: float

    def __contains__(self, name: str) -> bool:
        return name in self.lines

    def __getitem__(self, name: str) -> str:
        return self.lines[name]


@dataclass
class Listener:
    """The socket.

    Attributes:
        address: as ``NOTIFY_SOCKET`` has it.
        heard: everything so far.
    """

    address: str
    heard: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:] if self.address[0] == "@" else self.address)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def environment(self) -> dict[str, str]:
        """The variables that systemd would set, but for ``WATCHDOG_PID``."""
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(round(WATCHDOG * 1e6))}

    def until(self, true: Callable[[Message], bool], seconds: float = SOON) -> Message:
        """The next message of which it is true.

        Raises:
            AssertionError: none came.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            message = self._next(left)
            if message is not None and true(message):
                return message
        raise AssertionError(f"not heard within {seconds} s; last: {self.heard[-3:]}")

    def listen(self, seconds: float) -> list[Message]:
        """All that comes in so many seconds."""
        before, deadline = len(self.heard), time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._next(left)
        return self.heard[before:]

    def _next(self, seconds: float) -> Message | None:
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            return None
        lines = dict(line.split("=", 1) for line in data.decode().split("\n"))
        self.heard.append(Message(lines, time.monotonic()))
        return self.heard[-1]


@contextlib.contextmanager
def daemon(words: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon as systemd would start it: ``WATCHDOG_PID`` is its own. It is killed at the end if it still is."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            ["sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh", sys.executable, *words],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ends(process: subprocess.Popen[bytes], how: int = signal.SIGTERM, seconds: float = SOON) -> int:
    """Its exit code, once it has been asked to end."""
    process.send_signal(how)
    return process.wait(seconds)
