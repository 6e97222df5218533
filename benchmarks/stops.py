"""How soon a cancelled run is gone: from the request to the launcher until nothing of it runs, keeper included."""

from __future__ import annotations

import asyncio
import datetime
import statistics
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from benchmarks.report import Table, percentile
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import Work

#: What is cancelled: a name, a shell script that writes a line when it is ready, and the grace in seconds.
_KINDS = (
    ("ends when asked", "echo up; exec sleep 1000", 10.0),
    ("ignores SIGTERM, no grace", "trap '' TERM; echo up; while :; do sleep 1000; done", 0.0),
    ("was stopped by SIGSTOP", "echo up; kill -STOP $$; exec sleep 1000", 10.0),
    (
        "has 30 processes that ignore it, no grace",
        "trap '' TERM; for i in $(seq 30); do sleep 1000 & done; echo up; wait",
        0.0,
    ),
    ("forks all the time, no grace", "trap '' TERM; echo up; while :; do /bin/true; done", 0.0),
)


def cancel(table: Table, count: int = 100) -> None:
    """Each kind of run, one after another."""
    for name, script, grace in _KINDS:
        found = asyncio.run(_times(script, grace, count))
        table.row(f"cancel what {name}, p50", statistics.median(found), "ms", 250)
        table.row(f"cancel what {name}, p99", percentile(found, 99), "ms", 1000)


async def _times(script: str, grace: float, count: int) -> list[float]:
    """Milliseconds from the request to the end."""
    launcher = ProcessLauncher()
    found = []
    with tempfile.TemporaryDirectory() as root:
        for index in range(count):
            folder = Path(root, str(index))
            folder.mkdir(mode=0o700)
            handle = await launcher.start(_assignment(script), folder, "bench")
            while not await launcher.read_output(handle, 0, 10):  # noqa: ASYNC110  # output has no event
                await asyncio.sleep(0.001)
            before = time.perf_counter()
            await launcher.stop(handle, grace)
            await launcher.wait(handle)
            found.append((time.perf_counter() - before) * 1e3)
        await launcher.close()
    return found


def _assignment(script: str) -> Assignment:
    return Assignment(
        run=uuid4(),
        attempt=1,
        epoch=1,
        session=uuid4(),
        deployment="bench",
        revision=1,
        pool="default",
        queue="default",
        scheduled_at=datetime.datetime.now(datetime.UTC),
        work=Work(command=["/bin/sh", "-c", script]),
    )
