"""States of task and flow runs, and their letters in the journal."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

R = TypeVar("R", covariant=True)

PENDING = "Pending"
RUNNING = "Running"
RETRYING = "Retrying"
COMPLETED = "Completed"
CACHED = "Cached"
FAILED = "Failed"
SKIPPED = "Skipped"
CANCELLED = "Cancelled"
#: Of a flow whose process died; only its hooks in another process see it.
CRASHED = "Crashed"

#: One letter each, as a journal has them.
LETTERS = {
    PENDING: "P",
    RUNNING: "R",
    RETRYING: "T",
    COMPLETED: "C",
    CACHED: "H",
    FAILED: "F",
    SKIPPED: "S",
    CANCELLED: "X",
}
#: Ends in which there is a value.
GOOD = frozenset({COMPLETED, CACHED})
ENDS = frozenset({COMPLETED, CACHED, FAILED, SKIPPED, CANCELLED})


class State(Generic[R]):
    """How a run stands, or ended.

    Attributes:
        name: one of Pending, Running, Retrying, Completed, Cached, Failed, Skipped, Cancelled; in hooks also Crashed.
        error: the exception, where it ended without a value.
    """

    __slots__ = ("_value", "error", "name")

    def __init__(self, name: str, value: Any = None, error: BaseException | None = None) -> None:
        self.name = name
        self.error = error
        self._value = value

    def result(self) -> R:
        """The value.

        Raises:
            BaseException: the error, where there is one.
            RuntimeError: it has not ended.
        """
        if self.error is not None:
            raise self.error
        if self.name not in GOOD:
            raise RuntimeError(f"there is no result yet: the state is {self.name}")
        value: R = self._value
        return value

    def is_completed(self) -> bool:
        """Whether there is a value."""
        return self.name in GOOD

    def is_failed(self) -> bool:
        """Whether it failed."""
        return self.name == FAILED

    def is_cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.name == CANCELLED

    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.name in ENDS

    def __repr__(self) -> str:
        return f"State({self.name}{f', {self.error!r}' if self.error is not None else ''})"
