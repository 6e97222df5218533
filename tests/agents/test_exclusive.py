"""Exclusive runs: none works longer than its agent's right to it, whatever becomes of agent and server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shunter_agents import supervisor
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.launcher import NO_DEVICES, NOTHING, Devices, Handle, Lease, Prepared
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.errors import ServerUnreachable
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import life
from tests.patience import SOON

MARGIN = 0.2


@pytest.fixture(autouse=True)
def _short_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LEASE_MARGIN", MARGIN)


class Watched(FakeLauncher):
    """Notes the leases that it is given: those to start with, and those to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[Lease | None] = []
        self.later: list[Lease] = []
        self.over = False  # it was given one to start with that had ended

    async def start(
        self,
        assignment: Assignment,
        folder: Path,
        agent: str,
        lease: Lease | None = None,
        devices: Devices = NO_DEVICES,
        prepared: Prepared = NOTHING,
    ) -> Handle:
        self.first.append(lease)
        self.over |= lease is not None and lease.ask_at <= Stamp.now().ticks
        return await super().start(assignment, folder, agent, lease, devices, prepared)

    async def hold(self, handle: Handle, lease: Lease) -> None:
        self.later.append(lease)
        await super().hold(handle, lease)


def runs(server: FakeServer, key: Key) -> bool:
    return key in server.leases and len(server.leases[key].steps) == 2


def outcome(server: FakeServer, key: Key) -> tuple[str, str | None]:
    end = server.leases[key].end
    assert end is not None
    return end.state.value, end.cause and end.cause.value


async def running(server: FakeServer, *words: str, **more: Any) -> Key:
    key = server.add(*words, **({"exclusive": True, "grace": 0.3} | more))
    await server.until(lambda: runs(server, key))
    return key


async def test_a_lease_is_there_before_the_start_and_counts_from_the_sending(tmp_path: Path) -> None:
    server, launcher = FakeServer(), Watched()
    server.lease_for = 100.0
    async with life(server, tmp_path, launcher):
        await server.until(lambda: len(server.syncs) >= 2)  # one is held now
        sent = Stamp.now().ticks
        await asyncio.sleep(0.5)
        await running(server, "hang")
        (first,) = launcher.first
        assert first is not None
        assert first.kill_at <= sent + 100.0 - MARGIN, "the answer came half a second after the request"
        assert first.kill_at > sent + 99.0 - MARGIN
        assert first.kill_at - first.ask_at == pytest.approx(0.3)


async def test_each_answer_makes_it_longer(tmp_path: Path) -> None:
    server, launcher = FakeServer(), Watched()
    server.lease_for = 1.5
    async with life(server, tmp_path, launcher):
        key = await running(server, "sleep=2.5")
        await server.ended(key)
        assert outcome(server, key) == ("Completed", None)
        ends = [lease.kill_at for lease in launcher.later]
        assert ends == sorted(ends)
        assert len(set(ends)) > 3


async def test_a_run_ends_before_its_lease_when_the_server_stays_away(tmp_path: Path) -> None:
    server, launcher = FakeServer(), Watched()
    server.lease_for = 1.5
    async with life(server, tmp_path, launcher) as one:
        key, other = await running(server, "hang"), await running(server, "hang", exclusive=False)
        server.away = ServerUnreachable("refused")
        server.touch()
        async with asyncio.timeout(SOON):
            while len(one.agent._holdings.working) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        ended = Stamp.now().ticks
        assert ended < max(lease.kill_at for lease in [*launcher.later, *launcher.first] if lease) + MARGIN
        server.back()
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "agent_lost")
        end = server.leases[key].end
        assert end is not None
        assert "lease" in (end.message or "")
        assert server.leases[other].end is None, "only what is exclusive is ended for a server that is away"


async def test_it_ends_also_when_the_agent_is_dead_and_the_next_one_tells(tmp_path: Path) -> None:
    server = FakeServer()
    server.lease_for = 1.0
    async with life(server, tmp_path) as one:
        key = await running(server, "hang")
        await one.die()
    await asyncio.sleep(1.1)
    async with life(server, tmp_path):
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "agent_lost")


async def test_the_next_life_makes_it_longer_with_its_first_answer(tmp_path: Path) -> None:
    server, second = FakeServer(), Watched()
    server.lease_for = 3.0
    async with life(server, tmp_path) as one:
        key = await running(server, "sleep=4")
        await one.die()
    server.lease_for = 30.0
    async with life(server, tmp_path, second):
        await server.until(lambda: bool(server.syncs[-1].holds))
        await server.ended(key)
        assert outcome(server, key) == ("Completed", None)
        assert second.first == []
        assert second.later


async def test_nothing_starts_with_a_lease_that_is_over(tmp_path: Path) -> None:
    server, launcher = FakeServer(), Watched()
    server.lease_for = 0.9
    async with life(server, tmp_path, launcher):
        await server.until(lambda: bool(server.syncs))
        launcher.away = "no engine"
        key = server.add("exit=0", exclusive=True, grace=0.1)
        await server.until(lambda: key in server.leases and bool(server.leases[key].steps))
        server.away = ServerUnreachable("refused")
        server.touch()
        await asyncio.sleep(1.0)
        tried = len(launcher.first)
        launcher.away = None
        await asyncio.sleep(0.7)
        assert len(launcher.first) <= tried + 1, "one may have been asked for before"
        assert not launcher.over
        assert not list(tmp_path.glob("a1/attempts/*/fake.json"))
        server.back()
        await server.ended(key)
        assert outcome(server, key) == ("Completed", None)


async def test_a_lease_that_cannot_be_noted_leaves_the_one_before(tmp_path: Path) -> None:
    class Full(Watched):
        async def hold(self, handle: Handle, lease: Lease) -> None:
            raise OSError("no space left")

    server = FakeServer()
    server.lease_for = 1.5
    async with life(server, tmp_path, Full()) as one:
        key = await running(server, "hang")
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "agent_lost")
        assert not one.done.done()


async def test_what_is_not_exclusive_has_no_lease(tmp_path: Path) -> None:
    server, launcher = FakeServer(), Watched()
    async with life(server, tmp_path, launcher):
        await server.ended(await running(server, "sleep=0.2", exclusive=False))
        assert launcher.first == [None]
        assert launcher.later == []


async def test_a_launcher_that_cannot_keep_a_lease_starts_nothing_exclusive(tmp_path: Path) -> None:
    server, launcher = FakeServer(), Watched()
    launcher.capabilities = replace(launcher.capabilities, keeps_lease=False)  # type: ignore[misc]
    async with life(server, tmp_path, launcher):
        key = server.add("exit=0", exclusive=True)
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "rejected")
        assert launcher.first == []


async def test_a_lease_that_leaves_no_time_to_run_is_told(tmp_path: Path) -> None:
    server, launcher = FakeServer(), Watched()
    server.lease_for = 1.0
    async with life(server, tmp_path, launcher):
        key = server.add("exit=0", exclusive=True, grace=1.0)
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "rejected")
        end = server.leases[key].end
        assert end is not None
        assert "server.lease_for" in (end.message or "")
        assert launcher.first == []


# -- with real processes


def stubborn(server: FakeServer, stamps: Path, **work: Any) -> Key:
    """A run that writes down again and again that it works (boot-time clock), and does not heed SIGTERM."""
    key = server.add(exclusive=True)
    script = f"trap '' TERM; while :; do cut -d' ' -f1 /proc/uptime >> {stamps}; sleep 0.02; done"
    command = Work(command=["sh", "-c", script], **work)
    server.waiting[-1] = server.waiting[-1].model_copy(update={"work": command})
    return key


def last_stamp(stamps: Path) -> float:
    return float(stamps.read_text().splitlines()[-1])


async def over(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - Stamp.now().ticks))


async def test_a_keeper_ends_it_when_the_agent_is_dead(tmp_path: Path) -> None:
    server, stamps = FakeServer(), tmp_path / "stamps"
    server.lease_for = 2.5
    async with life(server, tmp_path, ProcessLauncher()) as one:
        key = stubborn(server, stamps, grace=0.3)
        await server.until(lambda: runs(server, key))
        await one.die()
        dead = Stamp.now().ticks
    await over(dead + 0.5)
    assert last_stamp(stamps) > dead, "it outlives the agent"
    await over(dead + server.lease_for)
    assert last_stamp(stamps) <= dead + server.lease_for - MARGIN + 0.1
    async with life(server, tmp_path, ProcessLauncher()):
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "agent_lost")


async def test_a_server_that_is_away_ends_it_in_time_and_a_quick_one_does_not(tmp_path: Path) -> None:
    server, stamps = FakeServer(), tmp_path / "stamps"
    server.lease_for = 1.5
    async with life(server, tmp_path, ProcessLauncher()):
        key = stubborn(server, stamps, grace=0.2)
        await server.until(lambda: runs(server, key))
        await asyncio.sleep(3.5)
        assert server.leases[key].end is None, "each answer makes its lease longer"
        server.away = ServerUnreachable("refused")
        server.touch()
        gone = Stamp.now().ticks
        await over(gone + server.lease_for)
        assert gone < last_stamp(stamps) <= gone + server.lease_for - MARGIN + 0.1
        server.back()
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "agent_lost")
