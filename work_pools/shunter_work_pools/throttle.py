"""How often somebody may: so many at once, and so many a second after that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Allowance:
    """What is left to one.

    Attributes:
        left: as of ``at``; below one, nothing is.
        at: seconds, of any clock that does not go back.
    """

    left: float
    at: float

    def take(self, now: float, rate: float, most: float) -> float:
        """Take one; seconds to wait until there is one, 0: it was taken.

        Args:
            rate: so many a second come back.
            most: so many can be left.
        """
        self.left = min(most, self.left + (now - self.at) * rate)
        self.at = now
        if self.left < 1.0:
            return (1.0 - self.left) / rate
        self.left -= 1.0
        return 0.0


class Throttle:
    """Allowances by name, of those who have used some of theirs.

    Args:
        rate, burst: as for :meth:`Allowance.take`.
        most: names that are kept; who has long taken nothing is forgotten first.
    """

    def __init__(self, rate: float, burst: float, most: int = 10_000) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._by_name: dict[str, Allowance] = {}

    def wait(self, name: str, now: float) -> float:
        """Seconds until this one may; 0: now. Nothing is taken."""
        known = self._by_name.get(name)
        if known is None:
            return 0.0
        left = known.left + (now - known.at) * self._rate
        return 0.0 if left >= 1.0 else (1.0 - left) / self._rate

    def take(self, name: str, now: float) -> None:
        """This one did it once more."""
        known = self._by_name.pop(name, None) or Allowance(self._burst, now)
        known.take(now, self._rate, self._burst)
        self._by_name[name] = known  # at the end: the first are those that took nothing for longest
        if len(self._by_name) > self._most:
            del self._by_name[next(iter(self._by_name))]
