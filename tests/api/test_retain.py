"""What need not be kept goes, oldest first, and leaves nothing behind; what must be kept stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update

from shunter_work_pools.contracts.deployments import Keep
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue import retain
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.storage.schema import (
    attempts,
    deployments,
    events,
    payloads,
    ready,
    run_tags,
    runs,
)
from shunter_work_pools.storage.store import Tx
from tests.api.serving import Served, held, until

DAY = 86_400_000_000


async def ended(server: Served, count: int, state: str = "Completed", *holds: Any) -> list[str]:
    """Runs that an agent, which holds others, has run through, each with a log, oldest first."""
    made = [await server.submit() for _ in range(count)]
    for granted in await server.take(limit=100, free=100, holds=[held(one) for one in holds]):
        await server.report(granted, "Starting", "Running")
        await server.upload(granted, 0, b"hello\n")
        cause: dict[str, Any] = {} if state == "Completed" else {"cause": "exit_code", "exit_code": 1}
        await server.report(granted, state, log_size=6, **cause)
    return made


async def ago(server: Served, made: list[str], days: float) -> None:
    """They have ended so long ago; and were made then, as their ids cannot be changed, a little earlier."""
    ids = [UUID(one) for one in made]

    def work(tx: Tx) -> None:
        tx.conn.execute(update(runs).where(runs.c.id.in_(ids)).values(ended_at=tx.now - round(days * DAY)))

    await server.engine.store.write(work)


def orphans(tx: Tx) -> dict[str, int]:
    """Rows that belong to runs which are not there."""
    there = select(runs.c.id)
    found = {}
    for table in (payloads, attempts, events, run_tags, ready):
        column = table.c.run_id
        statement = select(func.count()).select_from(table).where(column.is_not(None), column.not_in(there))
        if count := tx.conn.scalar(statement):
            found[table.name] = count
    return found


def files(server: Served) -> set[str]:
    folder: Path = server.engine.logs.folder  # type: ignore[attr-defined]
    return {path.name.partition(".")[0] for path in folder.rglob("*") if path.is_file()}


async def kept(server: Served) -> set[str]:
    return {one["id"] for one in (await server.get("/runs", limit=500))["runs"]}


async def deploy(server: Served, **keep: Any) -> None:
    await server.deploy(pool="main", tags=["t"], keep=keep)


async def test_runs_go_by_count_and_never_those_that_have_not_ended(server: Served) -> None:
    await server.pool()
    await deploy(server, runs=3)
    waiting = [await server.submit(scheduled_at="2040-01-01T00:00:00Z") for _ in range(4)]
    made = await ended(server, 7)
    server.engine.retention.keep = Keep(runs=1)  # the deployment's own goes before it
    await server.engine.retention.sweep()
    assert await kept(server) == {*waiting, *made[-3:]}
    assert files(server) == set(made[-3:])
    assert await server.engine.store.read(orphans) == {}


async def test_runs_go_by_age_since_their_end(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.pool()
    await deploy(server)
    made = await ended(server, 4)
    server.engine.retention.keep = Keep(runs_for=3 * 86_400)
    await server.engine.retention.sweep()
    assert await kept(server) == set(made)
    # The ids say that they were made now; what ended before it was made is a clock that was set.
    monkeypatch.setattr(retain, "lowest_id", lambda at: (1 << 128) - 1)
    await ago(server, made[:2], 3.1)
    await ago(server, made[2:], 2.9)
    await server.engine.retention.sweep()
    assert await kept(server) == set(made[2:])
    assert await server.engine.store.read(orphans) == {}


async def test_batches_go_on_until_all_is_done(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retain, "BATCH", 3)
    await server.pool()
    await deploy(server, runs=1, logs=0)
    made = await ended(server, 11)
    await server.engine.retention.sweep()
    assert await kept(server) == {made[-1]}
    assert files(server) == set()
    assert await server.engine.store.read(orphans) == {}


async def test_a_log_with_a_gap_leaves_nothing(server: Served) -> None:
    await server.pool()
    await deploy(server)
    run_id = await server.submit()
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running")
    await server.upload(granted, 0, b"", gap=10)
    await server.report(granted, "Completed", log_size=10)
    folder: Path = server.engine.logs.folder  # type: ignore[attr-defined]
    assert len(list(folder.glob(f"*/{run_id}.*"))) == 2
    assert (await server.http.delete(f"/runs/{run_id}")).status_code == 204
    assert files(server) == set()


async def test_logs_go_and_reading_one_says_so(server: Served) -> None:
    await server.pool()
    await deploy(server, logs=2)
    made = await ended(server, 5)
    silent = await server.submit()
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    await server.engine.retention.sweep()
    assert await kept(server) == {*made, silent}
    assert files(server) == {made[-1]}  # and the newest, which wrote nothing
    gone = await server.get(f"/runs/{made[0]}/logs", 410)
    assert gone["type"] == "urn:shunter:problem:gone"
    assert "was deleted" in gone["detail"]
    assert "keep" in gone["remedy"]
    assert (await server.run(made[0]))["attempts"][0]["log_deleted"] is True
    assert (await server.http.get(f"/runs/{made[-1]}/logs")).content == b"hello\n"
    assert (await server.http.get(f"/runs/{silent}/logs")).content == b""
    # Output that is sent again does not bring it back.
    again = await server.upload({"run": made[0], "attempt": 1, "epoch": 1}, 0, b"hello\n")
    assert again["sizes"][0]["stale"] is True
    assert files(server) == {made[-1]}


async def test_a_run_that_goes_on_has_its_turn_later(server: Served) -> None:
    await server.pool()
    await deploy(server, logs=1, events=1)
    made = await ended(server, 2, "Failed")
    active = await server.submit()
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running")
    await server.upload(granted, 0, b"hello\n")
    late = await ended(server, 3, "Completed", granted)
    await server.engine.retention.sweep()
    assert files(server) == {active, late[-1]}
    assert (await server.get(f"/runs/{made[0]}/events"))["events"] == []
    assert len((await server.get(f"/runs/{active}/events"))["events"]) == 4
    # The cursor waits before it; once it has ended it is done, and so is a run that was retried.
    await server.report(granted, "Completed", log_size=6)
    await server.engine.retention.sweep()
    assert files(server) == {late[-1]}
    assert (await server.get(f"/runs/{active}/events"))["events"] == []
    cursor = await server.engine.store.read(
        lambda tx: tx.conn.execute(select(deployments.c.logs_kept_after)).scalar_one()
    )
    assert cursor.int >= UUID(active).int
    await server.post(f"/runs/{made[0]}/retry")
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running")
    await server.upload(granted, 0, b"hello\n")
    await server.report(granted, "Completed", log_size=6)
    assert files(server) == {late[-1], made[0]}
    await server.engine.retention.sweep()
    assert files(server) == {late[-1]}


async def test_events_of_deployments_go_by_age(server: Served) -> None:
    await deploy_alone(server)

    def write(tx: Tx) -> None:
        deployment_id = tx.conn.scalar(select(deployments.c.id))
        rows = [
            event_row(None, kind, Actor.SCHEDULER, tx.now - days * DAY, deployment_id=deployment_id)
            for days, kind in ((9, "old"), (1, "young"))
        ]
        record(tx, rows)

    await server.engine.store.write(write)
    told = (await server.get("/deployments/job/events"))["events"]
    assert [one["kind"] for one in told] == ["old", "young"]
    await server.engine.retention.sweep()
    told = (await server.get("/deployments/job/events"))["events"]
    assert [one["kind"] for one in told] == ["young"]


async def deploy_alone(server: Served) -> None:
    await server.deploy(keep={"events_for": 2 * 86_400})


async def test_a_crash_between_files_and_rows_leaves_a_run_to_delete(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.pool()
    await deploy(server, runs=0)
    made = await ended(server, 2)

    def crash(tx: Tx, ids: Any) -> int:
        raise RuntimeError("here it ends")

    with monkeypatch.context() as patched:
        patched.setattr(retain, "delete_runs", crash)
        with pytest.raises(RuntimeError):
            await server.engine.retention.sweep()
    assert files(server) == set()
    assert await kept(server) == set(made)
    await server.engine.retention.sweep()
    assert await kept(server) == set()
    assert await server.engine.store.read(orphans) == {}


async def test_output_that_arrives_meanwhile_is_no_orphan(server: Served) -> None:
    await server.pool()
    await deploy(server, runs=0)
    (run,) = await ended(server, 1)
    retention = server.engine.retention
    with retention.receiving({UUID(run)}) as going:
        assert going == set()
        await retention.sweep()
        assert await kept(server) == {run}
        assert "arriving" in (await server.ask("DELETE", f"/runs/{run}", 409))["detail"]
    await retention.sweep()
    assert (await kept(server), files(server)) == (set(), set())


async def test_the_servers_loop_does_it(plain: Served) -> None:
    await plain.pool()
    await deploy(plain, runs=0)
    await ended(plain, 2)
    plain.engine.retain_soon()

    async def none() -> bool:
        return not await kept(plain)

    await until(none)
    left = text("SELECT count(*) FROM payloads")
    assert await plain.engine.store.read(lambda tx: tx.conn.scalar(left)) == 0
