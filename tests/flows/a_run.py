"""A program as the agent starts it: with the id of a run and a journal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def executed(code: str, journal: Path) -> subprocess.CompletedProcess[str]:
    """What this Python leaves in its output; it exits with 0."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={"SHUNTER_RUN_ID": "run", "SHUNTER_JOURNAL": str(journal)},
        capture_output=True,
        text=True,
        check=True,
    )
