"""What a million finished runs cost: claims and filtered pages, on both stores.

The history is written past the queue, straight into the tables, with the rows that real runs leave:
one run, payload, tag, attempt and five events each. Pages are asked for over HTTP from a real server; claims are
transactions of the store, as the server makes them.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from benchmarks.report import Table, percentile
from benchmarks.system import new_home, running
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import Report, SyncRequest
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.contracts.states import AttemptState
from shunter_work_pools.queue.claim import Offer, claim
from shunter_work_pools.queue.ids import new_run_id, reverse
from shunter_work_pools.queue.report import report
from shunter_work_pools.queue.submit import submit
from shunter_work_pools.queue.sync import register
from shunter_work_pools.storage.store import Store, open_store

DEPLOYMENTS = 50
#: One run in so many has failed, and carries the rare tag.
RARE = 997
EVENTS = ("Scheduled", "Claimed", "Starting", "Running")


def _rows(count: int) -> Iterator[dict[str, list[tuple[Any, ...]]]]:
    """Rows by table, 20,000 runs at a time, one run every 100 ms up to now."""
    now = time.time_ns() // 1000
    batch = 20_000
    for first in range(0, count, batch):
        tables: dict[str, list[tuple[Any, ...]]] = {
            "runs": [],
            "payloads": [],
            "run_tags": [],
            "attempts": [],
            "events": [],
        }
        for index in range(first, min(first + batch, count)):
            at = now - (count - index) * 100_000
            run_id = new_run_id(at, index % 16384)
            failed = index % RARE == 0
            state, cause = ("Failed", "exit_code") if failed else ("Completed", None)
            tag = "rare" if failed else f"team-{index % 10}"
            deployment = index % DEPLOYMENTS + 1
            tables["runs"].append(
                (
                    run_id,
                    reverse(run_id.hex),
                    deployment,
                    1,
                    1,
                    1,
                    0,
                    json.dumps([tag]),
                    state,
                    cause,
                    None,
                    False,
                    at,
                    at,
                    at + 8000,
                    at + 20_000,
                    1,
                    0,
                    1,
                    None,
                    None,
                    None,
                )
            )
            tables["payloads"].append((run_id, '{"n": 1}', None))
            tables["run_tags"].append((tag, run_id))
            tables["attempts"].append(
                (
                    run_id,
                    1,
                    1,
                    3,
                    "bench",
                    state,
                    cause,
                    None,
                    at + 5000,
                    at + 8000,
                    at + 20_000,
                    1234,
                    int(failed),
                    None,
                    7_000_000,
                    0.001,
                    6,
                )
            )
            tables["events"] += [
                (at, run_id, None, None if kind == "Scheduled" else 1, kind, "agent", None)
                for kind in (*EVENTS, state)
            ]
        yield tables


_COLUMNS = {
    "runs": [
        "id",
        "id_reversed",
        "deployment_id",
        "revision",
        "pool_id",
        "queue_id",
        "priority",
        "tags",
        "state",
        "cause",
        "message",
        "late",
        "created_at",
        "scheduled_at",
        "started_at",
        "ended_at",
        "attempts",
        "attempts_forgiven",
        "epoch",
        "schedule_id",
        "slot_at",
        "idempotency_key",
    ],
    "payloads": ["run_id", "parameters", "result"],
    "run_tags": ["tag", "run_id"],
    "attempts": [
        "run_id",
        "number",
        "epoch",
        "seq",
        "agent",
        "state",
        "cause",
        "message",
        "claimed_at",
        "started_at",
        "ended_at",
        "pid",
        "exit_code",
        "signal",
        "max_rss_bytes",
        "cpu_seconds",
        "log_size",
    ],
    "events": ["at", "run_id", "deployment_id", "attempt", "kind", "actor", "data"],
}


def fill_sqlite(path: Path, count: int) -> None:
    """Write finished runs into the database of a server that is stopped and has ``DEPLOYMENTS`` deployments."""
    connection = sqlite3.connect(path)
    sqlite3.register_adapter(UUID, lambda value: value.hex)
    connection.execute("PRAGMA synchronous=OFF")
    for tables in _rows(count):
        for table, rows in tables.items():
            columns = _COLUMNS[table]
            marks = ", ".join("?" * len(columns))
            connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)
        connection.commit()
    connection.execute("ANALYZE")
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


async def _fill_postgres(url: str, count: int) -> None:
    import asyncpg

    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    for tables in _rows(count):
        for table, rows in tables.items():
            await connection.copy_records_to_table(table, records=rows, columns=_COLUMNS[table])
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


PAGES = {
    "newest": "",
    "state=Failed (1 in 1,000)": "state=Failed",
    "tag (1 in 10)": "tag=team-3",
    "rare tag": "tag=rare",
    "state and tag": "state=Completed&tag=team-7",
    "state and tag that never meet": "state=Failed&tag=team-3",
    "deployment": "deployment=d7",
    "deployment and state": "deployment=d7&state=Failed",
    "pool": "pool=default",
    "late (none is)": "late=true",
    "state=Running": "state=Running",
    "created in an hour in the middle": "created_after={middle}&created_before={later}",
    "scheduled in an hour in the middle": "scheduled_after={middle}&scheduled_before={later}",
}


def _milliseconds(call: Any, times: int) -> list[float]:
    found = []
    for _ in range(times):
        before = time.perf_counter()
        call()
        found.append((time.perf_counter() - before) * 1e3)
    return found


async def claims(store: Store, times: int, name: str) -> list[float]:
    """Milliseconds of claims of one run each, in a transaction of its own, past HTTP.

    Args:
        store: open.
        name: of an agent that has not been there before.
    """
    request = SyncRequest(
        protocol=PROTOCOL,
        session=new_run_id(time.time_ns() // 1000),
        identity=uuid4(),
        pools=["default"],
        limit=1000,
        free=1,
    )
    agent = await store.write(lambda tx: register(tx, name, request, 0))
    wanted = [RunRequest(deployment=f"d{index % DEPLOYMENTS}") for index in range(times + 5)]
    await store.write(lambda tx: submit(tx, wanted))
    found = []
    for _ in range(times + 5):
        offer = Offer(agent.id, agent.session, frozenset(agent.pools), agent.queues, agent.tags, free=1)
        before = time.perf_counter()
        await store.write(lambda tx, offer=offer: claim(tx, [offer]))
        found.append((time.perf_counter() - before) * 1e3)
        (granted,) = offer.granted
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
        await store.write(lambda tx, end=end: report(tx, agent.id, [end], lost_after=30.0))
    return found[5:]


async def _claims(database_url: str | None, home: Path, times: int, name: str) -> list[float]:
    store = open_store(database_url, home / "shunter.db")
    await store.open()
    try:
        return await claims(store, times, name)
    finally:
        await store.close()


def _measure(table: Table, store: str, database_url: str | None, home: Path, fill: Any, count: int) -> None:
    with running(database_url=database_url, home=home) as system:
        for index in range(DEPLOYMENTS):
            system.connect().request(
                "PUT", f"/deployments/d{index}", {"work": {"command": ["/bin/true"]}, "pool": "default"}
            )
    empty = asyncio.run(_claims(database_url, home, 300, "before"))
    before = time.perf_counter()
    fill()
    took = time.perf_counter() - before
    full = asyncio.run(_claims(database_url, home, 300, "after"))
    with running(database_url=database_url, home=home) as system:
        way = system.connect()
        middle = time.time() - count * 0.1 / 2
        stamps = {
            "middle": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(middle)),
            "later": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(middle + 3600)),
        }
        for name, query in PAGES.items():
            path = f"/runs?limit=20&{query.format(**stamps)}"
            times = _milliseconds(lambda path=path: way.get(path), 15)
            table.row(f"{store}: page, {name}, median", statistics.median(times), "ms", 50)
    table.row(f"{store}: claim of one run, p95", percentile(full, 95), "ms", 10)
    growth = statistics.median(full) / statistics.median(empty)
    table.row(f"{store}: claim with history over claim without, medians", growth, "x", 1.5)
    table.note(f"{store}: {count:,} runs written in {took:.0f} s.")


def history(table: Table, count: int = 1_000_000) -> None:
    """Claims and filtered first pages with a long history."""
    home = new_home()
    _measure(table, "SQLite", None, home, lambda: fill_sqlite(home / "shunter.db", count), count)
    from tests.engines.postgres import PostgresCluster, find_binaries

    binaries = find_binaries()
    if binaries is None:
        table.note("Postgres was not found and not measured.")
        return
    cluster = PostgresCluster(binaries)
    try:
        cluster.start()
        with cluster.database() as url:
            _measure(
                table, "Postgres", url, new_home(), lambda: asyncio.run(_fill_postgres(url, count)), count
            )
    finally:
        cluster.stop()
