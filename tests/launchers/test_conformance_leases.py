"""What every launcher that keeps leases must do, run against each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shunter_infrastructure.launcher import Launcher, LauncherUnavailable
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import Attempt, Engine, FakeEngine, ProcessEngine, ended, lease, written

Attempts = Callable[..., Attempt]
NewLauncher = Callable[[], Launcher]


@pytest.fixture(params=[FakeEngine, ProcessEngine], ids=lambda kind: kind.name)
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engines whose launchers keep leases."""
    made: Engine = request.param()
    return made


async def test_an_exclusive_attempt_starts_with_a_lease(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command())
    attempt.assignment = attempt.assignment.model_copy(update={"exclusive": True})
    handle = await attempt.start(launcher, lease(60, 60))
    assert (await ended(launcher, handle)).error is None


async def test_a_lease_that_ends_ends_the_attempt(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    assert launcher.capabilities.keeps_lease
    await launcher.check()
    until = lease(1.0, 60)
    handle = await attempts(engine.command(output="up", hang=True)).start(launcher, until)
    found = await ended(launcher, handle)
    assert (found.error, found.signal) == (Cause.AGENT_LOST, "SIGTERM")
    assert until.ask_at <= found.ended.ticks < until.ask_at + 5
    assert found.message is not None
    assert "lease" in found.message


async def test_what_ignores_the_end_of_its_lease_is_killed(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    await launcher.check()
    until = lease(1.0, 1.2)
    handle = await attempts(engine.command(output="up", hang=True, ignore_term=True)).start(launcher, until)
    found = await ended(launcher, handle)
    assert (found.error, found.signal) == (Cause.AGENT_LOST, "SIGKILL")
    assert until.kill_at <= found.ended.ticks < until.kill_at + 5


async def test_a_lease_is_kept_while_no_launcher_is_there(
    new_launcher: NewLauncher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command(output="up", hang=True))
    first = new_launcher()
    await first.check()
    until = lease(1.0, 1.2)
    await attempt.start(first, until)
    await first.close()
    await asyncio.sleep(until.kill_at + 1 - Stamp.now().ticks)  # the time of the promise itself
    second = new_launcher()
    handle = await attempt.recover(second)
    assert handle is not None
    found = await ended(second, handle)
    assert found.error is Cause.AGENT_LOST
    assert found.ended.ticks < until.kill_at + 0.5


async def test_a_lease_is_moved_again_and_again(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    await launcher.check()
    handle = await attempts(engine.command(output="up", sleep=2, exit=3)).start(launcher, lease(1.2, 1.2))
    waiting = asyncio.create_task(ended(launcher, handle))
    while not waiting.done():
        await launcher.hold(handle, lease(1.2, 1.2))
        await asyncio.sleep(0.05)
    assert ((await waiting).exit_code, (await waiting).error) == (3, None)
    await launcher.hold(handle, lease(60, 60))  # after the end: nothing happens
    assert (await ended(launcher, handle)).exit_code == 3


async def test_starting_again_moves_the_lease(
    new_launcher: NewLauncher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command(output="up", sleep=1.6, exit=3))
    first = new_launcher()
    await first.check()
    handle = await attempt.start(first, lease(1.2, 1.2))
    await first.close()
    second = new_launcher()
    assert await attempt.start(second, lease(60, 60)) == handle
    assert (await ended(second, handle)).exit_code == 3


async def test_what_was_asked_to_end_ends(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    await launcher.check()
    until = lease(1.0, 1.8)
    handle = await attempts(engine.command(output="up", hang=True, ignore_term=True)).start(launcher, until)
    await asyncio.sleep(until.ask_at + 0.3 - Stamp.now().ticks)
    await launcher.hold(handle, lease(60, 60))
    found = await ended(launcher, handle)
    assert (found.error, found.signal) == (Cause.AGENT_LOST, "SIGKILL")


async def test_what_was_stopped_before_its_lease_ended_was_stopped(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    await launcher.check()
    until = lease(1.0, 1.2)
    handle = await attempts(engine.command(output="up", hang=True, ignore_term=True)).start(launcher, until)
    await written(launcher, handle, b"up")
    await launcher.stop(handle, 60)
    found = await ended(launcher, handle)  # the lease ends it all the same
    assert (found.error, found.signal) == (None, "SIGKILL")


async def test_a_lease_that_has_ended_starts_nothing(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command(exit=4))
    with pytest.raises(LauncherUnavailable, match="lease"):
        await attempt.start(launcher, lease(-1, 60))
    assert await attempt.recover(launcher) is None
    handle = await attempt.start(launcher, lease(60, 60))
    assert (await ended(launcher, handle)).exit_code == 4


async def test_what_was_started_without_a_lease_cannot_be_held_to_one(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    handle = await attempts(engine.command(hang=True)).start(launcher)
    with pytest.raises(ValueError, match="without a lease"):
        await launcher.hold(handle, lease(60, 60))
    await launcher.stop(handle, 0)
    await ended(launcher, handle)


def test_a_lease_asks_before_it_kills() -> None:
    with pytest.raises(ValueError, match="cannot kill"):
        lease(2, 1)
