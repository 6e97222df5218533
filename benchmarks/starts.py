"""How soon a run starts, and how many a second: one server, one agent, SQLite, everything recorded."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from benchmarks.report import Table, percentile
from benchmarks.system import Connection, System, running

PYTHON_FLOW = """
import time

STARTED = time.time_ns()


def main() -> int:
    return STARTED
"""


def _ended(way: Connection, run_id: str) -> dict[str, object]:
    seen = "none"
    while True:
        run: dict[str, object] = way.get(f"/runs/{run_id}?wait=10&seen={seen}")
        if run["ended_at"]:
            return run
        seen = f"{run['state']}:{run['attempt_count']}"


def _latencies(system: System, deployment: str, count: int) -> list[float]:
    """Milliseconds from just before the request that creates a run to the clock that the run reads."""
    way = system.connect()
    found = []
    for index in range(count + 3):
        before = time.time_ns()
        run_id = way.post("/runs", {"deployment": deployment})["id"]
        run = _ended(way, run_id)
        if run["state"] != "Completed":
            raise RuntimeError(f"a run of {deployment} ended {run['state']}: {run['message']}")
        started = run["result"]
        if started is None:
            seen = way.request("GET", f"/runs/{run_id}/logs?wait=10")
            started = int(seen)
        if index >= 3:  # the first ones warm what is lazy
            found.append((int(str(started)) - before) / 1e6)
    return found


def latency(table: Table, count: int = 200) -> None:
    """Creation to first instruction: a native command, a bare interpreter, a Python function."""
    with running() as system:
        system.start_agent("bench", 8)
        (system.home / "flow.py").write_text(PYTHON_FLOW)
        system.cli("deploy", "--name", "native", "--pool", "default", "--", "date", "+%s%N")
        bare = "import time; print(time.time_ns())"
        system.cli("deploy", "--name", "bare", "--pool", "default", "--", sys.executable, "-c", bare)
        system.cli("deploy", "flow.py:main", "--name", "function", "--pool", "default")
        native = _latencies(system, "native", count)
        interpreter = _latencies(system, "bare", count // 4)
        function = _latencies(system, "function", count // 4)
    table.row("start of a native command, p50", statistics.median(native), "ms", 15)
    table.row("start of a native command, p99", percentile(native, 99), "ms", 50)
    over = statistics.median(function) - statistics.median(interpreter)
    table.row("Python function over bare interpreter, median", over, "ms", 40)


def _bare_rate(count: int = 300) -> float:
    """fork/exec/wait of /bin/true a second, one after another in one process."""
    start = time.perf_counter()
    for _ in range(count):
        os.waitpid(os.posix_spawn("/bin/true", ["/bin/true"], {}), 0)
    return count / (time.perf_counter() - start)


def burst(table: Table, count: int = 1000, rounds: int = 3) -> None:
    """Runs of /bin/true a second, created one by one with 4 in flight, all ends recorded."""
    rates, bare = [], []
    for _ in range(rounds):
        with running() as system:
            agent = system.start_agent("bench", 32)
            system.cli("deploy", "--name", "true", "--pool", "default", "--", "/bin/true")
            bare.append(_bare_rate())
            server = psutil.Process(system.server.pid)
            before = _cpu(server), _cpu(agent)
            rates.append(count / _burst(system, count))
            after = _cpu(server), _cpu(agent)
    table.row("burst of /bin/true", statistics.median(rates), "runs/s", 300, at_least=True)
    table.note(
        f"Bare fork/exec/wait in turn: {statistics.median(bare):.0f}/s; "
        f"ratio {statistics.median(r / b for r, b in zip(rates, bare, strict=True)):.2f}. "
        f"CPU a run: server {(after[0] - before[0]) / count * 1e3:.2f} ms, "
        f"agent without its runs {(after[1] - before[1]) / count * 1e3:.2f} ms."
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _burst(system: System, count: int) -> float:
    """Seconds from the first creation to the last recorded end."""

    def create(number: int) -> None:
        way = system.connect()
        for _ in range(number):
            way.post("/runs", {"deployment": "true"})

    way = system.connect()
    start = time.perf_counter()
    with ThreadPoolExecutor(4) as creators:
        for done in [creators.submit(create, count // 4) for _ in range(4)]:
            done.result()
    while True:
        pool = way.get("/pools/default")
        if not pool["waiting"] and not pool["active"]:
            break
        threading.Event().wait(0.02)
    elapsed = time.perf_counter() - start
    completed, cursor = 0, ""
    while True:
        page = way.get(f"/runs?state=Completed&limit=500{cursor}")
        completed += len(page["runs"])
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    if completed != count:
        raise RuntimeError(f"{completed} of {count} runs are Completed")
    return elapsed


def idle(table: Table, seconds: float = 20) -> None:
    """Memory and CPU of parts that have nothing to do."""
    with running() as system:
        agent = system.start_agent("bench", 8)
        system.cli("deploy", "--name", "true", "--pool", "default", "--", "/bin/true")
        way = system.connect()
        _ended(way, way.post("/runs", {"deployment": "true"})["id"])
        forkers = agent.children()
        parts = {"agent": (agent, 50), "server": (psutil.Process(system.server.pid), 110)}
        if forkers:
            parts["forker of keepers"] = (forkers[0], 12)
        time.sleep(2)
        before = {name: _cpu(process) for name, (process, _) in parts.items()}
        time.sleep(seconds)
        for name, (process, limit) in parts.items():
            table.row(f"idle {name}, RSS", process.memory_info().rss / 1e6, "MB", limit)
            table.row(f"idle {name}, CPU", (_cpu(process) - before[name]) / seconds * 100, "%", 0.5)
