"""The Kubernetes cluster that tests run against: found, or brought up for this test run.

In this order: the cluster that KUBECONFIG names, unless one of our own is asked for
(``SHUNTER_TEST_INSTALL=1`` or ``SHUNTER_TEST_CLUSTER=NAME``); our own, if ``make cluster-up`` has brought it
up; our own, brought up and down again, if ``SHUNTER_TEST_INSTALL=1`` allows it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, OwnCluster, named_by_environment
from tests.cluster.packages import CannotHaveCluster

#: Seconds for the test that a cluster or the images are made for: Kubernetes may have to be built first.
_FIRST = 1800
_ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for costly in ("cluster", "image_archives"):
        if first := next((one for one in items if costly in getattr(one, "fixturenames", ())), None):
            first.add_marker(pytest.mark.timeout(_FIRST), append=False)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with the image ``localhost/python:3.11``. Use a namespace of your own."""
    own, named = OwnCluster(), named_by_environment()
    may_install = os.environ.get("SHUNTER_TEST_INSTALL") == "1"
    asked = may_install or "SHUNTER_TEST_CLUSTER" in os.environ
    if named and not asked and named.kubeconfig != own.kubeconfig:
        yield named
        return
    was_up = own.is_up
    if not was_up and not may_install:
        pytest.skip(
            "no Kubernetes: make cluster-up, set KUBECONFIG, or SHUNTER_TEST_INSTALL=1 (root, Debian)"
        )
    try:
        own.up(install=may_install)
    except CannotHaveCluster as error:
        pytest.skip(f"no Kubernetes: {error}")
    yield own
    if not was_up:
        own.down()


@pytest.fixture
def own_cluster(cluster: Cluster) -> Iterator[OwnCluster]:
    """The cluster, if its programs can be stopped; all of them are well afterwards."""
    if not isinstance(cluster, OwnCluster):
        pytest.skip("the cluster of KUBECONFIG is not ours to break: unset it, and make cluster-up")
    yield cluster
    cluster.up()


def by_hand(*words: str, name: str = "") -> subprocess.Popen[str]:
    """``python -m tests.cluster WORDS``, started."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", *(["--name", name] if name else []), *words],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
