"""Drain: an agent is told to take nothing new, this life of it only."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from tests.api.serving import SOON, Served, held
from tests.api.test_remove import silence
from tests.api.test_sync import hold, ready, soon

NEXT_LIFE = str(UUID(int=101))


async def test_a_held_sync_is_answered_at_once_and_nothing_new_is_granted(server: Served) -> None:
    await ready(server)
    await server.submit()
    (granted,) = await server.take()
    syncing = hold(server, holds=[held(granted)])
    await server.waits()
    told = await server.post("/agents/a1/drain")
    assert (told["draining"], told["active"]) == (True, 1)
    answer = await soon(syncing)
    assert (answer["drain"], answer["cancel"], answer["forget"]) == (True, [], [])
    waiting = await server.submit()
    # Told again until it says that it knows, also by an agent that has room still.
    assert (await server.sync(hold_for=10, holds=[held(granted)]))["drain"] is True
    began = time.monotonic()
    draining = {"draining": True, "taking": False, "free": 0, "holds": [held(granted)]}
    answer = await server.sync(hold_for=0.2, **draining)
    assert (answer["drain"], answer["assignments"]) == (True, [])
    assert time.monotonic() - began >= 0.19, "one that knows is held as ever"
    assert (await server.run(waiting))["state"] == "Scheduled"
    # What it has, it brings to its end.
    await server.report(granted, "Starting", "Running", "Completed", log_size=0)
    assert (await server.run(granted["run"]))["state"] == "Completed"
    assert (await server.get("/agents/a1"))["active"] == 0


async def test_twice_is_as_good_as_once_and_the_next_life_takes_runs(server: Served) -> None:
    await ready(server)
    await server.sync()
    first = await server.post("/agents/a1/drain")
    again = await server.post("/agents/a1/drain")
    for changes in (first, again):
        del changes["last_seen_at"]
    assert first == again
    assert (await server.sync(taking=False))["drain"] is True
    await server.submit()
    (granted,) = await server.take(session=NEXT_LIFE)
    assert granted["session"] == NEXT_LIFE
    assert (await server.sync(session=NEXT_LIFE, holds=[held(granted)]))["drain"] is False
    assert (await server.get("/agents/a1"))["draining"] is False


async def test_one_that_syncs_later_is_told_then(server: Served) -> None:
    await ready(server)
    await server.sync()
    await server.post("/agents/a1/drain")
    waiting = await server.submit()
    answer = await asyncio.wait_for(server.sync(hold_for=10), SOON)
    assert (answer["drain"], answer["assignments"]) == (True, [])
    other = await server.take("a2", identity=str(UUID(int=8)))
    assert [one["run"] for one in other] == [waiting]


async def test_an_unknown_or_lost_agent_is_told_of(server: Served) -> None:
    await ready(server)
    assert "no agent 'a1'" in (await server.post("/agents/a1/drain", status=404))["detail"]
    await server.sync()
    await silence(server)
    told = await server.post("/agents/a1/drain", status=409)
    assert "is lost" in told["detail"]
    assert "shunter agent remove a1" in told["remedy"]
    assert (await server.sync())["drain"] is False, "nothing was changed"
