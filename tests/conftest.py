"""Fixtures of the engines that tests run against, and the closing words of a test run.

Nothing on the system is changed unless ``SHUNTER_TEST_INSTALL=1`` allows it; what could not be run is
listed at the end, and is a failure with ``SHUNTER_TEST_REQUIRE=all``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines import builder, docker, images, podman
from tests.engines import promtool as prometheus_tool
from tests.engines import registry as registries
from tests.engines.postgres import PostgresCluster, find_binaries, install

pytest_plugins = ["tests.engines.closing_words", "tests.engines.helm", "tests.engines.kubernetes"]


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """The folder of Postgres' programs, for a cluster of a test's own."""
    binaries = find_binaries()
    if binaries is None and os.environ.get("SHUNTER_TEST_INSTALL") == "1":
        install()
        binaries = find_binaries()
    if binaries is None:
        pytest.skip("no Postgres: install its server, or set SHUNTER_TEST_INSTALL=1 (root, Debian or Ubuntu)")
    return binaries


@pytest.fixture(scope="session")
def postgres_server(postgres_binaries: Path) -> Iterator[PostgresCluster]:
    """A throw-away Postgres cluster for this test run."""
    cluster = PostgresCluster(postgres_binaries)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresCluster) -> str:
    """URL (``postgresql+asyncpg://``) of the cluster's maintenance database, shared by all tests."""
    return postgres_server.url()


@pytest.fixture
def postgres_database(postgres_server: PostgresCluster) -> Iterator[str]:
    """URL of an empty database of this test's own."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="module")
def postgres_module_database(postgres_server: PostgresCluster) -> Iterator[str]:
    """URL of an empty database that the tests of one module share."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prometheus' own judge of metrics."""
    found = prometheus_tool.find()
    if found is None and os.environ.get("SHUNTER_TEST_INSTALL") == "1":
        found = prometheus_tool.fetch(tmp_path_factory.mktemp("promtool"))
    if found is None:
        pytest.skip("no promtool: put it on PATH, or set SHUNTER_TEST_INSTALL=1 (Debian or Ubuntu)")
    return found


_NO_DOCKER = "no Docker engine: start one, or install it (dockerd; root), or set SHUNTER_TEST_INSTALL=1 (root, Debian or Ubuntu)"


def _need_dockerd() -> None:
    if not docker.can_start() and os.environ.get("SHUNTER_TEST_INSTALL") == "1":
        docker.install()
    if not docker.can_start():
        pytest.skip(_NO_DOCKER)


@pytest.fixture(scope="session")
def docker_url() -> Iterator[str]:
    """URL of a Docker engine that has the tests' images: one that runs already, else one of the tests' own."""
    url = docker.found()
    if url is not None:
        docker.load_images(url)
        yield url
        return
    _need_dockerd()
    with _own_daemon() as daemon:
        yield daemon.url


@pytest.fixture(scope="session")
def image_archives() -> dict[str, Path]:
    """``agent``, ``server`` -> the archive of its image, of this tree."""
    try:
        return images.archives(install=os.environ.get("SHUNTER_TEST_INSTALL") == "1")
    except builder.CannotBuild as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def podman_url() -> Iterator[str]:
    """URL of Podman's Docker-compatible service, which has the tests' images."""
    if not podman.can_start() and os.environ.get("SHUNTER_TEST_INSTALL") == "1":
        podman.install()
    if not podman.can_start():
        pytest.skip("no Podman: install it (root), or set SHUNTER_TEST_INSTALL=1 (root, Debian or Ubuntu)")
    with podman.service() as url:
        yield url


@pytest.fixture(scope="module")
def docker_daemon() -> Iterator[docker.Daemon]:
    """A Docker engine that a test may end and start again."""
    _need_dockerd()
    with _own_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def registry() -> Iterator[registries.Registry]:
    """An image registry that lets everybody in; not to be ended."""
    _need_registry()
    with registries.running() as one:
        yield one


@pytest.fixture(scope="module")
def registry_with_login() -> Iterator[registries.Registry]:
    """One that wants a login."""
    _need_registry()
    with registries.running(login=True) as one:
        yield one


@pytest.fixture
def own_registry(registry_with_login: registries.Registry) -> Iterator[registries.Registry]:
    """One that wants a login, and that a test may end: it runs again for the next one, however this one went."""
    yield registry_with_login
    if not registry_with_login.running:
        registry_with_login.start()


def _need_registry() -> None:
    if not registries.can_build():
        pytest.skip("no image registry: install Go (on PATH or in /usr/local/go), by which it is built")


@contextmanager
def _own_daemon() -> Iterator[docker.Daemon]:
    daemon = docker.Daemon()
    try:
        daemon.start()
        docker.load_images(daemon.url)
        yield daemon
    finally:
        daemon.remove()
