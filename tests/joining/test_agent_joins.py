"""Real agents that join a real server: by the lines that are printed, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from shunter_agents.joining import join as join_server
from shunter_agents.killpoints import JOIN_POINTS, RENEWAL_POINTS
from shunter_work_pools.client import Client
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import Unauthenticated
from shunter_work_pools.contracts.identities import InvitationRequest
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site
from tests.cli.console import Console, console, until
from tests.patience import SOON


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with the pool ``default``."""
    with site(tmp_path_factory.mktemp("joining")) as one:
        yield one


@pytest.fixture
def far(tmp_path: Path, module_cache: Path) -> Iterator[Console]:
    """A terminal on what stands for another machine: an empty home, no token, no address."""
    home = tmp_path / "far"
    yield console(home, tmp_path / "folder", 1, module_cache).having(SHUNTER_API_URL="")
    for process in psutil.process_iter():
        try:
            if process.environ().get("SHUNTER_HOME") == str(home):
                process.kill()
        except psutil.Error:
            continue


def invited(here: Site, uses: int = 1) -> str:
    return here.client.invite(InvitationRequest(pool="default", uses=uses)).token


def home_of(far: Console) -> Path:
    return Path(far.env["SHUNTER_HOME"])


def credential(far: Console, name: str) -> dict[str, Any]:
    return dict(json.loads((home_of(far) / "agents" / name / "credential").read_text()))


def join(here: Site, far: Console, name: str) -> dict[str, Any]:
    """An agent joins; its credential."""
    join_server(home_of(far) / "agents", here.client.api_url, invited(here), name)
    return credential(far, name)


def start(far: Console, *words: str, kill_at: str = "") -> subprocess.Popen[bytes]:
    log = (home_of(far) / "agent.log").open("ab")
    env = far.having(SHUNTER_TEST_KILL_AT=kill_at).env
    words_ = [sys.executable, "-m", "shunter_agents", *words]
    return subprocess.Popen(words_, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def log_of(far: Console) -> str:
    return (home_of(far) / "agent.log").read_text()


def takes_runs(here: Site, name: str) -> None:
    """A run that only this agent may take completes."""
    here.client.deploy(
        f"by-{name}", DeploymentSpec(work=Work(command=["true"]), pool="default", require=[name])
    )
    run = here.client.create_run(RunRequest(deployment=f"by-{name}")).id
    assert here.ended(run).state == "Completed"


def uses_left(here: Site, token: str) -> int:
    import sqlite3

    from shunter_agents.credential import hash_of

    with sqlite3.connect(here.home / "shunter.db") as db:
        (left,) = db.execute("SELECT uses_left FROM keys WHERE hash = ?", (hash_of(token),)).fetchone()
    return int(left)


def refused(here: Site, token: str) -> str:
    with Client(here.client.api_url, token) as client, pytest.raises(Unauthenticated) as why:
        client.whoami()
    return why.value.detail


# ---- the lines


def test_one_line_makes_an_agent(here: Site, far: Console) -> None:
    admin = Console(here.env | {"PATH": far.env["PATH"]}, far.folder)
    told = admin.ok("agent", "invite", "--pool", "default").text
    (token,) = set(re.findall(r"she_[\w-]{43}", told))
    lines = [line.strip() for line in told.splitlines() if "agent join" in line]
    assert len(lines) == 3
    assert all(line.startswith(f"SHUNTER_JOIN_TOKEN={token} ") and line.count(token) == 1 for line in lines)

    done = far.shell(lines[0].removesuffix(" --start"))
    assert done.code == 0, done.err
    assert uses_left(here, token) == 0
    (folder,) = (home_of(far) / "agents").iterdir()
    file = folder / "credential"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(path.name for path in folder.glob("credential*")) == ["credential"]
    assert token not in file.read_text()

    # From then on nothing else is needed: no token, no address, no pool, no name.
    agent = far.spawn("agent", "start")
    until(lambda: folder.name in [one.name for one in here.client.list_agents().agents])
    found = here.client.get_agent(folder.name)
    assert found.pools == ["default"]
    agent.terminate()
    assert agent.wait(SOON) == 0

    # The line as a whole, again: it has joined already, and starts. A container says it each time.
    again = far.having(SHUNTER_JOIN_TOKEN=token).spawn("agent", "join", here.client.api_url, "--start")
    process = psutil.Process(again.pid)
    until(lambda: "shunter_agents" in process.cmdline())
    assert "SHUNTER_JOIN_TOKEN" not in process.environ(), "what it starts has no use for it"
    again.kill()
    again.wait()


def test_the_other_lines_name_the_variable_and_do_not_say_it(
    here: Site, far: Console, tmp_path: Path
) -> None:
    """By programs that stand in for sudo and docker, and write down what everybody may see of them."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("sudo", "docker"):
        script = f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/{name}.args\nenv > {tmp_path}/{name}.env\n'
        (bin_ / name).write_text(script)
        (bin_ / name).chmod(0o755)
    admin = Console(here.env | {"PATH": far.env["PATH"]}, far.folder)
    told = admin.ok(
        "agent", "invite", "--pool", "default", "--output", "json", "--image", "reg/shunter:1"
    ).json
    for program, line in (
        ("sudo", told["lines"]["a service of systemd"]),
        ("docker", told["lines"]["Docker"]),
    ):
        done = far.having(PATH=f"{bin_}:{far.env['PATH']}").shell(line)
        assert done.code == 0, done.err
        words = (tmp_path / f"{program}.args").read_text().splitlines()
        assert told["token"] not in " ".join(words)
        assert f"SHUNTER_JOIN_TOKEN={told['token']}" in (tmp_path / f"{program}.env").read_text().splitlines()
    assert {"SHUNTER_JOIN_TOKEN", "reg/shunter:1", "--start"} <= set(words)


def test_the_line_for_kubernetes_gives_the_token_by_a_pipe(here: Site, far: Console, tmp_path: Path) -> None:
    """By programs that stand in for kubectl and helm. For one agent there is no such line: a pod is soon another one."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("kubectl", "helm"):
        keeps = f"cat > {tmp_path}/stdin" if name == "kubectl" else "true"
        (bin_ / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/{name}.args\n{keeps}\n')
        (bin_ / name).chmod(0o755)
    admin = Console(here.env | {"PATH": far.env["PATH"]}, far.folder)
    invite = ("agent", "invite", "--pool", "default", "--output", "json")
    assert "Kubernetes" not in admin.ok(*invite).json["lines"]
    told = admin.ok(*invite, "--uses", "20", "--url", "https://shunter.example.com/api").json
    assert "In Kubernetes:" in admin.ok("agent", "invite", "--pool", "default", "--uses", "2").text
    done = far.having(PATH=f"{bin_}:{far.env['PATH']}").shell(told["lines"]["Kubernetes"])
    assert done.code == 0, done.err
    assert (tmp_path / "stdin").read_text() == told["token"]
    words = [(tmp_path / f"{name}.args").read_text() for name in ("kubectl", "helm")]
    assert told["token"] not in "".join(words)
    assert {"poolType=process", "createPools=false", "pools={default}"} <= set(words[1].splitlines())


def test_where_the_token_may_come_from(here: Site, far: Console, tmp_path: Path) -> None:
    url, file = here.client.api_url, tmp_path / "token"
    file.write_text(invited(here) + "\n")
    assert far("agent", "join", url, "--name", "from-file", "--token-file", str(file)).code == 0
    stdin = invited(here).encode()
    done = far("agent", "join", url, "--name", "from-stdin", "--token-file", "-", input=stdin)
    assert done.code == 0, done.err
    assert "there is no enrolment token" in far("agent", "join", url, "--name", "none").err
    # What is given by mistake is not told, and not sent.
    wrong = far.having(SHUNTER_JOIN_TOKEN="a-token-of-the-tests")("agent", "join", url, "--name", "none")
    assert (wrong.code, "a-token-of-the-tests" in wrong.err) == (2, False)
    assert "is not an enrolment token" in wrong.err
    several = far("agent", "start")
    assert several.code == 2
    assert "from-file, from-stdin" in several.err
    assert far("agent", "join", url, invited(here)).code == 2, "it is no argument"


def test_a_home_in_which_none_has_joined_says_what_to_do(far: Console) -> None:
    done = far("agent", "start")
    assert done.code == 2
    assert "agent join URL" in done.err


def test_joining_is_done_within_two_seconds(here: Site, far: Console) -> None:
    words = ("agent", "join", here.client.api_url, "--name")
    line = far.having(SHUNTER_JOIN_TOKEN=invited(here, uses=5))
    took = []
    for number in range(5):
        began = time.monotonic()
        assert line(*words, f"quick-{number}").code == 0
        took.append(time.monotonic() - began)
    print("join took", *(f"{seconds:.2f}" for seconds in took), "s")
    assert statistics.median(took) < 2


# ---- whoever is killed


@pytest.mark.parametrize("point", JOIN_POINTS)
def test_a_join_that_is_killed_goes_on_and_spends_one_use(here: Site, far: Console, point: str) -> None:
    token = invited(here, uses=3)
    line = far.having(SHUNTER_JOIN_TOKEN=token)
    words = ("agent", "join", here.client.api_url, "--name", f"killed-{point}")
    assert line.having(SHUNTER_TEST_KILL_AT=point)(*words).code == -signal.SIGKILL
    done = line(*words)
    assert done.code == 0, done.err
    assert uses_left(here, token) == 2
    folder = home_of(far) / "agents" / f"killed-{point}"
    assert [path.name for path in folder.glob("credential*")] == ["credential"]
    assert refused(here, "sha_" + "x" * 43)
    with Client(here.client.api_url, credential(far, f"killed-{point}")["token"]) as client:
        assert client.whoami().name == f"killed-{point}"


def test_a_server_that_is_killed_before_it_answers_a_join(here: Site, far: Console) -> None:
    here.server.kill()
    here.server.wait()
    here.start_server(kill_at="after-join-committed")
    token = invited(here)
    line = far.having(SHUNTER_JOIN_TOKEN=token)
    assert line("agent", "join", here.client.api_url, "--name", "unanswered").code == 1
    assert here.server.wait(SOON) == -signal.SIGKILL
    here.start_server()
    assert uses_left(here, token) == 0
    done = line("agent", "join", here.client.api_url, "--name", "unanswered")
    assert done.code == 0, done.err


def make_due(far: Console, name: str) -> str:
    """Let the credential be due to be renewed; its token."""
    path = home_of(far) / "agents" / name / "credential"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"received_at": 1.0}))
    return str(stored["token"])


def is_renewed(far: Console, name: str, old: str) -> bool:
    stored = credential(far, name)
    return stored["token"] != old and stored["next"] is None


@pytest.mark.parametrize("point", RENEWAL_POINTS)
def test_a_renewal_that_is_killed_loses_nothing(here: Site, far: Console, point: str) -> None:
    name = f"renews-{point}"
    join(here, far, name)
    old = make_due(far, name)
    first = start(far, "--name", name, "--tag", name, kill_at=point)
    assert first.wait(SOON) == -signal.SIGKILL, log_of(far)
    second = start(far, "--name", name, "--tag", name)
    until(lambda: is_renewed(far, name, old))
    takes_runs(here, name)
    assert "replaced by a newer one" in refused(here, old)
    assert stat.S_IMODE((home_of(far) / "agents" / name / "credential").stat().st_mode) == 0o600
    assert "refuses" not in log_of(far), "no request was refused for it"
    second.terminate()
    assert second.wait(SOON) == 0


def test_a_server_that_is_killed_before_it_answers_a_renewal(here: Site, far: Console) -> None:
    join(here, far, "renews")
    old = make_due(far, "renews")
    here.server.kill()
    here.server.wait()
    here.start_server(kill_at="after-renewal-committed")
    agent = start(far, "--name", "renews", "--tag", "renews")
    assert here.server.wait(SOON) == -signal.SIGKILL, log_of(far)
    assert credential(far, "renews")["token"] == old
    here.start_server()
    until(lambda: is_renewed(far, "renews", old))
    takes_runs(here, "renews")
    agent.terminate()
    assert agent.wait(SOON) == 0


# ---- revoked


def test_a_revoked_agent_takes_nothing_says_why_and_its_runs_go_on(
    here: Site, far: Console, tmp_path: Path
) -> None:
    name, goes = "revoked", tmp_path / "goes"
    join(here, far, name)
    agent = start(far, "--name", name, "--tag", name)
    script = f"while [ ! -e {goes} ]; do sleep 0.05; done; echo did it"
    work = Work(command=["sh", "-c", script])
    here.client.deploy("long", DeploymentSpec(work=work, pool="default", require=[name]))
    run = here.client.create_run(RunRequest(deployment="long")).id
    until(lambda: here.client.get_run(str(run)).state == "Running")

    began = time.monotonic()
    revoke(here, name)
    until(lambda: "was revoked" in log_of(far))
    assert time.monotonic() - began < 5
    waits = here.client.create_run(RunRequest(deployment="long")).id
    goes.touch()
    until(lambda: not [one for one in processes(far) if script in one])
    assert here.client.get_run(str(run)).state == "Running", "its end is not taken from who was revoked"
    assert here.client.get_run(str(waits)).state == "Scheduled"
    assert agent.poll() is None, "it waits, as for a server that is away"
    agent.kill()
    agent.wait()

    # Started anew it ends, and says what to do; once it has joined again, what it had arrives.
    alone = far("agent", "start", "--name", name)
    assert alone.code == 2
    assert "was revoked" in alone.err
    join(here, far, name)
    again = start(far, "--name", name, "--tag", name)
    assert here.ended(run).state == "Completed"
    assert here.output(run) == b"did it\n"
    assert here.ended(waits).state == "Completed"
    again.terminate()
    assert again.wait(SOON) == 0


def revoke(here: Site, name: str) -> None:
    bearer = {"Authorization": f"Bearer {here.env['SHUNTER_TOKEN']}"}
    answer = httpx.delete(f"{here.client.api_url}/v1/keys/agent/{name}", headers=bearer, trust_env=False)
    assert answer.status_code == 204, answer.text


def processes(far: Console) -> list[str]:
    """The command lines of runs that are alive; one that ends while it is looked at is not."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(home_of(far)) in process.environ().get("SHUNTER_RESULT", ""):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_it_is_one_agent_of_the_name_that_joins(here: Site, far: Console) -> None:
    name = "busy"
    join(here, far, name)
    agent = start(far, "--name", name)
    until(lambda: name in [one.name for one in here.client.list_agents().agents])
    other = far.having(SHUNTER_HOME=str(home_of(far)) + "-2", SHUNTER_JOIN_TOKEN=invited(here))
    done = other("agent", "join", here.client.api_url, "--name", name)
    assert done.code == 2
    assert "has joined already" in done.err
    assert "--name" in done.err
    os.kill(agent.pid, signal.SIGTERM)
    assert agent.wait(SOON) == 0


# ---- in a container


def test_joining_waits_for_a_server_that_is_not_there_yet(tmp_path: Path, module_cache: Path) -> None:
    """One that is told to start then; SIGTERM ends it at once meanwhile. Who only joins is told so."""
    with site(tmp_path / "home") as here:
        here.client.create_pool(PoolSpec(name="late"))
        token = here.client.invite(InvitationRequest(pool="late", uses=2, manage_pools=True)).token
        here.server.kill()
        here.server.wait()
        far = console(tmp_path / "far", tmp_path / "folder", 1, module_cache)
        far = far.having(SHUNTER_API_URL="", SHUNTER_JOIN_TOKEN=token)
        (tmp_path / "far").mkdir()
        words = ("agent", "join", here.client.api_url, "--name", "late")
        assert far(*words).code == 1
        more = ("--start", "--create-pool", "process", "--match", "etl")
        for stopped in (True, False):
            log = tmp_path / f"log-{stopped}"
            with log.open("wb") as out:
                agent = far.spawn(*words, *more, stdout=out, stderr=out)
            try:
                until(lambda log=log: "waiting for it" in log.read_text())  # type: ignore[misc]
                agent.terminate() if stopped else here.start_server()
                if stopped:
                    assert agent.wait(SOON) == -signal.SIGTERM
                else:
                    until(lambda: here.client.get_pool("late").agents == ["late"])
                    assert here.client.get_pool("late").match == ["etl"]
            finally:
                agent.kill()
                agent.wait()
