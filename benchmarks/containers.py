"""How soon a container of a docker pool begins, beside `docker run` of the same image on the same engine."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.report import Table
from benchmarks.system import running

_CLOCK = ["python3", "-c", "import time; print(time.time_ns())"]


def containers(table: Table, count: int = 20) -> None:
    """Creation to the first instruction in the container, in turn with bare `docker run`."""
    with _engine() as (url, image), running() as system:
        system.env["DOCKER_HOST"] = url
        variables = ["--template", f"image={image}", "--template", 'networks=["none"]']
        system.cli("pool", "create", "boxes", "--type", "docker", *variables)
        system.cli("deploy", "--name", "clock", "--pool", "boxes", "--", *_CLOCK)
        system.start_agent("bench", 8, pool="boxes")
        way = system.connect()
        ours, bare = [], []
        for index in range(count + 2):
            before = time.time_ns()
            run = way.post("/runs", {"deployment": "clock"})["id"]
            seen = "none"
            while not (found := way.get(f"/runs/{run}?wait=10&seen={seen}"))["ended_at"]:
                seen = f"{found['state']}:{found['attempt_count']}"
            if found["state"] != "Completed":
                raise RuntimeError(f"a container ended {found['state']}: {found['message']}")
            started = int(way.request("GET", f"/runs/{run}/logs?wait=10"))
            direct = _docker_run(url, image)
            if index >= 2:  # the first ones warm what is lazy
                ours.append((started - before) / 1e6)
                bare.append(direct)
    ratio = statistics.median(ours) / statistics.median(bare)
    table.row("start of a container, p50", statistics.median(ours), "ms")
    table.row("bare `docker run` of the same image, p50", statistics.median(bare), "ms")
    table.row("ratio", ratio, "x", 1.3)


def _docker_run(url: str, image: str) -> float:
    """Milliseconds from the command to the clock that the container reads."""
    command = ["docker", "-H", url, "run", "--network", "none", "--init", "--name", "bench", image, *_CLOCK]
    before = time.time_ns()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    subprocess.run(["docker", "-H", url, "rm", "bench"], check=True, capture_output=True)
    return (int(done.stdout) - before) / 1e6


@contextmanager
def _engine() -> Iterator[tuple[str, str]]:
    """An engine that runs, else one of the tests' own; and an image on it."""
    from tests.engines import docker

    url = docker.found()
    if url is not None:
        docker.load_images(url)
        yield url, docker.IMAGE
        return
    if not docker.can_start():
        raise RuntimeError("no Docker engine: start one, or install it (dockerd; root)")
    daemon = docker.Daemon()
    try:
        daemon.start()
        docker.load_images(daemon.url)
        yield daemon.url, docker.IMAGE
    finally:
        daemon.remove()
