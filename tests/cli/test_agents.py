"""Agents from the terminal: how they are, draining them, and forgetting one that is gone with its runs."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from shunter_cli.commands import agents
from shunter_cli.output import Output
from shunter_work_pools.client import Client
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import (
    Agent,
    AgentList,
    Assignment,
    Held,
    Report,
    ReportBatch,
    SyncAnswer,
    SyncRequest,
)
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.states import AttemptState
from tests.cli.console import Console, Live

NAME = "drained"


@pytest.fixture(scope="module")
def shunter(live: Live) -> Console:
    """A terminal, with a pool of its own and a deployment in it."""
    live.shunter.ok("pool", "create", "drains")
    live.shunter.ok("deploy", "--name", "drains", "--pool", "drains", "--", "true")
    return live.shunter


@pytest.fixture
def client(shunter: Console) -> Iterator[Client]:
    token = (Path(shunter.env["SHUNTER_HOME"]) / "token").read_text().strip()
    with Client(shunter.env["SHUNTER_API_URL"], token) as made:
        yield made


def sync(
    client: Client, *holds: Assignment, session: int = 1, troubles: list[str] | None = None
) -> SyncAnswer:
    """What the server says to an agent that has room for one run."""
    request = SyncRequest(
        protocol=PROTOCOL,
        session=UUID(int=session),
        identity=UUID(int=1),
        pools=["drains"],
        limit=1,
        free=1 - len(holds),
        holds=[Held(run=one.run, attempt=one.attempt, epoch=one.epoch) for one in holds],
        hold_for=0 if holds or troubles else 5,
        taking=not troubles,
        troubles=troubles or [],
    )
    return client.sync(NAME, request)


def test_an_agent_is_drained_and_waited_for(shunter: Console, client: Client) -> None:
    shunter.ok("run", "start", "drains")
    (granted,) = sync(client).assignments
    done = shunter.ok("agent", "drain", NAME)
    assert done.text == f"agent {NAME} drains; 1 run of it goes on\n"
    assert sync(client, granted).drain is True
    assert shunter.ok("agent", "inspect", NAME).text.splitlines()[1].split() == ["state", "draining"]
    waiting = shunter.spawn("agent", "drain", NAME, "--wait", stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(2.5)
    one = {"run": granted.run, "attempt": granted.attempt, "epoch": granted.epoch, "seq": 1, "age": 0}
    report = Report.model_validate(one | {"state": AttemptState.COMPLETED, "log_size": 0})
    client.report(NAME, ReportBatch(session=UUID(int=1), reports=[report]))
    out, _ = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (0, f"agent {NAME} drains; nothing of it runs\n".encode())
    assert shunter.ok("agent", "drain", NAME, "-o", "json").json["draining"] is True
    assert sync(client, session=2, troubles=["its disk is full"]).drain is False
    assert shunter.ok("agent", "inspect", NAME).text.splitlines()[1:3] == [
        "state       unwell",
        "trouble     its disk is full",
    ]


def test_an_agent_that_is_not_there_is_not_drained(shunter: Console) -> None:
    done = shunter("agent", "drain", "nobody")
    assert (done.code, done.out) == (2, b"")
    assert "nobody" in done.err


class Fake:
    """A client of a server that knows one agent."""

    def __init__(self, *found: Agent) -> None:
        self.found = list(found)
        self.removed: list[tuple[str, bool]] = []

    def list_agents(self) -> AgentList:
        return AgentList(agents=self.found[:1])

    def get_agent(self, name: str) -> Agent:
        return self.found.pop(0) if len(self.found) > 1 else self.found[0]

    drain_agent = get_agent

    def remove_agent(self, name: str, *, give_up: bool) -> None:
        self.removed.append((name, give_up))


def an_agent(**more: object) -> Agent:
    now = datetime.now(UTC)
    about = {"name": "gone", "pools": ["p"], "limit": 8, "first_seen_at": now, "last_seen_at": now}
    return Agent.model_validate(about | more)


def speaking_to(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "connect", lambda: contextlib.nullcontext(fake))
    monkeypatch.setattr("shunter_cli.live.EVERY", 0.001)


@pytest.mark.parametrize(
    ("about", "word"),
    [
        ({}, "ready"),
        ({"troubles": ["x"]}, "unwell"),
        ({"troubles": ["x"], "draining": True}, "draining"),
        ({"troubles": ["x"], "draining": True, "lost": True}, "lost"),
    ],
)
def test_how_an_agent_is_in_one_word(about: dict[str, object], word: str) -> None:
    assert agents.condition(an_agent(**about)) == word


@pytest.mark.parametrize(("active", "give_up"), [(0, False), (2, True)])
def test_removing_a_lost_agent_gives_its_runs_up_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], active: int, give_up: bool
) -> None:
    fake = Fake(an_agent(lost=True, active=active))
    speaking_to(fake, monkeypatch)
    with pytest.raises(InvalidInput) as asked:
        agents.remove("gone", yes=False, output_as=Output.TABLE)
    assert fake.removed == []
    assert ("2 runs of it that may still go on there" in asked.value.detail) is give_up
    agents.remove("gone", yes=True, output_as=Output.TABLE)
    assert fake.removed == [("gone", give_up)]
    assert ("Warning: 2 runs of it ended" in capsys.readouterr().err) is give_up


def test_an_agent_that_lives_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(an_agent(active=1))
    speaking_to(fake, monkeypatch)
    agents.remove("gone", yes=True, output_as=Output.TABLE)
    assert fake.removed == [("gone", False)], "and the server refuses that"


@pytest.mark.parametrize(
    ("later", "says"),
    [
        ({"draining": True, "active": 1, "lost": True}, "was lost while it drained, with 1 run"),
        ({"draining": False, "active": 1}, "was started anew"),
    ],
)
def test_waiting_for_a_drain_ends_when_there_is_nothing_to_wait_for(
    monkeypatch: pytest.MonkeyPatch, later: dict[str, object], says: str
) -> None:
    fake = Fake(*[an_agent(draining=True, active=1)] * 2, an_agent(**later))
    speaking_to(fake, monkeypatch)
    with pytest.raises(agents.Conflict, match=says):
        agents.drain("gone", wait=True, output_as=Output.TABLE)
