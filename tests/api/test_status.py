"""One look at everything, and exports: what they say agrees with what happened."""

from __future__ import annotations

from tests.api.serving import Served, held


async def test_status_counts_everything_and_shows_the_most_telling(server: Served) -> None:
    await server.pool()
    retried = {"retries": {"count": 1, "delay": 3600}}
    await server.deploy(pool="main", schedules=[{"when": {"kind": "interval", "seconds": 3600}}])
    await server.deploy("again", pool="main", **retried)
    failing, retrying = await server.submit(), await server.submit("again")
    granted = {one["run"]: one for one in await server.take()}
    for run in (failing, retrying):
        await server.report(
            granted[run], "Starting", "Running", "Failed", cause="exit_code", exit_code=1, log_size=0
        )
    active = await server.submit()
    (holding,) = await server.take()
    await server.report(holding, "Starting", "Running")
    waiting = [await server.submit() for _ in range(3)]
    await server.submit(scheduled_at="2040-01-01T00:00:00Z")
    found = await server.get("/status")
    assert found["live"] == {"Scheduled": 3, "Retrying": 1, "Running": 1}
    assert (found["upcoming"], found["late"], found["failed"]) == (1, 0, 1)
    assert [one["id"] for one in found["active_runs"]] == [active]
    assert [one["id"] for one in found["failed_runs"]] == [failing]
    assert found["late_runs"] == []
    assert [one["name"] for one in found["agents"]] == ["a1"]
    assert [(one["name"], one["waiting"], one["active"]) for one in found["pools"]] == [("main", 5, 1)]
    assert [(one["deployment"], one["name"]) for one in found["next_slots"]] == [("job", "default")]
    assert found["server"]["schema_version"] == "0007"
    assert found["server"]["database_bytes"] > 10_000
    assert found["server"]["started_at"] <= found["server"]["server_time"]
    # Late, by the reaper's hand, and one of a backfill that has the mark and never is.
    from shunter_work_pools.queue import reap

    await server.engine.store.write(lambda tx: reap.mark_late(tx, tx.now + 1))
    body = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T03:00:00Z"}
    made = await server.post("/deployments/job/backfill", body)
    assert made["made"] == 3
    found = await server.get("/status", since="2041-01-01T00:00:00Z")
    assert (found["late"], found["failed"], found["failed_runs"]) == (3, 0, [])
    assert [one["id"] for one in found["late_runs"]] == waiting
    assert found["live"]["Scheduled"] == 6
    await server.sync(holds=[held(holding)], free=0)


async def test_an_export_has_attempts_and_events_of_each_run(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main", tags=["t"])
    made = [await server.submit() for _ in range(3)]
    for granted in await server.take():
        await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    waiting = await server.submit()
    first = await server.get("/runs/export", limit=2)
    second = await server.get("/runs/export", limit=2, cursor=first["next"])
    assert second["next"] is None
    exported = [*first["runs"], *second["runs"]]
    assert [one["id"] for one in exported] == [waiting, *reversed(made)]
    for one in exported[1:]:
        alone = await server.run(one["id"])
        events = (await server.get(f"/runs/{one['id']}/events"))["events"]
        for attempt in alone["attempts"]:
            assert attempt.pop("log_missing") == 0
            attempt["log_missing"] = None  # looked up for one run alone
        assert one == alone | {"events": events}
        assert [event["kind"] for event in events][-1] == "Completed"
    assert (exported[0]["attempts"], len(exported[0]["events"])) == ([], 1)
    found = await server.get("/runs/export", state="Completed", tag="t", limit=500)
    assert len(found["runs"]) == 3
    await server.get("/runs/export", 400, limit=501)
