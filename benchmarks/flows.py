"""What a task costs without a server: called, submitted, with a journal, in a large map, on Dask; and what importing costs.

    python -m benchmarks flows
    python -m benchmarks.flows --prefect      # the same no-op tasks in Prefect, beside Shunter's

Prefect is the one of ``benchmarks.compare_prefect``, in its environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Table

COUNT = 5000
REPEATS = 7

#: Prints microseconds a task, called and submitted; ``{module}`` is who makes flows.
NO_OPS = """
import json, sys, time
from {module} import flow, task

@task
def one(n):
    return n

@flow
def called(count):
    before = time.perf_counter()
    for n in range(count):
        one(n)
    return (time.perf_counter() - before) / count * 1e6

@flow
def submitted(count):
    before = time.perf_counter()
    futures = [one.submit(n) for n in range(count)]
    for future in futures:
        future.result()
    return (time.perf_counter() - before) / count * 1e6

if __name__ == "__main__":
    count, repeats = int(sys.argv[1]), int(sys.argv[2])
    called(count // 10), submitted(count // 10)
    print(json.dumps([[called(count), submitted(count)] for _ in range(repeats)]))
"""
LARGE_MAP = """
import json, os, time
from shunter import flow, task

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

@task
def one(n):
    return n

@flow
def whole(count):
    one.map(range(1000)).wait()
    before, began = resident(), time.perf_counter()
    futures = one.map(range(count))
    assert sum(futures.result()) == sum(range(count))
    return (resident() - before) / count, time.perf_counter() - began

print(json.dumps(whole(100_000)))
"""
DASK = """
import json, time
from distributed import Client, LocalCluster
from shunter import flow, task

def nap(n):
    time.sleep(0.05)
    return n

nap_task = task(nap)
COUNT = 400

if __name__ == "__main__":
    with LocalCluster(n_workers=4, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            @flow(executor=client)
            def whole():
                return nap_task.map(range(COUNT)).result()

            def plain():
                return client.gather(client.map(nap, range(COUNT), pure=False))

            def seconds(what):
                before = time.perf_counter()
                assert what() == list(range(COUNT))
                return time.perf_counter() - before

            seconds(plain), seconds(whole)
            print(json.dumps([[seconds(plain), seconds(whole)] for _ in range(3)]))
"""


def said(code: str, *arguments: str, python: str = sys.executable, **environment: str) -> Any:
    """What a script prints as its last line, JSON."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(code)
        done = subprocess.run(
            [python, str(script), *arguments],
            env=os.environ | environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])


def no_ops(module: str, count: int, repeats: int, **more: str) -> tuple[float, float]:
    """Microseconds of a task that does nothing, called and submitted; medians."""
    found = said(NO_OPS.replace("{module}", module), str(count), str(repeats), **more)
    called, submitted = zip(*found, strict=True)
    return statistics.median(called), statistics.median(submitted)


def importing(pairs: int = 25) -> tuple[float, float]:
    """Milliseconds of the processor, and on the clock, that the import takes over a bare interpreter.

    Medians of pairs, one right after the other. (It only computes: on a machine that is idle both are the same.)
    """

    def took(code: str) -> tuple[float, float]:
        before = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code])
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
        return used.ru_utime + used.ru_stime, time.perf_counter() - before

    found = [(took("from shunter import flow, task"), took("pass")) for _ in range(pairs)]
    cpu, clock = (statistics.median(ours[i] - bare[i] for ours, bare in found) for i in (0, 1))
    return 1000 * cpu, 1000 * clock


def flows(table: Table) -> None:
    """All of it."""
    cpu, clock = importing()
    table.row("`from shunter import flow, task` over a bare interpreter, of the processor", cpu, "ms", 30)
    table.row("the same, on the clock", clock, "ms")
    called, submitted = no_ops("shunter", COUNT, REPEATS)
    table.row("a task that does nothing, called", called, "µs", 50)
    table.row("the same, submitted to threads until its result is there", submitted, "µs", 150)
    with tempfile.TemporaryDirectory() as folder:
        called, submitted = no_ops("shunter", COUNT, REPEATS, SHUNTER_JOURNAL=str(Path(folder, "journal")))
    table.row("called, with a journal", called, "µs", 300)
    table.row("submitted, with a journal", submitted, "µs", 300)
    each, seconds = said(LARGE_MAP)
    table.row("a map over 100,000 inputs: memory for each", each, "bytes", 2048)
    table.row("a map over 100,000 inputs", seconds, "s")
    found = said(DASK)
    ratio = statistics.median(plain / ours for plain, ours in found)
    table.row(
        "Dask, 4 workers, tasks of 50 ms: speed of plain `client.map`", 100 * ratio, "%", 90, at_least=True
    )


def beside_prefect() -> None:
    """The same tasks in Prefect, against the temporary server that it starts by itself."""
    from benchmarks.compare_prefect import ENVIRONMENT, make_environment

    make_environment()
    with tempfile.TemporaryDirectory() as home:
        called, submitted = no_ops(
            "prefect",
            200,
            3,
            python=str(ENVIRONMENT / "bin" / "python"),
            PREFECT_HOME=home,
            PREFECT_LOGGING_LEVEL="ERROR",
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
        )
    ours = no_ops("shunter", COUNT, REPEATS)
    print("| a task that does nothing | Shunter | Prefect | |\n| --- | --- | --- | --- |")
    for what, mine, other in zip(("called", "submitted"), ours, (called, submitted), strict=True):
        print(f"| {what} | {mine:.3g} µs | {other:.4g} µs | {other / mine:.0f} × |")


def main() -> int:
    """By itself."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flows", description=__doc__)
    parser.add_argument("--prefect", action="store_true", help="beside Prefect's")
    if parser.parse_args().prefect:
        beside_prefect()
        return 0
    table = Table("Flows without a server")
    flows(table)
    return int(table.missed > 0)


if __name__ == "__main__":
    sys.exit(main())
