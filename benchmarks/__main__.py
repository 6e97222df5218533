"""Run benchmarks by name, or all: ``python -m benchmarks [NAME...]``."""

from __future__ import annotations

import argparse
import sys

from benchmarks import command_line, history, starts
from benchmarks.report import Table

BENCHMARKS = {
    "latency": ("Start latency", starts.latency),
    "burst": ("Burst", starts.burst),
    "idle": ("Idle", starts.idle),
    "cli": ("Command line", command_line.command_line),
    "history": ("A million finished runs", history.history),
}


def main() -> int:
    """Print each table as it is found; 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    names = parser.parse_args().names or list(BENCHMARKS)
    tables = []
    for name in names:
        title, measure = BENCHMARKS[name]
        table = Table(title)
        measure(table)
        tables.append(table)
    print("\n" + "\n".join(table.markdown() for table in tables))
    return 1 if any(table.missed for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main())
