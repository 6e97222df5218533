"""Something to be done later: one thread for all of a process, which is there from the first time on."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from itertools import count


class Alarm:
    """One thing to be done at a moment."""

    __slots__ = ("do",)

    def __init__(self, do: Callable[[], None]) -> None:
        self.do: Callable[[], None] | None = do

    def cancel(self) -> None:
        """Do not do it, unless it is being done."""
        self.do = None


class Clock:
    """A heap of alarms and the thread that does them. What is done must be short."""

    def __init__(self) -> None:
        self._bell = threading.Condition()
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = count()
        self._thread: threading.Thread | None = None

    def later(self, seconds: float, do: Callable[[], None]) -> Alarm:
        """Do this in so many seconds."""
        alarm = Alarm(do)
        with self._bell:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shunter-clock", daemon=True)
                self._thread.start()
            moment = time.monotonic() + seconds
            heapq.heappush(self._heap, (moment, next(self._numbers), alarm))
            if self._heap[0][2] is alarm:
                self._bell.notify()
        return alarm

    def _run(self) -> None:
        while True:
            with self._bell:
                while not self._heap or self._heap[0][0] > time.monotonic():
                    self._bell.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                alarm = heapq.heappop(self._heap)[2]
            if (do := alarm.do) is not None:
                try:
                    do()
                except Exception:
                    from shunter.loggers import get_logger

                    get_logger("shunter").exception("what was to be done later failed")


clock = Clock()
