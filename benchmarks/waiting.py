"""What waits in front: claims of a free run while 100,000 others are blocked, on both stores.

Claims are transactions of the store, as the server makes them. What is blocked has the higher priority and was
due earlier, a hundred runs in each of a thousand lanes: under a shared limit that is full, under limits of their
own deployments that are full, of paused deployments, demanding a tag that no agent has, needing a device that is
in use.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import uuid4

from benchmarks.report import Table, percentile
from benchmarks.system import new_home
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import Report, SyncRequest
from shunter_work_pools.contracts.deployments import DeploymentPatch, DeploymentSpec, Named, Work
from shunter_work_pools.contracts.limits import LimitSpec
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.contracts.states import AttemptState
from shunter_work_pools.queue.apply import Times, apply
from shunter_work_pools.queue.catalog import create_pool
from shunter_work_pools.queue.claim import Offer, claim
from shunter_work_pools.queue.ids import new_run_id
from shunter_work_pools.queue.limits import create_limit
from shunter_work_pools.queue.pausing import patch_deployment
from shunter_work_pools.queue.report import report
from shunter_work_pools.queue.submit import submit
from shunter_work_pools.queue.sync import Registered, register
from shunter_work_pools.storage.store import Store, Tx, open_store

LANES = 1000
RUNS = 100_000
CLAIMS = 300
_TIMES = Times(15_000_000, 0, lost_after=30.0, lease_for=240.0)
_TRUE = Work(command=["/bin/true"])
#: How the lanes are blocked, in turn.
_WAYS = ("shared limit", "own limit", "paused", "tag", "device")


def _spec(index: int) -> DeploymentSpec:
    more = {
        "shared limit": {"limits": ["full"]},
        "own limit": {"max_active": 1},
        "paused": {},
        "tag": {"require": [f"rare-{index % 50}"]},
        "device": {"need": {"gpu": 1}},
    }[_WAYS[index % len(_WAYS)]]
    return DeploymentSpec.model_validate({"work": _TRUE, "pool": "main", "priority": 5, **more})


async def agent(store: Store, name: str, **about: object) -> Registered:
    """An agent of pool ``main``."""
    request = SyncRequest.model_validate(
        {
            "protocol": PROTOCOL,
            "session": new_run_id(time.time_ns() // 1000),
            "identity": uuid4(),
            "pools": ["main"],
            "limit": 10_000,
            "free": 1,
            **about,
        }
    )
    return await store.write(lambda tx: register(tx, name, request, 0))


def offer(known: Registered, free: int, **capacity: float) -> Offer:
    """What it could take."""
    return Offer(
        known.id,
        known.session,
        frozenset(known.pools),
        known.queues,
        known.tags,
        free,
        capacity=known.capacity,
        free_capacity=dict(capacity),
    )


async def fill(store: Store) -> Registered:
    """Everything that is blocked, and a deployment ``free`` behind it; the agent that claims."""

    def make(tx: Tx) -> None:
        create_pool(tx, PoolSpec(name="main"))
        create_limit(tx, LimitSpec(name="full", max=1))
        wanted = [Named(name=f"d{index}", spec=_spec(index)) for index in range(LANES)]
        wanted.append(Named(name="free", spec=DeploymentSpec(work=_TRUE, pool="main")))
        apply(tx, wanted, _TIMES)

    await store.write(make)
    known = await agent(store, "a1", capacity={"gpu": 1})
    # One active run of each limit and device: with these the blocked ones are blocked.
    first = ["d0", "d4", *(f"d{index}" for index in range(LANES) if _WAYS[index % 5] == "own limit")]
    await store.write(lambda tx: submit(tx, [RunRequest(deployment=name) for name in first]))
    granted = 0
    while granted < len(first):
        one = offer(known, 1000, gpu=1)
        granted += await store.write(lambda tx, one=one: claim(tx, [one]))
    for index in range(LANES):
        if _WAYS[index % 5] == "paused":
            await store.write(
                lambda tx, index=index: patch_deployment(
                    tx, f"d{index}", DeploymentPatch(paused=True), 15_000_000, 0
                )
            )
    for begin in range(0, RUNS, 5000):
        batch = [RunRequest(deployment=f"d{index % LANES}") for index in range(begin, begin + 5000)]
        await store.write(lambda tx, batch=batch: submit(tx, batch))
    return known


async def claims(store: Store, known: Registered, times: int) -> list[float]:
    """Milliseconds of claims of one run of ``free`` each."""
    found = []
    for _ in range(times + 5):
        await store.write(lambda tx: submit(tx, [RunRequest(deployment="free")]))
        one = offer(known, 1)
        before = time.perf_counter()
        await store.write(lambda tx, one=one: claim(tx, [one]))
        found.append((time.perf_counter() - before) * 1e3)
        (granted,) = one.granted
        if granted.deployment != "free":
            raise RuntimeError(f"{granted.deployment} was granted, which is blocked")
        end = Report(
            run=granted.run,
            attempt=granted.attempt,
            epoch=granted.epoch,
            seq=1,
            age=0,
            state=AttemptState.COMPLETED,
            exit_code=0,
            log_size=0,
        )
        await store.write(lambda tx, end=end: report(tx, known.id, [end], lost_after=30.0))
    return found[5:]


async def _measure(table: Table, kind: str, database_url: str | None, home: Path) -> None:
    store = open_store(database_url, home / "shunter.db")
    await store.open()
    try:
        known = await fill(store)
        found = await claims(store, known, CLAIMS)
    finally:
        await store.close()
    table.row(
        f"{kind}: claim of a free run behind 100,000 blocked ones, p95", percentile(found, 95), "ms", 10
    )
    table.row(f"{kind}: the same, median", percentile(found, 50), "ms")


def waiting(table: Table) -> None:
    """Claims behind what is blocked."""
    from tests.engines.postgres import PostgresCluster, find_binaries

    asyncio.run(_measure(table, "SQLite", None, new_home()))
    binaries = find_binaries()
    if binaries is None:
        table.note("Postgres was not found and not measured.")
        return
    cluster = PostgresCluster(binaries)
    try:
        cluster.start()
        with cluster.database() as url:
            asyncio.run(_measure(table, "Postgres", url, new_home()))
    finally:
        cluster.stop()
