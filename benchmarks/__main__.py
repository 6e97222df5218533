"""Run benchmarks by name, or all: ``python -m benchmarks [NAME...] [--page FILE]``."""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import sys
import time
from pathlib import Path

from benchmarks import (
    code,
    command_line,
    containers,
    explain,
    fleet,
    flows,
    history,
    kubernetes,
    places,
    promptness,
    retention,
    schedules,
    security,
    starts,
    stops,
    tracked,
    waiting,
)
from benchmarks.report import Table

BENCHMARKS = {
    "flows": ("Flows without a server", flows.flows),
    "tracked": ("Flows that a server tracks", tracked.tracked),
    "latency": ("Start latency", starts.latency),
    "burst": ("Burst", starts.burst),
    "containers": ("Containers", containers.containers),
    "kubernetes": ("Kubernetes Jobs", kubernetes.kubernetes),
    "kwok": ("Five thousand Jobs", kubernetes.kwok),
    "code": ("Code and environments that are there", code.prepared),
    "cancel": ("Cancel", stops.cancel),
    "idle": ("Idle", starts.idle),
    "cli": ("Command line", command_line.command_line),
    "schedules": ("Schedules", schedules.schedules),
    "retention": ("Retention", retention.retention),
    "promptness": ("Promptness", promptness.promptness),
    "waiting": ("A hundred thousand blocked runs", waiting.waiting),
    "places": ("The places of a limit", places.places),
    "security": ("What security costs", security.security),
    "fleet": ("Two thousand agents", fleet.fleet),
    "explain": ("Explanations while 100,000 runs wait", explain.explain),
    "history": ("A million finished runs", history.history),
}

_HEAD = """# Benchmarks

Written by `make bench`, on {when}: {cores} cores, Linux {kernel}, Python {python}, SQLite {sqlite}. Server, agent, runs
and what measures them share these cores. Machines are noisy: ratios and medians say more than single numbers.
`make compare` sets Shunter beside Prefect.
"""


def _head() -> str:
    return _HEAD.format(
        when=time.strftime("%Y-%m-%d"),
        cores=os.cpu_count(),
        kernel=platform.release().split("-")[0],
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
    )


def main() -> int:
    """Print each table as it is found; 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    parser.add_argument("--page", type=Path, help="write the page there")
    given = parser.parse_args()
    tables = []
    for name in given.names or BENCHMARKS:
        title, measure = BENCHMARKS[name]
        table = Table(title)
        measure(table)
        tables.append(table)
    page = "\n".join([_head(), *(table.markdown() for table in tables)])
    if given.page:
        given.page.write_text(page)
    print("\n" + page)
    return 1 if any(table.missed for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main())
