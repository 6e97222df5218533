"""An agent that is told to stop, of work that others reach as well: these go on with it, at once, whoever dies meanwhile.

One start, one end, every byte of output once; and nobody waits for anybody's silence.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shunter_agents.killpoints import LEAVE_POINTS
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site
from tests.agents.test_handover import LINES, check, deploy, engine, holder, kill, until
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)

__all__ = ["engine"]

#: What the agents of a cluster are started with.
AT_ONCE = ("--drain-grace", "0s")


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that would find agents lost after half a minute, which is longer than anything here takes."""
    with site(tmp_path_factory.mktemp("leaving")) as one:
        yield one


@contextlib.contextmanager
def some(*agents: subprocess.Popen[bytes]) -> Iterator[None]:
    """Agents that are killed at the end."""
    try:
        yield
    finally:
        kill(*agents)


def in_state(here: Site, state: str, *runs: UUID) -> None:
    until(lambda: all(here.client.get_run(str(run)).state == state for run in runs))


def kinds(here: Site, run: UUID) -> list[str]:
    return [event.kind for event in here.client.list_events(str(run)).events]


def ends_soon(here: Site, name: str, process: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    assert process.wait(SOON) == 0, here.log(name)
    assert time.monotonic() - began < 10


def test_twenty_runs_are_another_ones_before_the_agent_is_gone(patient: Site, engine: Path) -> None:
    """Also of one that is full: as in a rolling update, whose new agents have taken what waits before the old ones go."""
    here = patient
    here.client.create_pool(PoolSpec(name="swap"))
    work = Work(command=["fake", f"lines={LINES}", "sleep=15"])
    here.client.deploy("swap", DeploymentSpec(work=work, pool="swap"))
    old, new = (
        here.start_agent(name, *AT_ONCE, pool="swap", limit=20, engine=engine)
        for name in ("swap-1", "swap-2")
    )
    with some(old, new):
        until(lambda: len(here.client.get_pool("swap").agents) == 2)
        runs = [here.client.create_run(RunRequest(deployment="swap")).id for _ in range(40)]
        in_state(here, "Running", *runs)
        had = {run: holder(here, run)[0] for run in runs}
        assert sorted(had.values()) == ["swap-1"] * 20 + ["swap-2"] * 20
        old.send_signal(signal.SIGTERM)
        ends_soon(here, "swap-1", old)
        assert {holder(here, run) for run in runs} == {("swap-2", 1), ("swap-2", 2)}, "before it had ended"
        for run in runs:
            was_left = had[run] == "swap-1"
            check(here, engine, run, "swap-2", epoch=2 if was_left else 1)
            assert ("left" in kinds(here, run), "lost" in kinds(here, run)) == (was_left, False)
        until(lambda: not here.attempts("swap-2"))
        assert [path.name for path in engine.iterdir()] == ["starts"]


def test_the_next_one_takes_what_was_left_when_nobody_was_there(patient: Site, engine: Path) -> None:
    """Also what had not begun: the one that goes was launching it, or fetching its code."""
    here = patient
    runs = {name: deploy(here, f"alone-{name}", *words) for name, words in BEGUN.items()}
    pools = [word for name in runs for word in ("--pool", f"alone-{name}")]
    old = here.start_agent("alone-1", *AT_ONCE, *pools, pool="default", engine=engine)
    with some(old):
        in_state(here, "Running", runs["running"])
        in_state(here, "Starting", runs["starting"])
        old.send_signal(signal.SIGTERM)
        ends_soon(here, "alone-1", old)
    told = here.client.explain_run(str(runs["running"])).sentence
    assert "agent alone-1 was told to stop and has left it" in told.lower()
    new = here.start_agent("alone-2", *AT_ONCE, *pools, pool="default", engine=engine)
    with some(new):
        until(lambda: "agent starts" in here.log("alone-2"))
        began = time.monotonic()
        until(lambda: {holder(here, run) for run in runs.values()} == {("alone-2", 2)}, 10)
        assert time.monotonic() - began < 8
        for run in runs.values():
            check(here, engine, run, "alone-2")
            assert "lost" not in kinds(here, run)


BEGUN = {"running": ("sleep=10",), "starting": ("start_delay=6", "sleep=1")}


def test_its_own_next_life_goes_on_with_it(patient: Site, engine: Path) -> None:
    """A container that is started anew in the same pod: the folder is there, and nobody else is."""
    here = patient
    run = deploy(here, "same", "sleep=8")
    for life in range(2):
        agent = here.start_agent("same", *AT_ONCE, pool="same", engine=engine)
        with some(agent):
            in_state(here, "Running", run)
            until(lambda: "a run goes on" in here.log("same") or "a run has started" in here.log("same"))
            if life == 0:
                agent.send_signal(signal.SIGTERM)
                ends_soon(here, "same", agent)
            else:
                check(here, engine, run, "same", epoch=1)
                assert not here.client.get_run(str(run)).lost


def test_what_has_ended_is_delivered_by_who_saw_it(patient: Site, engine: Path) -> None:
    """Its end is with the server or on the way there: nobody else could tell of it, or clear away what is left."""
    here = patient
    run = deploy(here, "ended", "sleep=2")
    old = here.start_agent("ended-1", *AT_ONCE, pool="ended", engine=engine)
    with some(old):
        in_state(here, "Completed", run)
        old.send_signal(signal.SIGTERM)
        ends_soon(here, "ended-1", old)
    check(here, engine, run, "ended-1", epoch=1)
    assert not (engine / f"{run}.1.json").exists()


@pytest.mark.parametrize("dies", [*LEAVE_POINTS, "server"])
def test_who_is_killed_at_a_step_of_it_loses_nothing(patient: Site, engine: Path, dies: str) -> None:
    """The agent, when it follows no more and nobody was told, or everybody was; or the server that wrote it down."""
    here = patient
    name = f"dies-{dies}"
    run = deploy(here, name, "sleep=12")
    if dies == "server":
        kill(here.server)
        here.start_server(kill_at="after-leave-committed")
    at = None if dies == "server" else dies
    old = here.start_agent(f"{name}-1", *AT_ONCE, pool=name, engine=engine, kill_at=at)
    with some(old):
        in_state(here, "Running", run)
        if dies != "after-work-left":
            new = here.start_agent(f"{name}-2", *AT_ONCE, pool=name, engine=engine)
            until(lambda: f"{name}-2" in here.client.get_pool(name).agents)
        old.send_signal(signal.SIGTERM)
        if dies == "server":
            assert here.server.wait(SOON) == -signal.SIGKILL
            here.start_server()
            ends_soon(here, f"{name}-1", old)
        else:
            assert old.wait(SOON) == -signal.SIGKILL
        if dies == "after-work-left":  # nobody was told: its next life goes on with it
            new = here.start_agent(f"{name}-1", *AT_ONCE, pool=name, engine=engine)
        with some(new):
            by, epoch = (f"{name}-1", 1) if dies == "after-work-left" else (f"{name}-2", 2)
            check(here, engine, run, by, epoch)
            assert "lost" not in kinds(here, run)


def test_a_run_that_is_all_that_it_is_there_for_is_not_left(patient: Site, engine: Path) -> None:
    """``--once``: it drains from the moment in which it has it; it is told to stop by a signal alone."""
    here = patient
    run = deploy(here, "once", "sleep=3")
    agent = here.start_agent("once", *AT_ONCE, "--once", pool="once", engine=engine)
    with some(agent):
        assert agent.wait(SOON) == 0
        check(here, engine, run, "once", epoch=1)
    run = here.client.create_run(RunRequest(deployment="once")).id
    agent = here.start_agent("once", *AT_ONCE, "--once", pool="once", engine=engine)
    with some(agent):
        in_state(here, "Running", run)
        agent.send_signal(signal.SIGTERM)
        ends_soon(here, "once", agent)
        assert "left" in kinds(here, run)
        assert here.client.get_run(str(run)).state == "Running"
