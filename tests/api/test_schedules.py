"""Schedules over HTTP: list, preview, pause and resume; backfills, flushing and skipping."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.api.serving import Served


def every(seconds: float, **more: Any) -> dict[str, Any]:
    return {"when": {"kind": "interval", "seconds": seconds}, **more}


def cron(text: str, zone: str = "UTC", **more: Any) -> dict[str, Any]:
    return {"when": {"kind": "cron", "cron": text, "timezone": zone}, **more}


def at(**before: float) -> str:
    """The last full hour, and so much before it."""
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return (hour - timedelta(**before)).isoformat()


async def test_schedules_are_listed_by_deployment_and_name_page_by_page(server: Served) -> None:
    await server.deploy("b", schedules=[every(3600, name="z"), cron("0 6 * * *", "Europe/Berlin", name="y")])
    await server.deploy("a", schedules=[every(3600, name="x"), every(60, name="gone")])
    await server.deploy("a", schedules=[every(3600, name="x")])
    await server.deploy("none")
    found, cursor = [], {}
    while True:
        page = await server.get("/schedules", limit=2, **cursor)
        found += page["schedules"]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert [(one["deployment"], one["name"]) for one in found] == [("a", "x"), ("b", "y"), ("b", "z")]
    assert (found[1]["when"]["timezone"], found[1]["paused"]) == ("Europe/Berlin", False)
    assert "06:00" in found[1]["words"]
    assert datetime.fromisoformat(found[0]["next_at"]) > datetime.now(UTC)
    page = await server.get("/schedules", deployment="b")
    assert [one["name"] for one in page["schedules"]] == ["y", "z"]
    await server.get("/schedules", 404, deployment="bb")
    for wrong in [{"limit": 0}, {"limit": 501}, {"cursor": "a"}, {"cursor": "a/"}]:
        await server.get("/schedules", 400, **wrong)


async def test_a_schedule_is_paused_and_resumed(server: Served) -> None:
    await server.deploy(schedules=[every(3600, name="often"), every(3600, name="other")])
    path = "/deployments/job/schedules/often"
    paused = await server.ask("PATCH", path, json={"paused": True})
    assert (paused["paused"], paused["next_at"], paused["deployment"]) == (True, None, "job")
    shown = {one["name"]: one for one in (await server.get("/deployments/job"))["schedules"]}
    assert [shown[name]["paused"] for name in ("often", "other")] == [True, False]
    assert (await server.get("/deployments/job"))["revision"] == 1
    resumed = await server.ask("PATCH", path, json={"paused": False})
    assert not resumed["paused"]
    assert resumed["next_at"] is not None
    assert await server.ask("PATCH", path, json={}) == resumed
    await server.ask("PATCH", path, 400, json={"paused": None})
    await server.ask("PATCH", path, 400, json={"enabled": True})
    problem = await server.ask("PATCH", "/deployments/job/schedules/ofen", 404, json={"paused": True})
    assert problem["remedy"] == "Did you mean 'often'?"
    await server.ask("PATCH", "/deployments/jbo/schedules/often", 404, json={"paused": True})


async def test_a_schedule_that_is_not_deployed_is_previewed(plain: Served) -> None:
    body = {
        "schedule": cron("30 2 * * *", "Europe/Berlin"),
        "after": "2027-03-26T00:00:00Z",
        "count": 4,
    }
    found = await plain.post("/schedules/preview", body)
    assert [slot["utc"] for slot in found["slots"]] == [
        "2027-03-26T01:30:00Z",
        "2027-03-27T01:30:00Z",
        "2027-03-28T01:00:00Z",
        "2027-03-29T00:30:00Z",
    ]
    assert [slot["local"][11:] for slot in found["slots"]][1:3] == ["02:30:00+01:00", "03:00:00+02:00"]
    assert [slot["remark"] is None for slot in found["slots"]] == [True, True, False, True]
    assert "02:30" in found["words"]
    now = await plain.post("/schedules/preview", {"schedule": every(60), "count": 1000})
    assert len(now["slots"]) == 1000
    assert datetime.fromisoformat(now["slots"][0]["utc"]) >= datetime.now(UTC) - timedelta(seconds=5)
    assert len((await plain.post("/schedules/preview", {"schedule": every(60)}))["slots"]) == 10
    for edge, count in [("0001-01-01T00:00:00Z", 10), ("9999-12-31T23:59:59Z", 0)]:
        found = await plain.post("/schedules/preview", {"schedule": cron("0 0 * * *"), "after": edge})
        assert len(found["slots"]) == count


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"schedule": cron("0 0 30 2 *")}, "30 2"),
        ({"schedule": cron("0 0 * * *", "Mars/Olympus")}, "timezone"),
        ({"schedule": every(0.5)}, "seconds"),
        ({"schedule": every(60, start="2027-01-02T00:00:00Z", end="2027-01-01T00:00:00Z")}, "end"),
        ({"schedule": every(60, jitter=61)}, "jitter"),
        ({"schedule": every(60), "count": 1001}, "count"),
        ({"schedule": every(60), "count": 0}, "count"),
        ({"schedule": every(60), "after": "2027-01-01T00:00:00"}, "after"),
        ({}, "schedule"),
    ],
)
async def test_bad_previews_are_told(plain: Served, body: Any, said: str) -> None:
    problem = await plain.post("/schedules/preview", body, 400)
    assert said in problem["detail"]


async def test_a_deployed_schedule_is_previewed_even_if_it_is_paused(plain: Served) -> None:
    await plain.deploy(schedules=[cron("0 6 * * *", "Asia/Tokyo", name="daily", paused=True)])
    path = "/deployments/job/schedules/daily/preview"
    found = await plain.get(path, after="2027-01-01T21:00:00Z", count=2)
    assert [slot["utc"] for slot in found["slots"]] == ["2027-01-01T21:00:00Z", "2027-01-02T21:00:00Z"]
    assert len((await plain.get(path))["slots"]) == 10
    await plain.get(path, 400, count=1001)
    await plain.get("/deployments/job/schedules/dialy/preview", 404)
    # An interval goes on from its deploy, not from the moment of the question.
    await plain.deploy(schedules=[every(3600, name="hourly")])
    (shown,) = (await plain.get("/deployments/job"))["schedules"]
    found = await plain.get("/deployments/job/schedules/hourly/preview", count=1)
    assert found["slots"][0]["utc"] == shown["next_at"]


async def test_a_backfill_goes_on_request_by_request_and_is_counted_first(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main", schedules=[cron("0 * * * *")])
    body: dict[str, Any] = {"start": at(hours=10), "end": at(), "concurrency": 2}
    counted = await server.post("/deployments/job/backfill", body | {"dry_run": True})
    assert counted == {"schedule": "default", "backfill": None, "slots": 10, "made": 10, "next": None}
    assert (await server.get("/runs"))["runs"] == []
    first = await server.post("/deployments/job/backfill", body | {"limit": 6})
    assert (first["slots"], first["made"]) == (6, 6)
    counted = await server.post("/deployments/job/backfill", body | {"dry_run": True})
    assert (counted["slots"], counted["made"]) == (10, 4)
    second = await server.post("/deployments/job/backfill", body | {"limit": 6, "after": first["next"]})
    assert (second["slots"], second["made"], second["next"]) == (4, 4, None)
    assert (await server.post("/deployments/job/backfill", body))["made"] == 0
    runs = (await server.get("/runs"))["runs"]
    assert {run["backfill"] for run in runs} == {first["backfill"]}
    assert [run["slot"] for run in runs] == sorted((run["slot"] for run in runs), reverse=True)
    assert len(await server.take()) == 2


async def test_bad_backfills_are_told(server: Served) -> None:
    await server.deploy("bare")
    await server.deploy(schedules=[every(1)])
    path = "/deployments/job/backfill"
    good = {"start": at(hours=2), "end": at(hours=1)}
    for name, body in [
        ("job", good | {"end": good["start"]}),
        ("job", good | {"end": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}),
        ("job", good | {"limit": 1001}),
        ("job", good | {"concurrency": 0}),
        ("job", {"start": good["start"]}),
        ("job", good | {"start": at(days=3), "dry_run": True}),
        ("job", good | {"start": "0001-01-01T00:00:00Z", "limit": 1}),
        ("bare", good),
    ]:
        problem = await server.post(f"/deployments/{name}/backfill", body, 400)
        assert problem["detail"]
    await server.post("/deployments/jbo/backfill", good, 404)
    await server.post(path, good | {"schedule": "x"}, 404)
    assert [run for run in (await server.get("/runs"))["runs"] if run["backfill"] is not None] == []


async def test_late_runs_are_flushed_and_a_run_is_skipped(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main", schedules=[every(3600)])
    assert await server.post("/deployments/job/flush-late") == {"runs": 0, "more": False}
    await server.post("/deployments/jbo/flush-late", status=404)
    run_id = await server.submit()
    skipped = await server.post(f"/runs/{run_id}/skip")
    assert (skipped["state"], skipped["cause"], skipped["late"]) == ("Cancelled", "skipped", False)
    assert await server.post(f"/runs/{run_id[-12:]}/skip") == skipped
    other = await server.submit()
    (granted,) = await server.take()
    await server.post(f"/runs/{other}/skip", status=409)
    await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    await server.post(f"/runs/{other}/skip", status=409)
