"""Leases that an agent leaves, because it ends, go to others that reach the same work: at once, or to whoever comes."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.util import await_only

from shunter_work_pools.contracts.agents import Output
from shunter_work_pools.queue.explain import explain
from shunter_work_pools.queue.handover import hand_over, leave, left_waits
from shunter_work_pools.storage.schema import leases
from shunter_work_pools.storage.store import Tx
from tests.patience import SOON
from tests.queue.test_handover import HERE, UNFIT, holder, running, silent
from tests.queue.world import GIVE_UP_AFTER, LOST_AFTER, S, World, held


async def waits(world: World) -> bool:
    return await world.store.read(left_waits)


async def kinds(world: World, run: UUID) -> list[str]:
    return [event.kind for event in await world.events(run)]


async def test_it_is_given_to_another_in_the_moment_in_which_it_is_left(world: World) -> None:
    a1, granted = await running(world)
    a2 = await world.agent("a2", reaches=HERE)
    world.noticed()
    (ack,) = await a1.leave(granted)
    assert not ack.stale
    assert await holder(world, granted.run) == ("a2", 2)
    assert a2.id in world.noticed().agents, "it is told at once"
    run = await world.run(granted.run)
    assert (run.state, run.lost) == ("Running", False)
    assert (await kinds(world, granted.run))[-2:] == ["left", "handed_over"], "and was never lost"
    (again,) = (await a2.difference()).assignments
    assert again.handed_over == Output(size=0, started=True)
    # Its answer was lost, or it comes late: nothing changes.
    (ack,) = await a1.leave(granted)
    assert ack.stale
    assert (await a1.report(granted, S.COMPLETED, log_size=0)).handed_over
    assert (await a1.difference(held(granted))).let_go == [held(granted)]
    assert await holder(world, granted.run) == ("a2", 2)
    await a2.report(again, S.STARTING, S.RUNNING, S.COMPLETED, log_size=0)
    assert await world.state(granted.run) == "Completed"


async def test_who_comes_next_takes_it_without_waiting_for_anybodys_silence(world: World) -> None:
    a1, granted = await running(world)
    for _ in range(2):  # said twice is as good as once
        (ack,) = await a1.leave(granted)
        assert not ack.stale
    assert (await kinds(world, granted.run)).count("left") == 1
    assert await waits(world)
    # Whoever left it is heard of still, and is neither told to take it again nor to stop it, nor does it find it.
    await a1.beat()
    told = await a1.difference()
    assert not told
    assert (await world.run(granted.run)).lost
    assert await world.hand_over() == 0, "it is not given to who left it"
    await world.agent("a2", reaches=HERE)
    assert await world.store.write(lambda tx: hand_over(tx, 0, LOST_AFTER)) == 1
    assert await holder(world, granted.run) == ("a2", 2)
    assert not await waits(world)


async def test_one_that_is_full_takes_what_was_left_all_the_same(world: World) -> None:
    """The work runs already; what is only lost waits for room."""
    await world.pool()
    await world.deploy(pool="main", need={"gpu": 1})
    runs = [await world.submit() for _ in range(5)]
    gpu = {"gpu": 5.0}
    a1 = await world.agent("a1", reaches=HERE, capacity=gpu)
    granted = await a1.claim(4)
    a2 = await world.agent("a2", reaches=HERE, limit=1, capacity={"gpu": 1.0})
    await a2.claim()
    assert [one.stale for one in await a1.leave(*granted[:3])] == [False] * 3
    assert [one.run for one in (await a2.difference()).assignments if one.epoch == 2] == [
        one.run for one in granted[:3]
    ]
    await silent(world, a2)
    assert await holder(world, granted[3].run) == ("a1", 1)
    assert len({await world.state(run) for run in runs}) == 1


async def test_they_are_spread(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    for _ in range(20):
        await world.submit()
    a1 = await world.agent("a1", reaches=HERE)
    granted = await a1.claim(20)
    others = [await world.agent(name, reaches=HERE, limit=5) for name in ("a2", "a3")]
    await a1.leave(*granted)
    assert [len((await one.difference()).assignments) for one in others] == [10, 10]


@pytest.mark.parametrize(("spec", "other"), [entry[1:] for entry in UNFIT], ids=[entry[0] for entry in UNFIT])
async def test_it_waits_for_an_agent_that_could_run_it(
    world: World, spec: dict[str, Any], other: dict[str, Any]
) -> None:
    await world.pool()
    await world.pool("other")
    await world.deploy(pool="main", **spec)
    run = await world.submit()
    whole: dict[str, Any] = {
        "reaches": HERE,
        "capacity": spec.get("need", {}),
        "tags": spec.get("require", []),
    }
    a1 = await world.agent("a1", **whole)
    (granted,) = await a1.claim()
    await world.agent("a2", "main", "other", **({"reaches": HERE} | other))
    await a1.leave(granted)
    assert await holder(world, run) == ("a1", 1)
    await world.agent("a3", **whole)
    await world.hand_over()
    assert await holder(world, run) == ("a3", 2)


async def test_what_nobody_else_can_go_on_with_is_not_left(world: World) -> None:
    a1, exclusive = await running(world, exclusive=True)
    a2 = await world.agent("a2", reaches={})
    await world.deploy("plain", pool="main")
    await world.submit("plain")
    (alone,) = await a2.claim()
    for agent, granted in ((a1, exclusive), (a2, alone), (a1, alone), (a2, exclusive)):
        (ack,) = await agent.leave(granted)
        assert ack.stale
        old = granted.model_copy(update={"epoch": granted.epoch + 1})
        assert [one.stale for one in await agent.leave(old)] == [True]
    for granted in (exclusive, alone):
        assert "left" not in await kinds(world, granted.run)
    assert not await waits(world)
    assert await world.store.read(lambda tx: tx.conn.scalar(select(leases.c.lost).limit(1))) is False


@pytest.mark.parametrize("state", ["claimed", "starting", "cancelling"])
async def test_whatever_it_has_come_to(world: World, state: str) -> None:
    await world.pool()
    await world.deploy(pool="main")
    run = await world.submit()
    a1 = await world.agent("a1", reaches=HERE)
    (granted,) = await a1.claim()
    if state != "claimed":
        await a1.report(granted, S.STARTING)
    if state == "cancelling":
        await world.cancel(run)
    await a1.leave(granted)
    assert not await a1.difference(), "who left it is not told to stop it"
    (ack,) = await a1.release(granted)
    assert ack.stale, "it may be at work: it does not wait again"
    a2 = await world.agent("a2", reaches=HERE)
    await world.hand_over()
    told = await a2.difference()
    (again,) = told.assignments
    assert (again.epoch, again.handed_over, len(told.cancel)) == (2, Output(size=0), state == "cancelling")


@pytest.mark.parametrize("folder", ["its own", "a fresh one"])
async def test_its_next_life_takes_up_what_nobody_took_over(world: World, folder: str) -> None:
    a1, granted = await running(world)
    await a1.leave(granted)
    later = await world.agent("a1", reaches=HERE, identity=UUID(int=1), session=UUID(int=50))
    run = await world.run(granted.run)
    assert (run.state, run.lost) == ("Running", False)
    assert (await kinds(world, granted.run))[-1] == "found"
    await world.agent("a2", reaches=HERE)
    assert await world.hand_over() == 0
    if folder == "its own":
        assert not await later.difference(held(granted))
    else:
        (again,) = (await later.difference()).assignments
        assert (again.epoch, again.handed_over) == (1, Output(size=0, started=True))
    await later.report(granted, S.STARTING, S.RUNNING, S.COMPLETED, log_size=0)
    assert await world.state(granted.run) == "Completed"


async def test_its_next_life_takes_up_nothing_of_a_pool_that_it_serves_no_more(world: World) -> None:
    """It would refuse it, again and again, and nobody else would get it."""
    a1, granted = await running(world)
    await world.pool("other")
    await a1.leave(granted)
    life: dict[str, Any] = {"identity": UUID(int=1), "session": UUID(int=50), "reaches": {"other": "there"}}
    later = await world.agent("a1", "other", **life)
    assert not await later.difference()
    assert await world.hand_over() == 0
    await world.agent("a2", reaches=HERE)
    assert await world.hand_over() == 1
    assert await holder(world, granted.run) == ("a2", 2)


async def test_its_next_life_has_what_it_finds_in_its_folder_whatever_it_serves(world: World) -> None:
    a1, granted = await running(world)
    await world.pool("other")
    await a1.leave(granted)
    life: dict[str, Any] = {"identity": UUID(int=1), "session": UUID(int=50), "holds": [held(granted)]}
    later = await world.agent("a1", "other", **life)
    assert not (await world.run(granted.run)).lost
    await world.agent("a2", reaches=HERE)
    assert await world.hand_over() == 0
    await later.report(granted, S.STARTING, S.RUNNING, S.COMPLETED, log_size=0)
    assert await world.state(granted.run) == "Completed"


async def test_on_lost_acts_if_nobody_comes(world: World) -> None:
    a1, granted = await running(world, on_lost="retry")
    await a1.leave(granted)
    await silent(world)
    assert await world.state(granted.run) == "Running"
    await silent(world, seconds=GIVE_UP_AFTER)
    run = await world.run(granted.run)
    assert (run.state, run.attempts[0].cause) == ("Retrying", "agent_lost")


@pytest.mark.parametrize("kind", ["postgres"])  # SQLite has one server
async def test_it_is_left_and_looked_at_in_the_same_moment(world: World) -> None:
    """By another server, as the one to which it is said hands it over: it has one taker."""
    a1, granted = await running(world)
    for name in ("a2", "a3"):
        await world.agent(name, reaches=HERE)
    written, looked = asyncio.Event(), asyncio.Event()

    def first(tx: Tx) -> bool:
        (ack,) = leave(tx, a1.id, [held(granted)], LOST_AFTER)
        written.set()
        await_only(looked.wait())  # before it is committed
        return ack.stale

    one = asyncio.create_task(world.store.write(first))
    await written.wait()
    async with asyncio.timeout(SOON):
        assert await world.store.write(lambda tx: hand_over(tx, 0, LOST_AFTER)) == 0
    again = asyncio.create_task(a1.leave(granted))  # and it is said again, to yet another server
    looked.set()
    assert not await one
    assert (await again)[0].stale
    assert (await holder(world, granted.run))[1] == 2


async def test_explain_says_that_it_was_left(world: World) -> None:
    a1, granted = await running(world)
    await a1.leave(granted)

    async def said() -> Any:
        return await world.store.read(lambda tx: explain(tx, granted.run, LOST_AFTER, GIVE_UP_AFTER))

    found = await said()
    assert (
        "Agent a1 was told to stop and has left it to another one: it is handed over as soon as"
        in found.sentence
    )
    assert "silent" not in found.sentence
    await world.agent("a2", reaches=HERE)
    assert "it is handed over to a2 at the server's next look" in (await said()).sentence
