"""Both stores for tests: a real SQLite file, a real Postgres database, and a clock that tests move."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from shunter_work_pools.contracts.base import Micros, micros
from shunter_work_pools.storage.schema import metadata
from shunter_work_pools.storage.store import PostgresStore, SqliteStore
from tests.engines.postgres import PostgresCluster

AnyStore = SqliteStore | PostgresStore
KINDS = ("sqlite", "postgres")
NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


class Clock:
    """The time of transactions: it stands still until a test moves it."""

    def __init__(self, at: datetime = NOON) -> None:
        self.now: Micros = micros(at)

    def __call__(self) -> Micros:
        return self.now

    def advance(self, seconds: float) -> Micros:
        """Move it (back, with a negative number); the time it is then."""
        self.now += round(seconds * 1_000_000)
        return self.now


def apart(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end in a thread with a loop of its own, whatever runs in this one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@pytest.fixture
def clock() -> Clock:
    """Noon of a day."""
    return Clock()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the schema and nothing else; copied, as that is quicker than migrating."""
    path = tmp_path_factory.mktemp("template") / "shunter.db"

    async def make() -> None:
        store = SqliteStore(path)
        await store.open()
        await store.close()

    apart(make())
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresCluster) -> Iterator[str]:
    """URL of a database with the schema, shared by all tests that begin by emptying it."""

    async def make(url: str) -> None:
        store = PostgresStore(url)
        await store.open()
        await store.close()

    with postgres_server.database() as url:
        apart(make(url))
        yield url


async def empty(store: PostgresStore) -> None:
    """Delete every row, and count ids from 1 again."""
    names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables)
    await store.write(lambda tx: tx.conn.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE")))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which store: whatever uses it runs once on each."""
    return str(request.param)


@pytest.fixture
async def store(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[AnyStore]:
    """An open, empty store of that kind whose transactions happen at ``clock``."""
    opened: AnyStore
    if kind == "sqlite":
        path = tmp_path / "shunter.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        opened = SqliteStore(path, clock)
        await opened.open()
    else:
        opened = PostgresStore(request.getfixturevalue("migrated_postgres"), clock)
        await opened.open()
        await empty(opened)
    yield opened
    await opened.close()
