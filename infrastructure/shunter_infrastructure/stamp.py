"""Moments that survive a wrong wall clock: boot-time clock with the boot id, wall clock beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@cache
def boot_id() -> str:
    """The kernel's id of this boot; empty where the system has none (then the wall clock is used)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Stamp:
    """A moment on this machine.

    Attributes:
        boot: boot id it was taken in.
        ticks: seconds of the boot-time clock, which also counts suspended time.
        wall: seconds since the epoch by the wall clock, for another boot.
    """

    boot: str
    ticks: float
    wall: float

    @classmethod
    def now(cls) -> Stamp:
        """This moment."""
        return cls(boot_id(), time.clock_gettime(_CLOCK), time.time())

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Stamp:
        """Read what :meth:`to_json` wrote."""
        return cls(str(value["boot"]), float(value["ticks"]), float(value["wall"]))

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"boot": self.boot, "ticks": self.ticks, "wall": self.wall}

    def later(self, seconds: float) -> Stamp:
        """The moment so many seconds after this one."""
        return replace(self, ticks=self.ticks + seconds, wall=self.wall + seconds)

    def age(self) -> float:
        """Seconds since this moment, never negative; by the wall clock if the machine has rebooted."""
        if self.boot and self.boot == boot_id():
            return max(0.0, time.clock_gettime(_CLOCK) - self.ticks)
        return max(0.0, time.time() - self.wall)
