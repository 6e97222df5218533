"""What an attempt needs before its launch is made ready by steps, before each try, in any life of the agent."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from shunter_agents.attempt import Attempt
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.launcher import LaunchFailed, NotReady, Prepared
from shunter_work_pools.contracts.states import Cause
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import Life, life
from tests.agents.test_launch_notes import notes

AWAY = "the code cannot be fetched: git.example does not answer"


class Steps:
    """Two steps; the second one does what the test wants."""

    def __init__(self, one: Life) -> None:
        self.taken: list[str] = []
        self.wrong: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.untimed = one.agent._supervisor.untimed
        one.agent._supervisor.preparing = (self.first, self.second)

    async def first(self, attempt: Attempt, prepared: Prepared) -> Prepared:
        self.taken.append("first")
        return dataclasses.replace(prepared, secrets={"A": "squeamish"})

    async def second(self, attempt: Attempt, prepared: Prepared) -> Prepared:
        self.taken.append("second")
        if self.wrong is not None:
            raise self.wrong
        if self.hold is not None:
            with self.untimed(attempt):
                await self.hold.wait()
        return dataclasses.replace(prepared, source=Path("/code"))


def name(key: Key) -> str:
    return f"{key[0]}.{key[1]}"


async def test_each_step_is_given_what_those_before_made_and_the_launcher_has_all(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        steps = Steps(one)
        key = server.add("unavailable=1")
        await server.ended(key)
        assert launcher.prepared[name(key)] == Prepared(secrets={"A": "squeamish"}, source=Path("/code"))
        assert steps.taken == ["first", "second"] * 2, "before each try"
        assert "squeamish" not in str(launcher.prepared), "values are not shown"


async def test_what_can_never_be_had_ends_the_attempt(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        steps = Steps(one)
        steps.wrong = LaunchFailed(Cause.REJECTED, "rule 7 forbids it", "Ask the owner.")
        key = server.add()
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert (end.cause, end.message) == (Cause.REJECTED, "rule 7 forbids it. Ask the owner.")
        assert launcher.prepared == {}


async def test_what_is_away_is_waited_for_and_told(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        steps = Steps(one)
        steps.wrong = NotReady(AWAY, cause=Cause.SOURCE)
        key = server.add("sleep=60")
        await server.until(lambda: AWAY in notes(server, key))
        steps.wrong = None
        await server.until(lambda: "Running" in server.leases[key].states)
        server.cancel(key)
        await server.ended(key)
        assert notes(server, key)[-1] == ""


async def test_what_stays_away_is_what_it_ends_by(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        Steps(one).wrong = NotReady(AWAY, cause=Cause.SOURCE)
        key = server.add(start_timeout=0.5)
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert (end.cause, end.message) == (Cause.SOURCE, AWAY)


async def test_work_that_has_a_limit_of_its_own_takes_nothing_of_the_time_to_start(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        steps = Steps(one)
        steps.hold = asyncio.Event()
        key = server.add(start_timeout=0.5)
        await server.until(lambda: "second" in steps.taken)
        await asyncio.sleep(0.8)  # the time to start has passed
        steps.hold.set()
        await server.ended(key)
        assert server.leases[key].states[-1] == "Completed"


async def test_cancelled_meanwhile_it_ends_at_once(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        steps = Steps(one)
        steps.hold = asyncio.Event()
        key = server.add()
        await server.until(lambda: "second" in steps.taken)
        server.cancel(key)
        await server.ended(key)
        assert server.leases[key].states[-1] == "Cancelled"
        assert launcher.prepared == {}


async def test_a_later_life_makes_it_ready_again(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        steps = Steps(one)
        steps.hold = asyncio.Event()
        key = server.add()
        await server.until(lambda: "second" in steps.taken)
        await one.die()
    async with life(server, tmp_path, launcher) as two:
        again = Steps(two)
        await server.ended(key)
        assert again.taken == ["first", "second"]
        assert server.leases[key].states[-1] == "Completed"
