"""Deleting: what somebody needs is refused with the reason; a name is free at once; agents come back."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select, update

from shunter_work_pools.contracts.base import moment
from shunter_work_pools.queue import reap
from shunter_work_pools.storage.schema import agents, metadata, pools
from shunter_work_pools.storage.store import Tx
from tests.api.serving import Served, held


async def delete(server: Served, path: str, status: int = 204) -> Any:
    response = await server.http.delete(path)
    assert response.status_code == status, response.text
    return None if status == 204 else response.json()


async def silence(server: Served, name: str = "a1") -> None:
    """The agent was last heard of long ago."""
    server.engine._seen.clear()
    server.engine._heard.clear()
    server.engine._hearing_since -= 10_000  # and somebody would have heard it
    await server.engine.store.write(
        lambda tx: (
            tx.conn.execute(update(agents).where(agents.c.name == name).values(last_seen_at=0)) and None
        )
    )


def left(tx: Tx) -> dict[str, int]:
    """Rows of each table that is not empty; but who did what is kept for a time of its own."""
    counts = {
        table.name: tx.conn.scalar(select(func.count()).select_from(table)) or 0
        for table in metadata.sorted_tables
    }
    return {name: count for name, count in counts.items() if count and name != "audit"}


def pool_names(tx: Tx) -> list[str]:
    """Those that were deleted, too."""
    return list(tx.conn.scalars(select(pools.c.name)))


async def test_a_deployment_goes_with_all_that_belongs_to_it(server: Served) -> None:
    await server.pool()
    spec: dict[str, Any] = {
        "pool": "main",
        "tags": ["t"],
        "schedules": [{"when": {"kind": "interval", "seconds": 3600}}],
    }
    await server.deploy(**spec)
    await server.submit()
    waiting = await server.submit("job", scheduled_at="2040-01-01T00:00:00Z")
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running")
    await server.upload(granted, 0, b"hello\n")
    refused = await delete(server, "/deployments/job", 409)
    assert "1 run of deployment 'job' is active" in refused["detail"]
    assert (await server.run(waiting))["state"] == "Scheduled"
    await server.report(granted, "Completed", log_size=6)
    await server.sync(holds=[])
    await server.without("retain")  # what is there before it has been
    await delete(server, "/deployments/job")
    ended = await server.run(waiting)
    assert (ended["state"], ended["cause"], ended["message"]) == (
        "Cancelled",
        "cancelled",
        "its deployment was deleted",
    )
    for path in ("/deployments/job", "/deployments/job~1", "/deployments/job/events"):
        await server.get(path, 404)
    assert (await server.get("/deployments"))["deployments"] == []
    assert (await server.get("/schedules"))["schedules"] == []
    again = await server.post(f"/runs/{waiting}/retry", status=409)
    assert "was deleted" in again["detail"]
    assert (await server.deploy())["deployment"]["revision"] == 1  # the name is free
    await delete(server, "/deployments/job")
    await server.engine.retention.sweep()
    assert await server.engine.store.read(left) == {"pools": 1, "queues": 1, "agents": 1}
    assert [path for path in server.engine.logs.folder.rglob("*") if path.is_file()] == []  # type: ignore[attr-defined]


async def test_runs_are_never_given_to_a_later_deployment_of_the_same_id(server: Served) -> None:
    await server.deploy(tags=["old"])
    await delete(server, "/deployments/job")
    await server.engine.retention.sweep()
    await server.deploy(tags=["new"])
    assert (await server.run(await server.submit()))["tags"] == ["new"]


async def test_a_pool_that_is_needed_is_not_deleted(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    assert "named by deployment 'job'" in (await delete(server, "/pools/main", 409))["detail"]
    await server.submit()
    assert "1 waiting, 0 active" in (await delete(server, "/pools/main", 409))["detail"]
    (granted,) = await server.take()
    assert "0 waiting, 1 active" in (await delete(server, "/pools/main", 409))["detail"]
    await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    await server.pool("other")
    await server.deploy(pool="other")
    assert "served by agent 'a1'" in (await delete(server, "/pools/main", 409))["detail"]
    await silence(server)
    await delete(server, "/pools/main")
    await server.get("/pools/main", 404)
    assert [one["name"] for one in (await server.get("/pools"))["pools"]] == ["other"]
    assert (await server.run(granted["run"]))["pool"].startswith("main~")
    await server.sync(status=404)  # the agent asks for a pool that is gone
    await server.pool()
    await server.deploy(pool="main")
    await server.submit()
    (again,) = await server.take()  # and serves the new one of that name
    assert again["pool"] == "main"
    await server.engine.retention.sweep()
    assert len(await server.engine.store.read(pool_names)) == 3
    await delete(server, f"/runs/{granted['run']}")
    await server.engine.retention.sweep()
    assert sorted(await server.engine.store.read(pool_names)) == ["main", "other"]


async def test_a_queue_that_is_needed_is_not_deleted(server: Served) -> None:
    await server.pool()
    await server.post("/pools/main/queues", {"name": "fast"}, 201)
    await server.deploy(pool="main", queue="fast")
    run = await server.submit()
    assert "1 waiting" in (await delete(server, "/pools/main/queues/fast", 409))["detail"]
    await server.post(f"/runs/{run}/cancel")
    assert "named by deployment" in (await delete(server, "/pools/main/queues/fast", 409))["detail"]
    await server.deploy(pool="main")
    await delete(server, "/pools/main/queues/default", 400)
    await delete(server, "/pools/main/queues/fast")
    assert [one["name"] for one in (await server.get("/pools/main"))["queues"]] == ["default"]
    # A run that was in it goes where its revision says, which is nowhere now.
    assert (await server.post(f"/runs/{run}/retry"))["pool"] is None
    await server.post(f"/runs/{run}/cancel")
    await server.post("/pools/main/queues", {"name": "fast"}, 201)
    assert (await server.post(f"/runs/{run}/retry"))["queue"] == "fast"


async def test_an_agent_that_is_gone_is_forgotten_and_may_come_back(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    await server.submit()
    (granted,) = await server.take()
    assert "is alive and holds 1 attempt" in (await delete(server, "/agents/a1", 409))["detail"]
    await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    assert "is alive" in (await delete(server, "/agents/a1", 409))["detail"]
    assert (await server.get("/agents/a1"))["name"] == "a1"
    await silence(server)
    await delete(server, "/agents/a1")
    await server.get("/agents/a1", 404)
    await delete(server, "/agents/a1", 404)
    await server.submit()
    (again,) = await server.take()
    assert (await server.get("/agents/a1"))["active"] == 1
    await server.sync(holds=[held(again)])


async def test_a_run_goes_with_its_log_and_events_once_it_has_ended(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main", tags=["t"])
    run = await server.submit()
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running")
    await server.upload(granted, 0, b"hello\n")
    assert "has not ended" in (await delete(server, f"/runs/{run}", 409))["detail"]
    await server.report(granted, "Completed", log_size=6)
    await delete(server, f"/runs/{run[-12:]}")
    for path in (f"/runs/{run}", f"/runs/{run}/events", f"/runs/{run}/logs"):
        await server.get(path, 404)
    assert set(await server.engine.store.read(left)) == {
        "pools",
        "queues",
        "agents",
        "deployments",
        "revisions",
        "lanes",
    }
    late = await server.upload(granted, 0, b"hello\n")
    assert late["sizes"][0]["stale"] is True
    assert [path for path in server.engine.logs.folder.rglob("*") if path.is_file()] == []  # type: ignore[attr-defined]
    await delete(server, f"/runs/{run}", 404)


async def lost_with(server: Served, **spec: Any) -> Any:
    """An attempt of an agent that is lost."""
    await server.pool()
    await server.deploy(pool="main", **spec)
    await server.submit()
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running")
    await server.without("reap")  # it would come first
    await silence(server)
    return granted


GIVE_UP = "/agents/a1?give_up=true"


@pytest.mark.parametrize(
    ("on_lost", "ends"), [("wait", "Crashed"), ("crash", "Crashed"), ("retry", "Retrying")]
)
async def test_an_agent_that_is_known_to_be_gone_is_given_up_at_once(
    server: Served, on_lost: str, ends: str
) -> None:
    granted = await lost_with(server, on_lost=on_lost)
    refused = await delete(server, "/agents/a1", 409)
    assert "is lost and holds 1 attempt" in refused["detail"]
    assert "shunter agent remove a1" in refused["remedy"]
    assert (await server.run(granted["run"]))["state"] == "Running"
    await delete(server, GIVE_UP)
    await server.get("/agents/a1", 404)
    run = await server.run(granted["run"])
    assert (run["state"], run["cause"]) == (ends, "agent_lost")
    assert "a1 was removed by hand" in run["message"]
    # It was not gone after all: whatever it says of that attempt is stale, and it is told to stop.
    answer = await server.sync(holds=[held(granted)], taking=False)
    assert answer["forget"] == [held(granted)]
    (ack,) = (await server.report(granted, "Completed", log_size=0))["acks"]
    assert ack["stale"] is True
    assert (await server.run(granted["run"]))["state"] == ends


async def test_given_up_by_hand_what_was_to_be_cancelled_is_cancelled(server: Served) -> None:
    granted = await lost_with(server, on_lost="retry")
    await server.post(f"/runs/{granted['run']}/cancel")
    await delete(server, GIVE_UP)
    assert (await server.run(granted["run"]))["state"] == "Cancelled"


async def test_an_exclusive_run_is_not_given_up_before_its_lease_has_passed(server: Served) -> None:
    granted = await lost_with(server, exclusive=True, on_lost="retry")
    engine = server.engine
    now = await engine.store.read(lambda tx: tx.now)
    last = now - 100 * 1_000_000
    await engine.store.write(lambda tx: tx.conn.execute(update(agents).values(last_seen_at=last)) and None)
    refused = await delete(server, GIVE_UP, 409)
    until = moment(last + 240 * 1_000_000).isoformat(timespec="seconds").replace("+00:00", "Z")
    assert f"1 run that is exclusive, and may have work of it going on until {until}" in refused["detail"]
    assert (await server.run(granted["run"]))["state"] == "Running", "nothing was changed"
    # Heard long ago by the store's clock; but this server listens since a minute, and the clock may have been set.
    await engine.store.write(lambda tx: tx.conn.execute(update(agents).values(last_seen_at=0)) and None)
    engine._hearing_since = engine._clock() - 60
    assert "exclusive" in (await delete(server, GIVE_UP, 409))["detail"]
    engine._hearing_since = engine._clock() - 241
    await delete(server, GIVE_UP)
    assert (await server.run(granted["run"]))["state"] == "Retrying"


async def test_an_agent_that_is_alive_is_not_given_up_nor_one_that_nobody_could_hear(server: Served) -> None:
    granted = await lost_with(server)
    server.engine._hearing_since = server.engine._clock()  # the server has just been started
    assert "is alive" in (await delete(server, GIVE_UP, 409))["detail"]
    await server.sync(holds=[held(granted)])
    server.engine._hearing_since -= 10_000
    await server.engine._write_heartbeats()
    refused = await delete(server, GIVE_UP, 409)
    assert "is alive and holds 1 attempt" in refused["detail"]
    assert (await server.run(granted["run"]))["state"] == "Running"


async def test_retry_while_lost_is_refused_and_says_what_to_do(server: Served) -> None:
    granted = await lost_with(server, on_lost="wait")
    await server.engine.store.write(lambda tx: reap.mark_lost(tx, tx.now))
    refused = await server.post(f"/runs/{granted['run']}/retry", status=409)
    assert "its agent a1 is lost, and may be working on it still" in refused["detail"]
    assert "shunter agent remove a1" in refused["remedy"]
    await delete(server, GIVE_UP)
    await server.post(f"/runs/{granted['run']}/retry")
    assert (await server.run(granted["run"]))["state"] == "Scheduled"
