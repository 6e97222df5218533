"""The way of docs/kubernetes.md, from nothing to scheduled Jobs, and what may happen to its agents and server while runs live."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.cli.console import until
from tests.helm.effects import Effects
from tests.helm.pods_seen import pods_seen
from tests.helm.releases import AGENT, ROOT, SERVER, Place, Reached, Terminal
from tests.helm.runs import check_each_ended_once, ended, living, output

pytestmark = pytest.mark.timeout(400)

GUIDE = ROOT / "docs/kubernetes.md"
LIVE = 20
#: Ends all processes of a container but its first, and the one that says so.
KILL = (
    "import os; [os.kill(int(one), 9) for one in os.listdir('/proc')"
    " if one.isdigit() and int(one) not in (1, os.getpid())]"
)


def blocks(chapter: str) -> list[str]:
    """The shell lines of a chapter of the guide, block by block."""
    (text,) = re.findall(rf"^## {chapter}\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    return re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


INSTALL, REACH, DEPLOY, LOOK = blocks("Five minutes")


@pytest.fixture(scope="module")
def place(terminals: dict[int, Terminal]) -> Iterator[Place]:
    """Where the guide's first lines have been said, as they stand: the namespace ``default``."""
    one = Place(terminals[4], "default")
    try:
        one.terminal(INSTALL, timeout=1200)
        yield one
    finally:
        for release in ("agents", "server"):
            with suppress(RuntimeError):
                one.helm("uninstall", release, "--wait")
        one.kubectl("delete", "jobs,secrets,pvc,configmaps", "-l", "app.kubernetes.io/managed-by=shunter")
        one.kubectl("delete", "secret", "server-shunter-server", "--ignore-not-found")


@pytest.fixture
def server(place: Place) -> Iterator[Reached]:
    with place.reached() as one:
        yield one


def test_scheduled_jobs_run_where_their_tag_leads(place: Place) -> None:
    with place.port("service/server-shunter-server", 4400) as port:
        forward, *rest = REACH.splitlines()
        assert forward == "kubectl port-forward service/server-shunter-server 4400 &"
        reach = "\n".join(rest).replace("127.0.0.1:4400", f"127.0.0.1:{port}") + "\n"
        place.terminal(reach + DEPLOY)
        said = place.terminal(reach + LOOK + "shunter deployment pause hello")
    assert "hello from shunter-" in said
    assert '"answer": 42' in said


def test_upgrade_of_agents_while_runs_live(place: Place, server: Reached, effects: Effects) -> None:
    """Both agents are replaced, with another template; each run ends once, under a new agent."""
    with pods_seen(place) as pods:
        place.upgrade("agents", AGENT, {"limit": LIVE, "replicas": 2}, "--reuse-values")
        old = names(place, "agents")
        with living(server, effects, LIVE) as runs:
            changed = {"template": {"env": {"COLOUR": "blue"}}, "podAnnotations": {"changed": "yes"}}
            place.upgrade("agents", AGENT, changed, "--reuse-values")
            assert not old & names(place, "agents")
            until(lambda: {holder(server, run) for run in runs} <= names(place, "agents"), 60)
        found = check_each_ended_once(server, effects, pods, runs)
    assert min(one.attempts[0].epoch for one in found.values()) >= 2
    assert says(server, "echo $COLOUR") == b"blue\n"


def test_upgrade_of_the_server_while_runs_live(place: Place, effects: Effects) -> None:
    """Each run ends once, and no slot of a schedule is left out."""
    with pods_seen(place) as pods, place.reached() as before:
        before.shunter.ok("deploy", "--name", "ticks", "--pool", "cluster", "--interval", "4s", "--", "true")
        with living(before, effects, LIVE) as runs:
            (old,) = place.pods("server")
            place.upgrade("server", SERVER, {"podAnnotations": {"changed": "yes"}}, "--reuse-values")
            (new,) = place.pods("server")
            assert old["metadata"]["uid"] != new["metadata"]["uid"]
        with place.reached() as after:
            after.shunter.ok("deployment", "pause", "ticks")
            check_each_ended_once(after, effects, pods, runs)
            slots = sorted(one.scheduled_at for one in after.client.list_runs(deployment="ticks").runs)
    assert {(late - early).total_seconds() for early, late in pairwise(slots)} == {4}


def test_kill_9_of_agents_and_server_while_runs_live(place: Place, effects: Effects) -> None:
    """In their pods, at once: the agents come back in these and have their runs, as before."""
    with pods_seen(place) as pods, place.reached() as before:
        with living(before, effects, 8) as runs:
            holders = {holder(before, run) for run in runs}
            there = names(place, "agents") | names(place, "server")
            for pod in there:
                with suppress(RuntimeError):  # the container ends before its answer
                    place.kubectl("exec", pod, "--", "python3", "-c", KILL)
            for release in ("server", "agents"):
                label = f"app.kubernetes.io/instance={release}"
                until(lambda label=label: restarts(place, label) == {1}, 60)
                place.kubectl("wait", "--for=condition=Ready", "pod", "-l", label, "--timeout=90s")
            assert names(place, "agents") | names(place, "server") == there
        with place.reached() as after:
            found = check_each_ended_once(after, effects, pods, runs)
    assert {one.attempts[0].agent for one in found.values()} == holders
    assert {one.attempts[0].epoch for one in found.values()} == {1}


def test_drain_of_the_agents_node(place: Place, server: Reached, effects: Effects) -> None:
    """Its Jobs are untouched, and adopted again where it comes back. (Of two, the second would not be let go: there is no
    other node on which the first could be again.)"""
    place.upgrade("agents", AGENT, {"replicas": 1}, "--reuse-values")
    until(lambda: len(place.get("pods", "-l", "app.kubernetes.io/instance=agents")["items"]) == 1, 90)
    (node,) = {one["spec"]["nodeName"] for one in place.pods("agents")}
    with pods_seen(place) as pods:
        with living(server, effects, 4) as runs:
            old = names(place, "agents")
            words = ("drain", node, "--pod-selector=app.kubernetes.io/instance=agents", "--timeout=120s")
            try:
                place.kubectl(*words, "--ignore-daemonsets", "--delete-emptydir-data")
                assert all(server.client.get_run(run).state == "Running" for run in runs)
            finally:
                place.kubectl("uncordon", node)
            until(lambda: {holder(server, run) for run in runs} <= names(place, "agents") - old, 90)
        check_each_ended_once(server, effects, pods, runs)


def names(place: Place, release: str) -> set[str]:
    """Of the pods of a release."""
    return {str(one["metadata"]["name"]) for one in place.pods(release)}


def restarts(place: Place, label: str) -> set[int]:
    """How often the containers of pods were started again."""
    found = place.get("pods", "-l", label)["items"]
    return {int(one["restartCount"]) for pod in found for one in pod["status"]["containerStatuses"]}


def holder(server: Reached, run: str) -> str:
    """The agent that has a run, which is named as its pod."""
    return str(server.client.get_run(run).attempts[-1].agent)


def says(server: Reached, script: str) -> bytes:
    """What a run of a script writes."""
    server.client.deploy("says", DeploymentSpec(work=Work(command=["sh", "-c", script]), pool="cluster"))
    run = str(server.client.create_run(RunRequest(deployment="says")).id)
    assert ended(server, run).state == "Completed"
    return output(server, run)
