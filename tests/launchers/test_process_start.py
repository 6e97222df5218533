"""What a process is started with, and what cannot be started."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shunter_infrastructure.launcher import LauncherUnavailable, LaunchFailed
from shunter_infrastructure.process.environment import DEFAULT_PATH, NO_PARAMETERS
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import Attempt, assignment, ended, output, shell, written

Attempts = Callable[..., Attempt]
Launchers = Callable[..., ProcessLauncher]

AGENT_ENVIRON = {
    "PATH": DEFAULT_PATH,
    "HOME": "/home/someone",
    "LANG": "C.UTF-8",
    "LC_TIME": "C",
    "TZ": "Europe/Berlin",
    "SHUNTER_TOKEN": "secret",
    "SHUNTER_API_URL": "http://127.0.0.1:1",
    "SHUNTER_HOME": "/srv/shunter",
    "DATABASE_PASSWORD": "secret",
    "WANTED": "yes",
}


async def _environment(launcher: ProcessLauncher, attempt: Attempt) -> dict[str, str]:
    handle = await attempt.start(launcher)
    assert (await ended(launcher, handle)).exit_code == 0
    entries = (await output(launcher, handle)).decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


async def test_the_environment_is_chosen(
    attempts: Attempts, process_launchers: Launchers, tmp_path: Path
) -> None:
    launcher = process_launchers(environ=AGENT_ENVIRON)
    attempt = attempts(
        ["env", "-0"],
        env={"OWN": "1", "TZ": "UTC", "SHUNTER_ATTEMPT": "99"},
        pass_env=["WANTED", "MISSING", "SHUNTER_TOKEN"],
        tags=["demo", "region=eu"],
        attempt=2,
        source=str(tmp_path),
    )
    folder = str(attempt.folder)
    assert await _environment(launcher, attempt) == {
        "PATH": DEFAULT_PATH,
        "HOME": "/home/someone",
        "LANG": "C.UTF-8",
        "LC_TIME": "C",
        "TZ": "UTC",
        "WANTED": "yes",
        "OWN": "1",
        "SHUNTER_RUN_ID": str(attempt.assignment.run),
        "SHUNTER_ATTEMPT": "2",
        "SHUNTER_DEPLOYMENT": "hello",
        "SHUNTER_REVISION": "3",
        "SHUNTER_POOL": "default",
        "SHUNTER_QUEUE": "urgent",
        "SHUNTER_AGENT": "a1",
        "SHUNTER_SCHEDULED_AT": "2026-11-22T06:00:00Z",
        "SHUNTER_TAGS": '["demo", "region=eu"]',
        "SHUNTER_PARAMETERS": NO_PARAMETERS,
        "SHUNTER_RESULT": f"{folder}/result.json",
        "SHUNTER_JOURNAL": f"{folder}/tasks/journal",
        "SHUNTER_SOURCE": str(tmp_path),
    }


@pytest.mark.parametrize(
    ("devices", "own", "env", "expected"),
    [
        ({}, {}, {}, (None, None)),
        ({}, {"CUDA_VISIBLE_DEVICES": "3"}, {}, (None, None)),
        ({"gpu": [0, 2]}, {}, {}, ("0,2", '{"gpu": [0, 2]}')),
        ({"gpu": [1], "fpga": [0]}, {}, {"CUDA_VISIBLE_DEVICES": "7"}, ("1", '{"gpu": [1], "fpga": [0]}')),
        ({"gpu": []}, {"CUDA_VISIBLE_DEVICES": "3"}, {}, ("", '{"gpu": []}')),
        ({"gpu": []}, {}, {"CUDA_VISIBLE_DEVICES": "7"}, ("7", '{"gpu": []}')),
        ({"gpu": []}, {}, {"SHUNTER_DEVICES": "mine"}, ("", '{"gpu": []}')),
        ({"fpga": [1]}, {}, {}, (None, '{"fpga": [1]}')),
        ({"gpu": [1]}, {"CUDA_VISIBLE_DEVICES": "4, GPU-8932f937"}, {}, ("GPU-8932f937", '{"gpu": [1]}')),
    ],
)
async def test_a_run_is_told_its_devices(
    attempts: Attempts,
    process_launchers: Launchers,
    devices: dict[str, list[int]],
    own: dict[str, str],
    env: dict[str, str],
    expected: tuple[str | None, str | None],
) -> None:
    launcher = process_launchers(environ=AGENT_ENVIRON | own)
    attempt = attempts(["env", "-0"], env=env)
    handle = await launcher.start(attempt.assignment, attempt.folder, "a1", None, devices)
    assert (await ended(launcher, handle)).exit_code == 0
    told = dict(
        entry.split("=", 1) for entry in (await output(launcher, handle)).decode().split("\0") if entry
    )
    assert (told.get("CUDA_VISIBLE_DEVICES"), told.get("SHUNTER_DEVICES")) == expected


async def test_a_device_that_the_agent_does_not_see_any_more(
    attempts: Attempts, process_launchers: Launchers
) -> None:
    launcher = process_launchers(environ=AGENT_ENVIRON | {"CUDA_VISIBLE_DEVICES": "4"})
    attempt = attempts(["true"])
    with pytest.raises(LaunchFailed, match="was given gpu 1, and CUDA_VISIBLE_DEVICES of the agent names 1"):
        await launcher.start(attempt.assignment, attempt.folder, "a1", None, {"gpu": [1]})


async def test_the_token_is_in_no_process(
    attempts: Attempts, process_launchers: Launchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUNTER_TOKEN", "very-secret-token")
    launcher = process_launchers()
    attempt = attempts(shell("exec sleep 1000"))
    handle = await attempt.start(launcher)
    for pid in (launcher.forker_pid, attempt.record.keeper, handle.pid):
        assert b"very-secret-token" not in Path(f"/proc/{pid}/environ").read_bytes()
    await launcher.stop(handle, 0)
    await ended(launcher, handle)


async def test_files_are_for_their_owner_only(attempts: Attempts, processes: ProcessLauncher) -> None:
    before = os.umask(0)
    try:
        attempt = attempts(shell("echo up; exec sleep 1000"))
        handle = await attempt.start(processes)
        await written(processes, handle, b"up")
        await processes.stop(handle, 5)
        await ended(processes, handle)
    finally:
        os.umask(before)
    names = {path.name for path in attempt.folder.iterdir()}
    assert names == {"launch.json", "output", "record", "stop", "work"}
    for path in attempt.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_parameters_lie_in_a_file(attempts: Attempts, processes: ProcessLauncher) -> None:
    parameters: dict[str, Any] = {
        "year": 2013,
        "name": "ä\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    }
    attempt = attempts(shell('cat "$SHUNTER_PARAMETERS"'), parameters=parameters)
    handle = await attempt.start(processes)
    await ended(processes, handle)
    assert json.loads(await output(processes, handle)) == parameters


async def test_it_has_a_session_folder_and_signals_of_its_own(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    script = """
import os, signal, sys
ignored = [s.name for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN]
print(os.getsid(0) == os.getpid(), os.getcwd(), sorted(signal.pthread_sigmask(0, [])), ignored)
print(sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/fd/0"))
print([l for l in open("/proc/self/status") if l.startswith(("SigBlk", "SigIgn"))])
"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        attempt = attempts([sys.executable, "-c", script])
        handle = await attempt.start(processes)
        await ended(processes, handle)
    finally:
        signal.signal(signal.SIGHUP, before)
    lines = (await output(processes, handle)).decode().splitlines()
    # Python itself ignores SIGPIPE and SIGXFSZ.
    assert lines[0].startswith(f"True {attempt.folder}/work [] [")
    assert "SIGHUP" not in lines[0]
    assert lines[1] == "['0', '1', '2', '3'] /dev/null"  # 3 is the listing
    assert "SigBlk:\\t0000000000000000" in lines[2]


async def test_a_broken_pipe_kills_quietly(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("(yes; echo $? >&2) | head -n 1"))
    handle = await attempt.start(processes)
    await ended(processes, handle)
    assert await output(processes, handle) in (b"y\n141\n", b"141\ny\n")


async def test_the_working_folder(attempts: Attempts, processes: ProcessLauncher, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for given, wanted in (("sub", "sub"), (str(tmp_path), ".")):
        attempt = attempts(["pwd"], source=str(tmp_path), working_dir=given)
        handle = await attempt.start(processes)
        await ended(processes, handle)
        assert await output(processes, handle) == f"{(tmp_path / wanted).resolve()}\n".encode()


async def test_a_relative_program_is_meant_from_the_source(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "hello"
    program.write_text("#!/bin/sh\necho $0 $*\n")
    program.chmod(0o755)
    attempt = attempts(["bin/hello", "a b"], source=str(tmp_path))
    handle = await attempt.start(processes)
    await ended(processes, handle)
    assert await output(processes, handle) == f"{program} a b\n".encode()


async def test_the_path_of_the_deployment_finds_the_program(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    (tmp_path / "hello").write_text("#!/bin/sh\nexit 21\n")
    (tmp_path / "hello").chmod(0o755)
    attempt = attempts(["hello"], env={"PATH": f"/nowhere:{tmp_path}:/bin"})
    assert (await attempt.run(processes)).exit_code == 21


async def test_arguments_and_variables_of_any_bytes(attempts: Attempts, processes: ProcessLauncher) -> None:
    odd = 'ä "quoted" \\ \n\t\x01 \udcff 😀'
    attempt = attempts(["/usr/bin/printf", "%s|", odd, "", "-n"], env={"ODD": odd})
    handle = await attempt.start(processes)
    await ended(processes, handle)
    assert await output(processes, handle) == os.fsencode(odd) + b"||-n|"


def _file(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def _bad_shebang(folder: Path) -> str:
    return _file(folder / "tool", "#!/no/such/interpreter -x\n")


def _windows_line_ends(folder: Path) -> str:
    return _file(folder / "tool", "#!/bin/sh\r\necho\r\n")


def _no_shebang(folder: Path) -> str:
    return _file(folder / "tool", "echo hello\n")


def _not_executable(folder: Path) -> str:
    return _file(folder / "tool", "#!/bin/sh\n", 0o644)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda folder: str(folder / "tool"), "does not exist"),
        (lambda folder: "no-such-program", "was not found in PATH"),
        (lambda folder: str(folder), "is a directory"),
        (lambda folder: "/dev/null", "is not a regular file"),
        (lambda folder: "", "empty string"),
        (_not_executable, "is not executable"),
        (_bad_shebang, "interpreter '/no/such/interpreter' named in the first line"),
        (_windows_line_ends, r"interpreter '/bin/sh\\r'"),
        (_no_shebang, "no '#!' line"),
    ],
)
async def test_a_command_that_cannot_be_executed(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path, make: Callable[[Path], str], text: str
) -> None:
    attempt = attempts([make(tmp_path)])
    for _ in range(2):
        with pytest.raises(LaunchFailed, match=text) as caught:
            await attempt.start(processes)
        assert caught.value.cause is Cause.START_FAILED
        assert caught.value.remedy
    handle = await attempt.recover(processes)
    if handle is not None:  # found out by the keeper, and known to a successor
        end = await ended(processes, handle)
        assert end.error is Cause.START_FAILED
        assert end.exit_code is None


async def test_a_program_in_the_path_that_is_not_executable(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    _not_executable(tmp_path)
    with pytest.raises(LaunchFailed, match="is not executable"):
        await attempts(["tool"], env={"PATH": str(tmp_path)}).start(processes)


async def test_arguments_that_are_too_long(attempts: Attempts, processes: ProcessLauncher) -> None:
    with pytest.raises(LaunchFailed, match="too long"):
        await attempts(["/bin/true", "x" * 3_000_000]).start(processes)


@pytest.mark.parametrize("where", ["/no/such/folder", "/etc/passwd"])
async def test_a_working_folder_that_is_not_there(
    attempts: Attempts, processes: ProcessLauncher, where: str
) -> None:
    with pytest.raises(LaunchFailed, match=f"working folder {where}"):
        await attempts(["/bin/true"], working_dir=where).start(processes)


async def test_a_source_that_is_not_there(attempts: Attempts, processes: ProcessLauncher) -> None:
    with pytest.raises(LaunchFailed, match="source folder /no/such") as caught:
        await attempts(["/bin/true"], source="/no/such").start(processes)
    assert caught.value.cause is Cause.SOURCE


@pytest.mark.parametrize("entrypoint", ["missing.py", "missing.py:main"])
async def test_an_entrypoint_file_that_is_not_there(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path, entrypoint: str
) -> None:
    with pytest.raises(LaunchFailed, match=r"missing\.py") as caught:
        await attempts(entrypoint=entrypoint, source=str(tmp_path)).start(processes)
    assert caught.value.cause is Cause.SOURCE


async def test_a_folder_that_is_not_there(processes: ProcessLauncher, tmp_path: Path) -> None:
    with pytest.raises(LauncherUnavailable, match="cannot be written"):
        await processes.start(assignment(["/bin/true"]), tmp_path / "gone", "a1")


async def test_an_interpreter_that_cannot_be_the_forker(
    attempts: Attempts, process_launchers: Launchers
) -> None:
    with pytest.raises(LauncherUnavailable, match="/no/such/python"):
        await process_launchers(python="/no/such/python").check()
    broken = process_launchers(python="/bin/false")
    with pytest.raises(LauncherUnavailable):
        await broken.check()
    with pytest.raises(LauncherUnavailable):
        await attempts(["/bin/true"]).start(broken)
