"""The process launcher when somebody dies: the agent, the forker, the keeper, the machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shunter_infrastructure.launcher import Launcher
from shunter_infrastructure.process import forker_client, procfs, record
from shunter_infrastructure.process.environment import prepare
from shunter_infrastructure.process.forker_client import ForkerClient
from shunter_infrastructure.process.launcher import ProcessLauncher, _write_inputs
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import Attempt, ended, is_gone, output, shell, until, written
from tests.patience import SOON

Attempts = Callable[..., Attempt]
Launchers = Callable[..., ProcessLauncher]

HOST = Path(__file__).with_name("agent_host.py")
#: Runs until the file named by its first argument is there, writing numbers meanwhile.
COUNTING = """
echo begun >> "$2"
n=0
while [ ! -e "$1" ]; do n=$((n+1)); echo "line $n"; sleep 0.01; done
echo "last $n"
"""


class Agents:
    """Stand-ins of an agent, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[subprocess.Popen[str]] = []

    def start(self, attempt: Attempt, crash_at: str = "never") -> subprocess.Popen[str]:
        file = self._folder / f"assignment-{len(self._all)}.json"
        file.write_text(attempt.assignment.model_dump_json())
        self._all.append(
            subprocess.Popen(
                [sys.executable, str(HOST), str(attempt.folder), str(file), crash_at],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return self._all[-1]

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.communicate()


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    """Agents that can be killed."""
    made = Agents(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize(
    ("last", "code", "name"), [("exit 137", 137, None), ("kill -9 $$", None, "SIGKILL"), ("exit 3", 3, None)]
)
async def test_the_agent_is_killed_and_another_goes_on(
    agents: Agents,
    attempts: Attempts,
    processes: ProcessLauncher,
    tmp_path: Path,
    last: str,
    code: int | None,
    name: str | None,
) -> None:
    go, log = tmp_path / "go", tmp_path / "log"
    attempt = attempts(shell(COUNTING + last, str(go), str(log)))
    agent = agents.start(attempt)
    assert agent.stdout is not None
    pid, forker = map(int, agent.stdout.readline().split())
    agent.kill()
    agent.wait()
    await until(lambda: is_gone(forker), "the forker ends with its agent")
    handle = await attempt.recover(processes)
    assert handle is not None
    assert handle.pid == pid
    assert not is_gone(pid)
    go.touch()
    found = await ended(processes, handle)
    assert (found.exit_code, found.signal, found.error) == (code, name, None)
    lines = (await output(processes, handle)).decode().splitlines()
    count = int(lines[-1].split()[1])
    assert lines == [f"line {n}" for n in range(1, count + 1)] + [f"last {count}"]
    assert log.read_text() == "begun\n"
    assert await attempt.start(processes) == handle


async def test_it_ends_while_no_agent_is_there(
    agents: Agents, attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    attempt = attempts(shell(COUNTING + "exit 9", str(go), str(tmp_path / "log")))
    agent = agents.start(attempt)
    assert agent.stdout is not None
    agent.stdout.readline()
    agent.kill()
    agent.wait()
    go.touch()
    keeper = attempt.record.keeper
    assert keeper is not None
    await until(lambda: is_gone(keeper), "the keeper has written the end")
    handle = await attempt.recover(processes)
    assert handle is not None
    assert (await ended(processes, handle)).exit_code == 9


@pytest.mark.parametrize("again", range(3))
@pytest.mark.parametrize("crash_at", ["prepared", "written", "sent", "answered"])
async def test_the_agent_dies_at_each_step_of_starting(
    agents: Agents, attempts: Attempts, processes: ProcessLauncher, tmp_path: Path, crash_at: str, again: int
) -> None:
    log = tmp_path / "log"
    attempt = attempts(shell('echo begun >> "$1"; exit 6', str(log)))
    assert agents.start(attempt, crash_at).wait(SOON) == -signal.SIGKILL
    handle = await attempt.recover(processes)
    if handle is None:
        # None is a promise: whatever is still under way, nothing of it comes to run any more.
        await asyncio.sleep(0.1)
        assert not log.exists()
        handle = await attempt.start(processes)
    assert (await ended(processes, handle)).exit_code == 6
    assert log.read_text() == "begun\n"


async def test_a_late_order_is_void_once_it_was_denied(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    attempt = attempts(shell("echo never"))
    _write_inputs(attempt.folder, attempt.assignment, prepare(attempt.assignment, attempt.folder, "a1", {}))
    assert await attempt.recover(processes) is None
    # The order of a predecessor reaches a keeper only now.
    answer = await processes._forker.launch(attempt.folder)
    assert answer.kind == "withdrawn"
    assert not (attempt.folder / "record").exists()
    assert not (attempt.folder / "output").exists()
    assert (await attempt.run(processes)).exit_code == 0


async def test_an_order_that_arrives_twice_is_harmless(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    attempt = attempts(shell('echo begun >> "$1"; read x < "$2"', str(log), str(tmp_path / "gate")))
    os.mkfifo(tmp_path / "gate")
    handle = await attempt.start(processes)
    answers = await asyncio.gather(*(processes._forker.launch(attempt.folder) for _ in range(5)))
    assert {record.parse(answer.detail.split("\t")).pid for answer in answers} == {handle.pid}
    await until(log.exists, "it began")
    (tmp_path / "gate").write_text("go\n")
    assert (await ended(processes, handle)).exit_code == 0
    assert log.read_text() == "begun\n"


async def test_twenty_launchers_start_one_attempt(
    attempts: Attempts, process_launchers: Launchers, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    attempt = attempts(shell('echo begun >> "$1"; sleep 0.2', str(log)))
    handles = await asyncio.gather(*(attempt.start(process_launchers()) for _ in range(20)))
    assert len({handle.pid for handle in handles}) == 1
    await ended(process_launchers(), handles[0])
    assert log.read_text() == "begun\n"


async def test_start_and_recover_at_the_same_time(
    attempts: Attempts, process_launchers: Launchers, tmp_path: Path
) -> None:
    one, other = process_launchers(), process_launchers()
    await one.check()
    for number in range(30):
        log = tmp_path / f"log{number}"
        attempt = attempts(shell('echo begun >> "$1"', str(log)))
        handle, found = await asyncio.gather(attempt.start(one), attempt.recover(other))
        assert found in (None, handle)
        assert (await ended(one, handle)).exit_code == 0
        assert log.read_text() == "begun\n"


async def test_the_forker_is_killed(attempts: Attempts, processes: ProcessLauncher, tmp_path: Path) -> None:
    go = tmp_path / "go"
    running = attempts(shell(COUNTING + "exit 4", str(go), str(tmp_path / "log")))
    handle = await running.start(processes)
    forker = processes.forker_pid
    assert forker is not None
    os.kill(forker, signal.SIGKILL)
    assert (await attempts(shell("exit 5")).run(processes)).exit_code == 5
    assert processes.forker_pid != forker
    go.touch()
    assert (await ended(processes, handle)).exit_code == 4


async def test_the_forker_is_killed_with_orders_under_way(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    await processes.check()
    logs = [tmp_path / f"log{n}" for n in range(30)]
    made = [attempts(shell(f'echo begun >> "$1"; exit {n}', str(log))) for n, log in enumerate(logs)]
    runs = [asyncio.create_task(attempt.run(processes)) for attempt in made]
    for _ in range(3):
        await asyncio.sleep(0.005)
        if processes.forker_pid is not None:
            os.kill(processes.forker_pid, signal.SIGKILL)
    # Before anybody loses patience: the death itself is what is acted upon.
    ends = await asyncio.wait_for(asyncio.gather(*runs), forker_client._PATIENCE - 0.5)
    assert [end.exit_code for end in ends] == list(range(30))
    assert [log.read_text() for log in logs] == ["begun\n"] * 30


async def test_a_keeper_that_dies_before_it_answers(
    attempts: Attempts, processes: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forker_client, "_PATIENCE", 0.2)
    taken = ForkerClient._take
    dropped: list[str] = []

    def drop_first(self: ForkerClient, line: str) -> None:
        if "record" in line and not dropped:
            dropped.append(line)  # as if it had never been said
        else:
            taken(self, line)

    monkeypatch.setattr(ForkerClient, "_take", drop_first)
    attempt = attempts(shell("exit 5"))
    assert (await attempt.run(processes)).exit_code == 5
    assert dropped


ESCAPE = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("escaped", os.getpid(), flush=True)
        time.sleep(1000)
    os._exit(0)
os.wait()
time.sleep(1000)
"""


async def test_the_keeper_is_killed(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts([sys.executable, "-c", ESCAPE])
    handle = await attempt.start(processes)
    text = await written(processes, handle, b"escaped")
    escaped = int(text.split()[-1])
    keeper = attempt.record.keeper
    assert keeper is not None
    waiting = asyncio.create_task(ended(processes, handle))
    await asyncio.sleep(0)
    os.kill(keeper, signal.SIGKILL)
    found = await waiting
    assert found.error is Cause.KEEPER_LOST
    assert (found.exit_code, found.signal) == (None, None)
    assert found.message is not None
    assert str(handle.pid) in found.message
    assert found.log_size == len(text)
    assert handle.pid is not None
    assert is_gone(handle.pid)
    assert is_gone(escaped)


async def test_the_keeper_died_while_no_agent_was_there(
    attempts: Attempts, process_launchers: Launchers
) -> None:
    attempt = attempts(shell("exec sleep 1000"))
    first = process_launchers()
    handle = await attempt.start(first)
    await first.close()
    keeper = attempt.record.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    second = process_launchers()
    found = await attempt.recover(second)
    assert found == handle
    assert (await ended(second, handle)).error is Cause.KEEPER_LOST
    assert handle.pid is not None
    assert is_gone(handle.pid)


async def test_signals_that_are_not_meant_for_the_keeper(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    attempt = attempts(shell("exec sleep 1000"))
    handle = await attempt.start(processes)
    keeper = attempt.record.keeper
    assert keeper is not None
    for name in ("SIGHUP", "SIGINT", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTSTP", "SIGALRM"):
        os.kill(keeper, signal.Signals[name])
    assert procfs.is_running(keeper, attempt.record.keeper_start)
    await processes.stop(handle, 5)
    assert (await ended(processes, handle)).signal == "SIGTERM"


async def test_sigterm_from_elsewhere_stops_by_the_grace_of_the_deployment(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    attempt = attempts(shell("trap '' TERM; echo up; while :; do sleep 1000; done"), grace=0.2)
    handle = await attempt.start(processes)
    await written(processes, handle, b"up")
    keeper = attempt.record.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGTERM)
    assert (await ended(processes, handle)).signal == "SIGKILL"


def _doctor(attempt: Attempt, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = attempt.folder / "record"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


async def _recovered(attempt: Attempt, launcher: Launcher) -> Cause | None:
    handle = await attempt.recover(launcher)
    assert handle is not None
    return (await ended(launcher, handle)).error


@pytest.mark.parametrize("size", [0, 1, 30])
async def test_a_torn_end_is_no_end(attempts: Attempts, processes: ProcessLauncher, size: int) -> None:
    attempt = attempts(shell("exit 3"))
    await attempt.run(processes)
    _doctor(attempt, lambda lines: [*lines[:-1], lines[-1][:size]])
    assert await _recovered(attempt, processes) is Cause.KEEPER_LOST


async def test_an_end_without_its_line_end_is_torn(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("exit 3"))
    await attempt.run(processes)
    _doctor(attempt, lambda lines: [*lines[:-1], lines[-1][:-1]])
    assert await _recovered(attempt, processes) is Cause.KEEPER_LOST


@pytest.mark.parametrize("content", [b"", b'{"is":"keep', b"\xff\xfe\0\n", b"[]\n{}\nnull\n"])
async def test_a_record_that_says_nothing(
    attempts: Attempts, processes: ProcessLauncher, content: bytes
) -> None:
    attempt = attempts(shell("exit 3"))
    (attempt.folder / "record").write_bytes(content)
    assert await _recovered(attempt, processes) is Cause.KEEPER_LOST
    # Whether it was started cannot be known, so it is not started again.
    handle = await attempt.start(processes)
    assert handle.pid is None
    assert (await ended(processes, handle)).error is Cause.KEEPER_LOST


async def test_the_machine_was_restarted(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("exit 3"))
    await attempt.run(processes)
    whole = (attempt.folder / "record").read_bytes()
    boot = json.loads(whole.splitlines()[0])["boot"].encode()
    _doctor(attempt, lambda lines: [line.replace(boot, b"another-boot") for line in lines[:-1]])
    assert await _recovered(attempt, processes) is Cause.NODE_LOST
    # An end that was written down before is an end all the same.
    (attempt.folder / "record").write_bytes(whole.replace(boot, b"another-boot"))
    handle = await attempt.recover(processes)
    assert handle is not None
    assert (await ended(processes, handle)).exit_code == 3


async def test_the_process_id_belongs_to_somebody_else_now(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    try:
        attempt = attempts(shell("exit 3"))
        await attempt.run(processes)
        first, second, _ = (
            json.loads(line) for line in (attempt.folder / "record").read_bytes().splitlines()
        )
        first["pid"] = second["pid"] = stranger.pid  # with the start times of those that were
        _doctor(attempt, lambda _: [json.dumps(line).encode() + b"\n" for line in (first, second)])
        handle = await attempt.recover(processes)
        assert handle is not None
        await processes.stop(handle, 0)
        assert (await ended(processes, handle)).error is Cause.KEEPER_LOST
        assert not is_gone(stranger.pid)
    finally:
        stranger.kill()
        await stranger.wait()


async def test_launch_json_that_is_half_written_is_not_launched(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    attempt = attempts(shell("exit 3"))
    (attempt.folder / "launch.json").write_text('{"program": "/bin/s')
    (attempt.folder / "launch.json.123").write_text('{"program')
    assert await attempt.recover(processes) is None
    assert (await attempt.run(processes)).exit_code == 3


async def test_waiting_without_pidfd(
    attempts: Attempts, processes: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: int, __: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    attempt = attempts(shell("echo up; exec sleep 1000"))
    handle = await attempt.start(processes)
    waiting = asyncio.create_task(ended(processes, handle))
    await written(processes, handle, b"up")
    await processes.stop(handle, 5)
    assert (await waiting).signal == "SIGTERM"
    assert processes.forker_pid is not None
    os.kill(processes.forker_pid, signal.SIGKILL)
    assert (await attempts(shell("exit 5")).run(processes)).exit_code == 5
