"""The wall clock of an agent's machine is set by an hour, to and fro, while runs are live: no harm."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.engines.shim import Shim

pytestmark = pytest.mark.timeout(120)
HOUR = 3600


@pytest.mark.parametrize("first", [HOUR, -HOUR])
def test_steps_of_the_wall_clock_do_no_harm(here: Site, tmp_path: Path, first: int) -> None:
    name = f"clock{'-ahead' if first > 0 else '-behind'}"
    here.client.create_pool(PoolSpec(name=name))
    shim = Shim(tmp_path / "shim", tmp_path / "nothing")
    scripts = {
        "lasts": (Work(command=["sh", "-c", "echo one; sleep 4; echo two"], timeout=60.0), RetryPolicy()),
        "runs-out": (Work(command=["sleep", "60"], timeout=3.0), RetryPolicy()),
        "again": (Work(command=["sh", "-c", "sleep 1; exit 1"]), RetryPolicy(count=2, delay=0.5)),
    }
    for deployment, (work, retries) in scripts.items():
        spec = DeploymentSpec(work=work, pool=name, retries=retries)
        here.client.deploy(f"{name}-{deployment}", spec)
    began = datetime.now(UTC)
    with here.agent(name, pool=name, env=shim.env) as agent:
        runs = {
            deployment: here.client.create_run(RunRequest(deployment=f"{name}-{deployment}")).id
            for deployment in scripts
        }
        for run in runs.values():
            while here.client.get_run(str(run)).state not in ("Running", "Retrying"):
                here.client.get_run(str(run), wait=1.0)
        for offset in (first, 0, -first, first):
            shim.set_clock(offset)
            time.sleep(0.4)
            assert not here.client.get_agent(name).lost
        ends = {deployment: here.ended(run) for deployment, run in runs.items()}
        assert agent.poll() is None
        assert _off_by_an_hour(here.log(name)), "the agent did not see the steps"
        assert (ends["lasts"].state, ends["lasts"].attempt_count) == ("Completed", 1)
        assert here.output(runs["lasts"]) == b"one\ntwo\n"
        assert (ends["runs-out"].state, ends["runs-out"].cause) == ("TimedOut", "timeout")
        assert (ends["again"].state, ends["again"].attempt_count) == ("Failed", 3)
        for end in ends.values():
            for attempt in end.attempts:
                assert attempt.started_at is not None
                assert attempt.ended_at is not None
                assert began - timedelta(seconds=2) < attempt.started_at <= attempt.ended_at
                assert attempt.ended_at < datetime.now(UTC) + timedelta(seconds=2)
        (timed,) = ends["runs-out"].attempts
        assert timed.started_at is not None
        assert timed.ended_at is not None
        assert 2.5 < (timed.ended_at - timed.started_at).total_seconds() < 10

        # Another life, with the clock an hour off: it is the newer one all the same.
        last = here.client.create_run(RunRequest(deployment=f"{name}-lasts")).id
        while here.client.get_run(str(last)).state != "Running":
            here.client.get_run(str(last), wait=1.0)
        agent.kill()
        agent.wait()
        shim.set_clock(-HOUR)
    with here.agent(name, pool=name, env=shim.env):
        ended = here.ended(last)
        assert (ended.state, ended.attempt_count) == ("Completed", 1)
        assert here.output(last) == b"one\ntwo\n"
    assert here.left_over() == []


def _off_by_an_hour(log: str) -> bool:
    return any(
        str(hour.hour).zfill(2) + ":" in log
        for hour in (datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) - timedelta(hours=1))
    )
