"""Shunter beside Prefect: the same trivial Python function, the same measures, one after the other.

    python -m benchmarks.compare_prefect [--runs N] [--burst N] [--only shunter|prefect]

Both serve on SQLite and loopback with the settings they come with (Prefect's worker asks for work every
ten seconds); Prefect is installed into an environment of its own, ``.bench/prefect``. Measured:

* *start*: from just before the request that creates a run to the first line of the user's module. The
  worker is idle, and the runs come at random moments of its polling interval, as people's do.
* *burst*: runs created at once, from the first creation to the last end that the server recorded.
* *memory*: resident set of the daemon and of the server with their helper processes, when idle.

It takes about six minutes, nearly all of it Prefect's. Of Prefect's burst some runs may end as crashed, since
its SQLite is busy; they are counted, and the rate is of those that completed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import percentile
from benchmarks.system import free_port, running

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".bench" / "prefect"
#: 3.8.8 as it is, with the newest of two dependencies that it still works with.
REQUIREMENTS = ["prefect==3.8.8", "fastapi<0.150", "anyio<4.12"]
POLLING = 10.0
#: Seconds that one run, or the whole burst, may take before the comparison gives up.
PATIENCE = 300.0

SHUNTER_FLOW = """\
import time

STARTED = time.time_ns()


def main() -> int:
    return STARTED
"""
PREFECT_FLOW = """\
import time

STARTED = time.time_ns()

import os
from pathlib import Path

from prefect import flow


@flow
def main() -> None:
    Path(os.environ["STARTED_FOLDER"], os.environ["PREFECT__FLOW_RUN_ID"]).write_text(str(STARTED))
"""


@dataclass
class Found:
    """What was measured of one product: seconds, runs a second, runs of the burst that failed, bytes."""

    starts: list[float]
    rate: float
    failed: int
    daemon: int
    server: int


@dataclass
class End:
    """How a run ended, as its server tells it; ``at`` is RFC 3339."""

    at: str
    completed: bool
    message: str


def measure_shunter(runs: int, burst: int) -> Found:
    """A server and one agent, as ``shunter server start`` and ``shunter agent start`` make them."""
    with running() as system:
        agent = system.start_agent("compare", 8)
        (system.home / "flow.py").write_text(SHUNTER_FLOW)
        system.cli("deploy", "flow.py:main", "--name", "flow", "--pool", "default")

        def create() -> str:
            return str(system.connect().post("/runs", {"deployment": "flow"})["id"])

        def ended(run: str) -> End | None:
            found = system.connect().get(f"/runs/{run}")
            end = found["ended_at"]
            return End(end, found["state"] == "Completed", str(found["message"])) if end else None

        def started(run: str) -> int:
            return int(system.connect().get(f"/runs/{run}")["result"])

        starts = _starts(create, ended, started, runs, pause=0.5)
        daemon, server = _resident(agent.pid), _resident(system.server.pid)
        rate, failed = _burst(create, ended, burst)
    return Found(starts, rate, failed, daemon, server)


def measure_prefect(runs: int, burst: int) -> Found:
    """A server and one process worker, as ``prefect server start`` and ``prefect worker start`` make them."""
    make_environment()
    with prefect_server() as prefect, _worker(prefect) as worker:
        api, folder, server = prefect.api, prefect.folder, prefect.process
        (folder / "flow.py").write_text(PREFECT_FLOW)
        (folder / "started").mkdir()
        flow = api("POST", "/flows/", {"name": "main"})["id"]
        deployment = api(
            "POST",
            "/deployments/",
            {
                "name": "compare",
                "flow_id": flow,
                "work_pool_name": "compare",
                "entrypoint": "flow.py:main",
                "path": str(folder),
            },
        )["id"]

        def create() -> str:
            return str(api("POST", f"/deployments/{deployment}/create_flow_run", {})["id"])

        def ended(run: str) -> End | None:
            found = api("GET", f"/flow_runs/{run}")
            if found["state_type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return None
            state = found["state"]
            return End(
                found["end_time"] or state["timestamp"], state["type"] == "COMPLETED", str(state["message"])
            )

        def started(run: str) -> int:
            return int((folder / "started" / run).read_text())

        starts = _starts(create, ended, started, runs, pause=POLLING)
        daemon, served = _resident(worker.pid), _resident(server.pid)
        rate, failed = _burst(create, ended, burst)
    return Found(starts, rate, failed, daemon, served)


def _starts(
    create: Callable[[], str],
    ended: Callable[[str], End | None],
    started: Callable[[str], int],
    count: int,
    pause: float,
) -> list[float]:
    moments, found = random.Random(3), []
    for index in range(count + 1):
        time.sleep(moments.uniform(0, pause))
        before = time.time_ns()
        run = create()
        end = _until(ended, run)
        if not end.completed:
            raise RuntimeError(f"a run did not complete: {end.message}")
        if index:  # the first one fills caches
            found.append((started(run) - before) / 1e9)
            print(f"  start {index}: {found[-1]:.3f} s", flush=True)
    return found


def _burst(create: Callable[[], str], ended: Callable[[str], End | None], count: int) -> tuple[float, int]:
    """Runs completed a second, and how many did not complete."""
    begun = time.time()
    with ThreadPoolExecutor(4) as creators:
        runs = list(creators.map(lambda _: create(), range(count)))
    ends = [_until(ended, run) for run in runs]
    took = max(datetime.fromisoformat(end.at).timestamp() for end in ends) - begun
    failed = [end.message for end in ends if not end.completed]
    print(f"  burst of {count}: {took:.2f} s", *failed, sep="\n  not completed: ", flush=True)
    return (count - len(failed)) / took, len(failed)


def _until(ended: Callable[[str], End | None], run: str) -> End:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if end := ended(run):
            return end
        time.sleep(0.05)
    raise RuntimeError(f"a run did not end within {PATIENCE:.0f} seconds")


def _resident(pid: int) -> int:
    """RSS of a daemon and its helpers, in bytes, once its runs' processes are really gone."""
    time.sleep(5)
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])


# --- Prefect's side ------------------------------------------------------------------------------


def make_environment() -> None:
    """Install Prefect into its own environment, once."""
    stamp = ENVIRONMENT / ".installed"
    if stamp.exists() and stamp.read_text() == "\n".join(REQUIREMENTS):
        return
    print(f"installing {REQUIREMENTS[0]} into {ENVIRONMENT.relative_to(ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    python, uv = ENVIRONMENT / "bin" / "python", Path(sys.executable).with_name("uv")
    install = (
        [str(uv), "pip", "install", "--quiet", "--python", str(python)]
        if uv.exists()
        else [str(python), "-m", "pip", "install", "--quiet"]
    )
    subprocess.run([*install, *REQUIREMENTS], check=True)
    stamp.write_text("\n".join(REQUIREMENTS))


@dataclass
class PrefectServer:
    """Prefect's server in a home of its own.

    Attributes:
        folder: for what is tried with it.
        env: of everything that is to speak to it.
    """

    port: int
    folder: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers."""
        deadline = time.monotonic() + PATIENCE
        while True:
            status, data = _request(self.port, method, f"/api{path}", body)
            if status < 400:
                return json.loads(data)
            # Its SQLite is busy; its own client asks again as well.
            if status != 503 or time.monotonic() > deadline:
                raise RuntimeError(f"Prefect: {method} {path}: {status} {data[:2000].decode()}")
            time.sleep(0.1)

    @contextmanager
    def program(self, path: str, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """``prefect ARGUMENTS``, once something answers at a path of the API."""
        log = self.folder / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [str(ENVIRONMENT / "bin" / "prefect"), *arguments],
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            method, body = ("GET", None) if path == "/health" else ("POST", {})
            _wait_for(lambda: self._answers(method, path, body), process, log)
            yield process
        finally:
            _end(process)

    def _answers(self, method: str, path: str, body: Any) -> bool:
        with suppress(OSError, http.client.HTTPException, RuntimeError):
            return bool(self.api(method, path, body))
        return False


@contextmanager
def prefect_server() -> Iterator[PrefectServer]:
    """As ``prefect server start`` makes one, on SQLite."""
    folder = Path(tempfile.mkdtemp(prefix="shunter-compare-"))
    port = free_port()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "PYTHON"))}
    env |= {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "DO_NOT_TRACK": "1",
        "STARTED_FOLDER": str(folder / "started"),
    }
    found = PrefectServer(port, folder, env)
    start = ("server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
    try:
        with found.program("/health", "server", *start) as found.process:
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _worker(prefect: PrefectServer) -> Iterator[subprocess.Popen[bytes]]:
    start = ("worker", "start", "--pool", "compare", "--type", "process", "--name", "compare")
    with prefect.program(
        "/work_pools/compare/workers/filter", "worker", *start, "--install-policy", "never"
    ) as worker:
        yield worker


def _request(port: int, method: str, path: str, body: Any) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Prefect did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and what it left behind."""
    with suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for one in psutil.wait_procs(tree, 5)[1]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


# --- the table -----------------------------------------------------------------------------------


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def table(shunter: Found, prefect: Found, burst: int) -> str:
    """Both side by side, in Markdown; the ratio says how many times better Shunter is."""
    few = len(prefect.starts)

    def row(measure: str, ours: float, theirs: float, shown: Callable[[float], str], up: bool = False) -> str:
        ratio = ours / theirs if up else theirs / ours
        return f"| {measure} | {shown(ours)} | {shown(theirs)} | {ratio:.1f} x |"

    def mb(value: float) -> str:
        return f"{value / 1e6:.0f} MB"

    mid, top = statistics.median, lambda values: percentile(values, 99)
    return "\n".join(
        [
            "| | Shunter | Prefect 3.8.8 | |",
            "| --- | --- | --- | --- |",
            row("start of a Python function, median", mid(shunter.starts), mid(prefect.starts), _seconds),
            row(
                f"the same, p99 (of {len(shunter.starts)} and {few} runs)",
                top(shunter.starts),
                top(prefect.starts),
                _seconds,
            ),
            row(f"burst of {burst}", shunter.rate, prefect.rate, lambda v: f"{v:.2f} runs/s", up=True),
            f"| of these did not complete | {shunter.failed} | {prefect.failed} | |",
            row("agent or worker, idle, RSS", shunter.daemon, prefect.daemon, mb),
            row("server, idle, RSS", shunter.server, prefect.server, mb),
        ]
    )


def main() -> None:
    """Measure one after the other, so that they do not share the machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10, help="starts to measure (Shunter: ten times as many)")
    parser.add_argument("--burst", type=int, default=40, help="runs of the burst")
    parser.add_argument("--only", choices=["shunter", "prefect"])
    options = parser.parse_args()
    found = {}
    if options.only != "prefect":
        print("Shunter", flush=True)
        found["shunter"] = measure_shunter(options.runs * 10, options.burst)
    if options.only != "shunter":
        print("Prefect", flush=True)
        found["prefect"] = measure_prefect(options.runs, options.burst)
    if len(found) == 2:
        print("\n" + table(found["shunter"], found["prefect"], options.burst))
    else:
        print(found)


if __name__ == "__main__":
    main()
