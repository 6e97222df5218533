"""Deployments of one priority are served in turn: a burst of one does not hold the others back."""

from __future__ import annotations

import heapq
import random
from itertools import count
from statistics import median
from typing import Any

import pytest

from tests.queue.world import Agent, World

PLACES = 20


async def waits(
    world: World, agent: Agent, places: int, deployment: str, chance: random.Random
) -> list[float]:
    """Seconds that each run of a deployment waited, when runs take 0.5 to 1.5 s and ``places`` are served."""
    began, order = world.clock.now, count()
    ends: list[tuple[int, int, Any]] = []
    found: list[float] = []
    left = 100
    while left:
        free = places - len(ends)
        for granted in await agent.claim(free) if free else []:
            if granted.deployment == deployment:
                found.append((world.clock.now - began) / 1e6)
                left -= 1
            lasts = round(chance.uniform(0.5, 1.5) * 1e6)
            heapq.heappush(ends, (world.clock.now + lasts, next(order), granted))
        at, _, granted = heapq.heappop(ends)
        world.clock.now = max(world.clock.now, at)
        await agent.run_through(granted)
    for _, _, granted in ends:
        await agent.run_through(granted)
    return found


async def test_a_burst_of_one_does_not_hold_the_other_back(world: World) -> None:
    await world.pool()
    agent = await world.agent(limit=PLACES)
    for name in ("a", "b", "alone"):
        await world.deploy(name, pool="main")
    await world.submit_many(*["alone"] * 100)
    alone = await waits(world, agent, PLACES // 2, "alone", random.Random(1))
    for _ in range(10):
        await world.submit_many(*["a"] * 1000)
    await world.submit_many(*["b"] * 100)
    beside = await waits(world, agent, PLACES, "b", random.Random(1))
    assert median(beside) <= 2 * median(alone)
    assert max(beside) <= 2 * max(alone)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_runs_of_many_kinds_give_a_deployment_no_more_turns(world: World) -> None:
    """Ten lanes of one deployment, by the tags of its runs, count as one deployment."""
    from shunter_work_pools.contracts.limits import LimitSpec
    from shunter_work_pools.queue.limits import create_limit

    await world.pool()
    agent = await world.agent(limit=4)
    for name in ("many", "one"):
        await world.deploy(name, pool="main")
    for number in range(10):
        spec = LimitSpec(name=f"l{number}", tag=f"t{number}", max=100)
        await world.store.write(lambda tx, spec=spec: create_limit(tx, spec))
    for number in range(40):
        await world.submit("many", tags=[f"t{number % 10}"])
    await world.submit_many(*["one"] * 20)
    served: list[str] = []
    for _ in range(10):
        granted = await agent.claim(4)
        served += [one.deployment for one in granted]
        for one in granted:
            await agent.run_through(one)
    assert served.count("one") == 20
