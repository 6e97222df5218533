"""Two thousand agents on one server: what they cost while nothing happens, and how soon a run reaches one."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

import psutil

from benchmarks.report import Table, percentile
from benchmarks.system import System, new_home, running

POOLS, SITES = 10, 40


class _Fleet:
    """The process of the simulated agents, and what it says."""

    def __init__(self, system: System, count: int) -> None:
        flags = {"--port": system.port, "--count": count, "--pools": POOLS, "--sites": SITES}
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.simulated_agents",
                *(str(one) for pair in flags.items() for one in pair),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._said: SimpleQueue[str] = SimpleQueue()
        self._tell(system.token + "\n")
        threading.Thread(target=self._listen, daemon=True).start()

    def _tell(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line.strip())
        self._said.put("")

    def hear(self, within: float = 120) -> str:
        """The next line.

        Raises:
            RuntimeError: it has ended; its standard error says why.
            queue.Empty: it says nothing.
        """
        line = self._said.get(timeout=within)
        if not line:
            raise RuntimeError("the simulated agents have ended")
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


@contextlib.contextmanager
def _agents(system: System, count: int) -> Iterator[_Fleet]:
    fleet = _Fleet(system, count)
    try:
        yield fleet
    finally:
        fleet.close()


def _deploy(system: System) -> list[str]:
    """A pool and two deployments of each number: one that any agent of it may take, one that a few may."""
    way = system.connect()
    names = []
    for pool in range(POOLS):
        way.post("/pools", {"name": f"p{pool}"})
        # Agents of pool N bear the tags of the sites N, N + 10, N + 20 and N + 30.
        for name, require in ((f"any-{pool}", []), (f"some-{pool}", [f"site=s{pool + 10}"])):
            spec = {"work": {"command": ["/bin/true"]}, "pool": f"p{pool}", "require": require}
            way.request("PUT", f"/deployments/{name}", spec)
            names.append(name)
    return names


def _reaching(system: System, fleet: _Fleet, deployments: list[str], count: int) -> list[float]:
    """Milliseconds from just before a run's creation is asked for until an agent has its assignment."""
    way, chance, found = system.connect(), random.Random(5), []
    for _ in range(count):
        # At moments that have nothing to do with those at which agents sync.
        time.sleep(chance.uniform(0, 0.1))
        before = time.monotonic_ns()
        run_id = way.post("/runs", {"deployment": chance.choice(deployments)})["id"]
        granted, at = fleet.hear().split()
        if granted != run_id:
            raise RuntimeError(f"an agent was given {granted}, expected was {run_id}")
        found.append((int(at) - before) / 1e6)
    return found


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _measure(table: Table, store: str, database_url: str | None, count: int, seconds: float) -> None:
    with running(database_url=database_url, home=new_home()) as system:
        server = psutil.Process(system.server.pid)
        deployments = _deploy(system)
        alone = server.memory_info().rss
        began, spent = time.monotonic(), _cpu(server)
        with _agents(system, count) as fleet:
            if fleet.hear() != "ready":
                raise RuntimeError("the agents are not ready")
            met, meeting = time.monotonic() - began, _cpu(server) - spent
            time.sleep(12)  # each has been held once
            spent, began = _cpu(server), time.monotonic()
            time.sleep(seconds)
            idle = (_cpu(server) - spent) / (time.monotonic() - began) * 100
            memory = server.memory_info().rss - alone
            reaching = _reaching(system, fleet, deployments, 300)
    table.row(f"{store}: server CPU, {count} agents idle, of one core", idle, "%", 30)
    table.row(f"{store}: server memory for each agent", memory / count / 1e3, "kB")
    table.row(f"{store}: a new run reaches an agent, p50", percentile(reaching, 50), "ms")
    table.row(f"{store}: a new run reaches an agent, p99", percentile(reaching, 99), "ms", 150)
    table.note(
        f"{store}: all {count} came at once and were known {met:.1f} s later, for {meeting:.1f} s of the server's CPU. "
        f"The server alone has {alone / 1e6:.0f} MB. The slowest of {len(reaching)} runs took {max(reaching):.0f} ms."
    )


def fleet(table: Table, count: int = 2000, seconds: float = 40) -> None:
    """On both stores."""
    _measure(table, "SQLite", None, count, seconds)
    from tests.engines.postgres import PostgresCluster, find_binaries

    binaries = find_binaries()
    if binaries is None:
        table.note("Postgres was not found and not measured.")
        return
    cluster = PostgresCluster(binaries)
    try:
        cluster.start()
        with cluster.database() as url:
            _measure(table, "Postgres", url, count, seconds)
    finally:
        cluster.stop()
