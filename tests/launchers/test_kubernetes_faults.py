"""What the cluster does to runs while they run, made to happen for real, and read back as a person reads it.

A real server and a real agent; what disturbs nobody else runs side by side. ``test_kubernetes_agent.py`` has the API server away for two minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site
from tests.cluster.cluster import OwnCluster
from tests.cluster.programs import NODE
from tests.engines.docker import IMAGE

pytestmark = pytest.mark.timeout(300)
SOON = 120.0
#: https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/#non-graceful-node-shutdown
_GIVEN_UP = "node.kubernetes.io/out-of-service"


class Yard:
    """A cluster that may be broken, a server, and an agent of a pool in a namespace of their own."""

    def __init__(self, here: Site, cluster: OwnCluster, namespace: str) -> None:
        self.here = here
        self.cluster = cluster
        self.namespace = namespace

    def run(self, script: str, variables: dict[str, Any] | None = None, **more: Any) -> str:
        """A run of a shell script, made."""
        name = f"d-{uuid4().hex[:8]}"
        retries = more.pop("retries", RetryPolicy())
        spec = DeploymentSpec(
            work=Work(command=["sh", "-c", script], **more),
            pool="cluster",
            variables=variables or {},
            retries=retries,
        )
        self.here.client.deploy(name, spec)
        return str(self.here.client.create_run(RunRequest(deployment=name)).id)

    def begun(self, run: str) -> None:
        """It has written something."""
        until(lambda: self.here.client.read_log(run).data, f"{run} writes", SOON)

    def pod(self, run: str) -> dict[str, Any]:
        """Its only pod."""
        (found,) = self.pods(run)
        return found

    def pods(self, run: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cluster.get(
            "pods", "-n", self.namespace, "-l", f"shunter.dev/run={run}"
        )["items"]
        return found

    def inspect(self, run: str) -> dict[str, Any]:
        """What ``run inspect`` tells of its last attempt, once it has ended."""
        self.here.ended(run, SOON)
        found = json.loads(self.shunter("run", "inspect", run, "-o", "json"))
        last: dict[str, Any] = found["attempts"][-1]
        return last

    def explains(self, run: str, words: str) -> None:
        """``run explain`` comes to say this."""
        until(lambda: words in self.shunter("run", "explain", run), f"{run} is explained by {words!r}", SOON)

    def shunter(self, *words: str) -> str:
        """What a command line prints."""
        done = subprocess.run(
            [sys.executable, "-m", "shunter_cli.main", *words],
            env=self.here.env | {"COLUMNS": "500"},
            cwd=self.here.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def until(true: Callable[[], object], what: str, seconds: float) -> None:
    """Return when it is so; fail when it takes too long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def broken_cluster(cluster: Any) -> Iterator[OwnCluster]:
    """The cluster, if it is ours to break."""
    if not isinstance(cluster, OwnCluster):
        pytest.skip("the cluster of KUBECONFIG is not ours to break: unset it, and make cluster-up")
    yield cluster
    cluster.up()
    cluster.kubectl("uncordon", NODE)


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, broken_cluster: OwnCluster) -> Iterator[Yard]:
    namespace = f"faults-{uuid4().hex[:8]}"
    broken_cluster.kubectl("create", "namespace", namespace)
    with site(tmp_path_factory.mktemp("faults")) as here:
        here.env["KUBECONFIG"] = str(broken_cluster.kubeconfig)
        template = {"namespace": namespace, "image": IMAGE}
        here.client.create_pool(PoolSpec(name="cluster", type="kubernetes", template=template))
        with here.agent("faults-1", pool="cluster", limit=40):
            yield Yard(here, broken_cluster, namespace)
    broken_cluster.kubectl("delete", "namespace", namespace, "--wait=false")


NUMBERS = "".join(f"{n}\n" for n in range(1, 2001)).encode()


@pytest.mark.parametrize("program", ["kubelet", "containerd"])
def test_a_program_of_the_node_is_restarted(yard: Yard, program: str) -> None:
    """What runs goes on: one that ends meanwhile and one that lives through it, each with its true end."""
    short = yard.run("echo begun; sleep 4; seq 2000; exit 4")
    long = yard.run("echo begun; sleep 14; seq 2000; exit 5")
    for one in (short, long):
        yard.begun(one)
    yard.cluster.stop(program)
    time.sleep(6)
    yard.cluster.start(program)
    for one, code in ((short, 4), (long, 5)):
        told = yard.inspect(one)
        assert (told["state"], told["cause"], told["exit_code"]) == ("Failed", "exit_code", code), told
    assert yard.here.output(long) == b"begun\n" + NUMBERS
    if program == "kubelet":
        assert yard.here.output(short) == b"begun\n" + NUMBERS
    else:  # what it writes while nobody reads, and that ends meanwhile, the node loses without a word
        assert (b"begun\n" + NUMBERS).startswith(yard.here.output(short))


def test_a_watch_that_expires(yard: Yard) -> None:
    """The API server is away, and has forgotten what the agent saw last when it is back (410): all is listed again.
    What was to begin meanwhile waits, and says for what."""
    short = yard.run("echo begun; sleep 4; exit 4")
    long = yard.run("echo begun; sleep 15; exit 5")
    for one in (short, long):
        yard.begun(one)
    yard.cluster.stop("apiserver")
    yard.cluster.compact()
    later = yard.run("exit 6")
    yard.explains(later, "API server")
    time.sleep(3)
    yard.cluster.start("apiserver")
    for one, code in ((short, 4), (long, 5), (later, 6)):
        assert yard.inspect(one)["exit_code"] == code


def a_pod_that_somebody_deletes(yard: Yard) -> None:
    one = yard.run("echo begun; sleep 600")
    yard.begun(one)
    yard.cluster.kubectl("delete", "pod", "-n", yard.namespace, yard.pod(one)["metadata"]["name"], "--now")
    told = yard.inspect(one)
    assert (told["state"], told["cause"]) == ("Crashed", "deleted"), told
    assert yard.here.output(one).startswith(b"begun\n")
    assert "deleted" in yard.shunter("run", "explain", one)


def a_job_that_somebody_deletes(yard: Yard) -> None:
    one = yard.run("echo begun; sleep 600")
    yard.begun(one)
    job = yard.pod(one)["metadata"]["labels"]["job-name"]
    yard.cluster.kubectl("delete", "job", "-n", yard.namespace, job, "--wait=false")
    told = yard.inspect(one)
    assert (told["state"], told["cause"]) == ("Crashed", "deleted"), told


def out_of_memory_and_more_of_it_the_next_time(yard: Yard) -> None:
    more = {"factor": 8, "up_to": 512 << 20}
    one = yard.run(
        "exec python3 -c 'x = bytearray(100 << 20); print(len(x))'",
        memory_limit=32 << 20,
        retries=RetryPolicy(count=1, delay=0.1, on=["oom"], more_memory=more),
    )
    found = yard.here.ended(one, SOON)
    assert [(a.state, a.cause) for a in found.attempts] == [("Crashed", "oom"), ("Completed", None)], found
    assert yard.here.output(one) == b"104857600\n"


def a_run_that_writes_too_much_is_evicted(yard: Yard) -> None:
    one = yard.run(
        "echo begun; dd if=/dev/zero of=/scratch/x bs=1M count=40 2>/dev/null; sleep 600",
        {"mounts": [{"type": "empty_dir", "target": "/scratch", "size": "10MiB"}]},
    )
    told = yard.inspect(one)
    assert (told["state"], told["cause"]) == ("Crashed", "evicted"), told
    assert "scratch" in told["message"] or "emptyDir" in told["message"] or "volume" in told["message"], told


def a_run_that_no_node_can_take_is_explained_while_it_waits(yard: Yard) -> None:
    one = yard.run("true", {"cpu": 900}, start_timeout=8)
    yard.explains(one, "Insufficient cpu")
    told = yard.inspect(one)
    assert (told["state"], told["cause"]) == ("Crashed", "unschedulable"), told
    assert "Insufficient cpu" in told["message"]


def an_image_that_nobody_has_is_explained_while_it_waits(yard: Yard) -> None:
    one = yard.run("true", {"image": "localhost:1/no-such:1"})
    yard.explains(one, "localhost:1/no-such:1")
    told = yard.inspect(one)
    assert (told["state"], told["cause"]) == ("Crashed", "image_pull"), told


def test_what_happens_to_single_runs(yard: Yard) -> None:
    """Side by side: most of it is waiting."""
    happens = [
        a_pod_that_somebody_deletes,
        a_job_that_somebody_deletes,
        out_of_memory_and_more_of_it_the_next_time,
        a_run_that_writes_too_much_is_evicted,
        a_run_that_no_node_can_take_is_explained_while_it_waits,
        an_image_that_nobody_has_is_explained_while_it_waits,
    ]
    with ThreadPoolExecutor(len(happens)) as pool:
        for one in [pool.submit(each, yard) for each in happens]:
            one.result()


def test_preempted_by_a_run_of_more_priority(yard: Yard) -> None:
    """It is tried again, which does not count, and ends well."""
    name = f"urgent-{uuid4().hex[:6]}"
    yard.cluster.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": 1000,
        }
    )
    node = yard.cluster.get("node", NODE)["status"]["allocatable"]["cpu"]
    whole = {"cpu": float(node), "cpu_request": float(node) * 0.7}
    script = "echo begun; [ $SHUNTER_ATTEMPT = 1 ] && sleep 600; echo again"
    one = yard.run(script, whole, retries=RetryPolicy(uncounted=["preempted"], delay=0.1))
    yard.begun(one)
    patch = {"spec": {"template": {"spec": {"priorityClassName": name}}}}
    urgent = yard.run("sleep 1", whole | {"patch": patch})
    assert yard.inspect(urgent)["state"] == "Completed"
    found = yard.here.ended(one, SOON)
    assert [(a.state, a.cause) for a in found.attempts] == [("Crashed", "preempted"), ("Completed", None)], (
        found
    )
    yard.cluster.kubectl("delete", "priorityclass", name)


def test_a_node_that_is_drained(yard: Yard) -> None:
    one = yard.run("echo begun; sleep 600")
    yard.begun(one)
    yard.cluster.kubectl(
        "drain",
        NODE,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        f"--pod-selector=shunter.dev/run={one}",
        "--timeout=60s",
    )
    waiting = yard.run("exit 3")
    try:
        told = yard.inspect(one)
        assert (told["state"], told["cause"]) == ("Crashed", "evicted"), told
        yard.explains(waiting, "unschedulable")
    finally:
        yard.cluster.kubectl("uncordon", NODE)
    assert yard.inspect(waiting)["exit_code"] == 3


def test_a_node_that_is_lost(yard: Yard) -> None:
    """Its kubelet says nothing any more, and its pods are given up: here by the word of a person, since the cluster
    by itself gives up none while all its nodes are silent."""
    one = yard.run("echo begun; sleep 600", grace=1)
    yard.begun(one)
    yard.cluster.stop("kubelet")
    try:
        yard.cluster.kubectl("wait", "--for=condition=Ready=Unknown", f"node/{NODE}", "--timeout=60s")
        yard.cluster.kubectl("taint", "node", NODE, f"{_GIVEN_UP}=lost:NoExecute")
        told = yard.inspect(one)
        assert (told["state"], told["cause"]) == ("Crashed", "node_lost"), told
    finally:
        yard.cluster.start("kubelet")
        yard.cluster.kubectl("taint", "node", NODE, f"{_GIVEN_UP}-")
    yard.cluster.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=60s")
