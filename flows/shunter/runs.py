"""Flow runs, and what all of those inside one outermost flow run share."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shunter import states
from shunter.results import LIMIT, Store, is_small

if TYPE_CHECKING:
    from shunter.executors import Place
    from shunter.executors.coroutines import LoopLane
    from shunter.futures import TaskFuture
    from shunter.journal import Journal
    from shunter.messages import Messages
    from shunter.scopes import Scope


class Root:
    """What all flow runs inside one outermost flow run share."""

    def __init__(
        self, journal: Journal | None, completed: Mapping[str, dict[str, Any]] | None = None
    ) -> None:
        self.journal = journal
        self.completed = completed if completed is not None else journal.completed if journal else {}
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.cancelled = False
        #: Of a task that is executed elsewhere: the way to its flow.
        self.messages: Messages | None = None
        self.memory: dict[str, TaskFuture[Any]] = {}  # completed task runs, where a flow may be tried again
        self.open: set[TaskFuture[Any]] = set()
        self.counts: dict[Any, int] = journal.counts if journal is not None else {}
        self._loop_lane: LoopLane | None = None
        self._known: dict[str, tuple[Any, ...]] = {}
        self._told: set[str] = set()

    @property
    def loop_lane(self) -> LoopLane:
        """Where submitted asynchronous tasks run."""
        if self._loop_lane is None:
            from shunter.executors.coroutines import LoopLane

            with self.lock:
                if self._loop_lane is None:
                    self._loop_lane = LoopLane()
        return self._loop_lane

    def meet(self, task: Any) -> None:
        """Take note of a task.

        Raises:
            ValueError: another one has the same name in the same module, so their runs could not be told apart.
        """
        known = self._known.setdefault(task.identity, task.origin)
        if known is not task.origin and known != task.origin:
            raise ValueError(
                f"two tasks are called {task.name!r}: {_at(known)} and {_at(task.origin)}; "
                "give one of them another name"
            )

    def say_once(self, what: str, text: str, *values: object) -> None:
        """A warning, the first time that ``what`` is met."""
        with self.lock:
            if what in self._told:
                return
            self._told.add(what)
        from shunter.loggers import get_logger

        get_logger("shunter").warning(text, *values)

    def close(self) -> None:
        """End the loop."""
        if self._loop_lane is not None:
            self._loop_lane.close()


class FlowRun:
    """One run of a flow: the scope that its tasks belong to."""

    is_flow = True
    reused = False
    _ending = False  # its states are told by one thread, one after the other

    def __init__(self, flow: Any, root: Root, parent: Scope | None, parameters: dict[str, Any]) -> None:
        self.flow = flow
        self.flow_run = self
        self.root = root
        self.parent = parent
        self.parent_key: str | None = parent.key if parent is not None else None
        self.parameters = parameters
        self.depth: int = parent.depth + 1 if parent is not None else 0
        self.flows: int = parent.flow_run.flows + 1 if parent is not None else 0
        self.state = states.PENDING
        self.attempt = 0
        self.error: BaseException | None = None
        self.key: str = ""
        above: FlowRun | None = parent.flow_run if parent is not None else None
        #: Whether a later try of it or of a flow around it wants what was completed in this one.
        self.remembers: bool = flow.retries.count > 0 or (above is not None and above.remembers)
        self.keyed = root.journal is not None or self.remembers
        self.counts: dict[Any, int] | None = None
        self.upstream: tuple[TaskFuture[Any], ...] = ()
        self.open: dict[TaskFuture[Any], None] = {}
        self.stopping: BaseException | None = None  # why it takes no tasks any more
        self.own_place = above is None or flow.executor is not None
        self._place: Place | None = None
        self._store: Store | None = None
        self._sent: dict[str, Any] | None = None
        self._started = 0
        self.gate: Any = None
        self.value: Any = None

    def stopped(self) -> bool:
        """Whether it or a flow around it takes no tasks any more."""
        one: FlowRun | None = self
        while one is not None:
            if one.stopping is not None:
                return True
            one = one.parent.flow_run if one.parent is not None else None
        return self.root.cancelled

    def an_open(self) -> TaskFuture[Any] | None:
        """One of its task runs that has not ended."""
        with self.root.lock:
            return next(iter(self.open), None)

    @property
    def name(self) -> str:
        """The flow's name."""
        name: str = self.flow.name
        return name

    @property
    def version(self) -> str:
        """Of the flow's code."""
        version: str = self.flow.version
        return version

    @property
    def place(self) -> Place:
        """Where its tasks are executed; made when the first one is submitted."""
        if self._place is None:
            if not self.own_place and self.parent is not None:
                self._place = self.parent.flow_run.place
            else:
                from shunter.executors import place_of

                place = place_of(self.flow.executor)
                with self.root.lock:
                    if self._place is None:
                        self._place = place
        return self._place

    @property
    def sent_parameters(self) -> dict[str, Any]:
        """Those of its parameters that are small and JSON: they go with every task to another process."""
        if self._sent is None:
            self._sent = {name: value for name, value in self.parameters.items() if is_small(value)}
        return self._sent

    @property
    def result_storage(self) -> str | None:
        """The URL at which its results are to be kept, its own or that of the flow around it."""
        own: str | None = self.flow.result_storage
        return own if own is not None or self.parent is None else self.parent.flow_run.result_storage

    @property
    def result_limit(self) -> int:
        """Bytes that one result may have."""
        own: int | None = self.flow.result_limit
        if own is not None:
            return own
        return self.parent.flow_run.result_limit if self.parent is not None else LIMIT

    @property
    def store(self) -> Store:
        """Where results are kept for later attempts."""
        if self._store is None:
            journal = self.root.journal
            beside = journal.folder if journal is not None else "."
            fetch = journal.fetch if journal is not None else None
            self._store = Store(self.result_storage or beside, self.result_limit, fetch)
        return self._store

    def close(self) -> None:
        """End what it has started."""
        if self.own_place and self._place is not None:
            self._place.close()


def _at(origin: tuple[Any, ...]) -> str:
    return ":".join(str(part) for part in origin) or "?"
