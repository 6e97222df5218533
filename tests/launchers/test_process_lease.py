"""The lease of an exclusive attempt: its keeper keeps it, whoever dies, hangs or is slow."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter_infrastructure.launcher import LauncherUnavailable, Lease
from shunter_infrastructure.process import launcher as launcher_module
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.states import Cause
from tests.engines.closing_words import not_applicable
from tests.launchers.attempts import Attempt, ended, is_gone, lease, shell, until, written

Attempts = Callable[..., Attempt]
Launchers = Callable[..., ProcessLauncher]

HOST = Path(__file__).with_name("agent_host.py")
#: Says every hundredth of a second that it runs, by the boot-time clock, and takes no heed of SIGTERM.
CLOCK = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    print(time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)
    time.sleep(0.01)
"""
WATCHING = [sys.executable, "-c", CLOCK]


def _last_breath(attempt: Attempt) -> float:
    return float((attempt.folder / "output").read_text().split()[-1])


async def _over(attempt: Attempt) -> None:
    keeper = attempt.record.keeper
    assert keeper is not None
    await until(lambda: is_gone(keeper), "its keeper has written the end")


def _agent(attempt: Attempt, file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HOST), str(attempt.folder), str(file), "never"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TEST_LEASE": "1.0 1.3"},
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_agent_and_its_forker_are_dead_or_hang(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path, number: signal.Signals
) -> None:
    attempt = attempts(WATCHING)
    file = tmp_path / "assignment.json"
    file.write_text(attempt.assignment.model_dump_json())
    agent = _agent(attempt, file)
    assert agent.stdout is not None
    _, forker = map(int, agent.stdout.readline().split())
    promised = Lease(*map(float, (attempt.folder / "lease").read_text().split()))
    try:
        for pid in (agent.pid, forker):
            os.kill(pid, number)
        assert Stamp.now().ticks < promised.ask_at
        await _over(attempt)
        assert promised.kill_at - 0.1 < _last_breath(attempt) < promised.kill_at + 0.1
        handle = await attempt.recover(processes)
        assert handle is not None
        assert (await ended(processes, handle)).error is Cause.AGENT_LOST
    finally:
        for pid in (forker, agent.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        agent.communicate()


async def test_a_lease_also_ends_what_the_command_left_behind(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    await processes.check()
    promised = lease(1.0, 1.3)
    attempt = attempts(shell('env -i setsid "$@" & exec sleep 1000', *WATCHING))
    handle = await attempt.start(processes, promised)
    assert (await ended(processes, handle)).signal == "SIGTERM"
    assert _last_breath(attempt) < promised.kill_at + 0.1


async def test_the_forker_dies_while_it_launches(attempts: Attempts, processes: ProcessLauncher) -> None:
    await processes.check()
    assert processes.forker_pid is not None
    os.kill(processes.forker_pid, signal.SIGSTOP)
    promised = lease(1.0, 1.0)
    attempt = attempts(WATCHING)
    starting = asyncio.create_task(attempt.start(processes, promised))
    await until((attempt.folder / "launch.json").exists, "the launch is handed over")
    await asyncio.sleep(promised.ask_at + 0.1 - Stamp.now().ticks)
    os.kill(processes.forker_pid, signal.SIGKILL)  # its successor launches what waits, too late
    with pytest.raises(LauncherUnavailable, match="its lease ended before it began"):
        await starting
    assert await attempt.recover(processes) is None
    assert not (attempt.folder / "output").read_bytes()


async def test_a_killed_keeper_takes_an_exclusive_command_with_it(
    attempts: Attempts, process_launchers: Launchers
) -> None:
    attempt = attempts(shell("exec sleep 1000"))
    first = process_launchers()
    handle = await attempt.start(first, lease(60, 60))
    await first.close()  # nobody is there to clean up
    keeper = attempt.record.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    assert handle.pid is not None
    pid = handle.pid
    await until(lambda: is_gone(pid), "the kernel killed it")
    second = process_launchers()
    assert (await ended(second, handle)).error is Cause.KEEPER_LOST


async def test_the_clock_of_a_lease_also_counts_suspended_time(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    if not Path("/proc/self/timers").exists():
        not_applicable("this kernel does not show timers (CONFIG_CHECKPOINT_RESTORE)")
    attempt = attempts(shell("exec sleep 1000"))
    handle = await attempt.start(processes, lease(60, 60))
    timers = Path(f"/proc/{attempt.record.keeper}/timers")
    await until(lambda: "ClockID: 7" in timers.read_text(), "an alarm by CLOCK_BOOTTIME")
    await processes.stop(handle, 5)
    await ended(processes, handle)


async def test_without_a_lease_nothing_wakes_the_keeper(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    attempt = attempts(shell("echo up; exec sleep 1000"))
    handle = await attempt.start(processes)
    await written(processes, handle, b"up")
    status = Path(f"/proc/{attempt.record.keeper}/status")

    def woken() -> list[str]:
        return [line for line in status.read_text().splitlines() if "ctxt_switches" in line]

    await until(lambda: "S (sleeping)" in status.read_text(), "it waits")
    before = woken()
    await asyncio.sleep(0.5)  # in which nothing may happen
    assert woken() == before
    assert Path(f"/proc/{attempt.record.keeper}/timers").read_text() == ""
    assert not (attempt.folder / "lease").exists()
    await processes.stop(handle, 5)
    await ended(processes, handle)


async def test_a_lease_that_cannot_be_written_leaves_the_one_before(
    attempts: Attempts, processes: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    attempt = attempts(WATCHING)
    await processes.check()
    promised = lease(1.0, 1.0)
    handle = await attempt.start(processes, promised)
    with monkeypatch.context() as patched:
        patched.setattr(launcher_module, "_write", full)
        with pytest.raises(LauncherUnavailable, match="No space left"):
            await processes.hold(handle, lease(60, 60))
    assert (await ended(processes, handle)).error is Cause.AGENT_LOST
    assert _last_breath(attempt) < promised.kill_at + 0.1


@pytest.mark.parametrize("content", ["", "nonsense", "1", "1 2 3", "nan"])
async def test_a_lease_that_cannot_be_read_has_ended(
    attempts: Attempts, processes: ProcessLauncher, content: str
) -> None:
    await processes.check()
    promised = lease(1.0, 1.0)
    attempt = attempts(WATCHING)
    handle = await attempt.start(processes, promised)
    (attempt.folder / "lease").write_text(content)
    assert (await ended(processes, handle)).error is Cause.AGENT_LOST
    assert _last_breath(attempt) < promised.kill_at + 0.1


async def test_a_folder_with_a_lease_is_not_used_again(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    attempt = attempts(shell("exit 0"))
    handle = await attempt.start(processes, lease(60, 60))
    await ended(processes, handle)
    assert not processes.recycle(attempt.folder)


async def test_an_exclusive_command_that_cannot_be_executed(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(Exception, match="/no/such/interpreter"):
        await attempts([str(script)]).start(processes, Lease(Stamp.now().ticks + 60, Stamp.now().ticks + 60))


SETTING = """
import os, signal
sigs = [n for n in signal.valid_signals() if n not in (9, 19) and signal.getsignal(n) not in
        (signal.SIG_DFL, None) and n not in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)]
print(sigs, signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getsid(0) == os.getpid(), os.getcwd(),
      sorted(os.listdir("/proc/self/fd"))[:-1], os.readlink("/proc/self/fd/0"))
"""


async def test_it_is_started_like_any_other(attempts: Attempts, processes: ProcessLauncher) -> None:
    told = []
    for promised in (None, lease(60, 60)):
        attempt = attempts([sys.executable, "-c", SETTING])
        handle = await attempt.start(processes, promised)
        assert (await ended(processes, handle)).exit_code == 0
        text = (attempt.folder / "output").read_text()
        told.append(text.replace(str(attempt.folder), "FOLDER"))
    assert told[0] == told[1]
    assert "set() True FOLDER/work" in told[0]


async def test_a_keeper_that_can_make_no_process_now_is_asked_again(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    await processes.check()
    forker = processes.forker_pid
    assert forker is not None
    used = {int(name) for name in os.listdir(f"/proc/{forker}/fd")}
    free = [number for number in range(100) if number not in used]
    before = resource.prlimit(forker, resource.RLIMIT_NOFILE)
    # Room for the record, the output and one file more; a pipe wants two.
    resource.prlimit(forker, resource.RLIMIT_NOFILE, (free[3], before[1]))
    attempt = attempts(shell("exit 3"))
    with pytest.raises(LauncherUnavailable, match="no process could be made for it"):
        await attempt.start(processes, lease(60, 61))
    resource.prlimit(forker, resource.RLIMIT_NOFILE, before)
    handle = await attempt.start(processes, lease(60, 61))
    assert (await ended(processes, handle)).exit_code == 3


async def test_reading_a_lease_writes_nothing(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("exec sleep 1000"))
    handle = await attempt.start(processes, lease(0.3, 0.5))
    os.utime(attempt.folder / "lease", (1, 2))  # read before it was written: to be noted, by relatime too
    await ended(processes, handle)
    assert (attempt.folder / "lease").stat().st_atime == 1
