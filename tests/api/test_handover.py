"""Hand-over by the server's own loops: told at once, with what is known of the output."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from typing import Any
from uuid import UUID

from shunter_work_pools.contracts.agents import OUTPUT_TAIL
from shunter_work_pools.settings import Settings
from tests.api.serving import SOON, Served, held, until
from tests.api.test_lost import Serve, SetClock, has_listened, looks, one_running, serve, silence
from tests.api.test_sync import ready

__all__ = ["serve"]

REACH = {"reaches": {"main": "cluster-1/default"}}
OTHER = {"identity": str(UUID(int=9)), **REACH}
#: The clock is set ahead for the one; the other is not to be lost meanwhile, however slow the machine is.
PATIENT = Settings(lost_after=15.0, lease_for=20.0, give_up_after=60.0, reap_every=0.05, heartbeat_every=0.05)


async def handed_over(server: Served, clock: SetClock, granted: Any) -> Any:
    """The attempt as agent a2 gets it, which waits for work while a1 falls silent."""
    await server.sync(holds=[held(granted)], free=0, **REACH)
    has_listened(server)
    await silence(server, clock, PATIENT.lost_after + 0.1)
    taken = asyncio.create_task(server.take("a2", **OTHER))
    agents = server.engine.hub.agents
    # The server's own loops may hand it over before anybody has seen that it waits.
    await until(lambda: taken.done() or any(entry.offered is not None for entry in agents.values()))
    await server.engine._write_heartbeats()
    (again,) = await asyncio.wait_for(taken, SOON)
    return again


async def test_who_takes_over_is_told_how_much_output_there_is(serve: Serve) -> None:
    clock = SetClock()
    output = bytes(range(256)) * 3
    async with serve(clock, PATIENT) as server:
        granted = await one_running(server, on_lost="wait")
        await server.upload(granted, 0, output)
        again = await handed_over(server, clock, granted)
        assert (again["run"], again["attempt"], again["epoch"]) == (granted["run"], 1, 2)
        told = again["handed_over"]
        assert (told["size"], told["started"]) == (len(output), True)
        assert b64decode(told["tail"]) == output[-OUTPUT_TAIL:]
        # An answer that was lost is told anew, with what has come meanwhile.
        await server.upload(again, len(output), b"more", name="a2")
        (once_more,) = (await server.sync("a2", **OTHER))["assignments"]
        assert once_more["handed_over"]["size"] == len(output) + 4
        # The old one: what it sends is not taken, and it is told to let go.
        (size,) = (await server.upload(granted, len(output), b"late"))["sizes"]
        assert size["stale"]
        (ack,) = (await server.report(granted, "Completed", log_size=0))["acks"]
        assert (ack["stale"], ack["handed_over"]) == (True, True)
        answer = await server.sync(holds=[held(granted)], free=0, **REACH)
        assert (answer["let_go"], answer["forget"]) == ([held(granted)], [])
        await server.report(again, "Completed", name="a2", log_size=len(output) + 4)
        run = await server.run(granted["run"])
        assert (run["state"], run["attempts"][0]["agent"]) == ("Completed", "a2")


async def test_output_that_cannot_be_read_holds_up_nobody_but_its_own_run(serve: Serve) -> None:
    clock = SetClock()
    async with serve(clock, PATIENT) as server:
        granted = await one_running(server, on_lost="wait")
        await server.upload(granted, 0, b"output")
        again = await handed_over(server, clock, granted)
        path = server.engine.logs._path(UUID(granted["run"]), 1)  # type: ignore[attr-defined]
        path.unlink()
        path.mkdir()
        assert (await server.sync("a2", **OTHER, hold_for=0.1))["assignments"] == []
        path.rmdir()
        (once_more,) = (await server.sync("a2", **OTHER))["assignments"]
        assert (once_more["run"], once_more["handed_over"]["size"]) == (again["run"], 0)


async def test_a_note_reaches_those_who_look(serve: Serve) -> None:
    async with serve() as server:
        granted = await one_running_not_yet(server)
        await server.sync(holds=[held(granted) | {"note": "no node has room"}], free=0)
        (attempt,) = (await server.run(granted["run"]))["attempts"]
        assert attempt["note"] == "no node has room"
        found = await server.get(f"/runs/{granted['run']}/explain")
        assert "the engine says: no node has room" in found["sentence"]
        await server.report(granted, "Running", "Completed", log_size=0, manifest={"kind": "Job"})
        assert (await server.run(granted["run"]))["attempts"][0]["note"] is None
        assert (await server.get(f"/runs/{granted['run']}/manifest"))["manifest"] == {"kind": "Job"}
        missing = await server.get(f"/runs/{granted['run']}/manifest", 404, attempt=2)
        assert "no manifest of attempt 2 is kept" in missing["detail"]


async def one_running_not_yet(server: Served) -> Any:
    """An attempt that an agent is launching."""
    await ready(server)
    await server.submit()
    (granted,) = await server.take()
    await server.report(granted, "Starting")
    return granted


async def test_a_server_that_has_not_listened_for_long_hands_nothing_over(serve: Serve) -> None:
    clock = SetClock()
    async with serve(clock) as server:
        granted = await one_running(server, on_lost="wait")
        await server.sync(holds=[held(granted)], free=0, **REACH)
        await looks(server)
    clock.offset += 60
    async with serve(clock) as server:
        await server.sync("a2", free=5, **OTHER)
        await looks(server)
        (attempt,) = (await server.run(granted["run"]))["attempts"]
        assert (attempt["agent"], attempt["epoch"]) == ("a1", 1)
