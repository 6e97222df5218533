"""Output of real pods: every byte at its place, whatever is broken meanwhile, and what is gone is said."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from shunter_infrastructure.copied_output import OUTPUT
from shunter_infrastructure.kubernetes.client import Answer, Client
from shunter_infrastructure.kubernetes.log import CUT, GAP, TURNED
from shunter_infrastructure.kubernetes.output import CONTAINER, Outputs, Pod
from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_work_pools.contracts.agents import Output
from tests.cluster import images
from tests.cluster.cluster import Cluster, OwnCluster
from tests.patience import SOON

LIMIT = "--timeout=90s"


class Counted:
    """The API server, and what is asked of it."""

    def __init__(self, kubeconfig: Path) -> None:
        self._client = Client({"KUBECONFIG": str(kubeconfig)})
        self.asked: list[dict[str, str]] = []
        self.open = self.most_open = 0

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Answer]:
        self.asked.append(dict(query))
        async with self._client.stream(path, query) as answer:
            self.open += "follow" in query
            self.most_open = max(self.most_open, self.open)
            try:
                yield answer
            finally:
                self.open -= "follow" in query

    async def close(self) -> None:
        await self._client.close()


class Pods:
    """Pods of a namespace of their own, made without a Job."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def start(self, code: str, *, until: str = "Ready") -> Pod:
        """A pod that runs some Python, once its command runs."""
        pod = Pod(self.namespace, f"pod-{uuid4().hex[:8]}")
        command = ["python3", "-uc", textwrap.dedent(code)]
        container = {"name": CONTAINER, "image": images.PYTHON, "command": command}
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
        metadata = {"name": pod.name, "namespace": pod.namespace}
        self.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        if until == "Ready":
            self.wait(pod, "condition=Ready")
        else:
            self.wait(pod, f"jsonpath={{.status.phase}}={until}")
        return pod

    def wait(self, pod: Pod, condition: str) -> None:
        self.cluster.kubectl("wait", f"--for={condition}", f"pod/{pod.name}", "-n", pod.namespace, LIMIT)

    def wait_for_end(self, pod: Pod) -> None:
        self.wait(pod, "jsonpath={.status.phase}=Succeeded")

    def delete(self, pod: Pod) -> None:
        self.cluster.kubectl("delete", "pod", pod.name, "-n", pod.namespace, "--now")

    def tell(self, pod: Pod) -> None:
        """Let a pod go on that waits for the file /tmp/go."""
        self.cluster.kubectl("exec", pod.name, "-n", pod.namespace, "--", "touch", "/tmp/go")


#: For pods that wait to be told.
WAIT = "import os, time\nwait = lambda: [time.sleep(0.05) for _ in iter(lambda: os.path.exists('/tmp/go'), True)]\n"
#: containerd 1.6 loses what a container has written and is still on its way when it ends, if that is over 32 KiB: the
#: node's log is without it. Who writes so much waits a little before the end.
LINGER = "\nimport sys, time\nsys.stdout.flush()\ntime.sleep(0.5)\n"


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> Iterator[Pods]:
    namespace = f"output-{uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", namespace, LIMIT)
    yield Pods(cluster, namespace)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest_asyncio.fixture
async def api(cluster: Cluster) -> AsyncIterator[Counted]:
    made = Counted(cluster.kubeconfig)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def outputs(api: Counted) -> AsyncIterator[Callable[..., Outputs]]:
    made: list[Outputs] = []

    def make(**options: Any) -> Outputs:
        made.append(Outputs(api, **options))
        return made[-1]

    yield make
    for one in made:
        await one.close()


@pytest.fixture
def small_logs(own_cluster: OwnCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnCluster]:
    """The kubelet begins a new log after 300 KiB, and looks every three seconds (10 MiB and ten seconds are usual)."""
    monkeypatch.setattr("shunter_infrastructure.kubernetes.output._CHECK_BYTES", 100_000)
    monkeypatch.setattr("shunter_infrastructure.kubernetes.output._CHECK_AFTER", 1.0)
    with _kubelet_told(own_cluster, containerLogMaxSize="300Ki", containerLogMonitorInterval="3s"):
        yield own_cluster


@contextlib.contextmanager
def _kubelet_told(cluster: OwnCluster, **settings: str) -> Iterator[None]:
    path = cluster.folder / "settings" / "kubelet.json"
    before = path.read_text()

    def restart(text: str) -> None:
        path.write_text(text)
        cluster.stop("kubelet")
        cluster.start("kubelet")

    restart(json.dumps(json.loads(before) | settings))
    try:
        yield
    finally:
        restart(before)


def output(folder: Path) -> bytes:
    path = folder / OUTPUT
    return path.read_bytes() if path.exists() else b""


async def until(condition: Callable[[], bool], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def aside(work: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Without holding up what is copied meanwhile."""
    return await asyncio.to_thread(work, *arguments, **more)


async def test_every_byte_of_any_kind(
    pods: Pods, outputs: Callable[..., Outputs], api: Counted, tmp_path: Path
) -> None:
    """Lines over 16 KiB come in pieces, the last line has no end; two requests are all it takes."""
    code = (
        WAIT
        + r"""
wait()
for part in (b"first\n", b"x" * 100_000 + b"\n", bytes(set(range(256)) - {13}) * 3 + b"\n", b"\n\n", b"2026-11-26T07:00:00.000000000Z \n", b"last"):
    os.write(1, part)
"""
        + LINGER
    )
    pod = await aside(pods.start, code)
    one = outputs()
    one.follow(pod, tmp_path)
    await until(lambda: api.open == 1)
    await aside(pods.tell, pod)
    await aside(pods.wait_for_end, pod)
    await one.complete(pod, tmp_path)
    of_any_kind = bytes(set(range(256)) - {13}) * 3
    assert output(tmp_path) == (
        b"first\n" + b"x" * 100_000 + b"\n" + of_any_kind + b"\n\n\n2026-11-26T07:00:00.000000000Z \nlast"
    )
    assert len(api.asked) == 2


async def test_what_was_not_followed_is_read_whole_at_its_end(
    pods: Pods, outputs: Callable[..., Outputs], api: Counted, tmp_path: Path
) -> None:
    code = "import sys\nfor n in range(20_000): print(n)\nsys.stdout.write('y' * 50_000)"
    pod = await aside(pods.start, code + LINGER, until="Succeeded")
    await outputs().complete(pod, tmp_path)
    assert output(tmp_path) == b"".join(b"%d\n" % n for n in range(20_000)) + b"y" * 50_000
    assert len(api.asked) == 2


async def test_a_run_that_says_nothing_has_no_output(
    pods: Pods, outputs: Callable[..., Outputs], tmp_path: Path
) -> None:
    pod = await aside(pods.start, "pass", until="Succeeded")
    await outputs().complete(pod, tmp_path)
    assert output(tmp_path) == b""


async def test_more_pods_than_may_be_followed(
    pods: Pods, outputs: Callable[..., Outputs], api: Counted, tmp_path: Path
) -> None:
    """The others are read in turn, and whole at their end; one that ends makes room."""
    code = WAIT + "print('begun')\nwait()\nfor n in range(1000): print(n)"
    started = await asyncio.gather(*(aside(pods.start, code) for _ in range(5)))
    folders = {pod: tmp_path / pod.name for pod in started}
    one = outputs(most_open=2)
    for pod, folder in folders.items():
        folder.mkdir()
        one.follow(pod, folder)
    await until(lambda: all(output(folder) == b"begun\n" for folder in folders.values()))
    assert api.most_open == 2
    for pod in started[:2]:
        await aside(pods.tell, pod)
        await aside(pods.wait_for_end, pod)
        await one.complete(pod, folders[pod])
    await until(lambda: api.open == 2)
    for pod in started[2:]:
        await aside(pods.tell, pod)
    for pod in started[2:]:
        await aside(pods.wait_for_end, pod)
        await one.complete(pod, folders[pod])
    for folder in folders.values():
        assert output(folder) == b"begun\n" + b"".join(b"%d\n" % n for n in range(1000))
    assert api.most_open == 2
    assert api.open == 0


COUNTING = (
    WAIT
    + """
for n in range(100_000):
    os.write(1, b"%09d %s\\n" % (n, b"." * 89))
    if n % 100 == 99: time.sleep(PAUSE)
    if os.path.exists('/tmp/go'): break
time.sleep(1)  # what is on its way at the end the node may lose (docs/kubernetes-pools.md)
"""
)


def counted(count: int) -> bytes:
    return b"".join(b"%09d %s\n" % (n, b"." * 89) for n in range(count))


def is_counted(data: bytes) -> bool:
    return data == counted(len(data) // 100)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("program", ["apiserver", "kubelet", "containerd"])
async def test_a_program_of_the_cluster_is_restarted_while_it_is_followed(
    own_cluster: OwnCluster, pods: Pods, outputs: Callable[..., Outputs], tmp_path: Path, program: str
) -> None:
    pod = await aside(pods.start, COUNTING.replace("PAUSE", "0.02"))
    one = outputs()
    one.follow(pod, tmp_path)
    await until(lambda: len(output(tmp_path)) > 10_000)
    await aside(own_cluster.stop, program)
    if program == "apiserver":
        with pytest.raises(LauncherUnavailable):
            await one.complete(pod, tmp_path)
    await aside(own_cluster.start, program)
    one.follow(pod, tmp_path)
    size = len(output(tmp_path))
    await until(lambda: len(output(tmp_path)) > size + 10_000)
    await until(lambda: _may(own_cluster, pod))
    await aside(pods.tell, pod)
    await aside(pods.wait_for_end, pod)
    await one.complete(pod, tmp_path)
    assert is_counted(output(tmp_path))


def _may(cluster: Cluster, pod: Pod) -> bool:
    with contextlib.suppress(RuntimeError):
        cluster.kubectl("exec", pod.name, "-n", pod.namespace, "--", "true")
        return True
    return False


@pytest.mark.timeout(180)
async def test_the_kubelet_is_away_at_the_end(
    own_cluster: OwnCluster, pods: Pods, outputs: Callable[..., Outputs], tmp_path: Path
) -> None:
    """It is waited for."""
    pod = await aside(pods.start, "print('all')", until="Succeeded")
    await aside(own_cluster.stop, "kubelet")
    ending = asyncio.create_task(outputs().complete(pod, tmp_path))
    await asyncio.wait([ending], timeout=3)
    assert not ending.done()
    await aside(own_cluster.start, "kubelet")
    await ending
    assert output(tmp_path) == b"all\n"


@pytest.mark.timeout(180)
async def test_the_kubelet_does_not_come_back(
    own_cluster: OwnCluster,
    pods: Pods,
    outputs: Callable[..., Outputs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not waited for for ever."""
    monkeypatch.setattr("shunter_infrastructure.kubernetes.output._PATIENCE", 2.0)
    pod = await aside(pods.start, COUNTING.replace("PAUSE", "0.02"))
    one = outputs()
    one.follow(pod, tmp_path)
    await until(lambda: len(output(tmp_path)) > 10_000)
    await aside(own_cluster.stop, "kubelet")
    await one.complete(pod, tmp_path)
    assert output(tmp_path).endswith(CUT)
    assert is_counted(output(tmp_path).removesuffix(CUT))
    await aside(own_cluster.start, "kubelet")


async def test_a_pod_is_deleted_while_it_is_followed(
    pods: Pods, outputs: Callable[..., Outputs], tmp_path: Path
) -> None:
    """What it wrote last may be lost, and that is said; the words of the kubelet are no output."""
    pod = await aside(pods.start, COUNTING.replace("PAUSE", "0.02"))
    one = outputs()
    one.follow(pod, tmp_path)
    await until(lambda: len(output(tmp_path)) > 10_000)
    await aside(pods.delete, pod)
    await one.complete(pod, tmp_path)
    assert output(tmp_path).endswith(CUT)
    assert is_counted(output(tmp_path).removesuffix(CUT))


@pytest.mark.timeout(240)
async def test_twenty_megabytes_through_many_new_logs(
    small_logs: OwnCluster, pods: Pods, outputs: Callable[..., Outputs], tmp_path: Path
) -> None:
    """The stream goes over from one log to the next; that there was more than one is said at the end."""
    pod = await aside(
        pods.start,
        WAIT
        + "wait()\n"
        + COUNTING.replace("PAUSE", "0.008")
        .replace("if os.path", "if n == 200_000 and os.path")
        .replace("100_000", "200_000"),
    )
    one = outputs()
    one.follow(pod, tmp_path)
    await aside(pods.tell, pod)
    await aside(pods.wait_for_end, pod)
    await one.complete(pod, tmp_path)
    assert output(tmp_path).endswith(TURNED)
    assert output(tmp_path).removesuffix(TURNED) == counted(200_000)


@pytest.mark.timeout(240)
async def test_new_logs_while_nobody_reads(
    small_logs: OwnCluster, pods: Pods, outputs: Callable[..., Outputs], tmp_path: Path
) -> None:
    """What is gone is marked at its place, and all that there is is there, once."""
    pod = await aside(pods.start, COUNTING.replace("PAUSE", "0.02"))
    one = outputs()
    one.follow(pod, tmp_path)
    await until(lambda: len(output(tmp_path)) > 10_000)
    await one.close()
    read = len(output(tmp_path))
    # Two new logs: the first line that can be read is beyond what was read. One that has just begun has none.
    await until(
        lambda: (
            bool(there := pods.cluster.kubectl("logs", pod.name, "-n", pod.namespace).split())
            and int(there[0]) > read // 100 + 1
        )
    )
    await aside(pods.tell, pod)
    await aside(pods.wait_for_end, pod)
    await outputs().complete(pod, tmp_path)
    before, after = output(tmp_path).split(GAP)
    assert is_counted(before)
    numbers = [int(line.split()[0]) for line in after.splitlines()]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[0] > len(before) // 100


async def test_another_agent_goes_on(pods: Pods, outputs: Callable[..., Outputs], tmp_path: Path) -> None:
    """With a fresh disk; offsets are those of the output."""
    pod = await aside(pods.start, COUNTING.replace("PAUSE", "0.02"))
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    one = outputs()
    one.follow(pod, old)
    await until(lambda: len(output(old)) > 10_000)
    await one.forget(old)
    known = output(old)
    handed_over = Output(size=len(known), tail=base64.b64encode(known[-256:]).decode())
    one.follow(pod, new, handed_over)
    await until(lambda: len(output(new)) > len(known) + 10_000)
    await aside(pods.tell, pod)
    await aside(pods.wait_for_end, pod)
    await one.complete(pod, new, handed_over)
    assert is_counted(output(new))
