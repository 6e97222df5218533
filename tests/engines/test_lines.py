"""The two lines in which the suites run: see ``tests/__main__.py``."""

from __future__ import annotations

import re
from pathlib import Path

from tests.__main__ import ENGINES

_TESTS = Path(__file__).parents[1]
_FIXTURES = re.compile(
    r"\b(docker_url|docker_daemon|podman_url|registry|own_registry|registry_with_login|image_archives|cluster|own_cluster): "
    r"(?!LocalCluster)"  # Dask's are processes of a test's own
)


def test_engines_are_started_in_one_line_only() -> None:
    """Two that start and end the same cluster would take it away from each other."""
    using = {
        path.relative_to(_TESTS).parts[0]
        for path in _TESTS.glob("*/test_*.py")
        if any(
            _FIXTURES.search(line)
            for line in path.read_text().splitlines()
            if "def " in line or "    " in line
        )
    }
    assert {"launchers", "cluster"} <= using
    assert using - {*ENGINES} == set()
