"""Heartbeats while the agent itself is held up: what it writes down waits for a disk that does not answer.

The agent writes before it acts, and waits for that. A thread watches it, and when it has not come to
itself for :data:`HELD_UP` seconds, says its last sync again in its place: still here, taking nothing. The
answer is of no interest, since a sync is about the whole state: whatever it said is said again to the next
one. Should the agent not come back at all, the thread falls silent after :data:`LIMIT` seconds: then it is
as lost as it looks. (Leases of exclusive runs are not made longer by this: only the agent does that.)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

from shunter_work_pools.contracts.agents import SyncRequest

#: Seconds without a sign of the event loop until the thread speaks for it; then so often.
HELD_UP = 4.0
#: Seconds for which it does so.
LIMIT = 180.0

TROUBLE = "the agent is held up: what it has to write down waits for its disk"


class Heartbeat:
    """Speaks for an agent that is held up.

    Args:
        say: sends a sync; called in the thread. Whatever it raises is passed over.

    Attributes:
        last: the last sync that the agent sent; None: it never did.
    """

    def __init__(self, say: Callable[[SyncRequest], object]) -> None:
        self._say = say
        self.last: SyncRequest | None = None
        self._end = threading.Event()

    def start(self) -> None:
        """Watch the running loop from now on."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._watch, args=(loop,), name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._end.set()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        came = threading.Event()
        while not self._end.is_set():
            asked = time.monotonic()
            came.clear()
            try:
                loop.call_soon_threadsafe(came.set)
            except RuntimeError:
                return  # the loop is closed
            while not came.wait(HELD_UP):
                if self._end.is_set():
                    return
                if time.monotonic() - asked < LIMIT:
                    self._speak()
            self._end.wait(HELD_UP)

    def _speak(self) -> None:
        last = self.last
        if last is None:
            return
        request = last.model_copy(
            update={"taking": False, "free": 0, "hold_for": 0.0, "troubles": [*last.troubles, TROUBLE][-20:]}
        )
        with contextlib.suppress(Exception):
            self._say(request)
