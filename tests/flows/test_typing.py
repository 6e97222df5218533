"""mypy --strict sees through the decorators: what is right passes, what is wrong is told at its line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TYPED = Path(__file__).with_name("typed.py")


def test_types_are_kept() -> None:
    wanted = {
        (number, found[1])
        for number, line in enumerate(TYPED.read_text().splitlines(), 1)
        if (found := re.search(r"# error: ([\w-]+)$", line))
    }
    assert len(wanted) > 10
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(TYPED)],
        cwd=ROOT, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    told = {
        (int(found[1]), found[2])
        for line in checked.stdout.splitlines()
        if (found := re.match(r".*typed\.py:(\d+): error: .*\[([\w-]+)\]$", line))
    }
    assert told == wanted, checked.stdout + checked.stderr
