"""A real Docker engine that has the images of agent and server, and a server in a container of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.console import Console, console, free_port
from tests.engines.images import name
from tests.images.containers import STRICT, Engine


@pytest.fixture(scope="session")
def engine(docker_url: str, image_archives: dict[str, Path]) -> Iterator[Engine]:
    """The engine; one test has its containers while it runs."""
    one = Engine(docker_url)
    for archive in image_archives.values():
        one("load", "--quiet", "--input", str(archive))
    try:
        yield one
    finally:
        one.clear()


@dataclass
class Served:
    """A server in a container, and a terminal outside that knows it.

    Attributes:
        url: where agents find it.
    """

    engine: Engine
    container: str
    shunter: Console
    url: str
    token: str


@pytest.fixture(scope="session")
def served(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Served:
    base, port = tmp_path_factory.mktemp("served"), free_port()
    container = engine.run(
        *(*STRICT, f"--volume={engine.volume()}:/var/lib/shunter", name("server")),
        SHUNTER_SERVER_HOST="127.0.0.1",
        SHUNTER_SERVER_PORT=str(port),
    )
    engine.until_healthy(container)
    token = engine.inside(container, "cat", "/var/lib/shunter/token")
    shunter = console(base / "home", base / "folder", port, base / "cache", {"SHUNTER_TOKEN": token})
    return Served(engine, container, shunter, f"http://127.0.0.1:{port}/api", token)
