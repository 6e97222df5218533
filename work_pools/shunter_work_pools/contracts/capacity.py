"""Amounts of what an agent has and a run needs: ``cpu``, ``memory``, and devices by name.

``cpu`` is counted in cores (half a core is possible), ``memory`` in bytes; every other name is a *device*,
of which there is a whole number and which is given to one run at a time. Slots are not among them: they are
an agent's ``limit``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from shunter_work_pools.contracts.sizes import LOOKS as SIZE_LOOKS
from shunter_work_pools.contracts.sizes import UNITS, size
from shunter_work_pools.contracts.sizes import parsed as size_parsed

CPU, MEMORY = "cpu", "memory"
#: Names that are no devices.
DIVISIBLE = frozenset({CPU, MEMORY})
#: Devices of one name that an agent can have.
MOST_DEVICES = 1024
MOST_NAMES = 20

ResourceName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,62}$")]


def _whole_devices(amounts: dict[str, float]) -> dict[str, float]:
    for name, amount in amounts.items():
        wrong = wrong_amount(name, amount)
        if wrong:
            raise ValueError(wrong)
    return amounts


#: What is had or needed, by name; names that are left out count as 0.
Amounts = Annotated[
    dict[ResourceName, Annotated[float, Field(ge=0, le=2**50, allow_inf_nan=False)]],
    Field(max_length=MOST_NAMES),
    AfterValidator(_whole_devices),
]


def wrong_amount(name: str, amount: float) -> str:
    """What is wrong with an amount; empty if nothing is."""
    if name == CPU:
        return ""
    if amount != math.floor(amount):
        what = "bytes" if name == MEMORY else "a device"
        return f"{name}={amount:g}: {what} cannot be divided"
    if name != MEMORY and amount > MOST_DEVICES:
        return f"{name}={amount:g}: there can be {MOST_DEVICES} devices of one name at the most"
    return ""


def parsed_amount(word: str) -> tuple[str, float]:
    """Name and amount of ``gpu=2``, ``cpu=1.5``, ``memory=8GiB``.

    Raises:
        ValueError: with (what is wrong, what to do).
    """
    name, sign, text = word.partition("=")
    looks = "Write it like gpu=2, cpu=1.5 or memory=8GiB."
    if not sign or not name or not text:
        raise ValueError(f"{word!r} is no amount", looks)
    if not name[0].isascii() or not name[0].islower() or len(name) > 63 or set(name) - _LETTERS:
        raise ValueError(
            f"{name!r} is no name of something that one has", "Small letters, digits, . _ and -."
        )
    if name == MEMORY:
        bytes_ = size_parsed(text)
        if bytes_ is None or bytes_ > 2**50:
            raise ValueError(f"{text!r} is no amount of memory", SIZE_LOOKS)
        return name, float(bytes_)
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount <= 2**50:
        raise ValueError(f"{text!r} is no amount of {name}", looks)
    wrong = wrong_amount(name, amount)
    if wrong:
        raise ValueError(wrong, looks)
    return name, amount


_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")


def fits(need: Mapping[str, float], free: Mapping[str, float]) -> bool:
    """Whether what is free is enough."""
    # Sums of parts of cores are not exact.
    return all(amount <= free.get(name, 0.0) + 1e-9 for name, amount in need.items())


def shown(amounts: Mapping[str, float]) -> str:
    """As one would write them, by name: ``cpu=1.5 gpu=2 memory=8GiB``; empty if there are none."""
    return " ".join(f"{name}={amount_shown(name, amount)}" for name, amount in sorted(amounts.items()))


def rounded(amounts: Mapping[str, float]) -> str:
    """Amounts of what one has, memory in a unit that fits: ``cpu=7.5 gpu=1 memory=15.6GiB``; empty if there are none."""
    return " ".join(
        f"{name}={_memory(amount) if name == MEMORY else amount_shown(name, amount)}"
        for name, amount in sorted(amounts.items())
    )


def _memory(value: float) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if value >= UNITS[unit]:
            return f"{value / UNITS[unit]:.1f}".removesuffix(".0") + unit
    return f"{value:g}B"


def amount_shown(name: str, amount: float) -> str:
    """One amount as one would write it: ``1.5``, ``2``, ``8GiB``."""
    return size(int(amount)) if name == MEMORY else f"{amount:g}"
