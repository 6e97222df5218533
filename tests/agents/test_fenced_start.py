"""Work that others reach is begun only by who can be sure to have it still."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shunter_infrastructure.fake import FakeLauncher
from shunter_work_pools.contracts.errors import ServerUnreachable
from tests.agents.fake_server import FakeServer
from tests.agents.lives import life


@pytest.fixture(autouse=True)
def short_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers far more often than it takes an agent for lost."""
    monkeypatch.setattr("shunter_agents.daemon.HOLD_LIMIT", 0.2)


async def test_who_may_be_taken_for_lost_begins_nothing_before_it_is_heard(tmp_path: Path) -> None:
    """Meanwhile another may have had it, from its begin to its end: it would be begun a second time."""
    engine = tmp_path / "engine"
    engine.mkdir()
    server, launcher = FakeServer(), FakeLauncher(engine=engine)
    server.lost_after = 1.0
    async with life(server, tmp_path, launcher):
        await server.until(lambda: bool(server.syncs))
        launcher.away = "no engine"
        key = server.add("exit=0")
        await server.until(lambda: key in server.leases and "Starting" in server.leases[key].states)
        server.away = ServerUnreachable("cut off")
        server.touch()
        await asyncio.sleep(server.lost_after)
        launcher.away, asked = None, len(launcher.calls)
        await asyncio.sleep(6)  # longer than it waits between two tries
        assert launcher.calls[asked:] == []
        assert not (engine / "starts").exists()
        # Another agent has it: it is let go, and never begun.
        server.take_away(key)
        server.back()
        await server.until(lambda: not server.syncs[-1].holds)
        assert not (engine / "starts").exists()


async def test_a_server_that_was_away_costs_it_no_time_to_start(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    server, launcher = FakeServer(), FakeLauncher(engine=engine)
    server.lost_after = 1.0
    async with life(server, tmp_path, launcher):
        await server.until(lambda: bool(server.syncs))
        launcher.away = "no engine"
        key = server.add("exit=0", start_timeout=4)
        await server.until(lambda: key in server.leases and "Starting" in server.leases[key].states)
        server.away = ServerUnreachable("away")
        server.touch()
        await asyncio.sleep(5)
        launcher.away = None
        server.back()
        await server.ended(key)
        assert server.leases[key].states == ["Starting", "Running", "Completed"]
