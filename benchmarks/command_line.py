"""How long the command line takes, as a person waits for it: whole processes, medians of several."""

from __future__ import annotations

import statistics
import time

from benchmarks.history import DEPLOYMENTS, fill_sqlite
from benchmarks.report import Table
from benchmarks.system import System, new_home, running

#: Finished runs that the server has.
RUNS = 100_000
#: Milliseconds that a command that reads may take.
TARGET = 400

#: Every command that reads from the server. ``RUN`` is one that failed.
READS = (
    "status",
    "run list",
    "run list --state failed --limit 100",
    "run list --tag rare --since 1d",
    "run list --deployment d7 --late -q",
    "run list --limit 1000 -q",
    "run list --output json",
    "run list --output yaml",
    "run inspect RUN",
    "run events RUN",
    "run logs RUN",
    "run export --deployment d7 --state failed",
    "deployment list",
    "deployment inspect d7",
    "deployment inspect d4",  # of d4, d40 to d49: a whole name is itself
    "deployment history d7",
    "deployment events d7",
    "schedule list",
    "schedule list d7",
    "schedule preview d7",
    "schedule preview --cron 30_2_*_*_*",
    "pool list",
    "pool inspect default",
    "queue list",
    "queue inspect default default",
    "agent list",
    "agent inspect bench",
)


def _milliseconds(system: System, arguments: list[str], times: int = 11) -> float:
    found = []
    for _ in range(times):
        before = time.perf_counter()
        system.cli(*arguments)
        found.append((time.perf_counter() - before) * 1e3)
    return statistics.median(found)


def command_line(table: Table) -> None:
    """``--version`` and every command that reads, against a server with a long history."""
    home = new_home()
    with running(home=home) as system:
        for index in range(DEPLOYMENTS):
            when = {"kind": "cron", "cron": f"{index} 6 * * *", "timezone": "Europe/Berlin"}
            spec = {"work": {"command": ["/bin/true"]}, "pool": "default", "schedules": [{"when": when}]}
            system.connect().request("PUT", f"/deployments/d{index}", spec)
    fill_sqlite(home / "shunter.db", RUNS)
    with running(home=home) as system:
        system.start_agent("bench", 8)
        system.cli("deploy", "--name", "fails", "--pool", "default", "--", "sh", "-c", "echo hello; exit 3")
        run = system.cli("run", "start", "fails", "-q").strip()
        system.cli("run", "logs", "-f", run)
        table.row("shunter --version, median", _milliseconds(system, ["--version"]), "ms", 150)
        for line in READS:
            words = [word.replace("_", " ").replace("RUN", run) for word in line.split()]
            table.row(f"shunter {line.replace('_', ' ')}, median", _milliseconds(system, words), "ms", TARGET)
        table.note(f"With {RUNS:,} finished runs of {DEPLOYMENTS} deployments on SQLite.")
