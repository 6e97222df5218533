"""An agent is killed by SIGKILL at each step of starting, watching and settling a run.

Whatever the step: its next life makes the run end exactly once, with the truth, executed exactly once,
with every byte of its output, and nothing is left behind.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from uuid import UUID

import pytest

from shunter_agents.killpoints import POINTS
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("point", POINTS)
def test_killed(here: Site, tmp_path: Path, point: str) -> None:
    effects = tmp_path / "effects"
    script = (
        f"echo $SHUNTER_RUN_ID $SHUNTER_ATTEMPT >> {effects}; echo begun; "
        f"until [ -e {tmp_path}/$SHUNTER_RUN_ID ]; do sleep 0.02; done; echo done; exit 7"
    )
    spec = DeploymentSpec(work=Work(command=["sh", "-c", script]), pool="default")
    here.client.deploy(point, spec)
    first = here.start_agent(point, kill_at=point)
    try:
        run = here.client.create_run(RunRequest(deployment=point)).id
        _go_on_when_running(here, run, first, tmp_path)
        assert first.wait(SOON) == -signal.SIGKILL, here.log(point)
    finally:
        first.kill()
        first.wait()

    with here.agent(point) as second:
        ended = here.ended(run)
        assert (ended.state, ended.cause) == ("Failed", "exit_code"), here.log(point)
        assert [(one.number, one.exit_code, one.agent) for one in ended.attempts] == [(1, 7, point)]
        assert here.output(run) == b"begun\ndone\n"
        assert effects.read_text() == f"{run} 1\n"
        events = [event.kind for event in here.client.list_events(str(run)).events]
        assert [kind for kind in events if kind not in ("found", "lost")] == [
            "Scheduled",
            "Claimed",
            "Starting",
            "Running",
            "Failed",
        ]
        assert second.poll() is None
    assert here.attempts(point) == []
    assert list((here.home / "agents" / point / "trash").iterdir()) == []
    assert here.left_over() == []


@pytest.mark.parametrize("point", POINTS[1:])  # each is passed once by every run
def test_killed_in_a_folder_that_is_used_again(here: Site, tmp_path: Path, point: str) -> None:
    """The second run has the folder of the first, and the agent dies there: nothing of the first is seen."""
    name = f"used-{point}"
    effects = tmp_path / "effects"
    script = (
        f"echo $SHUNTER_RUN_ID >> {effects}; until [ -e {tmp_path}/$SHUNTER_RUN_ID ]; do sleep 0.02; done; "
        f"if [ $(wc -l < {effects}) = 1 ]; then seq 2000; exit 3; fi; echo $(ls -A .) done; exit 7"
    )
    here.client.deploy(name, DeploymentSpec(work=Work(command=["sh", "-c", script]), pool="default"))
    life = here.start_agent(name, kill_at=f"{point}#2")
    folder = here.home / "agents" / name
    try:
        first = here.client.create_run(RunRequest(deployment=name)).id
        _go_on_when_running(here, first, life, tmp_path)
        here.ended(first)
        while here.attempts(name):
            time.sleep(0.01)
        (ready,) = (folder / "trash").iterdir()
        second = here.client.create_run(RunRequest(deployment=name)).id
        _go_on_when_running(here, second, life, tmp_path)
        assert life.wait(SOON) == -signal.SIGKILL, here.log(name)
    finally:
        life.kill()
        life.wait()
    assert not ready.exists(), "the folder was not used again"

    with here.agent(name):
        ends = [here.ended(run) for run in (first, second)]
        assert [(end.state, end.cause) for end in ends] == [("Failed", "exit_code")] * 2, here.log(name)
        assert [[one.exit_code for one in end.attempts] for end in ends] == [[3], [7]]
        assert here.output(first).split() == [str(number).encode() for number in range(1, 2001)]
        assert here.output(second) == b"done\n"
        assert effects.read_text() == f"{first}\n{second}\n"
    assert here.attempts(name) == []
    assert list((folder / "trash").iterdir()) == []
    assert here.left_over() == []


def _go_on_when_running(here: Site, run: UUID, life: subprocess.Popen[bytes], gates: Path) -> None:
    """That it runs is told by itself, and not only with its end: each point is passed. Then, or when the agent is dead, it
    goes on."""
    while life.poll() is None and here.client.get_run(str(run)).state != "Running":
        here.client.get_run(str(run), wait=0.1)
    (gates / str(run)).touch()


def test_killed_again_and_again(here: Site, tmp_path: Path) -> None:
    """One run through all kill points, one life each."""
    effects = tmp_path / "effects"
    script = f"echo $SHUNTER_RUN_ID >> {effects}; echo begun; sleep 3; echo done; kill -KILL $$"
    spec = DeploymentSpec(work=Work(command=["sh", "-c", script]), pool="default")
    here.client.deploy("again", spec)
    run = None
    for point in POINTS:
        life = here.start_agent("again", kill_at=point)
        try:
            run = run or here.client.create_run(RunRequest(deployment="again")).id
            # Some steps lie behind it, others come: either it dies there, or the run ends under it.
            while life.poll() is None and here.client.get_run(str(run)).ended_at is None:
                here.client.get_run(str(run), wait=0.1)
        finally:
            life.kill()
            life.wait()
    with here.agent("again"):
        ended = here.ended(run)
        assert (ended.state, ended.cause) == ("Crashed", "signal"), here.log("again")
        assert [one.signal for one in ended.attempts] == ["SIGKILL"]
        assert here.output(run) == b"begun\ndone\n"
        assert effects.read_text() == f"{run}\n"
    assert here.left_over() == []
