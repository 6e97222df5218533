"""What every launcher with shared handles must do when an attempt goes from one agent to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from shunter_infrastructure.launcher import Handle, Launcher
from shunter_work_pools.contracts.agents import Output
from tests.launchers.attempts import Attempt, Engine, ended, output, written
from tests.launchers.conftest import shared_engine
from tests.patience import SOON

Attempts = Callable[..., Attempt]


@pytest.fixture(params=["fake"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """Each engine whose work several agents reach."""
    return shared_engine(tmp_path)


@pytest_asyncio.fixture
async def agents(engine: Engine) -> AsyncIterator[tuple[Launcher, Launcher]]:
    """The launchers of two agents."""
    both = engine.launcher(), engine.launcher()
    yield both
    for launcher in both:
        await launcher.close()


def with_another(attempt: Attempt, tmp_path: Path, *, started: bool = True) -> Attempt:
    """The same attempt as another agent gets it: under the next epoch, with nothing in its folder."""
    root = tmp_path / f"agent-of-epoch-{attempt.assignment.epoch + 1}"
    root.mkdir()
    told = {"epoch": attempt.assignment.epoch + 1, "handed_over": Output(size=0, started=started)}
    return Attempt(attempt.assignment.model_copy(update=told), root)


async def found(attempt: Attempt, launcher: Launcher) -> Handle:
    handle = await attempt.recover(launcher)
    assert handle is not None
    return handle


async def test_both_say_the_same_of_where_it_is(agents: tuple[Launcher, Launcher], engine: Engine) -> None:
    one, other = agents
    assert one.capabilities.shared_handles
    reach = await one.reach(engine.template)
    assert reach
    assert await other.reach(engine.template) == reach


async def test_another_finds_what_runs(
    agents: tuple[Launcher, Launcher], engine: Engine, attempts: Attempts, tmp_path: Path
) -> None:
    first, second = agents
    attempt = attempts(engine.command(output="alive\n", sleep=1, exit=3))
    await attempt.start(first)
    taken = with_another(attempt, tmp_path)
    again = await found(taken, second)
    assert await written(second, again, b"alive") == b"alive\n"
    assert await taken.start(second) == again, "it is found by start as well, and not begun anew"
    await first.let_go(attempt.assignment, attempt.folder)
    end = await ended(second, again)
    assert (end.exit_code, end.log_size) == (3, 6)
    assert await output(second, again) == b"alive\n"
    await second.cleanup(again)


async def test_another_finds_what_has_ended(
    agents: tuple[Launcher, Launcher], engine: Engine, attempts: Attempts, tmp_path: Path
) -> None:
    first, second = agents
    attempt = attempts(engine.command(output="all of it\n", exit=5))
    await ended(first, await attempt.start(first))
    again = await found(with_another(attempt, tmp_path), second)
    assert (await ended(second, again)).exit_code == 5
    assert await output(second, again) == b"all of it\n"
    await second.cleanup(again)


async def test_the_old_one_touches_it_no_more(
    agents: tuple[Launcher, Launcher], engine: Engine, attempts: Attempts, tmp_path: Path
) -> None:
    """Whatever it was about to do when it was cut off."""
    first, second = agents
    attempt = attempts(engine.command(hang=True))
    handle = await attempt.start(first)
    again = await found(with_another(attempt, tmp_path), second)
    await first.stop(handle, 0)
    await first.cleanup(handle)
    waiting = asyncio.ensure_future(second.wait(again))
    await asyncio.wait({waiting}, timeout=0.3)
    assert not waiting.done()
    await second.stop(again, 0)
    assert (await asyncio.wait_for(waiting, SOON)).signal in ("SIGTERM", "SIGKILL")
    await second.cleanup(again)


async def test_one_that_has_not_begun_is_begun_or_withdrawn(
    agents: tuple[Launcher, Launcher], engine: Engine, attempts: Attempts, tmp_path: Path
) -> None:
    first, second = agents
    attempt = attempts(engine.command(exit=0))
    taken = with_another(attempt, tmp_path, started=False)
    assert await taken.recover(second) is None
    assert await second.recover(taken.assignment, taken.folder, withdraw=True) is None
    assert (await ended(second, await taken.start(second))).exit_code == 0
    assert await attempt.recover(first) is not None, "who had it before sees it, too"


async def test_what_the_engine_was_asked_for_is_known_to_both(
    agents: tuple[Launcher, Launcher], engine: Engine, attempts: Attempts, tmp_path: Path
) -> None:
    """The old one may have died before it could tell."""
    first, second = agents
    attempt = attempts(engine.command(exit=0))
    await ended(first, await attempt.start(first))
    assert first.manifest(attempt.folder)
    taken = with_another(attempt, tmp_path)
    handle = await found(taken, second)
    assert second.manifest(taken.folder)
    await second.cleanup(handle)
