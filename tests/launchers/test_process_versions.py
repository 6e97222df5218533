"""Attempts across versions: what version 1 wrote is read; what a later version wrote is left alone, and said so.

The documents of version 1 are those that commit 2834da2 wrote, but for ids, moments and paths.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_infrastructure.process import procfs, record
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_infrastructure.stamp import boot_id
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import Attempt, ended, is_gone, shell, until

Attempts = Callable[..., Attempt]

KEEPER_1 = '{"is":"keeper","version":1,"pid":PID,"start":START,"boot":"BOOT","subreaper":true}'
STARTED_1 = (
    '{"is":"started","pid":PID,"start":START,"boot":"BOOT","ticks":345.010000,"wall":1795659585.010000}'
)
ENDED_1 = (
    '{"is":"ended","status":768,"stopped":false,"leftovers":0,"left_alive":0,"cpu_seconds":0.012000,'
    '"max_rss_bytes":9043968,"boot":"BOOT","ticks":345.900000,"wall":1795659585.900000}'
)
FAILED_1 = (
    '{"is":"failed","step":"exec","errno":2,"text":"No such file or directory","boot":"BOOT","ticks":345.100000,'
    '"wall":1795659585.100000}'
)
LAUNCH_1 = {
    "program": "/no/such/program",
    "argv": ["program"],
    "env": {"PATH": "/bin"},
    "cwd": "/",
    "grace": 10.0,
}


@pytest.fixture
def stand_in() -> Iterator[subprocess.Popen[bytes]]:
    """A process in the place of a keeper or a command of version 1."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def _write(attempt: Attempt, *lines: str, pid: int = 1, start: int = 0) -> None:
    text = "".join(line + "\n" for line in lines)
    for name, value in (("PID", str(pid)), ("START", str(start)), ("BOOT", boot_id())):
        text = text.replace(name, value)
    (attempt.folder / "record").write_text(text)
    (attempt.folder / "launch.json").write_text(json.dumps(LAUNCH_1))


async def test_an_end_of_version_1(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("never run"))
    (attempt.folder / "output").write_bytes(b"three\n")
    _write(attempt, KEEPER_1, STARTED_1, ENDED_1)
    handle = await attempt.recover(processes)
    assert handle is not None
    assert handle.started is not None
    assert (handle.version, handle.pid, handle.started.ticks) == (1, 1, 345.01)
    found = await ended(processes, handle)
    assert (found.exit_code, found.signal, found.oom, found.error, found.message) == (
        3,
        None,
        False,
        None,
        None,
    )
    assert (found.max_rss_bytes, found.cpu_seconds, found.log_size) == (9043968, 0.012, 6)
    assert await attempt.start(processes) == handle
    assert (attempt.folder / "output").read_bytes() == b"three\n"


async def test_a_failed_start_of_version_1(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("never run"))
    _write(attempt, KEEPER_1, FAILED_1)
    handle = await attempt.recover(processes)
    assert handle is not None
    found = await ended(processes, handle)
    assert found.error is Cause.START_FAILED
    assert found.message == "the command /no/such/program could not be executed: No such file or directory"


async def test_a_live_keeper_of_version_1_is_waited_for_and_stopped(
    attempts: Attempts, processes: ProcessLauncher, stand_in: subprocess.Popen[bytes]
) -> None:
    attempt = attempts(shell("never run"))
    start = procfs.start_time(stand_in.pid)
    _write(attempt, KEEPER_1, STARTED_1, pid=stand_in.pid, start=start)
    handle = await attempt.recover(processes)
    assert handle is not None
    waiting = asyncio.create_task(ended(processes, handle))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    _write(attempt, KEEPER_1, STARTED_1, ENDED_1, pid=stand_in.pid, start=start)
    await processes.stop(handle, 7)  # too late: it has written its end
    stand_in.send_signal(signal.SIGTERM)  # and goes
    assert (await waiting).exit_code == 3


async def test_a_stop_reaches_a_keeper_of_version_1(
    attempts: Attempts, processes: ProcessLauncher, stand_in: subprocess.Popen[bytes]
) -> None:
    attempt = attempts(shell("never run"))
    _write(attempt, KEEPER_1, STARTED_1, pid=stand_in.pid, start=procfs.start_time(stand_in.pid))
    handle = await attempt.recover(processes)
    assert handle is not None
    await processes.stop(handle, 7)
    await until(lambda: is_gone(stand_in.pid), "SIGTERM has come")
    moment, grace = (attempt.folder / "stop").read_text().split()  # the form that version 1 reads
    assert (float(moment) > 0, float(grace)) == (True, 7.0)


def _of_version(attempt: Attempt, version: int) -> None:
    """In place: its keeper goes on writing behind it."""
    with (attempt.folder / "record").open("r+b") as file:
        data = file.read()
        before = data.index(b'"version":') + len(b'"version":')
        file.seek(before)
        file.write(b"%d" % version)


async def test_a_newer_record_is_left_alone_and_said_so(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    attempt = attempts(shell("exec sleep 1000"))
    handle = await attempt.start(processes)
    assert record.VERSION == 2
    _of_version(attempt, 3)
    calls: list[Callable[[], object]] = [
        lambda: attempt.start(processes),
        lambda: attempt.recover(processes),
        lambda: processes.wait(handle),
        lambda: processes.stop(handle, 0),
    ]
    for call in calls:
        with pytest.raises(LauncherUnavailable, match=r"newer version of Shunter.* has version 3") as caught:
            await call()  # type: ignore[misc]
        assert "Start the newer version" in caught.value.remedy
    assert not processes.recycle(attempt.folder)
    assert handle.pid is not None
    assert not is_gone(handle.pid)
    _of_version(attempt, 2)  # the newer version is back
    await processes.stop(handle, 0)
    assert (await ended(processes, handle)).signal == "SIGKILL"


async def test_a_newer_launch_is_not_executed(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("never run"))
    launch = LAUNCH_1 | {"version": 4, "program": "/bin/true"}
    (attempt.folder / "launch.json").write_text(json.dumps(launch))
    answer = await processes._forker.launch(attempt.folder)
    assert answer.kind == "own"  # it says nothing of other attempts
    assert "newer version" in answer.detail
    assert not (attempt.folder / "record").exists()
    # An agent that starts it writes its own.
    attempt.assignment = attempt.assignment.model_copy(
        update={"work": attempt.assignment.work.model_copy(update={"command": ["/bin/true"]})}
    )
    assert (await attempt.run(processes)).exit_code == 0


async def test_a_launch_of_version_1_is_executed(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("never run"))
    launch = LAUNCH_1 | {"program": "/bin/sh", "argv": ["sh", "-c", "exit 6"]}
    (attempt.folder / "launch.json").write_text(json.dumps(launch))
    assert (await processes._forker.launch(attempt.folder)).kind == "record"
    handle = await attempt.recover(processes)
    assert handle is not None
    assert (await ended(processes, handle)).exit_code == 6


async def test_documents_say_their_version(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("exit 0"))
    await attempt.run(processes)
    first = json.loads((attempt.folder / "record").read_text().splitlines()[0])
    assert (first["version"], json.loads((attempt.folder / "launch.json").read_text())["version"]) == (2, 3)
    assert os.path.exists(attempt.folder / "output")
