"""Silence of agents, by the server's own loops: marked in time, never wrongly, and healed."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from shunter_work_pools.settings import Settings
from shunter_work_pools.storage.schema import agents
from shunter_work_pools.storage.store import PostgresStore, SqliteStore
from tests.api.serving import SOON, Served, held, served, until
from tests.api.test_sync import ready
from tests.storage.stores import AnyStore, empty

HOUR = 3600.0
#: Less patience than the real ones, and looks as often as may be.
QUICK = Settings(lost_after=2.0, lease_for=3.0, give_up_after=4.0, reap_every=0.05, heartbeat_every=0.05)


class SetClock:
    """The store's clock, which somebody may set."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> int:
        return round((time.time() + self.offset) * 1e6)


Serve = Callable[..., Any]


@pytest.fixture
async def serve(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Serve:
    """Servers one after the other on one store of that kind: ``async with serve(clock) as server``."""
    path = tmp_path / "shunter.db"
    url = "" if kind == "sqlite" else request.getfixturevalue("migrated_postgres")
    if kind == "sqlite":
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
    else:
        first = PostgresStore(url)
        await first.open()
        await empty(first)
        await first.close()

    seqs: dict[Any, int] = {}

    @asynccontextmanager
    async def one(clock: SetClock | None = None, settings: Settings = QUICK) -> AsyncIterator[Served]:
        store: AnyStore
        if kind == "sqlite":
            store = SqliteStore(path, clock) if clock is not None else SqliteStore(path)
        else:
            store = PostgresStore(url, clock)
        async with served(store, tmp_path / "logs", settings) as server:
            server.seqs = seqs  # one agent, whichever life of the server it reports to
            yield server

    return one


async def is_lost(server: Served, run_id: str) -> bool:
    return bool((await server.run(run_id))["lost"])


async def in_state(server: Served, run_id: str, state: str) -> bool:
    return bool((await server.run(run_id))["state"] == state)


async def one_running(server: Served, **spec: Any) -> Any:
    """An attempt that an agent runs."""
    await ready(server, **spec)
    await server.submit()
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running")
    return granted


def has_listened(server: Served) -> None:
    """The server has been up for long: it may act on any silence."""
    server.engine._hearing_since -= HOUR


async def looks(server: Served) -> None:
    """Until the reaper has looked at the clock once more, and done what follows from that."""
    for _ in range(3):  # one look may have begun before, one is done, and the next shows that it is
        before = server.engine._last_look
        await until(lambda before=before: server.engine._last_look is not before)  # type: ignore[misc]


async def silence(server: Served, clock: SetClock, seconds: float) -> None:
    """So much time passes, in steps that are not taken for a clock that was set."""
    await server.without("heartbeat")  # what was heard is written down by the clock as it is
    await server.engine._write_heartbeats()
    while seconds > 0:
        step = min(seconds, 3.0)
        clock.offset += step
        seconds -= step
        await looks(server)


async def stays_heard(server: Served, granted: Any, seconds: float) -> None:
    """Its agent syncs for so long."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await server.sync(holds=[held(granted)], free=0, hold_for=0.1)


async def test_a_lost_agents_runs_are_marked_within_a_second_after_its_time(serve: Serve) -> None:
    real = Settings(lost_after=QUICK.lost_after)
    async with serve(SetClock(), real) as server:
        granted = await one_running(server, on_lost="wait")
        has_listened(server)
        with server.engine.hub.watching(UUID(granted["run"])) as changed:
            last_contact = time.time()
            await server.sync(holds=[held(granted)], free=0)
            while not await is_lost(server, granted["run"]):
                changed.clear()
                await asyncio.wait_for(changed.wait(), SOON)
        events = (await server.get(f"/runs/{granted['run']}/events"))["events"]
        (marked,) = [event["at"] for event in events if event["kind"] == "lost"]
        after = datetime.fromisoformat(marked).timestamp() - last_contact
        assert real.lost_after <= after <= real.lost_after + 1.0
        # Back, it goes on under its epoch.
        assert (await server.sync(holds=[held(granted)], free=0))["forget"] == []
        await until(lambda: _not(is_lost(server, granted["run"])))
        await server.report(granted, "Completed", log_size=0)
        assert await in_state(server, granted["run"], "Completed")


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_a_clock_that_is_set_by_an_hour_does_no_harm(serve: Serve, step: float) -> None:
    clock = SetClock()
    async with serve(clock) as server:
        granted = await one_running(server, on_lost="crash")
        await looks(server)
        has_listened(server)
        clock.offset += step
        await stays_heard(server, granted, 0.5)
        run = await server.run(granted["run"])
        assert (run["state"], run["lost"]) == ("Running", False)
        kinds = [event["kind"] for event in (await server.get(f"/runs/{granted['run']}/events"))["events"]]
        assert kinds == ["Scheduled", "Claimed", "Starting", "Running"]
        assert (await server.get("/agents/a1"))["lost"] is False
        # One that is really silent is lost in time by the new clock, and given up.
        has_listened(server)
        await silence(server, clock, QUICK.lost_after)
        assert await is_lost(server, granted["run"])
        await silence(server, clock, QUICK.give_up_after)
        run = await server.run(granted["run"])
        assert (run["state"], run["cause"]) == ("Crashed", "agent_lost")
        attempt = run["attempts"][0]
        assert attempt["claimed_at"] <= attempt["started_at"] <= attempt["ended_at"]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_an_agent_that_fell_silent_before_the_clock_was_set_is_lost_after_it(
    serve: Serve, step: float
) -> None:
    clock = SetClock()
    async with serve(clock) as server:
        granted = await one_running(server, on_lost="wait")
        await looks(server)
        clock.offset += step
        await looks(server)
        assert not await is_lost(server, granted["run"])
        assert (await server.get("/agents/a1"))["lost"] is False, "it was heard of a moment ago, by any clock"
        has_listened(server)
        await silence(server, clock, QUICK.lost_after)
        assert await is_lost(server, granted["run"])


async def test_an_agent_that_speaks_to_another_server_has_time_to_speak_up(serve: Serve) -> None:
    """This server has never heard it, and cannot know what it said to the other since the clock was set."""
    clock = SetClock()
    async with serve(clock) as server:
        granted = await one_running(server, on_lost="crash")
        await looks(server)
        server.engine._heard.clear()
        has_listened(server)
        clock.offset += HOUR
        await looks(server)
        run = await server.run(granted["run"])
        assert (run["state"], run["lost"]) == ("Running", False)


async def test_a_clock_that_is_set_between_a_look_and_a_deed_does_no_harm(serve: Serve) -> None:
    """The reaper has looked at the clock, and found somebody silent; then the clock is set."""
    clock = SetClock()
    async with serve(clock) as server:
        granted = await one_running(server, on_lost="crash")
        await looks(server)
        has_listened(server)
        read, stepped = server.engine.store.read, asyncio.Event()

        async def reading(work: Any) -> Any:
            found = await read(work)
            if "silent_holds" in work.__code__.co_names and not stepped.is_set():
                clock.offset += HOUR
                stepped.set()
                now, acts, late, _, left = found
                return now, acts, late, True, left  # it goes on to mark, and to give up
            return found

        server.engine.store.read = reading  # type: ignore[method-assign]
        await asyncio.wait_for(stepped.wait(), SOON)
        await stays_heard(server, granted, 0.3)
        run = await server.run(granted["run"])
        assert (run["state"], run["lost"]) == ("Running", False)
        assert len((await server.get(f"/runs/{granted['run']}/events"))["events"]) == 4


async def test_an_agent_that_was_heard_of_in_the_future_is_lost_all_the_same(serve: Serve) -> None:
    """The clock was set back while no server was up; the agent is gone."""
    clock = SetClock()
    async with serve(clock) as server:
        granted = await one_running(server, on_lost="crash")
    clock.offset -= HOUR
    async with serve(clock) as server:
        seen = await server.engine.store.read(lambda tx: tx.conn.scalar(select(agents.c.last_seen_at)))
        assert seen is not None
        assert seen <= clock()
        has_listened(server)
        await silence(server, clock, QUICK.lost_after)
        assert await is_lost(server, granted["run"])


async def test_time_without_a_server_is_no_silence(serve: Serve) -> None:
    clock = SetClock()
    async with serve(clock) as server:
        granted = await one_running(server, on_lost="crash")
    clock.offset += 10 * 60  # ten minutes without any server
    async with serve(clock) as server:
        await looks(server)
        assert (await server.run(granted["run"]))["lost"] is False
        await server.without("heartbeat")
        await server.sync(holds=[held(granted)], free=0)
        await server.engine._write_heartbeats()
        has_listened(server)
        await looks(server)
        run = await server.run(granted["run"])
        assert (run["state"], run["lost"]) == ("Running", False)
        await server.report(granted, "Completed", log_size=0)
        assert await in_state(server, granted["run"], "Completed")


@pytest.mark.parametrize("on_lost", ["crash", "retry"])
async def test_a_return_after_give_up_is_stale_and_does_not_touch_the_run(serve: Serve, on_lost: str) -> None:
    clock = SetClock()
    async with serve(clock) as server:
        granted = await one_running(server, on_lost=on_lost)
        has_listened(server)
        await silence(server, clock, QUICK.give_up_after + 1)
        ends = "Retrying" if on_lost == "retry" else "Crashed"
        assert await in_state(server, granted["run"], ends)
        # It is told to stop that work; what it says of it changes nothing, what it wrote is kept.
        answer = await server.sync(holds=[held(granted)], taking=False)
        assert answer["forget"] == [held(granted)]
        (ack,) = (await server.report(granted, "Completed", log_size=5))["acks"]
        assert ack["stale"] is True
        assert "not held under epoch 1" in ack["detail"]
        (size,) = (await server.upload(granted, 0, b"late\n"))["sizes"]
        assert (size["size"], size["stale"]) == (5, False)
        body = {"session": server.sync_body()["session"], "attempts": [held(granted)]}
        assert (await server.post("/agents/a1/release", body))["acks"][0]["stale"] is True
        run = await server.run(granted["run"])
        assert (run["state"], run["attempt_count"]) == (ends, 1)


async def test_on_lost_wait_waits_and_goes_on_under_its_epoch(serve: Serve) -> None:
    clock = SetClock()
    async with serve(clock) as server:
        granted = await one_running(server, on_lost="wait")
        has_listened(server)
        await silence(server, clock, 3 * QUICK.give_up_after)
        run = await server.run(granted["run"])
        assert (run["state"], run["lost"]) == ("Running", True)
        assert (await server.sync(holds=[held(granted)], free=0))["forget"] == []
        (ack,) = (await server.report(granted, "Completed", log_size=0))["acks"]
        assert ack["stale"] is False
        assert await in_state(server, granted["run"], "Completed")


async def test_cancelled_while_lost_it_ends_cancelled_by_whoever_comes_first(serve: Serve) -> None:
    clock = SetClock()
    async with serve(clock) as server:
        back = await one_running(server, on_lost="wait")
        gone = await server.submit()
        (never,) = await server.take("a2", identity=str(UUID(int=8)))
        assert never["run"] == gone
        has_listened(server)
        await silence(server, clock, QUICK.lost_after)
        for run_id in (back["run"], gone):
            assert (await server.post(f"/runs/{run_id}/cancel"))["state"] == "Cancelling"
        # One agent is back, and stops it; the other is given up.
        assert (await server.sync(holds=[held(back)], free=0))["cancel"] == [held(back)]
        await server.report(back, "Cancelled", cause="cancelled", log_size=0)
        assert await in_state(server, back["run"], "Cancelled")
        await silence(server, clock, QUICK.give_up_after)
        assert await in_state(server, gone, "Cancelled")


async def _not(holds: Awaitable[bool]) -> bool:
    return not await holds
