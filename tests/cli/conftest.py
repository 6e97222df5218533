"""A real server and a real agent, as subprocesses, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.console import Console, Live, console, free_port, live_server


@pytest.fixture(scope="session")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of this test run keep their compiled modules."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, module_cache: Path) -> Iterator[Live]:
    """A server and an agent of their own home and port, shared by the tests of this folder."""
    with live_server(tmp_path_factory.mktemp("live"), module_cache) as started:
        yield started


@pytest.fixture
def alone(tmp_path: Path, module_cache: Path) -> Console:
    """A terminal with an empty home, and no server at its address."""
    return console(tmp_path / "home", tmp_path / "folder", free_port(), module_cache)
