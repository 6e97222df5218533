"""Whose state folder it is: another agent's, another machine's, one of before a reboot."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from shunter_agents import state_folder
from shunter_agents.state_folder import StateFolder, machine
from shunter_infrastructure.process import record
from shunter_infrastructure.stamp import boot_id
from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy, Work
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)


def elsewhere(folder: Path) -> None:
    """Make it the folder of another machine."""
    (folder / "machine").write_text(json.dumps({"machine": "0" * 64, "host": "other-host"}))


# -- which machine


def test_a_folder_of_another_machine_is_refused_and_not_touched(tmp_path: Path) -> None:
    StateFolder(tmp_path, "a1").close()
    elsewhere(tmp_path / "a1")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a1").iterdir() if path.is_file()}
    with pytest.raises(InvalidInput, match="belongs to agent a1 on the machine other-host") as found:
        StateFolder(tmp_path, "a1")
    assert socket.gethostname() in found.value.detail
    assert "--take-over" in found.value.remedy
    assert "--name" in found.value.remedy
    after = {path.name: path.read_bytes() for path in (tmp_path / "a1").iterdir() if path.is_file()}
    assert {**before, "lock": b""} == {**after, "lock": b""}


def test_a_folder_that_was_taken_over_stays_so_with_its_identity(tmp_path: Path) -> None:
    first = StateFolder(tmp_path, "a1")
    first.close()
    elsewhere(tmp_path / "a1")
    second = StateFolder(tmp_path, "a1", take_over=True)
    assert second.identity == first.identity
    assert second.session.int > first.session.int
    second.close()
    StateFolder(tmp_path, "a1").close()


@pytest.mark.parametrize("content", [None, "", '{"mach', "[]", '{"host": "x"}'])
def test_a_folder_that_does_not_say_whose_it_is_is_ones_own(tmp_path: Path, content: str | None) -> None:
    """Of a version that did not write it down, or torn in its first moment."""
    StateFolder(tmp_path, "a1").close()
    path = tmp_path / "a1" / "machine"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    StateFolder(tmp_path, "a1").close()
    assert json.loads(path.read_text()) == {"machine": machine(), "host": socket.gethostname()}


def test_a_machine_is_known_by_its_id_else_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(content: str | None, host: str) -> str:
        path = tmp_path / "machine-id"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(state_folder, "_MACHINE_ID", path)
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        return machine()

    ids = {known("a" * 32, "h1"), known("b" * 32, "h1"), known(None, "h1"), known(None, "h2")}
    assert len(ids) == 4
    assert known("a" * 32, "h1") == known("a" * 32 + "\n", "h2")
    assert known("", "h1") == known(None, "h1")
    assert "a" * 32 not in known("a" * 32, "h1"), "machine-id(5) is meant to be kept to oneself"


# -- real agents


def _deploy(here: Site, name: str, script: str, **more: object) -> None:
    here.client.create_pool(PoolSpec(name=name))
    work = Work(command=["sh", "-c", script])
    here.client.deploy(name, DeploymentSpec(work=work, pool=name, **more))  # type: ignore[arg-type]


def _running(here: Site, name: str) -> str:
    run = str(here.client.create_run(RunRequest(deployment=name)).id)
    while here.client.get_run(run).state != "Running":
        here.client.get_run(run, wait=1.0)
    return run


def _machine_dies(here: Site, agent: subprocess.Popen[bytes], name: str) -> None:
    """All of it at once, as by a loss of power: nobody sees the end of anybody."""
    keepers = []
    for attempt in (here.home / "agents" / name / "attempts").iterdir():
        found = record.read(attempt)
        assert found is not None
        assert found.keeper is not None
        keepers.append(psutil.Process(found.keeper))
    doomed = [psutil.Process(agent.pid), *keepers]
    doomed += [child for process in doomed for child in process.children(recursive=True)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
    assert agent.wait(SOON) == -signal.SIGKILL


def _boots(folder: Path) -> None:
    """What a reboot changes: everything that was written down is of another boot."""
    for path in folder.rglob("*"):
        if path.is_file() and boot_id().encode() in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(boot_id().encode(), b"0" * 36))


@pytest.mark.parametrize("retries", [0, 1])
def test_after_a_reboot_what_ran_is_lost_and_what_is_retried_runs_again(
    here: Site, tmp_path: Path, retries: int
) -> None:
    name, effects = f"reboot-{retries}", tmp_path / "effects"
    script = f"echo $SHUNTER_ATTEMPT >> {effects}; test $SHUNTER_ATTEMPT = 2 || sleep 600"
    _deploy(here, name, script, retries=RetryPolicy(count=retries))
    agent = here.start_agent(name, pool=name)
    try:
        run = _running(here, name)
    finally:
        _machine_dies(here, agent, name)
    _boots(here.home / "agents" / name)
    with here.agent(name, pool=name):
        ended = here.ended(run)
        assert ended.attempts[0].state == "Crashed"
        assert ended.attempts[0].cause == "node_lost"
        assert ended.state == ("Completed" if retries else "Crashed")
    assert effects.read_text().split() == ["1", "2"][: 1 + retries]
    assert here.left_over() == []


def test_a_state_folder_on_another_machine(here: Site, tmp_path: Path) -> None:
    name, effects = "moved", tmp_path / "effects"
    _deploy(here, name, f"echo x >> {effects}; sleep 600")
    agent = here.start_agent(name, pool=name)
    try:
        run = _running(here, name)
    finally:
        _machine_dies(here, agent, name)
    folder = here.home / "agents" / name
    _boots(folder)
    elsewhere(folder)
    refused = here.start_agent(name, pool=name)
    assert refused.wait(SOON) == 2
    assert "belongs to agent moved on the machine other-host" in here.log(name)
    assert here.client.get_run(run).ended_at is None
    with here.agent(name, "--take-over", pool=name):
        ended = here.ended(run)
        assert (ended.state, ended.cause) == ("Crashed", "node_lost")
    assert effects.read_text() == "x\n"


def test_two_agents_with_copies_of_one_folder(here: Site, tmp_path: Path) -> None:
    """On one machine, which cannot be told apart: the newer takes over, the older ends nothing and is refused."""
    name = "twice"
    _deploy(here, name, "echo hello")
    agent = here.start_agent(name, pool=name)
    try:
        first = str(here.client.create_run(RunRequest(deployment=name)).id)
        assert here.ended(first).state == "Completed"
        while here.attempts(name):  # it goes while it would be copied
            time.sleep(0.01)
        copy = tmp_path / "home"
        (copy / "agents").mkdir(parents=True)
        trash = shutil.ignore_patterns("trash")  # it changes while it is copied
        shutil.copytree(here.home / "agents" / name, copy / "agents" / name, ignore=trash)
        with here.agent(name, pool=name, env={"SHUNTER_HOME": str(copy)}):
            while "a newer session of agent" not in here.log(name):
                assert agent.poll() is None
            second = str(here.client.create_run(RunRequest(deployment=name)).id)
            assert here.ended(second).state == "Completed"
        assert agent.poll() is None
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
