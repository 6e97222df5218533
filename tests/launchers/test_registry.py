"""Launchers by pool type."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_infrastructure.registry import launcher_for
from shunter_work_pools.contracts.errors import InvalidInput


def test_the_launcher_of_a_type() -> None:
    assert isinstance(launcher_for("process"), ProcessLauncher)
    fake = launcher_for("fake", {"scripts": {"hello": ["exit=3"]}})
    assert isinstance(fake, FakeLauncher)
    assert fake.scripts == {"hello": ["exit=3"]}


def test_a_type_that_does_not_exist() -> None:
    with pytest.raises(InvalidInput, match="'vm'"):
        launcher_for("vm")


def test_no_engine_is_imported_before_it_is_wanted() -> None:
    code = """
import sys
import shunter_infrastructure.registry
print(sorted(name for name in sys.modules if name.startswith(("docker", "kubernetes", "shunter_infrastructure.process"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_forker_imports_little() -> None:
    code = """
import sys
sys.path[:] = [p for p in sys.path]
before = set(sys.modules)
import shunter_infrastructure.process.keeper
large = {"typing", "json", "re", "enum", "signal", "ctypes", "asyncio", "socket", "contextlib", "pathlib", "pydantic"}
print(sorted(large & (set(sys.modules) - before)))
"""
    import shunter_infrastructure

    root = shunter_infrastructure.__path__[0].rsplit("/", 1)[0]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({root!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
