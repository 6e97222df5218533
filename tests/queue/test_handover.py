"""Hand-over: leases of silent agents go to others that reach the same work, and to nobody else."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.util import await_only

from shunter_work_pools.contracts.agents import Assignment, Output
from shunter_work_pools.queue import reap
from shunter_work_pools.queue.explain import explain
from shunter_work_pools.queue.handover import BATCH, hand_over
from shunter_work_pools.storage.schema import leases
from shunter_work_pools.storage.store import Tx
from tests.patience import SOON
from tests.queue.world import GIVE_UP_AFTER, LOST_AFTER, Agent, S, World, held

HERE = {"main": "cluster-1/default"}


async def running(world: World, reaches: dict[str, str] = HERE, **spec: Any) -> tuple[Agent, Assignment]:
    """An attempt that agent a1 runs, which says where its work is."""
    await world.pool()
    await world.deploy(pool="main", **spec)
    await world.submit()
    agent = await world.agent("a1", reaches=reaches, capacity=spec.get("need", {}))
    (granted,) = await agent.claim()
    await agent.report(granted, S.STARTING, S.RUNNING)
    return agent, granted


async def silent(world: World, *others: Agent, seconds: float = LOST_AFTER + 1) -> None:
    """So much time passes in which only these are heard of."""
    world.clock.advance(seconds)
    for other in others:
        await other.beat()
    await world.reap()


async def holder(world: World, run: UUID) -> tuple[str, int]:
    """Which agent has a run, and under which epoch."""
    (attempt,) = (await world.run(run)).attempts
    return attempt.agent, attempt.epoch


async def test_another_that_reaches_the_work_goes_on_with_it(world: World) -> None:
    a1, granted = await running(world)
    a2 = await world.agent("a2", reaches=HERE)
    world.noticed()
    await silent(world, a2)
    assert await holder(world, granted.run) == ("a2", 2)
    assert world.noticed().agents == {a2.id}, "it is told at once"
    run = await world.run(granted.run)
    assert (run.state, run.lost) == ("Running", False)
    assert (await world.events(granted.run))[-1].data == {"from": "a1", "to": "a2", "epoch": 2}
    # It is told what there is, and again if the answer is lost.
    for _ in range(2):
        told = await a2.difference()
        (again,) = told.assignments
        assert (again.run, again.attempt, again.epoch) == (granted.run, 1, 2)
        assert again.handed_over == Output(size=0, started=True)
    # It tells all steps again: what was told before is no news, and no fault.
    ack = await a2.report(again, S.STARTING, S.RUNNING)
    assert (ack.seq, ack.stale, ack.detail) == (2, False, None)
    assert [event.kind for event in await world.events(granted.run)].count("Running") == 1
    # The old one is back: it lets go, and what it reports changes nothing.
    told = await a1.difference(held(granted))
    assert (told.let_go, told.forget, told.assignments) == ([held(granted)], [], [])
    ack = await a1.report(granted, S.COMPLETED, log_size=0)
    assert (ack.stale, ack.handed_over) == (True, True)
    assert await world.state(granted.run) == "Running"
    await a2.report(again, S.COMPLETED, log_size=0)
    assert await world.state(granted.run) == "Completed"
    # It has ended by then: nobody is at work for it any more, so what the old one may have left is to be stopped.
    told = await a1.difference(held(granted))
    assert (told.let_go, told.forget) == ([], [held(granted)])
    ack = await a1.report(granted, S.COMPLETED, log_size=0)
    assert (ack.stale, ack.handed_over) == (True, False)


async def test_what_nobody_took_before_it_was_given_up_is_stopped_by_who_had_it(world: World) -> None:
    """Who was to take it over died before it heard of it: the work is at its old agent's, and nobody else's."""
    a1, granted = await running(world, on_lost="retry")
    a2 = await world.agent("a2", reaches=HERE)
    await silent(world, a2)
    assert await holder(world, granted.run) == ("a2", 2)
    await silent(world)
    await silent(world, seconds=GIVE_UP_AFTER)
    assert await world.state(granted.run) == "Retrying"
    told = await a1.difference(held(granted))
    assert (told.let_go, told.forget) == ([], [held(granted)])
    assert not (await a1.report(granted, S.COMPLETED, log_size=0)).handed_over


async def test_steps_that_are_told_again_of_one_that_is_to_end_are_no_events(world: World) -> None:
    _, granted = await running(world)
    await world.cancel(granted.run)
    a2 = await world.agent("a2", reaches=HERE)
    await silent(world, a2)
    (again,) = (await a2.difference()).assignments
    await a2.report(again, S.STARTING, S.RUNNING)
    kinds = [event.kind for event in await world.events(granted.run)]
    assert (kinds.count("Starting"), kinds.count("Running")) == (1, 1)


async def test_explain_says_since_when_the_new_one_has_it(world: World) -> None:
    """Its time to start is counted by who has it now."""
    await world.pool()
    await world.deploy(pool="main", work={"command": ["/bin/true"], "start_timeout": 60})
    run = await world.submit()
    a1 = await world.agent("a1", reaches=HERE)
    (granted,) = await a1.claim()
    await a1.report(granted, S.STARTING)
    a2 = await world.agent("a2", reaches=HERE)
    await silent(world, a2, seconds=100)
    found = await world.store.read(lambda tx: explain(tx, run, LOST_AFTER, GIVE_UP_AFTER))
    assert "has until" in found.sentence
    assert "(in 60s)" in found.sentence


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
    a2 = await world.agent("a2", reaches=HERE)
    await silent(world, a2)
    told = await a2.difference()
    (again,) = told.assignments
    assert again.handed_over == Output(size=0)
    assert len(told.cancel) == (state == "cancelling")
    # Whatever it finds, it is not given back as one that nobody began.
    (ack,) = await a2.release(again)
    assert ack.stale
    if state == "cancelling":
        await a2.report(again, S.CANCELLED, cause="cancelled", log_size=0)
        assert await world.state(run) == "Cancelled"
    else:
        await a2.run_through(again)
        assert await world.state(run) == "Completed"


UNFIT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("says no reach, as those of an older version", {}, {"reaches": {}}),
    ("reaches another place", {}, {"reaches": {"main": "cluster-2/default"}}),
    ("reaches it for another pool", {}, {"reaches": {"other": HERE["main"]}}),
    ("serves another queue", {}, {"queues": ["urgent"]}),
    ("lacks a tag", {"require": ["gpu"]}, {}),
    ("lacks capacity", {"need": {"gpu": 1}}, {"capacity": {"cpu": 8}}),
    ("drains", {}, {"draining": True}),
    ("is unwell", {}, {"troubles": ["no disk"]}),
]


@pytest.mark.parametrize(("spec", "other"), [entry[1:] for entry in UNFIT], ids=[entry[0] for entry in UNFIT])
async def test_an_agent_that_could_not_run_it_does_not_get_it(
    world: World, spec: dict[str, Any], other: dict[str, Any]
) -> None:
    tags = {"tags": spec.get("require", [])}
    await world.pool()
    await world.pool("other")
    await world.deploy(pool="main", on_lost="wait", **spec)
    run = await world.submit()
    a1 = await world.agent("a1", reaches=HERE, capacity=spec.get("need", {}), **tags)
    (granted,) = await a1.claim()
    await a1.report(granted, S.STARTING, S.RUNNING)
    a2 = await world.agent("a2", "main", "other", **({"reaches": HERE} | other))
    await silent(world, a2)
    assert await holder(world, run) == ("a1", 1)
    # As soon as there is one that could, it goes there.
    a3 = await world.agent("a3", reaches=HERE, capacity=spec.get("need", {}), **tags)
    await silent(world, a2, a3, seconds=1)
    assert await holder(world, run) == ("a3", 2)


async def test_nobody_takes_over_from_one_that_reaches_nothing_others_do(world: World) -> None:
    _, granted = await running(world, reaches={}, on_lost="wait")
    a2 = await world.agent("a2", reaches=HERE)
    await silent(world, a2)
    assert await holder(world, granted.run) == ("a1", 1)


async def test_an_exclusive_one_is_never_handed_over(world: World) -> None:
    _, granted = await running(world, exclusive=True, on_lost="crash")
    a2 = await world.agent("a2", reaches=HERE)
    await silent(world, a2)
    assert await holder(world, granted.run) == ("a1", 1)
    await silent(world, a2, seconds=GIVE_UP_AFTER)
    assert (await world.run(granted.run)).cause == "agent_lost"


async def test_one_that_is_full_paused_or_told_to_drain_takes_nothing_until_it_can(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", on_lost="wait", need={"gpu": 1})
    first, second = await world.submit(), await world.submit()
    gpus = {"reaches": HERE, "capacity": {"gpu": 2}}
    a1 = await world.agent("a1", **gpus)
    for granted in await a1.claim(2):
        await a1.report(granted, S.STARTING, S.RUNNING)
    a2 = await world.agent("a2", limit=1, **gpus)
    await world.pause_agent("a2")
    await silent(world, a2)
    assert {await holder(world, run) for run in (first, second)} == {("a1", 1)}
    await world.pause_agent("a2", paused=False)
    await silent(world, a2, seconds=1)
    (taken,) = (await a2.difference()).assignments
    (left,) = {first, second} - {taken.run}
    assert await holder(world, left) == ("a1", 1), "it has one slot"
    await a2.run_through(taken)
    await silent(world, a2, seconds=1)
    assert await holder(world, left) == ("a2", 2), "it has room again"


async def test_who_has_most_room_gets_most(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    for _ in range(10):
        await world.submit()
    a1 = await world.agent("a1", reaches=HERE)
    assert len(await a1.claim(10)) == 10
    few = await world.agent("a2", limit=3, reaches=HERE)
    many = await world.agent("a3", limit=9, reaches=HERE)
    await silent(world, few, many)
    got = [len((await agent.difference()).assignments) for agent in (few, many)]
    assert sum(got) == 10
    assert got[1] >= 7


async def test_on_lost_acts_where_nobody_could_take_over(world: World) -> None:
    _, granted = await running(world, on_lost="retry")
    await silent(world)
    await silent(world, seconds=GIVE_UP_AFTER)
    run = await world.run(granted.run)
    assert (run.state, run.attempts[0].cause) == ("Retrying", "agent_lost")


async def test_one_that_is_back_in_time_keeps_it(world: World) -> None:
    a1, granted = await running(world)
    await silent(world)
    assert (await world.run(granted.run)).lost
    await a1.beat()
    a2 = await world.agent("a2", reaches=HERE)
    assert await world.hand_over() == 0
    assert await holder(world, granted.run) == ("a1", 1)
    assert not (await a2.difference()).assignments


async def test_it_comes_back_to_the_first(world: World) -> None:
    a1, granted = await running(world)
    a2 = await world.agent("a2", reaches=HERE)
    await silent(world, a2)
    await silent(world, a1)
    assert await holder(world, granted.run) == ("a1", 3)
    # It was silent all the while, and still holds what it had: it is told both.
    told = await a1.difference(held(granted))
    assert ([one.epoch for one in told.assignments], told.let_go) == ([3], [held(granted)])


async def test_an_agent_with_a_fresh_disk_finds_what_it_had(world: World) -> None:
    """Of the same name, in a later session: what was begun is to be found, what was not is just granted."""
    _, granted = await running(world)
    await world.submit()
    a1 = await world.agent("a1", reaches=HERE, identity=UUID(int=1), session=UUID(int=50))
    (again,) = (await a1.difference()).assignments
    assert (again.run, again.epoch) == (granted.run, 1)
    assert again.handed_over == Output(size=0, started=True)
    (fresh,) = await a1.claim()
    assert fresh.handed_over is None
    (told,) = (await a1.difference(held(again))).assignments
    assert told.handed_over is None, "its answer was lost, it is nobody else's"


@pytest.mark.parametrize("kind", ["postgres"])  # SQLite has one server
async def test_two_servers_hand_over_once(world: World) -> None:
    """Both find it lost at the same moment."""
    _, granted = await running(world)
    others = [await world.agent(name, reaches=HERE) for name in ("a2", "a3")]
    world.clock.advance(LOST_AFTER + 1)
    for other in others:
        await other.beat()
    before = world.clock.now - round(LOST_AFTER * 1e6)
    await world.store.write(lambda tx: reap.mark_lost(tx, before))
    written, looked = asyncio.Event(), asyncio.Event()

    def first(tx: Tx) -> int:
        moved = hand_over(tx, before, LOST_AFTER)
        written.set()
        await_only(looked.wait())  # before it is committed
        return moved

    one = asyncio.create_task(world.store.write(first))
    await written.wait()
    async with asyncio.timeout(SOON):
        assert await world.store.write(lambda tx: hand_over(tx, before, LOST_AFTER)) == 0
    looked.set()
    assert await one == 1
    assert (await holder(world, granted.run))[1] == 2
    told = [await other.difference() for other in others]
    assert sorted(len(one.assignments) for one in told) == [0, 1]


async def test_a_look_in_vain_writes_nothing(world: World) -> None:
    """Level-triggered: again and again, for as long as nobody can take it over."""
    await running(world, on_lost="wait")
    a2 = await world.agent("a2", reaches={"main": "elsewhere"})
    await silent(world, a2)
    world.noticed()
    for _ in range(3):
        assert await world.hand_over() == 0
    told = world.noticed()
    assert (told.runs, told.events, told.agents) == (set(), [], set())
    assert await world.store.read(lambda tx: tx.conn.scalar(select(func.count()).where(leases.c.lost))) == 1


async def test_what_nobody_can_take_costs_no_more_however_much_it_is(world: World) -> None:
    """A look reads what lost leases have in common, not each of them."""
    await world.pool()
    await world.deploy(pool="main", on_lost="wait", require=["gpu"])
    first = await world.submit()
    a1 = await world.agent("a1", reaches=HERE, tags=["gpu"], limit=1000)
    a2 = await world.agent("a2", reaches=HERE)
    await a1.claim()

    async def look() -> int:
        read = 0

        def work(tx: Tx) -> int:
            def count(*_: Any) -> None:
                nonlocal read
                read += 1

            event.listen(tx.conn, "before_cursor_execute", count)
            moved = hand_over(tx, world.clock.now - round(LOST_AFTER * 1e6), LOST_AFTER)
            event.remove(tx.conn, "before_cursor_execute", count)
            return moved

        assert await world.store.write(work) == 0
        return read

    await silent(world, a2)
    once = await look()
    await a1.beat()
    await world.submit_many(*["job"] * 600)
    assert sum([len(await a1.claim(100)) for _ in range(6)]) > BATCH
    await silent(world, a2)
    await world.reap()  # it marks so many at a time
    assert await look() == once
    gpu = await world.agent("a3", reaches=HERE, tags=["gpu"], limit=1000)
    await silent(world, a2, gpu, seconds=1)
    assert await holder(world, first) == ("a3", 2)


async def test_explain_says_who_will_have_it(world: World) -> None:
    _, granted = await running(world)

    async def said() -> Any:
        return await world.store.read(lambda tx: explain(tx, granted.run, LOST_AFTER, GIVE_UP_AFTER))

    world.clock.advance(LOST_AFTER + 1)
    found = await said()
    assert found.code == "agent_silent"
    assert "handed over as soon as another agent that reaches its work has room, and none has now" in (
        found.sentence
    )
    assert found.details["handed_over_to"] == []
    a2 = await world.agent("a2", reaches=HERE)
    found = await said()
    assert "it is handed over to a2 at the server's next look" in found.sentence
    assert found.details["handed_over_to"] == ["a2"]
    await silent(world, a2, seconds=1)
    found = await said()
    assert (found.code, found.details["agent"]) == ("running", "a2")
