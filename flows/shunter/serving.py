"""``serve``: a script's flows are deployed, and their runs executed by an agent of the script's own.

The agent is a child process that dies with the script, also by ``kill -9``. Runs outlive both, as those of any agent: the
next ``serve`` of the same deployments finds them. All served deployments are in one pool, and each demands a tag that only
the agents of its own scripts have.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from shunter.deployments import FlowDeployment, applied, check, specs, told
from shunter.entrypoints import is_looked_at
from shunter_work_pools.contracts.errors import BadRequest, Conflict, InvalidInput, ShunterError

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.deployments import Change, Named, ScheduleView

#: The pool of all that is served.
POOL = "served"
#: By which a pause is known again that is to end when the script starts again.
PAUSED = "the script that serves it has ended"
#: Seconds that an ending script waits for its server's answers.
PATIENCE = 5.0


class ServeError(Exception):
    """The agent of a serving script ended by itself."""


def serve(*deployments: FlowDeployment, limit: int | None = None, pause_on_exit: bool = True) -> None:
    """Deploy flows from their own script, and execute their runs until Ctrl-C or SIGTERM; blocks.

    Told to stop, it takes nothing new, and ends once its runs have; told a second time it cancels them. Runs that were due
    while it was away are made up for when it starts again: those that wait are executed, and of slots missed during the pause
    those that ``catch_up`` says.

    Args:
        deployments: made by ``flow.to_deployment``.
        limit: of their runs together so many at once; None: the setting ``agent.limit``.
        pause_on_exit: whether schedules make no slots while the script is not there. What a person paused stays so.

    Raises:
        InvalidInput: one of them is wrong, runs would not find its flow, or another process here serves one.
        ShunterError: the server refuses them, or is not there.
        ServeError: the agent ended by itself.
    """
    with told(), ExitStack() as stack:
        _refuse_where_runs_are()
        if limit is not None and limit < 1:
            raise InvalidInput(f"limit is {limit}; it is a number of runs, 1 or more")
        named = specs(check(deployments, "serve"), POOL, served=_own_surroundings())
        for one in named:
            one.spec.require = [*one.spec.require, tag_of(one.name)]
        names = [one.name for one in named]
        for name in names:
            stack.enter_context(_alone(name))
        from shunter_work_pools.client import Client

        with Client() as client:
            changes = _deployed(client, named)
        client = stack.enter_context(Client(answer_timeout=PATIENCE))
        service = _Service(client, names, limit, pause_on_exit)
        with service.listening():
            service.resume()
            _welcome(changes)
            service.run()


def tag_of(name: str) -> str:
    """The tag of agents that serve a deployment."""
    return f"serves={name}"


def _refuse_where_runs_are() -> None:
    if is_looked_at() or os.environ.get("SHUNTER_RUN_ID"):
        raise InvalidInput(
            "serve was called while a run imports the script",
            'Put it under `if __name__ == "__main__":`, as runs import the script to find their flow.',
        )
    if threading.current_thread() is not threading.main_thread():
        raise InvalidInput(
            "serve was called in a thread", "Call it in the main thread: signals are to reach it."
        )


def _own_surroundings() -> dict[str, Any]:
    """What runs of a script have of it, unless it says otherwise."""
    passed = ["PYTHONPATH"] if os.environ.get("PYTHONPATH") else []
    return {"working_dir": os.getcwd(), "pass_env": passed}


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Be the one process of this home that serves a deployment.

    Raises:
        InvalidInput: another one does, or the folder cannot be written.
    """
    from shunter_work_pools.contracts.home import home_from_env

    folder = home_from_env().state / "served"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise InvalidInput(
            f"the folder {folder} cannot be written: {exc.strerror or exc}",
            "Set SHUNTER_HOME to a folder of your own, or free space there.",
        ) from exc
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = os.pread(file, 20, 0).decode("ascii", "replace").strip()
            raise InvalidInput(
                f"deployment {name!r} is served already, by process {other}",
                "End that one first, or choose another name.",
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def _deployed(client: Client, named: Sequence[Named]) -> list[Change]:
    """Deploy; the pool is made if nothing else is wrong."""
    from shunter_work_pools.contracts.pools import PoolSpec

    try:
        return applied(client, named)
    except BadRequest as exc:
        faults = exc.extra.get("faults") or [{}]
        if any(fault.get("loc") != ["pool"] for fault in faults):
            raise
    with suppress(Conflict):  # another script was faster
        client.create_pool(PoolSpec(name=POOL))
    return applied(client, named)


class _Service:
    """The agent of a script.

    Ends when: it was told to stop, and the agent has ended; or the agent ended by itself, which is an error.
    """

    def __init__(self, client: Client, names: Sequence[str], limit: int | None, pause_on_exit: bool) -> None:
        self._client = client
        self._names = names
        self._pause_on_exit = pause_on_exit
        self._words = [*(sys.executable, "-m", "shunter_agents", "--pool", POOL, "--create-pool", "process")]
        self._words += ["--name", _agent_name(min(names))]
        self._words += [word for name in names for word in ("--tag", tag_of(name))]
        self._words += ["--limit", str(limit)] if limit is not None else []
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C are heard by :meth:`run`."""

        def heard(number: int, frame: object) -> None:
            self._events.put("stop")

        before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self) -> None:
        """Until told to stop.

        Raises:
            ServeError: the agent ended by itself.
        """
        agent = subprocess.Popen(
            self._words,
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C comes to us alone; we pass it on
            preexec_fn=_dying_with_parent(),
        )
        threading.Thread(target=lambda: self._events.put(f"ended {agent.wait()}"), daemon=True).start()
        stopping = False
        while (event := self._events.get()) == "stop":
            agent.terminate()
            if not stopping:
                stopping = True
                _say("stopping: runs may finish; once more cancels them")
                self._pause()
        if not stopping:
            self._pause()
            code = int(event.split()[1])
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise ServeError(f"the agent of this script ended by itself ({how})")

    def _pause(self) -> None:
        """Have the schedules make no slots until the next :meth:`resume`."""
        if self._pause_on_exit:
            self._each_schedule(lambda one: None if one.paused else True)

    def resume(self) -> None:
        """Have them make slots again, unless somebody else paused them."""
        self._each_schedule(
            lambda one: False if one.paused and one.pause is not None and one.pause.reason == PAUSED else None
        )

    def _each_schedule(self, wanted: Callable[[ScheduleView], bool | None]) -> None:
        from shunter_work_pools.contracts.deployments import SchedulePatch

        try:
            for name in self._names:
                for one in self._client.each_schedule(name):
                    if (paused := wanted(one)) is not None:
                        reason = PAUSED if paused else ""
                        self._client.update_schedule(
                            name, one.name, SchedulePatch(paused=paused, reason=reason, by=_me())
                        )
        except ShunterError as exc:
            _say(f"schedules could not be paused or resumed: {exc.told}")


def _me() -> str:
    return f"{os.path.basename(sys.argv[0]) or 'python'}@{socket.gethostname()}"[:200]


def _agent_name(name: str) -> str:
    """The same at each start, so that it finds its runs again."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{socket.gethostname()}-{name}")
    return text.strip("._-")[-100:].strip("._-")


def _dying_with_parent() -> Callable[[], None] | None:
    """What the agent does between fork and exec, so that it dies when we do (Linux)."""
    if sys.platform != "linux":
        return None
    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_parent_death_signal, signal.SIGKILL)


def _welcome(changes: Sequence[Change]) -> None:
    for change in changes:
        following = f", next at {change.next_at:%Y-%m-%d %H:%M:%S} UTC" if change.next_at is not None else ""
        _say(f"serving {change.name}{following}")
    _say("Ctrl-C ends it")


def _say(text: str) -> None:
    sys.stderr.write(f"shunter: {text}\n")
    sys.stderr.flush()
