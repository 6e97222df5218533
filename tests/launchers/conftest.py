"""Launchers that are closed again, attempts in folders of their own, and nothing left behind by any test."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
import pytest_asyncio

from shunter_infrastructure.launcher import Launcher
from shunter_infrastructure.process import procfs, record
from shunter_infrastructure.process.launcher import ProcessLauncher
from tests.cluster.cluster import Cluster
from tests.launchers.attempts import (
    Attempt,
    DockerEngine,
    Engine,
    FakeEngine,
    KubernetesEngine,
    PodmanEngine,
    ProcessEngine,
    SharedFakeEngine,
    assignment,
    processes_in,
)
from tests.patience import SOON

_ENGINES = {
    "fake": FakeEngine,
    "fake-shared": SharedFakeEngine,
    "process": ProcessEngine,
    "docker": DockerEngine,
    "podman": PodmanEngine,
    "kubernetes": KubernetesEngine,
}


@pytest.fixture(scope="session")
def jobs_of_tests(cluster: Cluster) -> Iterator[tuple[Cluster, str]]:
    """A cluster, and a namespace of this test run's own that admits only what is restricted."""
    namespace = f"launchers-{uuid4().hex[:8]}"
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": label}})
    yield cluster, namespace
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(params=list(_ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine that the conformance suite runs against."""
    kind = _ENGINES[request.param]
    if issubclass(kind, DockerEngine):
        return kind(request.getfixturevalue(kind.url_fixture))
    if kind is KubernetesEngine:
        cluster, namespace = request.getfixturevalue("jobs_of_tests")
        return KubernetesEngine(cluster.kubeconfig, namespace)
    if kind is SharedFakeEngine:
        return shared_engine(request.getfixturevalue("tmp_path"))
    made: Engine = kind()
    return made


def shared_engine(root: Path) -> SharedFakeEngine:
    """A fake engine that several agents reach."""
    folder = root / "engine"
    folder.mkdir()
    return SharedFakeEngine(folder)


@pytest_asyncio.fixture
async def new_launcher(engine: Engine) -> AsyncIterator[Callable[[], Launcher]]:
    """Makes launcher objects of the engine under test."""
    made: list[Launcher] = []

    def make() -> Launcher:
        made.append(engine.launcher())
        return made[-1]

    yield make
    for launcher in made:
        await launcher.close()


@pytest_asyncio.fixture
async def launcher(new_launcher: Callable[[], Launcher]) -> Launcher:
    """A launcher of the engine under test."""
    return new_launcher()


@pytest_asyncio.fixture
async def process_launchers() -> AsyncIterator[Callable[[], ProcessLauncher]]:
    """Makes process launchers."""
    made: list[ProcessLauncher] = []

    def make(**options: Any) -> ProcessLauncher:
        made.append(ProcessLauncher(**options))
        return made[-1]

    yield make
    for launcher in made:
        await launcher.close()


@pytest_asyncio.fixture
async def processes(process_launchers: Callable[[], ProcessLauncher]) -> ProcessLauncher:
    """A process launcher."""
    return process_launchers()


@pytest.fixture
def attempts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Attempt]]:
    """Makes attempts. After the test nothing of them may run: no process, no keeper, no container."""
    engine = request.getfixturevalue("engine") if "engine" in request.fixturenames else None
    root = tmp_path / "attempts"
    root.mkdir()
    made: list[Attempt] = []

    def make(command: list[str] | None = None, **details: Any) -> Attempt:
        if engine is not None:
            details = {"template": engine.template} | details
        made.append(Attempt(assignment(command, **details), root))
        return made[-1]

    yield make
    if isinstance(engine, DockerEngine):
        remove_containers(engine.url, root)
    if isinstance(engine, KubernetesEngine):
        cluster, namespace = request.getfixturevalue("jobs_of_tests")
        remove_jobs(cluster, namespace, made)
    until = time.monotonic() + SOON
    while left := _left(root, made):
        if time.monotonic() > until:
            pytest.fail(f"left over after the test: {left}")
        time.sleep(0.01)


def remove_jobs(cluster: Cluster, namespace: str, made: list[Attempt]) -> None:
    """Remove those of some attempts; none of their pods may run any more."""
    for attempt in made:
        label = f"shunter.dev/run={attempt.assignment.run}"
        pods = cluster.get("pods", "-n", namespace, "-l", label)["items"]
        cluster.kubectl("delete", "jobs", "-n", namespace, "-l", label, "--wait=false")
        running = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]
        if running:
            pytest.fail(f"left over after the test: {running}")


def remove_containers(url: str, root: Path) -> None:
    """Remove those of the attempts in a folder; none of them may run any more."""
    client = docker.APIClient(url, timeout=60)
    try:
        found = client.containers(all=True, filters={"label": f"shunter.root={root}"})
        for one in found:
            client.remove_container(one["Id"], force=True, v=True)
        running = [one["Names"][0] for one in found if one["State"] == "running"]
        if running:
            pytest.fail(f"left over after the test: {running}")
    finally:
        client.close()


def _left(root: Path, made: list[Attempt]) -> list[str]:
    left = [f"process {pid} in {root}" for pid in processes_in(root)]
    for attempt in made:
        found = record.read(attempt.folder) if attempt.folder.exists() else None
        if found is not None and found.keeper_runs():
            left.append(f"keeper {found.keeper}")
        if found is not None and found.pid and procfs.is_running(found.pid, found.pid_start):
            left.append(f"process {found.pid}")
    return left
