"""A disk that is slow, for the real agent: it is told, nothing more is taken, and heartbeats go on."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shunter_agents.heartbeat import HELD_UP, TROUBLE
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.engines.shim import Shim
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)


def test_a_slow_disk_holds_claims_and_no_heartbeats(here: Site, tmp_path: Path) -> None:
    here.client.create_pool(PoolSpec(name="slow"))
    for name, script in (("lasts", "echo one; sleep 12; echo two"), ("quick", "echo hello")):
        work = Work(command=["sh", "-c", script])
        here.client.deploy(f"slow-{name}", DeploymentSpec(work=work, pool="slow"))
    shim = Shim(tmp_path / "shim", here.home / "agents" / "slow" / "attempts")
    with here.agent("slow", pool="slow", env=shim.env):
        lasts = here.client.create_run(RunRequest(deployment="slow-lasts")).id
        while here.client.get_run(str(lasts)).state != "Running":
            here.client.get_run(str(lasts), wait=1.0)

        shim.set_slow(int((2.5 * HELD_UP) * 1000))  # each of the writes of the next run
        caught = here.client.create_run(RunRequest(deployment="slow-quick")).id
        silence = 0.0
        troubles: set[str] = set()
        deadline = time.monotonic() + 3 * HELD_UP
        while time.monotonic() < deadline:
            agent = here.client.get_agent("slow")
            silence = max(silence, (datetime.now(UTC) - agent.last_seen_at).total_seconds())
            troubles |= set(agent.troubles)
            time.sleep(0.1)
        print(f"longest silence {silence:.1f} s; {troubles}")
        assert TROUBLE in troubles
        assert silence < 2.5 * HELD_UP, "heartbeats waited for the disk"

        shim.set_slow(0)
        later = here.client.create_run(RunRequest(deployment="slow-quick")).id
        for run in (caught, later):
            assert here.ended(run, 60).state == "Completed"
            assert here.output(run) == b"hello\n"
        ended = here.ended(lasts)
        assert (ended.state, ended.attempt_count) == ("Completed", 1)
        assert here.output(lasts) == b"one\ntwo\n"
        assert "is slow: a small write takes more than 1 s" in here.log("slow")
        deadline = time.monotonic() + SOON
        while here.client.get_agent("slow").troubles:
            assert time.monotonic() < deadline
            time.sleep(0.1)
