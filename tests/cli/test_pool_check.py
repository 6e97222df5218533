"""``shunter pool check``, with a real server and real agents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shunter_work_pools.contracts.pools import PoolPatch, PoolSpec
from tests.agents.real_server import Site, site
from tests.cli.console import Console, console, until

SAYS = "This pool runs what it is given."


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("checking")) as one:
        yield one


@pytest.fixture
def shunter(here: Site, tmp_path: Path, module_cache: Path) -> Console:
    token = here.env["SHUNTER_TOKEN"]
    return console(here.home, tmp_path / "folder", here.port, module_cache).having(SHUNTER_TOKEN=token)


def test_a_pool_that_runs_what_it_is_given(here: Site, shunter: Console) -> None:
    with here.agent("a1"):
        done = shunter("pool", "check", "default")
        assert done.code == 0, done.err
        lines = done.text.splitlines()
        assert lines[0].startswith("run ")
        assert lines[0].endswith(" of check-default")
        assert f"| {SAYS}" in lines
        assert lines[-1] == "pool default runs what it is given: agent a1"
        assert any(line.startswith("Completed: ") for line in lines)
        told = shunter("pool", "check", "def", "-o", "json")  # a name may be shortened
        assert (told.code, told.json["state"], told.json["log"]) == (0, "Completed", f"{SAYS}\n")


def test_what_keeps_it_waiting_is_told_and_the_time_is_kept(here: Site, shunter: Console) -> None:
    here.client.create_pool(PoolSpec(name="lonely"))
    began = time.monotonic()
    late = shunter("pool", "check", "lonely", "--timeout", "1s")
    assert late.code == 124
    assert 1 <= time.monotonic() - began < 15
    assert "Scheduled: " in late.text
    assert "the check of pool 'lonely' is Scheduled after 1s: " in late.err
    assert "shunter agent start" in late.err
    again = shunter("pool", "check", "lonely", "--timeout", "100ms", "-o", "json")
    assert again.code == 124
    assert not again.json["created"]
    assert again.json["run"] in late.text
    here.client.update_pool("lonely", PoolPatch(paused=True, reason="new disks"))
    assert "new disks" in shunter("pool", "check", "lonely", "--timeout", "100ms").err
    done = shunter("pool", "delete", "lonely", "--yes")
    assert done.code == 0, done.err


def test_it_goes_on_when_an_agent_comes_and_over_a_server_that_restarts(here: Site, shunter: Console) -> None:
    here.client.create_pool(PoolSpec(name="later"))
    asking = shunter.spawn("pool", "check", "later", "--timeout", "60s", stdout=-1, stderr=-1)
    until(lambda: here.client.get_pool("later").waiting == 1)
    here.server.terminate()
    here.server.wait(20)
    here.start_server()
    with here.agent("a2", pool="later"):
        out, err = asking.communicate(timeout=60)
    assert asking.returncode == 0, err
    assert out.decode().splitlines()[-1] == "pool later runs what it is given: agent a2"
    assert "waiting for it to come back" in err.decode()


def test_an_agent_that_refuses_it_is_told(here: Site, shunter: Console, tmp_path: Path) -> None:
    policy = tmp_path / "agent.toml"
    policy.write_text('[programs]\nallow = ["/usr/bin/only-this"]\n')
    here.client.create_pool(PoolSpec(name="strict"))
    with here.agent("a3", "--policy", str(policy), pool="strict"):
        done = shunter("pool", "check", "strict")
    assert done.code == 1
    assert "the check of pool 'strict' is Crashed: " in done.err
    assert "is not allowed by the agent's own policy" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere",), "there is no pool 'nowhere'"),
        (("default", "--timeout", "soon"), "--timeout 'soon' is not a duration"),
        ((), "NAME"),
    ],
)
def test_what_cannot_be_asked_for(shunter: Console, words: tuple[str, ...], told: str) -> None:
    done = shunter("pool", "check", *words)
    assert done.code == 2
    assert told in done.err
    assert not done.text
