"""Upkeep of a database from outside of a server: its schema brought up to date, a copy of it made."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from shunter_work_pools.contracts.errors import StoreAway, StoreError
from shunter_work_pools.contracts.home import home_from_env
from shunter_work_pools.storage.migrate import HEAD
from shunter_work_pools.storage.store import PostgresStore, SqliteStore, Store, check_header, open_store


def upgrade(url: str | None, wait: float = 0.0) -> tuple[str | None, str]:
    """Bring a database to this version's schema: the schema it had (None: it was empty) and has now.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://...``; None: SQLite in SHUNTER_HOME.
        wait: seconds for which a database that cannot be used now is tried again.

    Raises:
        StoreAway: Postgres does not answer, or a server uses the SQLite file.
        StoreError: it is no database of Shunter, or a newer one.
    """

    async def open_and_close() -> str | None:
        store = _store(url)
        await store.open()
        await store.close()
        return store.schema_found

    again = Retrying(
        stop=stop_after_delay(wait),
        wait=wait_exponential(multiplier=0.25, max=5),
        retry=retry_if_exception_type(StoreAway),
        reraise=True,
    )
    return again(lambda: asyncio.run(open_and_close())), HEAD


def backup(url: str | None, target: Path) -> None:
    """Write a consistent copy of a database to a file, whether a server uses it or not.

    Of SQLite it is a database like the one copied, of Postgres an archive for ``pg_restore``. It appears
    under its name only when it is whole, readable by its owner alone. Logs of runs are not part of it.

    Args:
        url: as for :func:`upgrade`.
        target: must not exist.

    Raises:
        StoreError: the target exists or cannot be written, there is no database, ``pg_dump`` is missing.
    """
    store = _store(url)
    with _written_whole(target) as file:
        if isinstance(store, SqliteStore):
            _copy_sqlite(store.path, file)
        else:
            assert isinstance(store, PostgresStore)
            _dump_postgres(store, file)


def _store(url: str | None) -> Store:
    return open_store(url, home_from_env().database_file)


@contextlib.contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A file to write that gets the name ``target`` at the end, if all went well."""
    exists = StoreError(
        f"the file {target} exists already", "Name one that does not: nothing is overwritten."
    )
    if os.path.lexists(target):
        raise exists
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            yield partial
            _sync(partial)
            os.link(partial, target)  # unlike a rename it never replaces anything
        finally:
            for rest in ("", "-journal", "-wal", "-shm"):
                Path(f"{partial}{rest}").unlink(missing_ok=True)
        _sync(target.parent)
    except FileExistsError as exc:
        raise exists from exc
    except OSError as exc:
        raise StoreError(
            f"the backup {target} cannot be written: {exc.strerror or exc}",
            "Free space there, or name a file in a folder that you may write to.",
        ) from exc


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy_sqlite(source: Path, target: Path) -> None:
    if not source.is_file():
        raise StoreError(f"there is no database {source}", "Set SHUNTER_HOME, or name it by its URL.")
    check_header(source)
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=10)) as live,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            # In one step: one snapshot, which in WAL mode keeps nobody from writing.
            live.backup(copy)
            # A file of its own, that needs no other beside it.
            copy.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as exc:
        raise StoreError(
            f"the database {source} cannot be copied: {exc}", "Check the free space and the permissions."
        ) from exc


def _dump_postgres(store: PostgresStore, target: Path) -> None:
    program = shutil.which("pg_dump")
    if program is None:
        raise StoreError(
            "pg_dump is not on the PATH, and a Postgres database cannot be copied without it",
            "Install Postgres' client programs, of the server's version or newer.",
        )
    url = store.url
    given = {"PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password}
    # In the environment: what stands in a command line is for everybody on the machine to read.
    env = os.environ | {name: str(value) for name, value in given.items() if value is not None}
    name = ["--dbname", url.database] if url.database else []
    words = [program, "--format=custom", "--no-password", "--file", str(target), *name]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StoreError(
            f"pg_dump failed: {done.stderr.strip() or f'exit code {done.returncode}'}",
            "Check that Postgres runs, and the name, user and password in the URL.",
        )
