"""A server on each store, over real HTTP."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shunter_work_pools.storage.store import PostgresStore, SqliteStore
from tests.api.serving import Served, served
from tests.storage.stores import AnyStore, empty, kind, migrated_postgres, migrated_sqlite

__all__ = ["kind", "migrated_postgres", "migrated_sqlite"]


@pytest.fixture
async def server(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    """A server with an empty store of that kind."""
    store: AnyStore
    if kind == "sqlite":
        path = tmp_path / "shunter.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        store = SqliteStore(path)
    else:
        url = request.getfixturevalue("migrated_postgres")
        store = PostgresStore(url)
        await store.open()
        await empty(store)
        await store.close()
        store = PostgresStore(url)
    async with served(store, tmp_path / "logs") as running:
        yield running


@pytest.fixture
async def plain(migrated_sqlite: Path, tmp_path: Path) -> AsyncIterator[Served]:
    """A server for what has nothing to do with the store."""
    path = tmp_path / "shunter.db"
    shutil.copyfile(migrated_sqlite, path)
    async with served(SqliteStore(path), tmp_path / "logs") as running:
        yield running
