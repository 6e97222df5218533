"""How long the command line takes, as a person waits for it: whole processes, best of several."""

from __future__ import annotations

import statistics
import subprocess
import time

from benchmarks.report import Table
from benchmarks.system import SHUNTER, System, running


def _milliseconds(system: System, *arguments: str, times: int = 15) -> float:
    found = []
    for _ in range(times):
        before = time.perf_counter()
        subprocess.run([*SHUNTER, *arguments], env=system.env, check=True, capture_output=True)
        found.append((time.perf_counter() - before) * 1e3)
    return statistics.median(found)


def command_line(table: Table) -> None:
    """``--version`` and ``run list`` against a server with some runs."""
    with running() as system:
        system.start_agent("bench", 8)
        system.cli("deploy", "--name", "true", "--pool", "default", "--", "/bin/true")
        system.connect().post("/runs/batch", {"runs": [{"deployment": "true"}] * 50})
        table.row("shunter --version, median", _milliseconds(system, "--version"), "ms", 150)
        table.row("shunter run list, median", _milliseconds(system, "run", "list"), "ms", 350)
