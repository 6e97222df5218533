"""The agent's image: joins, runs, drains, and tells the truth about what ended with its container."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest

from shunter_work_pools.contracts.runs import Run
from tests.cli.console import free_port, until
from tests.engines.images import name
from tests.images.conftest import Served
from tests.images.containers import STRICT

pytestmark = pytest.mark.timeout(240)

#: Runs until /tmp/go is there.
WAITS = ("sh", "-c", "echo begun; until [ -e /tmp/go ]; do sleep 0.05; done; echo over")


@dataclass
class Agent:
    """An agent of a pool of its own, in a container.

    Attributes:
        name: of the agent, by its host's name and the pool.
    """

    served: Served
    pool: str
    host: str
    volume: str
    container: str = ""

    @property
    def name(self) -> str:
        return f"{self.host}-{self.pool}"

    def begin(self) -> str:
        """Have a container of it, new, on its volume; its id, once it is healthy."""
        engine = self.served.engine
        self.container = engine.run(
            *(*STRICT, f"--hostname={self.host}", f"--volume={self.volume}:/var/lib/shunter", name("agent")),
            *("agent", "start", "--pool", self.pool, "--create-pool", "process"),
            SHUNTER_API_URL=self.served.url,
            SHUNTER_TOKEN=self.served.token,
            SHUNTER_AGENT_METRICS_PORT=str(free_port()),
        )
        engine.until_healthy(self.container)
        return self.container

    def start_run(self, *words: str) -> str:
        """Its id."""
        called = f"run-{uuid4().hex[:8]}"
        shunter = self.served.shunter
        shunter.ok("deploy", "--no-source", "--name", called, "--pool", self.pool, "--", *words)
        return str(shunter.ok("run", "start", called, "--output", "json").json["id"])

    def end_of(self, run: str) -> Run:
        self.served.shunter("run", "wait", run, "--timeout", "60", timeout=90)
        return Run.model_validate(self.served.shunter.ok("run", "inspect", run, "--output", "json").json)

    def output(self, run: str) -> str:
        return self.served.shunter.ok("run", "logs", run).text


@pytest.fixture
def agent(served: Served) -> Iterator[Agent]:
    number = uuid4().hex[:6]
    one = Agent(served, f"pool-{number}", f"host-{number}", served.engine.volume())
    one.begin()
    yield one
    served.engine.attempt("rm", "--force", one.container)


def test_it_runs_what_is_due_as_nobody_special(agent: Agent) -> None:
    run = agent.start_run(
        "sh", "-c", "id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status; touch /etc/no || true"
    )
    assert agent.end_of(run).state == "Completed"
    told = agent.output(run)
    assert told.startswith("65532\n")
    assert "CapEff:\t0000000000000000" in told
    assert "NoNewPrivs:\t1" in told
    assert "Read-only file system" in told


def test_told_to_stop_it_lets_its_runs_end(agent: Agent) -> None:
    engine = agent.served.engine
    run = agent.start_run(*WAITS)
    until(lambda: "begun" in agent.output(run))
    with subprocess.Popen(
        ["docker", "stop", "--time=90", agent.container], env=engine.env, stdout=subprocess.DEVNULL
    ) as stopping:
        until(
            lambda: agent.served.shunter.ok("agent", "inspect", agent.name, "--output", "json").json[
                "draining"
            ]
        )
        assert stopping.poll() is None
        engine.inside(agent.container, "touch", "/tmp/go")
        assert engine.wait(agent.container) == 0
    end = agent.end_of(run)
    assert (end.state, agent.output(run)) == ("Completed", "begun\nover\n")


def test_killed_with_its_container_it_says_what_cannot_be_known(agent: Agent) -> None:
    """A container ends whole: keepers and runs with it. The next life is told the same as where keepers were killed."""
    engine = agent.served.engine
    run = agent.start_run(*WAITS)
    until(lambda: "begun" in agent.output(run))
    engine("kill", agent.container)
    engine("start", agent.container)
    end = agent.end_of(run)
    assert (end.state, end.cause) == ("Crashed", "keeper_lost")
    assert agent.output(run) == "begun\n"
    again = agent.start_run("echo", "here")
    assert agent.end_of(again).state == "Completed"


def test_a_new_container_of_that_host_goes_on_with_the_volume(agent: Agent) -> None:
    engine = agent.served.engine
    run = agent.start_run(*WAITS)
    until(lambda: "begun" in agent.output(run))
    engine("rm", "--force", agent.container)
    agent.begin()
    assert agent.end_of(run).cause == "keeper_lost"
    assert agent.end_of(agent.start_run("echo", "here")).state == "Completed"


def test_the_init_reaps_what_nobody_waits_for(agent: Agent) -> None:
    engine = agent.served.engine
    assert engine.inside(agent.container, "cat", "/proc/1/comm") == "tini"
    orphan = engine.inside(agent.container, "sh", "-c", "sleep 0.2 >/dev/null 2>&1 & echo $!")
    until(
        lambda: engine.attempt("exec", agent.container, "test", "-e", f"/proc/{orphan}").returncode == 1, 20
    )


def test_git_and_uv_are_there(agent: Agent) -> None:
    """Code comes by git (also over ssh), environments by uv."""
    for words in (("git", "--version"), ("ssh", "-V"), ("uv", "--version"), ("git", "ls-remote", "/nowhere")):
        done = agent.served.engine.attempt("exec", agent.container, *words)
        assert done.returncode == (128 if words[1] == "ls-remote" else 0), done.stderr


def test_the_line_of_an_invitation_works_as_printed(served: Served) -> None:
    """But for the network: the tests' engine has none of its own, so a variable of the line's shell names the host's."""
    engine, pool = served.engine, f"invited-{uuid4().hex[:6]}"
    served.shunter.ok("pool", "create", pool, "--type", "process")
    line = served.shunter.ok("agent", "invite", "--pool", pool, "--output", "json").json["lines"]["Docker"]
    assert name("agent") in line
    volume = engine.volume()
    line = line.replace("-v shunter-agent:", f"-v {volume}:").replace(
        "docker run", "docker run --network=host"
    )
    container = served.shunter.having(DOCKER_HOST=engine.url).shell(line).text.strip()
    engine.containers.append(container)
    agents = until(
        lambda: [
            one for one in served.shunter.ok("agent", "list", "--output", "json").json if pool in one["pools"]
        ]
    )
    assert agents[0]["lost"] is False
    # With the host's network the host's name comes along; without it, this is by what a new container is the same agent.
    assert '--hostname "$(hostname)" ' in line
    engine("rm", "--force", container)
