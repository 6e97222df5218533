"""Folders that serve a second attempt: nothing of the first may be seen in it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter_infrastructure.process import record
from shunter_infrastructure.process.environment import prepare
from shunter_infrastructure.process.launcher import ProcessLauncher, _write_inputs
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import AGENT, Attempt, ended, output, shell

DYING_KEEPER = Path(__file__).with_name("dying_keeper.py")

Attempts = Callable[..., Attempt]


def _inodes(folder: Path) -> dict[str, int]:
    return {
        path.name.removesuffix(".used"): path.stat().st_ino for path in folder.iterdir() if path.is_file()
    }


async def _used(attempts: Attempts, processes: ProcessLauncher, *command: str) -> Attempt:
    """An attempt that has ended, with a long record and a long launch."""
    first = attempts(shell("; ".join(["echo of the first", *command])), env={"LONG": "x" * 5000})
    assert (await first.run(processes)).exit_code == 0
    return first


async def _move(first: Attempt, second: Attempt) -> None:
    second.folder.rmdir()
    os.rename(first.folder, second.folder)


async def test_a_recycled_folder_is_as_good_as_new(attempts: Attempts, processes: ProcessLauncher) -> None:
    first = await _used(attempts, processes)
    before = _inodes(first.folder)
    assert processes.recycle(first.folder)
    second = attempts(shell('echo "$LONG"; pwd; exit 3'))
    await _move(first, second)
    assert record.read(second.folder) is None
    assert await second.recover(processes) is None
    handle = await second.start(processes)
    end = await processes.wait(handle)
    assert (end.exit_code, end.message) == (3, None)
    assert await output(processes, handle) == f"\n{second.folder}/work\n".encode()
    assert end.log_size == len(await output(processes, handle))
    found = second.record
    assert (found.pid, found.ended is not None and found.ended.exit_code) == (handle.pid, 3)
    lines = (second.folder / "record").read_text().splitlines()
    assert [json.loads(line)["is"] for line in lines] == ["keeper", "started", "ended"]
    assert "x" * 100 not in (second.folder / "launch.json").read_text()
    assert _inodes(second.folder) == before, "files were made although there were some"


async def test_two_launches_at_once_in_a_recycled_folder_are_one_process(
    attempts: Attempts, process_launchers: Callable[..., ProcessLauncher]
) -> None:
    one, other = process_launchers(), process_launchers()
    first = await _used(attempts, one)
    assert one.recycle(first.folder)
    second = attempts(shell("echo $$; exec sleep 1000"))
    await _move(first, second)
    handles = await asyncio.gather(second.start(one), second.start(other))
    assert handles[0].pid == handles[1].pid
    await one.stop(handles[0], 0)
    end = await one.wait(handles[0])
    assert end.signal == "SIGKILL"
    assert await output(one, handles[0]) == f"{handles[0].pid}\n".encode()


@pytest.mark.parametrize(
    "command",
    ["touch left-behind", "mkdir -p deep/er", 'echo 1 > "$SHUNTER_RESULT"'],
    ids=["a file", "folders", "a result"],
)
async def test_a_folder_in_which_a_run_left_something_is_not_used_again(
    attempts: Attempts, processes: ProcessLauncher, command: str
) -> None:
    first = await _used(attempts, processes, command)
    assert not processes.recycle(first.folder)


async def test_a_folder_whose_keeper_was_lost_is_not_used_again(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    first = attempts(shell("exec sleep 1000"))
    handle = await first.start(processes)
    keeper = first.record.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    await ended(processes, handle)
    assert not processes.recycle(first.folder)


async def test_a_folder_is_recycled_again_and_again(attempts: Attempts, processes: ProcessLauncher) -> None:
    last = await _used(attempts, processes)
    for index in range(5):
        assert processes.recycle(last.folder)
        following = attempts(shell(f"echo {index}"), parameters={})
        await _move(last, following)
        handle = await following.start(processes)
        assert (await processes.wait(handle)).exit_code == 0
        assert await output(processes, handle) == f"{index}\n".encode()
        last = following


async def test_a_folder_whose_output_a_stranger_can_write_is_not_used_again(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    """A run may hand its output to what is no child of it: systemd-run --pipe, ssh's ControlMaster."""
    door = str(tmp_path / "door")
    give = (
        "import socket; s = socket.socket(socket.AF_UNIX); "
        f"s.connect({door!r}); socket.send_fds(s, [b'.'], [1]); print('given')"
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(door)
        listening.listen()
        first = attempts([sys.executable, "-c", give])
        assert (await first.run(processes)).exit_code == 0
        with listening.accept()[0] as caller:
            (held,) = socket.recv_fds(caller, 1, 1)[1]
    try:
        assert not processes.recycle(first.folder)
    finally:
        os.close(held)
    assert processes.recycle(first.folder), "nobody holds it any more"


async def test_output_that_is_only_read_elsewhere_keeps_no_folder(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    first = await _used(attempts, processes)
    with (first.folder / "output").open("rb"):
        assert processes.recycle(first.folder)


@pytest.mark.parametrize(
    "command",
    [
        "ln ../output {kept}",
        "cp ../output {kept}; ln -sf {kept} ../output",
        "rm ../output; mkfifo ../output",
        "cd ..; rmdir work; mkdir {kept}; ln -s {kept} work",
        "chmod 400 ../output",
        "chmod 755 ..",
    ],
    ids=["linked", "a link", "a pipe", "work is a link", "output closed", "folder opened"],
)
async def test_a_folder_that_a_run_has_changed_is_not_used_again(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path, command: str
) -> None:
    kept = tmp_path / "kept"
    first = await _used(attempts, processes, command.format(kept=kept))
    assert not processes.recycle(first.folder)
    if kept.is_file():
        assert kept.read_text() == "of the first\n", "what a run keeps elsewhere is its own"


async def test_whoever_is_still_in_the_working_folder_is_not_in_the_next_one(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    """What is no child of the run (a container, a terminal multiplexer) may have it mounted or entered."""
    first = await _used(attempts, processes, "chmod 500 .")
    inside = os.open(first.folder / "work", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert processes.recycle(first.folder)
        second = attempts(shell("ls -A; touch mine; stat -c %a ."))
        await _move(first, second)
        handle = await second.start(processes)
        with pytest.raises(FileNotFoundError):
            os.open("of-a-stranger", os.O_WRONLY | os.O_CREAT, dir_fd=inside)
        assert (await processes.wait(handle)).exit_code == 0
        assert await output(processes, handle) == b"700\n"
    finally:
        os.close(inside)


@pytest.mark.parametrize(
    "step", ["rename 1", "open 2", "write 1", "ftruncate 1", "link 1", "unlink 1", "open 3"]
)
async def test_a_keeper_killed_as_it_takes_a_used_folder_in_hand(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path, step: str
) -> None:
    """Before its record is in place nothing has happened; from then on the end cannot be known."""
    first = await _used(attempts, processes)
    assert processes.recycle(first.folder)
    effects = tmp_path / "effects"
    second = attempts(shell(f"echo once >> {effects}; echo of the second; exit 3"))
    await _move(first, second)
    launch = prepare(second.assignment, second.folder, AGENT, os.environ)
    _write_inputs(second.folder, second.assignment, launch)
    roots = Path(record.__file__).parents[2]
    words = [sys.executable, "-I", "-S", str(DYING_KEEPER), str(roots), str(second.folder), *step.split()]
    killed = await asyncio.create_subprocess_exec(*words)
    assert await killed.wait() == -signal.SIGKILL

    handle = await second.start(processes)
    end = await ended(processes, handle)
    if step in ("unlink 1", "open 3"):
        assert (end.error, await output(processes, handle)) == (Cause.KEEPER_LOST, b"")
        assert not effects.exists()
    else:
        assert (end.exit_code, await output(processes, handle)) == (3, b"of the second\n")
        assert effects.read_text() == "once\n"
        lines = (second.folder / "record").read_text().splitlines()
        assert [json.loads(line)["is"] for line in lines] == ["keeper", "started", "ended"]
    nothing_unknown = step == "rename 1"
    assert processes.recycle(second.folder) is nothing_unknown, "a draft was left, or the end is not known"
