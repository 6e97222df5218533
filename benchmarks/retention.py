"""What deleting a long history costs those who claim meanwhile, on SQLite, where both need the one writer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from benchmarks.history import DEPLOYMENTS, claims, fill_sqlite
from benchmarks.report import Table, percentile
from benchmarks.system import new_home, running
from shunter_work_pools.contracts.deployments import Keep
from shunter_work_pools.retention import Retention
from shunter_work_pools.storage.logs import FileLogStore
from shunter_work_pools.storage.results import FileResultStore
from shunter_work_pools.storage.store import open_store

#: Finished runs, of which all but a few are deleted.
RUNS = 20_000
#: Claims between two looks whether all is deleted.
_ROUND = 100


async def _measure(home: Path) -> tuple[list[float], list[float], float]:
    """Milliseconds of claims before and meanwhile, and how many seconds it took."""
    store = open_store(None, home / "shunter.db")
    await store.open()
    try:
        quiet = await claims(store, 3 * _ROUND, "quiet")
        began = time.perf_counter()
        sweep = asyncio.create_task(
            Retention(
                store, FileLogStore(home / "logs"), FileResultStore(home / "results"), Keep(runs=10)
            ).sweep()
        )
        busy: list[float] = []
        while not sweep.done():
            busy += await claims(store, _ROUND, f"busy-{len(busy)}")
        await sweep
        return quiet, busy, time.perf_counter() - began
    finally:
        await store.close()


def retention(table: Table) -> None:
    """Claims while a long history is deleted, beside claims without that."""
    home = new_home()
    with running(home=home) as system:
        for index in range(DEPLOYMENTS):
            spec = {"work": {"command": ["/bin/true"]}, "pool": "default"}
            system.connect().request("PUT", f"/deployments/d{index}", spec)
    fill_sqlite(home / "shunter.db", RUNS)
    quiet, busy, seconds = asyncio.run(_measure(home))
    table.row("claim while runs are deleted, p95", percentile(busy, 95), "ms", 10)
    table.row("claim while runs are deleted, p99", percentile(busy, 99), "ms")
    table.row("claim before, p99", percentile(quiet, 99), "ms")
    table.note(
        f"{RUNS:,} runs with their attempts and events were deleted in {seconds:.0f} s; "
        f"{len(busy):,} claims beside."
    )
