"""Learning of a keeper's end without asking again and again: a pidfd in the event loop."""

from __future__ import annotations

import asyncio
import os
import signal

from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_infrastructure.process import procfs

#: Seconds between two looks where the system has no pidfd (macOS, old kernels, strict sandboxes).
_POLL = 0.05


class KeeperWatch:
    """Waits for the end of one process, for any number of waiters.

    Args:
        pid, start: its id, and its start in clock ticks; another process of that id counts as its end.

    Attributes:
        holders: how many use it; the last one closes it.
    """

    def __init__(self, pid: int, start: int) -> None:
        self._pid = pid
        self._start = start
        self.holders = 0
        self._fd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._end()
            return
        except (OSError, AttributeError):
            self._look()
            return
        # Asked after the pidfd was opened: from here on it cannot become somebody else's.
        if procfs.is_running(pid, start):
            self._loop.add_reader(self._fd, self._end)
        else:
            self._end()

    async def wait(self) -> None:
        """Return when the process has ended.

        Raises:
            LauncherUnavailable: the watch was closed before.
        """
        await asyncio.shield(self._ended)

    def send(self, number: int) -> None:
        """Send a signal to exactly this process; nothing happens if it has ended."""
        if self._ended.done():
            return
        try:
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, number)
            elif procfs.is_running(self._pid, self._start):
                os.kill(self._pid, number)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Stop watching; who still waits is told."""
        self._release()
        if not self._ended.done():
            self._ended.set_exception(LauncherUnavailable("the launcher was closed"))
            self._ended.exception()  # seen, also if nobody waits

    def _look(self) -> None:
        if procfs.is_running(self._pid, self._start):
            self._timer = self._loop.call_later(_POLL, self._look)
        else:
            self._end()

    def _end(self) -> None:
        self._release()
        if not self._ended.done():
            self._ended.set_result(None)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
