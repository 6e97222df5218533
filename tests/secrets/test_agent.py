"""An agent fetches the secrets of an attempt when it launches it, keeps them in memory, and masks what it tells."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from shunter_agents import supervisor
from shunter_agents.own_secrets import OwnSecret, own_values
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.launcher import LaunchFailed
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.errors import ServerUnreachable
from shunter_work_pools.contracts.secrets import AttemptSecrets, FromAgent, FromSecret
from shunter_work_pools.contracts.states import Cause
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import life
from tests.api.serving import until

VALUE = "wq8-Zx.71/kd"
STARS = "*" * len(VALUE)
FROM_SERVER: dict[str, Any] = {"env": {"TOKEN": FromSecret(secret="token")}}
GIVEN = AttemptSecrets(env={"TOKEN": VALUE})


def written(root: Path) -> bytes:
    """All that the agent has on its disk, but for what its runs themselves have left."""
    mine = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith("fake.json")]
    assert any(path.name == "journal.jsonl" for path in mine)
    return b"".join(path.read_bytes() for path in mine)


def scripted(server: FakeServer, **work: Any) -> Key:
    """A run whose command does not say what it writes: the journal has commands."""
    key = server.add(**work)
    server.waiting[-1].work.command = ["./job"]
    return key


async def shipped(server: FakeServer, key: Key, size: int) -> str:
    await server.until(lambda: len(server.leases[key].log) >= size)
    return server.leases[key].log.decode()


async def test_they_go_to_the_launch_and_nowhere_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    server.secrets = AttemptSecrets(
        env={"TOKEN": VALUE},
        template_env={"POOL": "of-the-pool"},
        source="opens-the-source",
        masked=["former-one"],
    )
    async with life(server, tmp_path, launcher) as one:
        output = f"{VALUE} of-the-pool opens-the-source former-one\n"
        key = server.add(
            f"output={output}",
            f"result={json.dumps({'it': [VALUE], VALUE: 1})}",
            f"message=Broken: {VALUE}",
            "exit=3",
            **FROM_SERVER,
        )
        await server.ended(key)
        log = await shipped(server, key, len(output))
        assert log == f"{STARS} {'*' * 11} {'*' * 16} {'*' * 10}\n"
        end = server.leases[key].end
        assert end is not None
        assert end.result == {"it": [STARS], STARS: 1}
        assert end.message == f"Broken: {STARS}"
        (prepared,) = launcher.prepared.values()
        assert prepared.secrets == {"TOKEN": VALUE}
        assert prepared.template_secrets == {"POOL": "of-the-pool"}
        assert prepared.source_secret == "opens-the-source"
        assert VALUE not in repr(prepared)
        assert await one.drained() == 0
    told = "".join(map(str, [*server.syncs, *server.batches])) + "".join(capfd.readouterr())
    assert VALUE not in told


async def test_a_run_without_any_costs_no_request(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path):
        key = server.add(f"output={VALUE}\n")
        await server.ended(key)
        assert await shipped(server, key, len(VALUE) + 1) == f"{VALUE}\n"
    assert server.asked == []


async def test_what_may_become_a_value_waits_for_what_comes_after_it(tmp_path: Path) -> None:
    """Its lines come one by one; no look at the output sees the whole value first."""
    server = FakeServer()
    # The beginning of the second is within the first, and it never comes to its end.
    values = {"TOKEN": "ne 3\nline 4\nline 5\nli", "OTHER": "5\nline 6\nnever"}
    server.secrets = AttemptSecrets(env=values)
    async with life(server, tmp_path):
        key = server.add("lines=7", "sleep=2.8", **FROM_SERVER)
        seen = set()
        await server.ended(key)
        whole = "line 1\nline 2\nli****\n******\n******\n**ne 6\nline 7\n"
        await shipped(server, key, len(whole))
        seen = {upload[key] for upload in server.uploads if key in upload}
    assert server.leases[key].log.decode() == whole
    assert len(seen) > 2, "it came in parts"
    assert not any(whole.index("li*") + 2 < size < whole.index("\n******\n**") for size in seen)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_later_life_fetches_them_again(tmp_path: Path, ended: bool) -> None:
    words = [f"output={VALUE}\n", f"message={VALUE}", *([] if ended else ["hang"])]
    server, launcher = FakeServer(), FakeLauncher(scripts={"fake": words})
    server.secrets = GIVEN
    server.logs_away = ServerUnreachable("gone")
    async with life(server, tmp_path, launcher) as first:
        key = scripted(server, **FROM_SERVER)
        await server.until(lambda: key in server.leases and "Running" in server.leases[key].states)
        if ended:
            await server.ended(key)
        await first.die()
    assert VALUE.encode() not in written(tmp_path)
    server.logs_away = None
    server.asked.clear()
    async with life(server, tmp_path, launcher):
        assert await shipped(server, key, len(VALUE) + 1) == f"{STARS}\n"
        if not ended:
            server.cancel(key)
            await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert VALUE not in str(end)
    assert server.asked == [key]


async def test_an_end_that_a_later_life_finds_waits_for_what_is_to_be_masked_of_it(tmp_path: Path) -> None:
    words = [f"output={VALUE}\n", f"message={VALUE}", f"result={json.dumps(VALUE)}", "sleep=0.5"]
    server, launcher = FakeServer(), FakeLauncher(scripts={"fake": words})
    server.secrets = GIVEN
    async with life(server, tmp_path, launcher) as first:
        key = scripted(server, **FROM_SERVER)
        await server.until(lambda: key in server.leases and "Running" in server.leases[key].states)
        await first.die()
    server.secrets = ServerUnreachable("its proxy is slow")
    server.asked.clear()
    async with life(server, tmp_path, launcher):
        await server.until(lambda: len(server.asked) > 3)
        await asyncio.sleep(0.5)  # it has ended by now
        assert server.leases[key].end is None
        server.secrets = GIVEN
        await server.ended(key)
    end = server.leases[key].end
    assert end is not None
    assert (end.message, end.result) == (STARS, STARS)


async def test_a_server_that_is_away_delays_no_adoption(tmp_path: Path) -> None:
    """What runs is watched, and stopped when its time is over, though nobody can say what is to be masked of it."""
    server, launcher = FakeServer(), FakeLauncher()
    server.secrets = GIVEN
    async with life(server, tmp_path, launcher) as first:
        key = server.add(f"output={VALUE}\n", "hang", timeout=1.5, **FROM_SERVER)
        await server.until(lambda: key in server.leases and "Running" in server.leases[key].states)
        await first.die()
    server.away = ServerUnreachable("gone")
    async with life(server, tmp_path, launcher):
        (folder,) = launcher.prepared
        await until(lambda: ("stop", folder) in launcher.calls)
        server.back()
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert end.cause is Cause.TIMEOUT
        assert await shipped(server, key, len(VALUE) + 1) == f"{STARS}\n"


async def test_one_that_was_deleted_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    server.secrets = AttemptSecrets(missing=["token"])
    async with life(server, tmp_path, launcher):
        key = server.add(**FROM_SERVER)
        await server.ended(key)
    end = server.leases[key].end
    assert end is not None
    assert end.cause is Cause.REJECTED
    assert end.message == (
        "there is no secret 'token' any more. Set it: `shunter secret set token`; or deploy without it."
    )
    assert not launcher.prepared


async def test_one_that_the_server_has_no_key_for_is_waited_for(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    server.secrets = AttemptSecrets(unreadable=["token"])
    async with life(server, tmp_path, launcher):
        key = server.add(**FROM_SERVER)
        await server.until(
            lambda: any("no key for token" in one.note for sync in server.syncs for one in sync.holds)
        )
        assert not launcher.prepared
        server.secrets = GIVEN
        await server.ended(key)
    assert server.leases[key].states == ["Starting", "Running", "Completed"]


async def test_what_cannot_be_masked_is_held_back_but_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PARKED", 0.2)
    server, launcher = FakeServer(), FakeLauncher()
    server.secrets = GIVEN
    server.logs_away = ServerUnreachable("gone")
    async with life(server, tmp_path, launcher) as first:
        key = server.add(f"output={VALUE}\n", f"result={json.dumps(VALUE)}", "sleep=1.5", **FROM_SERVER)
        await server.until(lambda: key in server.leases and "Running" in server.leases[key].states)
        await first.die()
    server.logs_away = None
    server.secrets = AttemptSecrets(unreadable=["token"])
    async with life(server, tmp_path, launcher):
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert end.result is None
        assert "no key for its secrets" in str(end.message)
        asked = len(server.asked)
        await server.until(lambda: len(server.asked) > asked + 1)
        assert not server.leases[key].log
        server.secrets = GIVEN
        assert await shipped(server, key, len(VALUE) + 1) == f"{STARS}\n"


async def test_a_token_of_the_attempt_is_masked_as_well(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path):
        key = server.add("output=my token is shr_12345678\n", token=True)
        server.secrets = AttemptSecrets(token="shr_12345678")
        await server.ended(key)
        assert await shipped(server, key, 10) == f"my token is {'*' * 12}\n"


async def test_those_of_the_agent_never_pass_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_AGENT", "in-its-environment")
    (tmp_path / "file").write_text("in-a-file\n")
    own = {"one": OwnSecret(env="OF_THE_AGENT"), "two": OwnSecret(file=str(tmp_path / "file"))}
    server, launcher = FakeServer(), FakeLauncher(scripts={"fake": ["output=in-its-environment in-a-file\n"]})
    async with life(server, tmp_path / "agent", launcher, own_secrets=own):
        env = {"A": FromAgent(agent_secret="one"), "B": FromAgent(agent_secret="two"), "C": "plain"}
        key = scripted(server, env=env)
        await server.ended(key)
        assert await shipped(server, key, 28) == f"{'*' * 18} {'*' * 9}\n"
    (prepared,) = launcher.prepared.values()
    assert prepared.secrets == {"A": "in-its-environment", "B": "in-a-file"}
    assert server.asked == []
    assert b"in-a-file" not in written(tmp_path / "agent")


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({}, "this agent has no secret 'one' of its own, which variable A is"),
        ({"one": OwnSecret(env="NOT_SET_ANYWHERE")}, "is its variable NOT_SET_ANYWHERE, which is not set"),
        (
            {"one": OwnSecret(file="/nowhere")},
            "/nowhere of the agent's secret 'one' cannot be read: No such file",
        ),
        ({"one": OwnSecret(file="/dev/null")}, "/dev/null of the agent's secret 'one' is empty"),
    ],
)
def test_one_that_the_agent_has_not(own: dict[str, OwnSecret], told: str) -> None:
    with pytest.raises(LaunchFailed, match=told) as caught:
        own_values(Work(command=["x"], env={"A": FromAgent(agent_secret="one")}), own)
    assert caught.value.cause is Cause.REJECTED
    assert caught.value.remedy


def test_where_one_of_the_agent_is_must_be_said_once() -> None:
    with pytest.raises(ValueError, match="exactly one of env and file"):
        OwnSecret()
    with pytest.raises(ValueError, match="exactly one of env and file"):
        OwnSecret(env="A", file="/b")
