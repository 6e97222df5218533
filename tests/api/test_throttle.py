"""How much may be asked for, tried and sent."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from shunter_work_pools.contracts.identities import Kind, Role
from shunter_work_pools.identities import WRONG, _network
from shunter_work_pools.settings import Settings
from shunter_work_pools.storage.logs import FileLogStore
from shunter_work_pools.storage.store import SqliteStore
from shunter_work_pools.throttle import Allowance, Throttle
from tests.api.serving import NO_TLS, Served, served
from tests.api.test_identities import bearing, made


def test_an_allowance_comes_back_with_time() -> None:
    one = Allowance(3.0, 0.0)
    assert [one.take(0.0, 2.0, 3.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert one.take(0.5, 2.0, 3.0) == 0
    assert one.take(100.0, 2.0, 3.0) == 0
    assert one.left == 2.0, "no more than at the beginning"


def test_names_that_are_kept_are_bounded() -> None:
    throttle = Throttle(1.0, 1.0, most=3)
    for number in range(10):
        throttle.take(str(number), 0.0)
    assert [throttle.wait(str(number), 0.0) > 0 for number in range(10)] == [False] * 7 + [True] * 3


def test_of_ipv6_a_network_is_one() -> None:
    assert _network("2001:db8::1") == _network("2001:db8::ffff:1") != _network("2001:db8:0:1::1")
    assert _network("10.0.0.1") == "10.0.0.1"
    assert _network("") == ""


async def test_a_key_that_asks_too_often_is_told_when_to_come_again(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    shutil.copyfile(migrated_sqlite, tmp_path / "db")
    async with served(SqliteStore(tmp_path / "db"), tmp_path / "logs", Settings(rate_limit=5)) as server:
        one = await made(server, Kind.PERSON, "ann", role=Role.VIEWER)
        other = await made(server, Kind.PERSON, "bob", role=Role.VIEWER)
        async with bearing(server, one) as http:
            answers = [await http.get("/whoami") for _ in range(12)]
            refused = answers[-1]
            assert [answer.status_code for answer in answers[:10]] == [200] * 10
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["type"] == "urn:shunter:problem:too-many-requests"
            assert "'ann' sends more than 5 requests a second" in refused.json()["detail"]
        async with bearing(server, other) as http:
            assert (await http.get("/whoami")).status_code == 200
        for _ in range(30):  # who has the token of the home is not counted
            await server.get("/whoami")


async def test_who_tries_tokens_is_slowed_down_and_nobody_whose_key_is_right(plain: Served) -> None:
    keys = [await made(plain, Kind.PERSON, name, role=Role.VIEWER) for name in ("ann", "bob")]
    looking = most = 0
    read = plain.engine.store.read

    async def counted(work: object) -> object:
        nonlocal looking, most
        looking += 1
        most = max(most, looking)
        try:
            return await read(work)  # type: ignore[arg-type]
        finally:
            looking -= 1

    async with bearing(plain, keys[0]) as known, bearing(plain, keys[1]) as new:
        assert (await known.get("/whoami")).status_code == 200
        async with httpx.AsyncClient(base_url=plain.http.base_url, trust_env=False, verify=NO_TLS) as thief:

            async def attempt(number: int) -> int:
                headers = {"authorization": f"Bearer shk_{number}"}
                return (await thief.get("/runs", headers=headers)).status_code

            told = [await attempt(number) for number in range(int(WRONG) + 5)]
            assert told[: int(WRONG)] == [401] * int(WRONG)
            assert told[-1] == 429
            plain.engine.store.read = counted  # type: ignore[method-assign,assignment]
            flood = [asyncio.create_task(attempt(number)) for number in range(50)]
            for one in (known, new, plain.http):  # all of them from the thief's address
                assert (await one.get("/whoami")).status_code == 200
            assert (await asyncio.gather(*flood)).count(429) >= 40
            assert most == 1, "looked up one after the other"


# ---- logs


@pytest.fixture
async def small(migrated_sqlite: Path, tmp_path: Path) -> object:
    shutil.copyfile(migrated_sqlite, tmp_path / "db")
    async with served(SqliteStore(tmp_path / "db"), tmp_path / "logs", Settings(log_limit=2048)) as server:
        await server.pool()
        await server.deploy(pool="main")
        yield server


async def test_a_log_is_cut_at_its_limit_with_a_line_that_says_so(small: Served) -> None:
    run = await small.submit()
    (granted,) = await small.take()
    await small.report(granted, "Starting", "Running")
    text = b"0123456789abcde\n" * 1000
    (size,) = (await small.upload(granted, 0, text[:1600]))["sizes"]
    assert (size["size"], size["full"]) == (1600, False)
    (size,) = (await small.upload(granted, 1600, text[1600:5000]))["sizes"]
    assert (size["size"], size["full"]) == (5000, True)
    for at in (5000, 2048):  # an agent of before goes on; one that was restarted asks, and sends again
        (size,) = (await small.upload(granted, at, text[at : at + 3000]))["sizes"]
        assert (size["size"], size["full"]) == (at + 3000, True)
    (size,) = (await small.upload(granted, 0, b""))["sizes"]
    assert size["size"] == 2048
    await small.report(granted, "Completed", log_size=len(text))
    log = await small.http.get(f"/runs/{run}/logs")
    mark = b"[shunter: the log is cut here: 2KiB of output are kept of an attempt (server.log_limit)]\n"
    assert log.content == text[:2048] + mark
    assert log.headers["shunter-log-complete"] == "true"


async def test_output_of_just_the_limit_is_whole(small: Served) -> None:
    run = await small.submit()
    (granted,) = await small.take()
    await small.report(granted, "Starting", "Running")
    (size,) = (await small.upload(granted, 0, b"x" * 2048))["sizes"]
    assert (size["size"], size["full"]) == (2048, False)
    await small.report(granted, "Completed", log_size=2048)
    log = await small.http.get(f"/runs/{run}/logs")
    assert log.content == b"x" * 2048
    assert log.headers["shunter-log-complete"] == "true"


def test_a_cut_is_found_again_and_nothing_is_written_behind_it(tmp_path: Path) -> None:
    run, logs = UUID(int=1), FileLogStore(tmp_path)
    logs.append(run, 1, 0, b"abc")
    logs.cut(run, 1, 3)
    before = logs.extent(run, 1)
    again = FileLogStore(tmp_path)
    again.cut(run, 1, 3)
    assert again.append(run, 1, 3, b"more") == again.skip(run, 1, 3, 10) == 3
    assert again.extent(run, 1) == before
    assert (before.size, before.cut, before.missing) == (3, True, 0)
    assert again.read(run, 1, 0, 1000).startswith(b"abc\n[shunter: the log is cut here: 3 of output")
