"""The server is killed between a commit and its answer: whoever asked asks again, and it was done once."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from shunter_work_pools.killpoints import POINTS
from tests.api.serving import SOON, ServerProcess, server_process
from tests.api.test_process import BODY, database_url
from tests.queue.journal_lines import done, head, key, line, text

__all__ = ["database_url"]

KILL = "SHUNTER_TEST_KILL_SERVER_AT"


class Life:
    """What people and an agent ask of one life of the server."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        response = await self.http.request(method, path, **more)
        assert response.is_success, response.text
        return response.json()

    async def run(self, run_id: str) -> Any:
        return await self.ask("GET", f"/runs/{run_id}")

    async def sync(self, *held: Any, **more: Any) -> Any:
        holds = [{key: one[key] for key in ("run", "attempt", "epoch")} for one in held]
        return await self.ask("POST", "/agents/a1/sync", json=BODY | {"hold_for": 0, "holds": holds} | more)

    async def report(self, granted: Any, *states: str, since: int = 1) -> Any:
        one = {key: granted[key] for key in ("run", "attempt", "epoch")} | {"age": 0}
        reports = [one | {"seq": seq, "state": state} for seq, state in enumerate(states, since)]
        if states[-1] == "Completed":
            reports[-1]["log_size"] = 6
        batch = {"session": BODY["session"], "reports": reports}
        (ack,) = (await self.ask("POST", "/agents/a1/reports", json=batch))["acks"]
        return ack

    async def upload(self, granted: Any, offset: int, data: bytes, to: str = "logs") -> Any:
        frame = {key: granted[key] for key in ("run", "attempt", "epoch")}
        header = json.dumps(frame | {"offset": offset, "length": len(data)}).encode()
        media = {"content-type": "application/vnd.shunter.log-frames"}
        body = header + b"\n" + data
        (size,) = (await self.ask("POST", f"/agents/a1/{to}", content=body, headers=media))["sizes"]
        return size

    async def begin(self, **request: Any) -> str:
        """Make a pool, a deployment and a run of it."""
        await self.ask("POST", "/pools", json={"name": "main"})
        spec = {"work": {"command": ["x"]}, "pool": "main"}
        await self.ask("PUT", "/deployments/job", json=spec)
        made = await self.ask("POST", "/runs", json={"deployment": "job"} | request)
        return str(made["id"])

    async def claim(self) -> Any:
        """The attempt of the only run that waits."""
        (granted,) = (await self.sync(hold_for=SOON))["assignments"]
        return granted


@asynccontextmanager
async def life(home: Path, url: str) -> AsyncIterator[Life]:
    """A life of the server that is asked to end at the end of the block."""
    with server_process(home, url) as server:
        async with server.client() as http:
            yield Life(http)
        assert await server.stop() == 0, server.output


@asynccontextmanager
async def dying(home: Path, url: str, point: str) -> AsyncIterator[Life]:
    """A life that ends at a point which only the last request of the block comes to: that has no answer."""
    server = ServerProcess(home, url, env={KILL: point})
    try:
        async with server.client() as http:
            with pytest.raises(httpx.TransportError):
                yield Life(http)
        assert await server.end() == -signal.SIGKILL, server.output
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


async def test_a_run_that_was_made_is_not_made_again(tmp_path: Path, database_url: str) -> None:
    async with dying(tmp_path, database_url, "after-run-created") as server:
        await server.begin(idempotency_key="k")
    async with life(tmp_path, database_url) as server:
        request = {"deployment": "job", "idempotency_key": "k"}
        made = await server.ask("POST", "/runs", json=request)
        assert made["created"] is False
        assert [run["state"] for run in (await server.ask("GET", "/runs"))["runs"]] == ["Scheduled"]


async def test_a_claim_nobody_heard_of_is_told_again_under_its_epoch(
    tmp_path: Path, database_url: str
) -> None:
    """Neither Pending for ever nor launched twice: the lease is there, and the next sync says so."""
    async with dying(tmp_path, database_url, "after-claim-committed") as server:
        run_id = await server.begin()
        await server.claim()
    async with life(tmp_path, database_url) as server:
        assert (await server.run(run_id))["state"] == "Claimed"
        (granted,) = (await server.sync(taking=False, free=0))["assignments"]
        assert (granted["run"], granted["attempt"], granted["epoch"]) == (run_id, 1, 1)
        assert (await server.sync(granted))["assignments"] == []
        assert (await server.report(granted, "Starting", "Running", "Completed"))["stale"] is False
        run = await server.run(run_id)
        assert (run["state"], run["attempt_count"]) == ("Completed", 1)


@pytest.mark.parametrize("states", [["Starting", "Running"], ["Starting", "Running", "Completed"]], ids=len)
async def test_reports_nobody_acknowledged_count_once(
    tmp_path: Path, database_url: str, states: list[str]
) -> None:
    async with dying(tmp_path, database_url, "after-reports-committed") as server:
        run_id = await server.begin()
        granted = await server.claim()
        await server.report(granted, *states)
    async with life(tmp_path, database_url) as server:
        answer = await server.sync(granted)
        assert answer["forget"] == [], "its acknowledgement is under way to it"
        ack = await server.report(granted, *states)
        assert (ack["seq"], ack["stale"]) == (len(states), False)
        assert (await server.run(run_id))["state"] == states[-1]
        kinds = [event["kind"] for event in (await server.ask("GET", f"/runs/{run_id}/events"))["events"]]
        assert kinds == ["Scheduled", "Claimed", *states]


async def test_what_was_given_back_waits_once_and_is_granted_under_the_next_epoch(
    tmp_path: Path, database_url: str
) -> None:
    async with dying(tmp_path, database_url, "after-release-committed") as server:
        run_id = await server.begin()
        granted = await server.claim()
        back = {key: granted[key] for key in ("run", "attempt", "epoch")}
        body = {"session": BODY["session"], "attempts": [back]}
        await server.ask("POST", "/agents/a1/release", json=body)
    async with life(tmp_path, database_url) as server:
        assert (await server.run(run_id))["state"] == "Scheduled"
        answer = await server.sync(granted, taking=False, free=0)
        assert [one["epoch"] for one in answer["forget"]] == [1]
        (ack,) = (await server.ask("POST", "/agents/a1/release", json=body))["acks"]
        assert ack["stale"] is True
        again = await server.claim()
        assert (again["run"], again["attempt"], again["epoch"]) == (run_id, 1, 2)
        assert (await server.report(granted, "Starting"))["stale"] is True
        assert (await server.run(run_id))["state"] == "Claimed"


# ---- where the kind of store makes no difference


async def test_output_nobody_acknowledged_is_there_once(tmp_path: Path) -> None:
    async with dying(tmp_path, "", "after-logs-appended") as server:
        run_id = await server.begin()
        granted = await server.claim()
        await server.upload(granted, 0, b"on")
    async with life(tmp_path, "") as server:
        assert (await server.upload(granted, 0, b"once"))["size"] == 4
        assert (await server.upload(granted, 4, b"!"))["size"] == 5
        assert (await server.http.get(f"/runs/{run_id}/logs")).content == b"once!"


async def test_a_journal_nobody_acknowledged_is_there_once(tmp_path: Path) -> None:
    lines = text(head(), line(1, "R"), done(1, 7), line(2, "R"))
    async with dying(tmp_path, "", "after-journals-committed") as server:
        run_id = await server.begin()
        granted = await server.claim()
        await server.upload(granted, 0, lines, to="journals")
    async with life(tmp_path, "") as server:
        assert (await server.upload(granted, 0, lines, to="journals"))["size"] == len(lines)
        more = text(done(2, 8))
        assert (await server.upload(granted, len(lines), more, to="journals"))["size"] == len(lines + more)
        tasks = (await server.ask("GET", f"/runs/{run_id}/tasks"))["tasks"]
        assert [(one["id"], one["state"]) for one in tasks] == [(key(1), "Completed"), (key(2), "Completed")]


async def test_a_cancellation_nobody_heard_of_reaches_the_agent(tmp_path: Path) -> None:
    async with dying(tmp_path, "", "after-cancel-committed") as server:
        run_id = await server.begin()
        granted = await server.claim()
        await server.ask("POST", f"/runs/{run_id}/cancel")
    async with life(tmp_path, "") as server:
        assert [one["run"] for one in (await server.sync(granted))["cancel"]] == [run_id]
        assert (await server.ask("POST", f"/runs/{run_id}/cancel"))["state"] == "Cancelling"


async def test_a_drain_nobody_heard_of_reaches_the_agent(tmp_path: Path) -> None:
    async with dying(tmp_path, "", "after-drain-committed") as server:
        await server.begin()
        granted = await server.claim()
        await server.ask("POST", "/agents/a1/drain")
    async with life(tmp_path, "") as server:
        answer = await server.sync(granted, hold_for=10)
        assert (answer["drain"], answer["forget"]) == (True, [])


def test_every_point_is_died_at() -> None:
    here = Path(__file__)
    others = ("agents/test_handover.py", "agents/test_leaving.py", "joining/test_agent_joins.py")
    told = "".join(path.read_text() for path in (here, *(here.parents[1] / other for other in others)))
    assert [point for point in POINTS if f'"{point}"' not in told] == []


async def test_a_point_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is not one of after-run-created"):
        ServerProcess(tmp_path, env={KILL: "never"})
