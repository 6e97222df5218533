"""A launcher for tests that runs nothing: its work follows a script, and survives like real work does.

The script is the command of the deployment, or of a ``scripts`` entry named like the deployment::

    ["fake", "output=hello\\n", "sleep=0.1", "exit=3"]

========================  ============================================================================
``sleep=SECONDS``         it runs this long (default 0); ``hang`` runs until it is stopped
``exit=CODE``             exit code, default 0
``signal=NAME``           it is ended by this signal instead
``output=TEXT``           what it writes, at once; several are joined
``lines=N``               then it writes ``line 1`` to ``line N``, evenly over the time it runs
``result=JSON``           the result it leaves
``message=TEXT``          ``Exit.message``
``exception=TEXT``        it raised: exit code 1, ``Exit.exception``, TEXT as the message
``error=CAUSE``           the end is not its own: ``keeper_lost``, ``node_lost``, ``source`` ...
``oom``                   the kernel killed it for memory (with ``signal=SIGKILL``)
``ignore_term``           only SIGKILL, after the grace, ends it when it is stopped
``max_rss=BYTES``, ``cpu=SECONDS``   usage
``start_delay=SECONDS``   :meth:`FakeLauncher.start` takes this long
``note=TEXT``             what that time is for, as it says; ``note_cause=CAUSE`` what it ends by if it takes too long
``start_error=TEXT``      it cannot be started; ``start_cause=CAUSE`` (default ``start_failed``)
``unavailable=N``         the first N starts find the engine away
========================  ============================================================================

Its "work" is one file in the attempt's folder, and what it is doing at a moment follows from that file
and the clock. So another launcher object, also in another process, finds it and sees the same end.

With ``engine``, a folder, that file is there, by run and attempt: whoever has that engine reaches the work, as with
the Jobs of a cluster. It says under which epoch it is held, and nobody of a lower one stops or removes it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from shunter_infrastructure.stamp import Stamp
from shunter_infrastructure.task_files import TaskFiles
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.states import Cause

STATE, MANIFEST = "fake.json", "manifest.json"
#: Seconds between two looks at work that others reach as well.
_LOOK = 0.05

#: Waiters of all launcher objects in this process, so that a stop through one wakes those of another.
_bells: dict[Path, set[asyncio.Event]] = {}


@dataclass(frozen=True)
class Script:
    """What a fake attempt does; see the module."""

    sleep: float = 0.0
    hang: bool = False
    exit: int = 0
    signal: str | None = None
    output: str = ""
    lines: int = 0
    result: Any = None
    message: str | None = None
    exception: str | None = None
    error: Cause | None = None
    oom: bool = False
    ignore_term: bool = False
    max_rss: int | None = None
    cpu: float | None = None
    start_delay: float = 0.0
    note: str = ""
    note_cause: Cause | None = None
    start_error: str | None = None
    start_cause: Cause = Cause.START_FAILED
    unavailable: int = 0

    @classmethod
    def parse(cls, words: Sequence[str]) -> Script:
        """Read a script.

        Raises:
            ValueError: a word is not known, or its value does not fit.
        """
        values: dict[str, Any] = {}
        for word in words:
            name, given, text = word.partition("=")
            kind = _WORDS.get(name)
            if kind is None or (kind is bool) == bool(given):
                raise ValueError(f"the fake launcher does not know {word!r}")
            if name == "output":
                values[name] = values.get(name, "") + text
            else:
                values[name] = True if kind is bool else kind(text)
        return cls(**values)


_WORDS: dict[str, Any] = {
    "sleep": float,
    "hang": bool,
    "exit": int,
    "signal": str,
    "output": str,
    "lines": int,
    "result": json.loads,
    "message": str,
    "exception": str,
    "error": Cause,
    "oom": bool,
    "ignore_term": bool,
    "max_rss": int,
    "cpu": float,
    "start_delay": float,
    "note": str,
    "note_cause": Cause,
    "start_error": str,
    "start_cause": Cause,
    "unavailable": int,
}


@dataclass(frozen=True)
class _Work:
    """Content of the state file.

    Attributes:
        words: the script.
        pid: a number that no other fake attempt of this process has.
        started: when it began.
        term_at, kill_at: boot-time clock of SIGTERM and SIGKILL; None while it was not stopped.
        lease: until when it may run; None: as long as it likes.
        epoch: of the grant that it is held under, as an engine that many reach knows it.
    """

    words: list[str]
    pid: int
    started: Stamp
    term_at: float | None = None
    kill_at: float | None = None
    lease: Lease | None = None
    epoch: int = 0

    @property
    def script(self) -> Script:
        return Script.parse(self.words)

    def end(self) -> tuple[float | None, str | None]:
        """When it ends by the boot-time clock (None: never), and the signal that a stop ends it by."""
        script = self.script
        own = None if script.hang else self.started.ticks + script.sleep
        term_at = _earlier(self.term_at, None if self.lease is None else self.lease.ask_at)
        kill_at = _earlier(self.kill_at, None if self.lease is None else self.lease.kill_at)
        asked = kill_at if script.ignore_term else term_at
        if asked is None or (own is not None and own <= asked):
            return own, None
        killed = script.ignore_term or (kill_at is not None and kill_at <= asked)
        return asked, "SIGKILL" if killed else "SIGTERM"

    def output(self, now: float) -> bytes:
        """All that it has written at a moment of the boot-time clock."""
        script, (end, _) = self.script, self.end()
        ran = (now if end is None else min(now, end)) - self.started.ticks
        share = min(1.0, max(0.0, ran / script.sleep)) if script.sleep else 1.0
        lines = (f"line {number}\n" for number in range(1, int(script.lines * share + 1e-9) + 1))
        return (script.output + "".join(lines)).encode()

    def lease_ended(self) -> bool:
        """Whether it ends because its lease does."""
        end, _ = self.end()
        if self.lease is None or end is None or end < self.lease.ask_at:
            return False
        own = None if self.script.hang else self.started.ticks + self.script.sleep
        if own is not None and own <= self.lease.ask_at:
            return False
        return self.term_at is None or self.lease.ask_at < self.term_at

    def save(self, path: Path, *, new: bool = False) -> None:
        """Write it down.

        Raises:
            FileExistsError: it is ``new``, and there is one.
        """
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        value = {
            "words": self.words,
            "pid": self.pid,
            "started": self.started.to_json(),
            "term_at": self.term_at,
            "kill_at": self.kill_at,
            "lease": self.lease and [self.lease.ask_at, self.lease.kill_at],
            "epoch": self.epoch,
        }
        draft.write_text(json.dumps(value))
        if not new:
            os.replace(draft, path)
            return
        try:
            os.link(draft, path)
        finally:
            draft.unlink()

    @classmethod
    def load(cls, path: Path) -> _Work | None:
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        lease = value.get("lease")
        read = {"started": Stamp.from_json(value["started"]), "lease": Lease(*lease) if lease else None}
        return cls(**(value | read))


def _earlier(one: float | None, other: float | None) -> float | None:
    return min((moment for moment in (one, other) if moment is not None), default=None)


_next_pid = 1_000_000


@dataclass
class FakeLauncher(OwnWork):
    """See the module.

    Attributes:
        scripts: deployment -> script, for deployments whose own command is not one.
        calls: every call that was made, as (method, folder's name), for tests to look at.
        devices: which devices an attempt was started with, by its folder's name.
        prepared: what was made ready for it, likewise.
        away: while set, the engine is unavailable: check and start fail with this text.
        engine: where its work is, for all who are given the same folder; None: with each agent. Each start is a
            line in its file ``starts``.
    """

    scripts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    devices: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    prepared: dict[str, Prepared] = field(default_factory=dict)
    away: str | None = None
    engine: Path | None = None
    _refused: dict[Path, int] = field(default_factory=dict)
    _closed: asyncio.Event = field(default_factory=asyncio.Event)

    name = "fake"
    capabilities = Capabilities(
        exact_signal=True, shared_handles=False, merged_output=True, keeps_lease=True, limits_memory="cgroup"
    )

    def __post_init__(self) -> None:
        if self.engine is not None:
            self.capabilities = replace(self.capabilities, shared_handles=True)

    def _state(self, folder: Path) -> Path:
        if self.engine is None:
            return folder / STATE
        return self.engine / f"{folder.name}.json"

    def _draft(self, folder: Path) -> Path:
        """What is there of one that has not begun."""
        return self._state(folder).with_suffix(".prepared")

    async def check(self) -> None:
        """See :meth:`Launcher.check`."""
        self.calls.append(("check", ""))
        if self.away:
            raise LauncherUnavailable(self.away)

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
        self.calls.append(("start", folder.name))
        self.devices[folder.name] = {name: list(numbers) for name, numbers in devices.items()}
        self.prepared[folder.name] = prepared
        if self.away:
            raise LauncherUnavailable(self.away)
        words = self._words(assignment)
        try:
            script = Script.parse(words)
        except ValueError as exc:
            raise LaunchFailed(Cause.START_FAILED, str(exc), "Correct the script.") from exc
        self._keep_manifest(folder, words)
        work = self._found(assignment, folder)
        if work is None and script.start_delay:
            self._draft(folder).touch()
            self.on_note(assignment.run, assignment.attempt, script.note, script.note_cause)
            await asyncio.sleep(script.start_delay)
        if self._refused.get(folder, 0) < script.unavailable:
            self._refused[folder] = self._refused.get(folder, 0) + 1
            raise LauncherUnavailable("the fake engine is away")
        if script.start_error is not None:
            raise LaunchFailed(script.start_cause, script.start_error)
        work = self._found(assignment, folder)
        if work is None:
            if lease is not None and lease.ask_at <= Stamp.now().ticks:
                raise LaunchRefused("its lease ended before it began")
            global _next_pid
            _next_pid += 1
            work = _Work(words, _next_pid, Stamp.now(), lease=lease, epoch=assignment.epoch)
            try:
                work.save(self._state(folder), new=True)
            except FileExistsError:
                return await self.start(assignment, folder, agent, lease, devices, prepared)
            self._draft(folder).unlink(missing_ok=True)
            if self.engine is not None:
                with (self.engine / "starts").open("a") as starts:
                    starts.write(f"{assignment.run} {assignment.attempt}\n")
        elif lease is not None:
            await self.hold(_handle(folder, work), lease)
        return _handle(folder, work)

    def _found(self, assignment: Assignment, folder: Path) -> _Work | None:
        """Its work, which is held under this epoch from now on."""
        work = _Work.load(self._state(folder))
        if work is not None and work.epoch < assignment.epoch:
            work = replace(work, epoch=assignment.epoch)
            work.save(self._state(folder))
        return work

    def _keep_manifest(self, folder: Path, words: list[str]) -> None:
        if self.engine is not None:
            (folder / MANIFEST).write_text(json.dumps({"words": words}))

    def _mine(self, handle: Handle) -> _Work | None:
        """The work of a handle, unless somebody has it under a higher epoch."""
        work = _Work.load(self._state(handle.folder))
        return None if work is None or work.epoch > handle.data["epoch"] else work

    def _words(self, assignment: Assignment) -> list[str]:
        command = assignment.work.command
        if command is not None and command[0] == "fake":
            return command[1:]
        return list(self.scripts.get(assignment.deployment, ()))

    async def recover(
        self, assignment: Assignment, folder: Path, *, agent: str = "", withdraw: bool = False
    ) -> Handle | None:
        """See :meth:`Launcher.recover`."""
        self.calls.append(("recover", folder.name))
        work = self._found(assignment, folder) if assignment.handed_over else _Work.load(self._state(folder))
        if work is None and withdraw:
            self._draft(folder).unlink(missing_ok=True)
        elif work is not None:
            self._keep_manifest(folder, work.words)
        return None if work is None else _handle(folder, work, assignment.epoch)

    async def hold(self, handle: Handle, lease: Lease) -> None:
        """See :meth:`Launcher.hold`."""
        self.calls.append(("hold", handle.folder.name))
        work = _Work.load(self._state(handle.folder))
        if work is None:
            return
        if work.lease is None:
            raise ValueError(f"the attempt in {handle.folder} was started without a lease")
        if Stamp.now().ticks < work.lease.ask_at:  # what was asked to end ends
            replace(work, lease=lease).save(self._state(handle.folder))
            self._ring(handle.folder)

    def _ring(self, folder: Path) -> None:
        for bell in _bells.get(folder, ()):
            bell.set()

    async def wait(self, handle: Handle) -> Exit:
        """See :meth:`Launcher.wait`."""
        self.calls.append(("wait", handle.folder.name))
        bell = asyncio.Event()
        _bells.setdefault(handle.folder, set()).add(bell)
        try:
            while True:
                work = _Work.load(self._state(handle.folder))
                if work is None:
                    return Exit(Stamp.now(), error=Cause.KEEPER_LOST, message="its state file is gone")
                end, by = work.end()
                left = None if end is None else end - Stamp.now().ticks
                if end is not None and left is not None and left <= 0:
                    return _exit(work, end, by)
                bell.clear()
                # Others, in other processes, may stop what they reach as well.
                looks = left if self.engine is None else min(_LOOK, _LOOK if left is None else left)
                await self._pause(bell, looks)
        finally:
            _bells[handle.folder].discard(bell)
            if not _bells[handle.folder]:
                del _bells[handle.folder]

    async def _pause(self, bell: asyncio.Event, seconds: float | None) -> None:
        if self._closed.is_set():
            raise LauncherUnavailable("the launcher was closed")
        rings = [asyncio.ensure_future(bell.wait()), asyncio.ensure_future(self._closed.wait())]
        try:
            await asyncio.wait(rings, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for ring in rings:
                ring.cancel()

    async def stop(self, handle: Handle, grace: float) -> None:
        """See :meth:`Launcher.stop`."""
        self.calls.append(("stop", handle.folder.name))
        work = self._mine(handle)
        if work is None:
            return
        now = Stamp.now().ticks
        end, _ = work.end()
        if end is not None and end <= now:
            return
        term = now if work.term_at is None else work.term_at
        kill = now + grace if work.kill_at is None else min(work.kill_at, now + grace)
        replace(work, term_at=term, kill_at=kill).save(self._state(handle.folder))
        self._ring(handle.folder)

    async def read_output(self, handle: Handle, offset: int, limit: int) -> bytes:
        """See :meth:`Launcher.read_output`."""
        work = _Work.load(self._state(handle.folder))
        return b"" if work is None else work.output(Stamp.now().ticks)[offset : offset + limit]

    def output_file(self, handle: Handle) -> Path | None:
        """See :meth:`Launcher.output_file`: it is in the script."""
        return None

    def task_files(self, folder: Path) -> TaskFiles | None:
        """See :meth:`Launcher.task_files`."""
        return TaskFiles(folder) if self.engine is None else None

    async def cleanup(self, handle: Handle) -> None:
        """See :meth:`Launcher.cleanup`."""
        self.calls.append(("cleanup", handle.folder.name))
        self._refused.pop(handle.folder, None)
        if self.engine is not None and self._mine(handle) is not None:
            self._state(handle.folder).unlink()

    def recycle(self, folder: Path) -> bool:
        """See :meth:`Launcher.recycle`."""
        return False

    async def let_go(self, assignment: Assignment, folder: Path) -> None:
        """See :meth:`Launcher.let_go`."""
        self.calls.append(("let_go", folder.name))
        if self.engine is None:
            await super().let_go(assignment, folder)

    async def reach(self, template: Mapping[str, Any]) -> str:
        """See :meth:`Launcher.reach`."""
        if self.away:
            raise LauncherUnavailable(self.away)
        return "" if self.engine is None else str(self.engine)

    def manifest(self, folder: Path) -> Any:
        """See :meth:`Launcher.manifest`."""
        return None if self.engine is None else json.loads((folder / MANIFEST).read_text())

    async def close(self) -> None:
        """See :meth:`Launcher.close`."""
        self.calls.append(("close", ""))
        self._closed.set()


def _handle(folder: Path, work: _Work, epoch: int | None = None) -> Handle:
    held = {"epoch": work.epoch if epoch is None else epoch}
    return Handle(launcher="fake", version=1, folder=folder, started=work.started, pid=work.pid, data=held)


def _exit(work: _Work, end: float, stopped_by: str | None) -> Exit:
    script, began = work.script, work.started
    by = stopped_by or script.signal
    code = 1 if script.exception is not None and script.exit == 0 else script.exit
    own = stopped_by is None
    lost = work.lease_ended()
    return Exit(
        ended=Stamp(began.boot, end, began.wall + end - began.ticks),
        exit_code=None if by or (own and script.error) else code,
        signal=by,
        oom=own and script.oom,
        error=Cause.AGENT_LOST if lost else script.error if own else None,
        message="its lease ended" if lost else (script.exception or script.message) if own else None,
        exception=own and script.exception is not None,
        result=script.result if own else None,
        max_rss_bytes=script.max_rss,
        cpu_seconds=script.cpu,
        log_size=len(work.output(end)),
    )
