"""Sync: held until there is something to say, answered the moment there is."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from shunter_work_pools.contracts import PROTOCOL
from tests import patience
from tests.api.serving import SOON, TOKEN, Served, held, until


async def ready(server: Served, **spec: Any) -> None:
    await server.pool()
    await server.deploy(pool="main", **spec)


def hold(server: Served, name: str = "a1", **more: Any) -> asyncio.Task[Any]:
    """A sync that is held as long as may be."""
    return asyncio.create_task(server.sync(name, hold_for=10, **more))


async def soon(task: asyncio.Task[Any]) -> Any:
    """Its answer. One that comes only as the request's own time is over grants nothing."""
    return await asyncio.wait_for(task, patience.SOON)


async def test_nothing_to_say_is_said_when_the_time_is_over(server: Served) -> None:
    await ready(server)
    began = time.monotonic()
    answer = await server.sync(hold_for=0.2)
    assert 0.19 <= time.monotonic() - began < SOON
    assert (answer["assignments"], answer["cancel"], answer["forget"], answer["drain"]) == ([], [], [], False)
    assert (answer["protocol"], answer["lost_after"], answer["give_up_after"]) == (PROTOCOL, 30, 300)
    await server.sync(hold_for=11, status=400)


async def test_a_new_run_is_granted_to_an_agent_that_waits(server: Served) -> None:
    await ready(server)
    syncing = hold(server)
    await server.waits()
    run_id = await server.submit()
    (granted,) = (await soon(syncing))["assignments"]
    assert (granted["run"], granted["epoch"]) == (run_id, 1)


async def test_a_run_that_waits_is_granted_to_an_agent_that_comes(server: Served) -> None:
    await ready(server)
    run_id = await server.submit()
    (granted,) = await server.take()
    assert granted["run"] == run_id


async def test_what_becomes_due_is_granted_then_and_not_before(server: Served) -> None:
    await ready(server)
    syncing = hold(server)
    await server.waits()
    due = datetime.now(UTC) + timedelta(seconds=0.4)
    await server.submit(scheduled_at=due.isoformat())
    (granted,) = (await soon(syncing))["assignments"]
    assert datetime.now(UTC) >= due
    assert granted


async def test_a_slot_is_granted_when_it_is_due(server: Served) -> None:
    await ready(server, schedules=[{"when": {"kind": "interval", "seconds": 1}}])
    (granted,) = await server.take(free=1)
    run = await server.run(granted["run"])
    assert run["schedule"] == "default"
    assert run["slot"] == run["scheduled_at"]


async def test_a_retry_is_granted_when_its_delay_is_over(server: Served) -> None:
    await ready(server, retries={"count": 1, "delay": 0.3})
    await server.submit()
    (first,) = await server.take()
    await server.report(first, "Starting", "Failed", cause="exit_code", log_size=0)
    (second,) = await server.take()
    assert (second["run"], second["attempt"], second["epoch"]) == (first["run"], 2, 2)


async def test_a_cancellation_is_told_at_once_and_once(server: Served) -> None:
    await ready(server)
    run_id = await server.submit()
    (granted,) = await server.take()
    syncing = hold(server, holds=[held(granted)])
    await server.waits()
    await server.post(f"/runs/{run_id}/cancel")
    assert (await soon(syncing))["cancel"] == [held(granted)]
    answer = await server.sync(holds=[held(granted)])
    assert answer["cancel"] == [held(granted)]
    began = time.monotonic()
    answer = await server.sync(holds=[held(granted, stopping=True)], hold_for=0.2)
    assert answer["cancel"] == []
    assert time.monotonic() - began >= 0.19


@pytest.mark.parametrize("what", ["pool", "queue", "deployment"])
async def test_resuming_is_noticed_at_once(server: Served, what: str) -> None:
    await ready(server)
    path = {"pool": "/pools/main", "queue": "/pools/main/queues/default", "deployment": "/deployments/job"}[
        what
    ]
    await server.ask("PATCH", path, json={"paused": True})
    await server.submit()
    syncing = hold(server)
    await server.waits()
    await server.ask("PATCH", path, json={"paused": False})
    assert len((await soon(syncing))["assignments"]) == 1


async def test_a_freed_place_of_a_limit_is_noticed_at_once(server: Served) -> None:
    await ready(server)
    await server.ask("PATCH", "/pools/main", json={"limit": 1})
    await server.submit()
    second = await server.submit()
    (granted,) = await server.take()
    other = hold(server, "a2", identity=str(UUID(int=8)))
    await server.waits()
    await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    assert [one["run"] for one in (await soon(other))["assignments"]] == [second]


async def test_a_freed_place_of_the_agent_itself_is_noticed_while_its_sync_is_held(server: Served) -> None:
    """It reports an end beside the sync that is held: its place is free before it can sync again."""
    await ready(server)
    await server.submit()
    (granted,) = await server.take(limit=1, free=1)
    syncing = hold(server, limit=1, free=0, holds=[held(granted)])
    await server.waits()
    second = await server.submit()
    assert not syncing.done()
    await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    assert [one["run"] for one in (await soon(syncing))["assignments"]] == [second]


async def test_what_is_given_back_goes_to_another_at_once(server: Served) -> None:
    await ready(server)
    await server.submit()
    (granted,) = await server.take()
    other = hold(server, "a2", identity=str(UUID(int=8)))
    await server.waits()
    answer = await server.post(
        "/agents/a1/release", {"session": str(UUID(int=100)), "attempts": [held(granted)]}
    )
    assert answer["acks"][0]["stale"] is False
    (again,) = (await soon(other))["assignments"]
    assert (again["run"], again["epoch"]) == (granted["run"], 2)
    assert (await server.sync(holds=[held(granted)]))["forget"] == [held(granted)]


async def test_an_agent_that_takes_nothing_gets_nothing(server: Served) -> None:
    await ready(server)
    await server.submit()
    for more in ({"taking": False}, {"free": 0}):
        assert (await server.sync(hold_for=0.2, **more))["assignments"] == []


async def test_an_agent_gets_no_more_than_it_has_room_for(server: Served) -> None:
    await ready(server)
    await server.post("/runs/batch", {"runs": [{"deployment": "job"}] * 5}, 201)
    granted = await server.take(free=2)
    assert len(granted) == 2
    more = await server.take(free=2, holds=[held(one) for one in granted])
    assert len({one["run"] for one in granted + more}) == 4


async def test_a_lost_answer_is_told_again(server: Served) -> None:
    await ready(server)
    await server.submit()
    (granted,) = await server.take()
    for _ in range(2):
        assert (await server.sync())["assignments"] == [granted]
    assert (await server.sync(holds=[held(granted)]))["assignments"] == []


async def test_an_agent_that_hung_up_is_given_nothing_and_its_place_is_free(server: Served) -> None:
    await ready(server)
    body = json.dumps(server.sync_body(hold_for=10)).encode()
    head = (
        f"POST /api/v1/agents/a1/sync HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + body)
    await writer.drain()
    await server.waits()
    writer.close()
    await writer.wait_closed()
    await until(lambda: not server.engine.hub.agents)
    run_id = await server.submit()
    await asyncio.sleep(0.05)
    assert (await server.run(run_id))["state"] == "Scheduled"
    (granted,) = await server.take("a2", identity=str(UUID(int=8)))
    assert (granted["run"], granted["epoch"]) == (run_id, 1)


async def test_a_newer_sync_of_an_agent_answers_the_older(server: Served) -> None:
    await ready(server)
    older = hold(server)
    await server.waits()
    newer = hold(server)
    assert (await soon(older))["assignments"] == []
    await server.submit()
    assert len((await soon(newer))["assignments"]) == 1


async def test_many_agents_and_many_runs_meet_once_each(server: Served) -> None:
    await ready(server)
    done: set[str] = set()
    total = 60

    async def work(number: int) -> None:
        me = {"identity": str(UUID(int=50 + number)), "limit": 3}
        name = f"a{number}"
        while len(done) < total:
            answer = await server.sync(name, hold_for=0.5, free=3, **me)
            for granted in answer["assignments"]:
                assert granted["run"] not in done
                done.add(granted["run"])
                await server.report(granted, "Starting", "Running", "Completed", name=name, log_size=0)

    async def make() -> None:
        for _ in range(total // 3):
            await server.post("/runs/batch", {"runs": [{"deployment": "job"}] * 3}, 201)

    await asyncio.wait_for(asyncio.gather(make(), *(work(number) for number in range(5))), 60)
    runs = (await server.get("/runs", limit=100))["runs"]
    assert [(run["state"], run["attempt_count"]) for run in runs] == [("Completed", 1)] * total


# ---- who may sync


async def test_another_protocol_is_refused(plain: Served) -> None:
    await ready(plain)
    for protocol in (1, 4):
        told = await plain.sync(protocol=protocol, status=426)
        assert told["type"] == "urn:shunter:problem:protocol-mismatch"
        assert str(protocol) in told["detail"]


async def test_a_name_in_use_is_refused(server: Served) -> None:
    await ready(server)
    await server.sync(host="here")
    told = await server.sync(identity=str(UUID(int=8)), status=409)
    assert told["type"] == "urn:shunter:problem:agent-name-in-use"
    assert "here" in told["detail"]
    assert "--name" in told["remedy"]


async def test_a_session_that_was_superseded_is_refused(server: Served) -> None:
    await ready(server)
    await server.submit()
    older = hold(server, taking=False)
    await server.waits(0)
    await until(lambda: server.engine.hub.agents)
    (granted,) = await server.take(session=str(UUID(int=101)))
    assert granted["session"] == str(UUID(int=101))
    await asyncio.wait_for(older, SOON)
    told = await server.sync(status=409)
    assert told["type"] == "urn:shunter:problem:agent-name-in-use"
    refused = await server.http.post(
        "/agents/a1/reports", json={"session": str(UUID(int=100)), "reports": []}
    )
    assert refused.status_code == 404


async def test_what_is_wrong_with_a_sync_is_told_as_everywhere(server: Served) -> None:
    told = await server.sync(free=-1, status=400)
    assert told["type"] == "urn:shunter:problem:bad-request"
    assert "free: Input should be greater than or equal to 0 (got -1)" in told["detail"]
    told = await server.sync(surplus=1, status=400)
    assert told["errors"][0]["loc"] == ["body", "surplus"]
    told = await server.sync("-a", status=400)
    assert told["detail"].startswith("name: ")
    headers = {"content-type": "application/json"}
    told = await server.ask("POST", "/agents/a1/sync", 400, content=b"{", headers=headers)
    assert told["type"] == "urn:shunter:problem:bad-request"
    assert (await server.http.get("/agents/a1/sync")).status_code == 405


async def test_reports_before_the_first_sync_are_refused(server: Served) -> None:
    body = {"session": str(UUID(int=100)), "reports": []}
    told = await server.post("/agents/a1/reports", body, 404)
    assert "sync" in told["detail"].lower()
    await server.post("/agents/a1/release", {"session": str(UUID(int=100)), "attempts": []}, 404)


async def test_an_unknown_pool_is_refused_and_the_agent_unknown(server: Served) -> None:
    assert "shunter pool create" in (await server.sync(status=404))["remedy"]
    assert (await server.get("/agents"))["agents"] == []


async def test_agents_are_listed(server: Served) -> None:
    await ready(server)
    await server.submit()
    await server.take(tags=["gpu"], host="here", version="1.2.3")
    (agent,) = (await server.get("/agents"))["agents"]
    assert {key: agent[key] for key in ("name", "pools", "tags", "limit", "active", "host", "lost")} == {
        "name": "a1",
        "pools": ["main"],
        "tags": ["gpu"],
        "limit": 10,
        "active": 1,
        "host": "here",
        "lost": False,
    }
    (pool,) = (await server.get("/pools"))["pools"]
    assert (pool["agents"], pool["active"]) == (["a1"], 1)


async def test_a_batch_of_reports_has_an_end(server: Served) -> None:
    await ready(server)
    await server.sync()
    report = {"run": str(UUID(int=1)), "attempt": 1, "epoch": 1, "seq": 1, "age": 0, "state": "Running"}
    batch = {"session": str(UUID(int=100)), "reports": [report] * 1001}
    await server.post("/agents/a1/reports", batch, 400)
    acks = (await server.post("/agents/a1/reports", batch | {"reports": [report] * 1000}))["acks"]
    assert [ack["stale"] for ack in acks] == [True]


async def test_stopping_answers_every_held_request_at_once(server: Served) -> None:
    await ready(server)
    run_id = await server.submit(scheduled_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    tasks = [
        hold(server),
        hold(server, "a2", identity=str(UUID(int=8))),
        asyncio.create_task(server.get(f"/runs/{run_id}", wait=10, seen="Scheduled:0")),
        asyncio.create_task(server.http.get(f"/runs/{run_id}/logs", params={"wait": 10})),
    ]
    await server.waits(2)
    await server.watched(2)
    server.engine.release_waiters()
    done, pending = await asyncio.wait(tasks, timeout=SOON)
    assert (len(done), pending) == (4, set())
    assert all(not isinstance(task.exception(), httpx.HTTPError) for task in done)
    assert (await asyncio.wait_for(hold(server), SOON))["assignments"] == []


async def test_the_first_syncs_of_a_name_at_once_are_of_one_agent(server: Served) -> None:
    await ready(server)
    answers = await asyncio.gather(
        *(
            server.http.post(
                "/agents/a1/sync", json=server.sync_body(identity=str(UUID(int=number)), taking=False)
            )
            for number in range(1, 6)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert len((await server.get("/agents"))["agents"]) == 1
