"""A store opens what is its own and refuses everything else, which stays as it was."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from shunter_work_pools.contracts.errors import InvalidInput, StoreError, Unavailable
from shunter_work_pools.storage.migrate import HEAD, REVISIONS
from shunter_work_pools.storage.schema import metadata
from shunter_work_pools.storage.store import PostgresStore, SqliteStore, open_store
from tests.engines.postgres import PostgresCluster


def program(text: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A Python program of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def sqlite_tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as conn:
        return {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type='table'")}


async def refused(store: SqliteStore | PostgresStore, *words: str) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await store.open()
    for word in words:
        assert word in caught.value.detail
    assert caught.value.remedy
    return caught.value


# ---- SQLite


async def test_the_file_and_its_folder_are_made_private(tmp_path: Path) -> None:
    path = tmp_path / "some" / "where" / "shunter.db"
    store = SqliteStore(path)
    await store.open()
    await store.close()
    assert sqlite_tables(path) >= {table.name for table in metadata.sorted_tables}
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shunter.db"
    for _ in range(2):
        store = SqliteStore(path)
        await store.open()
        await store.close()
        content = path.read_bytes()
    assert path.read_bytes() == content


async def test_commits_are_durable_and_readers_do_not_wait(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "shunter.db")
    await store.open()
    try:
        for look in (store.read, store.write):
            settings = await look(
                lambda tx: {
                    name: tx.conn.exec_driver_sql(f"PRAGMA {name}").scalar()
                    for name in ("journal_mode", "synchronous", "foreign_keys")
                }
            )
            assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    finally:
        await store.close()


@pytest.mark.parametrize("content", [b"a shopping list\n" * 400, b"\x00\xff" * 5000, b"x"])
async def test_a_file_that_is_no_database_is_refused_and_left_as_it_was(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "shunter.db"
    path.write_bytes(content)
    await refused(SqliteStore(path), str(path), "not a")
    assert path.read_bytes() == content


async def test_a_truncated_database_is_refused_and_left_as_it_was(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    path = tmp_path / "shunter.db"
    content = migrated_sqlite.read_bytes()[: 3 * 4096 + 100]
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"shunter\.db"):
        await SqliteStore(path).open()
    assert path.read_bytes() == content


async def test_another_programs_database_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "shunter.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE shopping (item TEXT)")
        conn.execute("INSERT INTO shopping VALUES ('bread')")
    conn.close()
    content = path.read_bytes()
    await refused(SqliteStore(path), str(path), "shopping")
    assert path.read_bytes() == content
    assert {entry.name for entry in tmp_path.iterdir()} <= {"shunter.db", "shunter.db.lock"}


async def test_a_newer_schema_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "shunter.db"
    store = SqliteStore(path)
    await store.open()
    await store.close()
    with sqlite3.connect(path) as conn:
        conn.execute("UPDATE alembic_version SET version_num='9999'")
        conn.execute("CREATE TABLE of_the_future (x)")
    conn.close()
    content = path.read_bytes()
    await refused(SqliteStore(path), str(path), "9999", HEAD)
    assert path.read_bytes() == content


async def test_after_a_refusal_the_file_is_free_again(tmp_path: Path) -> None:
    path = tmp_path / "shunter.db"
    path.write_bytes(b"no database" * 100)
    await refused(SqliteStore(path))
    path.unlink()
    store = SqliteStore(path)
    await store.open()
    await store.close()


async def test_a_second_server_on_one_file_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "shunter.db"
    first = SqliteStore(path)
    await first.open()
    try:
        await refused(SqliteStore(path), "another server", str(path))
        assert await first.read(lambda tx: tx.now) > 0
    finally:
        await first.close()
    second = SqliteStore(path)
    await second.open()
    await second.close()


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    await refused(SqliteStore(tmp_path / "file" / "shunter.db"), "cannot be written", "file")
    await refused(SqliteStore(Path("/proc/shunter/shunter.db")), "cannot be written", "/proc/shunter")


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shunter.db").mkdir()
    await refused(SqliteStore(tmp_path / "shunter.db"), "cannot be opened")


# ---- Postgres


def dsn(url: str) -> str:
    return url.replace("+asyncpg", "")


_OPENER = """
import asyncio, sys
from pathlib import Path
from shunter_work_pools.storage.store import open_store

async def main():
    store = open_store(sys.argv[1], Path("unused"))
    await store.open()
    await store.close()

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


async def test_postgres_is_migrated_once_by_servers_that_start_together(postgres_database: str) -> None:
    servers = [program(_OPENER, postgres_database) for _ in range(4)]
    for server in servers:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
    await asyncio.to_thread(lambda: [server.communicate(b"go\n", 60) for server in servers])
    assert [server.returncode for server in servers] == [0, 0, 0, 0]
    conn = await asyncpg.connect(dsn(postgres_database))
    try:
        assert await conn.fetch("SELECT version_num FROM alembic_version") == [(REVISIONS[-1],)]
        assert await conn.fetchval("SELECT relkind = 'p' FROM pg_class WHERE relname = 'events'") is True
    finally:
        await conn.close()


async def test_another_programs_postgres_database_is_refused(postgres_database: str) -> None:
    conn = await asyncpg.connect(dsn(postgres_database))
    try:
        await conn.execute("CREATE TABLE shopping (item text)")
        error = await refused(PostgresStore(postgres_database), "shopping")
        assert "***" in error.detail  # the password is not told
        tables = await conn.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert tables == [("shopping",)]
    finally:
        await conn.close()


async def test_a_newer_schema_is_refused_on_postgres(postgres_database: str) -> None:
    conn = await asyncpg.connect(dsn(postgres_database))
    try:
        await conn.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        await conn.execute("INSERT INTO alembic_version VALUES ('9999')")
        await refused(PostgresStore(postgres_database), "9999", HEAD)
        tables = await conn.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert tables == [("alembic_version",)]
    finally:
        await conn.close()


async def test_wrong_password_unknown_database_and_no_server_are_told(
    postgres_server: PostgresCluster,
) -> None:
    url = postgres_server.url()
    for wrong in (
        url.replace(postgres_server.password, "wrong"),
        postgres_server.url("nowhere"),
        url.replace(f":{postgres_server.port}/", ":1/"),
        url.replace("127.0.0.1", "no-such-host.invalid"),
    ):
        error = await refused(PostgresStore(wrong), "cannot be used")
        assert postgres_server.password not in error.detail


async def test_postgres_that_goes_away_is_unavailable_and_comes_back(postgres_database: str) -> None:
    store = PostgresStore(postgres_database)
    await store.open()
    try:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        other = await asyncpg.connect(dsn(postgres_database))
        await store.read(lambda tx: tx.now)
        await other.execute(kill)
        await other.close()
        for _ in range(store.connections + 1):  # each dead connection is noticed once at the most
            try:
                assert await store.read(lambda tx: tx.now) > 0
                break
            except Unavailable:
                continue
        else:
            pytest.fail("the store does not come back")
    finally:
        await store.close()


# ---- URLs


def test_urls_lead_to_stores(tmp_path: Path) -> None:
    file = tmp_path / "shunter.db"
    assert isinstance(open_store(None, file), SqliteStore)
    named = open_store("sqlite:////var/lib/shunter.db", file)
    assert isinstance(named, SqliteStore)
    assert named.path == Path("/var/lib/shunter.db")
    for scheme in ("postgresql", "postgres", "postgresql+asyncpg"):
        store = open_store(f"{scheme}://user:secret@host/name", file)
        assert isinstance(store, PostgresStore)
        assert store.url.drivername == "postgresql+asyncpg"
    with pytest.raises(StoreError) as caught:
        open_store("mysql://user:secret@host/name", file)
    assert "mysql" in caught.value.detail
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize("url", ["sqlite:///", "postgresql://host:notaport/name"])
def test_urls_that_are_none_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises((StoreError, InvalidInput)):
        open_store(url, tmp_path / "shunter.db")


# ---- durability

_WRITER = """
import asyncio, sys
from pathlib import Path
from uuid import UUID
from sqlalchemy import insert
from shunter_work_pools.storage.schema import payloads
from shunter_work_pools.storage.store import open_store

async def main():
    store = open_store(sys.argv[1], Path("unused"))
    await store.open()
    at = 0
    while True:
        ids = [UUID(int=at + i + 1) for i in range(20)]
        def put(run_id):
            return lambda tx: tx.conn.execute(insert(payloads).values(run_id=run_id, parameters={})) and None
        for done in asyncio.as_completed([store.write(put(i)) for i in ids]):
            await done
        at += 20
        print(at, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_write_returned_for_survives_sigkill(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from sqlalchemy import select

    from shunter_work_pools.storage.schema import payloads

    url = (
        f"sqlite:///{tmp_path / 'shunter.db'}"
        if kind == "sqlite"
        else request.getfixturevalue("postgres_database")
    )
    with program(_WRITER, url) as process:
        assert process.stdout is not None
        promised = 0
        while promised < 200:
            line = process.stdout.readline()
            assert line, "the writer died"
            promised = int(line)
        process.send_signal(signal.SIGKILL)
        promised = max([promised, *map(int, process.stdout.read().split())])
    store = open_store(url, tmp_path)
    await store.open()
    try:
        kept = {
            run_id.int
            for run_id in await store.read(lambda tx: list(tx.conn.scalars(select(payloads.c.run_id))))
        }
    finally:
        await store.close()
    assert set(range(1, promised + 1)) <= kept
