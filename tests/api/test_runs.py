"""Runs over HTTP: making, listing, looking, waiting, reading logs."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from shunter_work_pools.api.runs import LOG_CHUNK
from shunter_work_pools.contracts import PROTOCOL
from tests.api.serving import SOON, Served, until


async def test_a_run_from_end_to_end(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main", tags=["t"])
    run_id = await server.submit(parameters={"a": 1})
    (granted,) = await server.take()
    assert granted["parameters"] == {"a": 1}
    await server.report(granted, "Starting", "Running", pid=5)
    await server.upload(granted, 0, b"out\n")
    await server.report(granted, "Completed", exit_code=0, log_size=4, result={"r": 1})
    run = await server.run(run_id)
    assert (run["state"], run["result"], run["attempts"][0]["exit_code"]) == ("Completed", {"r": 1}, 0)
    events = (await server.get(f"/runs/{run_id}/events"))["events"]
    assert [event["kind"] for event in events] == ["Scheduled", "Claimed", "Starting", "Running", "Completed"]
    for wanted in [
        "id",
        "deployment",
        "revision",
        "pool",
        "queue",
        "tags",
        "parameters",
        "state",
        "cause",
        "late",
        "created_at",
        "scheduled_at",
        "started_at",
        "ended_at",
        "result",
        "attempts",
    ]:
        assert wanted in run
    for wanted in [
        "number",
        "state",
        "cause",
        "agent",
        "pid",
        "exit_code",
        "signal",
        "started_at",
        "ended_at",
        "max_rss_bytes",
        "cpu_seconds",
    ]:
        assert wanted in run["attempts"][0]
    assert run["created_at"].endswith("Z")


async def test_one_idempotency_key_at_once_makes_one_run(server: Served) -> None:
    await server.deploy()
    body = {"deployment": "job", "idempotency_key": "k"}
    answers = await asyncio.gather(*(server.http.post("/runs", json=body) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len((await server.get("/runs"))["runs"]) == 1
    await server.post("/runs", body | {"parameters": {"x": 1}}, 409)


async def test_a_batch_is_all_or_none(server: Served) -> None:
    await server.deploy()
    made = await server.post("/runs/batch", {"runs": [{"deployment": "job"}] * 3}, 201)
    assert [run["created"] for run in made["runs"]] == [True] * 3
    await server.post("/runs/batch", {"runs": [{"deployment": "job"}, {"deployment": "x"}]}, 404)
    assert len((await server.get("/runs"))["runs"]) == 3


# ---- lists


async def test_pages_have_no_doubles_and_no_holes_while_runs_are_being_made(server: Served) -> None:
    await server.deploy()
    before = [
        run["id"]
        for run in (await server.post("/runs/batch", {"runs": [{"deployment": "job"}] * 57}, 201))["runs"]
    ]
    making = True

    async def make() -> None:
        while making:
            await server.submit()

    maker = asyncio.create_task(make())
    seen: list[str] = []
    cursor: str | None = None
    try:
        while True:
            page = await server.get("/runs", limit=10, **({"cursor": cursor} if cursor else {}))
            seen += [run["id"] for run in page["runs"]]
            cursor = page["next"]
            if cursor is None:
                break
    finally:
        making = False
        await maker
    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen, reverse=True)
    assert set(before) <= set(seen)


async def test_the_last_page_has_no_cursor(plain: Served) -> None:
    await plain.deploy()
    await plain.post("/runs/batch", {"runs": [{"deployment": "job"}] * 10}, 201)
    page = await plain.get("/runs", limit=10)
    assert (len(page["runs"]), page["next"]) == (10, None)
    page = await plain.get("/runs", limit=9)
    rest = await plain.get("/runs", limit=9, cursor=page["next"])
    assert (len(rest["runs"]), rest["next"]) == (1, None)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=501",
        "limit=x",
        "cursor=x",
        "state=Sleeping",
        "late=perhaps",
        "created_after=now",
        "queue=q",
    ],
)
async def test_queries_that_are_wrong_are_refused(plain: Served, query: str) -> None:
    response = await plain.http.get(f"/runs?{query}")
    assert response.status_code == 400
    assert response.json()["type"] == "urn:shunter:problem:bad-request"


async def test_every_filter(server: Served) -> None:
    await server.pool("main")
    await server.pool("side")
    await server.ask("POST", "/pools/main/queues", 201, json={"name": "fast"})
    await server.deploy("a", pool="main", tags=["x", "y"])
    await server.deploy("b", pool="main", queue="fast", tags=["y"])
    await server.deploy("c", pool="side")
    await server.deploy("d")
    now = datetime.now(UTC)
    ids: dict[str, str] = {}
    for name in "abcd":
        ids[name] = await server.submit(name)
        await asyncio.sleep(0.002)
    ids["later"] = await server.submit("a", scheduled_at=(now + timedelta(hours=1)).isoformat())
    (granted,) = await server.take(pools=["main"], queues=["fast"])
    await server.report(granted, "Starting")
    await server.post(f"/runs/{ids['c']}/cancel")

    async def found(**query: Any) -> set[str]:
        names = {run_id: name for name, run_id in ids.items()}
        return {names[run["id"]] for run in (await server.get("/runs", **query))["runs"]}

    created = {name: (await server.run(run_id))["created_at"] for name, run_id in ids.items()}
    assert await found() == set(ids)
    assert await found(state="Starting") == {"b"}
    assert await found(state="Active") == {"b"}
    assert await found(state="Cancelled") == {"c"}
    assert await found(state=["Starting", "Cancelled"]) == {"b", "c"}
    assert await found(state="Scheduled") == {"a", "d", "later"}
    assert await found(tag="y") == {"a", "b", "later"}
    assert await found(tag=["x", "y"]) == {"a", "later"}
    assert await found(pool="main") == {"a", "b", "later"}
    assert await found(pool="main", queue="fast") == {"b"}
    assert await found(pool="side") == {"c"}
    assert await found(deployment="a") == {"a", "later"}
    assert await found(late="false") == set(ids)
    assert await found(late="true") == set()
    assert await found(created_after=created["c"]) == {"c", "d", "later"}
    assert await found(created_before=created["c"]) == {"a", "b"}
    assert await found(scheduled_after=(now + timedelta(minutes=30)).isoformat()) == {"later"}
    assert await found(scheduled_before=(now + timedelta(minutes=30)).isoformat()) == {"a", "b", "c", "d"}
    assert await found(state="Scheduled", tag="x", deployment="a", pool="main") == {"a", "later"}
    for moment in ("1900-01-01T00:00:00Z", "1970-01-01T00:00:00Z"):
        assert await found(created_after=moment) == set(ids)
        assert await found(created_before=moment) == set()
    assert await found(created_after="9999-12-31T23:59:59Z") == set()


async def test_late_runs_are_found(server: Served) -> None:
    await server.deploy()
    early = await server.submit(scheduled_at=(datetime.now(UTC) - timedelta(minutes=1)).isoformat())
    await server.submit()

    async def late() -> bool:
        return [run["id"] for run in (await server.get("/runs", late="true"))["runs"]] == [early]

    await until(late)  # the reaper looks once a second


# ---- one run


async def test_a_run_is_found_by_any_unique_suffix(server: Served) -> None:
    await server.deploy()
    made = await server.post("/runs/batch", {"runs": [{"deployment": "job"}] * 40}, 201)
    ids = [run["id"] for run in made["runs"]]
    for text in (ids[0], ids[0].replace("-", ""), ids[0][-12:], ids[0][-10:].upper()):
        assert (await server.run(text))["id"] == ids[0]
    lasts = [run_id[-1] for run_id in ids]
    shared = next(digit for digit in lasts if lasts.count(digit) > 1)
    told = await server.get(f"/runs/{shared}", 409)
    assert "several" in told["detail"]
    for wrong in ("hello", "g", "--"):
        assert (await server.get(f"/runs/{wrong}", 400))["type"].endswith("bad-request")


async def test_a_look_is_held_until_something_differs(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    run_id = await server.submit()
    watching = asyncio.create_task(server.get(f"/runs/{run_id}", wait=SOON, seen="Scheduled:0"))
    await server.watched()
    (granted,) = await server.take()
    assert (await asyncio.wait_for(watching, SOON))["state"] == "Claimed"
    watching = asyncio.create_task(server.get(f"/runs/{run_id}", wait=SOON, seen="Claimed:1"))
    await server.watched()
    await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    assert (await asyncio.wait_for(watching, SOON))["state"] == "Completed"
    assert not server.engine.hub._runs


async def test_a_look_that_differs_already_or_must_not_wait_is_answered_at_once(plain: Served) -> None:
    await plain.deploy()
    run_id = await plain.submit()
    for query in ({"wait": 10, "seen": "Running:1"}, {"wait": 10}, {"seen": "Scheduled:0"}):
        assert (await asyncio.wait_for(plain.get(f"/runs/{run_id}", **query), SOON))["state"] == "Scheduled"
    await plain.get(f"/runs/{run_id}", 400, wait=11)
    held = await plain.get(f"/runs/{run_id}", wait=0.05, seen="Scheduled:0")
    assert held["state"] == "Scheduled"


async def test_cancel_and_retry(server: Served) -> None:
    await server.deploy()
    run_id = await server.submit()
    assert (await server.post(f"/runs/{run_id}/cancel"))["state"] == "Cancelled"
    assert (await server.post(f"/runs/{run_id}/cancel"))["state"] == "Cancelled"
    assert (await server.post(f"/runs/{run_id[-12:]}/retry"))["state"] == "Scheduled"
    assert (await server.post(f"/runs/{run_id}/retry", status=409))["type"].endswith("conflict")


# ---- logs


async def attempt(server: Served) -> Any:
    """An attempt that runs."""
    await server.pool()
    await server.deploy(pool="main")
    await server.submit()
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running")
    return granted


async def log(server: Served, granted: Any, **more: Any) -> httpx.Response:
    response = await server.http.get(f"/runs/{granted['run']}/logs", **more)
    assert response.status_code in (200, 206), response.text
    return response


def told(response: httpx.Response) -> tuple[int, str, str]:
    return (
        int(response.headers["shunter-log-size"]),
        response.headers["shunter-log-complete"],
        response.headers["shunter-attempt"],
    )


async def test_output_is_read_as_it_was_written(server: Served) -> None:
    granted = await attempt(server)
    data = os.urandom(100_000)
    for offset in (0, 70_000, 30_000, 50_000, 100_000):
        answer = await server.upload(granted, offset, data[offset : offset + 50_000])
    assert answer["sizes"][0]["size"] == 100_000
    response = await log(server, granted)
    assert response.content == data
    assert told(response) == (100_000, "false", "1")
    for first, last in ((0, 9), (99_990, 99_999), (99_990, 200_000), (5, 5)):
        response = await log(server, granted, headers={"range": f"bytes={first}-{last}"})
        assert response.content == data[first : last + 1]
        assert response.status_code == 206
        assert response.headers["content-range"] == f"bytes {first}-{min(last, 99_999)}/100000"
    response = await log(server, granted, headers={"range": "bytes=99999-"})
    assert response.content == data[-1:]
    response = await log(server, granted, headers={"range": "bytes=100000-"})
    assert (response.status_code, response.content) == (206, b"")


async def test_complete_is_said_when_the_attempt_has_ended_and_all_its_bytes_are_there(
    server: Served,
) -> None:
    granted = await attempt(server)
    await server.upload(granted, 0, b"12345")
    await server.report(granted, "Completed", log_size=10)
    assert told(await log(server, granted)) == (5, "false", "1")
    await server.upload(granted, 5, b"67890")
    assert told(await log(server, granted)) == (10, "true", "1")


async def test_a_gap_is_marked_and_counted_and_the_log_comes_to_its_end(server: Served) -> None:
    """Offsets of agents are those of the output, those of readers are those of what can be read."""
    granted = await attempt(server)
    await server.upload(granted, 0, b"head\n")
    for _ in range(2):  # sending it twice is harmless
        answer = await server.upload(granted, 0, b"", gap=1_000_005)
        assert answer["sizes"][0]["size"] == 1_000_005
    await server.report(granted, "Completed", log_size=1_000_010)
    mark = b"[shunter: 1,000,000 bytes of output are missing here: "
    response = await log(server, granted)
    assert response.content.startswith(b"head\n" + mark)
    size = len(response.content)
    assert told(response) == (size, "false", "1")
    await server.upload(granted, 1_000_005, b"tail\n")
    response = await log(server, granted, headers={"range": f"bytes={size}-"})
    assert (response.content, told(response)) == (b"tail\n", (size + 5, "true", "1"))
    assert response.headers["shunter-log-reached"] == "1000010"
    (one,) = (await server.run(granted["run"]))["attempts"]
    assert (one["log_size"], one["log_missing"]) == (1_000_010, 1_000_000)


async def test_a_gap_that_is_the_end_completes_a_log(server: Served) -> None:
    granted = await attempt(server)
    await server.report(granted, "Completed", log_size=7)
    await server.upload(granted, 0, b"", gap=7)
    response = await log(server, granted)
    assert response.content.startswith(b"[shunter: 7 bytes")
    assert told(response) == (len(response.content), "true", "1")


async def test_a_reader_is_held_until_there_is_more(server: Served) -> None:
    granted = await attempt(server)
    await server.upload(granted, 0, b"one")
    reading = asyncio.create_task(log(server, granted, headers={"range": "bytes=3-"}, params={"wait": SOON}))
    await server.watched()
    await server.upload(granted, 3, b"two")
    assert (await asyncio.wait_for(reading, SOON)).content == b"two"
    reading = asyncio.create_task(log(server, granted, headers={"range": "bytes=6-"}, params={"wait": SOON}))
    await server.watched()
    await server.report(granted, "Completed", log_size=6)
    response = await asyncio.wait_for(reading, SOON)
    assert (response.content, told(response)) == (b"", (6, "true", "1"))


async def test_a_long_output_comes_in_parts(plain: Served) -> None:
    granted = await attempt(plain)
    data = os.urandom(LOG_CHUNK + 1000)
    for at in range(0, len(data), 2_000_000):
        await plain.upload(granted, at, data[at : at + 2_000_000])
    first = await log(plain, granted)
    assert (first.status_code, len(first.content)) == (206, LOG_CHUNK)
    rest = await log(plain, granted, headers={"range": f"bytes={LOG_CHUNK}-"})
    assert first.content + rest.content == data


async def test_each_attempt_has_its_own_output(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main", retries={"count": 1})
    await server.submit()
    (first,) = await server.take()
    await server.upload(first, 0, b"first")
    await server.report(first, "Starting", "Failed", cause="exit_code", exit_code=1, log_size=5)
    (second,) = await server.take()
    await server.upload(second, 0, b"second!")
    assert (await log(server, first)).content == b"second!"
    response = await log(server, first, params={"attempt": 1})
    assert (response.content, told(response)) == (b"first", (5, "true", "1"))
    missing = await server.http.get(f"/runs/{first['run']}/logs", params={"attempt": 3})
    assert missing.status_code == 404


async def test_a_run_without_an_attempt_has_no_output_yet(plain: Served) -> None:
    await plain.deploy()
    run_id = await plain.submit()
    response = await log(plain, {"run": run_id})
    assert (response.content, told(response)) == (b"", (0, "false", "0"))
    await plain.post(f"/runs/{run_id}/cancel")
    assert told(await log(plain, {"run": run_id}))[1] == "true"


@pytest.mark.parametrize("value", ["bytes=5-2", "bytes=-5", "lines=1-2", "bytes=a-", "bytes=0-1,3-4"])
async def test_ranges_that_are_not_understood_are_refused(plain: Served, value: str) -> None:
    await plain.deploy()
    run_id = await plain.submit()
    response = await plain.http.get(f"/runs/{run_id}/logs", headers={"range": value})
    assert response.status_code == 400


async def test_output_of_others_is_not_taken(server: Served) -> None:
    granted = await attempt(server)
    for wrong in ({"epoch": 2}, {"attempt": 2}, {"run": "01890000-0000-7000-8000-000000000000"}):
        (size,) = (await server.upload(granted, 0, b"x", **wrong))["sizes"]
        assert (size["stale"], size["size"]) == (True, 0)
    assert (await log(server, granted)).content == b""


@pytest.mark.parametrize("body", [b"no header\n", b"{}\n", b'{"run": 1}', b"x" * 2000])
async def test_uploads_that_are_malformed_are_refused(plain: Served, body: bytes) -> None:
    response = await plain.http.post(
        "/agents/a1/logs", content=body, headers={"content-type": "application/vnd.shunter.log-frames"}
    )
    assert response.status_code == 400
    assert "byte" in response.json()["detail"]
    response = await plain.http.post("/agents/a1/logs", json={})
    assert response.status_code == 400


# ---- pools and deployments


async def test_pools_and_queues(server: Served) -> None:
    await server.pool(limit=3, match=["gpu"])
    await server.post("/pools", {"name": "main"}, 409)
    pool = await server.ask("PATCH", "/pools/main", json={"paused": True, "limit": None})
    assert (pool["paused"], pool["limit"], pool["match"]) == (True, None, ["gpu"])
    queue = await server.ask("POST", "/pools/main/queues", 201, json={"name": "q", "priority": 3})
    assert (queue["pool"], queue["priority"]) == ("main", 3)
    queue = await server.ask("PATCH", "/pools/main/queues/q", json={"limit": 2})
    assert (queue["limit"], queue["priority"]) == (2, 3)
    await server.ask("PATCH", "/pools/main/queues/nope", 404, json={"limit": 2})
    pools = (await server.get("/pools"))["pools"]
    assert [one["name"] for one in pools[0]["queues"]] == ["q", "default"]


async def test_deployments(server: Served) -> None:
    applied = await server.deploy("b", tags=["x"])
    assert (applied["changed"], applied["deployment"]["revision"]) == (True, 1)
    assert applied["warnings"]
    assert (await server.deploy("b", tags=["x"]))["changed"] is False
    assert (await server.deploy("b", tags=["y"]))["deployment"]["revision"] == 2
    await server.deploy("a", schedules=[{"when": {"kind": "cron", "cron": "0 6 * * *"}}])
    await server.ask("PATCH", "/deployments/a", json={"paused": True})
    assert (await server.get("/deployments/a"))["paused"] is True
    page = await server.get("/deployments", limit=1)
    assert ([one["name"] for one in page["deployments"]], page["next"]) == (["a"], "a")
    page = await server.get("/deployments", limit=1, cursor="a")
    assert ([one["name"] for one in page["deployments"]], page["next"]) == (["b"], None)
    revisions = (await server.get("/deployments/b/revisions"))["revisions"]
    assert [(one["number"], one["spec"]["tags"]) for one in revisions] == [(2, ["y"]), (1, ["x"])]
    for bad in ("a b", "-x", "x" * 101):
        await server.ask("PUT", f"/deployments/{bad}", 400, json={"work": {"command": ["x"]}})


async def test_the_server_says_what_it_is(server: Served, kind: str) -> None:
    told = await server.get("/server")
    assert (told["protocol"], told["store"]) == (PROTOCOL, kind)
    assert abs(datetime.fromisoformat(told["server_time"]) - datetime.now(UTC)) < timedelta(seconds=5)
