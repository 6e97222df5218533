"""Flows as runs: with a real server, a real agent, real processes, and what is killed of them.

What a task does beside its value (a line in FOLDER/ran) is counted: what completed is never done again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import Run, RunRequest
from tests.agents.real_server import Site, site

pytestmark = pytest.mark.timeout(180)

SCRIPT = Path(__file__).with_name("a_flow.py")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with a pool named default."""
    with site(tmp_path_factory.mktemp("flows")) as one:
        yield one


def deploy(here: Site, name: str, flow: str, folder: Path, **work: object) -> None:
    """One of the flows of ``a_flow.py``, which leaves its traces in a folder."""
    command = Work(
        command=[sys.executable, str(SCRIPT), flow, str(folder)],
        env={"PYTHONPATH": str(SCRIPT.parents[2])},
        **work,
    )
    here.client.deploy(name, DeploymentSpec(work=command, pool="default"))


def begun(here: Site, name: str) -> UUID:
    return here.client.create_run(RunRequest(deployment=name)).id


def again(here: Site, run: UUID, name: str, folder: Path) -> Run:
    """The run, retried, once it has ended."""
    (folder / "good").touch()
    here.client.retry_run(str(run))
    ended = here.ended(run, 60)
    assert ended.state == "Completed", (here.output(run), here.log(name))
    return ended


def ran(folder: Path) -> Counter[str]:
    return Counter((folder / "ran").read_text().split("\n")[:-1])


def until(folder: Path, name: str) -> None:
    deadline = time.monotonic() + 60
    while not (folder / name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def completed(here: Site, run: UUID) -> list[str]:
    return [task.name for task in here.client.each_task(str(run), states=["Completed"])]


def test_a_retried_run_executes_what_failed_and_nothing_else(here: Site, tmp_path: Path) -> None:
    deploy(here, "hundred", "hundred", tmp_path)
    with here.agent("hundred"):
        run = begun(here, "hundred")
        assert here.ended(run).state == "Failed", here.output(run)
        # The server has all of it when it has the end.
        states = Counter(task.state for task in here.client.each_task(str(run)) if not task.flow)
        assert states == {"Completed": 99, "Failed": 1}
        assert ran(tmp_path) == Counter(map(str, range(100)))
        again(here, run, "hundred", tmp_path)
        assert ran(tmp_path) == Counter(map(str, range(100))) + Counter(["99"])
        assert f"value: {sum(n * n for n in range(100))}".encode() in here.output(run)
    assert here.attempts("hundred") == []
    assert '"error"' not in here.log("hundred")
