"""The throw-away Postgres is a real one, private, and leaves nothing behind."""

from __future__ import annotations

import os

import asyncpg
import pytest

from tests.engines.postgres import PostgresCluster, find_binaries


def _dsn(url: str) -> str:
    return url.replace("+asyncpg", "")


async def test_each_test_has_an_empty_database_of_its_own(postgres_database: str, postgres_url: str) -> None:
    assert postgres_url.startswith("postgresql+asyncpg://")
    connection = await asyncpg.connect(_dsn(postgres_database))
    try:
        tables = await connection.fetchval(
            "select count(*) from information_schema.tables where table_schema='public'"
        )
        assert tables == 0
        assert await connection.fetchval("show fsync") == "off"
    finally:
        await connection.close()


async def test_it_wants_a_password(postgres_server: PostgresCluster) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(_dsn(postgres_server.url().replace(postgres_server.password, "wrong")))


def test_stopping_leaves_no_process_and_no_folder(postgres_server: PostgresCluster) -> None:
    binaries = find_binaries()
    assert binaries is not None
    cluster = PostgresCluster(binaries)
    try:
        cluster.start()
        assert cluster._process is not None
        pid = cluster._process.pid
    finally:
        cluster.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not cluster.folder.exists()
