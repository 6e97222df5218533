"""What this life of an agent counts, for its metrics: starts, ends, and how long things took."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

from shunter_work_pools.contracts.states import AttemptState, Cause

#: Seconds between two looks at how late the event loop is.
LOOK = 0.5


class Distribution:
    """How often something took how long.

    Args:
        bounds: seconds, rising.

    Attributes:
        total: seconds of all together.
    """

    def __init__(self, *bounds: float) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """It took so long once more."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: for each bound how often it was not over that."""
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))


class Tally:
    """Counts.

    Attributes:
        starts: attempts that began to run.
        ends: how attempts ended: state, and cause (empty if there is none).
        launches: from the assignment to the first instruction.
        loop_delay: by how much the event loop came late to what was due.
    """

    def __init__(self) -> None:
        self.starts = 0
        self.ends: Counter[tuple[str, str]] = Counter()
        self.launches = Distribution(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
        self.loop_delay = Distribution(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

    def started(self, after: float | None) -> None:
        """An attempt began to run, so many seconds after it was granted; None: it was found so."""
        self.starts += 1
        if after is not None:
            self.launches.add(max(0.0, after))

    def ended(self, state: AttemptState, cause: Cause | None) -> None:
        """An attempt ended."""
        self.ends[state.value, cause.value if cause else ""] += 1

    async def watch_loop(self) -> None:
        """Look how late the event loop is, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK
            await asyncio.sleep(LOOK)
            self.loop_delay.add(max(0.0, loop.time() - due))
