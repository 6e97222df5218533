"""The process launcher: the agent's side of forker and keepers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import signal
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shunter_infrastructure import outcome
from shunter_infrastructure.launcher import (
    NO_DEVICES,
    NOTHING,
    Capabilities,
    Devices,
    Exit,
    Handle,
    LauncherUnavailable,
    LaunchFailed,
    LaunchRefused,
    Lease,
    OwnWork,
    Prepared,
    leased,
)
from shunter_infrastructure.process import apart, cgroup, hidden, memory, record, remains
from shunter_infrastructure.process.environment import Launch, exec_failure, prepare
from shunter_infrastructure.process.forker_client import Answer, ForkerClient
from shunter_infrastructure.process.keeper_watch import KeeperWatch
from shunter_infrastructure.process.lean import USED
from shunter_infrastructure.process.memory import MemoryLimits
from shunter_infrastructure.process.record import RECORD, Ended, Record
from shunter_infrastructure.stamp import Stamp
from shunter_infrastructure.task_files import TaskFiles
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.sizes import size
from shunter_work_pools.contracts.states import Cause

HANDLE_VERSION = 1
LAUNCH = "launch.json"
OUTPUT = "output"
WORK = "work"
#: What may be in a folder that is used again; anything else speaks of an attempt out of the ordinary.
_RECYCLED = {"journal.jsonl", WORK, OUTPUT, LAUNCH, RECORD, LAUNCH + USED, RECORD + USED}
STOP = "stop"
LEASE = "lease"
#: Launches may take each other back when two agents recover and start the same attempt at once.
_START_TRIES = 20


class ProcessLauncher(OwnWork):
    """Runs attempts as processes on the agent's machine, of its own user or another.

    Args:
        python: interpreter of the forker; default: the agent's own.
        environ: the agent's environment, from which a run's is chosen; default: ``os.environ``.
    """

    name = "process"
    capabilities = Capabilities(
        exact_signal=True,
        shared_handles=False,
        merged_output=True,
        keeps_lease=True,
        runs_as=True,
        environments=True,
    )

    def __init__(self, *, python: str | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._forker = ForkerClient(python or sys.executable)
        self._environ = dict(os.environ if environ is None else environ)  # os.environ is slow to walk
        self._memory: MemoryLimits | None = None
        self._watches: dict[Path, KeeperWatch] = {}
        self._closed = False
        self._swept: set[Path] = set()

    @property
    def forker_pid(self) -> int | None:
        """Process id of the forker; None while there is none."""
        return self._forker.pid

    async def check(self) -> None:
        """Have a forker ready, so that the first start is as fast as the others."""
        self._limits()
        await self._forker.ready()

    def _limits(self) -> MemoryLimits:
        """How memory can be limited; found out before there is a forker, which is in the agent's cgroup."""
        if self._memory is None:
            self._memory = memory.find()
            self.capabilities = dataclasses.replace(self.capabilities, limits_memory=self._memory.kind)
        return self._memory

    async def start(
        self,
        assignment: Assignment,
        folder: Path,
        agent: str,
        lease: Lease | None = None,
        devices: Devices = NO_DEVICES,
        prepared: Prepared = NOTHING,
    ) -> Handle:
        """See :meth:`Launcher.start`."""
        leased(assignment, lease)
        for _ in range(_START_TRIES):
            found = record.read(folder)
            if found is None or not (found.started or found.is_final):
                # Also when a record has no second line yet: its keeper is being waited for by another.
                found = await self._launch(assignment, folder, agent, lease, devices, prepared)
            elif lease is not None:
                _write_lease(folder, lease)
            if found is None:
                continue
            if found.failed is not None:
                await self.clean(folder)
                raise self._launch_failed(found, folder)
            return _handle(folder, assignment, found)
        raise LauncherUnavailable(
            f"the launch of {folder} was withdrawn {_START_TRIES} times",
            "See whether two agents use the same state folder.",
        )

    async def _launch(
        self,
        assignment: Assignment,
        folder: Path,
        agent: str,
        lease: Lease | None,
        devices: Devices,
        prepared: Prepared,
    ) -> Record | None:
        """Hand the attempt to a keeper; None if the launch was withdrawn meanwhile."""
        launch = dataclasses.replace(
            prepare(assignment, folder, agent, self._environ, devices, prepared, self._own_name),
            lease=lease is not None,
            memory=self._limits().order(assignment.work.memory_limit),
        )
        if lease is not None:
            _write_lease(folder, lease)
        if launch.apart is not None:
            assert launch.user is not None
            await self._sweep(launch.apart.parent.parent)
            apart.make(launch.apart, folder, launch.user, json.dumps(assignment.parameters).encode())
        try:
            _write_inputs(folder, assignment, launch)
        except OSError as exc:
            raise LauncherUnavailable(
                f"the attempt's folder {folder} cannot be written: {exc.strerror}",
                "Free space there, or give the agent's user the right to write.",
            ) from exc
        answer = await self._hand_over(folder, launch.secrets)
        if answer.kind in ("refused", "own"):
            kind = LauncherUnavailable if answer.kind == "refused" else LaunchRefused
            raise kind(json.loads(answer.detail), "The launch is tried again.")
        if answer.kind == "withdrawn":
            return None
        return record.parse(answer.detail.split("\t"))

    async def _hand_over(self, folder: Path, secrets: dict[str, str]) -> Answer:
        """What a keeper says to the launch that is written down in the folder."""
        if not secrets:
            return await self._forker.launch(folder)
        try:
            fd = hidden.make(secrets)
        except OSError as exc:
            if exc.errno == errno.ENOSYS:
                raise LaunchFailed(
                    Cause.START_FAILED,
                    "this system has no memory that is shared by descriptor (memfd_create of Linux), and secrets are "
                    "not written to a disk",
                    "Run what needs secrets on Linux, or in containers.",
                ) from exc
            raise LauncherUnavailable(f"no memory for its secrets could be had: {exc.strerror}") from exc
        try:
            return await self._forker.launch(folder, fd)
        finally:
            os.close(fd)

    async def recover(
        self, assignment: Assignment, folder: Path, *, agent: str = "", withdraw: bool = False
    ) -> Handle | None:
        """See :meth:`Launcher.recover`.

        An order of a predecessor may still be on its way to a keeper. Taking ``launch.json`` away
        before looking for a record makes the answer None certain: a keeper makes its record first and
        reads ``launch.json`` then, so one of the two sees the other.
        """
        found = record.read(folder)
        if found is None:
            (folder / LAUNCH).unlink(missing_ok=True)
            found = record.read(folder)
        while found is not None and not (found.started or found.is_final) and found.keeper_runs():
            await asyncio.sleep(0.002)  # between its first and second line, or taking itself back
            found = record.read(folder)
        if found is None:
            await self.clean(folder)
        return None if found is None else _handle(folder, assignment, found)

    async def hold(self, handle: Handle, lease: Lease) -> None:
        """See :meth:`Launcher.hold`. The keeper looks when the lease that it knows ends, and not before."""
        if not handle.folder.exists():
            return
        if not (handle.folder / LEASE).exists():
            raise ValueError(f"the attempt in {handle.folder} was started without a lease")
        _write_lease(handle.folder, lease)

    async def wait(self, handle: Handle) -> Exit:
        """See :meth:`Launcher.wait`."""
        found = record.read(handle.folder)
        if found is not None and not found.is_final and found.keeper is not None and found.is_of_this_boot:
            watch = self._watch(handle.folder, found.keeper, found.keeper_start)
            try:
                await watch.wait()
            finally:
                self._let_go(handle.folder, watch)
            found = record.read(handle.folder)
        if found is None:
            return self._unknown(handle, "its record was removed from the attempt's folder")
        if found.failed is not None:
            failure = self._launch_failed(found, handle.folder)
            return Exit(found.failed.at, error=failure.cause, message=failure.told)
        if found.ended is not None:
            return self._exit(handle.folder, found.ended)
        return await self._lost(handle, found)

    async def stop(self, handle: Handle, grace: float) -> None:
        """See :meth:`Launcher.stop`. The request lies in a file; the signal only says that it is there."""
        found = record.read(handle.folder)
        if found is None or found.is_final or found.keeper is None or not found.is_of_this_boot:
            return
        with contextlib.suppress(OSError):  # a full disk: the keeper then goes by the deployment's grace
            _add_line(handle.folder / STOP, f"{Stamp.now().ticks:.6f} {grace:.6f}\n")
        watch = self._watch(handle.folder, found.keeper, found.keeper_start)
        watch.send(signal.SIGTERM)
        watch.send(signal.SIGCONT)  # somebody may have stopped it; it would stop nothing then
        self._let_go(handle.folder, watch)

    async def read_output(self, handle: Handle, offset: int, limit: int) -> bytes:
        """See :meth:`Launcher.read_output`."""
        try:
            # Not blocking: who owns the file, another user perhaps, may hold a lease on it (F_SETLEASE in fcntl(2)),
            # which would stop the whole agent for lease-break-time.
            fd = os.open(handle.folder / OUTPUT, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return b""
        except BlockingIOError as exc:
            raise LauncherUnavailable(
                f"the output in {handle.folder} cannot be read now: a process has a lease on it"
            ) from exc
        try:
            return os.pread(fd, limit, offset)
        finally:
            os.close(fd)

    def output_file(self, handle: Handle) -> Path | None:
        """See :meth:`Launcher.output_file`."""
        return handle.folder / OUTPUT

    def task_files(self, folder: Path) -> TaskFiles:
        """See :meth:`Launcher.task_files`."""
        place = apart.of(folder)
        return TaskFiles(folder) if place is None else TaskFiles(place, _user_of(_read_launch(folder)))

    async def cleanup(self, handle: Handle) -> None:
        """See :meth:`Launcher.cleanup`. (The keeper removed the cgroup, or whoever found it dead did.)"""
        await self.clean(handle.folder)

    @staticmethod
    async def clean(folder: Path) -> None:
        """Remove what a run of another user has apart; quick for those that have nothing there.

        Raises:
            OSError: it cannot be removed yet.
        """
        if apart.of(folder) is not None:
            await asyncio.to_thread(apart.clean, folder)

    async def _sweep(self, runs: Path) -> None:
        """Once in this life: remove what former lives left there."""
        if runs not in self._swept and self.attempts is not None:
            await asyncio.to_thread(apart.sweep, runs, self._own_name, self.attempts)
            self._swept.add(runs)

    @property
    def _own_name(self) -> str:
        return "agent" if self.identity is None else str(self.identity)

    def recycle(self, folder: Path) -> bool:
        """See :meth:`Launcher.recycle`: only a folder in which a run left nothing but its output.

        And only if its keeper saw the end of everything, and nobody else can write to that output. The
        working folder is a new one each time: what is no child of the run (a container that has it
        mounted, a terminal multiplexer) may still be in the old one.
        """
        try:
            found = record.read(folder)
        except LauncherUnavailable:
            return False
        if found is None or found.ended is None or found.ended.left_alive:
            return False
        try:
            names = _untouched(folder)
            if not names <= _RECYCLED or (OUTPUT in names and _has_writer(f"{folder}/{OUTPUT}")):
                return False
            if WORK in names:
                os.rmdir(f"{folder}/{WORK}")  # fails if anything is in it
            for name in names & {LAUNCH, RECORD}:
                os.rename(f"{folder}/{name}", f"{folder}/{name}{USED}")
            if OUTPUT in names and os.path.getsize(f"{folder}/{OUTPUT}"):
                os.truncate(f"{folder}/{OUTPUT}", 0)
        except OSError:
            return False
        return True

    async def close(self) -> None:
        """See :meth:`Launcher.close`."""
        self._closed = True
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        await self._forker.close()

    # -- details -------------------------------------------------------------------------------------

    def _watch(self, folder: Path, keeper: int, start: int) -> KeeperWatch:
        if self._closed:
            raise LauncherUnavailable("the launcher was closed")
        watch = self._watches.get(folder)
        if watch is None:
            watch = self._watches[folder] = KeeperWatch(keeper, start)
        watch.holders += 1
        return watch

    def _let_go(self, folder: Path, watch: KeeperWatch) -> None:
        watch.holders -= 1
        if watch.holders == 0:
            watch.close()
            if self._watches.get(folder) is watch:
                del self._watches[folder]

    def _launch_failed(self, found: Record, folder: Path) -> LaunchFailed:
        assert found.failed is not None
        return exec_failure(found.failed.step, found.failed.errno, found.failed.text, _read_launch(folder))

    def _exit(self, folder: Path, ended: Ended) -> Exit:
        place, owner = apart.of(folder) or folder, _user_of(_read_launch(folder))
        result, complaint = outcome.read_result(place, owner)
        failure = outcome.read_failure(place, owner) if ended.exit_code not in (0, None) else None
        told = [failure.text] if failure is not None else []
        if complaint:
            told.append(complaint)
        if ended.lease:
            told.append(
                "It was made to end because its lease did: its agent had heard nothing of the server for too long."
            )
        if ended.oom_kills or ended.exit_code != 0:
            told += _about_memory(ended, _read_launch(folder).get("memory"))
        if ended.leftovers:
            told.append(
                f"{ended.leftovers} process(es) still running when the command ended were stopped."
                if not ended.left_alive
                else f"{ended.left_alive} process(es) of another user still run: they could not be stopped."
            )
        return Exit(
            ended=ended.at,
            exit_code=ended.exit_code,
            signal=ended.signal,
            oom=ended.oom_kills > 0 and ended.exit_code != 0,
            error=_error_of(ended, failure),
            message=" ".join(told) or None,
            exception=failure is not None and failure.kind == "exception",
            result=result,
            max_rss_bytes=ended.max_rss_bytes,
            cpu_seconds=ended.cpu_seconds,
            log_size=_size(folder / OUTPUT),
        )

    async def _lost(self, handle: Handle, found: Record) -> Exit:
        if found.boot is not None and not found.is_of_this_boot:
            return Exit(
                Stamp.now(),
                error=Cause.NODE_LOST,
                message="The machine was restarted while it ran; how far it came is not known.",
                log_size=_size(handle.folder / OUTPUT),
            )
        own_cgroup = _cgroup_of(found, handle.folder)
        killed, left = await remains.kill(
            found, str(handle.data["run"]), str(handle.data["attempt"]), own_cgroup
        )
        if own_cgroup is not None:
            cgroup.remove(own_cgroup)
        began = f"process {found.pid} was started" if found.pid else "whether it was started is not known"
        rest = (
            f"{killed} process(es) of it were still running and were killed"
            if killed
            else "nothing of it runs"
        )
        if left:
            rest = f"{left} process(es) of it could not be killed"
        return self._unknown(handle, f"its keeper ended without a word; {began}; {rest}")

    def _unknown(self, handle: Handle, what: str) -> Exit:
        return Exit(
            Stamp.now(),
            error=Cause.KEEPER_LOST,
            message=f"How it ended cannot be known: {what}.",
            log_size=_size(handle.folder / OUTPUT),
        )


def _handle(folder: Path, assignment: Assignment, found: Record) -> Handle:
    return Handle(
        launcher=ProcessLauncher.name,
        version=HANDLE_VERSION,
        folder=folder,
        started=found.started,
        pid=found.pid,
        data={"run": str(assignment.run), "attempt": assignment.attempt, "keeper": found.keeper},
    )


def _error_of(ended: Ended, failure: outcome.Failure | None) -> Cause | None:
    """Whether the end is not the command's own."""
    if ended.lease:
        return Cause.AGENT_LOST
    return Cause.SOURCE if failure is not None and failure.kind == "source" else None


def _about_memory(ended: Ended, order: dict[str, Any] | None) -> list[str]:
    """What a person should know who wonders whether it was short of memory."""
    if not order:
        return []
    limit = size(int(order["limit"]))
    if ended.oom_kills:
        return [f"The kernel killed {ended.oom_kills} process(es) of it for memory; its limit is {limit}."]
    if "parent" in order:
        return []
    why = order.get("reason", "")
    return [
        f"Its memory limit of {limit} was one of each process's address space, since no cgroup could be used ({why})."
    ]


def _cgroup_of(found: Record, folder: Path) -> str | None:
    parent = (_read_launch(folder).get("memory") or {}).get("parent")
    if parent is None or found.keeper is None:
        return None
    return cgroup.path_of(str(parent), found.keeper, found.keeper_start)


def _read_launch(folder: Path) -> dict[str, Any]:
    """Content of ``launch.json``; empty if it cannot be read any more."""
    try:
        value = json.loads((folder / LAUNCH).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _user_of(launch: Mapping[str, Any]) -> int | None:
    """Id of the other user as whom it ran."""
    user = launch.get("user")
    return None if user is None else int(user["uid"])


def _write_lease(folder: Path, lease: Lease) -> None:
    try:
        _write(f"{folder}/{LEASE}", f"{lease.ask_at:.6f} {lease.kill_at:.6f}\n".encode())
    except FileNotFoundError:
        return  # the attempt is over, and its folder gone
    except OSError as exc:
        raise LauncherUnavailable(
            f"the lease of the attempt in {folder} could not be written: {exc.strerror}",
            "Free space there; until then it ends when its last lease does.",
        ) from exc


def _write_inputs(folder: Path, assignment: Assignment, launch: Launch) -> None:
    if assignment.work.working_dir is None and launch.apart is None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(launch.cwd, 0o700)
    if assignment.parameters and launch.apart is None:
        _write(f"{folder}/parameters.json", json.dumps(assignment.parameters).encode())
    # Last, and whole or not at all: it is what makes a launch valid.
    _write(f"{folder}/{LAUNCH}", json.dumps(launch.to_json()).encode())


def _write(path: str, data: bytes) -> None:
    draft = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(path + USED, draft)  # of a recycled folder: its name is new, its inode is not
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = len(data)
        while data:
            data = data[os.write(fd, data) :]
        os.ftruncate(fd, size)
    finally:
        os.close(fd)
    os.replace(draft, path)


def _add_line(path: Path, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _untouched(folder: Path) -> set[str]:
    """Names of what is in a folder; of its files all are as they were made.

    Raises:
        OSError: a run has changed one, or the folder itself: put a link or a pipe in its place, linked it
            from elsewhere, or closed it to its own user.
    """
    _demand(os.lstat(folder), stat.S_IFDIR | 0o700)
    names = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name != WORK:
                found = entry.stat(follow_symlinks=False)
                _demand(found, stat.S_IFREG | 0o600)
                if found.st_nlink != 1:
                    raise FileExistsError(entry.path)
            names.add(entry.name)
    return names


def _demand(found: os.stat_result, mode: int) -> None:
    inherited = stat.S_ISGID  # by folders, of the one they are in
    if found.st_mode & ~inherited != mode or found.st_uid != os.geteuid():
        raise PermissionError


def _has_writer(path: str) -> bool:
    """Whether somebody may have the file open for writing.

    A command can hand its output to what is no child of it (``systemd-run --pipe``, the ControlMaster of
    ssh), which its keeper knows nothing of. The kernel does: it refuses a read lease then (F_SETLEASE in
    fcntl(2)). Without leases (macOS, some network file systems) it cannot be known.
    """
    if sys.platform != "linux":
        return True
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except BlockingIOError:
        return True  # somebody has a lease of its own
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # until it is closed
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
