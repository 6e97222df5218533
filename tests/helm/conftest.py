"""Places of the cluster to install into, with Helm 4 or Helm 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.charts.building import Tools
from tests.cluster.cluster import Cluster, OwnCluster
from tests.helm.effects import Effects, listening
from tests.helm.releases import Place, Terminal, terminal

NewPlace = Callable[..., AbstractContextManager[Place]]


@pytest.fixture(scope="session")
def terminals(
    cluster: Cluster,
    chart_tools: Tools,
    image_archives: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, Terminal]:
    """A terminal for each Helm, by its major version. The images are built: ``make images`` has them at once."""
    if not isinstance(cluster, OwnCluster):
        pytest.skip("the cluster of KUBECONFIG has not the images: unset it, and make cluster-up images")
    programs = {3: chart_tools.helm3, 4: chart_tools.helm4}
    return {
        major: terminal(cluster, program, tmp_path_factory.mktemp(f"helm-{major}"))
        for major, program in programs.items()
    }


@pytest.fixture(scope="session")
def images(cluster: Cluster, image_archives: dict[str, Path]) -> None:
    """The cluster has those of agent and server."""
    assert isinstance(cluster, OwnCluster)
    for archive in image_archives.values():
        cluster.load_image(archive)


@pytest.fixture(scope="session")
def prefix() -> str:
    """What the names of this test run's namespaces begin with."""
    return f"helm-{uuid4().hex[:6]}"


@pytest.fixture(scope="session")
def new_place(terminals: dict[int, Terminal], images: None) -> NewPlace:
    """Makes a namespace for as long as it is wanted: its name, its labels, and the major version of the Helm there."""

    @contextmanager
    def make(namespace: str, helm: int = 4, labels: dict[str, str] | None = None) -> Iterator[Place]:
        where = terminals[helm]
        metadata: dict[str, Any] = {"name": namespace, "labels": labels or {}}
        where.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        where.cluster.kubectl(
            "wait", "--for=create", "serviceaccount/default", "-n", namespace, "--timeout=60s"
        )
        try:
            yield Place(where, namespace)
        finally:
            where.cluster.kubectl("delete", "namespace", namespace, "--wait=false")

    return make


@pytest.fixture(scope="module")
def effects(cluster: Cluster) -> Iterator[Effects]:
    """What runs of a module do to the world outside."""
    assert isinstance(cluster, OwnCluster)
    with listening(cluster.machine.outside) as one:
        yield one
