"""What every store does alike: units of work, their commits, and what is told after them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, func, insert, select, text
from sqlalchemy.exc import IntegrityError

from shunter_work_pools.contracts.base import micros, moment
from shunter_work_pools.contracts.errors import Refused, Unavailable
from shunter_work_pools.storage.partitions import AHEAD_DAYS, make_partitions
from shunter_work_pools.storage.schema import metadata, payloads, queues, run_tags
from shunter_work_pools.storage.store import Changes, PostgresStore, SqliteStore, Tx
from tests.storage.stores import AnyStore, Clock


def put(run_id: UUID, value: Any = 1) -> Any:
    """A unit of work that writes one row and says so."""

    def work(tx: Tx) -> UUID:
        tx.conn.execute(insert(payloads).values(run_id=run_id, parameters={"value": value}))
        tx.changes.runs.add(run_id)
        return run_id

    return work


def get(run_id: UUID) -> Any:
    return lambda tx: tx.conn.scalar(select(payloads.c.parameters).where(payloads.c.run_id == run_id))


def count(tx: Tx) -> int:
    return int(tx.conn.scalar(select(func.count()).select_from(payloads)) or 0)


async def test_what_was_written_is_read(store: AnyStore) -> None:
    run_id = uuid4()
    assert await store.write(put(run_id, {"text": "Grüße \u0000 ☃", "float": 0.1, "none": None})) == run_id
    assert await store.read(get(run_id)) == {"value": {"text": "Grüße \u0000 ☃", "float": 0.1, "none": None}}


async def test_a_failing_unit_leaves_nothing_and_its_error_reaches_the_caller(store: AnyStore) -> None:
    run_id = uuid4()

    def half(tx: Tx) -> None:
        put(run_id)(tx)
        raise LookupError("half way")

    with pytest.raises(LookupError, match="half way"):
        await store.write(half)
    assert await store.read(count) == 0
    await store.write(put(run_id))
    assert await store.read(count) == 1


async def test_failing_units_leave_their_neighbours_alone(store: AnyStore) -> None:
    """On SQLite these share commits; that must not show."""
    ids = [uuid4() for _ in range(300)]

    def broken(run_id: UUID) -> Any:
        def work(tx: Tx) -> None:
            put(run_id)(tx)
            tx.conn.execute(insert(payloads).values(run_id=run_id, parameters={}))  # the same key again

        return work

    units = [broken(run_id) if at % 3 == 0 else put(run_id) for at, run_id in enumerate(ids)]
    results = await asyncio.gather(*(store.write(unit) for unit in units), return_exceptions=True)
    for at, (run_id, result) in enumerate(zip(ids, results, strict=True)):
        if at % 3 == 0:
            assert isinstance(result, IntegrityError | Refused)
        else:
            assert result == run_id
    assert await store.read(count) == 200


async def test_commits_are_told_after_them_and_failures_are_not(store: AnyStore) -> None:
    told: list[UUID] = []
    seen_durable: list[asyncio.Task[Any]] = []

    def listen(changes: Changes) -> None:
        told.extend(changes.runs)
        seen_durable.extend(asyncio.ensure_future(store.read(get(run_id))) for run_id in changes.runs)

    store.on_commit = listen
    good, bad = uuid4(), uuid4()

    def half(tx: Tx) -> None:
        put(bad)(tx)
        raise LookupError

    results = await asyncio.gather(store.write(put(good)), store.write(half), return_exceptions=True)
    assert results[0] == good
    assert told == [good]
    assert await asyncio.gather(*seen_durable) == [{"value": 1}]


async def test_the_listener_is_called_before_the_writer_goes_on(store: AnyStore) -> None:
    told: list[UUID] = []
    store.on_commit = lambda changes: told.extend(changes.runs)
    run_id = await store.write(put(uuid4()))
    assert told == [run_id]


async def test_many_writers_and_readers_at_once(store: AnyStore) -> None:
    ids = [uuid4() for _ in range(200)]
    counts = asyncio.gather(*(store.read(count) for _ in range(50)))
    assert await asyncio.gather(*(store.write(put(run_id)) for run_id in ids)) == ids
    assert all(0 <= found <= 200 for found in await counts)
    assert await store.read(count) == 200


async def test_a_read_sees_one_moment(store: AnyStore) -> None:
    """A write that commits between two looks of one read is not seen by the second."""
    loop = asyncio.get_running_loop()
    looked, written = asyncio.Event(), asyncio.Event()
    if isinstance(store, SqliteStore):

        def twice(tx: Tx) -> tuple[int, int]:
            first = count(tx)
            loop.call_soon_threadsafe(looked.set)
            asyncio.run_coroutine_threadsafe(written.wait(), loop).result(10)
            return first, count(tx)
    else:
        from sqlalchemy.util import await_only

        def twice(tx: Tx) -> tuple[int, int]:
            first = count(tx)
            looked.set()
            await_only(written.wait())
            return first, count(tx)

    reading = asyncio.create_task(store.read(twice))
    await asyncio.wait_for(looked.wait(), 10)
    await store.write(put(uuid4()))
    written.set()
    assert await reading == (0, 0)
    assert await store.read(count) == 1


async def test_time_is_the_injected_one_and_stands_still_in_a_transaction(
    store: AnyStore, clock: Clock
) -> None:
    def twice(tx: Tx) -> tuple[int, int]:
        first = tx.now
        clock.advance(5)
        return first, tx.now

    first, second = await store.write(twice)
    assert first == second == clock.now - 5_000_000


async def test_rows_refer_to_rows_that_exist(store: AnyStore) -> None:
    def orphan(tx: Tx) -> None:
        tx.conn.execute(insert(queues).values(pool_id=404, name="x", priority=0, paused=False))

    with pytest.raises((IntegrityError, Refused)):
        await store.write(orphan)


async def test_a_tag_is_kept_once(store: AnyStore) -> None:
    run_id = uuid4()
    row = {"tag": "x", "run_id": run_id}
    await store.write(lambda tx: tx.conn.execute(insert(run_tags), [row]))
    with pytest.raises((IntegrityError, Refused)):
        await store.write(lambda tx: tx.conn.execute(insert(run_tags), [row]))


async def test_the_migrated_schema_is_the_one_the_code_speaks_of(store: AnyStore) -> None:
    """Alembic finds nothing to add, remove or change, and columns may be NULL where the code says so."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def compare(tx: Tx) -> list[Any]:
        def ours(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
            return not (kind == "table" and name is not None and name.startswith("events_"))

        def defaults_differ(*about: Any) -> bool | None:
            found, rendered = about[3], about[5]
            if found is None or not found.endswith("::json"):
                return None  # as Alembic does; Postgres could not compare these
            return bool(found != f"'{rendered}'::json")

        # The partition key is part of the primary key on Postgres alone; that is looked at below.
        context = MigrationContext.configure(
            tx.conn,
            opts={
                "include_object": ours,
                "compare_type": True,
                "compare_server_default": defaults_differ,
                "target_metadata": metadata,
            },
        )
        return list(compare_metadata(context, metadata))

    assert await store.read(compare) == []


# ---- SQLite: groups


async def test_a_failed_commit_fails_all_of_its_group_and_nothing_is_told_or_kept(
    store: AnyStore,
) -> None:
    if not isinstance(store, SqliteStore):
        pytest.skip("Postgres commits each unit by itself") if False else None
        return
    told: list[UUID] = []
    store.on_commit = lambda changes: told.extend(changes.runs)
    blocked = asyncio.Event()
    loop = asyncio.get_running_loop()
    release = __import__("threading").Event()

    def gather_behind_me(tx: Tx) -> None:
        loop.call_soon_threadsafe(blocked.set)
        assert release.wait(10)
        tx.remember("made in the group", True)
        # Checked at the commit only: the unit itself succeeds, the commit cannot.
        tx.conn.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        tx.conn.execute(insert(queues).values(pool_id=404, name="x", priority=0, paused=False))

    first = asyncio.create_task(store.write(gather_behind_me))
    await asyncio.wait_for(blocked.wait(), 10)
    others = [asyncio.create_task(store.write(put(uuid4()))) for _ in range(5)]
    await asyncio.sleep(0)  # they are in the inbox now
    release.set()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert all(isinstance(result, Exception) for result in results)
    assert told == []
    assert store.cache == {}
    assert await store.read(count) == 0
    await store.write(put(uuid4()))
    assert await store.read(count) == 1


async def test_what_gathers_while_a_commit_is_under_way_shares_the_next(store: AnyStore) -> None:
    if not isinstance(store, SqliteStore):
        return
    commits: list[Connection] = []
    from sqlalchemy import event

    assert store._engine is not None
    event.listen(store._engine, "commit", commits.append)
    await asyncio.gather(*(store.write(put(uuid4())) for _ in range(400)))
    assert 400 / SqliteStore.GROUP <= len(commits) <= 40


async def test_a_full_disk_is_told_as_unavailable_and_room_heals_it(store: AnyStore) -> None:
    if not isinstance(store, SqliteStore):
        return

    def limit(pages: int) -> Any:
        return lambda tx: tx.conn.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    await store.write(limit(1))  # as many as there are now
    big = "x" * 5_000_000
    with pytest.raises(Unavailable, match="full"):
        await store.write(put(uuid4(), big))
    assert await store.read(count) == 0
    await store.write(limit(1_000_000))
    await store.write(put(uuid4(), big))
    assert await store.read(count) == 1


# ---- Postgres: partitions, and its own ways to say no


async def test_events_are_partitioned_by_day_and_partitions_are_made_ahead(
    store: AnyStore, clock: Clock
) -> None:
    from shunter_work_pools.contracts.states import Actor
    from shunter_work_pools.queue.events import event_row, record

    await store.write(make_partitions)
    await store.write(make_partitions)  # again: nothing to do
    if not isinstance(store, PostgresStore):
        return
    days = [moment(clock.now) + timedelta(days=ahead) for ahead in range(AHEAD_DAYS)]

    def write(tx: Tx) -> None:
        record(tx, [event_row(uuid4(), "late", Actor.REAPER, micros(day)) for day in days])
        record(
            tx, [event_row(uuid4(), "late", Actor.REAPER, micros(days[-1] + timedelta(days=1)))]
        )  # of no partition yet

    def where(tx: Tx) -> list[str]:
        return list(tx.conn.scalars(text("SELECT tableoid::regclass::text FROM events ORDER BY id")))

    await store.write(write)
    assert await store.read(where) == [f"events_{day:%Y%m%d}" for day in days] + ["events_default"]
    # The day of which an event lies in the default partition stays there, and that is no failure.
    clock.advance(86_400)
    await store.write(make_partitions)
    assert await store.read(where) == [f"events_{day:%Y%m%d}" for day in days] + ["events_default"]


async def test_two_that_wait_for_each_other_are_told_to_come_again(store: AnyStore) -> None:
    """A deadlock is nobody's bug to die of: Postgres ends one of the two, which may be tried again."""
    if not isinstance(store, PostgresStore):
        return
    from sqlalchemy.util import await_only

    await store.write(lambda tx: tx.conn.execute(text("CREATE TABLE pair (id int PRIMARY KEY, n int)")))
    try:
        await store.write(lambda tx: tx.conn.execute(text("INSERT INTO pair VALUES (1, 0), (2, 0)")))
        both = asyncio.Barrier(2)

        def crossing(first: int, second: int) -> Any:
            def work(tx: Tx) -> None:
                tx.conn.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
                tx.conn.execute(text(f"UPDATE pair SET n = n + 1 WHERE id = {first}"))
                await_only(both.wait())
                tx.conn.execute(text(f"UPDATE pair SET n = n + 1 WHERE id = {second}"))

            return work

        results = await asyncio.gather(
            store.write(crossing(1, 2)), store.write(crossing(2, 1)), return_exceptions=True
        )
        failed = [result for result in results if result is not None]
        assert len(failed) == 1
        assert isinstance(failed[0], Unavailable)
    finally:
        await store.write(lambda tx: tx.conn.execute(text("DROP TABLE pair")))


async def test_connections_that_are_all_busy_are_told_as_unavailable(
    migrated_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PostgresStore(migrated_postgres, connections=1)
    await store.open()
    monkeypatch.setattr(store._engine.pool, "_timeout", 0.05)
    try:
        busy = asyncio.create_task(store.read(lambda tx: tx.conn.execute(text("SELECT pg_sleep(0.5)")).all()))
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable, match="busy"):
            await store.write(count)
        await busy
        assert await store.read(count) >= 0
    finally:
        await store.close()
