"""The server's log: lines of JSON that carry the ids of what they are about, and only when something is true."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from shunter_work_pools.queue import control, reap
from tests.api.serving import Served, ServerProcess

ENV = {"SHUNTER_LOG_FORMAT": "json"}


async def lived(home: Path, level: str) -> tuple[list[dict[str, Any]], str]:
    """The log of a server under which a run lived from beginning to end, and the run's id."""
    server = await asyncio.to_thread(ServerProcess, home, env=ENV | {"SHUNTER_LOG_LEVEL": level})
    try:
        async with server.client() as http:
            asking = Served(http, server.port, None, None)  # type: ignore[arg-type]
            await asking.pool()
            await asking.deploy(pool="main", retries={"count": 1})
            run = await asking.submit()
            await asking.ask("PATCH", f"/runs/{run}", json={"priority": 3})
            (granted,) = await asking.take()
            await asking.report(granted, "Starting", "Running", "Failed", cause="exit_code", log_size=0)
            (again,) = await asking.take()
            await asking.report(again, "Starting", "Running", "Completed", log_size=0)
            await asking.ask("PATCH", "/pools/main", json={"paused": True, "by": "ann", "reason": "why not"})
            await asking.post("/agents/a1/drain")
        assert await server.stop() == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()
    return [json.loads(line) for line in server.output.splitlines()], run


async def test_every_line_of_a_run_carries_run_and_attempt(tmp_path: Path) -> None:
    lines, run = await lived(tmp_path, "debug")
    of_run = [line for line in lines if line["event"].startswith("run ")]
    assert all(line["run"] == run and "attempt" in line for line in of_run)
    assert {line["level"] for line in of_run} == {"debug"}
    assert [(line["event"], line["attempt"]) for line in of_run] == [
        ("run scheduled", None),
        ("run priority", None),
        ("run granted", 1),
        ("run starting", 1),
        ("run running", 1),
        ("run failed", 1),
        ("run retrying", 1),
        ("run granted", 2),
        ("run starting", 2),
        ("run running", 2),
        ("run completed", 2),
    ]
    (granted, _) = [line for line in of_run if line["event"] == "run granted"]
    assert (granted["agent"], granted["epoch"], granted["pool"], granted["queue"]) == (
        "a1",
        1,
        "main",
        "default",
    )
    (failed,) = [line for line in of_run if line["event"] == "run failed"]
    assert (failed["by"], failed["cause"]) == ("agent", "exit_code")


async def test_what_happens_to_agents_and_by_people_is_told_always(tmp_path: Path) -> None:
    lines, _ = await lived(tmp_path, "info")
    assert not [line for line in lines if line["event"].startswith("run ")], "there would be too many"
    told = {line["event"]: line for line in lines}
    assert told["agent here"]["agent"] == "a1"
    assert told["agent is to drain"]["agent"] == "a1"
    assert {key: told["paused"][key] for key in ("pool", "by", "reason", "level")} == {
        "pool": "main",
        "by": "ann",
        "reason": "why not",
        "level": "info",
    }


async def test_lost_found_and_given_up_are_told_always(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    for loop in ("reap", "heartbeat"):
        await server.without(loop)
    runs = sorted([await server.submit(), await server.submit()])
    assert len(await server.take()) == 2
    store = server.engine.store
    with capture_logs() as lines:
        await store.write(lambda tx: reap.mark_lost(tx, tx.now + 1))
        await server.engine._write_heartbeats()  # it was heard of a moment ago
        await store.write(lambda tx: reap.mark_lost(tx, tx.now + 1))
        await store.write(lambda tx: reap.give_up(tx, tx.now + 1))
    told = [
        (line["event"], line["log_level"], str(line["run"]), line["attempt"], line.get("agent"))
        for line in sorted(lines, key=lambda line: str(line["run"]))
    ]
    for run in runs:
        assert [line for line in told if line[2] == run] == [
            ("run lost", "warning", run, 1, "a1"),
            ("run found", "info", run, 1, "a1"),
            ("run lost", "warning", run, 1, "a1"),
            ("run crashed", "warning", run, 1, None),
        ]


async def test_what_was_rolled_back_is_not_told(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main")
    run = await server.submit()

    def cancel_and_fail(tx: Any) -> None:
        control.cancel(tx, UUID(run))
        raise KeyError("in the middle of it")

    with capture_logs() as lines, pytest.raises(KeyError):
        await server.engine.store.write(cancel_and_fail)
    assert lines == []
