"""A reason for where a run is, and the words that reasons are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.durations import in_words
from shunter_work_pools.contracts.explanations import Code

#: Characters of a run's id that a sentence shows: its end, which every command takes.
_SHORT = 8
#: Characters of a message that a sentence shows.
_MESSAGE = 300
#: Names that a sentence shows.
_NAMES = 3


@dataclass(frozen=True)
class Reason:
    """One reason.

    Attributes:
        sentence: without a capital at its beginning and a full stop at its end.
        next_step: a sentence.
        details: what the sentence was made from.
    """

    code: Code
    sentence: str
    next_step: str
    details: dict[str, Any] = field(default_factory=dict)


def told(sentence: str) -> str:
    """As a whole sentence."""
    return sentence[:1].upper() + sentence[1:].rstrip(".") + "."


def stamp(at: Micros) -> str:
    """A moment in UTC, ``2026-11-22 12:03:00 UTC``."""
    return f"{moment(at):%Y-%m-%d %H:%M:%S} UTC"


def at_utc(at: Micros) -> str:
    """The same for programs, as everywhere in the API: RFC 3339 with microseconds, where there are any, and ``Z``."""
    return moment(at).isoformat().removesuffix("+00:00") + "Z"


def lasting(span: Micros) -> str:
    """A duration in few characters."""
    return in_words(float(round(span / 1_000_000))).replace(".0s", "s") if span >= 1_000_000 else "0s"


def since(at: Micros, now: Micros) -> str:
    """``2026-11-22 12:03:00 UTC (5m ago)``."""
    return f"{stamp(at)} ({lasting(now - at)} ago)"


def until(at: Micros, now: Micros) -> str:
    """``2026-11-22 12:03:00 UTC (in 5m)``."""
    return f"{stamp(at)} (in {lasting(at - now)})"


def short(run_id: object) -> str:
    """The end of a run's id."""
    return str(run_id)[-_SHORT:]


def names(all_of_them: Sequence[str]) -> str:
    """``a1``, ``a1 and a2``, ``a1, a2, a3 and 4 others``."""
    shown, more = list(all_of_them[:_NAMES]), len(all_of_them) - _NAMES
    if more > 0:
        return f"{', '.join(shown)} and {more} {'other' if more == 1 else 'others'}"
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def counted(count: int, one: str) -> str:
    """``1 run``, ``12 runs``."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def message(text: str | None) -> str:
    """What an agent or a launcher said, on one line, as much of it as a sentence bears; empty if nothing."""
    line = " ".join((text or "").split())
    return line.rstrip(".") if len(line) <= _MESSAGE else line[: _MESSAGE - 2] + " …"
