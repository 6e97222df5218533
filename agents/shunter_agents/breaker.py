"""When launches fail one after another, the machine is broken, and should not eat up the queue.

Five failures in a row open the breaker: nothing new is taken. After five seconds, then after twice as
long each time up to five minutes, one run is taken as a probe. The first launch that succeeds closes it.
"""

from __future__ import annotations

from collections.abc import Callable

#: Launches in a row that fail until it opens.
THRESHOLD = 5
#: Seconds until the first probe, and at most between two.
FIRST, LIMIT = 5.0, 300.0
#: Seconds after which the launch of a run that has not ended has succeeded. One that ended has succeeded by
#: any end but LAUNCH_FAILURES: that the user's code fails at once says nothing of the machine.
PROVEN = 1.0


class Breaker:
    """Counts launches that fail.

    Args:
        clock: seconds of the boot-time clock.

    Attributes:
        failures: launches that failed since the last one that succeeded.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.failures = 0
        self._failed_at = 0.0
        self._delay = 0.0
        self._probe_at: float | None = None

    @property
    def open(self) -> bool:
        """Nothing but a probe is taken."""
        return self._probe_at is not None

    def failed(self) -> None:
        """A launch failed."""
        now = self._clock()
        self.failures += 1
        self._failed_at = now
        if self._probe_at is None:
            if self.failures >= THRESHOLD:
                self._delay = FIRST
                self._probe_at = now + self._delay
        elif now >= self._probe_at:  # the probe; others were under way when it opened
            self._delay = min(self._delay * 2, LIMIT)
            self._probe_at = now + self._delay

    def succeeded(self, started: float) -> None:
        """A launch succeeded that began its work at ``started``; one from before the last failure says nothing."""
        if started >= self._failed_at:
            self.failures = 0
            self._probe_at = None

    def probe_in(self) -> float:
        """Seconds until a probe may be taken; 0 if one may be now."""
        return 0.0 if self._probe_at is None else max(0.0, self._probe_at - self._clock())
