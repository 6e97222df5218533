"""Secrets of a run: in its environment, and nowhere else that anybody could look."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from shunter_infrastructure.launcher import Handle, LaunchFailed, Prepared
from shunter_infrastructure.process import hidden, procfs
from shunter_infrastructure.process.environment import prepare
from shunter_infrastructure.process.launcher import ProcessLauncher
from tests.launchers.attempts import AGENT, Attempt, ended, output, shell, until, written

Attempts = Callable[..., Attempt]
Launchers = Callable[..., ProcessLauncher]

PLANTED = f"planted-{uuid4().hex}"


async def _start(launcher: ProcessLauncher, attempt: Attempt, prepared: Prepared) -> Handle:
    return await launcher.start(attempt.assignment, attempt.folder, AGENT, prepared=prepared)


def _where(text: str, folder: Path) -> list[str]:
    """Files below the folder, and arguments and environments of all processes, that hold the text."""
    needle = text.encode()
    found = [str(path) for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]
    for pid in procfs.table():
        for name in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue
            if needle in data:
                found.append(f"{pid}/{name}")
    return found


def _held(pid: int | None) -> list[str]:
    """Memory files that a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    return [link for link in map(os.readlink, folder.iterdir()) if "memfd" in link]


async def test_secrets_are_in_the_environment_of_the_run_alone(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    attempt = attempts(
        shell('echo "$A $B $PLAIN $SHUNTER_RUN_TOKEN"; echo "$SHUNTER_ATTEMPT"; exec sleep 1000'),
        env={"B": "plain", "PLAIN": "seen"},
    )
    secrets = {"A": f"{PLANTED}-a\n\"ü'", "SHUNTER_ATTEMPT": "99", "SHUNTER_RUN_TOKEN": f"{PLANTED}-token"}
    template = {"A": "under it", "B": f"{PLANTED}-b"}
    handle = await _start(processes, attempt, Prepared(secrets=secrets, template_secrets=template))
    said = await written(processes, handle, b"\n1\n")
    assert said.decode() == f"{PLANTED}-a\n\"ü' {PLANTED}-b seen {PLANTED}-token\n1\n"
    os.truncate(attempt.folder / "output", 0)
    found = _where(PLANTED, tmp_path)
    found += [
        link for pid in (handle.pid, handle.data["keeper"], processes.forker_pid) for link in _held(pid)
    ]
    if found != [f"{handle.pid}/environ"]:
        await processes.stop(handle, 0)
    assert found == [f"{handle.pid}/environ"]
    # Somebody else finds it again without them.
    other = ProcessLauncher()
    assert await attempt.recover(other) == handle
    await processes.stop(handle, 0)
    assert (await ended(other, handle)).signal == "SIGKILL"
    await other.close()


def test_a_run_that_may_speak_to_the_server_knows_the_agents_way_there(attempts: Attempts) -> None:
    attempt = attempts(shell("true"))
    token = {"SHUNTER_RUN_TOKEN": "t", "SHUNTER_API_URL": "https://server.example/api"}
    own = {"HTTPS_PROXY": f"http://me:{PLANTED}@proxy.example:3128", "NO_PROXY": "inside.example"}
    launch = partial(prepare, attempt.assignment, attempt.folder, AGENT)
    assert launch(own, prepared=Prepared(secrets=token)).secrets == token | {
        "SHUNTER_API_PROXY": own["HTTPS_PROXY"]
    }
    inside = token | {"SHUNTER_API_URL": "https://inside.example/api"}
    assert launch(own, prepared=Prepared(secrets=inside)).secrets == inside
    for one in (launch(own), launch(own, prepared=Prepared(secrets=token))):
        assert not any("PROXY" in name for name in one.env)


async def test_large_secrets_arrive_whole(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts([sys.executable, "-c", "import os; print(sum(map(len, os.environ.values())))"])
    secrets = {f"S{number}": chr(0x100 + number) * 32_768 for number in range(16)}  # 1 MiB in UTF-8
    handle = await _start(processes, attempt, Prepared(secrets=secrets))
    assert (await ended(processes, handle)).exit_code == 0
    assert int(await output(processes, handle)) >= 16 * 32_768


async def test_secrets_that_no_environment_holds_are_told(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    attempt = attempts(["/bin/true"])
    with pytest.raises(LaunchFailed, match="arguments and environment together are too long"):
        await _start(processes, attempt, Prepared(secrets={"A": "a" * 200_000}))


async def test_a_launch_that_is_handed_over_again_has_them_again(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    await processes.check()
    pid = processes.forker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    tried = attempts(shell('echo "$A"'))
    starting = asyncio.create_task(_start(processes, tried, Prepared(secrets={"A": PLANTED})))
    await until(lambda: (tried.folder / "launch.json").exists(), "the launch is written")
    await asyncio.sleep(0)  # and on its way
    os.kill(pid, signal.SIGKILL)
    handle = await starting
    assert processes.forker_pid != pid
    await ended(processes, handle)
    assert (await output(processes, handle)).decode() == f"{PLANTED}\n"


async def test_a_launch_never_begins_without_its_secrets(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    """A descriptor is lost where there is none free for it: the kernel then hands the message over alone."""
    attempt = attempts(shell("echo begun"))
    starting = asyncio.create_task(_start(processes, attempt, Prepared(secrets={"A": PLANTED})))
    await starting
    await ended(processes, await starting)
    again = attempts(shell("echo begun"))
    (again.folder / "launch.json").write_bytes((attempt.folder / "launch.json").read_bytes())
    answer = await processes._forker.launch(again.folder)
    assert (answer.kind, "its secrets did not arrive" in answer.detail) == ("refused", True)
    assert not (again.folder / "record").exists()
    assert not (again.folder / "output").exists() or not (again.folder / "output").read_bytes()


async def test_many_at_once_each_have_their_own(attempts: Attempts, processes: ProcessLauncher) -> None:
    many = [attempts(shell('echo "$A"')) for _ in range(30)]
    handles = await asyncio.gather(
        *(
            _start(processes, one, Prepared(secrets={"A": str(number)} if number % 3 else {}))
            for number, one in enumerate(many)
        )
    )
    for number, handle in enumerate(handles):
        await ended(processes, handle)
        assert (await output(processes, handle)).decode().strip() == (str(number) if number % 3 else "")
    assert _held(processes.forker_pid) == []


async def test_a_run_has_three_descriptors_and_nothing_of_its_agent(
    attempts: Attempts, process_launchers: Launchers
) -> None:
    launcher = process_launchers(
        environ={
            "PATH": "/usr/bin:/bin",
            "SHUNTER_TOKEN": PLANTED,
            "SSH_AUTH_SOCK": "/tmp/agent",
            "AWS_PROFILE": "x",
        }
    )
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        script = (
            "for fd in /proc/$$/fd/*; do readlink $fd; done; env; echo $$ $(cut -d ' ' -f 5,6 /proc/$$/stat)"
        )
        attempt = attempts(shell(script))
        handle = await _start(launcher, attempt, Prepared(secrets={"A": "b"}))
        await ended(launcher, handle)
    finally:
        os.close(inherited)
    said = (await output(launcher, handle)).decode()
    file = str(attempt.folder / "output")
    assert said.splitlines()[:3] == ["/dev/null", file, file]
    assert "=" in said.splitlines()[3]  # no further one: the environment follows
    assert not [word for word in (PLANTED, "SSH_AUTH_SOCK", "AWS_PROFILE") if word in said]
    pid, group, session = said.split()[-3:]
    assert pid == group == session


def test_what_was_sealed_cannot_be_changed() -> None:
    fd = hidden.make({"A": "b"})
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        assert hidden.read(fd) == {"A": "b"} == hidden.read(fd)
    finally:
        os.close(fd)


async def test_code_that_was_fetched_and_an_environment_that_was_built(
    attempts: Attempts, process_launchers: Launchers, tmp_path: Path
) -> None:
    source, bin_folder = tmp_path / "fetched", tmp_path / "built" / "bin"
    (source / "inner").mkdir(parents=True)
    bin_folder.mkdir(parents=True)
    (source / "flow.py").write_text(
        "import sys\ndef main(): print(sys.path[0], sys.argv[0], sys.executable)\n"
    )
    (source / "tool").write_text("#!/bin/sh\npwd\n")
    (source / "tool").chmod(0o755)
    (bin_folder / "python").symlink_to(sys.executable)
    (bin_folder / "sh").write_text("#!/bin/sh\necho of the environment\n")
    (bin_folder / "sh").chmod(0o755)
    prepared = Prepared(source=source, python=str(bin_folder / "python"))
    launcher = process_launchers()

    async def said(attempt: Attempt) -> list[str]:
        handle = await _start(launcher, attempt, prepared)
        assert (await ended(launcher, handle)).exit_code == 0
        return (await output(launcher, handle)).decode().split()

    function = attempts(entrypoint="flow.py:main", source="/not/there", python="/not/there")
    assert (await said(function))[0] == str(source)
    assert (await said(attempts(["./tool"], working_dir="inner"))) == [str(source / "inner")]
    assert (await said(attempts(["sh"], env={"PATH": "/usr/bin:/bin"}))) == ["of", "the", "environment"]
