"""The table of settings, and what must agree with it: the docs, the code, the contracts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from shunter_agents import attempt_secrets, crash_hooks
from shunter_cli.reference import page
from shunter_infrastructure import run_environment
from shunter_infrastructure.process import environment
from shunter_work_pools import proxies
from shunter_work_pools.contracts.configuration import Values
from shunter_work_pools.contracts.deployments import Keep
from shunter_work_pools.contracts.settings import (
    BY_VARIABLE,
    HOME_VARIABLE,
    JOIN_VARIABLE,
    PROFILE_VARIABLE,
    RELATIONS,
    RUN_VARIABLES,
    SETTINGS,
    TEST_PREFIX,
)
from shunter_work_pools.settings import Settings, settings_of

ROOT = Path(__file__).resolve().parents[2]
#: Times of the server's loops that nobody needs to change but tests.
INTERNAL = {"reap_every", "heartbeat_every"}


def test_the_page_of_settings_is_as_the_code_says() -> None:
    assert (ROOT / "docs/settings.md").read_text("utf-8") == page(), "stale: make docs"


@pytest.mark.parametrize("words", [["--help"], [], ["a", "b"]])
def test_the_page_is_written_into_no_file_that_was_meant_as_an_option(
    tmp_path: Path, words: list[str]
) -> None:
    line = [sys.executable, "-m", "shunter_cli.reference", *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "it takes the file to write" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_example_on_the_page_is_one(loaded: Callable[..., Values]) -> None:
    example = page().partition("```toml\n")[2].partition("```")[0]
    values = loaded(example)
    assert values["server.late_after"] == 60
    assert loaded(None, SHUNTER_PROFILE="default")["log.level"] == "debug"


def _variables(path: Path) -> set[str]:
    """Variables that a file names; in Python those of whole strings, not what its prose says."""
    text = path.read_text("utf-8", "replace")
    if path.suffix == ".py":
        strings = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
        return {one for one in strings if isinstance(one, str) and re.fullmatch(r"SHUNTER_[A-Z0-9_]+", one)}
    return set(re.findall(r"\bSHUNTER_[A-Z0-9_]*[A-Z0-9]\b", text))


def test_every_variable_that_the_code_reads_is_a_setting() -> None:
    known = {*BY_VARIABLE, *RUN_VARIABLES, HOME_VARIABLE, PROFILE_VARIABLE, JOIN_VARIABLE}
    rooms = ("flows", "work_pools", "agents", "infrastructure", "cli", "helm", "examples")
    files = [
        path
        for room in rooms
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".yaml", ".yml", ".tpl", ".sh") and path.is_file()
    ]
    found = {variable: path for path in files for variable in _variables(path)}
    assert HOME_VARIABLE in found
    assert "SHUNTER_RESULT" in found
    unknown = {
        name: str(path)
        for name, path in found.items()
        if name not in known and not name.startswith(TEST_PREFIX) and name not in (TEST_PREFIX, "SHUNTER_")
    }
    assert not unknown


#: With a token, and settings at that.
SPEAKS = {"SHUNTER_API_URL", "SHUNTER_TLS_CA"}


def test_what_an_agent_sets_inside_a_run_is_known() -> None:
    files = (run_environment, environment, attempt_secrets, crash_hooks, proxies)
    found = {name for module in files for name in _variables(Path(module.__file__))}
    assert found - {"SHUNTER_"} == RUN_VARIABLES | SPEAKS


def test_the_docs_list_what_a_run_is_given() -> None:
    inside = (ROOT / "docs/environment.md").read_text().partition("## Inside a run")[2]
    told = set(re.findall(r"SHUNTER_[A-Z_]+", inside))
    between = {"SHUNTER_ENTRYPOINT", "SHUNTER_FAILURE"}  # launcher and runner
    assert told == (RUN_VARIABLES | SPEAKS) - between


def test_the_settings_of_server_and_retention_are_all_there() -> None:
    server = {one.name for one in fields(Settings)} - INTERNAL - {"keep", "audit_for"}
    assert {f"server.{name}" for name in server} <= set(SETTINGS)
    assert {f"keep.{name}" for name in (*Keep.model_fields, "audit_for")} == {
        name for name in SETTINGS if name.startswith("keep.")
    }


def test_the_defaults_are_those_of_the_server() -> None:
    found = settings_of({name: setting.default for name, setting in SETTINGS.items()})
    # A server inside of a program has no limits but those that it is given.
    assert replace(found, audit_for=None, rate_limit=None, log_limit=None) == Settings()
    assert None not in (found.audit_for, found.rate_limit, found.log_limit)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_described_and_its_default_is_one(name: str) -> None:
    setting = SETTINGS[name]
    assert setting.doc.endswith(".")
    assert setting.usual
    if setting.default is not None:
        assert setting.read(setting.written(setting.default, secrets=True)) == setting.default


def test_reading_them_loads_little() -> None:
    script = "import sys, shunter_work_pools.contracts.configuration as c; c.load(); print(*sys.modules)"
    env = {"PATH": "/usr/bin:/bin", "SHUNTER_HOME": "/nowhere"}
    words = [sys.executable, "-c", script]
    loaded = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.split()
    heavy = {"pydantic", "httpx", "typer", "rich", "tomlkit", "tomllib", "secrets", "difflib"}
    assert not heavy.intersection(loaded)


def test_the_defaults_fit() -> None:
    defaults = {name: setting.default for name, setting in SETTINGS.items()}
    assert all(relation.holds(defaults) for relation in RELATIONS)
