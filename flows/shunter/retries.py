"""When a failed task or flow is tried again, and how long after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

#: Seconds; or seconds for each retry (the last one for those behind); or a function of the retry's number, 1 first.
Delay: TypeAlias = "float | Sequence[float] | Callable[[int], float]"
#: Whether an exception is worth another try: a function, or types of exceptions.
Condition: TypeAlias = (
    "Callable[[BaseException], bool] | type[BaseException] | tuple[type[BaseException], ...] | None"
)


def number(name: str, value: object) -> float:
    """An option's value.

    Raises:
        TypeError: it is no number.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise TypeError(f"{name} is {value!r}, which is no number")


def above_zero(name: str, value: object) -> Any:
    """An option's value, which may be None.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0.
    """
    if value is not None and not number(name, value) > 0:
        raise ValueError(f"{name} is {value}; it is a number above 0")
    return value


class Retries:
    """What ``retries=`` and its like mean.

    Args:
        count: tries after the first one.
        delay: seconds before them.
        backoff: each delay is this many times the one before.
        jitter: a delay is made longer by up to this part of it, at random.
        condition: of what exceptions; None: of every one.

    Raises:
        ValueError: a number is out of its range.
    """

    __slots__ = ("backoff", "condition", "count", "delay", "jitter")

    def __init__(self, count: int, delay: Delay, backoff: float, jitter: float, condition: Condition) -> None:
        if type(count) is not int:
            raise TypeError(f"retries is {count!r}; it is a whole number")
        if count < 0:
            raise ValueError(f"retries is {count}; it cannot be negative")
        if not callable(delay):
            for seconds in delay if isinstance(delay, Sequence) and not isinstance(delay, str) else [delay]:
                if number("retry_delay", seconds) < 0:
                    raise ValueError(f"retry_delay is {seconds}; it cannot be negative")
        if number("retry_backoff", backoff) < 1:
            raise ValueError(f"retry_backoff is {backoff}; it is a factor of 1 or more")
        if number("retry_jitter", jitter) < 0:
            raise ValueError(f"retry_jitter is {jitter}; it cannot be negative")
        kinds = condition if isinstance(condition, tuple) else (condition,)
        if condition is not None and not all(map(callable, kinds)):
            raise TypeError(
                f"retry_if is {condition!r}; it is a type of exceptions, a tuple of them, or a function"
            )
        self.count = count
        self.delay = delay
        self.backoff = backoff
        self.jitter = jitter
        self.condition = condition

    def after(self, attempt: int, error: BaseException) -> float | None:
        """Seconds until the next try after this one (1 is the first); None: there is none."""
        if attempt > self.count or not self._worth(error):
            return None
        delay = self.delay
        if callable(delay):
            seconds = float(delay(attempt))
        elif isinstance(delay, (int, float)):
            seconds = delay * self.backoff ** (attempt - 1)
        else:
            seconds = float(delay[min(attempt, len(delay)) - 1]) if delay else 0.0
        if self.jitter and seconds:
            import random

            seconds *= 1 + random.random() * self.jitter  # nosec B311 # spreads load, guards nothing
        return max(0.0, seconds)

    def _worth(self, error: BaseException) -> bool:
        if self.condition is None:
            return True
        if isinstance(self.condition, (type, tuple)):
            return isinstance(error, self.condition)
        return bool(self.condition(error))
