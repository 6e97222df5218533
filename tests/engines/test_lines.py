"""The two lines in which the suites run: see ``tests/__main__.py``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.__main__ import ENGINES, closing_words

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


LINE = """
import pytest

@pytest.fixture
def broken():
    raise OSError("no engine")

def test_green(): pass
def test_red(): assert 1 == 2, "the cause"
def test_without_its_engine(broken): pass
def test_left_out(): pytest.skip("not today")
"""


def test_what_failed_in_either_line_is_said_last(tmp_path: Path) -> None:
    (tmp_path / "test_line.py").write_text(LINE)
    reports = [tmp_path / "engines.xml", tmp_path / "others.xml"]
    words = [*(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-o", "junit_family=xunit1")]
    ended = [
        subprocess.run(
            [*words, "-k", wanted, f"--junitxml={report}", str(tmp_path)],
            cwd=_TESTS.parent,
            env={**os.environ, "SHUNTER_TEST_REQUIRE": ""},
            capture_output=True,
            timeout=60,
        ).returncode
        for wanted, report in zip(("test_red or engine", "green or left_out"), reports, strict=True)
    ]
    told = list(closing_words(reports, ended))
    assert [line.partition("::")[2] for line in told[:2]] == [
        "test_red AssertionError: the cause",
        'test_without_its_engine failed on setup with "OSError: no engine"',
    ]
    assert told[2:] == ["1 passed, 2 failed, 1 skipped"]


def test_a_line_that_was_killed_or_found_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "others.xml").write_text("<testsuites></testsuites>")
    killed, nothing, counts = closing_words([tmp_path / "engines.xml", tmp_path / "others.xml"], [-9, 5])
    assert killed.startswith("engines: pytest exited with -9 and left no report")
    assert nothing.startswith("others: pytest exited with 5 though no test failed")
    assert counts == "0 passed, 0 failed, 0 skipped"
