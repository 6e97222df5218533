"""Flows in pods: a real cluster, a server that the pods reach, and what is killed of it all.

What tasks do is counted by somebody outside, so that it is seen what was executed again.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site
from tests.cluster import images
from tests.cluster.cluster import Cluster, OwnCluster
from tests.helm.effects import Effects, listening
from tests.networks.certificates import Authority
from tests.patience import SOON

pytestmark = pytest.mark.timeout(240)

IMAGE = "localhost/flows-of-tests:1"
CODE = Path(__file__).with_name("code_of_pods")
#: Of Shunter, what a flow needs, and nothing that these need in turn.
PACKAGES = [Path(__file__).parents[2] / one for one in ("flows/shunter", "work_pools/shunter_work_pools")]
_ENDS = 90.0


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, jobs_of_tests: tuple[Cluster, str]) -> Iterator[Site]:
    """A server that pods reach, with a certificate of an authority of its own, and a pool whose image has Shunter and the
    flows."""
    cluster, namespace = jobs_of_tests
    if not isinstance(cluster, OwnCluster):
        pytest.skip("the cluster of KUBECONFIG does not reach this machine: unset it, and make cluster-up")
    folder = tmp_path_factory.mktemp("flows-in-pods")
    packages = "usr/local/lib/python3.11/dist-packages"
    parts = {f"{packages}/{one.name}": one for one in PACKAGES} | {"code": CODE}
    images.python_with(folder / "image.tar", IMAGE, parts)
    cluster.load_image(folder / "image.tar")
    impatient = {"server.lost_after": "15s", "server.lease_for": "20s"}
    authority = Authority(folder / "authority", "own")
    with site(folder / "home", impatient, cluster.machine.outside, authority) as one:
        one.env["KUBECONFIG"] = str(cluster.kubeconfig)
        template = {"namespace": namespace, "image": IMAGE, "workdir": "/code"}
        one.client.create_pool(PoolSpec(name="cluster", type="kubernetes", template=template))
        yield one
        one.server.kill()  # asked to end it would wait for its connections to pods that are lost


@contextmanager
def effects_of(jobs_of_tests: tuple[Cluster, str]) -> Iterator[Effects]:
    """What the runs of one test do."""
    cluster = jobs_of_tests[0]
    assert isinstance(cluster, OwnCluster)
    with listening(cluster.machine.outside) as one:
        yield one


@pytest.fixture
def effects(pods: Site, jobs_of_tests: tuple[Cluster, str]) -> Iterator[Effects]:
    with effects_of(jobs_of_tests) as one:
        yield one


def begun(pods: Site, flow: str, effects: Effects, **parameters: Any) -> UUID:
    work = Work(entrypoint=f"flows_in_pods.py:{flow}", env={"EFFECTS": effects.url}, token=True)
    pods.client.deploy(flow, DeploymentSpec(work=work, pool="cluster", parameters=parameters))
    return pods.client.create_run(RunRequest(deployment=flow)).id


def until(found: Callable[[], bool], told: Callable[[], object], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def states(pods: Site, run: UUID) -> Counter[tuple[str, str]]:
    return Counter((task.name, task.state) for task in pods.client.each_task(str(run)))


def lose(jobs_of_tests: tuple[Cluster, str], run: UUID) -> None:
    """Its pod is deleted by force: nobody waits for it any more."""
    cluster, namespace = jobs_of_tests
    label = f"shunter.dev/run={run}"
    cluster.kubectl("delete", "pods", "-n", namespace, "-l", label, "--force", "--grace-period=0")


def _fails_and_is_retried(pods: Site, effects: Effects, jobs_of_tests: tuple[Cluster, str]) -> None:
    run = begun(pods, "whole", effects, upto=10)
    ended = pods.ended(run, _ENDS)
    output = pods.output(run).decode()
    assert (ended.state, ended.cause, ended.message) == (
        "Failed",
        "exception",
        "ValueError: the last one fails",
    ), output
    assert "| WARNING | shunter.whole | from the flow" in output
    assert "| INFO    | some.library | from a library" in output
    assert "printed" in output
    assert [one.key for one in pods.client.list_artifacts(str(run)).artifacts] == ["prices"]
    # With the end there is all that the flow did.
    assert states(pods, run)["square", "Completed"] == 9
    assert states(pods, run)["square", "Failed"] == 1
    pods.client.retry_run(str(run))
    ended = pods.ended(run, _ENDS)
    assert ended.state == "Completed", pods.output(run)
    assert ended.result == {"sizes": [100_000] * 2, "other": True, "squares": 285, "attempt": 2}
    once = Counter(["large-1", "large-2", "size", "size", "process-0", "process-1"])
    assert effects.ended == once + Counter(f"square-{n}" for n in [*range(10), 9])


def _is_lost(pods: Site, effects: Effects, jobs_of_tests: tuple[Cluster, str]) -> None:
    """In the midst of a stream of tasks: what it has not brought is done again, and nothing else."""
    run = begun(pods, "many", effects)
    until(lambda: len(effects.ended) >= 100, lambda: pods.output(run))
    lose(jobs_of_tests, run)
    ended = pods.ended(run, _ENDS)
    assert (ended.state, ended.cause) == ("Crashed", "deleted")
    # It lives a moment longer than the cluster knows of it, until it hears of its end by SIGTERM or from the server.
    until(lambda: effects.ended.pop("hook-many-Cancelled", 0) == 1, lambda: effects.ended)
    before = len(effects.ended)
    brought = states(pods, run)["slowly", "Completed"]
    # Three times a second it brings what there is: what it did in a second at most is not there.
    assert before - 50 <= brought <= before < 1000
    pods.client.retry_run(str(run))
    ended = pods.ended(run, _ENDS)
    assert (ended.state, ended.result) == ("Completed", 1000), pods.output(run)
    again = {what for what, times in effects.ended.items() if times > 1}
    assert again == {f"slowly-{n}" for n in range(brought, before)}
    assert max(effects.ended.values()) <= 2


def _is_cancelled(pods: Site, effects: Effects, jobs_of_tests: tuple[Cluster, str]) -> None:
    run = begun(pods, "long", effects)
    effects.wait_for(1)
    pods.client.cancel_run(str(run))
    ended = pods.ended(run, _ENDS)
    assert (ended.state, ended.cause) == ("Cancelled", "cancelled"), pods.output(run)
    assert states(pods, run)["waits", "Cancelled"] == 1
    assert states(pods, run)["long", "Cancelled"] == 1
    assert effects.ended == Counter(
        ["large-7", "size", "waits", "hook-waits-Cancelled", "hook-long-Cancelled"]
    )


def test_flows_in_pods(pods: Site, jobs_of_tests: tuple[Cluster, str]) -> None:
    """They bring their journals by themselves, and are retried, lost and cancelled beside each other."""

    def go(way: Callable[[Site, Effects, tuple[Cluster, str]], None]) -> None:
        with effects_of(jobs_of_tests) as effects:
            way(pods, effects, jobs_of_tests)

    ways = (_fails_and_is_retried, _is_lost, _is_cancelled)
    with pods.agent("whole", pool="cluster"), ThreadPoolExecutor(len(ways)) as beside:
        for done in [beside.submit(go, way) for way in ways]:
            done.result()


def test_agent_and_server_are_killed(pods: Site, effects: Effects) -> None:
    """The pod goes on, and brings what it did while nobody watches it; everything is done once."""
    first = pods.start_agent("killed", pool="cluster")
    try:
        run = begun(pods, "long", effects)
        effects.wait_for(1)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    pods.server.send_signal(signal.SIGKILL)
    pods.server.wait()
    effects.go_on()
    pods.start_server()
    until(lambda: states(pods, run)["waits", "Completed"] == 1, lambda: states(pods, run))
    with pods.agent("killed", pool="cluster"):
        ended = pods.ended(run, _ENDS)
        assert (ended.state, ended.result) == ("Completed", "waited"), pods.output(run)
        assert ended.attempt_count == 1
    assert effects.ended == Counter(["large-7", "size", "waits"])


def test_the_hooks_of_a_flow_that_crashed_are_called_in_another_pod(
    pods: Site, effects: Effects, jobs_of_tests: tuple[Cluster, str]
) -> None:
    """Once, though the agent is killed meanwhile and another one goes on with them."""
    cluster, namespace = jobs_of_tests
    first = pods.start_agent("hooks", pool="cluster", kill_at="after-hooks-started")
    try:
        run = begun(pods, "long", effects)
        effects.wait_for(1)
        until(lambda: states(pods, run)["size", "Completed"] == 1, lambda: states(pods, run))
        lose(jobs_of_tests, run)
        assert first.wait(SOON) == -signal.SIGKILL, pods.log("hooks")
    finally:
        first.kill()
        first.wait()
    with pods.agent("hooks-2", pool="cluster"):
        ended = pods.ended(run, _ENDS)
        assert (ended.state, ended.cause) == ("Crashed", "deleted"), ended
        # A pod that is deleted is told so by SIGTERM, and has a moment for what it does when it is cancelled.
        for one in ("hook-long-Cancelled", "hook-waits-Cancelled"):
            effects.ended.pop(one, None)
        assert effects.ended == Counter(["large-7", "size", "waits", "hook-long-Crashed"])
        (told,) = [one for one in pods.output(run).decode().splitlines() if "hook: long Crashed" in one]
        assert "{'n': 7}" in told
        assert "was deleted by somebody" in told
        label = f"shunter.dev/run={run}"
        until(
            lambda: (
                not cluster.kubectl("get", "jobs,pods,secrets", "-n", namespace, "-l", label, "-o", "name")
            ),
            lambda: cluster.get("jobs,pods", "-n", namespace, "-l", label),
        )
