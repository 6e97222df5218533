"""What becomes of a test that is left out: a skip, or something that this kernel cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = """
import pytest
from tests.engines.closing_words import not_applicable

def test_skipped():
    pytest.skip("no engine")

def test_of_another_kernel():
    not_applicable("this kernel has no such thing")
"""


@pytest.mark.parametrize(("require", "failed"), [("", False), ("all", True)])
def test_what_a_kernel_cannot_run_is_listed_and_is_no_failure(
    tmp_path: Path, require: str, failed: bool
) -> None:
    (tmp_path / "test_left_out.py").write_text(LEFT_OUT)
    told = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.engines.closing_words",
            "-c",
            os.devnull,
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "SHUNTER_TEST_REQUIRE": require},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == failed
    assert ("1 failed" in told.stdout) == failed
    assert "1 x no engine" in told.stdout
    listed = told.stdout.partition("not applicable: facts about this kernel or system")[2]
    assert "1 x this kernel has no such thing" in listed
    assert "test_of_another_kernel" in listed
    assert (
        "not applicable: this kernel" not in told.stdout.partition("SKIPPED:")[2].partition("short test")[0]
    )
