"""The command: agents that end by themselves, and signals, with real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)
SHUNTER = str(Path(sys.executable).with_name("shunter"))


@pytest.fixture
def started(here: Site) -> Iterator[Start]:
    """Starts agents by the command line, each in a pool of its name, with a deployment of that name."""
    one = Start(here)
    yield one
    for process in one.processes:
        process.kill()
        process.wait()


class Start:
    def __init__(self, here: Site) -> None:
        self.here = here
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(
        self, name: str, script: str, *flags: str, runs: int = 1
    ) -> tuple[subprocess.Popen[bytes], list[str]]:
        self.here.client.create_pool(PoolSpec(name=name))
        work = Work(command=["sh", "-c", script], grace=0.5)
        self.here.client.deploy(name, DeploymentSpec(work=work, pool=name))
        made = [str(self.here.client.create_run(RunRequest(deployment=name)).id) for _ in range(runs)]
        return self.again(name, *flags), made

    def again(self, name: str, *flags: str) -> subprocess.Popen[bytes]:
        words = [SHUNTER, "agent", "start", "--pool", name, "--name", name, *flags]
        with (self.here.home / f"{name}.log").open("ab") as log:
            self.processes.append(subprocess.Popen(words, env=self.here.env, stdout=log, stderr=log))
        return self.processes[-1]

    def running(self, run: str) -> None:
        while self.here.client.get_run(run).state != "Running":
            self.here.client.get_run(run, wait=1.0)


def test_once(here: Site, started: Start) -> None:
    agent, runs = started("once", "echo hello; sleep 0.3", "--once", runs=3)
    assert agent.wait(SOON) == 0, here.log("once")
    ends = [here.client.get_run(run) for run in runs]
    assert sorted(end.state for end in ends) == ["Completed", "Scheduled", "Scheduled"]
    (done,) = [str(end.id) for end in ends if end.state == "Completed"]
    assert here.output(done) == b"hello\n"
    assert here.attempts("once") == []


def test_until_idle(here: Site, started: Start) -> None:
    agent, runs = started("idle-end", "sleep 0.2", "--until-idle", "--limit", "2", runs=5)
    assert agent.wait(SOON) == 0, here.log("idle-end")
    assert [here.client.get_run(run).state for run in runs] == ["Completed"] * 5


def test_max_lifetime(here: Site, started: Start) -> None:
    agent, runs = started("brief", "sleep 3", "--max-lifetime", "1500ms")
    assert agent.wait(SOON) == 0, here.log("brief")
    assert here.client.get_run(runs[0]).state == "Completed"
    assert here.client.get_agent("brief").draining


def test_the_end_of_the_grace_leaves_runs(here: Site, started: Start) -> None:
    agent, runs = started("leaves", "echo a; sleep 4; echo b; exit 3", "--drain-grace", "500ms")
    started.running(runs[0])
    pid = here.client.get_run(runs[0]).attempts[0].pid
    agent.terminate()
    assert agent.wait(SOON) == 0, here.log("leaves")
    assert pid is not None
    assert psutil.pid_exists(pid)
    started.again("leaves")
    ended = here.ended(runs[0])
    assert (ended.state, ended.attempts[0].exit_code, ended.attempt_count) == ("Failed", 3, 1)
    assert here.output(runs[0]) == b"a\nb\n"


def test_the_end_of_the_grace_stops_runs(here: Site, started: Start) -> None:
    agent, runs = started(
        "stops", "trap '' TERM; sleep 600 & wait; sleep 600", "--drain-grace", "500ms", "--drain-end", "stop"
    )
    started.running(runs[0])
    agent.terminate()
    assert agent.wait(SOON) == 0, here.log("stops")
    ended = here.client.get_run(runs[0])
    assert (ended.state, ended.cause) == ("Crashed", "evicted")
    assert ended.message == "its agent was told to stop, and did not wait longer"


def test_a_second_signal_cancels(here: Site, started: Start) -> None:
    agent, runs = started("twice-told", "sleep 600")
    started.running(runs[0])
    agent.terminate()
    while "draining" not in here.log("twice-told"):
        time.sleep(0.02)
    agent.send_signal(signal.SIGINT)
    assert agent.wait(SOON) == 0, here.log("twice-told")
    ended = here.client.get_run(runs[0])
    assert (ended.state, ended.cause) == ("Cancelled", "cancelled")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-lifetime", "soon"], "--max-lifetime 'soon' is not a duration"),
        (["--max-lifetime", "0"], "--max-lifetime '0' is zero"),
        (["--drain-end", "explode"], "explode"),
        (["--drain-grace", "-5s"], "--drain-grace"),
        (["--min-disk", "much"], "is not a size"),
        (["--health-every", "10ms"], "--health-every"),
    ],
)
def test_wrong_flags_are_told(here: Site, flags: list[str], words: str) -> None:
    told = subprocess.run(
        [SHUNTER, "agent", "start", "--pool", "p", *flags],
        env=here.env,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert told.returncode == 2
    assert words in told.stderr
    assert not (here.home / "agents" / "p").exists()


def test_what_is_wrong_is_told_to_the_server_and_every_flag_reaches_the_agent(
    here: Site, started: Start
) -> None:
    flags = ["--min-disk", "1000TiB", "--min-memory", "1000TiB", "--health-every", "1s"]
    flags += ["--health-check", "echo the printer is on fire; exit 1", "--spool-limit", "1GiB"]
    started("unwell", "true", *flags)
    wanted = ["(agent.min_disk)", "(agent.min_memory)", "the printer is on fire"]
    deadline = time.monotonic() + SOON
    while True:
        agents = {agent.name: agent for agent in here.client.list_agents().agents}
        troubles = agents["unwell"].troubles if "unwell" in agents else []
        if all(any(words in trouble for trouble in troubles) for words in wanted):
            break
        assert time.monotonic() < deadline, troubles
        time.sleep(0.1)
    assert here.client.list_runs(deployment="unwell").runs[0].state == "Scheduled"
