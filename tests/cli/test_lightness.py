"""What a command imports before it has to."""

from __future__ import annotations

import importlib.metadata
import json

from tests.cli.console import Console

HEAVY = (
    "httpx",
    "pydantic",
    "rich",
    "typer",
    "click",
    "asyncio",
    "ssl",
    "sqlalchemy",
    "fastapi",
    "structlog",
)


def _loaded(alone: Console, code: str) -> set[str]:
    import sys

    script = f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = alone.execute([sys.executable, "-c", script])
    assert done.code == 0, done.err
    return {name.partition(".")[0] for name in json.loads(done.text.splitlines()[-1])}


def test_the_entry_point_is_light(alone: Console) -> None:
    assert not _loaded(alone, "import shunter_cli.main").intersection(HEAVY)


def test_version_imports_nothing_heavy(alone: Console) -> None:
    code = "from shunter_cli.main import main\nassert main(['--version']) == 0"
    assert not _loaded(alone, code).intersection(HEAVY)


def test_help_needs_no_client(alone: Console) -> None:
    code = "from shunter_cli.main import main\nmain(['run', '--help'])"
    assert not _loaded(alone, code).intersection({"httpx", "rich", "sqlalchemy"})


def test_the_client_leaves_the_command_line_of_httpx_alone(alone: Console) -> None:
    loaded = _loaded(alone, "import shunter_work_pools.client, httpx\nassert callable(httpx.main)")
    assert not loaded.intersection({"rich", "pygments", "click"})


def test_version(alone: Console) -> None:
    assert alone.ok("--version").text == f"shunter {importlib.metadata.version('shunter')}\n"
