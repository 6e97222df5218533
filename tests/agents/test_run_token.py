"""A run that tells of itself by its token, with a real server, agent and process."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)

_SCRIPT = """
import os, time
from shunter_work_pools.client import Client
from shunter_work_pools.contracts.attempts import AttemptResult, Progress
token = os.environ["SHUNTER_RUN_TOKEN"]
with Client(os.environ["SHUNTER_API_URL"], token) as client:
    client.tell_progress(Progress(percent=50, note="half way"))
    print("token", token, flush=True)
    while not os.path.exists({go!r}):
        time.sleep(0.02)
    client.put_result(AttemptResult(value={{"attempt": client.own_attempt().attempt}}))
"""


def test_a_run_tells_of_itself_and_its_token_is_found_nowhere(here: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = tmp_path / "job.py"
    script.write_text(_SCRIPT.format(go=str(go)))
    work = Work(command=[sys.executable, str(script)], token=True)
    here.client.deploy("telling", DeploymentSpec(work=work, pool="default"))
    with here.agent("telling") as process:
        run = here.client.create_run(RunRequest(deployment="telling")).id
        deadline = time.monotonic() + SOON
        while not (progress := [one.progress for one in here.client.get_run(run).attempts if one.progress]):
            assert time.monotonic() < deadline, here.log("telling")
            time.sleep(0.02)
        assert (progress[0].percent, progress[0].note) == (50, "half way")
        (pid,) = [one.pid for one in here.client.get_run(run).attempts]
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        token = next(one for one in environ if one.startswith(b"SHUNTER_RUN_TOKEN=")).partition(b"=")[2]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert [path for path in here.home.rglob("*") if _holds(path, token)] == []
    with here.agent("telling"):  # the next life of it goes on
        go.touch()
        ended = here.ended(run)
        assert ended.state == "Completed", here.output(run)
        assert ended.result == {"attempt": 1}
        assert token not in here.output(run)
        assert here.output(run).startswith(b"token ")
    assert [path for path in here.home.rglob("*") if _holds(path, token)] == []


def _holds(path: Path, token: bytes) -> bool:
    """Whether a file holds it; where a run's own output waits to be sent, it may be as it was written."""
    return path.is_file() and path.name != "output" and token in path.read_bytes()
