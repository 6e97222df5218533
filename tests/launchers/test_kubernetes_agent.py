"""A real server, real agents and a real cluster: runs become Jobs, whoever is killed meanwhile."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site
from tests.cluster.cluster import Cluster, OwnCluster
from tests.engines.docker import IMAGE
from tests.launchers import killed_at_request
from tests.launchers.fetched_code import shows_fetched_code
from tests.patience import SOON

pytestmark = pytest.mark.timeout(240)
_ENDS = 60.0


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, jobs_of_tests: tuple[Cluster, str]) -> Iterator[Site]:
    """A server with the kubernetes pool ``cluster``; its agents find the cluster by KUBECONFIG."""
    cluster, namespace = jobs_of_tests
    with site(tmp_path_factory.mktemp("kubernetes")) as one:
        one.env["KUBECONFIG"] = str(cluster.kubeconfig)
        template = {"namespace": namespace, "image": IMAGE}
        one.client.create_pool(PoolSpec(name="cluster", type="kubernetes", template=template))
        yield one


def deploy(
    where: Site,
    name: str,
    script: str,
    variables: dict[str, Any] | None = None,
    *,
    pool: str = "cluster",
    **work: Any,
) -> None:
    command = Work(command=["sh", "-c", script], **work)
    where.client.deploy(name, DeploymentSpec(work=command, pool=pool, variables=variables or {}))


def run(where: Site, name: str, **more: Any) -> Any:
    return where.client.create_run(RunRequest(deployment=name, **more)).id


def gone(jobs_of_tests: tuple[Cluster, str], run_id: object) -> None:
    """Nothing of a run is left in the cluster, after a while."""
    cluster, namespace = jobs_of_tests
    deadline = time.monotonic() + SOON
    label = f"shunter.dev/run={run_id}"
    while left := cluster.kubectl("get", "jobs,pods,secrets", "-n", namespace, "-l", label, "-o", "name"):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def output_begins(where: Site, made: object) -> None:
    deadline = time.monotonic() + SOON
    while not where.client.read_log(str(made)).data:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pods(jobs_of_tests: tuple[Cluster, str], run_id: object) -> list[dict[str, Any]]:
    cluster, namespace = jobs_of_tests
    found: list[dict[str, Any]] = cluster.get("pods", "-n", namespace, "-l", f"shunter.dev/run={run_id}")[
        "items"
    ]
    return found


def test_the_same_deployment_goes_to_another_pool(jobs: Site, jobs_of_tests: tuple[Cluster, str]) -> None:
    for pool in ("default", "cluster"):
        work = Work(command=["python3", "-c", 'print("hi")'])
        jobs.client.deploy("hi", DeploymentSpec(work=work, pool=pool))
        with jobs.agent(f"of-{pool}", pool=pool):
            made = run(jobs, "hi")
            assert jobs.ended(made, _ENDS).state == "Completed", jobs.log(f"of-{pool}")
            assert jobs.output(made) == b"hi\n"
        if pool == "cluster":
            gone(jobs_of_tests, made)
        assert jobs.attempts(f"of-{pool}") == []


def test_code_that_the_agent_fetches(jobs: Site, jobs_of_tests: tuple[Cluster, str], tmp_path: Path) -> None:
    shows_fetched_code(jobs, "cluster", tmp_path, _ENDS)


@pytest.mark.parametrize("request_", killed_at_request.REQUESTS)
def test_the_agent_is_killed_at_each_request(
    jobs: Site, jobs_of_tests: tuple[Cluster, str], request_: str
) -> None:
    """One Job, one pod, one end, every byte of output; nothing is left in the cluster."""
    points = [f"{when}:{request_}" for when in killed_at_request.TIMES]
    with ThreadPoolExecutor(len(points)) as pool:
        list(pool.map(lambda point: _kill_at(jobs, jobs_of_tests, point), points))


def _kill_at(jobs: Site, jobs_of_tests: tuple[Cluster, str], point: str) -> None:
    name = point.replace(":", "-")
    template = {"namespace": jobs_of_tests[1], "image": IMAGE}
    jobs.client.create_pool(PoolSpec(name=name, type="kubernetes", template=template))
    deploy(jobs, name, "echo begun; sleep 1; echo done; exit 7", pool=name)
    words = [sys.executable, killed_at_request.__file__, point, "--pool", name, "--name", name]
    with (jobs.home / f"{name}.log").open("ab") as log:
        first = subprocess.Popen(words, env=jobs.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        made = run(jobs, name)
        assert first.wait(SOON) == -signal.SIGKILL, jobs.log(name)
    finally:
        first.kill()
        first.wait()
    before = {pod["metadata"]["uid"] for pod in pods(jobs_of_tests, made)}
    with jobs.agent(name, pool=name):
        found = jobs.ended(made, _ENDS)
        assert (found.state, found.cause) == ("Failed", "exit_code"), jobs.log(name)
        assert [(one.number, one.exit_code, one.agent) for one in found.attempts] == [(1, 7, name)]
        assert jobs.output(made) == b"begun\ndone\n"
        after = {pod["metadata"]["uid"] for pod in pods(jobs_of_tests, made)}
        assert not before or after <= before
        gone(jobs_of_tests, made)
    assert jobs.attempts(name) == []


def test_an_agent_that_was_away_has_every_byte_and_the_true_end(
    jobs: Site, jobs_of_tests: tuple[Cluster, str]
) -> None:
    # The node itself may lose much that is written just before the end, see test_kubernetes_output.LINGER.
    deploy(jobs, "away", "seq 20000; sleep 2; seq 20001 40000; sleep 0.5; exit 9")
    first = jobs.start_agent("away", pool="cluster")
    try:
        made = run(jobs, "away")
        output_begins(jobs, made)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    deadline = time.monotonic() + SOON
    while [one["status"]["phase"] for one in pods(jobs_of_tests, made)] != ["Failed"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with jobs.agent("away", pool="cluster"):
        found = jobs.ended(made, _ENDS)
        assert (found.state, found.attempts[0].exit_code) == ("Failed", 9)
        assert jobs.output(made) == "".join(f"{n}\n" for n in range(1, 40001)).encode()
        gone(jobs_of_tests, made)


def test_cancelled_and_timed_out(jobs: Site, jobs_of_tests: tuple[Cluster, str]) -> None:
    """What is stopped keeps its output and its exit code: its pod is not deleted for that."""
    deploy(jobs, "long", "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done")
    deploy(jobs, "slow", "trap 'echo late; exit 3' TERM; echo up; while :; do sleep 0.1; done", timeout=1.0)
    with jobs.agent("stops", pool="cluster"):
        long, slow = run(jobs, "long"), run(jobs, "slow")
        output_begins(jobs, long)
        jobs.client.cancel_run(str(long))
        assert jobs.ended(long, _ENDS).state == "Completed"  # it ended well, though it was asked to end
        assert jobs.output(long) == b"up\nasked\n"
        found = jobs.ended(slow, _ENDS)
        assert (found.state, found.cause, found.attempts[0].exit_code) == ("TimedOut", "timeout", 3)
        assert jobs.output(slow) == b"up\nlate\n"
        for one in (long, slow):
            gone(jobs_of_tests, one)


def test_a_run_that_is_cancelled_before_it_began(jobs: Site, jobs_of_tests: tuple[Cluster, str]) -> None:
    deploy(jobs, "nowhere", "true", {"node_selector": {"no.such/node": "here"}})
    with jobs.agent("nowhere", pool="cluster"):
        made = run(jobs, "nowhere")
        deadline = time.monotonic() + SOON
        while not pods(jobs_of_tests, made):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        jobs.client.cancel_run(str(made))
        found = jobs.ended(made, _ENDS)
        assert (found.state, found.cause) == ("Cancelled", "cancelled")
        gone(jobs_of_tests, made)


@pytest.fixture
def mortal(own_cluster: OwnCluster, jobs: Site) -> OwnCluster:
    """The cluster, if its programs can be killed."""
    return own_cluster


@pytest.mark.timeout(400)
def test_the_api_server_is_away_while_twenty_runs_run(
    mortal: OwnCluster, jobs: Site, jobs_of_tests: tuple[Cluster, str]
) -> None:
    """Two minutes. Some end meanwhile, some later; all with their true ends and every byte."""
    deploy(jobs, "short", "echo begun; sleep 40; seq 1000; exit 4")
    deploy(jobs, "longer", "echo begun; sleep 170; seq 1000; exit 5")
    numbers = "".join(f"{n}\n" for n in range(1, 1001)).encode()
    with jobs.agent("patient", pool="cluster", limit=30) as agent:
        made = {run(jobs, name): code for name, code in [("short", 4), ("longer", 5)] * 10}
        for one in made:
            output_begins(jobs, one)
        mortal.stop("apiserver")
        time.sleep(120)
        assert agent.poll() is None
        mortal.start("apiserver")
        with ThreadPoolExecutor(20) as pool:
            ends = dict(zip(made, pool.map(lambda one: jobs.ended(one, 150), made), strict=True))
        for one, code in made.items():
            assert ends[one].attempts[0].exit_code == code, ends[one]
            assert jobs.output(one) == b"begun\n" + numbers
        for one in made:
            gone(jobs_of_tests, one)


# -- several agents, one namespace

#: As little patience as a server may have.
_IMPATIENT = {"server.lost_after": "15s", "server.lease_for": "20s", "server.give_up_after": "150s"}
_LINES = "".join(f"line {number}\n" for number in range(1, 61)).encode()
_SAYS_LINES = "for n in $(seq 60); do echo line $n; sleep 1; done; exit 7"


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, jobs_of_tests: tuple[Cluster, str]) -> Iterator[Site]:
    """A server that finds agents lost as soon as it may."""
    with site(tmp_path_factory.mktemp("impatient"), _IMPATIENT) as one:
        one.env["KUBECONFIG"] = str(jobs_of_tests[0].kubeconfig)
        yield one


def _begin_two(where: Site, jobs_of_tests: tuple[Cluster, str], name: str) -> tuple[Any, Any, str]:
    """A run of a pool of its own, its agent, and the uid of its pod."""
    template = {"namespace": jobs_of_tests[1], "image": IMAGE}
    where.client.create_pool(PoolSpec(name=name, type="kubernetes", template=template))
    deploy(where, name, _SAYS_LINES, pool=name)
    first = where.start_agent(f"{name}-1", pool=name)
    made = run(where, name)
    output_begins(where, made)
    (pod,) = pods(jobs_of_tests, made)
    return made, first, pod["metadata"]["uid"]


def _check_handed_over(
    where: Site, jobs_of_tests: tuple[Cluster, str], made: object, pod: str, by: tuple[str, int]
) -> None:
    found = where.ended(made, 120)
    assert [(one.exit_code, one.agent, one.epoch) for one in found.attempts] == [(7, *by)]
    assert where.output(made) == _LINES
    left = pods(jobs_of_tests, made)
    assert [one["metadata"]["uid"] for one in left] in ([pod], [])
    gone(jobs_of_tests, made)


def _is_killed(where: Site, jobs_of_tests: tuple[Cluster, str]) -> None:
    made, first, pod = _begin_two(where, jobs_of_tests, "killed")
    first.kill()
    first.wait()
    with where.agent("killed-2", pool="killed"):
        _check_handed_over(where, jobs_of_tests, made, pod, ("killed-2", 2))


def _is_frozen(where: Site, jobs_of_tests: tuple[Cluster, str]) -> None:
    """It comes back while the other one has its run, and leaves the work alone."""
    made, first, pod = _begin_two(where, jobs_of_tests, "frozen")
    try:
        first.send_signal(signal.SIGSTOP)
        with where.agent("frozen-2", pool="frozen"):
            deadline = time.monotonic() + SOON
            while where.client.get_run(str(made)).attempts[-1].agent != "frozen-2":
                assert time.monotonic() < deadline
                time.sleep(0.2)
            first.send_signal(signal.SIGCONT)
            _check_handed_over(where, jobs_of_tests, made, pod, ("frozen-2", 2))
        assert "its work is left alone" in where.log("frozen-1")
        assert where.attempts("frozen-1") == []
    finally:
        first.kill()
        first.wait()


def _loses_its_disk(where: Site, jobs_of_tests: tuple[Cluster, str]) -> None:
    made, first, pod = _begin_two(where, jobs_of_tests, "fresh")
    first.kill()
    first.wait()
    shutil.rmtree(where.home / "agents" / "fresh-1")
    deadline = time.monotonic() + SOON
    while not where.client.get_run(str(made)).lost:  # another of its name is not let in before
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with where.agent("fresh-1", pool="fresh"):
        _check_handed_over(where, jobs_of_tests, made, pod, ("fresh-1", 1))


def test_runs_are_handed_over(impatient: Site, jobs_of_tests: tuple[Cluster, str]) -> None:
    """The same pod goes on under another agent: one end, the true exit code, every byte of output once."""
    with ThreadPoolExecutor(3) as pool:
        ways = (_is_killed, _is_frozen, _loses_its_disk)
        for done in [pool.submit(way, impatient, jobs_of_tests) for way in ways]:
            done.result()


def test_an_agent_that_is_told_to_stop_leaves_its_pods_to_others(
    jobs: Site, jobs_of_tests: tuple[Cluster, str]
) -> None:
    """Twenty pods, and one that is not on a node yet: the next agent goes on with them, and nobody waits for silence."""
    template = {"namespace": jobs_of_tests[1], "image": IMAGE}
    jobs.client.create_pool(PoolSpec(name="leaves", type="kubernetes", template=template))
    deploy(jobs, "leaves", "for n in $(seq 30); do echo line $n; sleep 1; done; exit 7", pool="leaves")
    deploy(jobs, "leaves-waits", "true", {"node_selector": {"no.such/node": "here"}}, pool="leaves")
    at_once = ("--drain-grace", "0s")
    first = jobs.start_agent("leaves-1", *at_once, pool="leaves", limit=30)
    try:
        made = [run(jobs, "leaves") for _ in range(20)]
        waits = run(jobs, "leaves-waits")
        for one in made:
            output_begins(jobs, one)
        before = {one: [pod["metadata"]["uid"] for pod in pods(jobs_of_tests, one)] for one in made}
        began = time.monotonic()
        first.terminate()
        assert first.wait(SOON) == 0, jobs.log("leaves-1")
        assert time.monotonic() - began < 10
    finally:
        first.kill()
        first.wait()
    with jobs.agent("leaves-2", *at_once, pool="leaves", limit=30):
        deadline = time.monotonic() + 15  # half of what a silent one has
        for one in (*made, waits):
            while jobs.client.get_run(str(one)).attempts[-1].agent != "leaves-2":
                assert time.monotonic() < deadline
                time.sleep(0.1)
        jobs.client.cancel_run(str(waits))
        for one in made:
            found = jobs.ended(one, 120)
            assert [(end.exit_code, end.agent, end.epoch) for end in found.attempts] == [(7, "leaves-2", 2)]
            assert jobs.output(one) == "".join(f"line {number}\n" for number in range(1, 31)).encode()
            assert [pod["metadata"]["uid"] for pod in pods(jobs_of_tests, one)] in (before[one], [])
            told = [event.kind for event in jobs.client.list_events(str(one)).events]
            assert ("left" in told, "lost" in told) == (True, False)
            gone(jobs_of_tests, one)
        assert jobs.ended(waits, _ENDS).state == "Cancelled"
        gone(jobs_of_tests, waits)
    assert jobs.attempts("leaves-2") == []


def test_what_a_run_waits_for_is_read_by_people(jobs: Site, jobs_of_tests: tuple[Cluster, str]) -> None:
    """The scheduler's words, while it waits; and as its end, if it waits in vain."""
    deploy(jobs, "waits", "true", {"node_selector": {"no.such/node": "here"}}, start_timeout=8)
    with jobs.agent("waits", pool="cluster"):
        made = run(jobs, "waits")
        deadline = time.monotonic() + SOON
        while "0/1 nodes are available" not in jobs.client.explain_run(str(made)).model_dump_json():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        found = jobs.ended(made, _ENDS)
        assert (found.state, found.cause) == ("Crashed", "unschedulable")
        assert "didn't match Pod's node affinity/selector" in (found.message or "")
        gone(jobs_of_tests, made)
