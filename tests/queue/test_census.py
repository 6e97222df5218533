"""The census of a queue in which very much waits: quick enough to be taken every few seconds."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select

from shunter_work_pools.queue.census import census
from shunter_work_pools.queue.status import server_info
from shunter_work_pools.storage.schema import ready, runs
from tests.queue.world import LOST_AFTER, World
from tests.storage.stores import AnyStore, Clock

RUNS = 100_000
DEPLOYMENTS = 100
LANES = 1000
#: Seconds that one may take.
LIMIT = 0.5


async def much(world: World) -> None:
    """A run of each of many deployments and priorities, and then each of them a hundred times."""
    for pool in range(10):
        await world.pool(f"p{pool}")
    for at in range(DEPLOYMENTS):
        await world.deploy(f"d{at}", pool=f"p{at % 10}", tags=[f"t{at}", f"u{at % 3}", "all"])
    each = range(LANES // DEPLOYMENTS)
    await world.submit_many(
        *[{"deployment": f"d{at}", "priority": rank} for at in range(DEPLOYMENTS) for rank in each]
    )

    def multiply(tx: Any) -> None:
        models = tx.conn.execute(select(runs)).mappings().all()
        lanes = {row.run_id: row.lane_id for row in tx.conn.execute(select(ready))}
        for turn in range(1, RUNS // LANES):
            copies = [(UUID(int=row["id"].int + turn), lanes[row["id"]], dict(row)) for row in models]
            tx.conn.execute(
                insert(runs), [row | {"id": new, "id_reversed": new.hex[::-1]} for new, _, row in copies]
            )
            tx.conn.execute(
                insert(ready),
                [
                    {"run_id": new, "lane_id": lane, "due_at": tx.now - turn, "late": False}
                    for new, lane, _ in copies
                ],
            )

    await world.store.write(multiply)


async def test_a_hundred_thousand_waiting_runs_are_counted_quickly(store: AnyStore, clock: Clock) -> None:
    world = World(store, clock)  # no audit of its books at the end: it would take longer than the test
    await much(world)
    info = await store.read(lambda tx: server_info(tx, store.kind, datetime.now(UTC)))
    took = []
    for _ in range(5):
        began = time.monotonic()
        found = await store.read(lambda tx: census(tx, info, LOST_AFTER))
        took.append(time.monotonic() - began)
    assert sum(line.due for line in found.waiting.values()) == RUNS
    assert found.tags["all"] == RUNS
    assert len(found.tags) == 101, "one hundred and the rest"
    assert sum(found.tags.values()) == RUNS * 3
    assert statistics.median(took) < LIMIT, f"{took}"
    print(f"{store.kind}: {statistics.median(took) * 1000:.0f} ms")
