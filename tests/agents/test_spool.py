"""Output that waits on the agent's disk: how much of it, what makes room first, and what never does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from shunter_agents import holes
from shunter_agents.attempt import Attempt
from shunter_agents.log_shipper import UPLOAD
from shunter_agents.spool import TAIL
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_work_pools.contracts.agents import LogAnswer
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.errors import ServerUnreachable
from tests.agents.counted_output import BLOCK, Counted, taken
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import Life, life
from tests.engines.small_disk import small_disk

pytestmark = pytest.mark.timeout(60)
MIB = 2**20
AWAY = ServerUnreachable("nobody answers")


def due(server: FakeServer, run: Counted) -> Key:
    """Make it a run."""
    key = server.add()
    server.waiting[-1] = server.waiting[-1].model_copy(update={"work": Work(command=run.command)})
    return key


async def on_disk(true: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - the disk is the truth
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def agent(server: FakeServer, root: Path, spool_limit: int, min_disk: int = 0) -> AsyncIterator[Life]:
    async with life(
        server, root, ProcessLauncher(), limit=2, spool_limit=spool_limit, min_disk=min_disk
    ) as one:
        yield one


async def finish(server: FakeServer, run: Counted, key: Key) -> list[tuple[int, int]]:
    """Let it end; the gaps in its output, all the rest of which is there."""
    run.go()
    run.end()
    await server.ended(key)
    lease = server.leases[key]
    await server.until(lambda: len(lease.log) == run.size, 20)
    at = 0
    for start, end in [*lease.gaps, (run.size, run.size)]:
        assert lease.log[at:start] == run.output(at, start - at)
        at = end
    return lease.gaps


@pytest.fixture(params=["tmpfs", "ramfs"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MiB where it knows a size."""
    with small_disk(tmp_path / "mounted", 64, request.param) as folder:
        yield folder


async def test_what_the_server_has_makes_room_and_nothing_is_lost(tmp_path: Path) -> None:
    """A run may write more than the limit; its file keeps its size, and takes little of the disk."""
    server, run = FakeServer(), Counted(tmp_path / "run", 480, 16, pause=0.05)
    async with agent(server, tmp_path / "agents", 12 * MIB) as one:
        key = due(server, run)
        await server.until(lambda: key in server.leases and len(server.leases[key].log) == run.head, 20)
        (output,) = one.folder.attempts.glob("*/output")
        await on_disk(lambda: taken(one.folder.attempts) <= 12 * MIB)
        assert output.stat().st_size == run.head
        assert await finish(server, run, key) == []


async def test_while_the_server_is_away_the_oldest_makes_room_for_the_newest(tmp_path: Path) -> None:
    server, run = FakeServer(), Counted(tmp_path / "run", 16, 320, pause=0.02)
    async with agent(server, tmp_path / "agents", 4 * MIB) as one:
        key = due(server, run)
        await server.until(lambda: key in server.leases and len(server.leases[key].log) == run.head)
        server.away = AWAY
        run.go()
        most = 0
        while not run.written:
            most = max(most, taken(one.folder.attempts))
            await asyncio.sleep(0.01)
        assert most <= 4 * MIB + 50 * MIB * 0.25  # what it writes between two looks, on a busy machine
        await on_disk(lambda: taken(one.folder.attempts) <= 4 * MIB)
        server.back()
        ((start, end),) = await finish(server, run, key)
        assert run.head <= start <= run.head + UPLOAD
        assert run.size - 4 * MIB <= end <= run.size - TAIL
        assert end % 4096 == 0


async def test_of_several_the_one_with_the_most_makes_room(tmp_path: Path) -> None:
    server = FakeServer()
    small, big = Counted(tmp_path / "small", 1, 8), Counted(tmp_path / "big", 1, 160)
    async with agent(server, tmp_path / "agents", 4 * MIB) as one:
        keys = [due(server, run) for run in (small, big)]
        await server.until(lambda: all(key in server.leases and server.leases[key].log for key in keys))
        server.away = AWAY
        small.go()
        big.go()
        await on_disk(lambda: small.written and big.written and taken(one.folder.attempts) <= 4 * MIB)
        server.back()
        assert await finish(server, small, keys[0]) == []
        assert len(await finish(server, big, keys[1])) == 1


async def test_what_is_on_its_way_is_not_lost_whatever_becomes_of_the_upload(tmp_path: Path) -> None:
    """The connection is half open: nobody answers, then it breaks. The same bytes come again."""
    server, run = FakeServer(), Counted(tmp_path / "run", 16, 320)
    upload = server.upload_logs
    hangs, breaks = asyncio.Event(), asyncio.Event()

    async def half_open(name: str, body: bytes) -> LogAnswer:
        hangs.set()
        await breaks.wait()
        server.upload_logs = upload  # type: ignore[method-assign]
        raise AWAY

    async with agent(server, tmp_path / "agents", 4 * MIB) as one:
        server.upload_logs = half_open  # type: ignore[method-assign]
        key = due(server, run)
        await asyncio.wait_for(hangs.wait(), 20)
        run.go()
        await on_disk(lambda: run.written and taken(one.folder.attempts) <= 4 * MIB)
        breaks.set()
        ((start, _),) = await finish(server, run, key)
        assert 0 < start <= run.head


async def test_the_next_life_knows_what_was_given_up(tmp_path: Path) -> None:
    server, run = FakeServer(), Counted(tmp_path / "run", 16, 160)
    async with agent(server, tmp_path / "agents", 4 * MIB) as one:
        key = due(server, run)
        await server.until(lambda: key in server.leases and len(server.leases[key].log) == run.head)
        server.away = AWAY
        run.go()
        await on_disk(lambda: run.written and taken(one.folder.attempts) <= 4 * MIB)
    server.back()
    async with agent(server, tmp_path / "agents", 4 * MIB):
        ((start, end),) = await finish(server, run, key)
    assert run.head <= start <= run.head + UPLOAD < end


async def test_a_folder_that_is_used_again_has_no_holes(tmp_path: Path) -> None:
    server = FakeServer()
    first, second = Counted(tmp_path / "first", 16, 320), Counted(tmp_path / "second", 40, 8)
    async with agent(server, tmp_path / "agents", 4 * MIB) as one:
        key = due(server, first)
        await server.until(lambda: key in server.leases and server.leases[key].log)
        (folder,) = one.folder.attempts.iterdir()
        inode = (folder / "output").stat().st_ino
        server.away = AWAY
        first.go()
        await on_disk(lambda: first.written and taken(one.folder.attempts) <= 4 * MIB)
        server.back()
        assert await finish(server, first, key)
        await on_disk(lambda: not one.attempts())
        key = due(server, second)
        await server.until(lambda: key in server.leases and len(server.leases[key].log) == second.head, 20)
        (folder,) = one.folder.attempts.iterdir()
        assert (folder / "output").stat().st_ino == inode
        assert await finish(server, second, key) == []


async def test_the_end_of_each_output_always_waits(tmp_path: Path) -> None:
    """Also where that is more than may wait; nothing new is taken then."""
    server, run = FakeServer(), Counted(tmp_path / "run", 16, 64)
    async with agent(server, tmp_path / "agents", TAIL // 2):
        key = due(server, run)
        await server.until(lambda: key in server.leases and server.leases[key].end is None)
        server.logs_away = AWAY
        run.go()
        await on_disk(lambda: run.written)
        await server.until(lambda: not server.syncs[-1].taking)
        assert "what is left is too little of each" in server.syncs[-1].troubles[0]
        server.logs_away = None
        gaps = await finish(server, run, key)
        assert gaps[-1][1] <= run.size - TAIL


async def test_no_hole_without_a_word_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that cannot be written keeps the output whole, and the agent from taking more."""
    tried = asyncio.Event()

    def cannot(attempt: Attempt, to: int) -> None:
        tried.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Attempt, "give_up_output", cannot)
    server, run = FakeServer(), Counted(tmp_path / "run", 16, 160)
    async with agent(server, tmp_path / "agents", 4 * MIB):
        key = due(server, run)
        await server.until(lambda: key in server.leases and server.leases[key].log)
        server.away = AWAY
        run.go()
        await asyncio.wait_for(tried.wait(), 20)
        server.back()
        await server.until(lambda: not server.syncs[-1].taking)
        assert await finish(server, run, key) == []


@pytest.mark.parametrize(
    ("code", "known"), [(errno.EOPNOTSUPP, True), (errno.ENOSPC, False), (errno.EIO, False)]
)
async def test_a_hole_that_cannot_be_made_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, known: bool
) -> None:
    def broken(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    async with life(FakeServer(), tmp_path) as one:
        with monkeypatch.context() as patch:
            patch.setattr(holes, "punch", broken)
            assert not one.agent._spool._can()
        assert one.agent._spool._can() is not known


@pytest.mark.parametrize("mounted", ["ramfs"], indirect=True)
async def test_where_there_are_no_holes_nothing_is_lost_and_nothing_new_is_taken(
    mounted: Path, tmp_path: Path
) -> None:
    """The limit is then one for what begins: a run that runs is not kept from writing."""
    server, run = FakeServer(), Counted(tmp_path / "run", 16, 160)
    async with agent(server, mounted / "agents", 4 * MIB) as one:
        key = due(server, run)
        await server.until(lambda: key in server.leases and server.leases[key].log)
        server.logs_away = AWAY
        run.go()
        await on_disk(lambda: run.written)
        await server.until(lambda: not server.syncs[-1].taking)
        (trouble,) = server.syncs[-1].troubles
        assert "of the disk, agent.spool_limit is 4MiB" in trouble
        assert "its file system knows no holes" in trouble
        assert not holes.possible(one.folder.lock_file)
        server.logs_away = None
        assert await finish(server, run, key) == []
        await server.until(lambda: server.syncs[-1].taking)
        assert server.syncs[-1].troubles == []


@pytest.mark.parametrize("mounted", ["tmpfs"], indirect=True)
async def test_a_small_disk_keeps_what_it_should_have_free(mounted: Path, tmp_path: Path) -> None:
    """Below the limit, too: the run goes on writing where it would have had no room."""
    server, run = FakeServer(), Counted(tmp_path / "run", 16, 1600, pause=0.03)
    async with agent(server, mounted / "agents", 1024 * MIB, min_disk=32 * MIB):
        key = due(server, run)
        await server.until(lambda: key in server.leases and len(server.leases[key].log) == run.head)
        server.away = AWAY
        run.go()
        least = 64 * MIB
        while not run.written:
            facts = os.statvfs(mounted)
            least = min(least, facts.f_bavail * facts.f_frsize)
            await asyncio.sleep(0.01)
        assert least >= 32 * MIB - 34 * MIB * 0.25  # what it writes between two looks, on a busy machine
        server.back()
        ((start, end),) = await finish(server, run, key)
        assert run.head <= start <= run.head + UPLOAD
        assert end >= run.size - 40 * MIB


@pytest.mark.parametrize("mounted", ["tmpfs"], indirect=True)
async def test_a_disk_that_others_have_filled_costs_no_output(mounted: Path, tmp_path: Path) -> None:
    server, run = FakeServer(), Counted(tmp_path / "run", 16, 64)
    async with agent(server, mounted / "agents", 1024 * MIB, min_disk=32 * MIB) as one:
        key = due(server, run)
        await server.until(lambda: key in server.leases and len(server.leases[key].log) == run.head)
        server.away = AWAY
        run.go()
        await on_disk(lambda: run.written)
        (mounted / "ballast").write_bytes(bytes(50 * MIB))
        (output,) = one.folder.attempts.glob("*/output")
        # What the server has makes room all the same.
        await on_disk(lambda: output.stat().st_blocks * 512 <= 64 * BLOCK)
        server.back()
        assert await finish(server, run, key) == []


async def test_an_agent_at_rest_does_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, run = FakeServer(), Counted(tmp_path / "run", 1, 1)
    async with agent(server, tmp_path / "agents", 4 * MIB) as one:
        key = due(server, run)
        await finish(server, run, key)
        await on_disk(lambda: not one.attempts())
        spool = one.agent._spool
        await on_disk(lambda: not spool._wake.is_set() and not one.agent._holdings.attempts)
        looks = []
        real = spool.look

        async def look() -> float | None:
            looks.append(1)
            return await real()

        monkeypatch.setattr(spool, "look", look)
        await asyncio.sleep(1.0)  # ten times as long as between two looks
        assert len(looks) <= 1  # the one that finds that there is nothing
