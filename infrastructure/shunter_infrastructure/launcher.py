"""The contract of every launcher: check, start, recover, hold, wait, stop, read_output, cleanup.

A launcher does not decide what an end *means*; it says what happened (exit code, signal, out of memory
and error kept apart) and the agent turns that into a state and a cause.

Every attempt has a folder of its own, made by the agent, that outlives the agent's process. The
launcher keeps there whatever it needs to find its work again. The agent's own file in it is
``journal.jsonl``; every other name is the launcher's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from shunter_infrastructure.stamp import Stamp
from shunter_infrastructure.task_files import TaskFiles
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.errors import ShunterError
from shunter_work_pools.contracts.states import Cause


class LauncherUnavailable(ShunterError):
    """The engine behind the launcher cannot be used now; nothing was launched."""


class LaunchRefused(LauncherUnavailable):
    """This attempt cannot be launched now, and that is its own matter: the engine works, and launches others."""


class NotReady(LaunchRefused):
    """What the attempt needs before its launch cannot be had now: a server is away, for example. It is tried again
    within the time to start, and the run is told so meanwhile.

    Args:
        detail: what is waited for, one sentence.
        cause: it ends by that if its time to start runs out meanwhile.
    """

    def __init__(self, detail: str, remedy: str = "", *, cause: Cause | None = None) -> None:
        super().__init__(detail, remedy)
        self.cause = cause


class LaunchFailed(ShunterError):
    """This attempt cannot be started, and nothing of it runs. It ends as Crashed.

    Args:
        cause: one of the causes of Crashed, e.g. ``start_failed`` or ``source``.
        detail: what was wrong and where.
        remedy: what to do about it.
    """

    def __init__(self, cause: Cause, detail: str, remedy: str = "") -> None:
        super().__init__(detail, remedy)
        self.cause = cause


#: How the folder ends in which the hooks of an attempt run that crashed; it lies in the attempt's own.
HOOKS = ".crashed"


def number_of(assignment: Assignment, folder: Path) -> str:
    """The attempt's number as names on an engine have it: its hooks are another container, or another Job."""
    return f"{assignment.attempt}-crashed" if folder.name.endswith(HOOKS) else str(assignment.attempt)


#: Numbers of the devices of an attempt, by name; an empty list: of those that the agent has it may use none.
Devices = Mapping[str, Sequence[int]]
NO_DEVICES: Devices = {}


def _unchanged(path: str) -> str:
    return path


@dataclass(frozen=True)
class Rules:
    """What the agent's own policy says of a process that is to be started: what only its launcher can apply.

    Attributes:
        program: absolute path of a program -> the path that is executed. Raises :class:`LaunchFailed`.
        interpreter: the same for the agent's own interpreter, and those of environments that it builds.
        folder: absolute path of a source or working folder -> the path that is used. Raises :class:`LaunchFailed`.
        limits: names of resource limits in lower case (``core``, ``nofile``, ``nproc``, ``fsize``) -> values.
        umask: None: the agent's own.
        new_privileges: whether set-user-ID programs and file capabilities count; None: unless it runs as another user.
        runs: where the folders of runs of other users are; None: at the usual place.
        builds: building its environment may run code of packages.
    """

    program: Callable[[str], str] = _unchanged
    interpreter: Callable[[str], str] = _unchanged
    folder: Callable[[str], str] = _unchanged
    limits: Mapping[str, int] = field(default_factory=dict)
    umask: int | None = None
    new_privileges: bool | None = None
    runs: Path | None = None
    builds: bool = True


NO_RULES = Rules()


@dataclass(frozen=True)
class Prepared:
    """What the agent made ready for an attempt before its launch.

    Attributes:
        secrets: variables whose values are kept out of whatever is written down, shown or logged, over
            ``Work.plain_env``.
        template_secrets: the same, of the template's ``secret_env``.
        source_secret: what opens the source of the code, if that needs a secret; for the agent alone.
        source: folder of the code that was fetched, to be read only; None: ``Work.local_source`` counts.
        python: interpreter of the environment that was built; None: ``Work.python`` counts.
        rules: of the agent's policy, for its process.
        authorities: the file (PEM) by which the server is believed that the run speaks to; None: the system's.
        told: variables that say more of a run to itself: of its hooks, why it crashed.
    """

    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    template_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    source_secret: str | None = field(default=None, repr=False)
    source: Path | None = None
    python: str | None = None
    rules: Rules = NO_RULES
    authorities: Path | None = None
    told: Mapping[str, str] = field(default_factory=dict)


NOTHING = Prepared()


@dataclass(frozen=True)
class Capabilities:
    """What a launcher can do; declared, never guessed from its type.

    Attributes:
        exact_signal: a signal's number is known for sure. (Engines only say 137: then ``Exit.signal`` is inferred
            from ``Exit.exit_code``, which is there as well, and the message says so.)
        shared_handles: any agent can reach the work, so that a lease may be handed over.
        merged_output: stdout and stderr are one stream in the true order.
        own_machine: what an attempt takes is this machine's. If not, the engine finds room for it, and the agent has
            only the capacity that a person gave it.
        runs_as: an attempt can run as another user of this machine (``Work.run_as``).
        keeps_lease: an attempt ends when its :class:`Lease` does, also when the agent is dead or hangs.
        limits_memory: how ``Work.memory_limit`` is kept, known after :meth:`Launcher.check`:
            ``cgroup`` (all processes of the run together, and an OOM kill is told), ``address_space``
            (each process for itself: what it asks for beyond is refused), ``""`` (not at all).
        environments: what it starts may run in an environment that the agent has built.
    """

    exact_signal: bool
    shared_handles: bool
    merged_output: bool
    own_machine: bool = True
    runs_as: bool = False
    keeps_lease: bool = False
    limits_memory: str = ""
    environments: bool = False


@dataclass(frozen=True)
class Lease:
    """Until when an exclusive attempt may run: seconds of the boot-time clock of the agent's machine.

    Attributes:
        ask_at: it is asked to end then (SIGTERM).
        kill_at: nothing of it may run any more then.

    Raises:
        ValueError: it would be killed before it is asked.
    """

    ask_at: float
    kill_at: float

    def __post_init__(self) -> None:
        if self.ask_at > self.kill_at:
            raise ValueError(f"a lease that asks at {self.ask_at} cannot kill at {self.kill_at}")


@dataclass(frozen=True)
class Handle:
    """Where an attempt's work can be found again: small, versioned, serializable.

    Attributes:
        launcher: name of the launcher that made it.
        version: of ``data``'s layout.
        folder: the attempt's folder.
        started: when the user's process began; None while that is not known.
        pid: of the user's process, where there is one.
        data: what else the launcher needs (JSON values).
    """

    launcher: str
    version: int
    folder: Path
    started: Stamp | None = None
    pid: int | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exit:
    """How an attempt's work ended.

    Attributes:
        ended: when; the moment it was found out where the true one cannot be known.
        exit_code: None if a signal ended it or it cannot be known. Beside a signal: that was inferred from it.
        signal: name (``SIGKILL``) of the signal that ended it.
        oom: the kernel killed it, or a process of it, for memory, and it did not end well.
        error: the end is not the process's own (``keeper_lost``, ...): the cause to report.
        message: what a person should know.
        exception: the user's Python function raised; ``message`` holds ``Type: text``.
        result: JSON value the run left.
        max_rss_bytes, cpu_seconds: of the whole tree, as far as known.
        log_size: bytes of output, final.
    """

    ended: Stamp
    exit_code: int | None = None
    signal: str | None = None
    oom: bool = False
    error: Cause | None = None
    message: str | None = None
    exception: bool = False
    result: Any = None
    max_rss_bytes: int | None = None
    cpu_seconds: float | None = None
    log_size: int = 0


def leased(assignment: Assignment, lease: Lease | None) -> None:
    """Refuse to start what must not run without end.

    Raises:
        ValueError: the assignment is exclusive, and there is no lease.
    """
    if assignment.exclusive and lease is None:
        raise ValueError(
            f"attempt {assignment.attempt} of run {assignment.run} is exclusive: it needs a lease"
        )


class OwnWork:
    """What a launcher says whose work nobody but its own agent can reach."""

    attempts: Path | None = None
    identity: UUID | None = None

    @staticmethod
    def on_note(run: UUID, attempt: int, note: str, cause: Cause | None) -> None:
        """See :class:`Launcher`; the agent puts its own in place of this."""

    async def let_go(self, assignment: Assignment, folder: Path) -> None:
        """See :meth:`Launcher.let_go`."""
        raise ValueError(f"the attempt in {folder} cannot be another agent's")

    async def reach(self, template: Mapping[str, Any]) -> str:
        """See :meth:`Launcher.reach`."""
        return ""

    def manifest(self, folder: Path) -> Any:
        """See :meth:`Launcher.manifest`."""
        return None

    def task_files(self, folder: Path) -> TaskFiles | None:
        """See :meth:`Launcher.task_files`."""
        return None


@runtime_checkable
class Launcher(Protocol):
    """What the agent needs of a launcher. All calls are safe from one event loop at the same time."""

    name: str
    capabilities: Capabilities
    #: The folder of all attempts of the agent, set before :meth:`check`: what its former lives have left on the
    #: engine and has no folder in it is owned by nobody. None: nothing is looked for.
    attempts: Path | None
    #: Of the agent, set before :meth:`check`: a random id that its later lives have too, and no other agent of any
    #: server, whatever it is called. None: nothing of former lives is looked for where agents share an engine.
    identity: UUID | None
    #: Called with run, attempt and what its launch waits for, one sentence, when that changes (empty: it waits for
    #: nothing any more); and the cause that it ends by if its time to start runs out meanwhile, where that says
    #: more than ``start_timeout``.
    on_note: Callable[[UUID, int, str, Cause | None], None]

    async def check(self) -> None:
        """Make sure the engine can be used.

        Raises:
            LauncherUnavailable: it cannot; the text says why and what to do.
        """

    async def start(
        self,
        assignment: Assignment,
        folder: Path,
        agent: str,
        lease: Lease | None = None,
        devices: Devices = NO_DEVICES,
        prepared: Prepared = NOTHING,
    ) -> Handle:
        """Start the attempt, or find it if it was started before (also by another life of the agent).

        Args:
            assignment: what to run.
            folder: the attempt's own folder, or that of its hooks (:data:`HOOKS`), which are work of their own; it exists.
            agent: name of the agent, for the run's environment.
            lease: until when it may run. It is in force before anything of the attempt runs; if it was
                started before, this is as good as :meth:`hold`.
            devices: numbers of those that it may use, of each kind that the agent has: for the run's environment.
                They are the same in whatever life of the agent.
            prepared: what was made ready for it.

        Raises:
            LaunchFailed: it cannot be started, now or later.
            LauncherUnavailable: the engine is away, or the lease ended before it began; try again (with a
                lease of that moment).
            ValueError: the assignment is exclusive, and there is no lease.
        """

    async def recover(
        self, assignment: Assignment, folder: Path, *, agent: str = "", withdraw: bool = False
    ) -> Handle | None:
        """The handle of an attempt that was started before; None if it certainly never was.

        An attempt of which it cannot be known yields a handle whose :meth:`wait` tells so. One that was handed over
        is this agent's from then on: its engine is told so, as by :meth:`start`.

        Args:
            agent: name of the agent, whose it is if it was handed over.
            withdraw: it is not to start any more: what was prepared and has not begun is removed before the
                answer is None. Without it, that may be left for :meth:`start` to find.

        Raises:
            LauncherUnavailable: the engine is away; try again.
        """

    async def hold(self, handle: Handle, lease: Lease) -> None:
        """Let an attempt that was started with a lease run until ``lease`` ends; never sooner than before.

        What was asked to end when an earlier one ran out ends all the same: :meth:`wait` then says
        ``Exit.error`` is ``agent_lost``. After the end nothing happens.

        Raises:
            LauncherUnavailable: it could not be told; the lease before is in force.
            ValueError: the attempt was started without a lease, and nothing would end it.
        """

    async def wait(self, handle: Handle) -> Exit:
        """Wait until nothing of the attempt runs any more. May be called again after the end."""

    async def stop(self, handle: Handle, grace: float) -> None:
        """Ask everything of the attempt to end, and make it after ``grace`` seconds. Returns at once.

        Safe at any time and any number of times; a shorter grace than before takes effect.
        """

    async def read_output(self, handle: Handle, offset: int, limit: int) -> bytes:
        """Up to ``limit`` bytes of output from ``offset``; empty where there is none (yet)."""

    def output_file(self, handle: Handle) -> Path | None:
        """The file below the attempt's folder that holds its output, byte by byte, and nothing else; None if
        it is kept elsewhere. The agent may punch holes into what it has noted as lost or delivered."""

    def task_files(self, folder: Path) -> TaskFiles | None:
        """Where a flow leaves its journal and results for the agent to read, given the attempt's folder; None: the run
        itself brings them to the server, if it has a token, and left nothing undone at its end as far as is known.
        Quick, and without the engine."""

    async def cleanup(self, handle: Handle) -> None:
        """Remove what the engine keeps of an ended attempt. The agent removes the folder itself."""

    def recycle(self, folder: Path) -> bool:
        """Make the folder of an ended attempt as good as new for another one; quick, no waiting.

        Only what this launcher keeps there is its business; ``journal.jsonl`` is the agent's. False: it
        cannot be used again (something unknown is in it, for example), and is to be removed.
        """

    async def let_go(self, assignment: Assignment, folder: Path) -> None:
        """Follow an attempt no more; another agent has it now, or will, and its work is left alone.

        When this returns nothing that was asked for is under way, not even by a :meth:`start` that was interrupted.
        Only of launchers with ``shared_handles``. :meth:`wait` and :meth:`cleanup` are not called any more.
        """

    async def reach(self, template: Mapping[str, Any]) -> str:
        """Where the work of a pool is, so that agents that say the same can take it over; empty: only here.

        Args:
            template: of the pool.

        Raises:
            LauncherUnavailable: it cannot be known now.
        """

    def manifest(self, folder: Path) -> Any:
        """What the engine was asked for to run the attempt of a folder, without secrets: JSON; None if there is
        nothing to tell."""

    async def close(self) -> None:
        """Let go of the engine. What runs goes on."""
