"""What an agent has, what of it is free, and which run has which device: told, kept, and never given twice."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shunter_infrastructure.fake import FakeLauncher
from shunter_work_pools.contracts.agents import ReportAnswer, ReportBatch, SyncRequest
from shunter_work_pools.contracts.errors import ServerUnreachable
from shunter_work_pools.contracts.states import AttemptState
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import Life, life

GPUS: dict[str, Any] = {"capacity": {"cpu": 4.0, "memory": 2.0**33, "gpu": 2.0}}
ONE = {"gpu": 1.0}


async def running(server: FakeServer, *keys: Key) -> None:
    await server.until(
        lambda: all(key in server.leases and "Running" in server.leases[key].states for key in keys)
    )


async def told(server: FakeServer, true: Any) -> SyncRequest:
    """The first sync from now on of which something is true."""
    seen = len(server.syncs)
    await server.until(lambda: any(map(true, server.syncs[seen:])))
    return next(sync for sync in server.syncs[seen:] if true(sync))


def devices(launcher: FakeLauncher, key: Key) -> dict[str, list[int]]:
    return launcher.devices[f"{key[0]}.{key[1]}"]


async def test_a_sync_says_what_there_is_and_what_of_it_is_free(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, **GPUS) as one:
        await server.until(lambda: bool(server.syncs))
        assert server.syncs[0].capacity == server.syncs[0].free_capacity == GPUS["capacity"]
        server.add("hang", need={"cpu": 1.5, "memory": 2.0**32, "gpu": 1.0})
        sync = await told(server, lambda sync: len(sync.holds) == 1)
        assert sync.capacity == GPUS["capacity"]
        assert sync.free_capacity == {"cpu": 2.5, "memory": 2.0**32, "gpu": 1.0}
        await one.die()


async def test_what_is_not_said_is_what_the_machine_has(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, capacity={"cpu": 0.5, "fpga": 1.0}):
        await server.until(lambda: bool(server.syncs))
        has = server.syncs[0].capacity
        assert (has["cpu"], has["fpga"], set(has)) == (0.5, 1.0, {"cpu", "memory", "fpga"})
        assert has["memory"] > 2**20


async def test_a_machine_on_which_nothing_runs_does_not_count(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    launcher.capabilities = replace(launcher.capabilities, own_machine=False)
    async with life(server, tmp_path, launcher, capacity={"gpu": 2.0}):
        await server.until(lambda: bool(server.syncs))
        said = server.syncs[0]
        assert (said.capacity, said.free_capacity, said.found_tags) == ({"gpu": 2.0}, {"gpu": 2.0}, [])
        server.add("hang", need={"gpu": 1.0})
        assert (await told(server, lambda sync: len(sync.holds) == 1)).free_capacity == {"gpu": 1.0}


async def test_the_lowest_free_numbers_are_given_and_given_again(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, capacity={"gpu": 3.0, "fpga": 1.0}) as one:
        first = server.add("hang", need=ONE)
        await running(server, first)
        second = server.add("hang", need={"gpu": 2.0, "fpga": 1.0})
        await running(server, second)
        assert devices(launcher, first) == {"gpu": [0], "fpga": []}
        assert devices(launcher, second) == {"gpu": [1, 2], "fpga": [0]}
        server.cancel(first)
        await server.ended(first)
        third, fourth = server.add("hang", need=ONE), server.add("hang")
        await running(server, third, fourth)
        assert devices(launcher, third) == {"gpu": [0], "fpga": []}
        assert devices(launcher, fourth) == {"gpu": [], "fpga": []}, "it needs none and is told so"
        await one.die()


async def test_what_is_more_than_is_free_is_given_back_and_never_run(tmp_path: Path) -> None:
    """The fake server grants whatever waits."""
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, **GPUS) as one:
        first = server.add("hang", need={"gpu": 1.0, "cpu": 3.0})
        await running(server, first)
        wrong = [
            server.add("hang", need=need) for need in ({"gpu": 2.0}, {"cpu": 1.5}, {"gpu": 3.0}, {"tpu": 1.0})
        ]
        await server.until(lambda: set(server.released) == set(wrong))
        fits = server.add("hang", need={"gpu": 1.0, "cpu": 1.0})
        await running(server, fits)
        assert devices(launcher, fits) == {"gpu": [1]}
        assert [name for call, name in launcher.calls if call == "start"] == [
            f"{run}.{attempt}" for run, attempt in (first, fits)
        ]
        assert one.attempts() == sorted(f"{run}.{attempt}" for run, attempt in (first, fits))
        await one.die()


async def test_devices_are_written_down_and_found_by_the_next_life(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, **GPUS) as one:
        first = server.add("hang", need=ONE)
        await running(server, first)
        second = server.add("hang", need=ONE)
        await running(server, second)
        server.cancel(first)
        await server.ended(first)
        await one.die()
    folder = tmp_path / "a1" / "attempts" / f"{second[0]}.{second[1]}"
    record = json.loads((folder / "journal.jsonl").read_text().split("\n")[1])
    assert record["devices"] == {"gpu": [1]}
    again = FakeLauncher()
    async with life(server, tmp_path, again, **GPUS) as one:
        third = server.add("hang", need=ONE)
        await running(server, third)
        assert devices(again, third) == {"gpu": [0]}, "1 is not free"
        await server.until(lambda: server.syncs[-1].free_capacity["gpu"] == 0)
        fourth = server.add("hang", need=ONE)
        await server.until(lambda: fourth in server.released)
        await one.die()


async def test_what_runs_although_it_is_not_ours_keeps_its_device(tmp_path: Path) -> None:
    """The server forgets it, it does not stop: neither its device nor its place is free until it has."""
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, **GPUS) as one:
        first = server.add("hang", need=ONE)
        await running(server, first)
        attempt = one.agent._holdings.attempts[first]
        stopped = asyncio.Event()

        async def stop(handle: Any, grace: float) -> None:
            await stopped.wait()
            await FakeLauncher.stop(launcher, handle, grace)

        launcher.stop = stop  # type: ignore[method-assign]
        server.take_away(first)
        sync = await told(server, lambda sync: not sync.holds)
        assert attempt.dropped
        assert (sync.free, sync.free_capacity["gpu"], sync.free_capacity["cpu"]) == (7, 1.0, 4.0)
        second = server.add("hang", need=ONE)
        await running(server, second)
        assert devices(launcher, second) == {"gpu": [1]}
        third = server.add("hang", need=ONE)
        await server.until(lambda: third in server.released)
        stopped.set()
        await told(server, lambda sync: sync.free_capacity["gpu"] == 1)
        third = server.add("hang", need=ONE)
        await running(server, third)
        assert devices(launcher, third) == {"gpu": [0]}
        await one.die()


async def test_an_end_counts_until_the_server_has_it_but_its_device_is_free(tmp_path: Path) -> None:
    """The server adds what an end frees by itself, and may grant it at once."""
    arrived = asyncio.Event()

    class Slow(FakeServer):
        async def report(self, name: str, batch: ReportBatch) -> ReportAnswer:
            answer = await super().report(name, batch)
            if any(report.state is AttemptState.COMPLETED for report in batch.reports):
                await arrived.wait()
            return answer

    server, launcher = Slow(), FakeLauncher()
    async with life(server, tmp_path, launcher, capacity={"gpu": 1.0}) as one:
        first = server.add("sleep=0.1", need=ONE)
        await server.ended(first)
        holdings = one.agent._holdings
        assert first in holdings.owed
        assert holdings.free_capacity()["gpu"] == 0
        assert holdings.allot(ONE) == {"gpu": [0]}
        second = server.add("hang", need=ONE)
        await server.until(lambda: second in server.leases)
        while second not in holdings.working:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        arrived.set()
        await running(server, second)
        assert devices(launcher, second) == {"gpu": [0]}
        assert server.released == []
        await one.die()


async def test_a_smaller_capacity_than_what_runs(tmp_path: Path) -> None:
    """All is adopted, nothing is free, no number is given that is in use, and no higher one than there is now."""
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, capacity={"gpu": 4.0, "cpu": 8.0}) as one:
        keys = []
        for need in ({"gpu": 1.0}, {"gpu": 2.0, "cpu": 6.0}, {"gpu": 1.0}):
            keys.append(server.add("hang", need=need))
            await running(server, keys[-1])
        assert [devices(launcher, key)["gpu"] for key in keys] == [[0], [1, 2], [3]]
        await one.die()
    never_written = server.add("hang", need={"gpu": 3.0})
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher, capacity={"gpu": 2.0, "cpu": 4.0}) as one:
        sync = await told(server, lambda sync: len(sync.holds) == 3)
        assert (sync.capacity["gpu"], sync.free_capacity["gpu"], sync.free_capacity["cpu"]) == (2.0, 0.0, 0.0)
        await server.until(lambda: never_written in server.released)
        more = server.add("hang", need=ONE)
        await server.until(lambda: more in server.released)
        server.cancel(keys[1])
        await server.ended(keys[1])
        more = server.add("hang", need=ONE)  # 0 and 3 are in use: as many as there are now
        await server.until(lambda: more in server.released)
        server.cancel(keys[2])
        await server.ended(keys[2])
        more = server.add("hang", need=ONE)
        await running(server, more)
        assert devices(launcher, more) == {"gpu": [1]}
        await one.die()


async def test_a_grant_under_a_higher_epoch_keeps_the_devices(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, **GPUS) as one:
        first, second = server.add("hang", need=ONE), server.add("hang", need=ONE)
        await running(server, first, second)
        mine = devices(launcher, second)["gpu"]
        lease = server.leases[second]
        lease.assignment = lease.assignment.model_copy(update={"epoch": 2})
        lease.steps = []
        server.touch()
        await running(server, second)
        await one.die()
    async with life(server, tmp_path, **GPUS) as one:
        assert one.agent._holdings.attempts == {}  # nothing has run yet
        await told(server, lambda sync: len(sync.holds) == 2)
        found = one.agent._holdings.attempts[second]
        assert (found.assignment.epoch, found.devices) == (2, {"gpu": mine})
        await one.die()


async def test_what_is_never_launched_frees_its_device(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, capacity={"gpu": 1.0}) as one:
        for words in (["start_error=no such program"], ["exit=3"], ["output=x"]):
            key = server.add(*words, need=ONE)
            await server.ended(key)
            assert devices(launcher, key) == {"gpu": [0]}
        launcher.away = "the engine is away"
        waits = server.add("hang", need=ONE)
        await server.until(
            lambda: "Starting" in server.leases[waits].states if waits in server.leases else False
        )
        assert one.agent._holdings.in_use("gpu") == {0}, "it may come to run"
        server.cancel(waits)
        await server.ended(waits)
        launcher.away = None
        last = server.add("hang", need=ONE)
        await running(server, last)
        await one.die()


async def test_while_the_server_is_away_nothing_is_forgotten(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, **GPUS) as one:
        first = server.add("hang", need=ONE)
        await running(server, first)
        server.away = ServerUnreachable("nobody there")
        await one.die()
    launcher = FakeLauncher()
    one = Life(server, tmp_path, launcher, **GPUS)
    try:
        while not one.agent._holdings.attempts:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        assert one.agent._holdings.in_use("gpu") == {0}
        server.back()
        second = server.add("hang", need=ONE)
        await running(server, second)
        assert devices(launcher, second) == {"gpu": [1]}
    finally:
        await one.die()


@pytest.mark.parametrize(
    "devices_line", ['"devices": [1]', '"devices": {"gpu": "x"}', '"devices": {"gpu": [null]}']
)
async def test_a_record_whose_devices_cannot_be_read_is_damaged(tmp_path: Path, devices_line: str) -> None:
    server = FakeServer()
    async with life(server, tmp_path, **GPUS) as one:
        key = server.add("hang", need=ONE)
        await running(server, key)
        await one.die()
    journal = tmp_path / "a1" / "attempts" / f"{key[0]}.{key[1]}" / "journal.jsonl"
    text = journal.read_text()
    assert '"devices": {"gpu": [0]}' in text
    journal.write_text(text.replace('"devices": {"gpu": [0]}', devices_line))
    async with life(server, tmp_path, **GPUS) as one:
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert end.cause == "agent_lost"
        await one.die()
