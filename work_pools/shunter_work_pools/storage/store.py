"""A store runs units of work, each a function of a transaction, on SQLite or on Postgres.

The same synchronous functions serve both: on SQLite a single writer thread runs them and commits what
has gathered at once (grouped commits, ``synchronous=FULL``), on Postgres SQLAlchemy's greenlets run
them over asyncpg, each in a transaction of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast
from uuid import UUID

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.errors import (
    BadRequest,
    Conflict,
    Refused,
    StoreAway,
    StoreError,
    Unavailable,
)
from shunter_work_pools.storage.migrate import ensure_schema

if TYPE_CHECKING:  # it is loaded for Postgres alone
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")
Clock = Callable[[], Micros]


def system_clock() -> Micros:
    """The wall clock, microseconds since the epoch."""
    return time.time_ns() // 1000


@dataclass
class Changes:
    """What a committed transaction changed that somebody may be waiting for.

    Attributes:
        pools: pools in which a run may have become claimable.
        agents: agents that must be told something.
        freed: agent -> runs of which it gave back an attempt, ended or unstarted, and what they took of it.
        limits: a limit or what becomes of runs when it is full was changed.
        runs: runs whose shown state changed.
        due_in: seconds until the first of the runs becomes due that wait for a moment in the future.
        schedules: a schedule was made, changed or resumed.
        events: rows of events that were written.
        ended: runs that ended, by state and cause (empty: none).
        revoked: rows of keys that hold no more, or say something else.
        claimed_after, running_after: of first attempts that were granted or came to run, the seconds since
            their runs were due.
    """

    pools: set[int] = field(default_factory=set)
    agents: set[int] = field(default_factory=set)
    freed: dict[int, dict[UUID, Mapping[str, float]]] = field(default_factory=dict)
    runs: set[UUID] = field(default_factory=set)
    due_in: float | None = None
    schedules: bool = False
    limits: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    revoked: set[int] = field(default_factory=set)
    claimed_after: list[float] = field(default_factory=list)
    running_after: list[float] = field(default_factory=list)

    def becomes_due(self, seconds: float) -> None:
        """Note that something becomes due in ``seconds``."""
        self.due_in = seconds if self.due_in is None else min(self.due_in, seconds)

    def merge(self, other: Changes) -> None:
        """Take in the changes of a later transaction."""
        self.pools |= other.pools
        self.agents |= other.agents
        self.runs |= other.runs
        for agent, runs in other.freed.items():
            self.freed.setdefault(agent, {}).update(runs)
        if other.due_in is not None:
            self.becomes_due(other.due_in)
        self.schedules |= other.schedules
        self.limits |= other.limits
        self.events += other.events
        self.ended.update(other.ended)
        self.revoked |= other.revoked
        self.claimed_after += other.claimed_after
        self.running_after += other.running_after


_CLOCK = select(func.extract("epoch", func.clock_timestamp()) * 1_000_000)


class Tx:
    """One transaction: the connection, its moment, and what it changes.

    Attributes:
        conn: SQLAlchemy connection inside the transaction.
        learned: what :meth:`remember` gathered; the store takes it over when it is committed.
        changes: told to the store's listener after the commit.
        postgres: whether row locks exist (and are needed).
        behalf: on whose behalf it writes; None: by the server itself, or by agents.
    """

    __slots__ = ("_cache", "_clock", "_now", "behalf", "changes", "conn", "learned", "postgres")

    def __init__(self, conn: Connection, clock: Clock | None, cache: dict[Any, Any]) -> None:
        self.conn = conn
        self._cache = cache
        self.learned: dict[Any, Any] = {}
        self.changes = Changes()
        self.behalf: Behalf | None = None
        self.postgres = conn.dialect.name == "postgresql"
        self._clock = clock
        self._now: Micros | None = None

    def recall(self, key: Any) -> Any:
        """What was remembered under ``key``, in this or in a committed transaction; None if nothing."""
        value = self.learned.get(key)
        return self._cache.get(key) if value is None else value

    def remember(self, key: Any, value: T) -> T:
        """Keep a value made from rows that never change once they are committed."""
        self.learned[key] = value
        return value

    @property
    def now(self) -> Micros:
        """The moment of this transaction: Postgres' clock there, this machine's on SQLite."""
        if self._now is None:
            if self._clock is not None:
                self._now = self._clock()
            else:
                self._now = int(self.conn.scalar(_CLOCK) or 0)
        return self._now


Work = Callable[[Tx], T]


class Behalf(Protocol):
    """On whose behalf something is written.

    Attributes:
        name: of a person who is known by it; empty: whoever it may be.
        target: what it is done to.
        detail: what else there is to say.
    """

    name: str
    target: str
    detail: dict[str, Any]

    def sign(self, tx: Tx) -> None:
        """Note in a transaction, after its work, that it was done."""


#: Set while a request is served that is to be signed.
BEHALF: ContextVar[Behalf | None] = ContextVar("BEHALF", default=None)


def _signed(work: Work[T]) -> Work[T]:
    """With the signature of the one on whose behalf it is, in the same transaction."""
    behalf = BEHALF.get()
    if behalf is None:
        return work

    def and_sign(tx: Tx) -> T:
        tx.behalf = behalf
        result = work(tx)
        behalf.sign(tx)
        return result

    return and_sign


#: Values a store keeps; beyond it the cache starts anew. Room for the specs and lanes of 20,000 deployments.
_CACHE_LIMIT = 50_000


def _learn(cache: dict[Any, Any], tx: Tx) -> None:
    if tx.learned:
        if len(cache) > _CACHE_LIMIT:
            cache.clear()
        cache.update(tx.learned)


class Store(Protocol):
    """What the server needs of a store.

    Attributes:
        kind: ``sqlite`` or ``postgres``.
        on_commit: told of what each commit changed.
        on_transaction: told of each transaction, from any thread: whether it was to ``read`` or ``write``, and how
            many seconds it took.
        schema_found: the version of the schema before it was opened; None: the database was empty.
    """

    kind: str
    on_commit: Callable[[Changes], None]
    on_transaction: Callable[[str, float], None]
    schema_found: str | None

    async def open(self) -> None:
        """Connect, and bring the schema up to date.

        Raises:
            StoreAway: it cannot be reached, or another server uses it.
            StoreError: not a database, another program's, of a newer schema, unwritable.
        """

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction; when this returns, it is durable."""

    async def read(self, work: Work[T]) -> T:
        """Run ``work``, which only reads, on a consistent snapshot."""

    def pending_writes(self) -> int | None:
        """Units of work that wait to be written; None: they do not wait in a line."""

    async def close(self) -> None:
        """Finish what is under way and disconnect."""


def _ignore(*told: object) -> None:
    """Default listener."""


class SqliteStore:
    """A store in one SQLite file, for one server process.

    Args:
        path: the database file; made if it does not exist.
        clock: the time of transactions; injected by tests.
    """

    kind = "sqlite"
    #: Units of work that share one commit at the most.
    GROUP = 128

    def __init__(self, path: Path, clock: Clock = system_clock) -> None:
        self.path = path
        self.clock = clock
        self.cache: dict[Any, Any] = {}
        self.on_commit: Callable[[Changes], None] = _ignore
        self.on_transaction: Callable[[str, float], None] = _ignore
        self.schema_found: str | None = None
        self._inbox: queue.SimpleQueue[tuple[Work[Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="sqlite-read")
        self._engine: Engine | None = None
        self._lock: int | None = None

    async def open(self) -> None:
        """See :class:`Store`; the file is locked against a second server."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        self._writer = threading.Thread(target=self._write_loop, name="sqlite-write", daemon=True)
        self._writer.start()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise StoreError(
                f"the folder of the database {self.path} cannot be written: {exc.strerror or exc}",
                "Free space there, or set SHUNTER_HOME to a folder of your own.",
            ) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock)
            raise StoreAway(
                f"another server is using the database {self.path}",
                "Stop it first, or set SHUNTER_HOME to another folder.",
            ) from exc
        self._lock = lock
        try:
            check_header(self.path)
        except StoreError:
            self._unlock()
            raise
        engine = create_engine(
            f"sqlite:///{self.path}",
            poolclass=QueuePool,
            pool_size=6,
            hide_parameters=True,  # errors are logged, parameters may be secrets
            connect_args={"check_same_thread": False},
        )
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        try:
            with engine.connect() as conn:
                self.schema_found = ensure_schema(conn, str(self.path))
            # Kept in the file, so only now: a database that is refused stays as it was.
            with contextlib.closing(engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode=WAL")
        except BaseException as exc:
            engine.dispose()
            self._unlock()
            if isinstance(exc, DatabaseError):
                raise _unusable_file(self.path, exc) from exc
            raise
        self._engine = engine

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def write(self, work: Work[T]) -> T:
        """See :class:`Store`."""
        if self._writer is None:
            raise Unavailable("the store is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._inbox.put((_signed(work), future))
        return await future

    async def read(self, work: Work[T]) -> T:
        """See :class:`Store`."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def _read(self, work: Work[T]) -> T:
        assert self._engine is not None
        began = time.monotonic()
        try:
            with self._engine.connect() as conn:
                tx = Tx(conn, self.clock, self.cache)
                result = work(tx)
                _learn(self.cache, tx)
                return result
        except OperationalError as exc:
            raise _store_failure(exc) from exc
        finally:
            self.on_transaction("read", time.monotonic() - began)

    def pending_writes(self) -> int:
        """See :class:`Store`."""
        return self._inbox.qsize()

    async def close(self) -> None:
        """See :class:`Store`."""
        if self._writer is not None:
            self._inbox.put(None)
            await asyncio.to_thread(self._writer.join)
            self._writer = None
        self._readers.shutdown(wait=True)
        if self._engine is not None:
            self._engine.dispose()
        self._unlock()

    def _write_loop(self) -> None:
        assert self._engine is not None
        with self._engine.connect().execution_options(shunter_write=True) as conn:
            item = self._inbox.get()
            while item is not None:
                group = [item]
                stop = self._run_group(conn, group)
                if stop:
                    return
                item = self._inbox.get()

    def _run_group(self, conn: Connection, group: list[tuple[Work[Any], asyncio.Future[Any]]]) -> bool:
        """Run what has gathered in the inbox under one commit; True if the end was among it."""
        stop = False
        began = time.monotonic()
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        merged = Changes()
        try:
            with conn.begin():
                # Past SQLAlchemy: two of these for every unit, and nothing to compile or to fetch.
                savepoint = cast(sqlite3.Connection, conn.connection.dbapi_connection).execute
                index = 0
                while index < len(group):
                    work, future = group[index]
                    index += 1
                    tx = Tx(conn, self.clock, self.cache)
                    # A failed unit must not undo its neighbours.
                    savepoint("SAVEPOINT unit")
                    try:
                        result = work(tx)
                    except BaseException as exc:
                        try:
                            savepoint("ROLLBACK TO unit")
                            savepoint("RELEASE unit")
                        except sqlite3.Error:
                            # A full disk: SQLite has undone the whole transaction by itself.
                            raise exc from None
                        outcomes.append((future, None, exc))
                    else:
                        savepoint("RELEASE unit")
                        _learn(self.cache, tx)
                        merged.merge(tx.changes)
                        outcomes.append((future, result, None))
                    if not stop and index == len(group) < self.GROUP:
                        try:
                            more = self._inbox.get_nowait()
                        except queue.Empty:
                            continue
                        if more is None:
                            stop = True
                        else:
                            group.append(more)
        except BaseException as exc:
            failure = _store_failure(exc)
            outcomes = [(future, None, failure) for _, future in group]
            merged = Changes()
            self.cache.clear()  # it may hold what was just undone
            _undo(conn)
        self.on_transaction("write", time.monotonic() - began)
        # A loop that is gone has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle, outcomes, merged)
        return stop

    def _settle(
        self, outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]], changes: Changes
    ) -> None:
        self.on_commit(changes)
        for future, result, exc in outcomes:
            if future.done():
                continue
            if exc is not None:
                future.set_exception(_store_failure(exc))
            else:
                future.set_result(result)


def _undo(conn: Connection) -> None:
    """A commit that failed leaves SQLite's transaction open, and none could be begun ever after."""
    driver: Any = conn.connection.driver_connection
    if driver.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            driver.rollback()


def _store_failure(exc: BaseException) -> BaseException:
    """Full disks and the like are for the caller to hear of as 'unavailable', not as a bug."""
    if isinstance(exc, OverflowError) and "SQLite" in str(exc):
        return BadRequest(f"a value cannot be kept: {exc}", "Send smaller numbers.")
    if isinstance(exc, OperationalError):
        return Unavailable(
            f"the database cannot be written now: {exc.orig}", "Free space on its disk; nothing was changed."
        )
    return exc


def check_header(path: Path) -> None:
    """Refuse a file that is no database: SQLite takes a few bytes for an empty one, and writes over them.

    Raises:
        StoreError: it is none, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StoreError(
            f"the database {path} cannot be opened: {exc.strerror or exc}",
            "Check its permissions, or set SHUNTER_HOME to another folder.",
        ) from exc
    if head and head != b"SQLite format 3\0":
        raise StoreError(
            f"the file {path} is not a usable SQLite database: it does not begin as one",
            "Move it away, restore a backup, or set SHUNTER_HOME to another folder.",
        )


def _configure_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite alone
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA cache_size=-16000")
    cursor.close()


def _begin_sqlite(conn: Connection) -> None:
    write = conn.get_execution_options().get("shunter_write", False)
    conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _unusable_file(path: Path, exc: DatabaseError) -> StoreError:
    reason = str(exc.orig)
    if "not a database" in reason or "malformed" in reason:
        return StoreError(
            f"the file {path} is not a usable SQLite database: {reason}",
            "Move it away, restore a backup, or set SHUNTER_HOME to another folder.",
        )
    return StoreError(
        f"the database {path} cannot be opened: {reason}",
        "Check its permissions and the free space, or set SHUNTER_HOME to another folder.",
    )


#: SQLSTATEs after which the same work may well succeed: the connection broke, the server is starting or
#: stopping, it is short of disk, memory or connections, or two transactions waited for each other.
_PASSING = ("08", "53", "57P", "57014", "55P03", "25006", "40001", "40P01")


def _sqlstate(exc: DBAPIError) -> str:
    """What Postgres says that it is; empty if it says nothing."""
    return str(getattr(exc.orig, "sqlstate", None) or "")


def _postgres_refusal(exc: DBAPIError) -> Refused | None:
    """What the caller is told; None: a bug."""
    state = _sqlstate(exc)
    if state.startswith(_PASSING):
        return Unavailable(f"Postgres cannot do this now: {exc.orig}", "It will be tried again.")
    if state == "23505":
        return Conflict("another request made the same thing at this moment", "Look at it, or ask again.")
    # A NUL in a text, a number that is too large: fine in JSON, impossible in a column.
    if state.startswith("22") or isinstance(exc, DataError):
        return BadRequest(
            f"a value cannot be kept: {exc.orig}", "Send text without NUL, and smaller numbers."
        )
    return None


#: Seconds to get a connection to Postgres, from a name to being let in.
CONNECT_LIMIT = 10.0


class PostgresStore:
    """A store in a Postgres database.

    Args:
        url: SQLAlchemy URL, ``postgresql+asyncpg://...`` (``postgresql://`` is understood).
        clock: the time of transactions; None: Postgres' own clock.
        connections: how many to hold at the most.
    """

    kind = "postgres"

    def __init__(self, url: str, clock: Clock | None = None, connections: int = 10) -> None:
        from sqlalchemy.engine import make_url

        self.url = make_url(url).set(drivername="postgresql+asyncpg")
        self.clock = clock
        self.connections = connections
        self.cache: dict[Any, Any] = {}
        self.on_commit: Callable[[Changes], None] = _ignore
        self.on_transaction: Callable[[str, float], None] = _ignore
        self.schema_found: str | None = None

    async def open(self) -> None:
        """See :class:`Store`."""
        from sqlalchemy.ext.asyncio import create_async_engine

        self._engine = create_async_engine(
            self.url,
            hide_parameters=True,
            pool_size=self.connections,
            max_overflow=0,
            connect_args={"timeout": CONNECT_LIMIT},
        )
        # Said as a transaction begins, which takes no round trip of its own.
        self._snapshots = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        where = self.url.render_as_string(hide_password=True)
        try:
            async with self._engine.connect() as conn:
                self.schema_found = await conn.run_sync(lambda sync: ensure_schema(sync, where))
        except StoreError:
            await self._engine.dispose()
            raise
        except (DBAPIError, OSError) as exc:
            await self._engine.dispose()
            passing = isinstance(exc, OSError) or _sqlstate(exc).startswith(_PASSING)
            raise (StoreAway if passing else StoreError)(
                f"the database {where} cannot be used: {getattr(exc, 'orig', exc)}",
                "Check that Postgres runs, and the name, user and password in the URL.",
            ) from exc

    async def write(self, work: Work[T]) -> T:
        """See :class:`Store`."""
        async with self._connect(self._engine, "write") as conn, conn.begin():
            tx, result = await conn.run_sync(self._run, _signed(work))
        _learn(self.cache, tx)
        self.on_commit(tx.changes)
        return result  # type: ignore[no-any-return]

    async def read(self, work: Work[T]) -> T:
        """See :class:`Store`."""
        async with self._connect(self._snapshots, "read") as conn:
            tx, result = await conn.run_sync(self._run, work)
        _learn(self.cache, tx)
        return result  # type: ignore[no-any-return]

    @contextlib.asynccontextmanager
    async def _connect(self, engine: AsyncEngine, kind: str) -> Any:
        began = time.monotonic()
        try:
            async with engine.connect() as conn:
                yield conn
        except PoolTimeout as exc:
            raise Unavailable(
                f"all {self.connections} connections to Postgres are busy", "It will be tried again."
            ) from exc
        except (OSError, TimeoutError) as exc:
            raise Unavailable(f"Postgres cannot be reached: {exc}", "It will be tried again.") from exc
        except DBAPIError as exc:
            if exc.connection_invalidated:
                raise Unavailable(f"Postgres went away: {exc.orig}", "It will be tried again.") from exc
            refused = _postgres_refusal(exc)
            if refused is None:
                raise
            raise refused from exc
        finally:
            self.on_transaction(kind, time.monotonic() - began)

    def pending_writes(self) -> None:
        """See :class:`Store`: each has a connection of its own, or waits for one."""

    def _run(self, conn: Connection, work: Work[T]) -> tuple[Tx, T]:
        tx = Tx(conn, self.clock, self.cache)
        return tx, work(tx)

    async def close(self) -> None:
        """See :class:`Store`."""
        await self._engine.dispose()


def open_store(url: str | None, database_file: Path) -> Store:
    """The store of a database URL (``sqlite:///path``, ``postgresql://...``), default an SQLite file.

    Raises:
        StoreError: neither SQLite nor Postgres.
    """
    if url is None:
        return SqliteStore(database_file)
    if url.startswith("sqlite:///") and url != "sqlite:///":
        return SqliteStore(Path(url.removeprefix("sqlite:///")))
    if url.startswith(("postgresql://", "postgresql+asyncpg://", "postgres://")):
        try:
            import asyncpg  # noqa: F401
        except ImportError as exc:
            raise StoreError(
                "the Postgres driver is not installed", "Install shunter[server,postgres]."
            ) from exc
        try:
            return PostgresStore(
                url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url
            )
        except (ValueError, ArgumentError) as exc:  # not told in full: it may hold a password
            raise StoreError(
                "the database URL cannot be read: its port is no number, or a part is missing",
                "Use postgresql://USER:PASSWORD@HOST:PORT/NAME.",
            ) from exc
    raise StoreError(
        f"the database URL {url.split(':', 1)[0]}:... is of no kind that is known",
        "Use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME.",
    )
