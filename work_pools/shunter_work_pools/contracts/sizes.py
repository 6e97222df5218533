"""Sizes in bytes as people write them: ``512MiB``, ``1.5GiB``, ``200MB``, ``4096``."""

from __future__ import annotations

import re

#: Bytes of each unit; those with an ``i`` are powers of 1024 (IEC 80000-13).
UNITS: dict[str, int] = {
    "": 1,
    "B": 1,
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", 1)},
    "KB": 1000,
}
LOOKS = "Write it like 512MiB, 1.5GiB or a plain number of bytes."

_SIZE = re.compile(r"(\d{1,19})(?:\.(\d{1,6}))?\s?([A-Za-z]*)", re.ASCII)


def parsed(word: str) -> int | None:
    """Bytes of a size; None if it is none."""
    found = _SIZE.fullmatch(word)
    if found is None or found[3] not in UNITS:
        return None
    whole, part, unit = found[1], found[2] or "", UNITS[found[3]]
    if part and unit == 1:
        return None  # half a byte
    return int(whole + part) * unit // int(10 ** len(part))


def size(value: int) -> str:
    """Bytes as one would write them: ``512MiB``, ``1.5GiB``, ``1000``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        hundredths, rest = divmod(value * 100, UNITS[unit])
        if hundredths >= 100 and not rest:
            whole, part = divmod(hundredths, 100)
            return f"{whole}{f'.{part:02}'.rstrip('0').rstrip('.')}{unit}"
    return f"{value}"
