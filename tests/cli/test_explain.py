"""Why real runs of a real agent ended or wait, on the command line; and where runs go."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import psutil
import pytest

from shunter_cli import waiting
from shunter_work_pools.client import Client
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.cli.console import Console, Live, until

FUNCTION = '''def main() -> None:
    """Cannot."""
    raise ValueError("no such year")
'''


@pytest.fixture
def shunter(live: Live) -> Console:
    return live.shunter


def _run(shunter: Console, name: str, *options: str) -> str:
    shunter.ok("deploy", "--name", name, "--pool", "default", *options)
    return str(shunter.ok("run", "start", name, "-o", "json").json["id"])


def _explained(shunter: Console, run: str) -> tuple[str, str]:
    found = shunter.ok("run", "explain", run, "-o", "json").json
    assert set(found) == {"run", "state", "code", "sentence", "next_step", "details"}
    assert found["next_step"].endswith(".")
    return found["code"], found["sentence"]


def test_each_way_in_which_a_process_ends(live: Live) -> None:
    (live.shunter.folder / "fails.py").write_text(FUNCTION)
    folder = str(live.shunter.folder)
    ways: dict[str, tuple[dict[str, Any], str, str]] = {
        "completed": ({"command": ["true"]}, "It completed in ", ", at its first attempt, on agent a1."),
        "exit_code": ({"command": ["sh", "-c", "exit 3"]}, "It failed after ", "ended with exit code 3."),
        "signal_own": ({"command": ["sh", "-c", "kill -SEGV $$"]}, "It failed after ", "own (SIGSEGV)."),
        "signal_outside": ({"command": ["sh", "-c", "kill -KILL $$"]}, "It crashed after ", "(SIGKILL)."),
        "start_failed": ({"command": ["/is/not/there"]}, "It crashed", "could not be started: "),
        "exception": ({"entrypoint": "fails.py:main", "source": folder}, "It failed after ", "no such year."),
        "timeout": ({"command": ["sleep", "60"], "timeout": 0.2}, "It timed out after ", "longer than its "),
        "source": ({"command": ["./job"], "source": "/is/not/there"}, "It crashed", "could not be had: "),
    }
    runs = {}
    with Client(live.shunter.env["SHUNTER_API_URL"], (live.home / "token").read_text().strip()) as client:
        for code, (work, _, _) in ways.items():
            client.deploy(f"ends-{code}", DeploymentSpec(work=Work(**work), pool="default"))
            runs[code] = client.create_run(RunRequest(deployment=f"ends-{code}")).id
        for run in runs.values():
            waiting.until_end(client, run, 30)
    for code, run in runs.items():
        found, sentence = _explained(live.shunter, str(run))
        _, begins, holds = ways[code]
        assert (found, sentence.startswith(begins), holds in sentence) == (code, True, True), sentence


def test_what_runs_is_stopped_or_loses_its_keeper(shunter: Console) -> None:
    run = _run(shunter, "sleeps", "--", "sleep", "600")
    until(lambda: shunter.ok("run", "inspect", run, "-o", "json").json["state"] == "Running")
    code, sentence = _explained(shunter, run)
    pid = shunter.ok("run", "inspect", run, "-o", "json").json["attempts"][0]["pid"]
    assert (code, f"on agent a1 as process {pid} since " in sentence) == ("running", True)
    shunter.ok("run", "cancel", run)
    shunter("run", "wait", run, "--timeout", "30")
    assert _explained(shunter, run)[0] == "cancelled"

    run = _run(shunter, "sleeps", "--", "sleep", "600")
    until(lambda: shunter.ok("run", "inspect", run, "-o", "json").json["state"] == "Running")
    work = psutil.Process(shunter.ok("run", "inspect", run, "-o", "json").json["attempts"][0]["pid"])
    keeper = work.parent()
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGKILL)
    work.kill()
    shunter("run", "wait", run, "--timeout", "30")
    assert _explained(shunter, run)[0] == "keeper_lost"


def test_what_nothing_can_take_says_so_and_starts_when_an_agent_comes(shunter: Console) -> None:
    """Deployed before there is a pool for it, and with a demand that no agent meets."""
    line = ("deploy", "--name", "wanting", "--tag", "fast", "--tag", "far", "--require", "ssd", "--", "true")
    done = shunter.ok(*line)
    assert "no pool " in done.err
    assert "its runs will wait" in done.err
    run = str(shunter.ok("run", "start", "wanting", "-o", "json").json["id"])
    assert _explained(shunter, run)[0] in ("no_pools", "no_pool_matches")
    shunter.ok("pool", "create", "fast-far", "--type", "process", "--match", "fast", "--match", "far")
    code, sentence = _explained(shunter, run)
    assert (code, sentence) == ("never_served", "No agent has ever served pool fast-far.")
    assert sentence in " ".join(shunter.ok("run", "inspect", run).text.split())
    agents = []
    try:
        for name, tags in (("bare", []), ("with-ssd", ["--tag", "ssd"])):
            agents.append(shunter.spawn("agent", "start", "--pool", "fast-far", "--name", name, *tags))
            if name == "bare":
                until(lambda: _explained(shunter, run)[0] == "tags_missing")
                (told,) = [
                    one
                    for one in shunter.ok("route", "explain", "wanting", "-o", "json").json["agents"]
                    if one["name"] == "bare"
                ]
                assert (told["takes"], told["code"], told["missing"]) == ("never", "lacks_tags", ["ssd"])
        assert shunter("run", "wait", run, "--timeout", "30").code == 0
        assert _explained(shunter, run)[0] == "completed"
        assert shunter.ok(*line).err == ""
        found = shunter.ok("route", "explain", "wanting", "-o", "json").json
        assert (found["pool"], found["agents"][0]["name"], found["agents"][0]["takes"]) == (
            "fast-far",
            "with-ssd",
            "now",
        )
    finally:
        for agent in agents:
            agent.terminate()
        for agent in agents:
            agent.wait(30)


def test_what_is_not_there_or_cannot_be_is_told(shunter: Console) -> None:
    shunter.ok("deploy", "--name", "plain", "--pool", "default", "--", "true")
    done = shunter("route", "explain", "plani")
    assert done.code == 2
    assert "plain" in done.err
    assert shunter("route", "explain", "plain", "--tag", "no tag").code == 2
    assert shunter("run", "explain", "ffffffffffff").code == 2
    assert shunter.ok("route", "explain", "plai", "--tag", "x=1", "-o", "json").json["tags"] == ["x=1"]


def test_a_route_shows_what_matters_at_eighty_columns(shunter: Console) -> None:
    """Of the tags that the agent found those that are asked for, and one line for the pools that are not named."""
    shunter.ok("deploy", "--name", "bare", "--pool", "default", "--", "true")
    shunter.ok("deploy", "--name", "picky", "--pool", "default", "--require", "os=linux", "--", "true")
    before = len(shunter.ok("pool", "list", "-o", "json").json)
    for name in ("not-named-1", "not-named-2"):
        shunter.ok("pool", "create", name, "--type", "process")
    bare, picky = (shunter.ok("route", "explain", name).text for name in ("bare", "picky"))
    assert "FOUND" not in bare
    assert "os=linux" not in bare
    assert "os=linux " in picky
    assert "arch=" not in picky
    assert "not-named-1" not in bare
    assert f"{before + 1} others" in bare
    assert max(map(len, picky.splitlines())) <= 80


def test_watching_tells_why_it_waits(shunter: Console) -> None:
    shunter.ok("deploy", "--name", "held", "--pool", "default", "--", "true")
    shunter.ok("deployment", "pause", "held")
    run = str(shunter.ok("run", "start", "held", "-o", "json").json["id"])
    watching = shunter.spawn("run", "start", "held", "--watch", stdout=subprocess.PIPE)
    try:
        until(lambda: len(shunter.ok("run", "list", "--deployment", "held", "-q").text.split()) == 2)
        until(lambda: "Deployment held is paused" in shunter.ok("run", "inspect", run).text)
        shunter.ok("deployment", "resume", "held")
        out, _ = watching.communicate(timeout=30)
    finally:
        watching.kill()
    assert b"Scheduled Deployment held is paused" in out
    assert watching.returncode == 0
