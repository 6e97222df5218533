"""Upkeep: a copy is made while the server works and is whole; a schema is brought up to date without one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import stat
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, insert, make_url, select

from shunter_work_pools.contracts.errors import StoreAway, StoreError
from shunter_work_pools.storage.migrate import HEAD
from shunter_work_pools.storage.schema import payloads, run_tags
from shunter_work_pools.storage.store import PostgresStore, SqliteStore, Tx, Work
from shunter_work_pools.storage.upkeep import backup, upgrade
from tests.engines.postgres import PostgresCluster
from tests.storage.stores import apart


def both(at: int) -> Work[None]:
    """Two rows of one transaction: a copy has both or none."""

    def work(tx: Tx) -> None:
        tx.conn.execute(insert(payloads).values(run_id=UUID(int=at), parameters={"pad": "x" * 2000}))
        tx.conn.execute(insert(run_tags).values(tag="t", run_id=UUID(int=at)))

    return work


def counts(tx: Tx) -> tuple[int, int]:
    return (
        tx.conn.scalar(select(func.count()).select_from(payloads)) or 0,
        tx.conn.scalar(select(func.count()).select_from(run_tags)) or 0,
    )


async def test_a_copy_of_a_live_sqlite_database_is_whole_and_a_second_server_opens_it(tmp_path: Path) -> None:
    path, copy = tmp_path / "shunter.db", tmp_path / "copy.db"
    store = SqliteStore(path)
    await store.open()
    written = 0

    async def load() -> None:
        nonlocal written
        while True:
            await store.write(both(written + 1))
            written += 1

    loading = asyncio.create_task(load())
    try:
        while written < 200:
            await asyncio.sleep(0)
            await store.read(counts)
        before = written
        copying = asyncio.create_task(asyncio.to_thread(backup, f"sqlite:///{path}", copy))
        await copying
        after = written
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with contextlib.closing(sqlite3.connect(copy)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert {one.name for one in tmp_path.iterdir()} <= {
        "copy.db",
        "shunter.db",
        "shunter.db.lock",
        "shunter.db-wal",
        "shunter.db-shm",
    }
    second = SqliteStore(copy)
    await second.open()
    try:
        found = await second.read(counts)
        assert found[0] == found[1]
        assert before <= found[0] <= after + 1
        await second.write(both(10**9))
    finally:
        await second.close()
        await store.close()


def test_nothing_is_overwritten_and_nothing_is_left_of_a_copy_that_failed(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    target = tmp_path / "there"
    target.write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        backup(f"sqlite:///{migrated_sqlite}", target)
    assert target.read_text() == "mine"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="exists already"):
        backup(f"sqlite:///{migrated_sqlite}", dangling)
    with pytest.raises(StoreError, match="there is no database"):
        backup(f"sqlite:///{tmp_path / 'none.db'}", tmp_path / "copy")
    with pytest.raises(StoreError, match="not a usable SQLite database"):
        backup(f"sqlite:///{target}", tmp_path / "copy")
    with pytest.raises(StoreError, match="cannot be written"):
        backup(f"sqlite:///{migrated_sqlite}", tmp_path / "no" / "folder")
    assert {one.name for one in tmp_path.iterdir()} == {"there", "dangling"}


def test_a_copy_without_a_server(tmp_path: Path, migrated_sqlite: Path) -> None:
    backup(f"sqlite:///{migrated_sqlite}", tmp_path / "copy.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as conn:
        assert conn.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]


def test_a_postgres_database_is_dumped_and_restored(
    postgres_server: PostgresCluster, postgres_database: str, tmp_path: Path
) -> None:
    found = []

    async def write_one(url: str) -> None:
        store = PostgresStore(url)
        await store.open()
        await store.write(both(1))
        await store.close()

    async def look(url: str) -> None:
        store = PostgresStore(url)
        await store.open()
        found.append(await store.read(counts))
        await store.close()

    apart(write_one(postgres_database))
    dump = tmp_path / "copy.dump"
    backup(postgres_database, dump)
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    with postgres_server.database() as other:
        into = other.replace("+asyncpg", "")
        subprocess.run([postgres_server.binaries / "pg_restore", "--dbname", into, dump], check=True)
        apart(look(other))
    assert found == [(1, 1)]
    with pytest.raises(StoreError, match="pg_dump failed") as caught:
        backup(postgres_database.replace(postgres_server.password, "wrong"), tmp_path / "other.dump")
    assert postgres_server.password not in caught.value.detail
    assert {one.name for one in tmp_path.iterdir()} == {"copy.dump"}


def test_without_pg_dump_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="pg_dump is not on the PATH"):
        backup("postgresql://someone@localhost/name", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_schema_is_brought_up_to_date_without_a_server(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shunter.db'}"
    assert upgrade(url) == (None, HEAD)
    assert upgrade(url) == (HEAD, HEAD)


async def test_a_database_that_comes_late_is_waited_for(postgres_database: str, tmp_path: Path) -> None:
    """Nobody listens there at first, then somebody who hangs up, then Postgres."""
    real = make_url(postgres_database)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url = real.set(port=port).render_as_string(hide_password=False)
    with pytest.raises(StoreAway, match="cannot be used"):
        await asyncio.to_thread(upgrade, url, 0.0)
    upgrading = asyncio.create_task(asyncio.to_thread(upgrade, url, 60.0))
    hung_up = asyncio.Event()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        hung_up.set()

    async with await asyncio.start_server(hang_up, "127.0.0.1", port):
        await hung_up.wait()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_connection(real.host, real.port)
        await asyncio.gather(pipe(reader, theirs[1]), pipe(theirs[0], writer))

    async with await asyncio.start_server(pass_on, "127.0.0.1", port):
        assert await upgrading == (None, HEAD)


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_what_no_time_mends_is_told_at_once(postgres_database: str, tmp_path: Path) -> None:
    wrong = make_url(postgres_database).set(password="wrong").render_as_string(hide_password=False)
    (tmp_path / "shunter.db").write_bytes(b"recipes" * 99)
    for url in (wrong, f"sqlite:///{tmp_path / 'shunter.db'}"):
        with pytest.raises(StoreError) as caught:
            await asyncio.wait_for(asyncio.to_thread(upgrade, url, 600.0), 20)
        assert not isinstance(caught.value, StoreAway)


async def test_one_that_a_server_uses_is_waited_for(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "shunter.db")
    await store.open()
    upgrading = asyncio.create_task(asyncio.to_thread(upgrade, f"sqlite:///{store.path}", 60.0))
    done, _ = await asyncio.wait([upgrading], timeout=0.5)
    await store.close()
    assert not done
    assert await upgrading == (HEAD, HEAD)


async def test_not_while_a_server_uses_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "shunter.db")
    await store.open()
    try:
        with pytest.raises(StoreError, match="another server is using"):
            await asyncio.to_thread(upgrade, f"sqlite:///{store.path}")
    finally:
        await store.close()
