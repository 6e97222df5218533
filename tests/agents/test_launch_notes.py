"""What a launch waits for: said at once, not too often, and what it ends by when that lasts too long."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shunter_agents.daemon import NOTES_EVERY
from shunter_infrastructure.fake import FakeLauncher
from shunter_work_pools.contracts.agents import NOTE_LIMIT
from shunter_work_pools.contracts.states import Cause
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import life
from tests.agents.test_daemon import gone

FULL = "0/3 nodes are available: 3 Insufficient cpu."
WAITS = ("start_delay=60", f"note={FULL}", "note_cause=unschedulable")


def notes(server: FakeServer, key: Key) -> list[str]:
    """What the syncs said of an attempt, in order."""
    return [held.note for sync in server.syncs for held in sync.holds if (held.run, held.attempt) == key]


def shared(root: Path) -> FakeLauncher:
    """A launcher whose engine keeps what has not begun, until somebody removes it."""
    engine = root / "engine"
    engine.mkdir(exist_ok=True)
    return FakeLauncher(engine=engine)


async def test_it_is_said_at_once_and_is_what_a_launch_ends_by(tmp_path: Path) -> None:
    server, launcher = FakeServer(), shared(tmp_path)
    key = server.add(*WAITS, start_timeout=3.0)
    async with life(server, tmp_path, launcher) as one:
        await server.until(lambda: FULL in notes(server, key), 2.5)
        assert [path.suffix for path in launcher.engine.iterdir()] == [".prepared"]  # type: ignore[union-attr]
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert (end.state, end.cause, end.message) == ("Crashed", Cause.UNSCHEDULABLE, FULL)
        assert end.manifest == {"words": list(WAITS)}
        assert list(launcher.engine.iterdir()) == [], "what had not begun is withdrawn"  # type: ignore[union-attr]
        assert await one.drained() == 0


async def test_without_a_cause_the_time_ran_out_and_the_words_are_told(tmp_path: Path) -> None:
    server = FakeServer()
    key = server.add("start_delay=60", "note=the image is being pulled", start_timeout=0.3)
    async with life(server, tmp_path):
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert (end.cause, end.message) == (Cause.START_TIMEOUT, "the image is being pulled")


async def test_cancelled_while_it_waits_it_is_withdrawn(tmp_path: Path) -> None:
    server, launcher = FakeServer(), shared(tmp_path)
    key = server.add(*WAITS)
    async with life(server, tmp_path, launcher):
        await server.until(lambda: FULL in notes(server, key))
        server.cancel(key)
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert (end.state, end.cause) == ("Cancelled", Cause.CANCELLED)
        assert list(launcher.engine.iterdir()) == []  # type: ignore[union-attr]


async def test_taken_away_while_the_agent_was_dead_it_is_withdrawn(tmp_path: Path) -> None:
    """It is left for the next life to go on with, but it has not begun, and is not ours any more."""
    server = FakeServer()
    key = server.add(*WAITS)
    async with life(server, tmp_path, shared(tmp_path)) as first:
        await server.until(lambda: FULL in notes(server, key))
        await first.die()
    engine = tmp_path / "engine"
    assert [path.suffix for path in engine.iterdir()] == [".prepared"]
    server.take_away(key)
    async with life(server, tmp_path, shared(tmp_path)) as second:
        await gone(second, server)
        assert list(engine.iterdir()) == []


async def test_when_it_runs_it_waits_for_nothing(tmp_path: Path) -> None:
    server = FakeServer()
    key = server.add("start_delay=0.5", f"note={FULL}", "hang")
    async with life(server, tmp_path):
        await server.until(lambda: FULL in notes(server, key))
        await server.until(lambda: "Running" in server.leases[key].states)
        server.add("hang")  # that is news, and the next sync follows
        await server.until(lambda: notes(server, key)[-1] == "")


async def test_an_engine_that_goes_to_and_fro_is_not_followed_each_time(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    key = server.add("start_delay=60", "note=first")
    async with life(server, tmp_path, launcher):
        await server.until(lambda: "first" in notes(server, key))
        before, loop = len(server.syncs), asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 2.2 * NOTES_EVERY:
            for words in ("one", "other"):
                launcher.on_note(*key, words, None)
                await asyncio.sleep(0.005)
        assert 2 <= len(server.syncs) - before <= 5
        launcher.on_note(*key, "last", None)
        await server.until(lambda: notes(server, key)[-1] == "last")


async def test_words_that_cannot_travel_are_made_fit(tmp_path: Path) -> None:
    """A sync that is refused for its note would be the end of everything else."""
    server, launcher = FakeServer(), FakeLauncher()
    key = server.add("start_delay=60", "note=first")
    async with life(server, tmp_path, launcher):
        await server.until(lambda: "first" in notes(server, key))
        launcher.on_note(*key, "a\udc80b\n  c" + "x" * 5000, None)
        await server.until(lambda: notes(server, key)[-1].startswith("a?b c"))
        assert len(notes(server, key)[-1]) == NOTE_LIMIT


async def test_what_only_this_agent_reaches_is_stopped_not_let_go(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    key = server.add("hang")
    async with life(server, tmp_path, launcher) as one:
        await server.until(lambda: key in server.leases and "Running" in server.leases[key].states)
        one.agent._supervisor.let_go(one.agent._holdings.attempts[key])
        await gone(one, server)
        assert "stop" in [method for method, _ in launcher.calls]
