"""Limits of memory: by a cgroup of the run's own where there can be one, by its address space elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import shunter_infrastructure
from shunter_infrastructure.launcher import LauncherUnavailable, LaunchFailed
from shunter_infrastructure.process import cgroup, keeper, memory
from shunter_infrastructure.process.environment import exec_failure
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_infrastructure.process.memory import LEAF, MemoryLimits
from shunter_work_pools.contracts.states import Cause
from tests.engines.closing_words import not_applicable
from tests.launchers.attempts import Attempt, ended, is_gone, shell, until, written
from tests.launchers.fake_cgroup2 import Tree

Attempts = Callable[..., Attempt]
Launchers = Callable[..., ProcessLauncher]

MIB = 2**20
LIMIT = 40 * MIB
EATING = "print('eating', flush=True); x = b'x' * 200_000_000"
#: A child eats, and what the command does then is its last argument.
CHILD = f"import subprocess, sys; code = subprocess.call([sys.executable, '-c', {EATING!r}])\n"


@pytest.fixture
def real(processes: ProcessLauncher) -> MemoryLimits:
    """The memory cgroup that this machine lets be used."""
    found = processes._limits()
    if found.parent is None:
        pytest.skip(f"no memory cgroup can be written here ({found.reason}): run as root, or delegate one")
    assert processes.capabilities.limits_memory == "cgroup"
    return found


def _left(limits: MemoryLimits) -> list[str]:
    assert limits.parent is not None
    return [name for name in os.listdir(limits.parent) if name.startswith(("shunter-run-", "shunter-probe-"))]


def _cgroup(attempt: Attempt, limits: MemoryLimits) -> Path:
    found = attempt.record
    assert limits.parent is not None
    assert found.keeper is not None
    return Path(cgroup.path_of(limits.parent, found.keeper, found.keeper_start))


# -- the kernel's own ------------------------------------------------------------------------------------


async def test_an_oom_kill_is_told(
    attempts: Attempts, processes: ProcessLauncher, real: MemoryLimits
) -> None:
    attempt = attempts([sys.executable, "-c", EATING], memory_limit=LIMIT)
    found = await attempt.run(processes)
    assert (found.signal, found.oom, found.error) == ("SIGKILL", True, None)
    assert found.message == "The kernel killed 1 process(es) of it for memory; its limit is 40MiB."
    assert not _cgroup(attempt, real).exists()


async def test_a_plain_kill_is_no_oom_kill(
    attempts: Attempts, processes: ProcessLauncher, real: MemoryLimits
) -> None:
    attempt = attempts(shell("kill -9 $$"), memory_limit=LIMIT)
    found = await attempt.run(processes)
    assert (found.signal, found.oom, found.message) == ("SIGKILL", False, None)
    assert not _cgroup(attempt, real).exists()


@pytest.mark.parametrize(
    ("then", "code", "oom"),
    [("sys.exit(137)", 137, True), ("sys.exit(1)", 1, True), ("sys.exit(0)", 0, False)],
)
async def test_only_a_child_was_killed_for_memory(
    attempts: Attempts, processes: ProcessLauncher, real: MemoryLimits, then: str, code: int, oom: bool
) -> None:
    found = await attempts([sys.executable, "-c", CHILD + then], memory_limit=LIMIT).run(processes)
    if ("memory.oom.group", "1") in real.settings:
        assert (found.signal, found.oom) == ("SIGKILL", True)  # the kernel takes all of it
        return
    assert (found.exit_code, found.signal, found.oom) == (code, None, oom)
    assert found.message is not None
    assert "killed 1 process(es) of it for memory" in found.message


async def test_the_limit_is_of_all_processes_together_and_of_swap(
    attempts: Attempts, processes: ProcessLauncher, real: MemoryLimits
) -> None:
    half = "import time; x = b'x' * 25_000_000; print('half', flush=True); time.sleep(1000)"
    script = '"$1" -c "$2" & "$1" -c "$2" & wait $!; wait; exit 3'
    attempt = attempts(shell(script, sys.executable, half), memory_limit=LIMIT)
    handle = await attempt.start(processes)
    own = _cgroup(attempt, real)
    for name, value in (("memory.memsw.limit_in_bytes", LIMIT), ("memory.swap.max", 0)):
        if (own / name).exists():
            assert int((own / name).read_text()) == value
    await until(lambda: cgroup.oom_kills(f"{own}/{real.events}") >= 1, "both do not fit")
    await processes.stop(handle, 0)
    assert (await ended(processes, handle)).oom


async def test_the_command_is_born_in_its_cgroup_and_the_keeper_is_not(
    attempts: Attempts, processes: ProcessLauncher, real: MemoryLimits
) -> None:
    attempt = attempts(
        shell("cat /proc/self/cgroup; env -i setsid sleep 1000 & exec sleep 1000"), memory_limit=LIMIT
    )
    handle = await attempt.start(processes)
    own = _cgroup(attempt, real)
    await until(lambda: len(cgroup.members(str(own))) == 2, "both are in it")
    assert own.name.encode() in await written(processes, handle, b"memory")
    assert handle.pid in cgroup.members(str(own))
    keeper = attempt.record.keeper
    assert own.name not in Path(f"/proc/{keeper}/cgroup").read_text()
    await processes.stop(handle, 5)
    await ended(processes, handle)
    assert not own.exists()


async def test_cgroups_that_a_run_made_below_its_own_are_removed(
    attempts: Attempts, processes: ProcessLauncher, real: MemoryLimits
) -> None:
    attempt = attempts(shell("exec sleep 1000"), memory_limit=LIMIT)
    handle = await attempt.start(processes)
    own = _cgroup(attempt, real)
    (own / "below" / "deeper").mkdir(parents=True)
    await processes.stop(handle, 0)
    await ended(processes, handle)
    assert not own.exists()


NAMELESS = shell(
    "(env -i setsid sh -c 'trap \"\" TERM; echo up $$; while :; do sleep 1000; done' &); exec sleep 1000"
)


async def test_the_keeper_is_killed_and_nothing_hides_in_the_cgroup(
    attempts: Attempts, processes: ProcessLauncher, real: MemoryLimits
) -> None:
    attempt = attempts(NAMELESS, memory_limit=LIMIT)
    handle = await attempt.start(processes)
    daemon = int((await written(processes, handle, b"up ")).split()[1])
    own = _cgroup(attempt, real)
    keeper = attempt.record.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    assert (await ended(processes, handle)).error is Cause.KEEPER_LOST
    assert is_gone(daemon)  # without a name, a session, a parent: only its cgroup told whose it is
    assert not own.exists()


async def test_what_dead_keepers_left_is_removed_and_nothing_else(
    attempts: Attempts, process_launchers: Launchers, real: MemoryLimits
) -> None:
    dead, alive, orphaned = (attempts(shell("exec sleep 1000"), memory_limit=LIMIT) for _ in range(3))
    first = process_launchers()
    handles = [await attempt.start(first) for attempt in (dead, alive, orphaned)]
    await first.close()
    for attempt in (dead, orphaned):
        keeper = attempt.record.keeper
        assert keeper is not None
        os.kill(keeper, signal.SIGKILL)
        await until(lambda keeper=keeper: is_gone(keeper), "the keeper is dead")  # type: ignore[misc]
    pid = handles[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: is_gone(pid), "the command is dead")
    second = process_launchers()
    await second.check()
    assert [_cgroup(each, real).exists() for each in (dead, alive, orphaned)] == [False, True, True]
    await second.stop(handles[1], 0)
    assert (await ended(second, handles[1])).signal == "SIGKILL"
    assert (await ended(second, handles[2])).error is Cause.KEEPER_LOST
    assert not any(_cgroup(each, real).exists() for each in (dead, alive, orphaned))


async def test_many_runs_leave_no_cgroup(
    attempts: Attempts, processes: ProcessLauncher, real: MemoryLimits
) -> None:
    made = [attempts(shell(f"exit {code}"), memory_limit=LIMIT) for code in range(20)]
    ends = await asyncio.gather(*(attempt.run(processes) for attempt in made))
    assert [end.exit_code for end in ends] == list(range(20))
    assert not any(_cgroup(attempt, real).exists() for attempt in made)


async def test_a_command_that_cannot_be_executed_leaves_no_cgroup(
    attempts: Attempts, processes: ProcessLauncher, real: MemoryLimits, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("no interpreter\n")
    script.chmod(0o755)
    attempt = attempts([str(script)], memory_limit=LIMIT)
    with pytest.raises(LaunchFailed, match="no '#!' line"):
        await attempt.start(processes)
    assert not _cgroup(attempt, real).exists()


async def test_a_limit_that_cannot_be_set_starts_nothing(
    attempts: Attempts, processes: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = MemoryLimits("/sys/fs/cgroup/no/such/folder", (("memory.max", "LIMIT"),), "memory.events")
    monkeypatch.setattr(memory, "find", lambda: gone)
    attempt = attempts(shell("echo never"), memory_limit=LIMIT)
    with pytest.raises(LauncherUnavailable, match="limit of its memory"):
        await attempt.start(processes)
    assert await attempt.recover(processes) is None


# -- address space ---------------------------------------------------------------------------------------


@pytest.fixture
def without_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no cgroup may be made."""
    monkeypatch.setattr(memory, "find", lambda: MemoryLimits(reason="not delegated"))


@pytest.mark.usefixtures("without_cgroups")
async def test_without_a_cgroup_each_process_is_limited(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    found = await attempts([sys.executable, "-c", EATING], memory_limit=100 * MIB).run(processes)
    assert processes.capabilities.limits_memory == "address_space"
    assert (found.exit_code, found.signal, found.oom) == (1, None, False)
    assert found.message == (
        "Its memory limit of 100MiB was one of each process's address space, since no cgroup could be used "
        "(not delegated)."
    )


@pytest.mark.usefixtures("without_cgroups")
async def test_a_limit_within_which_nothing_can_begin(attempts: Attempts, processes: ProcessLauncher) -> None:
    found = await attempts(["/bin/true"], memory_limit=MIB).run(processes)
    assert found.exit_code != 0  # its libraries do not fit
    assert found.message is not None
    assert "address space" in found.message


def test_a_limit_within_which_no_command_can_be_executed_will_never_do() -> None:
    def short(*_: object) -> None:
        raise MemoryError

    failed, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.execve = short  # type: ignore[assignment]
        launch = {"program": "/bin/true", "argv": ["true"], "env": {}, "memory": {"limit": 1 << 40}}
        keeper._become(launch, told, "", told, os.getppid())
    os.close(told)
    os.waitpid(child, 0)
    step, code = os.read(failed, 64).decode().split()
    os.close(failed)
    assert int(code) not in keeper.PASSING
    assert step not in keeper.PASSING_STEPS
    assert "does not even begin within its memory limit" in str(exec_failure(step, int(code), "", {}))


# -- version 2 -------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A cgroup v2 tree of plain files."""
    made = Tree(str(tmp_path / "cgroup2"))
    made.install(monkeypatch.setattr)
    return made


class Machine:
    """A process, as ``/proc`` describes it, in a cgroup of the tree."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        self._proc = folder / "proc"
        self._proc.mkdir()
        self._tree = tree

    def put(self, path: str) -> str:
        """Put this process into the cgroup ``path``; its folder."""
        where = self._tree.grow(path)
        self._tree.write(f"{where}/cgroup.procs", "0")
        (self._proc / "cgroup").write_bytes(os.fsencode(f"1:name=systemd:/\n0::{path}\n"))
        (self._proc / "mountinfo").write_text(
            f"24 1 0:22 / /proc rw - proc proc rw\n30 24 0:26 / {self._tree.root} rw shared:9 - cgroup2 cgroup2 rw\n"
        )
        return where

    def find(self) -> MemoryLimits:
        """What it finds out."""
        return memory._REAL_FIND(str(self._proc))  # type: ignore[attr-defined]


@pytest.fixture
def machine(tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """This process on a machine with cgroup v2."""
    made = Machine(tmp_path, tree)
    monkeypatch.setattr(memory, "_REAL_FIND", memory.find, raising=False)
    monkeypatch.setattr(memory, "find", made.find)
    return made


def _read(folder: str, name: str) -> str:
    return Path(folder, name).read_text()


def test_a_cgroup_whose_name_is_no_text(machine: Machine) -> None:
    own = machine.put("/user.slice/agent-\udcff.scope")
    assert machine.find().parent == own


def test_a_probe_that_stayed_behind(machine: Machine) -> None:
    own = machine.put("/user.slice/agent.scope")
    assert machine.find().kind == "cgroup"
    os.mkdir(f"{own}/shunter-probe-{os.getpid()}")
    assert machine.find().kind == "cgroup"


def test_version_2_goes_into_a_leaf_and_hands_memory_on(machine: Machine) -> None:
    own = machine.put("/user.slice/agent.scope")
    found = machine.find()
    assert found.parent == own
    assert _read(own, "cgroup.procs") == ""
    assert _read(f"{own}/{LEAF}", "cgroup.procs") == f"{os.getpid()}\n"
    assert _read(own, "cgroup.subtree_control") == "memory"
    assert found.order(LIMIT) == {
        "limit": LIMIT,
        "parent": own,
        "settings": [["memory.max", str(LIMIT)], ["memory.swap.max", "0"], ["memory.oom.group", "1"]],
        "events": "memory.events",
    }
    assert _left(found) == []


def test_version_2_in_the_leaf_of_its_service_manager(machine: Machine) -> None:
    leaf = machine.put(f"/system.slice/shunter.service/{LEAF}")
    Path(leaf).parent.joinpath("cgroup.subtree_control").write_text("")
    found = machine.find()
    assert found.parent == str(Path(leaf).parent)
    assert _read(found.parent, "cgroup.subtree_control") == "memory"
    assert machine.find() == found  # its next life


def test_version_2_stays_where_others_are(machine: Machine, tree: Tree) -> None:
    own = machine.put("/user.slice/session.scope")
    tree.write(f"{own}/cgroup.procs", str(os.getppid()))
    found = machine.find()
    assert found.kind == "address_space"
    assert f"other processes, too: {os.getppid()}" in found.reason
    assert sorted(_read(own, "cgroup.procs").split()) == sorted([str(os.getpid()), str(os.getppid())])


@pytest.mark.parametrize(
    "inside", ["shunter.service", "shunter.service/other", "shunter.service/other/shunter-agent"]
)
def test_version_2_stays_in_a_service_that_could_not_start_again(machine: Machine, inside: str) -> None:
    own = machine.put(f"/system.slice/{inside}")
    found = machine.find()
    assert found.kind == "address_space"
    assert "DelegateSubgroup=shunter-agent" in found.reason
    assert not Path(own, LEAF).exists()


def test_version_2_without_the_memory_controller(machine: Machine) -> None:
    own = machine.put("/user.slice/agent.scope")
    Path(own, "cgroup.controllers").write_text("cpu pids")
    assert "no memory controller" in machine.find().reason
    assert not Path(own, LEAF).exists()


def test_version_2_goes_back_if_memory_is_not_handed_on(
    machine: Machine, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = machine.put("/user.slice/agent.scope")

    def refused(path: str, value: str) -> None:
        if path.endswith("subtree_control"):
            raise OSError(16, "Device or resource busy", path)
        tree.write(path, value)

    monkeypatch.setattr(cgroup, "write", refused)
    assert "Device or resource busy" in machine.find().reason
    assert _read(own, "cgroup.procs") == f"{os.getpid()}\n"
    assert not Path(own, LEAF).exists()


@pytest.fixture
def on_version_2(
    machine: Machine, tree: Tree, process_launchers: Launchers, tmp_path: Path
) -> ProcessLauncher:
    """A launcher whose keepers meet the tree."""
    machine.put("/user.slice/agent.scope")
    interpreter = tmp_path / "python"
    root = Path(shunter_infrastructure.__file__).parents[1]
    fake = Path(__file__).with_name("fake_cgroup2.py")
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {fake} {root} {tree.root} "$6"\n')
    interpreter.chmod(0o755)
    return process_launchers(python=str(interpreter))


async def test_version_2_tells_an_oom_kill(
    attempts: Attempts, on_version_2: ProcessLauncher, tree: Tree
) -> None:
    attempt = attempts(shell("echo up; exec sleep 1000"), memory_limit=LIMIT)
    handle = await attempt.start(on_version_2)
    await written(on_version_2, handle, b"up")
    own = _cgroup(attempt, on_version_2._limits())
    assert cgroup.members(str(own)) == [handle.pid]
    assert (own / "memory.max").read_text() == str(LIMIT)
    assert (own / "memory.oom.group").read_text() == "1"
    assert handle.pid is not None
    tree.oom(str(own), [handle.pid])
    found = await ended(on_version_2, handle)
    assert (found.signal, found.oom) == ("SIGKILL", True)
    assert not own.exists()


async def test_version_2_tells_a_plain_kill(attempts: Attempts, on_version_2: ProcessLauncher) -> None:
    found = await attempts(shell("kill -9 $$"), memory_limit=LIMIT).run(on_version_2)
    assert (found.signal, found.oom) == ("SIGKILL", False)
    assert _left(on_version_2._limits()) == []


async def test_version_2_of_this_kernel(processes: ProcessLauncher) -> None:
    """The tests of the kernel's own cgroup, above, are of version 2 where this one passes."""
    found = processes._limits()
    if found.events != "memory.events":
        not_applicable(
            "this kernel's memory controller is not in a cgroup v2 that could be used: "
            "v2 is tested against a tree of files that follows its rules"
        )
    assert found.kind == "cgroup"
