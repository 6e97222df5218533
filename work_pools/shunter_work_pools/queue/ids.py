"""Ids of runs: UUIDv7 from the store's own clock."""

from __future__ import annotations

import secrets
from uuid import UUID

from shunter_work_pools.contracts.base import Micros


def new_run_id(now: Micros, index: int = 0) -> UUID:
    """A UUIDv7 (RFC 9562, 5.7) made at ``now``, with the clock's microseconds in ``rand_a`` (method 3).

    Args:
        now: microseconds since the epoch.
        index: place within one batch, so that a batch keeps its order; every 16384 take a microsecond.
    """
    later, place = divmod(index, 1 << 14)
    return UUID(int=lowest_id(now + later) | (2 << 62) | (place << 48) | secrets.randbits(48))


def lowest_id(now: Micros) -> int:
    """The smallest id that could be made at ``now``: ids sort by the time they were made at."""
    milliseconds, rest = divmod(now, 1000)
    return (milliseconds << 80) | (7 << 76) | ((rest * 4096 // 1000) << 64)


def reverse(digits: str) -> str:
    """Hex digits backwards, as the suffix index keeps them."""
    return digits[::-1]
