"""Flows in a storm: their processes, keepers, agents and server are killed, and what completed is never done again.

The seed is printed; ``SHUNTER_CHAOS_SEED`` repeats one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site
from tests.patience import SOON

SCRIPT = Path(__file__).with_name("a_flow.py")
COUNT = 150
KILLS = ["flow"] * 5 + ["keeper"] * 2 + ["agent"] * 4 + ["server"] * 3


@pytest.mark.timeout(300)
def test_what_completed_is_never_done_again_whatever_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("SHUNTER_CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"SHUNTER_CHAOS_SEED={seed}")
    dice = random.Random(seed)
    kills = dice.sample(KILLS, len(KILLS))
    with site(tmp_path / "home") as here:
        runs = {name: _begun(here, name, tmp_path) for name in ("a", "b")}
        agents = {name: here.start_agent(name) for name in ("one", "two")}
        for what in kills:
            time.sleep(dice.uniform(0.1, 0.6))
            if what == "server":
                here.server.kill()
                here.server.wait()
                time.sleep(dice.choice([0, 0.7]))
                here.start_server()
            elif what == "agent":
                name = dice.choice(sorted(agents))
                agents[name].kill()
                agents[name].wait()
                agents[name] = here.start_agent(name)
            else:
                _kill_one(here, runs[dice.choice(sorted(runs))], what)
        for name in runs:
            (tmp_path / name / "good").touch()
        for name, run in runs.items():
            ended = here.ended(run, 90)
            assert ended.state == "Completed", (here.output(run), here.log("one"), here.log("two"))
            _audit(tmp_path / name)
            states = Counter(task.state for task in here.client.each_task(str(run)))
            assert states == {"Completed": COUNT + 25 + 5 + 1}
        deadline = time.monotonic() + SOON
        while here.attempts("one") + here.attempts("two"):
            assert time.monotonic() < deadline, (here.log("one"), here.log("two"))
            time.sleep(0.05)
        assert '"error"' not in here.log("one") + here.log("two")


def _begun(here: Site, name: str, folder: Path) -> UUID:
    (folder / name).mkdir()
    command = [sys.executable, str(SCRIPT), "counted_all", str(folder / name), str(COUNT)]
    work = Work(command=command, env={"PYTHONPATH": str(SCRIPT.parents[2])})
    spec = DeploymentSpec(work=work, pool="default", retries=RetryPolicy(count=len(KILLS), delay=0.1))
    here.client.deploy(name, spec)
    return here.client.create_run(RunRequest(deployment=name)).id


def _kill_one(here: Site, run: UUID, what: str) -> None:
    """A flow's process, or the one that keeps it; it may be between two attempts."""
    attempts = here.client.get_run(run).attempts
    if attempts and (pid := attempts[-1].pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if str(SCRIPT) in process.cmdline():  # its number may be another's by now
                process.send_signal(signal.SIGKILL) if what == "flow" else process.parent().kill()  # type: ignore[union-attr]


def _audit(folder: Path) -> None:
    seen: set[str] = set()
    for line in (folder / "ran").read_text().splitlines():
        what, name = line.split()
        if what == "seen":
            seen.add(name)
        else:
            assert name not in seen, f"{name} was seen to have completed, and is executed again"
    assert len(seen) == COUNT + 5
