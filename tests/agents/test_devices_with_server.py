"""Devices with a real server and real agents: chosen, kept through kill -9 at each step, never given twice."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)

#: Those that a taking passes, and those behind it at which its device is still, or no more, its own.
POINTS = (
    "after-sync-answer",
    "after-folder-made",
    "after-assignment-written",
    "after-starting-journaled",
    "after-launch-requested",
    "after-started",
    "after-running-reported",
    "after-end-journaled",
    "after-end-reported",
    "after-folder-renamed",
)
#: It says what it was given, and that it is alone on each of its devices for as long as it runs.
_SCRIPT = """
set -e
mine=$(echo "$CUDA_VISIBLE_DEVICES" | tr , ' ')
for number in $mine; do mkdir {locks}/$number; done
trap 'for number in $mine; do rmdir {locks}/$number; done' EXIT
trap 'exit 1' TERM
echo "$CUDA_VISIBLE_DEVICES $SHUNTER_DEVICES"
while [ ! -e {go} ]; do sleep 0.02; done
"""


class Lab:
    """A pool, an agent with GPUs, and a deployment of runs that need one each and run until they may end."""

    def __init__(self, here: Site, name: str, folder: Path) -> None:
        self.here, self.name = here, name
        self.agents: list[subprocess.Popen[bytes]] = []
        self.locks, self.go = folder / "locks", folder / "go"
        self.locks.mkdir(parents=True)
        here.client.create_pool(PoolSpec(name=name))
        self.deploy("one", {"gpu": 1.0})

    def deploy(self, what: str, need: dict[str, float], **work: object) -> None:
        script = _SCRIPT.format(locks=self.locks, go=self.go)
        made = Work.model_validate({"command": ["sh", "-c", script], **work})
        self.here.client.deploy(f"{self.name}-{what}", DeploymentSpec(work=made, pool=self.name, need=need))

    def run(self, what: str = "one") -> str:
        return str(self.here.client.create_run(RunRequest(deployment=f"{self.name}-{what}")).id)

    def running(self, *runs: str) -> None:
        """Wait until they have said what they were given."""
        for run in runs:
            while (found := self.here.client.get_run(run)).state != "Running":
                assert found.ended_at is None, found
                self.here.client.get_run(run, wait=1.0, seen=(found.state, found.attempt_count))
            while not self.here.client.read_log(run, wait=1.0).data:
                assert self.here.client.get_run(run).ended_at is None

    def start(self, gpus: int = 2, *flags: str, kill_at: str | None = None) -> subprocess.Popen[bytes]:
        words = ("--capacity", f"gpu={gpus}", *flags)
        self.agents.append(self.here.start_agent(self.name, *words, pool=self.name, kill_at=kill_at))
        return self.agents[-1]

    def close(self) -> None:
        """End what a test that failed left behind."""
        self.go.touch()
        for agent in self.agents:
            agent.kill()
            agent.wait()

    def given(self, run: str) -> list[int]:
        """The devices that a run says it was given."""
        # Only its first line: a shell that is ended may say so.
        cuda, _, all_of_them = self.here.output(run).decode().split("\n")[0].partition(" ")
        numbers = [int(number) for number in cuda.split(",") if number]
        assert json.loads(all_of_them) == {"gpu": numbers}
        return numbers

    def in_use(self) -> list[int]:
        return sorted(int(path.name) for path in self.locks.iterdir())

    def free(self) -> float:
        return self.here.client.get_agent(self.name).free_capacity["gpu"]


@pytest.fixture
def one(here: Site, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    made = Lab(here, request.node.name.replace("_", "-"), tmp_path)
    with contextlib.closing(made):
        yield made


def ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    assert process.wait(SOON) == 0


def test_two_get_one_each_and_the_third_waits(here: Site, one: Lab) -> None:
    agent = one.start()
    first = one.run()
    one.running(first)
    assert one.free() == 1
    second = one.run()
    one.running(second)
    third = one.run()
    assert one.in_use() == [0, 1]
    assert one.free() == 0
    assert here.client.get_run(third, wait=1.0).state == "Scheduled"
    agent.kill()
    agent.wait()
    agent = one.start()
    while here.log(one.name).count("a run goes on") < 2:
        assert agent.poll() is None
    assert here.client.get_run(third, wait=1.0).state == "Scheduled"
    here.client.cancel_run(first)
    assert here.ended(first).state == "Cancelled"
    one.running(third)
    assert one.in_use() == [0, 1]
    one.go.touch()
    assert [here.ended(run).state for run in (second, third)] == ["Completed"] * 2
    assert [one.given(run) for run in (first, second, third)] == [[0], [1], [0]]
    ended(agent)
    assert here.left_over() == []


def test_an_agent_killed_while_it_takes_gives_no_device_twice(here: Site, tmp_path: Path) -> None:
    """At each step, side by side."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(5) as side_by_side:
        labs = {point: Lab(here, f"killed-{point}", tmp_path / point) for point in POINTS}
        for lab in labs.values():
            stack.enter_context(contextlib.closing(lab))
        done = {point: side_by_side.submit(_killed, lab, point) for point, lab in labs.items()}
    wrong = {point: failure for point, one in done.items() if (failure := one.exception()) is not None}
    assert not wrong
    assert here.left_over() == []


def _killed(one: Lab, point: str) -> None:
    """Killed at the second taking (or end): the third, of another life, gets what neither of the two has."""
    here = one.here
    agent = one.start(3, kill_at=f"{point}#2")
    if "end" in point or "renamed" in point:
        one.go.touch()
    runs = [one.run(), one.run()]
    assert agent.wait(SOON) == -signal.SIGKILL
    agent = one.start(3)
    runs += [one.run(), one.run()]
    if not one.go.exists():
        one.running(*runs[:3])
        assert one.in_use() == [0, 1, 2], "three at once on three"
        assert one.free() == 0
    one.go.touch()
    for run in runs:
        found = here.ended(run)
        assert (found.state, found.attempt_count) == ("Completed", 1), found
    given = [one.given(run) for run in runs]
    assert all(len(numbers) == 1 and numbers[0] in (0, 1, 2) for numbers in given), given
    assert one.in_use() == []
    ended(agent)
    assert here.attempts(one.name) == []


def test_what_a_run_is_told_of_devices(here: Site, one: Lab) -> None:
    one.go.touch()
    one.deploy("two", {"gpu": 2.0})
    one.deploy("none", {})
    one.deploy(
        "own", {}, env={"CUDA_VISIBLE_DEVICES": "7"}, command=["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    )
    one.deploy("forced", {"gpu": 1.0}, env={"CUDA_VISIBLE_DEVICES": "7"})
    one.deploy("passed", {}, pass_env=["CUDA_VISIBLE_DEVICES"])
    one.deploy(
        "blind", {}, command=["sh", "-c", 'echo "${CUDA_VISIBLE_DEVICES-unset} ${SHUNTER_DEVICES-unset}"']
    )
    with here.agent(one.name, "--capacity", "gpu=2", pool=one.name, env={"CUDA_VISIBLE_DEVICES": "4,5"}):
        runs = {what: one.run(what) for what in ("two", "none", "own", "forced", "passed", "blind")}
        assert {here.ended(run).state for run in runs.values()} == {"Completed"}
        output = {what: here.output(run).decode().strip("\n") for what, run in runs.items()}
    assert output["two"] == '4,5 {"gpu": [0, 1]}', "the agent itself sees those two"
    assert output["none"] == output["passed"] == ' {"gpu": []}'
    assert output["own"] == "7"
    assert output["forced"] == '4 {"gpu": [0]}'
    assert output["blind"] == ' {"gpu": []}'
    with here.agent(f"{one.name}-plain", pool=one.name):
        run = one.run("blind")
        assert here.ended(run).state == "Completed"
        assert here.output(run) == b"unset unset\n", "an agent that has none says nothing of them"


def test_a_smaller_machine_gives_back_what_does_not_fit_any_more(here: Site, one: Lab) -> None:
    """Granted to a life that died before it wrote it down; the next life has less than it needs."""
    one.deploy("two", {"gpu": 2.0})
    agent = one.start(2, kill_at="after-folder-made")
    run = one.run("two")
    assert agent.wait(SOON) == -signal.SIGKILL
    agent = one.start(1)
    while here.client.get_run(run).state != "Scheduled":
        here.client.get_run(run, wait=1.0)
    assert "a run that needs more than is free is given back" in here.log(one.name)
    small = one.run()
    one.running(small)
    assert one.in_use() == [0]
    one.go.touch()
    assert here.ended(small).state == "Completed"
    ended(agent)
    agent = one.start(2)
    assert here.ended(run).state == "Completed"
    assert one.given(run) == [0, 1]
    ended(agent)
