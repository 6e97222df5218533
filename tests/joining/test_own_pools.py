"""Agents that make their pools: all of them, as they are to be, whoever else is about it; and what is in the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shunter_agents.own_pools import OwnPools, served
from shunter_work_pools.client import AsyncClient
from shunter_work_pools.contracts.agents import SyncAnswer, SyncRequest
from shunter_work_pools.contracts.errors import InvalidInput, NotFound
from shunter_work_pools.contracts.identities import Kind
from shunter_work_pools.contracts.pools import Pool, PoolSpec
from tests.agents.fake_server import FakeServer
from tests.agents.lives import life
from tests.agents.real_server import Site, site
from tests.api.serving import Served
from tests.api.test_identities import made
from tests.cli.console import console
from tests.patience import SOON

TEMPLATE: dict[str, Any] = {"namespace": "runs", "image": "python:3.11", "env": {"A": "1"}}


def url(server: Served) -> str:
    return str(server.http.base_url).removesuffix("/").removesuffix("/v1")


async def agent(server: Served, name: str, *pools: str, manages: bool = True) -> AsyncClient:
    """A client of an agent that may serve some pools."""
    token = await made(server, Kind.AGENT, name, pools=list(pools), manage_pools=manages)
    return AsyncClient(url(server), token)


async def written(server: Served) -> list[tuple[str, str, int]]:
    """What the audit has of pools, oldest first."""
    entries = (await server.http.get("/audit", params={"limit": 1000})).json()["entries"]
    return [
        (one["action"], one["target"], one["status"]) for one in reversed(entries) if "_pool" in one["action"]
    ]


async def test_many_agents_make_their_pools_at_once(server: Served) -> None:
    own = OwnPools("kubernetes", TEMPLATE, ["spark"])
    names = ("one", "two", "three")
    async with contextlib.AsyncExitStack() as stack:
        made_ = [await agent(server, f"a{number}", *names) for number in range(6)]
        clients = [await stack.enter_async_context(one) for one in made_]
        found = await asyncio.gather(*(served(one, name, own) for one in clients for name in names))
        assert {(one.type, json.dumps(one.template), *one.match) for one in found} == {
            ("kubernetes", json.dumps(TEMPLATE), "spark")
        }
        done = [one for one in await written(server) if one[2] < 300]
        assert sorted(done) == sorted(("create_pool", f"pools/{name}", 201) for name in names)
        # A start that finds all as it is to be writes nothing; nor does one that wants no more than the pool.
        before = await written(server)
        for as_it_is in (own, OwnPools("kubernetes"), OwnPools("kubernetes", match=["spark"])):
            await served(clients[0], "one", as_it_is)
        assert await written(server) == before


async def test_what_differs_is_changed_and_nothing_else(server: Served) -> None:
    async with await agent(server, "a1", "p") as client:
        await served(client, "p", OwnPools("kubernetes", TEMPLATE, ["spark"]))
        assert (await server.http.patch("/pools/p", json={"limit": 7})).status_code == 200
        newer = TEMPLATE | {"image": "python:3.12"}
        pool = await served(client, "p", OwnPools("kubernetes", newer))
        assert (pool.template, pool.match, pool.limit) == (newer, ["spark"], 7)
        pool = await served(client, "p", OwnPools("kubernetes", match=["gpu", "spark"]))
        assert (pool.template, pool.match) == (newer, ["gpu", "spark"])
        pool = await served(client, "p", OwnPools("kubernetes", newer, []))
        assert (pool.template, pool.match, pool.limit) == (newer, [], 7)
        assert [one[0] for one in await written(server)] == ["create_pool", *["patch_pool"] * 4]


async def test_secret_values_are_written_each_time_and_never_lost(server: Served) -> None:
    """They are not shown, so whether they are the same cannot be known."""
    secret = TEMPLATE | {"secret_env": {"PASSWORD": "s3cret"}}
    async with await agent(server, "a1", "p") as client:
        for writes in (1, 2):
            pool = await served(client, "p", OwnPools("kubernetes", secret))
            assert pool.template["secret_env"] == {"PASSWORD": None}
            assert len(await written(server)) == writes
        # null: the value that is there stays; that is what is shown.
        stays = TEMPLATE | {"secret_env": {"PASSWORD": None}}
        await served(client, "p", OwnPools("kubernetes", stays))
        assert len(await written(server)) == 2


async def refusal(client: AsyncClient, name: str, own: OwnPools | None) -> str:
    with pytest.raises(InvalidInput) as why:
        await served(client, name, own)
    return why.value.told


async def test_what_is_in_the_way_is_told_to_who_can_change_it(server: Served) -> None:
    await server.pool("there")
    own = OwnPools("kubernetes", TEMPLATE)
    async with await agent(server, "may-not", "there", "new", manages=False) as client:
        told = await refusal(client, "new", own)
        assert told.startswith("there is no pool 'new', and this agent may not make it: ")
        assert "managePools: true" in told
        assert "shunter pool create new --type kubernetes" in told
        told = await refusal(client, "there", OwnPools("process", match=["x"]))
        assert "has another match than this agent is to give it" in told
        assert "managePools: true" in told
        assert (await served(client, "there", OwnPools("process"))).type == "process", "nothing to change"
        told = await refusal(client, "foreign", own)
        assert told.startswith("this agent may not serve the pool 'foreign'")
        assert "server.trust" in told
        assert await refusal(client, "foreign", None) == told
    async with await agent(server, "may", "there", "new") as client:
        told = await refusal(client, "there", own)
        assert "'there' is there, and of type process, not kubernetes" in told
        assert "--create-pool process" in told
        for wrong, part in (
            ({"imagee": "x"}, "Did you mean image?"),
            ({"namespace": "runs"}, "image: names no image. Give one"),
            (TEMPLATE | {"env": {"SHUNTER_X": "1"}}, "env.SHUNTER_X"),
        ):
            told = await refusal(client, "new", OwnPools("kubernetes", wrong))
            assert told.startswith("the server refuses the pool 'new': template ")
            assert part in told
        await served(client, "new", own)
        told = await refusal(client, "new", OwnPools("kubernetes", {"image": 5}))
        assert told.startswith("the server refuses the pool 'new': template image: ")
        assert (await client.get_pool("new")).template == TEMPLATE


# ---- whole agents


class Forgetful(FakeServer):
    """A server whose pools may be gone: deleted, or it is a new one, or has a copy from before they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.pools: set[str] = set()

    def _see(self, name: str) -> None:
        if name not in self.pools:
            raise NotFound(f"there is no pool {name!r}", "Make it.")

    async def get_pool(self, name: str) -> Pool:
        self._see(name)
        return await super().get_pool(name)

    async def create_pool(self, spec: PoolSpec) -> Pool:
        self.pools.add(spec.name)
        self.touch()
        return await self.get_pool(spec.name)

    async def sync(self, name: str, request: SyncRequest) -> SyncAnswer:
        for pool in request.pools:
            self._see(pool)
        return await super().sync(name, request)


async def test_a_pool_that_is_gone_while_its_agent_is_there_is_made_again(tmp_path: Path) -> None:
    server = Forgetful()
    async with life(server, tmp_path, own_pools=OwnPools("process")) as one:
        await server.ended(server.add("exit=0"))
        server.pools.clear()
        key = server.add("exit=0")  # ends the sync that is held
        await server.until(lambda: server.pools == {"default"})
        await server.ended(key, server.add("exit=0"))
        assert await one.drained() == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--match a", "--match says nothing without --create-pool"),
        ("--no-match", "--no-match says nothing without --create-pool"),
        ("--template-file x", "--template-file says nothing without --create-pool"),
        ("--create-pool process --match a --no-match", "--match and --no-match contradict each other"),
        ("--create-pool process --match a,b", "--match"),
        ("--create-pool vm", "there is no such type"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, module_cache: Path, words: str, says: str) -> None:
    (tmp_path / "home").mkdir()
    shunter = console(tmp_path / "home", tmp_path / "folder", 1, module_cache)
    for command in (["start", "--pool", "p"], ["join", "http://127.0.0.1:1", "--start"]):
        refused = shunter("agent", *command, *words.split())
        assert refused.code == 2
        assert says in refused.err
    assert list((tmp_path / "home").iterdir()) == []


def start(here: Site, name: str, *words: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "shunter_agents", "--name", name, *words]
    with (here.home / f"{name}.log").open("ab") as log:
        return subprocess.Popen(program, env=here.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def until(true: Any, seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_agents_that_start_before_their_server_wait_for_it(tmp_path: Path) -> None:
    """Two replicas and another one that wants something else of a pool: nobody ends, all serve."""
    pools = ("--pool", "one", "--pool", "two", "--create-pool", "process")
    with site(tmp_path / "home") as here:
        here.server.kill()
        here.server.wait()
        agents = [start(here, f"replica-{number}", *pools, "--match", "etl") for number in (1, 2)]
        try:
            for number in (1, 2):
                until(lambda number=number: "the server is away" in here.log(f"replica-{number}"))
            here.start_server()
            until(lambda: len(here.client.list_agents().agents) == 2)
            for name in ("one", "two"):
                assert here.client.get_pool(name).match == ["etl"]
                assert here.client.get_pool(name).agents == ["replica-1", "replica-2"]
            other = start(here, "other", *pools, "--no-match")
            agents.append(other)
            until(lambda: here.client.get_pool("two").match == [])
            wrong = start(here, "wrong", "--pool", "one", "--create-pool", "kubernetes")
            agents.append(wrong)
            assert wrong.wait(SOON) == 2
            assert "'one' is there, and of type process, not kubernetes" in here.log("wrong")
            assert [one.poll() for one in agents[:3]] == [None] * 3
        finally:
            for one in agents:
                one.kill()
                one.wait()
