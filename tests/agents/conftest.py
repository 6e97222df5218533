"""One real server for all tests of agents that want one; each of them names its own agent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agents.real_server import Site, site


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A home with a running server and a pool named default."""
    with site(tmp_path_factory.mktemp("agents")) as one:
        yield one
