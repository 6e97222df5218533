"""Builds ``shim.c``, with which a test makes the wall clock of a process wrong, and its disk slow."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.engines.packages import install_debian

_SOURCE = Path(__file__).with_name("shim.c")


class Shim:
    """The environment of a process with the shim, and what the process sees.

    Args:
        folder: where it is built, and what it reads lies.
        below: writes below this folder can be slow.
    """

    def __init__(self, folder: Path, below: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None and os.environ.get("SHUNTER_TEST_INSTALL") == "1":
            install_debian("gcc", "libc6-dev")
            compiler = shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler: install gcc, or set SHUNTER_TEST_INSTALL=1 (root, Debian or Ubuntu)")
        folder.mkdir(exist_ok=True)
        library = folder / "shim.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
        self._clock, self._slow = folder / "clock", folder / "slow"
        self.env = {
            "LD_PRELOAD": str(library),
            "SHIM_CLOCK": str(self._clock),
            "SHIM_SLOW": str(self._slow),
            "SHIM_SLOW_BELOW": str(below),
        }

    def set_clock(self, seconds: int) -> None:
        """The wall clock is off by so much from now on."""
        self._put(self._clock, seconds)

    def set_slow(self, milliseconds: int) -> None:
        """Each write takes so long from now on."""
        self._put(self._slow, milliseconds)

    def _put(self, path: Path, number: int) -> None:
        draft = path.with_suffix(".new")
        draft.write_text(str(number))
        draft.rename(path)
