"""Durations as people write them: ``90``, ``60s``, ``5m``, ``1h30m``, ``500ms``, ``2d``."""

from __future__ import annotations

import re

#: Seconds of each unit.
UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
#: Seconds that no duration exceeds: ten years.
LONGEST = 10 * 365 * 86_400.0
LOOKS = "Write it like 60s, 5m, 1h30m or a plain number of seconds."

_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|d|h|m|s)")


def parsed(word: str) -> float | None:
    """Seconds of a duration without sign; None if it is none."""
    if re.fullmatch(r"\d+(\.\d+)?|\.\d+", word, re.ASCII):
        return float(word)
    parts = _PART.findall(word)
    if not parts or "".join(number + unit for number, unit in parts) != word or not word.isascii():
        return None
    units = [unit for _, unit in parts]
    if len(set(units)) < len(units):
        return None
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def exactly(value: float) -> str:
    """A duration as one would write it: ``1h30m``, ``60s``, ``0.5s``."""
    if value < 60 or value != int(value):
        return f"{value:g}s"
    rest, text = int(value), ""
    for unit in "dhms":
        count, rest = divmod(rest, int(UNITS[unit]))
        text += f"{count}{unit}" if count else ""
    return "60s" if text == "1m" else text


def in_words(value: float) -> str:
    """A duration in at most six characters: ``12ms``, ``4.2s``, ``59s``, ``12m``, ``3h05m``, ``12d``."""
    if value < 0.9995:
        return f"{round(value * 1000)}ms"
    if value < 9.95:
        return f"{value:.1f}s"
    whole = round(value)
    if whole < 100:
        return f"{whole}s"
    minutes = round(value / 60)
    if minutes < 100:
        return f"{minutes}m"
    if minutes < 48 * 60:
        return f"{minutes // 60}h" + (f"{minutes % 60:02}m" if minutes % 60 else "")
    return f"{round(value / 86_400)}d"
