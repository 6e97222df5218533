"""What tests of services share: systemd's judgement, a socket like its own, a command line with a world of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.real_server import Site, site
from tests.engines import systemd
from tests.services.notifying import Listener


@pytest.fixture(scope="session")
def analyze(tmp_path_factory: pytest.TempPathFactory) -> systemd.Analyze:
    """``systemd-analyze``, which starts nothing."""
    program = systemd.find_analyze()
    if program is None and os.environ.get("SHUNTER_TEST_INSTALL") == "1":
        systemd.install()
        program = systemd.find_analyze()
    if program is None:
        pytest.skip(
            "no systemd-analyze: install systemd, or set SHUNTER_TEST_INSTALL=1 (root, Debian or Ubuntu)"
        )
    return systemd.Analyze(program, tmp_path_factory.mktemp("analyze"))


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    """A socket that is told how a daemon is, as systemd has one."""
    with Listener(str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}") as one:
        yield one


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Listener]:
    """The same, by a path alone."""
    with Listener(str(tmp_path / "notify")) as one:
        yield one


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A home with a running server and a pool named default."""
    with site(tmp_path_factory.mktemp("services")) as one:
        yield one
