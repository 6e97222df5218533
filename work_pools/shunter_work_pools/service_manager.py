"""What a daemon tells the service manager that started it: that it is ready, alive, stopping.

The protocol is that of sd_notify(3) and sd_watchdog_enabled(3): datagrams of lines ``NAME=value`` to the
socket that ``NOTIFY_SOCKET`` names. Each message says all that is so, as a sync does: one that is lost is made
good by the next. Where nobody listens nothing is done, and nothing that happens to the socket stops a daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

#: Seconds: a daemon whose loop has not come around for so long hangs. An agent's may take as long as the answer
#: to a sync, and a pause that the server asked for (``agents/link.py``).
PATIENCE = 120.0
#: Seconds between two messages at the most. Who is stopping has to ask for more time before ``TimeoutStopSec`` is
#: over, however long the service manager would wait for a sign of life.
INTERVAL = 15.0


@dataclass(frozen=True)
class Condition:
    """How a daemon is.

    Attributes:
        status: for people, one line.
        moved_at: when its loop last came around, by ``time.monotonic()``.
    """

    status: str
    ready: bool
    stopping: bool
    moved_at: float


class ServiceManager:
    """The service manager, if there is one that wants to hear of this process.

    Args:
        address: of its socket: a path, or ``@NAME`` in the abstract namespace; None: nobody listens.
        watchdog: it wants a sign of life at least every so many seconds; None: none.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._watchdog = watchdog
        self._interval = INTERVAL if watchdog is None else min(watchdog / 2, INTERVAL)
        self._socket: socket.socket | None = None
        if address is not None and address[:1] in ("/", "@"):
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> ServiceManager:
        """The one that the environment names. It is taken out there: the messages of what this process starts
        are not its own."""
        address = environ.pop("NOTIFY_SOCKET", None)
        every, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        watched = every.isdecimal() and int(every) > 0 and pid in ("", str(os.getpid()))
        if address and watched:
            faulthandler.enable()  # a watchdog ends by SIGABRT what hangs: then the log shows where
        return cls(address or None, int(every) / 1e6 if watched else None)

    def tell(self, condition: Condition) -> None:
        """Say how this process is, now."""
        if self._socket is None:
            return
        lines = [f"STATUS={' '.join(condition.status.split())}"]
        if condition.stopping:
            lines.append("STOPPING=1")
        elif condition.ready:
            lines.append("READY=1")
        if time.monotonic() - condition.moved_at < PATIENCE:
            if self._watchdog is not None:
                lines.append("WATCHDOG=1")
            if condition.stopping:
                # Beyond TimeoutStopSec, as long as it moves; the next message comes long before this is over.
                lines.append(f"EXTEND_TIMEOUT_USEC={round(self._interval * 4e6)}")
        with contextlib.suppress(OSError):
            self._socket.sendto("\n".join(lines).encode(), self._address)

    async def keep_told(self, look: Callable[[], Condition]) -> None:
        """Say it over and over, at half the interval that is asked for or sooner, until cancelled.

        This runs in the daemon's event loop: one that is blocked gives no sign of life.
        """
        while self._socket is not None:
            self.tell(look())
            await asyncio.sleep(self._interval)
        await asyncio.get_running_loop().create_future()
