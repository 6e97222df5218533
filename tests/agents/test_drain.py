"""How an agent ends: by itself when it was told how long to live, and by its grace when it was told to stop."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from shunter_agents import daemon, link
from shunter_agents.daemon import OK
from shunter_infrastructure.fake import FakeLauncher
from shunter_work_pools.contracts.errors import NotFound, ServerUnreachable, Unauthenticated
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import Life, life
from tests.patience import SOON


def runs(server: FakeServer, key: Key) -> bool:
    return key in server.leases and len(server.leases[key].steps) == 2


def outcome(server: FakeServer, key: Key) -> tuple[str, str | None, str | None]:
    end = server.leases[key].end
    assert end is not None
    return end.state.value, end.cause and end.cause.value, end.message


async def running(server: FakeServer, *words: str, **work: Any) -> Key:
    key = server.add(*words, **work)
    await server.until(lambda: runs(server, key))
    return key


async def ends(one: Life, seconds: float = 10.0) -> int:
    async with asyncio.timeout(seconds):
        code = await one.done
    one.folder.close()
    return code


# -- the grace


async def test_at_the_end_of_the_grace_runs_are_left_to_the_next_start(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, drain_grace=0.3) as one:
        key = await running(server, "sleep=2", "output=abc")
        one.agent.told_to_stop()
        await server.until(lambda: server.syncs[-1].draining)
        assert not server.syncs[-1].taking
        assert await ends(one) == OK
        assert server.leases[key].end is None
        assert "stop" not in [call for call, _ in launcher.calls]
    async with life(server, tmp_path) as one:
        await server.ended(key)
        assert outcome(server, key)[:2] == ("Completed", None)
        assert await one.drained() == OK
    assert bytes(server.leases[key].log) == b"abc"


async def test_a_server_of_the_version_before_keeps_nobody_who_leaves_runs_to_others(tmp_path: Path) -> None:
    """It does not know the path; it finds out by itself that the agent is gone. What runs goes on."""
    engine = tmp_path / "engine"
    engine.mkdir()
    server, launcher = FakeServer(), FakeLauncher(engine=engine)
    async with life(server, tmp_path, launcher, drain_grace=0.0) as one:
        key = await running(server, "sleep=60")
        one.agent.told_to_stop()
        assert await ends(one, 10) == OK
        assert server.leases[key].end is None
        called = [call for call, _ in launcher.calls]
        assert "let_go" in called
        assert not {"stop", "cleanup"} & set(called)
        assert server.syncs[-1].holds, "it was not taken for said"


async def test_at_the_end_of_the_grace_runs_are_stopped(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, drain_grace=0.3, drain_end="stop") as one:
        soon = await running(server, "sleep=0.2")
        long = await running(server, "hang", "ignore_term", grace=0.2)
        one.agent.told_to_stop()
        began = time.monotonic()
        assert await ends(one) == OK
        assert outcome(server, soon)[:2] == ("Completed", None)
        assert outcome(server, long) == (
            "Crashed",
            "evicted",
            "its agent was told to stop, and did not wait longer",
        )
        assert time.monotonic() - began < 3
        assert one.attempts() == []


async def test_a_run_that_ends_well_when_it_is_evicted_has_completed(tmp_path: Path) -> None:
    class Polite(FakeLauncher):
        async def stop(self, handle: Any, grace: float) -> None:
            """The run has finished meanwhile."""

    server = FakeServer()
    async with life(server, tmp_path, Polite(), drain_grace=0.1, drain_end="stop") as one:
        key = await running(server, "sleep=0.6")
        one.agent.told_to_stop()
        assert await ends(one) == OK
        assert outcome(server, key)[:2] == ("Completed", None)


async def test_a_second_signal_cancels_whatever_the_grace(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, drain_grace=60) as one:
        key = await running(server, "hang")
        one.agent.told_to_stop()
        one.agent.told_to_stop()
        assert await ends(one) == OK
        assert outcome(server, key)[:2] == ("Cancelled", "cancelled")


async def test_it_is_heard_of_until_the_last_report_is_acknowledged(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        key = await running(server, "sleep=0.3")
        server.refuse = lambda report: report.seq == 3
        one.agent.told_to_stop()
        async with asyncio.timeout(SOON):
            while one.agent._holdings.working:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        heard = len(server.syncs)
        server.touch()
        await asyncio.sleep(0.3)
        assert not one.done.done()
        assert [hold.run for hold in server.syncs[-1].holds] == [key[0]]
        server.refuse = lambda report: False
        assert await ends(one) == OK
        assert outcome(server, key)[:2] == ("Completed", None)
        assert len(server.syncs) > heard


@pytest.mark.parametrize("end", ["leave", "stop"])
async def test_a_server_that_is_away_at_the_end_of_the_grace_keeps_nobody(tmp_path: Path, end: str) -> None:
    server = FakeServer()
    async with life(server, tmp_path, drain_grace=0.5, drain_end=end) as one:
        key = await running(server, "hang")
        server.away = ServerUnreachable("refused")
        server.touch()
        one.agent.told_to_stop()
        await asyncio.sleep(0.2)
        assert not one.done.done()
        assert await ends(one, 5) == OK
    server.back()
    async with life(server, tmp_path) as one:
        if end == "leave":
            await server.until(lambda: bool(server.syncs[-1].holds))
            server.cancel(key)
        await server.ended(key)
        cause = "evicted" if end == "stop" else "cancelled"
        assert outcome(server, key)[1] == cause


@pytest.mark.parametrize("error", [NotFound("there is no pool"), Unauthenticated("the token was changed")])
async def test_an_agent_that_is_refused_later_can_be_stopped(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "LAST_WORDS", 0.5)
    monkeypatch.setattr(link, "DENIED_DELAY", 0.2)
    server = FakeServer()
    async with life(server, tmp_path) as one:
        await server.until(lambda: bool(server.syncs))
        server.away = error
        server.touch()
        await asyncio.sleep(0.1)
        one.agent.told_to_stop()
        assert await ends(one, 5) == OK


async def test_what_was_granted_by_an_answer_that_was_lost_is_given_back_before_the_end(
    tmp_path: Path,
) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        await server.until(lambda: bool(server.syncs))
        server.lose = ["sync"]
        key = server.add()
        async with asyncio.timeout(SOON):
            while server.lose:  # noqa: ASYNC110
                await asyncio.sleep(0)
        server.away = ServerUnreachable("refused")
        one.agent.told_to_stop()
        await asyncio.sleep(0.5)
        assert not one.done.done(), "the server may have granted it something"
        server.back()
        assert await ends(one) == OK
        assert server.released == [key]


async def test_the_server_may_ask_for_it(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        key = await running(server, "sleep=0.4")
        server.drain = True
        server.touch()
        await server.until(lambda: server.syncs[-1].draining)
        later = server.add()
        assert await ends(one) == OK
        assert outcome(server, key)[:2] == ("Completed", None)
        assert later not in server.leases


# -- agents that end by themselves


async def test_once_takes_one_run(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, once=True) as one:
        keys = [server.add("sleep=0.2", "output=x") for _ in range(3)]
        assert await ends(one) == OK
        taken = [key for key in keys if key in server.leases]
        assert len(taken) == 1
        assert outcome(server, taken[0])[:2] == ("Completed", None)
        assert bytes(server.leases[taken[0]].log) == b"x"
        assert all(sync.free <= 1 for sync in server.syncs)


async def test_once_is_also_a_run_of_a_former_life(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, once=True) as one:
        key = await running(server, "sleep=0.5")
        await one.die()
    later = server.add()
    async with life(server, tmp_path, once=True) as one:
        assert await ends(one) == OK
        assert outcome(server, key)[:2] == ("Completed", None)
        assert later not in server.leases


async def test_once_is_also_a_run_that_cannot_be_launched(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, once=True) as one:
        key = server.add("start_error=no")
        assert await ends(one) == OK
        assert outcome(server, key)[:2] == ("Crashed", "start_failed")


async def test_until_idle_takes_all_there_is(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, limit=2, until_idle=True) as one:
        keys = [server.add("sleep=0.1") for _ in range(7)]
        began = time.monotonic()
        assert await ends(one) == OK
        assert all(server.leases[key].end for key in keys)
        assert time.monotonic() - began >= 0.9
        assert one.attempts() == []


async def test_an_answer_that_came_too_soon_is_no_idleness(tmp_path: Path) -> None:
    """As of a server that stops, or whose answer was taken over."""
    server = FakeServer()
    real = server.sync

    async def hasty(name: str, request: Any) -> Any:
        return await real(name, request.model_copy(update={"hold_for": 0.0}))

    server.sync = hasty  # type: ignore[method-assign]
    async with life(server, tmp_path, until_idle=True) as one:
        await server.until(lambda: len(server.syncs) > 8)
        assert not one.done.done()


async def test_an_agent_that_is_unwell_is_not_idle(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, until_idle=True, health_check="exit 1", health_every=0.1) as one:
        server.add()
        await asyncio.sleep(1.5)
        assert not one.done.done()


async def test_max_lifetime_ends_after_what_runs(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, max_lifetime=0.5) as one:
        key = await running(server, "sleep=1")
        await server.until(lambda: server.syncs[-1].draining)
        later = server.add()
        assert await ends(one) == OK
        assert outcome(server, key)[:2] == ("Completed", None)
        assert later not in server.leases
