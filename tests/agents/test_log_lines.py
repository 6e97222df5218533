"""Each line of the agent's log that concerns a run says which: ``run`` and ``attempt``."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import shunter_agents
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
#: What a line says that concerns one.
CONCERNS = re.compile(
    r"\b(a|the|this) (run|report|attempt|journal)\b|\bof (a|this) run\b|an (attempt|assignment)\b|a folder"
)


def _lines() -> list[tuple[str, int, str, bool]]:
    """File, line, message and whether the names go with it, of every call of the log."""
    found = []
    for path in sorted(Path(shunter_agents.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
            ):
                continue
            said = " ".join(
                part.value
                for part in ast.walk(node.args[0])
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
            keys = {one.arg for one in node.keywords}
            found.append((path.name, node.lineno, said, None in keys or {"run", "attempt"} <= keys))
    return found


#: Read before any test runs: parsing may fail in CPython 3.11 while something else parses (gh-106905).
LINES = _lines()


def test_every_line_that_concerns_a_run_names_it() -> None:
    assert len(LINES) > 30
    concerned = [line for line in LINES if CONCERNS.search(line[2])]
    assert len(concerned) > 20
    assert [line for line in concerned if not line[3]] == []


def test_lines_of_a_real_run_are_json_with_both(here: Site) -> None:
    here.client.deploy("told", DeploymentSpec(work=Work(command=["true"]), pool="default"))
    with here.agent("told"):
        run = here.client.create_run(RunRequest(deployment="told")).id
        here.ended(run)
    lines = [json.loads(line) for line in here.log("told").splitlines()]
    mine = [line for line in lines if line.get("run") == str(run)]
    assert {"a run has started", "a run has ended"} <= {line["event"] for line in mine}
    assert all(line["attempt"] == 1 for line in mine)
    assert all("run" in line for line in lines if CONCERNS.search(line["event"]))
