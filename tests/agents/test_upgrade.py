"""An agent of the version before is replaced by this one while its runs are live; and goes on serving."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from shunter_work_pools.client import Client
from shunter_work_pools.contracts import SERVED_PROTOCOLS
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import ProtocolMismatch, ServerUnreachable
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)

#: The last commit whose agent spoke protocol 2.
BEFORE = "69d59318a8f017321a213f8904fdc8ad948b5464"
ROOTS = ("agents", "infrastructure", "work_pools", "flows")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH of the version before."""
    folder = tmp_path_factory.mktemp("former")
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", BEFORE, *ROOTS], check=False, capture_output=True
    )
    assert archive.returncode == 0, (
        f"commit {BEFORE}, the last one of protocol 2, is not in the history of this clone "
        f"({archive.stderr.decode().strip()}); a shallow clone is completed by `git fetch --unshallow`"
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return ":".join(str(folder / root) for root in ROOTS)


def _old_agent(here: Site, name: str, former: str) -> subprocess.Popen[bytes]:
    known = subprocess.run(
        [sys.executable, "-c", "from shunter_work_pools.contracts import PROTOCOL as p; print(p)"],
        env=here.env | {"PYTHONPATH": former},
        check=True,
        capture_output=True,
        text=True,
    )
    assert known.stdout.split() == [str(min(SERVED_PROTOCOLS))], "this is not the version before"
    return here.start_agent(name, pool=name, env={"PYTHONPATH": former})


def test_runs_of_the_version_before_are_taken_over(here: Site, tmp_path: Path, former: str) -> None:
    name, go, effects = "upgrade", tmp_path / "go", tmp_path / "effects"
    here.client.create_pool(PoolSpec(name=name))
    module = tmp_path / "work.py"
    module.write_text(
        "import os, time\n"
        f"def main(x: int) -> int:\n    print('begun', flush=True)\n    while not os.path.exists({str(go)!r}):\n"
        "        time.sleep(0.05)\n    print('done')\n    return x + 1\n"
    )
    script = (
        f"echo $SHUNTER_RUN_ID >> {effects}; seq 3000; while [ ! -e {go} ]; do sleep 0.05; done; echo done; "
    )
    works = {
        "exits": Work(command=["sh", "-c", script + "exit 7"]),
        "killed": Work(command=["sh", "-c", script + "kill -KILL $$"]),
        "function": Work(entrypoint=f"{module}:main"),
        "cancelled": Work(command=["sh", "-c", "echo here; sleep 600 & wait"], grace=1.0),
    }
    for deployment, work in works.items():
        here.client.deploy(f"{name}-{deployment}", DeploymentSpec(work=work, pool=name))
    old = _old_agent(here, name, former)
    try:
        runs = {
            deployment: str(
                here.client.create_run(
                    RunRequest(
                        deployment=f"{name}-{deployment}",
                        parameters={"x": 41} if deployment == "function" else {},
                    )
                ).id
            )
            for deployment in works
        }
        for run in runs.values():
            while here.client.get_run(run).state != "Running":
                here.client.get_run(run, wait=1.0)
        assert here.client.get_agent(name).version
        pids = {name: here.client.get_run(run).attempts[0].pid for name, run in runs.items()}
        born = {pid: psutil.Process(pid).create_time() for pid in pids.values() if pid is not None}
        assert len(born) == len(works)
    finally:
        old.kill()
        old.wait()

    with here.agent(name, "--capacity", "gpu=1", pool=name):
        while here.log(name).count("a run goes on") < len(works):
            assert here.client.get_run(runs["exits"]).ended_at is None
        # What it took over has no devices in its journal, and holds none.
        spec = DeploymentSpec(work=Work(command=["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]), pool=name)
        here.client.deploy(f"{name}-new", spec.model_copy(update={"need": {"gpu": 1.0}}))
        new = here.client.create_run(RunRequest(deployment=f"{name}-new")).id
        assert here.ended(new).state == "Completed"
        assert here.output(new) == b"0\n"
        assert {pid: psutil.Process(pid).create_time() for pid in born} == born, "the same processes"
        here.client.cancel_run(runs["cancelled"])
        go.touch()
        ends = {deployment: here.ended(run) for deployment, run in runs.items()}
        assert (ends["exits"].state, ends["exits"].attempts[0].exit_code) == ("Failed", 7)
        assert (ends["killed"].state, ends["killed"].attempts[0].signal) == ("Crashed", "SIGKILL")
        assert (ends["function"].state, ends["function"].result) == ("Completed", 42)
        assert ends["cancelled"].state == "Cancelled"
        assert all(end.attempt_count == 1 for end in ends.values())
        lines = "".join(f"{number}\n" for number in range(1, 3001)).encode()
        assert here.output(runs["exits"]) == lines + b"done\n"
        assert here.output(runs["killed"]) == lines + b"done\n"
        assert here.output(runs["function"]) == b"begun\ndone\n"
        assert here.output(runs["cancelled"]) == b"here\n"
        assert sorted(effects.read_text().split()) == sorted([runs["exits"], runs["killed"]])
    assert here.attempts(name) == []
    assert here.left_over() == []


def test_an_agent_of_the_version_before_is_served(here: Site, former: str) -> None:
    name = "former"
    here.client.create_pool(PoolSpec(name=name))
    work = Work(command=["sh", "-c", "echo hello; sleep 0.2; exit 3"])
    here.client.deploy(name, DeploymentSpec(work=work, pool=name))
    old = _old_agent(here, name, former)
    try:
        runs = [here.client.create_run(RunRequest(deployment=name)).id for _ in range(3)]
        for run in runs:
            ended = here.ended(run)
            assert (ended.state, ended.attempts[0].exit_code) == ("Failed", 3), here.log(name)
            assert here.output(run) == b"hello\n"
        assert here.client.get_agent(name).troubles == []
        old.terminate()
        assert old.wait(SOON) == 0, here.log(name)
    finally:
        old.kill()
        old.wait()
    assert here.left_over() == []


def test_a_server_of_the_version_before_is_told_apart(here: Site, tmp_path: Path, former: str) -> None:
    """It does not serve this agent: that is said at once, and how to mend it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    env = here.env | {"SHUNTER_HOME": str(tmp_path / "home"), "SHUNTER_API_URL": url}
    serve = f"from shunter_work_pools.server import serve; serve({{'server.port': '{port}'}})"
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", serve], env=env | {"PYTHONPATH": former}, stdout=log, stderr=log
        )
    try:
        with Client(url, here.env["SHUNTER_TOKEN"]) as client:
            while server.poll() is None:
                try:
                    client.ready()
                except ServerUnreachable:
                    time.sleep(0.05)
                except ProtocolMismatch:
                    break
        words = [sys.executable, "-m", "shunter_agents", "--pool", "default", "--name", "new"]
        agent = subprocess.run(words, env=env, capture_output=True, text=True, timeout=30, check=False)
    finally:
        server.terminate()
        server.wait(20)
    assert agent.returncode == 2
    old, new = min(SERVED_PROTOCOLS), max(SERVED_PROTOCOLS)
    assert f"speaks protocol {old}, this client speaks {new}" in agent.stderr
    assert "Install the version of shunter that the server runs." in agent.stderr
    assert "Traceback" not in agent.stderr
