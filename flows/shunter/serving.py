"""``serve``: a script's flows are deployed, and their runs executed by an agent of the script's own.

The agent is a child process that dies with the script, also by ``kill -9``. Runs outlive both, as those of any agent: the
next ``serve`` of the same deployments finds them. All served deployments are in one pool, and each demands a tag that only
the agents of its own scripts have.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from shunter.deployments import FlowDeployment, applied, check, specs, told, warn
from shunter.entrypoints import is_looked_at
from shunter.served import alone
from shunter_work_pools.contracts.errors import BadRequest, Conflict, InvalidInput, NotFound, ShunterError

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.agents import Agent
    from shunter_work_pools.contracts.deployments import Named, ScheduleView

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
        agent = stack.enter_context(alone(names))
        from shunter_work_pools.client import Client

        with Client() as client:
            _deployed(client, named, agent)
        client = stack.enter_context(Client(answer_timeout=PATIENCE))
        _Service(client, agent, named, limit, pause_on_exit).run()


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


def _deployed(client: Client, named: Sequence[Named], agent: str) -> None:
    """Deploy; the pool is made if nothing else is wrong.

    Raises:
        InvalidInput: one of them is served from another folder.
        ShunterError: the server refuses them, or is not there.
    """
    from shunter_work_pools.contracts.pools import PoolSpec

    _refuse_other_folders(client, named, agent)
    try:
        applied(client, named)
        return
    except BadRequest as exc:
        faults = exc.extra.get("faults") or [{}]
        if any(fault.get("loc") != ["pool"] for fault in faults):
            raise
    with suppress(Conflict):  # another script was faster
        client.create_pool(PoolSpec(name=POOL))
    applied(client, named)


def _refuse_other_folders(client: Client, named: Sequence[Named], agent: str) -> None:
    """Several machines may serve a deployment, but what it says of folders has to be so on each of them."""
    for one, others in zip(named, _others(client, [one.name for one in named], agent), strict=True):
        if not others:
            continue
        try:
            before, now = client.get_deployment(one.name).spec.work, one.spec.work
        except NotFound:  # somebody deleted it, whatever they serve
            continue
        for there, here in ((before.source, now.source), (before.working_dir, now.working_dir)):
            if there != here:
                other = others[0]
                raise InvalidInput(
                    f"deployment {one.name!r} is served already, by agent {other.name} on {other.host} from {there}, "
                    f"and here it is in {here}",
                    "Choose another name; or end that one; or have it in the same folder on both machines.",
                )


def _others(client: Client, names: Sequence[str], agent: str) -> list[list[Agent]]:
    """Of each deployment the agents that serve it beside ours, and will go on."""
    there = [
        one
        for one in client.list_agents().agents
        if one.name != agent and POOL in one.pools and not one.draining and not one.lost
    ]
    return [[one for one in there if tag_of(name) in one.tags] for name in names]


class _Service:
    """The agent of a script.

    Ends when: it was told to stop, and the agent has ended; or the agent ended by itself, which is an error.
    """

    def __init__(
        self, client: Client, agent: str, named: Sequence[Named], limit: int | None, pause_on_exit: bool
    ) -> None:
        self._client = client
        self._agent = agent
        self._named = named
        self._names = [one.name for one in named]
        self._pause_on_exit = pause_on_exit
        self._words = [*(sys.executable, "-m", "shunter_agents", "--pool", POOL, "--create-pool", "process")]
        self._words += ["--name", agent]
        self._words += [word for name in self._names for word in ("--tag", tag_of(name))]
        self._words += ["--limit", str(limit)] if limit is not None else []
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._welcomed = False
        self._unheard = ""  # what kept us from the schedules the last time

    def run(self) -> None:
        """Until told to stop.

        Raises:
            ServeError: the agent ended by itself.
        """
        if sys.stdout is not None:
            sys.stdout.flush()  # what the script said so far comes first, also in a file
        with self._listening(), self._agents_word() as address:
            agent = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"NOTIFY_SOCKET": address},
                process_group=0,  # Ctrl-C comes to us alone; we pass it on
                preexec_fn=_dying_with_parent(),
            )
            threading.Thread(target=lambda: self._events.put(f"ended {agent.wait()}"), daemon=True).start()
            stopping = cancelling = heard = False
            while not (event := self._events.get()).startswith("ended"):
                if event == "ready" and not stopping:
                    self._ready()
                elif event == "stop" and not stopping:
                    stopping = True
                    agent.terminate()
                    _say("stopping: runs may finish; once more cancels them")
                    self._pause()
                elif event == "stop" and not cancelling:
                    cancelling = True
                    _say("cancelling what runs")
                    if heard:
                        agent.terminate()
                elif event == "stopping" and not heard:
                    heard = True
                    if cancelling:  # only now: signals that nobody has heard yet are one
                        agent.terminate()
            self._pause()  # of two that end at once, the later one
        if not stopping:
            code = int(event.split()[1])
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise ServeError(f"the agent of this script ended by itself ({how})")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C are heard by :meth:`run`."""

        def heard(number: int, frame: object) -> None:
            self._events.put("stop")

        before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _agents_word(self) -> Iterator[str]:
        """Where the agent says that its server knows it, or that it stops: as to a service manager, every few seconds."""
        with (
            tempfile.TemporaryDirectory(prefix="shunter-") as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
        ):
            ear.bind(address := f"{folder}/notify")

            def listen() -> None:
                while word := ear.recv(4096):
                    for said, event in ((b"READY=1", "ready"), (b"STOPPING=1", "stopping")):
                        if said in word.splitlines():
                            self._events.put(event)

            listener = threading.Thread(target=listen)
            listener.start()
            try:
                yield address
            finally:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
                    mouth.sendto(b"", address)
                listener.join()

    def _ready(self) -> None:
        # Each time, and not only at first: a script that ended while this machine was cut off has paused them.
        with self._bearing_with_the_server():
            self._each_schedule(self._names, _resumed)
            if not self._welcomed:
                self._welcomed = True
                self._welcome()

    # Who begins shows its agent and then resumes; who ends pauses and then looks for agents. So whichever is later sees
    # the other, and the schedules of what somebody serves are not left paused.
    def _pause(self) -> None:
        """Have the schedules make no slots until their deployments are served again, unless others serve them."""
        if not self._pause_on_exit:
            return
        with self._bearing_with_the_server():
            mine = self._of_nobody_else(self._names)
            self._each_schedule(mine, lambda one: None if one.paused else True)
            still = self._of_nobody_else(mine)
            self._each_schedule([name for name in mine if name not in still], _resumed)

    def _of_nobody_else(self, names: Sequence[str]) -> list[str]:
        others = _others(self._client, names, self._agent)
        return [name for name, agents in zip(names, others, strict=True) if not agents]

    def _each_schedule(self, names: Sequence[str], wanted: Callable[[ScheduleView], bool | None]) -> None:
        from shunter_work_pools.contracts.deployments import SchedulePatch

        for name in names:
            for one in self._client.each_schedule(name):
                if (paused := wanted(one)) is not None:
                    patch = SchedulePatch(paused=paused, reason=PAUSED if paused else "", by=_me())
                    self._client.update_schedule(name, one.name, patch)

    @contextmanager
    def _bearing_with_the_server(self) -> Iterator[None]:
        """That it does not answer holds nothing up, and is said once."""
        try:
            yield
            self._unheard = ""
        except ShunterError as exc:
            if exc.told != self._unheard:
                self._unheard = exc.told
                _say(f"schedules could not be paused or resumed: {exc.told}")

    def _welcome(self) -> None:
        warn(
            applied(self._client, self._named, dry_run=True)
        )  # what its agent, which is there now, cannot execute
        for name in self._names:
            slots = [one.next_at for one in self._client.each_schedule(name) if one.next_at is not None]
            following = f", next at {min(slots):%Y-%m-%d %H:%M:%S} UTC" if slots else ""
            _say(f"serving {name}{following}")
        _say("Ctrl-C ends it")


def _resumed(schedule: ScheduleView) -> bool | None:
    """It makes slots again, unless somebody else paused it."""
    ours = schedule.paused and schedule.pause is not None and schedule.pause.reason == PAUSED
    return False if ours else None


def _me() -> str:
    return f"{os.path.basename(sys.argv[0]) or 'python'}@{socket.gethostname()}"[:200]


def _dying_with_parent() -> Callable[[], None] | None:
    """What the agent does between fork and exec, so that it dies when we do (Linux)."""
    if sys.platform != "linux":
        return None
    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_parent_death_signal, signal.SIGKILL)


def _say(text: str) -> None:
    sys.stderr.write(f"shunter: {text}\n")
    sys.stderr.flush()
