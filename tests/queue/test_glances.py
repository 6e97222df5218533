"""Glances: agents that come together share a read, and each is told what was so after it came."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shunter_work_pools.contracts.errors import Unavailable
from shunter_work_pools.glances import Glances
from tests.queue.world import World
from tests.storage.stores import AnyStore


class Watched:
    """A store whose reads are counted, may fail, and may take as long as a test likes."""

    def __init__(self, store: AnyStore) -> None:
        self.store, self.reads, self.away = store, 0, False
        self.reading, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def read(self, work: Any) -> Any:
        self.reads += 1
        if self.away:
            raise Unavailable("it is away")
        found = await self.store.read(work)
        self.reading.set()
        await self.go_on.wait()
        return found


@pytest.fixture
def store_watched(world: World) -> Watched:
    return Watched(world.store)


@pytest.fixture
def glances(store_watched: Watched) -> Glances:
    return Glances(store_watched)  # type: ignore[arg-type]


async def test_those_that_come_together_share_a_read_and_each_is_told_its_own(
    world: World, glances: Glances, store_watched: Watched
) -> None:
    await world.pool()
    await world.deploy(pool="main")
    a1, a2 = await world.agent("a1"), await world.agent("a2")
    assert not (await glances.look(a1.id)).due
    await world.submit()
    await a1.claim()
    await world.submit()
    seen = await asyncio.gather(*(glances.look(agent.id) for agent in [a1, a2] * 50))
    assert store_watched.reads == 2
    assert all(glance.concerned == {a1.id} and glance.due for glance in seen)


async def test_who_comes_while_a_read_is_under_way_is_not_told_what_it_found(
    world: World, glances: Glances, store_watched: Watched
) -> None:
    await world.pool()
    await world.deploy(pool="main")
    agent = await world.agent()
    store_watched.go_on.clear()
    first = asyncio.create_task(glances.look(agent.id))
    await store_watched.reading.wait()
    await world.submit()
    await agent.claim()
    second = asyncio.create_task(glances.look(agent.id))
    await asyncio.sleep(0)
    store_watched.go_on.set()
    assert (await second).concerned == {agent.id}
    assert not (await first).concerned


async def test_a_store_that_is_away_is_told_to_each_and_the_next_look_is_a_new_one(
    glances: Glances, store_watched: Watched
) -> None:
    store_watched.away = True
    told = await asyncio.gather(*(glances.look(1) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in told] == [Unavailable] * 3
    store_watched.away = False
    assert not (await glances.look(1)).concerned


async def test_one_that_hangs_up_takes_no_look_from_the_others(glances: Glances) -> None:
    leaving, staying = asyncio.create_task(glances.look(1)), asyncio.create_task(glances.look(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert not (await staying).concerned
