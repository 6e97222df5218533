"""Runs of other users: who they are, what they can reach, and what they cannot make the agent do.

Users are numbers without an entry, and ``nobody``: nothing is added to the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shunter_infrastructure.launcher import (
    Exit,
    Handle,
    LauncherUnavailable,
    LaunchFailed,
    Lease,
    Prepared,
    Rules,
)
from shunter_infrastructure.process import apart, procfs, users
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import AGENT, Attempt, ended, is_gone, lease, output, shell, until, written

Attempts = Callable[..., Attempt]
Launchers = Callable[..., ProcessLauncher]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start runs as other users")
ONE, OTHER = "61234", "61235"


@pytest.fixture
def runs() -> Iterator[Path]:
    """Where the folders of runs of other users are."""
    root = Path(tempfile.mkdtemp(prefix="shunter-runs-"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


async def _start(
    launcher: ProcessLauncher, attempt: Attempt, rules: Rules, lease: Lease | None = None
) -> Handle:
    return await launcher.start(
        attempt.assignment, attempt.folder, AGENT, lease, prepared=Prepared(rules=rules)
    )


async def _run(launcher: ProcessLauncher, attempt: Attempt, runs: Path, **rules: object) -> tuple[Exit, str]:
    handle = await _start(launcher, attempt, replace(Rules(runs=runs), **rules))  # type: ignore[arg-type]
    end = await ended(launcher, handle)
    return end, (await output(launcher, handle)).decode()


SELF = r"""
for name in Uid Gid Groups NoNewPrivs CapEff CapPrm CapInh CapAmb; do grep "^$name:" /proc/self/status; done
echo "$HOME|$USER|$LOGNAME|$SHELL|$TMPDIR|$SSH_AUTH_SOCK"
pwd; umask; stat -c '%u %a' . ..; echo said >> /dev/stderr
printf '{"n": 1}' > "$SHUNTER_RESULT"; cat "$SHUNTER_PARAMETERS"
"""


@needs_root
async def test_a_run_is_its_user_s_through_and_through(
    attempts: Attempts, process_launchers: Launchers, runs: Path
) -> None:
    launcher = process_launchers(
        environ={"PATH": "/usr/bin:/bin", "HOME": "/root", "TMPDIR": "/root/tmp", "SSH_AUTH_SOCK": "/x"}
    )
    attempt = attempts(shell(SELF), run_as=ONE, parameters={"a": 1})
    end, said = await _run(launcher, attempt, runs)
    place = runs / "agent" / attempt.folder.name
    lines = [" ".join(line.split()) for line in said.splitlines()]
    none = "0000000000000000"
    assert lines[:8] == [
        f"Uid: {ONE} {ONE} {ONE} {ONE}",
        f"Gid: {ONE} {ONE} {ONE} {ONE}",
        f"Groups: {ONE}",
        "NoNewPrivs: 1",
        f"CapEff: {none}",
        f"CapPrm: {none}",
        f"CapInh: {none}",
        f"CapAmb: {none}",
    ]
    assert lines[8] == f"/|{ONE}|{ONE}|/bin/sh||"
    assert lines[9:] == [str(place / "work"), "0022", f"{ONE} 700", f"{ONE} 700", "said", '{"a": 1}']
    assert (end.exit_code, end.result, end.message) == (0, {"n": 1}, None)
    handle = await attempt.recover(launcher)
    assert handle is not None
    await launcher.cleanup(handle)
    assert not place.exists()


@needs_root
async def test_a_user_of_the_machine(attempts: Attempts, processes: ProcessLauncher, runs: Path) -> None:
    nobody = users.find("nobody")
    attempt = attempts(shell('id -u; id -G; echo "$HOME $USER"'), run_as="nobody", env={"HOME": "/own"})
    end, said = await _run(processes, attempt, runs)
    groups = " ".join(map(str, sorted(nobody.groups)))
    assert said.split("\n")[0] == str(nobody.uid)
    assert sorted(said.split("\n")[1].split()) == sorted(groups.split())
    assert said.split("\n")[2] == "/own nobody"
    assert end.exit_code == 0


@needs_root
async def test_nothing_of_the_agent_s_can_be_reached(
    attempts: Attempts, processes: ProcessLauncher, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o644)
    other = attempts(shell("echo mine > mine; exec sleep 1000"), run_as=OTHER)
    beside = await _start(processes, other, Rules(runs=runs))
    place = apart.of(other.folder)
    assert place is not None
    await until((place / "work" / "mine").exists, "the other run is under way")
    script = f"""
    cat {tmp_path}/token; ls {tmp_path}; cat {{folder}}/journal.jsonl {{folder}}/launch.json {{folder}}/record
    ls {runs}; ls {runs}/agent; ls {place}; cat {place}/work/mine; cat /proc/{beside.pid}/environ
    touch {runs}/x {runs}/agent/x; mv {runs}/agent/{{name}} {runs}/agent/y; rmdir {runs}/agent/{{name}}
    kill -9 {beside.pid} {beside.data["keeper"]} $PPID; echo end
    """
    attempt = attempts(["/bin/sh"], run_as=ONE)
    (attempt.folder / "journal.jsonl").write_text("{}")
    script = script.format(folder=attempt.folder, name=attempt.folder.name)
    attempt.assignment = attempt.assignment.model_copy(
        update={"work": attempt.assignment.work.model_copy(update={"command": ["/bin/sh", "-c", script]})}
    )
    end, said = await _run(processes, attempt, runs)
    lines = [line for line in said.splitlines() if line]
    assert lines[-1] == "end"
    assert all("ermission" in line or "not permitted" in line for line in lines[:-1]), said
    assert len(lines) >= 15
    assert end.exit_code == 0
    await processes.stop(beside, 0)
    assert (await ended(processes, beside)).signal == "SIGKILL"


TRAPS = {
    "a link to what the user may not read": ('ln -s {secret} "$SHUNTER_RESULT"', "symbolic link"),
    "a link to a device": ('ln -s /dev/zero "$SHUNTER_RESULT"', "symbolic link"),
    "a pipe": ('mkfifo "$SHUNTER_RESULT"', "not a regular file"),
    "a folder": ('mkdir "$SHUNTER_RESULT"', "not a regular file"),
    "a large file": ('head -c 70000 /dev/zero > "$SHUNTER_RESULT"', "more than the 65536 allowed"),
    "no access": ('echo 1 > "$SHUNTER_RESULT"; chmod 0 "$SHUNTER_RESULT"', None),
}


@needs_root
@pytest.mark.parametrize("trap", TRAPS)
async def test_traps_in_place_of_a_result(
    attempts: Attempts, processes: ProcessLauncher, runs: Path, tmp_path: Path, trap: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text('"of the agent"')
    script, complaint = TRAPS[trap]
    end, said = await _run(processes, attempts(shell(script.format(secret=secret)), run_as=ONE), runs)
    assert said == ""
    if complaint is None:
        assert end.result == 1  # its own file; the agent may read it whatever its mode is
    else:
        assert end.result is None
        assert complaint in (end.message or "")


@needs_root
async def test_a_hard_link_to_another_s_file_is_no_result(
    attempts: Attempts, processes: ProcessLauncher, runs: Path
) -> None:
    """The kernel forbids such links where fs.protected_hardlinks is set: here it is made for the run."""
    attempt = attempts(
        shell('touch ready; while [ ! -e "$SHUNTER_RESULT" ]; do sleep 0.01; done'), run_as=ONE
    )
    handle = await _start(processes, attempt, Rules(runs=runs))
    place = apart.of(attempt.folder)
    assert place is not None
    secret = runs / "secret"
    secret.write_text('"of the agent"')
    secret.chmod(0o600)
    os.link(secret, place / "result.json")
    end = await ended(processes, handle)
    assert (end.result, end.exit_code) == (None, 0)
    assert "file of another user" in (end.message or "")


@needs_root
async def test_set_user_id_programs_give_nothing_unless_they_may(
    attempts: Attempts, processes: ProcessLauncher, runs: Path
) -> None:
    tool = runs / "id"
    shutil.copy("/usr/bin/id", tool)
    tool.chmod(0o4755)
    _, said = await _run(processes, attempts([str(tool), "-u"], run_as=ONE), runs)
    assert said == f"{ONE}\n"
    _, said = await _run(processes, attempts([str(tool), "-u"], run_as=ONE), runs, new_privileges=True)
    assert said == "0\n"


@needs_root
async def test_limits_and_umask(attempts: Attempts, processes: ProcessLauncher, runs: Path) -> None:
    limits = {"core": 0, "nofile": 77, "nproc": 99, "fsize": 512 * 1024}
    script = shell(
        "ulimit -Hc; ulimit -Hn; ulimit -Sn; ulimit -Hp; ulimit -Hf; umask; head -c 1000000 /dev/zero > big"
    )
    for run_as in (None, ONE):
        end, said = await _run(processes, attempts(script, run_as=run_as), runs, limits=limits, umask=0o027)
        assert said.split()[:6] == ["0", "77", "77", "99", "1024", "0027"]
        assert end.exit_code != 0  # SIGXFSZ
    _, said = await _run(processes, attempts(shell("umask")), runs, umask=0)
    assert said == "0000\n"


@needs_root
async def test_an_exclusive_run_of_another_user_ends_with_its_keeper(
    attempts: Attempts, processes: ProcessLauncher, runs: Path
) -> None:
    attempt = attempts(["/bin/sleep", "1000"], run_as=ONE)
    handle = await _start(processes, attempt, Rules(runs=runs), lease(100, 100))
    assert handle.pid is not None
    os.kill(handle.data["keeper"], signal.SIGKILL)
    pid = handle.pid
    await until(lambda: is_gone(pid), "the kernel has killed it")
    assert (await ended(processes, handle)).error is Cause.KEEPER_LOST


@needs_root
async def test_it_is_stopped_whatever_it_does(
    attempts: Attempts, processes: ProcessLauncher, runs: Path
) -> None:
    script = shell("trap '' TERM; (setsid sleep 1000 &) ; echo up; while :; do sleep 1000; done")
    attempt = attempts(script, run_as=ONE)
    handle = await _start(processes, attempt, Rules(runs=runs))
    await written(processes, handle, b"up")
    await processes.stop(handle, 0.05)
    assert (await ended(processes, handle)).signal == "SIGKILL"
    left = [pid for pid in procfs.table() if _owner(pid) == int(ONE) and not is_gone(pid)]
    assert left == []


def _owner(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


@needs_root
async def test_what_it_leaves_is_removed_and_nothing_is_used_again(
    attempts: Attempts, processes: ProcessLauncher, runs: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o750)
    script = shell(
        f"mkdir -p a/b; echo x > a/b/c; ln -s {kept} a/link; chmod 000 a/b a; chmod 500 .; echo out"
    )
    attempt = attempts(script, run_as=ONE)
    end, _ = await _run(processes, attempt, runs)
    assert end.exit_code == 0
    assert not processes.recycle(attempt.folder)  # its output was the user's to write
    handle = await attempt.recover(processes)
    assert handle is not None
    await processes.cleanup(handle)
    await processes.cleanup(handle)
    assert list((runs / "agent").iterdir()) == []
    assert stat.S_IMODE(kept.stat().st_mode) == 0o750


@needs_root
async def test_a_folder_apart_that_is_ready_is_not_touched_again(
    attempts: Attempts, processes: ProcessLauncher, runs: Path, tmp_path: Path
) -> None:
    """Once it is the user's, a link may lie in the place of what the agent would write."""
    attempt = attempts(shell('rm "$SHUNTER_PARAMETERS"; ln -s {0} "$SHUNTER_PARAMETERS"'), run_as=ONE)
    place = apart.path(runs, "agent", attempt.folder)
    user = users.find(ONE)
    apart.make(place, attempt.folder, user, b"{}")
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (place / "parameters.json").unlink()
    (place / "parameters.json").symlink_to(precious)
    apart.make(place, attempt.folder, user, b'{"new": 1}')
    assert precious.read_text() == "kept"
    with pytest.raises(LaunchFailed, match="is not a folder of the agent's alone"):
        apart.make(place, attempt.folder, users.find(OTHER), b"{}")
    (runs / "agent").chmod(0o777)
    with pytest.raises(LaunchFailed, match="is not a folder of the agent's alone"):
        apart.make(place, attempt.folder, user, b"{}")


@needs_root
async def test_what_former_lives_left_is_swept(
    attempts: Attempts, process_launchers: Launchers, runs: Path
) -> None:
    launcher = process_launchers()
    attempt = attempts(shell("exit 0"), run_as=ONE)
    launcher.attempts = attempt.folder.parent
    (runs / "agent" / "gone.1" / "work").mkdir(parents=True)
    await _run(launcher, attempt, runs)
    assert [one.name for one in (runs / "agent").iterdir()] == [attempt.folder.name]


@needs_root
async def test_what_cannot_be_started_leaves_nothing(
    attempts: Attempts, processes: ProcessLauncher, runs: Path, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    shutil.copy("/bin/true", private / "tool")
    attempt = attempts([str(private / "tool")], run_as=ONE)
    with pytest.raises(
        LaunchFailed, match=f"could not be executed by user {ONE}: Permission denied"
    ) as caught:
        await _start(processes, attempt, Rules(runs=runs))
    assert caught.value.cause is Cause.START_FAILED
    assert list((runs / "agent").iterdir()) == []
    attempt = attempts(["/bin/true"], run_as=ONE, working_dir=str(private))
    with pytest.raises(LaunchFailed, match=f"could not be entered by user {ONE}: Permission denied"):
        await _start(processes, attempt, Rules(runs=runs))
    attempt = attempts(["/bin/true"], run_as=ONE, source=str(private))
    with pytest.raises(LaunchFailed, match=f"user {ONE} cannot read .*private, where its code is") as caught:
        await _start(processes, attempt, Rules(runs=runs))
    assert caught.value.cause is Cause.SOURCE
    # Withdrawn before it began.
    attempt = attempts(["/bin/true"], run_as=ONE)
    apart.make(apart.path(runs, "agent", attempt.folder), attempt.folder, users.find(ONE), b"{}")
    assert await processes.recover(attempt.assignment, attempt.folder, withdraw=True) is None
    assert list((runs / "agent").iterdir()) == []


@needs_root
async def test_a_function_runs_as_another_user(
    attempts: Attempts, processes: ProcessLauncher, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner is where that user can read it, as it is where an agent is installed for a machine."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("not applicable: no interpreter that every user may execute")
    source = runs / "source"
    source.mkdir()
    (source / "flow.py").write_text("import os\n\ndef main(n):\n    return [n, os.getuid()]\n")
    import shunter_infrastructure.process.environment as environment

    shutil.copy(environment.runner_path(), runs / "runner.py")
    for path in (source / "flow.py", runs / "runner.py"):
        path.chmod(0o644)
    source.chmod(0o755)
    monkeypatch.setattr(environment, "runner_path", lambda: str(runs / "runner.py"))
    attempt = attempts(
        entrypoint="flow.py:main", source=str(source), python=python, run_as=ONE, parameters={"n": 7}
    )
    end, said = await _run(processes, attempt, runs)
    assert (end.exit_code, end.result) == (0, [7, int(ONE)]), said
    bad = attempts(entrypoint="flow.py:main", source=str(source), python=python, run_as=ONE, parameters={})
    end, _ = await _run(processes, bad, runs)
    assert end.exception
    assert "missing 1 required positional argument" in (end.message or "")


@pytest.mark.parametrize("name", ["no-such-user", "4294967295", "9999999999"])
async def test_an_unknown_user(attempts: Attempts, processes: ProcessLauncher, name: str) -> None:
    """4294967295 is -1 to the kernel: setresuid(2) would leave the run what the agent is."""
    with pytest.raises(LaunchFailed, match=f"has no user {name}") as caught:
        await attempts(["/bin/true"], run_as=name).start(processes)
    assert caught.value.cause is Cause.REJECTED


async def test_the_agent_s_own_user_needs_no_rights(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("pwd"), run_as=str(os.geteuid()))
    handle = await attempt.start(processes)
    await ended(processes, handle)
    assert (await output(processes, handle)).decode() == f"{attempt.folder}/work\n"


def test_an_agent_without_the_rights_says_so() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setresuid(int(OTHER), int(OTHER), int(OTHER))
            users.other(ONE)
            os.write(writer, b"no word")
        except LaunchFailed as exc:
            os.write(writer, f"{exc.cause.value} {exc.detail}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    assert said.startswith(f"rejected it is to run as {ONE}, and this agent, of user ")
    assert "may not start anything as another user: it has no CAP_CHOWN" in said
    assert "CAP_SETGID, CAP_SETUID" in said


AGENT_WITH_CAPABILITIES = """
import asyncio, json, sys
from pathlib import Path
from shunter_infrastructure.launcher import Prepared, Rules
from shunter_infrastructure.process.launcher import ProcessLauncher
from tests.launchers.attempts import Attempt, assignment, ended, output, shell

async def main(root, runs):
    launcher = ProcessLauncher(environ={"PATH": "/usr/bin:/bin"})
    for run_as in (None, "61235"):
        attempt = Attempt(assignment(shell("id -u; grep ^Cap /proc/self/status; echo 1 > $SHUNTER_RESULT"), run_as=run_as), root)
        handle = await launcher.start(attempt.assignment, attempt.folder, "a1", prepared=Prepared(rules=Rules(runs=runs)))
        end = await ended(launcher, handle)
        print(json.dumps([end.result, (await output(launcher, handle)).decode().split()]))
        await launcher.cleanup(handle)
    await launcher.close()

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="not applicable: no setpriv(1) here")
def test_an_agent_that_is_not_root_keeps_its_capabilities_to_itself(runs: Path) -> None:
    """As a service with AmbientCapabilities= has them: a run must not be able to become root by them."""
    os.chown(runs, int(ONE), int(ONE))
    root = runs / "attempts"
    root.mkdir()
    os.chown(root, int(ONE), int(ONE))
    wanted = "+chown,+dac_override,+kill,+setgid,+setuid"
    words = ["setpriv", f"--reuid={ONE}", f"--regid={ONE}", "--clear-groups"]
    words += [f"--inh-caps={wanted}", f"--ambient-caps={wanted}", "--"]
    done = subprocess.run(
        [*words, sys.executable, "-c", AGENT_WITH_CAPABILITIES, str(root), str(runs)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ".", "HOME": "/"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(result, said[0]) for result, said in found] == [(1, ONE), (1, OTHER)]
    for _, said in found:
        held = dict(zip(said[1::2], said[2::2], strict=True))
        assert {held["CapEff:"], held["CapPrm:"], held["CapAmb:"]} == {"0" * 16}
    assert not list((runs / "agent").iterdir())


def test_deep_folders_and_hostile_ones_are_removed(tmp_path: Path) -> None:
    from shunter_infrastructure.removing import remove

    root, kept = tmp_path / "-rf", tmp_path / "kept"
    kept.mkdir(mode=0o750)
    (kept / "file").write_text("kept")
    root.mkdir()
    here = os.getcwd()
    os.chdir(root)
    try:
        for _ in range(3000):  # deeper than recursion, descriptors and paths go
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    (root / "link").symlink_to(kept)
    (root / "closed" / "inner").mkdir(parents=True)
    (root / "closed").chmod(0)
    os.mkfifo(root / "-r")
    assert remove(root)
    assert not root.exists()
    assert (kept / "file").read_text() == "kept"
    assert remove(root)
    link = tmp_path / "link"
    link.symlink_to(kept)
    assert not remove(link)
    assert (kept / "file").exists()


async def test_names_that_look_like_options(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path
) -> None:
    """Nothing that a deployment names is read as an option by the agent."""
    (tmp_path / "-c").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "-c").chmod(0o755)
    (tmp_path / "-w").mkdir()
    (tmp_path / "-m.py").write_text("print('run')")
    attempt = attempts(["./-c"], source=str(tmp_path), working_dir="-w")
    handle = await attempt.start(processes)
    await ended(processes, handle)
    assert (await output(processes, handle)).decode() == f"{tmp_path}/-w\n"
    attempt = attempts(entrypoint="-m.py", source=str(tmp_path))
    handle = await attempt.start(processes)
    await ended(processes, handle)
    assert (await output(processes, handle)).decode() == "run\n"


async def test_many_users_at_once_start_and_end(
    attempts: Attempts, processes: ProcessLauncher, runs: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start runs as other users")
    many = [
        attempts(shell("id -u; cat ../../*/work/x 2>/dev/null; echo $$ > x"), run_as=str(62000 + n))
        for n in range(20)
    ]
    ends = await asyncio.gather(*(_run(processes, one, runs) for one in many))
    assert [said for _, said in ends] == [f"{62000 + n}\n" for n in range(20)]


LEASED = """
import fcntl, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(1, fcntl.F_SETLEASE, fcntl.F_WRLCK)
open("leased", "w").close()
time.sleep(60)
"""


@needs_root
@pytest.mark.skipif(sys.platform != "linux", reason="leases on files are Linux's")
async def test_a_lease_on_its_output_does_not_stop_the_agent(
    attempts: Attempts, processes: ProcessLauncher, runs: Path
) -> None:
    attempt = attempts(command=["/usr/bin/python3", "-c", LEASED], run_as=ONE)
    handle = await _start(processes, attempt, Rules(runs=runs))
    place = apart.of(attempt.folder)
    assert place is not None
    await until((place / apart.WORK / "leased").exists, "the lease")
    began = time.monotonic()
    with pytest.raises(LauncherUnavailable, match="lease"):
        await processes.read_output(handle, 0, 1000)
    assert time.monotonic() - began < 1, "it waited for who has the lease, and the whole agent with it"
    await processes.stop(handle, 0)
    await ended(processes, handle)
    assert await processes.read_output(handle, 0, 1000) == b""
