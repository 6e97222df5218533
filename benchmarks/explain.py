"""What it costs to say why a run waits while 100,000 others do, on both stores.

Explanations are transactions of the store, as the server makes them for a request. 70,000 runs in 700 lanes wait for
the one slot of an agent, 10,000 in 100 lanes under a shared limit that is full, 10,000 of paused deployments, and
10,000 that no pool takes. Asked is for runs from all over each heap, and for some of the lowest priority.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy import text

from benchmarks.report import Table, percentile
from benchmarks.system import new_home
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import SyncRequest
from shunter_work_pools.contracts.deployments import DeploymentPatch, DeploymentSpec, Named, Work
from shunter_work_pools.contracts.limits import LimitSpec
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.queue.apply import Times, apply
from shunter_work_pools.queue.catalog import create_pool
from shunter_work_pools.queue.claim import Offer, claim
from shunter_work_pools.queue.explain import explain as explained
from shunter_work_pools.queue.ids import new_run_id
from shunter_work_pools.queue.limits import create_limit
from shunter_work_pools.queue.pausing import patch_deployment
from shunter_work_pools.queue.submit import submit
from shunter_work_pools.queue.sync import register
from shunter_work_pools.storage.store import Store, Tx, open_store

LANES = 1000
RUNS = 100_000
ASKED = 300
_HOUR = 3600.0
_TRUE = Work(command=["/bin/true"])


def _kind(index: int) -> str:
    return {7: "limit_full", 8: "deployment_paused", 9: "no_pool_matches"}.get(index % 10, "in_line")


def _spec(index: int) -> DeploymentSpec:
    kind = _kind(index)
    if kind == "no_pool_matches":
        return DeploymentSpec(work=_TRUE, tags=["nowhere"])
    return DeploymentSpec(work=_TRUE, pool="main", limits=["full"] if kind == "limit_full" else [])


async def _fill(store: Store) -> dict[str, list[UUID]]:
    """Everything that waits, and by what."""

    def make(tx: Tx) -> None:
        create_pool(tx, PoolSpec(name="main"))
        create_pool(tx, PoolSpec(name="other", match=["somewhere"]))
        create_limit(tx, LimitSpec(name="full", max=0))
        wanted = [Named(name=f"d{index}", spec=_spec(index)) for index in range(LANES)]
        apply(tx, wanted, Times(15_000_000, 0, lost_after=_HOUR, lease_for=240.0))

    await store.write(make)
    for index in range(LANES):
        if _kind(index) == "deployment_paused":
            await store.write(
                lambda tx, name=f"d{index}": patch_deployment(tx, name, DeploymentPatch(paused=True), 0, 0)
            )
    request = SyncRequest(
        protocol=PROTOCOL,
        session=new_run_id(time.time_ns() // 1000),
        identity=uuid4(),
        pools=["main"],
        limit=1,
        free=1,
    )
    agent = await store.write(lambda tx: register(tx, "a1", request, 0))
    found: dict[str, list[UUID]] = {}
    for begin in range(0, RUNS, 5000):
        batch = [RunRequest(deployment=f"d{index % LANES}") for index in range(begin, begin + 5000)]
        made = await store.write(lambda tx, batch=batch: submit(tx, batch))
        for index, (run_id, _) in enumerate(made, begin):
            found.setdefault(_kind(index % LANES), []).append(run_id)
    offer = Offer(agent.id, agent.session, frozenset(agent.pools), agent.queues, agent.tags, free=1)
    await store.write(lambda tx: claim(tx, [offer]))
    (taken,) = offer.granted
    found["in_line"].remove(taken.run)
    last = [RunRequest(deployment="d0", priority=-1) for _ in range(ASKED)]
    found["in_line, behind all of these"] = [one for one, _ in await store.write(lambda tx: submit(tx, last))]
    return found


async def _measure(table: Table, name: str, store: Store) -> None:
    await store.open()
    try:
        found = await _fill(store)
        await store.write(lambda tx: tx.conn.execute(text("ANALYZE")))
        chance = random.Random(1)
        for what, runs in found.items():
            times = []
            for run_id in chance.sample(runs, ASKED):
                before = time.perf_counter()
                told = await store.read(lambda tx, run_id=run_id: explained(tx, run_id, _HOUR, _HOUR))
                times.append((time.perf_counter() - before) * 1e3)
                if told.code != what.partition(",")[0]:
                    raise RuntimeError(f"{told.code}, not {what}: {told.sentence}")
            table.row(f"{name}: {what}, median", statistics.median(times), "ms")
            table.row(f"{name}: {what}, p95", percentile(times, 95), "ms", 20)
    finally:
        await store.close()


def explain(table: Table) -> None:
    """Each heap, on each store."""
    asyncio.run(_measure(table, "SQLite", open_store(None, new_home() / "shunter.db")))
    from tests.engines.postgres import PostgresCluster, find_binaries

    binaries = find_binaries()
    if binaries is None:
        table.note("Postgres was not found and not measured.")
        return
    cluster = PostgresCluster(binaries)
    try:
        cluster.start()
        with cluster.database() as url:
            asyncio.run(_measure(table, "Postgres", open_store(url, Path())))
    finally:
        cluster.stop()
