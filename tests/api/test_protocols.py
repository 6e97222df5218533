"""Server N serves agents N and N-1: what an agent of protocol 2 sends is taken, word for word."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shunter_work_pools.contracts import PROTOCOL, SERVED_PROTOCOLS
from tests.api.serving import Served

#: As the version before wrote it: no `found_tags`, no `capacity`, no `free_capacity`.
SYNC: dict[str, Any] = {
    "protocol": 2,
    "session": "01a215f0-0000-7000-8000-000000000001",
    "identity": "01a215f0-0000-4000-8000-000000000002",
    "pools": ["main"],
    "queues": [],
    "tags": ["gpu"],
    "limit": 8,
    "taking": True,
    "draining": False,
    "troubles": [],
    "free": 8,
    "holds": [],
    "hold_for": 5.0,
    "host": "box",
    "version": "0.1.0",
}
REPORT: dict[str, Any] = {
    "attempt": 1,
    "epoch": 1,
    "seq": 1,
    "age": 0.0125,
    "state": "Running",
    "cause": None,
    "message": None,
    "pid": 4711,
    "exit_code": None,
    "signal": None,
    "max_rss_bytes": None,
    "cpu_seconds": None,
    "result": None,
    "log_size": None,
}
ENDED = {"seq": 2, "state": "Failed", "cause": "exit_code", "exit_code": 3, "log_size": 6}


async def test_an_agent_of_the_protocol_before_is_served(server: Served) -> None:
    server.http.headers["shunter-protocol"] = "2"
    await server.pool()
    await server.deploy(pool="main")
    run_id = await server.submit()
    response = await server.http.post("/agents/old/sync", json=SYNC)
    assert response.status_code == 200, response.text
    assert response.headers["shunter-protocol"] == "2", "its client refuses any other"
    (granted,) = response.json()["assignments"]
    known = {"run", "attempt", "epoch", "session", "deployment", "revision", "pool", "queue"}
    assert known | {"tags", "parameters", "scheduled_at", "work"} <= set(granted)
    begun = REPORT | {"run": run_id, "state": "Starting"}
    batch = {"session": SYNC["session"], "reports": [begun, REPORT | ENDED | {"run": run_id}]}
    (ack,) = (await server.post("/agents/old/reports", batch))["acks"]
    assert (ack["seq"], ack["stale"]) == (2, False)
    frame = {"run": run_id, "attempt": 1, "epoch": 1, "offset": 0, "length": 6, "gap": 0}
    sent = await server.http.post(
        "/agents/old/logs",
        content=json.dumps(frame).encode() + b"\nhello\n",
        headers={"content-type": "application/vnd.shunter.log-frames"},
    )
    assert sent.json()["sizes"][0]["size"] == 6
    run = await server.run(run_id)
    assert (run["state"], run["cause"], run["attempts"][0]["exit_code"]) == ("Failed", "exit_code", 3)
    (agent,) = (await server.get("/agents"))["agents"]
    assert (agent["draining"], agent["found_tags"], agent["capacity"]) == (False, [], {})


async def test_an_old_agent_gives_back_what_it_did_not_start(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    await server.submit()
    (granted,) = (await server.post("/agents/old/sync", SYNC))["assignments"]
    held = {"run": granted["run"], "attempt": 1, "epoch": 1, "stopping": False}
    body = {"session": SYNC["session"], "attempts": [held]}
    assert (await server.post("/agents/old/release", body))["acks"][0]["stale"] is False


async def test_others_are_refused_and_nothing_is_changed(plain: Served) -> None:
    assert SERVED_PROTOCOLS == (PROTOCOL - 1, PROTOCOL)
    await plain.pool()
    for protocol in (0, PROTOCOL + 1):
        told = await plain.post("/agents/old/sync", SYNC | {"protocol": protocol}, 426)
        assert told["type"] == "urn:shunter:problem:protocol-mismatch"
        assert f"protocol {protocol}, this server 2 and 3" in told["detail"]
    assert (await plain.get("/agents"))["agents"] == []


@pytest.mark.parametrize("what", ["sync", "held", "reports", "release", "logs"])
async def test_a_field_that_is_not_known_is_refused(plain: Served, what: str) -> None:
    """An agent of tomorrow must not believe that it was understood."""
    await plain.pool()
    await plain.deploy(pool="main")
    await plain.submit()
    (granted,) = (await plain.post("/agents/old/sync", SYNC))["assignments"]
    new = {"of_tomorrow": 1}
    one = {key: granted[key] for key in ("run", "attempt", "epoch")}
    if what == "logs":
        frame = one | {"offset": 0, "length": 1} | new
        media = {"content-type": "application/vnd.shunter.log-frames"}
        sent = await plain.http.post(
            "/agents/old/logs", content=json.dumps(frame).encode() + b"\nx", headers=media
        )
        assert sent.status_code == 400
        return
    path, body = {
        "sync": ("sync", SYNC | new),
        "held": ("sync", SYNC | {"holds": [one | new]}),
        "reports": (
            "reports",
            {"session": SYNC["session"], "reports": [REPORT | {"run": granted["run"]} | new]},
        ),
        "release": ("release", {"session": SYNC["session"], "attempts": [one | new]}),
    }[what]
    told = await plain.post(f"/agents/old/{path}", body, 400)
    assert "of_tomorrow" in told["detail"]
    assert (await plain.run(granted["run"]))["state"] == "Claimed"
