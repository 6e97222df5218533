"""What a benchmark found, as a table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least ``part`` percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part / 100) - 1)]


class Table:
    """Rows of measure, value and target."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._rows: list[str] = []
        self._notes: list[str] = []
        self.missed = 0

    def row(
        self, measure: str, value: float, unit: str, target: float | None = None, *, at_least: bool = False
    ) -> None:
        """Add a measure; ``target`` is the most it may be, or the least."""
        verdict = ""
        if target is not None:
            met = value >= target if at_least else value <= target
            self.missed += not met
            verdict = f"{'≥' if at_least else '≤'} {target:g} {unit}" + ("" if met else " **missed**")
        self._rows.append(f"| {measure} | {value:.3g} {unit} | {verdict} |")
        print(self._rows[-1], flush=True)

    def note(self, text: str) -> None:
        """Add a remark below the table."""
        self._notes.append(text)
        print(text, flush=True)

    def markdown(self) -> str:
        """The whole table."""
        head = [f"## {self.title}", "", "| measure | found | target |", "| --- | --- | --- |"]
        notes = [line for note in self._notes for line in ("", note)]
        return "\n".join([*head, *self._rows, *notes]) + "\n"
