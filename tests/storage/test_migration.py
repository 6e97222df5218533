"""From the first schema to this one: every row is kept, and a migration that breaks off changes nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, create_engine, event, insert, inspect, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.queue.fire import next_slot_in
from shunter_work_pools.storage.migrate import HEAD, SCRIPTS
from shunter_work_pools.storage.schema import Document, deployments, metadata
from shunter_work_pools.storage.store import (
    PostgresStore,
    SqliteStore,
    Tx,
    _begin_sqlite,
    _configure_sqlite,
)
from tests.storage.stores import AnyStore, apart

RUN = [UUID(int=7 << 76 | at) for at in range(5)]
NAMES = ("hourly", "halted", "gone")
CRON = {"kind": "cron", "cron": "0 * * * *", "timezone": "UTC"}
SPEC = {
    "work": {"command": ["/bin/true"]},
    "schedules": [{"name": name, "when": CRON, "parameters": {}, "paused": False} for name in NAMES[:2]],
}


def run_row(at: int, state: str, **more: Any) -> dict[str, Any]:
    row = {
        "id": RUN[at],
        "id_reversed": RUN[at].hex[::-1],
        "deployment_id": 1,
        "revision": 2,
        "pool_id": 1,
        "queue_id": 1,
        "priority": 0,
        "tags": ["t"],
        "state": state,
        "late": False,
        "created_at": 1,
        "scheduled_at": 2,
        "attempts": 0,
        "attempts_forgiven": 0,
        "epoch": 0,
        "schedule_id": None,
        "slot_at": None,
        "ended_at": None,
        "cause": None,
    }
    return row | more


def schedule_row(at: int, **more: Any) -> dict[str, Any]:
    row = {"id": at, "deployment_id": 1, "name": NAMES[at - 1], "when": CRON, "parameters": {"p": 1}}
    return row | {"paused": False, "anchor_at": 5, "next_at": None} | more


#: Rows of a server of the first schema in the middle of its work, in an order that keys allow.
ROWS: dict[str, list[dict[str, Any]]] = {
    "pools": [
        {"id": 1, "name": "main", "type": "process", "match": ["t"], "limit": 3, "priority": 0}
        | {"template": {"a": [1]}, "paused": False, "created_at": 1}
    ],
    "queues": [{"id": 1, "pool_id": 1, "name": "default", "priority": 0, "limit": None, "paused": False}],
    "deployments": [
        {"id": 1, "name": "job", "revision": 2, "paused": False, "created_at": 1, "updated_at": 2},
        {"id": 9, "name": "other", "revision": 1, "paused": True, "created_at": 1, "updated_at": 1},
    ],
    "revisions": [
        {"deployment_id": 1, "number": 1, "spec": SPEC | {"schedules": []}, "created_at": 1},
        {"deployment_id": 1, "number": 2, "spec": SPEC, "created_at": 2},
        {"deployment_id": 9, "number": 1, "spec": SPEC | {"schedules": []}, "created_at": 1},
    ],
    "schedules": [
        schedule_row(1, next_at=3_600_000_000),
        schedule_row(2, paused=True),
        schedule_row(3, paused=True),
    ],
    "agents": [
        {"id": 4, "name": "a1", "identity": UUID(int=1), "session": UUID(int=2), "pools": ["main"]}
        | {"queues": [], "tags": [], "limit": 2, "host": "h", "version": "1"}
        | {"first_seen_at": 1, "last_seen_at": 2}
    ],
    "lanes": [
        {"id": 6, "queue_id": 1, "priority": 0, "deployment_id": 1, "require": "gpu", "served_at": 3},
        {"id": 8, "queue_id": 1, "priority": 5, "deployment_id": 1, "require": "", "served_at": 0},
    ],
    "runs": [
        run_row(0, "Scheduled"),
        run_row(1, "Scheduled", pool_id=None, queue_id=None),
        run_row(2, "Active", epoch=1, schedule_id=1, slot_at=77),
        run_row(3, "Failed", attempts=1, ended_at=9, cause="exit_code"),
        run_row(4, "Completed", attempts=1, ended_at=9),
    ],
    "run_tags": [{"tag": "t", "run_id": run} for run in RUN],
    "payloads": [{"run_id": run, "parameters": {"ü": 1}, "result": None} for run in RUN],
    "ready": [
        {"run_id": RUN[0], "lane_id": 6, "due_at": 2, "late": True},
        {"run_id": RUN[1], "lane_id": None, "due_at": 2, "late": False},
    ],
    "leases": [
        {"run_id": RUN[2], "attempt": 1, "epoch": 1, "agent_id": 4, "session": UUID(int=2), "pool_id": 1}
        | {"queue_id": 1, "deployment_id": 1, "revision": 2, "state": "Running", "seq": 2, "granted_at": 3}
        | {"started_at": 4, "pid": 5, "message": None, "cancelling": False, "lost": False}
    ],
    "attempts": [
        {"run_id": RUN[at], "number": 1, "epoch": 1, "seq": 3, "agent": "a1", "state": state, "cause": cause}
        | {"message": None, "claimed_at": 3, "started_at": 4, "ended_at": 9, "pid": 5, "exit_code": 1}
        | {"signal": None, "max_rss_bytes": 5_000_000_000, "cpu_seconds": 0.5, "log_size": 7}
        for at, state, cause in ((3, "Failed", "exit_code"), (4, "Completed", None))
    ],
    "events": [
        {"id": 1, "at": 1, "run_id": RUN[0], "deployment_id": None, "attempt": None, "kind": "Scheduled"}
        | {"actor": "user", "data": None},
        {"id": 2, "at": 2, "run_id": None, "deployment_id": 1, "attempt": None, "kind": "catch_up_skipped"}
        | {"actor": "scheduler", "data": {"schedule": "hourly"}},
    ],
}


def make_first(conn: Connection, spoilt: bool) -> None:
    """The first schema with those rows; spoilt: what the second makes nothing of."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = conn
    command.upgrade(config, "0001")
    tables = MetaData()
    tables.reflect(conn)
    for name, rows in ROWS.items():
        known = metadata.tables[name]
        table = tables.tables[name]
        for column in table.columns:  # reflection loses what a JSON or UUID column is on SQLite
            column.type = known.c[column.name].type if column.name in known.c else Document
        for row in rows:
            conn.execute(insert(table), row)
    if spoilt:
        conn.execute(text("UPDATE revisions SET spec = '{}' WHERE number = 2"))
    conn.commit()


def everything(conn: Connection) -> Any:
    """Tables, their columns and rows."""
    tables = MetaData()
    tables.reflect(conn)
    return {
        name: (
            sorted(column.name for column in table.columns),
            sorted(map(repr, conn.execute(select(table)))),
        )
        for name, table in tables.tables.items()
    }


@pytest.fixture
def first(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Makes a database of the first schema, and something to look into it with."""
    if kind == "sqlite":
        path = tmp_path / "shunter.db"

        def on_file(work: Callable[[Connection], Any]) -> Any:
            engine = create_engine(f"sqlite:///{path}")
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            with engine.connect() as conn:
                found = work(conn)
            engine.dispose()
            return found

        return on_file, lambda: SqliteStore(path)
    url = request.getfixturevalue("postgres_database")

    def on_server(work: Callable[[Connection], Any]) -> Any:
        found = []

        async def do() -> None:
            engine = create_async_engine(url)
            async with engine.connect() as conn:
                found.append(await conn.run_sync(work))
            await engine.dispose()

        apart(do())
        return found[0]

    return on_server, lambda: PostgresStore(url)


def rows_of(name: str) -> Callable[[Tx], list[dict[str, Any]]]:
    table = metadata.tables[name]
    return lambda tx: [
        dict(row._mapping) for row in tx.conn.execute(select(table).order_by(*table.primary_key))
    ]


async def opened(store: AnyStore) -> AnyStore:
    await store.open()
    return store


async def test_every_row_is_kept(first: Any) -> None:
    look, make_store = first
    look(lambda conn: make_first(conn, spoilt=False))
    store = await opened(make_store())
    try:
        assert store.schema_found == "0001"
        for name, before in ROWS.items():
            after = await store.read(rows_of(name))
            key = [column.name for column in metadata.tables[name].primary_key]
            wanted = sorted(before, key=lambda row: [row[part] for part in key])
            shared = [{one: row[one] for one in row if one in after[0]} for row in wanted]
            assert [{one: row[one] for one in old} for row, old in zip(after, shared, strict=True)] == shared
        schedules = await store.read(rows_of("schedules"))
        assert [row["removed"] for row in schedules] == [False, False, True]
        assert schedules[0]["done_until"] == 3_600_000_000 - 1
        assert schedules[1]["done_until"] > 1_700_000_000_000_000  # paused: it begins where it is now
        assert [row["backfill_id"] for row in await store.read(rows_of("lanes"))] == [0, 0]
        assert [row["log_deleted"] for row in await store.read(rows_of("attempts"))] == [False, False]
        assert DeploymentSpec.model_validate((await store.read(rows_of("revisions")))[1]["spec"]).schedules
        assert (await store.read(next_slot_in) or 0) < 0  # the slot that was due is still due
        await store.write(_use)
        if isinstance(store, SqliteStore):
            with sqlite3.connect(store.path) as conn:
                assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
                assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            conn.close()
    finally:
        await store.close()


def _use(tx: Tx) -> None:
    """Keys hold, and ids go on after those that were given."""
    if not tx.postgres:
        values = {"name": "new", "revision": 1, "paused": False, "created_at": 1, "updated_at": 1}
        made = tx.conn.scalar(insert(deployments).values(**values).returning(deployments.c.id))
        assert made == 10
    found = inspect(tx.conn).get_foreign_keys("ready")
    assert [key["referred_table"] for key in found] == ["lanes"]


async def test_a_server_of_the_version_before_still_writes(store: AnyStore) -> None:
    """Of several on one Postgres, one is the first to be of this version."""

    def as_before(tx: Tx) -> None:
        for name in ("pools", "queues", "deployments", "agents", "leases", "attempts"):
            tx.conn.execute(insert(metadata.tables[name]), ROWS[name])

    await store.write(as_before)
    (agent,) = await store.read(rows_of("agents"))
    assert (agent["draining"], agent["troubles"], agent["drain_session"]) == (False, [], None)
    assert agent["reaches"] == {}
    (lease,) = await store.read(rows_of("leases"))
    assert (lease["handed_over"], lease["note"], lease["memory"]) == (False, None, None)
    assert {attempt["memory"] for attempt in await store.read(rows_of("attempts"))} == {None}


async def test_one_that_breaks_off_changes_nothing(first: Any) -> None:
    look, make_store = first
    look(lambda conn: make_first(conn, spoilt=True))
    before = look(everything)
    with pytest.raises(KeyError, match="schedules"):
        await make_store().open()
    assert look(everything) == before

    def mend(conn: Connection) -> None:
        statement = text("UPDATE revisions SET spec = :spec WHERE number = 2")
        if conn.dialect.name == "postgresql":
            statement = text("UPDATE revisions SET spec = CAST(:spec AS json) WHERE number = 2")
        conn.execute(statement, {"spec": json.dumps(SPEC)})
        conn.commit()

    look(mend)
    store = await opened(make_store())
    version = await store.read(lambda tx: tx.conn.scalar(text("SELECT version_num FROM alembic_version")))
    await store.close()
    assert version == HEAD
