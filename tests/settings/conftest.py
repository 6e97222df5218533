"""Terminals and settings of a test's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter_work_pools.contracts.configuration import Values, load
from tests.cli.console import Console, console, free_port


@pytest.fixture(scope="session")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of this test run keep their compiled modules."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home."""
    made = tmp_path / "home"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def shunter(home: Path, tmp_path: Path, module_cache: Path) -> Console:
    """A terminal in that home; nothing is set but where the home is."""
    return console(home, tmp_path / "folder", free_port(), module_cache).having(SHUNTER_API_URL="")


@pytest.fixture
def loaded(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Values]:
    """Load settings in this process: of a file's text, of variables, of flags."""
    for name in list(os.environ):
        if name.startswith("SHUNTER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SHUNTER_HOME", str(home))

    def load_from(text: str | None = None, flags: dict[str, object] | None = None, **env: str) -> Values:
        if text is not None:
            (home / "config.toml").write_text(text)
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            return load(flags)

    return load_from
