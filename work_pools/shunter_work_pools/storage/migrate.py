"""Bring a database to this version's schema, or say why not. Alembic is loaded only if there is work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text

from shunter_work_pools.contracts.errors import StoreError

#: Revisions of the schema, oldest first; the last one is this version's.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
HEAD = REVISIONS[-1]
SCRIPTS = Path(__file__).parent / "migrations"


def ensure_schema(conn: Connection, where: str) -> str | None:
    """Create or upgrade the schema on ``conn`` and commit; the version it had, None if there was none.

    Args:
        conn: a connection outside a transaction.
        where: the database as a person knows it, for errors.

    Raises:
        StoreError: it holds something else, or the schema of a newer version.
    """
    tables = set(inspect(conn).get_table_names())
    version: str | None = None
    if "alembic_version" in tables:
        version = conn.scalar(text("SELECT version_num FROM alembic_version"))
    conn.rollback()
    if version == HEAD:
        return version
    if version is None and tables:
        raise StoreError(
            f"the database {where} holds other tables ({', '.join(sorted(tables)[:3])}, ...) and none of Shunter",
            "Name an empty database.",
        )
    if version is not None and version not in REVISIONS:
        raise StoreError(
            f"the database {where} has schema {version}, which this version (schema {HEAD}) does not know",
            "Install the version of Shunter that last used it, or a newer one.",
        )
    _upgrade(conn)
    return version


def _upgrade(conn: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = conn
    with _rebuilding_tables(conn):
        command.upgrade(config, "head")
        conn.commit()


@contextmanager
def _rebuilding_tables(conn: Connection) -> Iterator[None]:
    """SQLite changes a constraint by making the table anew: what refers to it must not mind meanwhile.

    See https://www.sqlite.org/lang_altertable.html, section 7. No effect on Postgres.
    """
    if conn.dialect.name != "sqlite":
        yield
        return
    driver: Any = conn.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")  # ignored inside a transaction, so before it
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")
