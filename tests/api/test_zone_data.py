"""Time zone data that differ from one start of the server to the next: new rules, and a zone that is not there."""

from __future__ import annotations

import shutil
import zoneinfo
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from tests.api.serving import server_process, until
from tests.storage.stores import KINDS

NAME = "Test/Town"


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest) -> str:
    """An SQLite file in the server's home, or an empty Postgres database."""
    return "" if request.param == "sqlite" else str(request.getfixturevalue("postgres_database"))


class Data:
    """Zone data of which one zone may be changed; a server reads them when it starts."""

    def __init__(self, folder: Path) -> None:
        self.zone = folder / NAME
        self.zone.parent.mkdir(parents=True)

    def are_as_in(self, name: str) -> None:
        """From now on the zone has the rules of another."""
        found = next((path for top in zoneinfo.TZPATH if (path := Path(top) / name).is_file()), None)
        if found is not None:
            shutil.copy(found, self.zone)
        else:
            region, _, city = name.partition("/")
            self.zone.write_bytes((resources.files("tzdata.zoneinfo") / region / city).read_bytes())

    def lack_it(self) -> None:
        self.zone.unlink()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    made = Data(tmp_path / "zoneinfo")
    monkeypatch.setenv("PYTHONTZPATH", ":".join([str(tmp_path / "zoneinfo"), *zoneinfo.TZPATH]))
    return made


@asynccontextmanager
async def started(home: Path, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A server for as long as the block takes; it goes on to the end and stops as asked."""
    with server_process(home, database_url) as server:
        async with server.client() as http:
            yield http
        assert await server.stop() == 0, server.output


def _spec(timezone: str, cron: str = "0 6 * * *") -> dict[str, Any]:
    when = {"kind": "cron", "cron": cron, "timezone": timezone}
    return {"work": {"command": ["x"]}, "schedules": [{"when": when}]}


async def _next(http: httpx.AsyncClient, deployment: str) -> datetime | None:
    (schedule,) = (await http.get(f"/deployments/{deployment}")).json()["schedules"]
    return datetime.fromisoformat(schedule["next_at"]) if schedule["next_at"] else None


async def _runs(http: httpx.AsyncClient, deployment: str) -> int:
    return len((await http.get("/runs", params={"deployment": deployment, "limit": 500})).json()["runs"])


async def test_new_rules_hold_from_the_next_start_on(tmp_path: Path, database_url: str, data: Data) -> None:
    home = tmp_path / "home"
    data.are_as_in("America/New_York")
    async with started(home, database_url) as http:
        for name in ("going", "resumed"):
            assert (await http.put(f"/deployments/{name}", json=_spec(NAME))).status_code == 200
        await http.patch("/deployments/resumed", json={"paused": True})
        first = await _next(http, "going")
        assert first is not None
        assert first.astimezone(ZoneInfo("America/New_York")).hour == 6
    data.are_as_in("Asia/Tokyo")
    async with started(home, database_url) as http:

        async def known() -> bool:
            at = await _next(http, "going")
            return at is not None and at.astimezone(ZoneInfo("Asia/Tokyo")).hour == 6

        await until(known)
        assert await _next(http, "resumed") is None  # a pause stays one
        await http.patch("/deployments/resumed", json={"paused": False})
        assert await _next(http, "resumed") == await _next(http, "going")
        assert (await http.get("/runs")).json()["runs"] == []


async def test_a_zone_that_is_not_there_any_more_stops_its_schedule_and_no_other(
    tmp_path: Path, database_url: str, data: Data
) -> None:
    home = tmp_path / "home"
    data.are_as_in("Europe/Berlin")
    async with started(home, database_url) as http:
        assert (await http.put("/deployments/lost", json=_spec(NAME, "* * * * * *"))).status_code == 200
        await http.put("/deployments/edited", json=_spec(NAME))
    data.lack_it()
    async with started(home, database_url) as http:
        # Slots go on, and were looked at after those of the zone that is not known.
        await http.put("/deployments/well", json=_spec("Europe/Berlin", "* * * * * *"))

        before = await _runs(http, "lost")

        async def goes_on() -> bool:
            return await _runs(http, "well") >= 2

        await until(goes_on)
        assert await _next(http, "lost") is None
        (event,) = (await http.get("/deployments/lost/events")).json()["events"][-1:]
        assert (event["kind"], event["actor"]) == ("zone_unknown", "scheduler")
        assert NAME in event["data"]["detail"]
        assert "tzdata" in event["data"]["remedy"]
        asked = await http.get("/deployments/lost/schedules/default/preview")
        assert (asked.status_code, NAME in asked.json()["detail"]) == (400, True)
        # Another zone mends it.
        assert (await http.put("/deployments/edited", json=_spec("Europe/Berlin"))).status_code == 200
        assert await _next(http, "edited") is not None
    data.are_as_in("Europe/Berlin")
    async with started(home, database_url) as http:

        async def made() -> bool:
            return await _runs(http, "lost") > before

        await until(made)
