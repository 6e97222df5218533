"""An agent is killed by SIGKILL at each step of starting, watching and settling a run.

Whatever the step: its next life makes the run end exactly once, with the truth, executed exactly once,
with every byte of its output, and nothing is left behind.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from shunter_agents.killpoints import POINTS
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("point", POINTS)
def test_killed(here: Site, tmp_path: Path, point: str) -> None:
    effects = tmp_path / "effects"
    script = f"echo $SHUNTER_RUN_ID $SHUNTER_ATTEMPT >> {effects}; echo begun; sleep 0.4; echo done; exit 7"
    spec = DeploymentSpec(work=Work(command=["sh", "-c", script]), pool="default")
    here.client.deploy(point, spec)
    first = here.start_agent(point, kill_at=point)
    try:
        run = here.client.create_run(RunRequest(deployment=point)).id
        assert first.wait(30) == -signal.SIGKILL, here.log(point)
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
