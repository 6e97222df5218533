"""Limits, rates and needs as people write and read them on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from shunter_cli import durations
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.contracts.limits import Rate

#: What takes a limit away, in place of a number or rate.
NONE = "none"
_RATE_LOOKS = "Write it like 10/1m: so many starts within such a time."


class WhenFull(StrEnum):
    """What becomes of a run that is due while a limit is full."""

    ENQUEUE = "enqueue"
    CANCEL_NEW = "cancel_new"
    CANCEL_RUNNING = "cancel_running"


def rate(text: str, option: str) -> Rate:
    """The rate of ``10/1m``, ``5/1h``, ``10/60s``.

    Raises:
        InvalidInput: it is none.
    """
    from shunter_work_pools.contracts.limits import RATE_COUNT, RATE_SECONDS, Rate

    number, sign, span = text.partition("/")
    if not sign or not number.strip().isdecimal() or not number.isascii():
        raise InvalidInput(f"{option} {text!r} is no rate", _RATE_LOOKS)
    count = int(number)
    if not 1 <= count <= RATE_COUNT:
        raise InvalidInput(f"{option} {text!r}: it must be 1 to {RATE_COUNT:,} starts", _RATE_LOOKS)
    if not span.strip():
        raise InvalidInput(f"{option} {text!r} does not say within which time", _RATE_LOOKS)
    seconds = durations.seconds(span, option, zero=False)
    if seconds > RATE_SECONDS:
        longest = durations.exactly(RATE_SECONDS)
        raise InvalidInput(f"{option} {text!r}: {span} is more than {longest}", _RATE_LOOKS)
    return Rate(count=count, seconds=seconds)


def rate_shown(value: Rate | None) -> str:
    """``10/60s``; a dash if there is none."""
    return "-" if value is None else f"{value.count}/{durations.exactly(value.seconds)}"


def most(text: str, option: str) -> int:
    """The number of runs at once.

    Raises:
        InvalidInput: it is none.
    """
    from shunter_work_pools.contracts.limits import PLACES

    word = text.strip()
    if not word.isdecimal() or not word.isascii() or int(word) > PLACES:
        raise InvalidInput(
            f"{option} {text!r} is no number of runs", f"Give 0 (none may start) to {PLACES:,}, or {NONE}."
        )
    return int(word)


def amounts(words: Sequence[str], option: str) -> dict[str, float]:
    """Amounts by name of ``gpu=1``, ``cpu=1.5``, ``memory=8GiB``.

    Raises:
        InvalidInput: one of them is no amount, or a name comes twice.
    """
    from shunter_work_pools.contracts.capacity import parsed_amount

    found: dict[str, float] = {}
    for word in words:
        try:
            name, amount = parsed_amount(word)
        except ValueError as exc:
            detail, remedy = exc.args
            raise InvalidInput(f"{option} {detail}", remedy) from exc
        if name in found:
            raise InvalidInput(f"{option} {name} is given twice", "Give each amount once.")
        found[name] = amount
    return found
