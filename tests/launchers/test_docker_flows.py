"""Flows in containers of a real Docker engine: who reads their journals is the server alone, to which they bring them.

What a task does beside its value (a line in FOLDER/ran) is counted: what completed is never done again.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import docker
import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import Run, RunRequest
from tests.agents.real_server import Site, site
from tests.engines.docker import IMAGE
from tests.networks.certificates import Authority
from tests.patience import SOON

pytestmark = pytest.mark.timeout(180)

TREE = Path(__file__).parents[2]
#: What ``mixed`` of ``a_flow.py`` has done when it waits.
BEFORE = Counter(["large1", "large2", "size", "size", "below", "3", "3", "4", "wait"])
COMPLETED = Counter(["large", "large", "size", "size", "square", "square", "below", "square"])


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory, docker_url: str) -> Iterator[Site]:
    """A server with a certificate of an authority of its own, and the docker pool ``boxes``, whose containers reach it, and
    have the packages of this tree."""
    mounts = [
        *(
            {"type": "bind", "source": str(TREE / room), "target": f"/lib/{room}", "read_only": True}
            for room in ("flows", "work_pools")
        ),
        {"type": "bind", "source": str(TREE / "tests/flows"), "target": "/code", "read_only": True},
    ]
    template = {
        "image": IMAGE,
        "networks": ["host"],
        "mounts": mounts,
        "env": {"PYTHONPATH": "/lib/flows:/lib/work_pools"},
    }
    folder = tmp_path_factory.mktemp("docker")
    with site(folder / "home", authority=Authority(folder, "own")) as one:
        one.env["DOCKER_HOST"] = docker_url
        one.client.create_pool(PoolSpec(name="boxes", type="docker", template=template))
        yield one


def deploy(boxes: Site, flow: str, folder: Path, variables: dict[str, Any] | None = None) -> None:
    """One of the flows of ``a_flow.py``, which leaves its traces in a folder; named after it."""
    work = Work(command=["python3", "/code/a_flow.py", flow, "/traces"], token=True)
    variables = mounted(boxes, folder) | (variables or {})
    spec = DeploymentSpec(work=work, pool="boxes", variables=variables)
    boxes.client.deploy(folder.name, spec)


def mounted(boxes: Site, folder: Path) -> dict[str, Any]:
    """Variables by which a container has a folder as ``/traces``."""
    mounts = boxes.client.get_pool("boxes").template["mounts"]
    return {"mounts": [*mounts, {"type": "bind", "source": str(folder), "target": "/traces"}]}


def begun(boxes: Site, folder: Path) -> UUID:
    """A run, once it waits for the test."""
    run = boxes.client.create_run(RunRequest(deployment=folder.name)).id
    until(lambda: (folder / "waiting").exists(), boxes, run)
    return run


def until(true: Any, boxes: Site, run: UUID) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, (boxes.client.get_run(str(run)), boxes.output(run))
        time.sleep(0.02)


def ran(folder: Path) -> Counter[str]:
    return Counter((folder / "ran").read_text().split("\n")[:-1])


def completed(boxes: Site, run: UUID) -> Counter[str]:
    return Counter(task.name for task in boxes.client.each_task(str(run), states=["Completed"]))


def containers(boxes: Site, run: UUID) -> list[str]:
    """Names of those of a run."""
    client = docker.APIClient(boxes.env["DOCKER_HOST"], timeout=60)
    try:
        found = client.containers(all=True, filters={"label": f"shunter.run={run}"})
        return [one["Names"][0].lstrip("/") for one in found]
    finally:
        client.close()


def kill(boxes: Site, run: UUID, *, remove: bool = False) -> None:
    """Kill -9 what runs of it; or have nothing left of it."""
    client = docker.APIClient(boxes.env["DOCKER_HOST"], timeout=60)
    try:
        (name,) = containers(boxes, run)
        if remove:
            client.remove_container(name, force=True)
        else:
            client.kill(name, "SIGKILL")
    finally:
        client.close()


def again(boxes: Site, run: UUID, name: str, folder: Path) -> Run:
    """The run, retried, once it has ended."""
    (folder / "good").touch()
    boxes.client.retry_run(str(run))
    ended = boxes.ended(run, 60)
    assert ended.state == "Completed", (boxes.output(run), boxes.log(name))
    return ended


def test_a_killed_flow_goes_on_at_another_agent(boxes: Site, tmp_path: Path) -> None:
    deploy(boxes, "mixed", tmp_path)
    with boxes.agent("killed", pool="boxes"):
        run = begun(boxes, tmp_path)
        until(lambda: completed(boxes, run) == COMPLETED, boxes, run)
        kill(boxes, run)
        ended = boxes.ended(run)
        assert (ended.state, ended.cause) == ("Crashed", "signal")
    with boxes.agent("killed-too", pool="boxes"):
        ended = again(boxes, run, "killed-too", tmp_path)
        assert [one.agent for one in ended.attempts] == ["killed", "killed-too"]
        assert b"value: [[100000, 100000], 18, 16, 'waited']" in boxes.output(run)
        # The last line is there when the run has ended.
        assert {task.state for task in boxes.client.each_task(str(run))} == {"Completed"}
    assert ran(tmp_path) == BEFORE + Counter(["wait"])
    assert containers(boxes, run) == []


def test_the_agent_is_killed_while_a_flow_runs(boxes: Site, tmp_path: Path) -> None:
    """The run goes on, and brings its journal, while nobody watches it; then it is killed, too."""
    deploy(boxes, "mixed_late", tmp_path)
    first = boxes.start_agent("away", pool="boxes")
    run = boxes.client.create_run(RunRequest(deployment=tmp_path.name)).id
    until(lambda: (tmp_path / "begun").exists(), boxes, run)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (tmp_path / "go").touch()
    until(lambda: completed(boxes, run) == COMPLETED, boxes, run)
    kill(boxes, run)
    with boxes.agent("away", pool="boxes"):
        ended = boxes.ended(run)
        assert (ended.state, ended.cause, ended.attempt_count) == ("Crashed", "signal", 1)
        again(boxes, run, "away", tmp_path)
    assert ran(tmp_path) == BEFORE + Counter(["wait"])


def test_what_a_killed_flow_had_not_brought_is_fetched(boxes: Site, tmp_path: Path) -> None:
    deploy(boxes, "mixed_late", tmp_path)
    with boxes.agent("fetches", pool="boxes"):
        run = boxes.client.create_run(RunRequest(deployment=tmp_path.name)).id
        until(lambda: (tmp_path / "begun").exists(), boxes, run)
        boxes.server.kill()
        boxes.server.wait()
        (tmp_path / "go").touch()
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "waiting").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            kill(boxes, run)
        finally:
            boxes.start_server()
        ended = boxes.ended(run, 60)
        assert (ended.state, ended.cause) == ("Crashed", "signal")
        # With the end there is all that the flow did.
        assert completed(boxes, run) == COMPLETED
        again(boxes, run, "fetches", tmp_path)
        assert '"error"' not in boxes.log("fetches")
    assert ran(tmp_path) == BEFORE + Counter(["wait"])


def test_a_cancelled_flow_calls_its_hooks(boxes: Site, tmp_path: Path) -> None:
    deploy(boxes, "stopped", tmp_path)
    with boxes.agent("cancelled", pool="boxes"):
        run = begun(boxes, tmp_path)
        boxes.client.cancel_run(str(run))
        ended = boxes.ended(run)
        assert (ended.state, ended.cause) == ("Cancelled", "cancelled"), boxes.output(run)
        left = ran(tmp_path)
        assert (left["hook stopped Cancelled"], left["hook sleeps Cancelled"]) == (1, 2)
        states = Counter((task.name, task.state) for task in boxes.client.each_task(str(run)))
        assert (states["sleeps", "Cancelled"], states["stopped", "Cancelled"]) == (2, 1)


@pytest.mark.parametrize("cause", ["signal", "deleted"])
def test_the_hooks_of_a_flow_that_crashed_are_called_in_another_container(
    boxes: Site, tmp_path: Path, cause: str
) -> None:
    deploy(boxes, "crashes", tmp_path)
    with boxes.agent("crashes", pool="boxes"):
        run = begun(boxes, tmp_path)
        until(lambda: list(boxes.client.each_task(str(run))) != [], boxes, run)
        (tmp_path / "hook-waits").touch()
        kill(boxes, run, remove=cause == "deleted")
        until(lambda: (tmp_path / "hook").exists(), boxes, run)
        assert f"shunter-{run}-1-crashed" in containers(boxes, run)
        assert boxes.client.get_run(str(run)).ended_at is None
        (tmp_path / "hook-goes").touch()
        ended = boxes.ended(run)
        assert (ended.state, ended.cause) == ("Crashed", cause)
        output = boxes.output(run)
        assert output.startswith(b"begun\ncrashed: crashes Crashed {'n': 7} "), (output, boxes.log("crashes"))
        assert output.endswith(b" 1\n")
        again(boxes, run, "crashes", tmp_path)
    assert ran(tmp_path) == Counter(["wait", f"crashed {run}", "wait"])
    assert containers(boxes, run) == []
    assert boxes.attempts("crashes") == []


def test_hooks_that_cannot_be_called_hold_up_nothing(boxes: Site, tmp_path: Path) -> None:
    client = docker.APIClient(boxes.env["DOCKER_HOST"], timeout=60)
    client.tag(IMAGE, "localhost/once", "1")
    deploy(boxes, "crashes", tmp_path, {"image": "localhost/once:1", "pull_policy": "never"})
    with boxes.agent("once", pool="boxes"):
        run = begun(boxes, tmp_path)
        until(lambda: list(boxes.client.each_task(str(run))) != [], boxes, run)
        client.remove_image("localhost/once:1")
        client.close()
        kill(boxes, run)
        ended = boxes.ended(run)
        assert (ended.state, ended.cause) == ("Crashed", "signal")
        assert boxes.output(run) == b"begun\n"
        told = "its on_crashed hooks could not be called: the image localhost/once:1 is not on the engine"
        assert told in (ended.message or "")
    assert ran(tmp_path) == Counter(["wait"])
    assert containers(boxes, run) == []


@pytest.mark.parametrize("point", ["after-hooks-started", "after-hooks-told"])
def test_the_agent_is_killed_while_hooks_are_called(boxes: Site, tmp_path: Path, point: str) -> None:
    deploy(boxes, "crashes", tmp_path)
    first = boxes.start_agent(point, pool="boxes", kill_at=point)
    run = begun(boxes, tmp_path)
    until(lambda: list(boxes.client.each_task(str(run))) != [], boxes, run)
    kill(boxes, run)
    assert first.wait(SOON) == -signal.SIGKILL, boxes.log(point)
    with boxes.agent(point, pool="boxes"):
        assert boxes.ended(run).state == "Crashed"
        assert boxes.output(run).count(b"\ncrashed: ") == 1
    assert ran(tmp_path) == Counter(["wait", f"crashed {run}"])
    assert containers(boxes, run) == []


def test_a_flow_is_an_entrypoint(boxes: Site, tmp_path: Path) -> None:
    """Also of a user who may write nowhere else."""
    tmp_path.chmod(0o777)
    shutil.copy(TREE / "tests/flows/a_flow.py", tmp_path)
    variables = mounted(boxes, tmp_path) | {"read_only": True, "user": "1234:1234"}
    script = tmp_path / "deploys.py"
    script.write_text(
        "from a_flow import inside\n"
        'inside.deploy("inside", pool="boxes", source=None, working_dir="/traces",\n'
        f'              parameters={{"n": 4}}, tags=["demo"], variables={variables!r})\n'
    )
    subprocess.run([sys.executable, script], env=boxes.env, cwd=tmp_path, check=True, timeout=60)
    with boxes.agent("inside", pool="boxes"):
        run = boxes.client.create_run(RunRequest(deployment="inside")).id
        ended = boxes.ended(run)
        assert ended.state == "Completed", boxes.output(run)
        assert (ended.result["squares"], ended.result["tags"], ended.result["flow"]) == (
            14,
            ["demo"],
            "inside",
        )
        output = boxes.output(run).decode()
        assert "| WARNING | shunter.inside | from the flow" in output
        assert "| INFO    | some.library | two\nlines" in output
        assert "printed False" in output
        assert [one.key for one in boxes.client.list_artifacts(str(run)).artifacts] == ["page", "prices"]
        progress = ended.attempts[-1].progress
        assert progress is not None
        assert progress.percent == 100
