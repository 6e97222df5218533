"""The daemon against a server of this process: what happens to runs when things go well, and when not."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from shunter_agents import daemon, link, log_shipper
from shunter_agents.attempt import Step
from shunter_agents.daemon import BROKEN, OK, Fatal
from shunter_agents.journal import Journal
from shunter_agents.options import Options
from shunter_agents.state_folder import StateFolder
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.errors import (
    NotFound,
    Refused,
    ServerUnreachable,
    ShunterError,
    Unauthenticated,
    Unavailable,
)
from shunter_work_pools.contracts.states import AttemptState
from shunter_work_pools.service_manager import ServiceManager
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import Life, life
from tests.patience import SOON

STEPS = ["Starting", "Running"]


def outcome(server: FakeServer, key: Key) -> tuple[str, str | None]:
    end = server.leases[key].end
    assert end is not None
    return end.state.value, end.cause and end.cause.value


def starts(launcher: FakeLauncher) -> list[str]:
    return [folder for call, folder in launcher.calls if call == "start"]


async def gone(one: Life, server: FakeServer) -> None:
    """Wait until nothing is left of any attempt."""
    async with asyncio.timeout(SOON):
        while one.attempts():  # noqa: ASYNC110 - the folder is the truth
            await asyncio.sleep(0.01)


# -- a run that goes well


async def test_a_run_is_reported_step_by_step_and_leaves_nothing(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        key = server.add("output=hello\n", 'result={"rows": 3}', "max_rss=1000", "cpu=0.5")
        await server.ended(key)
        await gone(one, server)
        lease = server.leases[key]
        assert lease.states == [*STEPS, "Completed"]
        assert lease.end is not None
        assert lease.end.result == {"rows": 3}
        assert (lease.end.exit_code, lease.end.max_rss_bytes, lease.end.cpu_seconds) == (0, 1000, 0.5)
        assert lease.end.log_size == 6
        assert bytes(lease.log) == b"hello\n"
        assert lease.steps[1].pid is not None
        assert await one.drained() == OK


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["exit=3"], ("Failed", "exit_code")),
        (["exception=ValueError: no"], ("Failed", "exception")),
        (["signal=SIGSEGV"], ("Failed", "signal")),
        (["signal=SIGKILL"], ("Crashed", "signal")),
        (["signal=SIGKILL", "oom"], ("Crashed", "oom")),
        (["error=keeper_lost"], ("Crashed", "keeper_lost")),
        (["start_error=no such command"], ("Crashed", "start_failed")),
        (["start_error=no such folder", "start_cause=source"], ("Crashed", "source")),
    ],
)
async def test_an_end_is_told_as_it_was(tmp_path: Path, words: list[str], expected: tuple[str, str]) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        key = server.add(*words)
        await server.ended(key)
        assert outcome(server, key) == expected
        await gone(one, server)


async def test_no_more_than_the_limit_run_at_once(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, limit=2) as one:
        keys = [server.add("sleep=0.05") for _ in range(6)]
        await server.ended(*keys)
        assert all(len(sync.holds) <= 2 for sync in server.syncs)
        assert await one.drained() == OK


# -- answers that are lost


@pytest.mark.parametrize("kind", ["sync", "report", "logs"])
async def test_a_lost_answer_heals(tmp_path: Path, kind: str) -> None:
    server = FakeServer()
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        await server.until(lambda: bool(server.syncs))
        server.lose = [kind]
        key = server.add("output=hello\n", "sleep=0.1")
        await server.ended(key)
        await gone(one, server)
        assert not server.lose
        assert server.leases[key].states == [*STEPS, "Completed"]
        assert bytes(server.leases[key].log) == b"hello\n"
        assert len(starts(launcher)) == 1


async def test_an_assignment_that_is_repeated_is_not_started_again(tmp_path: Path) -> None:
    server = FakeServer()
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        key = server.add("hang")
        await server.until(lambda: len(server.leases[key].steps) == 2 if key in server.leases else False)
        attempt = one.agent._holdings.attempts[key]
        assert not one.agent._take(attempt.assignment, [])
        assert not one.agent._take(attempt.assignment.model_copy(update={"epoch": 0}), [])
        assert len(starts(launcher)) == 1


async def test_a_grant_under_a_higher_epoch_goes_on_and_is_told_anew(tmp_path: Path) -> None:
    server = FakeServer()
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher):
        key = server.add("sleep=0.5")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        lease = server.leases[key]
        lease.assignment = lease.assignment.model_copy(update={"epoch": 2})
        lease.steps.clear()
        server.touch()  # the answer forgets the old epoch and grants the new one
        await server.ended(key)
        assert lease.states == [*STEPS, "Completed"]
        assert {step.epoch for step in lease.steps} == {2}
        assert len(starts(launcher)) == 1


# -- stopping


async def test_a_cancelled_run_is_stopped_with_its_grace_and_told_once(tmp_path: Path) -> None:
    server = FakeServer()
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        key = server.add("hang", "ignore_term", run=None)
        server.waiting[-1].work.grace = 0.2
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        server.cancel(key)
        await server.ended(key)
        assert outcome(server, key) == ("Cancelled", "cancelled")
        end = server.leases[key].end
        assert end is not None
        assert end.signal == "SIGKILL"
        await gone(one, server)
        assert [call for call, _ in launcher.calls].count("stop") == 1


async def test_a_run_cancelled_before_it_started_is_never_started(tmp_path: Path) -> None:
    server = FakeServer()
    launcher = FakeLauncher(away="no engine")
    async with life(server, tmp_path, launcher) as one:
        launcher.away = None
        await server.until(lambda: bool(server.syncs))
        launcher.away = "no engine"
        key = server.add()
        await server.until(lambda: key in server.leases and bool(server.leases[key].steps))
        server.cancel(key)
        await server.ended(key)
        assert outcome(server, key) == ("Cancelled", "cancelled")
        assert not (one.folder.attempts / f"{key[0]}.1" / "fake.json").exists()


async def test_a_run_that_completed_though_it_was_cancelled_is_completed(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path, _Deaf()):
        key = server.add("sleep=0.3")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        server.cancel(key)
        await server.ended(key)
        assert outcome(server, key) == ("Completed", None)


class _Deaf(FakeLauncher):
    """Its work does not hear that it should stop."""

    async def stop(self, handle: object, grace: float) -> None:
        return


async def test_time_runs_out_also_for_a_run_of_a_former_life(tmp_path: Path) -> None:
    server = FakeServer()
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as first:
        server.add("hang")
        server.waiting[-1].work.timeout = 0.6
        key = (server.waiting[-1].run, 1)
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        await first.die()
    async with life(server, tmp_path, launcher):
        await server.ended(key)
        assert outcome(server, key) == ("TimedOut", "timeout")


async def test_an_engine_that_stays_away_ends_in_start_timeout(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path):
        key = server.add("unavailable=1000")
        server.waiting[-1].work.start_timeout = 0.4
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "start_timeout")


async def test_a_launch_that_hangs_ends_in_start_timeout(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path):
        key = server.add("start_delay=60")
        server.waiting[-1].work.start_timeout = 0.3
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "start_timeout")


async def test_what_is_taken_away_is_stopped_and_not_reported(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        key = server.add("hang")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        server.take_away(key)
        await gone(one, server)
        assert server.leases[key].states == STEPS


async def test_a_stale_acknowledgement_stops_the_work(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        await server.until(lambda: bool(server.syncs))
        key = server.add("hang", "start_delay=0.1")
        await server.until(lambda: key in server.leases and bool(server.leases[key].steps))
        server.leases[key].live = False  # no sync tells it: the report of Running finds out
        await gone(one, server)
        assert server.leases[key].states == ["Starting"]


# -- the server is away


TROUBLES: list[Callable[[], Exception]] = [
    lambda: ServerUnreachable("refused"),
    lambda: Unavailable("stopping"),
    lambda: Refused("429", retry_after=0.2),
    lambda: ShunterError("the answer is not understood"),
    lambda: Unauthenticated("the token is wrong"),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda make: type(make()).__name__)
async def test_all_arrives_once_and_in_order_when_the_server_is_back(
    tmp_path: Path, trouble: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shunter_agents.link.DENIED_DELAY", 0.2)
    server = FakeServer()
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        keys = [server.add("sleep=0.4", "output=x\n") for _ in range(5)]
        await server.until(lambda: all(key in server.leases for key in keys))
        await server.until(lambda: all(server.leases[key].steps for key in keys))
        server.away = trouble()
        server.touch()
        async with asyncio.timeout(SOON):
            while one.agent._holdings.working:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert not any(server.leases[key].end for key in keys)
        assert len(one.attempts()) == 5
        back_at = asyncio.get_running_loop().time()
        server.back()
        await server.ended(*keys)
        assert asyncio.get_running_loop().time() - back_at < 2
        await gone(one, server)
        for key in keys:
            assert server.leases[key].states == [*STEPS, "Completed"]
            assert bytes(server.leases[key].log) == b"x\n"
        assert len(starts(launcher)) == 5


async def test_an_agent_waits_for_a_server_that_is_not_there_yet(tmp_path: Path) -> None:
    server = FakeServer()
    server.away = ServerUnreachable("refused")
    async with life(server, tmp_path) as one:
        await asyncio.sleep(0.3)
        assert not one.done.done()
        server.back()
        key = server.add()
        await server.ended(key)


async def test_a_report_that_is_refused_holds_up_nobody(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        server.refuse = lambda report: report.exit_code == 7
        bad, good = server.add("exit=7", "sleep=0.1"), server.add("sleep=0.1")
        await server.ended(good, bad)
        assert outcome(server, bad) == ("Failed", "exit_code")
        end = server.leases[bad].end
        assert end is not None
        assert end.exit_code is None  # bare facts
        await gone(one, server)


async def test_a_report_that_is_always_refused_is_kept(tmp_path: Path) -> None:
    server = FakeServer()
    bad = server.add("exit=7")
    server.refuse = lambda report: report.run == bad[0] and report.seq == 3
    async with life(server, tmp_path) as one:
        keys = [server.add("sleep=0.05") for _ in range(5)]
        await server.ended(*keys)
        server.refuse = lambda report: False
        await server.ended(bad)
        await gone(one, server)


async def test_a_report_that_the_server_had_already_holds_up_nobody(tmp_path: Path) -> None:
    """Acknowledged with one that was under way, it waits still when the next batch is made."""
    server = FakeServer()
    async with life(server, tmp_path) as one:
        had, other = server.add("hang"), server.add("hang")
        for key in (had, other):
            await server.until(lambda key=key: key in server.leases and len(server.leases[key].steps) == 2)
        first, second = (one.agent._holdings.attempts[key] for key in (had, other))
        async with asyncio.timeout(SOON):
            while first.steps or second.steps:  # noqa: ASYNC110 - acknowledged
                await asyncio.sleep(0.01)
        for attempt in (first, second):
            attempt.steps = [Step(2, Stamp.now(), AttemptState.RUNNING, {})]
            one.agent._reporter.add(attempt)
        first.acknowledge(2)
        batches = len(server.batches)
        await server.until(lambda: len(server.batches) > batches)
        await asyncio.sleep(0.1)
        assert not second.steps
        assert not one.done.done()


# -- beginning


@pytest.mark.parametrize("error", [Unauthenticated("the token is wrong"), NotFound("there is no pool")])
async def test_an_agent_that_is_refused_at_first_contact_ends(tmp_path: Path, error: Exception) -> None:
    server = FakeServer()
    server.away = error
    async with life(server, tmp_path) as one:
        with pytest.raises(Fatal, match=str(error)):
            await one.done
        one.done = asyncio.ensure_future(_nothing())
        await one.done


async def _nothing() -> int:
    return 0


async def test_a_part_that_dies_stops_the_agent_and_not_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeServer()
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        key = server.add("sleep=0.5")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)

        def broken() -> None:
            raise AssertionError

        monkeypatch.setattr(one.agent._shipper, "_gather", broken)
        assert await one.done == BROKEN
        assert "stop" not in [call for call, _ in launcher.calls]
    monkeypatch.undo()
    async with life(server, tmp_path, FakeLauncher()):
        await server.ended(key)
        assert outcome(server, key) == ("Completed", None)


# -- another life


async def test_what_runs_is_taken_up_and_what_ended_meanwhile_is_told(tmp_path: Path) -> None:
    server = FakeServer()
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as first:
        running = server.add("sleep=1", "output=abc")
        ending = server.add("sleep=0.2", "output=def", "exit=4")
        await server.until(
            lambda: all(len(one.steps) == 2 for one in server.leases.values()) and len(server.leases) == 2
        )
        await first.die()
    await asyncio.sleep(0.25)
    second = FakeLauncher()
    async with life(server, tmp_path, second) as one:
        await server.ended(running, ending)
        assert outcome(server, running) == ("Completed", None)
        assert outcome(server, ending) == ("Failed", "exit_code")
        await gone(one, server)
        assert [server.leases[key].states[:2] for key in (running, ending)] == [STEPS, STEPS]
        assert bytes(server.leases[running].log) == b"abc"
        assert starts(second) == []


async def test_what_a_former_life_never_started_waits_for_the_server(tmp_path: Path) -> None:
    server = FakeServer()
    lost, kept = _written_down(server, tmp_path), _written_down(server, tmp_path)
    server.leases[lost].live = False
    server.away = ServerUnreachable("refused")
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        await asyncio.sleep(0.2)
        assert starts(launcher) == []
        server.back()
        await server.ended(kept)
        await gone(one, server)
        assert starts(launcher) == [f"{kept[0]}.1"]
        assert server.leases[lost].states == []


async def test_a_server_that_is_away_costs_no_run_its_time_to_start(tmp_path: Path) -> None:
    server = FakeServer()
    key = _written_down(server, tmp_path, start_timeout=0.3)
    server.away = ServerUnreachable("refused")
    async with life(server, tmp_path):
        await asyncio.sleep(0.6)
        server.back()
        await server.ended(key)
        assert outcome(server, key) == ("Completed", None)


async def test_a_launcher_that_fails_in_no_known_way_takes_no_more_than_the_time_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "QUICK_LIMIT", 0.1)

    class Broken(FakeLauncher):
        async def start(self, *args: Any) -> Any:
            raise RuntimeError("a bug")

    server = FakeServer()
    async with life(server, tmp_path, Broken()):
        key = server.add(start_timeout=0.5)
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "start_timeout")


def _written_down(server: FakeServer, root: Path, **work: Any) -> Key:
    """An attempt that a former life wrote down, and did not begin."""
    from shunter_agents.journal import Record

    folder = StateFolder(root, "a1")
    assignment = _assignment(**work)
    server.grant(assignment, folder.session)
    path = folder.attempts / f"{assignment.run}.1"
    path.mkdir()
    Journal(path).write_record(Record(assignment, "process", Stamp.now()))
    folder.close()
    return assignment.run, 1


def _assignment(**work: Any) -> Assignment:
    return Assignment(
        run=uuid4(),
        attempt=1,
        epoch=1,
        session=uuid4(),
        deployment="fake",
        revision=1,
        pool="default",
        queue="default",
        scheduled_at=datetime.now(UTC),
        work=Work(command=["fake"], **work),
    )


async def test_a_grant_whose_answer_a_former_life_never_got_is_started(tmp_path: Path) -> None:
    server = FakeServer()
    former = StateFolder(tmp_path, "a1")
    former.close()
    assignment = _assignment()
    server.grant(assignment, former.session)
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher):
        await server.ended((assignment.run, 1))
        assert outcome(server, (assignment.run, 1)) == ("Completed", None)
        assert len(starts(launcher)) == 1


@pytest.mark.parametrize(("boot", "cause"), [("another boot", "node_lost"), (None, "agent_lost")])
async def test_of_what_cannot_be_known_nothing_is_guessed(
    tmp_path: Path, boot: str | None, cause: str
) -> None:
    server = FakeServer()
    former = StateFolder(tmp_path, "a1")
    former.close()
    sessions = tmp_path / "a1" / "sessions"
    if boot is None:
        shutil.rmtree(tmp_path / "a1")
    else:
        sessions.write_text(json.dumps({"session": str(former.session), "boot": boot}) + "\n")
    assignment = _assignment()
    server.grant(assignment, former.session)
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        await server.ended((assignment.run, 1))
        assert outcome(server, (assignment.run, 1)) == ("Crashed", cause)
        await gone(one, server)
        assert starts(launcher) == []


def _unknowable(server: FakeServer) -> Key:
    """An attempt that was granted to an agent whose state folder is not here."""
    assignment = _assignment()
    server.grant(assignment, uuid4())
    return assignment.run, 1


async def test_what_cannot_be_known_is_not_given_back_by_an_agent_without_room(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher, health_check="exit 1") as one:
        key = _unknowable(server)
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "agent_lost")
        assert server.released == []
        assert await one.drained() == OK
        assert starts(launcher) == []


async def test_what_cannot_be_known_keeps_no_agent_from_draining(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        key = server.add("sleep=0.4")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        one.agent.drain()
        lost = _unknowable(server)
        server.touch()
        assert await one.done == OK
        assert outcome(server, lost) == ("Crashed", "agent_lost")
        assert server.released == []


async def test_what_cannot_be_known_is_not_the_one_run_of_an_agent(tmp_path: Path) -> None:
    server, launcher = FakeServer(), FakeLauncher()
    lost, own = _unknowable(server), server.add()
    async with life(server, tmp_path, launcher, once=True) as one:
        async with asyncio.timeout(SOON):
            assert await one.done == OK
        assert outcome(server, lost) == ("Crashed", "agent_lost")
        assert outcome(server, own) == ("Completed", None)


async def test_an_end_whose_acknowledgement_was_lost_is_told_again(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as first:
        key = server.add("sleep=0.1", "output=abc")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        server.lose = ["report"]
        await server.ended(key)
        await first.die()
    async with life(server, tmp_path) as one:
        await gone(one, server)
        assert server.leases[key].states == [*STEPS, "Completed"]
        assert bytes(server.leases[key].log) == b"abc"


async def test_a_damaged_journal_is_set_aside_and_a_half_made_one_dropped(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, "a1")
    (folder.attempts / "half").mkdir()
    (folder.attempts / "bad").mkdir()
    (folder.attempts / "bad" / "journal.jsonl").write_text('{"acked": 3, "epoch": 1}\n')
    folder.close()
    server = FakeServer()
    async with life(server, tmp_path) as one:
        await server.until(lambda: bool(server.syncs))
        assert one.attempts() == []
        assert len(list(one.folder.damaged.iterdir())) == 1


async def test_what_was_set_aside_is_not_started_a_second_time(tmp_path: Path) -> None:
    server = FakeServer()
    effects = tmp_path / "effects"
    async with life(server, tmp_path, ProcessLauncher()) as first:
        key = server.add()
        command = ["sh", "-c", f"echo $$ >> {effects}; exec sleep 1000"]
        server.waiting[-1] = server.waiting[-1].model_copy(update={"work": Work(command=command)})
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        (folder,) = first.folder.attempts.iterdir()
        await first.die()
    (folder / "journal.jsonl").write_text('{"assignment": {}}\n')
    try:
        async with life(server, tmp_path, ProcessLauncher()):
            await server.ended(key)
        assert outcome(server, key) == ("Crashed", "agent_lost")
        assert len(effects.read_text().split()) == 1
    finally:
        for pid in effects.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


# -- draining


async def test_draining_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        key = server.add("sleep=0.4", "output=abc")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        one.agent.drain()
        later = server.add()
        assert await one.done == OK
        assert outcome(server, key) == ("Completed", None)
        assert bytes(server.leases[key].log) == b"abc"
        assert later not in server.leases
        assert one.attempts() == []


async def test_what_is_granted_while_draining_is_given_back(tmp_path: Path) -> None:
    server = FakeServer()
    launcher = FakeLauncher()
    async with life(server, tmp_path, launcher) as one:
        key = server.add("sleep=0.4")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        one.agent.drain()
        lost = _assignment()
        server.grant(lost, one.folder.session)
        server.touch()
        assert await one.done == OK
        assert server.released == [(lost.run, 1)]
        assert starts(launcher) == [f"{key[0]}.1"]


async def test_draining_twice_stops_what_runs(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        key = server.add("hang")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        one.agent.told_to_stop()
        one.agent.told_to_stop()
        assert await one.done == OK
        assert outcome(server, key) == ("Cancelled", "cancelled")


async def test_draining_ends_at_once_when_nothing_is_owned(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        await server.until(lambda: bool(server.syncs))
        assert await one.drained(seconds=1) == OK


async def test_draining_waits_for_a_server_that_is_away(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        key = server.add("sleep=0.2")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        server.away = ServerUnreachable("refused")
        server.touch()
        one.agent.drain()
        await asyncio.sleep(0.5)
        assert not one.done.done()
        server.back()
        assert await one.done == OK
        assert outcome(server, key) == ("Completed", None)


async def test_draining_twice_while_the_server_is_away_leaves_the_rest_on_disk(tmp_path: Path) -> None:
    server = FakeServer()
    async with life(server, tmp_path) as one:
        key = server.add("hang")
        await server.until(lambda: key in server.leases and len(server.leases[key].steps) == 2)
        server.away = ServerUnreachable("refused")
        server.touch()
        one.agent.told_to_stop()
        one.agent.told_to_stop()
        async with asyncio.timeout(SOON):
            assert await one.done == OK
        one.folder.close()
    server.back()
    async with life(server, tmp_path):
        await server.ended(key)
        assert outcome(server, key) == ("Cancelled", "cancelled")


# -- standing in


async def test_who_stands_in_for_the_agent_reads_no_disk_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[object] = []
    syncs: list[object] = []

    class Client:
        def __init__(self, *_: Any, **__: Any) -> None:
            clients.append(self)

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None: ...

        def sync(self, _: str, request: object) -> None:
            syncs.append(request)

    class HeldUp(daemon.Agent):
        async def run(self) -> int:
            before = len(clients)
            assert self._heartbeat is not None
            for request in ("one", "two"):
                self._heartbeat._say(request)  # type: ignore[arg-type]
            assert len(clients) == before
            return OK

    monkeypatch.setenv("SHUNTER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("shunter_work_pools.client.Client", Client)
    monkeypatch.setattr(daemon, "Agent", HeldUp)
    handler = signal.getsignal(signal.SIGIO)
    folder = StateFolder(tmp_path, "a1")
    try:
        options = Options(name="a1", pools=["default"], queues=[], tags=[], limit=1)
        assert await daemon._live(folder, options, ServiceManager()) == OK
    finally:
        folder.close()
        signal.signal(signal.SIGIO, handler)
        gc.unfreeze()
    assert syncs == ["one", "two"]


# -- the disk


async def test_a_run_that_removes_its_own_folder_is_settled_like_any_other(tmp_path: Path) -> None:
    server = FakeServer()
    script = 'sleep 0.3; rm -rf "$(dirname "$PWD")"; exit 0'
    async with life(server, tmp_path, ProcessLauncher()) as one:
        key = server.add()
        server.waiting[-1] = server.waiting[-1].model_copy(
            update={"work": Work(command=["sh", "-c", script])}
        )
        await server.ended(key)
        assert outcome(server, key) == ("Crashed", "keeper_lost")
        assert await one.drained() == 0


# -- output


async def test_output_goes_on_from_where_the_server_is(tmp_path: Path) -> None:
    server = FakeServer()
    text = "0123456789" * 20
    async with life(server, tmp_path) as first:
        key = server.add("sleep=60", f"output={text}")
        await server.until(lambda: key in server.leases and len(server.leases[key].log) == 200, 5)
        await first.die()
    del server.leases[key].log[50:]
    async with life(server, tmp_path):
        await server.until(lambda: len(server.leases[key].log) == 200, 5)
        assert bytes(server.leases[key].log) == text.encode()


async def test_much_output_of_one_does_not_hold_up_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_shipper, "UPLOAD", 400)
    monkeypatch.setattr(log_shipper, "SHARE", 100)
    size = 1_000_000
    server = FakeServer()
    async with life(server, tmp_path) as one:
        big = server.add("output=" + "x" * size)
        await server.until(lambda: bool(server.uploads))
        small = server.add("output=y")
        await server.until(lambda: small in server.leases and bytes(server.leases[small].log) == b"y")
        with_small = next(upload for upload in server.uploads if small in upload)
        assert with_small[big] < size / 2
        await server.ended(big, small)
        assert len(server.leases[big].log) < size, "an end waits for no output"
        await server.until(lambda: len(server.leases[big].log) == size, 60)
        await gone(one, server)
