"""The agent with the real server and process launcher: servers that die, runs that are cancelled."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunBatch, RunRequest
from tests.agents.real_server import Site
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)


def deploy(here: Site, name: str, script: str, **work: object) -> None:
    command = Work(command=["sh", "-c", script], **work)
    here.client.deploy(name, DeploymentSpec(work=command, pool="default"))


def test_a_server_killed_again_and_again_costs_no_run(here: Site, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    deploy(here, "storm", f"echo $SHUNTER_RUN_ID >> {effects}; echo one; sleep 0.$(($$ % 10)); echo two")
    with here.agent("storm", limit=16):
        runs = []
        for _ in range(3):
            batch = RunBatch(runs=[RunRequest(deployment="storm")] * 20)
            runs += [made.id for made in here.client.create_runs(batch).runs]
            time.sleep(0.3)
            here.server.send_signal(signal.SIGKILL)
            here.server.wait()
            here.start_server()
        for run in runs:
            ended = here.ended(run, 60)
            assert ended.state == "Completed", here.log("storm")
            assert ended.attempt_count == 1
            assert here.output(run) == b"one\ntwo\n"
    assert sorted(effects.read_text().split()) == sorted(str(run) for run in runs)
    assert here.attempts("storm") == []
    assert here.log("storm").count("the server is away") <= 8
    assert '"error"' not in here.log("storm")
    assert here.left_over() == []


def test_a_broken_lease_on_a_file_does_not_end_the_agent(here: Site) -> None:
    deploy(here, "after", "echo hello")
    with here.agent("leases") as process:
        process.send_signal(signal.SIGIO)
        assert here.ended(here.client.create_run(RunRequest(deployment="after")).id).state == "Completed"
        assert process.poll() is None


def test_a_cancelled_run_is_gone_with_all_its_tree(here: Site, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    deploy(here, "stubborn", f"trap '' TERM; sleep 600 & echo $! $$ > {pids}; wait; sleep 600", grace=0.3)
    with here.agent("stubborn"):
        run = here.client.create_run(RunRequest(deployment="stubborn")).id
        while not (pids.exists() and pids.read_text().strip()):
            time.sleep(0.02)
        here.client.cancel_run(str(run))
        ended = here.ended(run)
        assert (ended.state, ended.cause) == ("Cancelled", "cancelled")
        assert not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split())


def test_a_command_that_does_not_exist_says_so(here: Site) -> None:
    here.client.deploy("missing", DeploymentSpec(work=Work(command=["no-such-command"]), pool="default"))
    with here.agent("missing"):
        ended = here.ended(here.client.create_run(RunRequest(deployment="missing")).id)
        assert ended.state == "Crashed"
        assert ended.message is not None
        assert "no-such-command" in ended.message


def test_a_second_agent_of_the_name_is_refused(here: Site) -> None:
    with here.agent("double"):
        second = here.start_agent("double")
        assert second.wait(SOON) == 2
        assert "is running already" in here.log("double")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"SHUNTER_TOKEN": "wrong"}, "token"),
        ({"SHUNTER_HOME": "/proc/nothing"}, "cannot be written"),
        ({"SHUNTER_LOG_FORMAT": "xml"}, "neither console nor json"),
    ],
)
def test_what_keeps_an_agent_from_starting_is_told(here: Site, changes: dict[str, str], told: str) -> None:
    name = f"bad-{next(iter(changes)).lower().replace('_', '-')}"
    known = dict(here.env)
    here.env.update(changes)
    try:
        assert here.start_agent(name).wait(SOON) == 2
    finally:
        here.env.clear()
        here.env.update(known)
    last = here.log(name).strip().splitlines()[-1]
    assert last.startswith("shunter agent: ")
    assert told in last


def test_an_idle_agent_is_small(here: Site) -> None:
    with here.agent("idle") as agent:
        process = psutil.Process(agent.pid)
        ended = here.ended(_one(here))
        assert ended.state == "Completed"
        before = process.cpu_times()
        time.sleep(4)
        after = process.cpu_times()
        busy = (after.user + after.system - before.user - before.system) / 4
        size = process.memory_info().rss
        print(f"idle agent: {size / 1e6:.1f} MB, {busy:.2%} CPU")
        assert size <= 50 * 1024 * 1024
        assert busy <= 0.01  # the clock ticks are coarse; measured properly by the benchmarks
        assert os.path.exists(here.home / "agents" / "idle")


def _one(here: Site) -> object:
    deploy(here, "one", "true")
    return here.client.create_run(RunRequest(deployment="one")).id


def test_runs_one_after_another_share_one_folder(here: Site) -> None:
    deploy(here, "serial", "echo $SHUNTER_RUN_ID; stat -c %i ../journal.jsonl")
    with here.agent("serial"):
        inodes = set()
        for _ in range(4):
            run = here.client.create_run(RunRequest(deployment="serial")).id
            assert here.ended(run).state == "Completed"
            said, inode = here.output(run).decode().split()
            assert said == str(run)
            inodes.add(inode)
            deadline = time.monotonic() + SOON
            while here.attempts("serial"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert len(inodes) == 1
