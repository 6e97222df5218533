"""What a task costs while a server tracks all of them, until it holds every task's end; beside Prefect.

    python -m benchmarks tracked
    python -m benchmarks.tracked [--prefect] [--postgres] [--rounds N] [--tasks N]

A flow of tasks that do nothing, each one called, or all submitted to threads, and then their results asked for. The clock
starts when the flow's function begins, and stops when the server's API says that all of its tasks have completed: the run's
end is waited for and then its graph asked for, which counts them. (So the end of the process is in it.) Of Prefect its own
server is asked, how many task runs of the flow run are completed, from when the flow's function has returned; it is the
one of ``benchmarks.compare_prefect``, and its rounds and Shunter's take turns, with as many tasks each.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import psutil

from benchmarks.compare_prefect import ENVIRONMENT, PrefectServer, make_environment, prefect_server
from benchmarks.report import Table
from benchmarks.system import System, running

TASKS, FEW = 5000, 200
MAPPED, LARGE, LARGE_BYTES = 100_000, 500, 20_000
ROUNDS = 5
PATIENCE = 300.0
TARGET, TIMES = 300, 50
WAYS = ("called", "submitted")

#: The same for both: ``{module}`` is who makes flows. It gives the moment at which it began.
FLOW = """
import os, sys, time
from {module} import flow, task

@task
def one(n):
    return n

@flow
def called(count: int):
    began = time.time_ns()
    for n in range(count):
        one(n)
    return began

@flow
def submitted(count: int):
    began = time.time_ns()
    futures = [one.submit(n) for n in range(count)]
    for future in futures:
        future.result()
    return began
"""
#: Shunter's alone: many tasks, large results, and one that fails at the first attempt.
MORE = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

@flow
def mapped(count: int):
    one.map(range(count, count + 1000)).wait()
    before, began = resident(), time.time_ns()
    futures = one.map(range(count))
    assert sum(futures.result()) == sum(range(count))
    return [began, (resident() - before) / count]

@task
def large_one(n, size):
    return f"{n:09}".ljust(size, "x")

@flow
def large(count: int, size: int):
    began = time.time_ns()
    for n in range(count):
        large_one(n, size)
    return [began, time.time_ns()]

@task
def noted(n, folder, fails):
    with open(f"{folder}/executed", "a") as file:
        file.write(f"{n}\\n")
    if fails and not os.path.exists(f"{folder}/mended"):
        raise LookupError("not there yet")
    return n

@flow
def resumed(count: int, folder: str):
    began = time.time_ns()
    for n in range(count):
        noted(n, folder, n == count - 1)
    return (time.time_ns() - began) / 1e6
"""
#: Prefect's, in a process of its own as Shunter's: which flow run it was, when it began, and that it is done.
PREFECT_MAIN = """
from prefect.states import Completed
from prefect.context import get_run_context

def whole(way, count):
    @flow(name=way)
    def outer():
        print(get_run_context().flow_run.id, flush=True)
        return {"called": called, "submitted": submitted}[way].fn(count)
    return outer()

if __name__ == "__main__":
    print(whole(sys.argv[1], int(sys.argv[2])), flush=True)
"""


@dataclass
class Found:
    """Of one way: microseconds a task of each round, and of those what the processor was used for."""

    each: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    agent: list[float] = field(default_factory=list)


class Shunter:
    """A server, an agent, and the flows deployed."""

    def __init__(self, system: System) -> None:
        self.way = system.connect()
        self.agent = system.start_agent("tracked", 4)
        self.server = psutil.Process(system.server.pid)
        self.home = system.home
        (system.home / "flow.py").write_text(FLOW.replace("{module}", "shunter") + MORE)
        for way in (*WAYS, "mapped", "large", "resumed"):
            system.cli("deploy", f"flow.py:{way}", "--name", way, "--pool", "default")

    def measure(self, way: str, tasks: int, found: Found) -> None:
        """One run."""
        used = _cpu(self.server), _cpu(self.agent)
        told, held = self.run(way, count=tasks)
        counts = {node["name"]: node["states"] for node in self.way.get(f"/runs/{told['id']}/graph")["nodes"]}
        if counts["one"] != {"Completed": tasks}:
            raise RuntimeError(f"the server holds {counts}, not {tasks} ends")
        found.each.append((held - told["result"]) / tasks / 1000)
        found.server.append((_cpu(self.server) - used[0]) / tasks * 1e6)
        found.agent.append((_cpu(self.agent) - used[1]) / tasks * 1e6)

    def run(self, way: str, **parameters: object) -> tuple[Any, int]:
        """A run that completes, and when the server had all of it."""
        run = self.way.post("/runs", {"deployment": way, "parameters": parameters})["id"]
        told, held = self.ended(run)
        if told["state"] != "Completed":
            raise RuntimeError(f"a run of {way} ended {told['state']}: {told['message']}")
        return told, held

    def ended(self, run: str) -> tuple[Any, int]:
        """A run, once it has ended, and when that was known."""
        seen = "none"
        while not (told := self.way.get(f"/runs/{run}?wait=10&seen={seen}"))["ended_at"]:
            seen = f"{told['state']}:{told['attempt_count']}"
        return told, time.time_ns()


class Prefect:
    """Its server, and a script of its flows."""

    def __init__(self, server: PrefectServer) -> None:
        self._server = server
        self._script = server.folder / "tracked.py"
        self._script.write_text(FLOW.replace("{module}", "prefect") + PREFECT_MAIN)

    def measure(self, way: str, tasks: int, found: Found) -> None:
        """One run."""
        process = subprocess.Popen(
            [str(ENVIRONMENT / "bin" / "python"), str(self._script), way, str(tasks)],
            env=self._server.env | {"PREFECT_LOGGING_LEVEL": "ERROR"},
            cwd=self._script.parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        run, began = process.stdout.readline().strip(), process.stdout.readline().strip()
        if not began:
            raise RuntimeError(f"Prefect's flow did not complete: exit code {process.wait()}")
        wanted = {
            "flow_runs": {"id": {"any_": [run]}},
            "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        }
        deadline = time.monotonic() + PATIENCE
        while (there := self._server.api("POST", "/task_runs/count", wanted)) < tasks:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Prefect's server holds {there} of {tasks} ends")
            time.sleep(0.02)
        held = time.time_ns()
        process.wait()
        found.each.append((held - int(began)) / tasks / 1000)


@contextmanager
def _shunter(database_url: str | None = None) -> Iterator[Shunter]:
    with running(database_url=database_url) as system:
        yield Shunter(system)


@contextmanager
def _prefect() -> Iterator[Prefect]:
    make_environment()
    with prefect_server() as server:
        yield Prefect(server)


@contextmanager
def _postgres() -> Iterator[Shunter | None]:
    from tests.engines.postgres import PostgresCluster, find_binaries

    binaries = find_binaries()
    if binaries is None:
        yield None
        return
    cluster = PostgresCluster(binaries)
    try:
        cluster.start()
        with cluster.database() as url, _shunter(url) as found:
            yield found
    finally:
        cluster.stop()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class _Side(Protocol):
    def measure(self, way: str, tasks: int, found: Found) -> None: ...


def in_turn(sides: Mapping[str, tuple[_Side, int]], rounds: int) -> dict[tuple[str, str], Found]:
    """By side and way; the first round, which fills caches, is not counted."""
    found = {(name, way): Found() for name in sides for way in WAYS}
    for index in range(rounds + 1):
        for way in WAYS:
            for name, (side, tasks) in sides.items():
                one = Found() if index == 0 else found[name, way]
                side.measure(way, tasks, one)
                print(f"  {name}, {way}: {one.each[-1]:.0f} µs a task", flush=True)
    return found


def tracked(table: Table, rounds: int = ROUNDS) -> None:
    """All of it."""
    each_task(table, rounds, TASKS)
    further(table)


def each_task(table: Table, rounds: int, tasks: int) -> None:
    """On both stores, in turn."""
    with _shunter() as sqlite, _postgres() as postgres:
        sides: dict[str, tuple[_Side, int]] = {"SQLite": (sqlite, tasks)}
        if postgres is None:
            table.note("Postgres was not found and not measured.")
        else:
            sides["Postgres"] = (postgres, tasks)
        found = in_turn(sides, rounds)
    mid = statistics.median
    for (name, way), one in found.items():
        table.row(f"{name}: a task, {way}, until the server holds its end", mid(one.each), "µs", TARGET)
        table.row("of this, CPU of the server", mid(one.server), "µs")
        table.row("of this, CPU of the agent", mid(one.agent), "µs")


def further(table: Table) -> None:
    """What else flows that a server tracks are promised: large maps, large results, going on."""
    with _shunter() as one:
        one.run("mapped", count=1000)
        before = [process.memory_info().rss for process in (one.server, one.agent)]
        with _highest(one.server, one.agent) as highest:
            told, held = one.run("mapped", count=MAPPED)
        began, each = told["result"]
        table.row(f"a map over {MAPPED:,} inputs, until the server holds all ends", (held - began) / 1e9, "s")
        table.row("memory of the flow for each", each, "bytes", 2048)
        table.row("server, beyond what it had", (highest[0] - before[0]) / 1e6, "MB")
        table.row("agent, beyond what it had", (highest[1] - before[1]) / 1e6, "MB", 20)
        times = []
        for _ in range(3):
            told, held = one.run("large", count=LARGE, size=LARGE_BYTES)
            times.append((held - told["result"][0]) / LARGE / 1e6)
        table.row(
            f"a result of {LARGE_BYTES // 1000} kB, until the server has it and the task's end",
            statistics.median(times),
            "ms",
        )
        first, again, executed = zip(*(_resumed(one, number) for number in range(3)), strict=True)
        table.row(
            "a run of 100 tasks of which the last one fails, tried again: tasks executed",
            max(executed),
            "",
            1,
        )
        table.row("from its retry to its end, the start of its process in it", statistics.median(again), "ms")
        table.row("for comparison: the first attempt", statistics.median(first), "ms")


def _resumed(one: Shunter, number: int) -> tuple[float, float, int]:
    """Milliseconds of the first attempt and of the second, and how many tasks that executed."""
    folder = one.home / f"resumed-{number}"
    folder.mkdir()
    began = time.time_ns()
    run = one.way.post(
        "/runs", {"deployment": "resumed", "parameters": {"count": 100, "folder": str(folder)}}
    )["id"]
    told, failed = one.ended(run)
    if told["state"] != "Failed":
        raise RuntimeError(f"a run that was to fail ended {told['state']}")
    before = len((folder / "executed").read_text().split())
    (folder / "mended").touch()
    asked = time.time_ns()
    again = one.way.post(f"/runs/{run}/retry", {})
    told, completed = one.ended(again["id"])
    if told["state"] != "Completed":
        raise RuntimeError(f"a run that was tried again ended {told['state']}: {told['message']}")
    after = len((folder / "executed").read_text().split())
    return (failed - began) / 1e6, (completed - asked) / 1e6, after - before


@contextmanager
def _highest(*processes: psutil.Process) -> Iterator[list[int]]:
    """Resident bytes of each, the most that was seen since it began."""
    found = [process.memory_info().rss for process in processes]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            for index, process in enumerate(processes):
                found[index] = max(found[index], process.memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        ended.set()
        looking.join()


def beside_prefect(rounds: int = 3) -> bool:
    """Both in turn, printed in Markdown; whether Prefect needs as many times as long as it is promised."""
    with _shunter() as shunter, _prefect() as prefect:
        found = in_turn({"Shunter": (shunter, FEW), "Prefect": (prefect, FEW)}, rounds)
    lines = [
        f"| a task, of {FEW}, until the server holds its end | Shunter | Prefect 3.8.8 | |",
        "| --- | --- | --- | --- |",
    ]
    met = True
    for way in WAYS:
        ours, theirs = (found[name, way].each for name in ("Shunter", "Prefect"))
        ratios = [other / mine for mine, other in zip(ours, theirs, strict=True)]
        mine, other = statistics.median(ours), statistics.median(theirs)
        ratio = statistics.median(ratios)
        met &= ratio >= TIMES
        lines.append(f"| {way} | {mine / 1000:.3g} ms | {other / 1000:.3g} ms | {ratio:.0f} × (≥ {TIMES}) |")
    print("\n" + "\n".join(lines))
    return met


def main() -> int:
    """By itself."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracked", description=__doc__)
    parser.add_argument("--prefect", action="store_true", help="beside Prefect's")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    if given.prefect:
        return int(not beside_prefect(given.rounds))
    table = Table("Flows that a server tracks")
    tracked(table, given.rounds)
    return int(table.missed > 0)


if __name__ == "__main__":
    sys.exit(main())
