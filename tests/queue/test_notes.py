"""What launches wait for, as agents tell it: kept, told once, bounded, and gone when the run has started."""

from __future__ import annotations

from typing import Any

from shunter_work_pools.contracts.agents import Assignment, Held
from shunter_work_pools.queue.explain import explain
from shunter_work_pools.queue.notes import MOST_EVENTS, take_notes
from tests.queue.test_report import granted_one
from tests.queue.world import GIVE_UP_AFTER, LOST_AFTER, Agent, S, World, held

FULL = "0/3 nodes are available: 3 Insufficient cpu."


def says(granted: Assignment, note: str) -> Held:
    """How the agent names it."""
    return held(granted).model_copy(update={"note": note})


async def sync(world: World, agent: Agent, hold: Held) -> bool:
    """A sync with what the server does about notes; whether that wrote anything."""
    diff = await agent.difference(hold)
    assert not diff, "there is nothing to answer"
    if diff.notes:
        await world.store.write(lambda tx: take_notes(tx, agent.id, diff.notes))
    return bool(diff.notes)


async def waiting(world: World, granted: Assignment) -> list[Any]:
    return [event.data["note"] for event in await world.events(granted.run) if event.kind == "waiting"]


async def test_a_note_is_kept_once_told_and_cleared(world: World) -> None:
    agent, granted = await granted_one(world)
    await agent.report(granted, S.STARTING)
    assert not await sync(world, agent, says(granted, ""))
    world.noticed()
    assert await sync(world, agent, says(granted, FULL))
    assert world.noticed().runs == {granted.run}
    assert (await world.run(granted.run)).attempts[0].note == FULL
    assert not await sync(world, agent, says(granted, FULL)), "what is known is not written again"
    assert await sync(world, agent, says(granted, "")), "it waits for nothing any more"
    assert (await world.run(granted.run)).attempts[0].note is None
    await sync(world, agent, says(granted, FULL))
    await agent.report(granted, S.RUNNING)
    assert (await world.run(granted.run)).attempts[0].note is None
    assert not await sync(world, agent, says(granted, FULL)), "a sync that was under way comes too late"
    assert await waiting(world, granted) == [FULL]
    await agent.report(granted, S.COMPLETED, log_size=0)


async def test_an_engine_that_goes_to_and_fro_does_not_fill_the_events(world: World) -> None:
    agent, granted = await granted_one(world)
    for at in range(3 * MOST_EVENTS):
        assert await sync(world, agent, says(granted, ("one", "other")[at % 2]))
    assert await waiting(world, granted) == ["one", "other"]
    for at in range(2 * MOST_EVENTS):
        await sync(world, agent, says(granted, f"{at} nodes"))
    assert len(await waiting(world, granted)) == MOST_EVENTS
    assert (await world.run(granted.run)).attempts[0].note == f"{2 * MOST_EVENTS - 1} nodes"


async def test_what_it_holds_no_more_has_no_note(world: World) -> None:
    agent, granted = await granted_one(world)
    await world.store.write(lambda tx: take_notes(tx, agent.id + 1, [says(granted, FULL)]))
    stale = says(granted, FULL).model_copy(update={"epoch": 7})
    await world.store.write(lambda tx: take_notes(tx, agent.id, [stale]))
    assert (await world.run(granted.run)).attempts[0].note is None


async def test_a_note_may_hold_what_a_store_cannot(world: World) -> None:
    agent, granted = await granted_one(world)
    assert await sync(world, agent, says(granted, "a\0b"))
    assert (await world.run(granted.run)).attempts[0].note == "a\N{REPLACEMENT CHARACTER}b"
    assert not await sync(world, agent, says(granted, "a\0b"))


async def test_explain_says_it_in_the_engines_words(world: World) -> None:
    agent, granted = await granted_one(world)
    await agent.report(granted, S.STARTING)
    await sync(world, agent, says(granted, FULL))
    found = await world.store.read(lambda tx: explain(tx, granted.run, LOST_AFTER, GIVE_UP_AFTER))
    assert found.code == "starting"
    assert found.sentence.startswith("Agent a1 is launching it, and has until ")
    assert found.sentence.endswith(f"; the engine says: {FULL}")
    assert found.details["note"] == FULL
