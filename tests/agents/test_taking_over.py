"""What an agent does with an attempt that somebody had before it, whatever it has on its own disk."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from shunter_infrastructure.fake import FakeLauncher
from shunter_work_pools.contracts.agents import Output
from shunter_work_pools.contracts.states import Cause
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import life


@pytest.fixture
def shared(tmp_path: Path) -> FakeLauncher:
    """A launcher whose engine others reach as well."""
    engine = tmp_path / "engine"
    engine.mkdir()
    return FakeLauncher(engine=engine)


def add_handed_over(server: FakeServer, *words: str, started: bool) -> Key:
    key = server.add(*words)
    told = {"handed_over": Output(size=0, started=started), "epoch": 2}
    server.waiting[-1] = server.waiting[-1].model_copy(update=told)
    return key


def starts(launcher: FakeLauncher) -> int:
    return [method for method, _ in launcher.calls].count("start")


async def test_what_is_known_to_have_begun_and_is_gone_is_not_begun_again(
    tmp_path: Path, shared: FakeLauncher
) -> None:
    server = FakeServer()
    key = add_handed_over(server, "exit=0", started=True)
    async with life(server, tmp_path, shared):
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert (end.state, end.cause) == ("Crashed", Cause.DELETED)
        assert starts(shared) == 0


async def test_what_nobody_began_is_begun(tmp_path: Path, shared: FakeLauncher) -> None:
    server = FakeServer()
    key = add_handed_over(server, "exit=0", started=False)
    async with life(server, tmp_path, shared):
        await server.ended(key)
        assert server.leases[key].states == ["Starting", "Running", "Completed"]
        assert starts(shared) == 1


async def test_it_is_taken_however_full_the_agent_is(tmp_path: Path, shared: FakeLauncher) -> None:
    """To give it back would say that nobody began it."""
    server = FakeServer()
    first = server.add("hang")
    async with life(server, tmp_path, shared, limit=1):
        await server.until(lambda: first in server.leases and "Running" in server.leases[first].states)
        key = add_handed_over(server, "exit=0", started=False)
        granted = server.waiting.pop()
        assert server.session is not None
        server.grant(granted, server.session)
        server.touch()
        await server.ended(key)
        assert server.released == []


async def test_a_fresh_disk_is_no_loss_where_the_work_is_elsewhere(
    tmp_path: Path, shared: FakeLauncher
) -> None:
    """It was granted to a session that this folder does not know."""
    server = FakeServer()
    key = server.add("exit=4")
    server.grant(server.waiting.pop(), uuid4())
    async with life(server, tmp_path, shared):
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert (end.state, end.exit_code) == ("Failed", 4)


async def test_it_says_where_its_work_is(tmp_path: Path, shared: FakeLauncher) -> None:
    server = FakeServer()
    async with life(server, tmp_path, shared):
        await server.until(lambda: len(server.syncs) > 0)
        assert server.syncs[0].reaches == {"default": str(shared.engine)}


async def test_an_engine_that_is_away_is_asked_again_where_it_is(
    tmp_path: Path, shared: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the agent is there for what it has."""
    monkeypatch.setattr("shunter_agents.daemon.REACH_PATIENCE", 0.1)
    server = FakeServer()
    key = server.add("hang")
    async with life(server, tmp_path, shared) as first:
        await server.until(lambda: key in server.leases and "Running" in server.leases[key].states)
        await first.die()
    again = FakeLauncher(engine=shared.engine, away="no engine")
    said = len(server.syncs)
    async with life(server, tmp_path, again):
        await server.until(lambda: len(server.syncs) > said)
        assert server.syncs[-1].reaches == {}
        again.away = None
        await server.until(lambda: bool(server.syncs[-1].reaches))
