"""Code and environments all the way: a real server, a real agent, a real git server, real runs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.runs import Run, RunRequest
from shunter_work_pools.contracts.states import Cause
from tests.agents.real_server import Site, site
from tests.patience import SOON
from tests.sources.git_server import GitServer, Repository, git_server
from tests.sources.packages import wheel

AGENT = "code-agent"
FLOW = """\
import os, pathlib, sys
import tiny

def main():
    here = pathlib.Path(__file__).parent
    print("VERSION", "{version}", "TINY", tiny.VERSION, (here / "data.txt").read_text().strip())
    print("SAME", sys.prefix, os.environ["VIRTUAL_ENV"] if "VIRTUAL_ENV" in os.environ else "-")
    if os.environ["SHUNTER_ATTEMPT"] == "1" and os.path.exists({fail!r}):
        sys.exit(3)
    return {{"version": "{version}"}}
"""


@dataclass
class Place:
    """A server, its agent, and a repository with a flow."""

    site: Site
    git: GitServer
    repository: Repository
    root: Path

    def commit(self, version: str) -> str:
        fail = str(self.root / "fail")
        return self.repository.commit(
            {"flows/job.py": FLOW.format(version=version, fail=fail), "flows/data.txt": f"data {version}\n"}
        )

    def start(self, name: str, **more: Any) -> str:
        """Deploy and start a run; its id."""
        work = {
            "entrypoint": "job.py:main",
            "source": {"git": f"{self.git.url}/code/.git", "branch": "main", "folder": "flows"},
            "environment": {"requirements": ["tiny"]},
        } | more.pop("work", {})
        spec = DeploymentSpec.model_validate({"pool": "default", "work": work, **more})
        self.site.client.deploy(name, spec)
        return str(self.site.client.create_run(RunRequest(deployment=name)).id)

    def until(self, run: str, what: Callable[[Run], bool], seconds: float = SOON) -> Run:
        deadline = time.monotonic() + seconds
        while not what(found := self.site.client.get_run(run)):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("code")
    wheel(root / "index", "tiny", "1.0")
    repository = Repository(root / "served" / "code")
    env = {"UV_FIND_LINKS": str(root / "index"), "UV_OFFLINE": "1", "UV_PYTHON_DOWNLOADS": "never"}
    with site(root / "home") as here, git_server(root / "served") as served:
        with here.agent(AGENT, env=env):
            yield Place(here, served, repository, root)
        assert here.left_over() == []


def test_code_and_environment_are_had_and_a_retry_works_with_the_same_commit(place: Place) -> None:
    first = place.commit("one")
    (place.root / "fail").touch()
    run = place.start("pinned", retries={"count": 1, "delay": 3.0})
    place.until(run, lambda found: found.state == "Retrying")
    second = place.commit("two")  # the branch moves on
    ended = place.site.ended(run)
    assert (ended.state, ended.result) == ("Completed", {"version": "one"})
    assert [attempt.commit for attempt in ended.attempts] == [first, first]
    output = place.site.output(run).decode()
    assert "VERSION one TINY 1.0 data one" in output
    assert str(place.root / "home" / "cache" / "environments") in output
    (place.root / "fail").unlink()
    again = place.site.ended(place.start("pinned"))
    assert (again.attempts[0].commit, again.result) == (second, {"version": "two"})


def test_a_command_runs_in_the_environment_from_the_folder_of_the_source(place: Place) -> None:
    place.commit("three")
    run = place.start(
        "command",
        work={"entrypoint": None, "command": ["python", "-c", "import tiny; print('tiny', tiny.VERSION)"]},
    )
    assert place.site.ended(run).state == "Completed"
    assert "tiny 1.0" in place.site.output(run).decode()


def test_a_repository_that_is_away_is_waited_for_and_told(place: Place) -> None:
    place.commit("four")
    place.git.answer = 503
    run = place.start("away")
    found = place.until(run, lambda found: bool(found.attempts and found.attempts[0].note))
    assert "503" in str(found.attempts[0].note)
    place.git.answer = None
    assert place.site.ended(run).state == "Completed"
    place.git.answer = 503
    ended = place.site.ended(place.start("away", work={"start_timeout": 1.0}))
    place.git.answer = None
    assert (ended.state, ended.cause) == ("Crashed", Cause.SOURCE)
    assert "503" in str(ended.message)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ({"environment": {"requirements": ["tiny==9"]}}, "tiny==9"),
        ({"environment": {"requirements_file": "none.txt"}}, "is not in the source"),
        ({"entrypoint": "none.py:main"}, "none.py of the entrypoint"),
    ],
)
def test_what_cannot_be_had_is_the_runs_cause(place: Place, work: dict[str, Any], words: str) -> None:
    place.commit("five")
    ended = place.site.ended(place.start("wrong", work=work))
    assert (ended.state, ended.cause) == ("Crashed", Cause.SOURCE)
    assert words in str(ended.message)


def test_an_agent_that_is_killed_goes_on_with_the_commit_that_it_had(tmp_path: Path) -> None:
    """It has fetched the code and dies before the launch: the next life launches the same commit."""
    repository = Repository(tmp_path / "served" / "code")
    with site(tmp_path / "home") as here, git_server(tmp_path / "served") as served:
        place = Place(here, served, repository, tmp_path)
        first = repository.commit({"flows/job.sh": "#!/bin/sh\necho first\n"})
        work = {
            "entrypoint": None,
            "environment": None,
            "command": ["sh", "-c", "cat $SHUNTER_SOURCE/job.sh"],
        }
        run = place.start("killed", work=work)
        dying = here.start_agent("dying", kill_at="after-launch-requested")
        assert dying.wait(SOON) == -signal.SIGKILL
        repository.commit({"flows/job.sh": "#!/bin/sh\necho second\n"})
        with here.agent("dying"):
            ended = here.ended(run)
            assert (ended.state, ended.attempts[0].commit) == ("Completed", first)
            assert b"echo first" in here.output(run)


def test_the_package_of_an_environment_is_its_code(place: Place) -> None:
    wheel(place.root / "index", "tool", "1.0", {"tool.py": "def main():\n    return 'from the package'\n"})
    run = place.start(
        "package",
        work={"entrypoint": "tool:main", "source": None, "environment": {"requirements": ["tool"]}},
    )
    assert place.site.ended(run).result == "from the package"
