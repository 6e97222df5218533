"""Helm, its unit tests and its documents for tests: built once from Go, see ``tests/charts/building.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.charts.building import Tools, tools
from tests.cluster.packages import CannotHaveCluster


@pytest.fixture(scope="session")
def chart_tools() -> Tools:
    """Where Helm 3, Helm 4, helm-unittest and helm-docs are."""
    try:
        return tools()
    except CannotHaveCluster as error:
        pytest.skip(f"no Helm: {error}")


@pytest.fixture(scope="session", params=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, chart_tools: Tools) -> Path:
    """The program: each test runs with both."""
    found: Path = getattr(chart_tools, request.param)
    return found


@pytest.fixture(scope="session")
def helm4(chart_tools: Tools) -> Path:
    """The program, for what one Helm shows."""
    return chart_tools.helm4
