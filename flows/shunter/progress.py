"""How far a loop is: a bar in a terminal, a percentage in the run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from shunter.journal import Lines
    from shunter.messages import Messages

T = TypeVar("T")

#: Seconds between two words about it.
PAUSE = 1.0
_WIDTH = 30


def track(iterable: Iterable[T], description: str = "", total: int | None = None) -> Iterator[T]:
    """The same elements, one by one, while it is told how many there were.

    Args:
        description: what is being done.
        total: how many there will be, where the iterable has no length.
    """
    from shunter import journal

    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    teller = _Teller(description, None if total is None else int(total), journal.told_to())
    count = 0
    try:
        for element in iterable:
            yield element
            count += 1
            teller.tell(count)
    finally:
        teller.tell(count, last=True)


class _Teller:
    def __init__(self, description: str, total: int | None, journal: Lines | Messages | None) -> None:
        self._description = description
        self._total = total
        self._journal = journal
        self._bar = sys.stderr.isatty()
        self._next = 0.0

    def tell(self, count: int, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now < self._next:
            return
        self._next = now + (0.1 if self._bar else PAUSE)
        if self._bar:
            self._draw(count, last)
        if self._journal is not None:
            self._journal.tell({"pr": self._about(count)})

    def _about(self, count: int) -> dict[str, Any]:
        about: dict[str, Any] = {"text": self._description, "done": count, "total": self._total}
        if self._total:
            about["percent"] = round(100 * count / self._total, 1)
        return about

    def _draw(self, count: int, last: bool) -> None:
        if self._total:
            share = min(1.0, count / self._total)
            filled = int(_WIDTH * share)
            bar = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {int(100 * share):3}%"
        else:
            bar = str(count)
        # On one line, whatever the description: what is wrapped cannot be drawn over. The last column stays free.
        left = _columns() - len(bar) - 2
        text = " ".join(self._description.split())[: max(0, left)]
        sys.stderr.write(f"\r{text} {bar}".replace("\r ", "\r") + ("\n" if last else ""))
        sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
