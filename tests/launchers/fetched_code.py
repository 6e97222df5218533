"""Code that an agent fetches for runs that an engine runs: what any such engine shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.contracts.states import Cause
from tests.agents.real_server import Site
from tests.sources.git_server import Repository

_PROGRAM = """#!/bin/sh
cat "$(dirname "$0")/../data.txt"
touch "$SHUNTER_SOURCE/written" 2>/dev/null && echo written
exit 0
"""
_FLOW = """import pathlib
from lib.deep import word

def main():
    return {"word": word, "data": (pathlib.Path(__file__).parent / "data.txt").read_text()}
"""


def shows_fetched_code(where: Site, pool: str, root: Path, seconds: float = 60.0) -> None:
    """Entrypoints and commands run from it, nothing writes to it, and environments are refused."""
    repository = Repository(root / "code")
    commit = repository.commit(
        {
            "flows/job.py": _FLOW,
            "flows/lib/deep.py": "word = 'fetched'\n",
            "flows/data.txt": "42\n",
            "flows/bin/run": _PROGRAM,
        }
    )
    (repository.folder / "flows/bin/run").chmod(0o755)
    commit = repository.commit({})
    source = {"git": f"file://{repository.folder}", "branch": "main", "folder": "flows"}

    def start(name: str, **work: Any) -> str:
        spec = DeploymentSpec.model_validate({"pool": pool, "work": {"source": source, **work}})
        where.client.deploy(name, spec)
        return str(where.client.create_run(RunRequest(deployment=name)).id)

    with where.agent("fetcher", pool=pool):
        made = [
            start("code-function", entrypoint="job.py:main"),
            start("code-command", command=["bin/run"]),
            start("code-folder", command=["sh", "-c", "pwd; ls"], working_dir="lib"),
            start("code-environment", entrypoint="job.py:main", environment={"requirements": ["x"]}),
        ]
        function, command, folder, environment = (where.ended(run, seconds) for run in made)
        assert (function.state, function.result) == ("Completed", {"word": "fetched", "data": "42\n"}), (
            function
        )
        assert function.attempts[0].commit == commit
        assert command.state == "Completed", command
        assert where.output(made[1]) == b"42\n"
        assert b"/lib\ndeep.py" in where.output(made[2]), folder
        assert (environment.state, environment.cause) == ("Crashed", Cause.REJECTED)
        assert "the image is the environment" in str(environment.message)
