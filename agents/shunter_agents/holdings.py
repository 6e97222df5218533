"""Everything the agent owns, and how much more it could take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from weakref import WeakValueDictionary

from shunter_agents.attempt import Attempt, Key
from shunter_agents.state_folder import StateFolder
from shunter_work_pools.contracts.agents import Assignment, Held
from shunter_work_pools.contracts.capacity import DIVISIBLE, fits
from shunter_work_pools.contracts.states import AttemptState


class Holdings:
    """The attempts of this agent.

    Args:
        limit: attempts that it may hold at once.
        capacity: what there is for them, by name.

    Attributes:
        attempts: all that have a folder.
        owed: those that a sync must name: ours, and the server does not have their end.
        working: those of which something runs, or may come to run.
        leaving: those of them that are not ours any more: the server does not know that they run.
        on_left: called when one of ``leaving`` has stopped.
    """

    def __init__(self, folder: StateFolder, limit: int, capacity: Mapping[str, float]) -> None:
        self.folder = folder
        self.limit = limit
        self.capacity = capacity
        self.attempts: dict[Key, Attempt] = {}
        self.owed: dict[Key, Attempt] = {}
        self.working: dict[Key, Attempt] = {}
        self.leaving: set[Key] = set()
        self.on_left: Callable[[], None] = lambda: None
        self._alike: WeakValueDictionary[tuple[str, int, str], Assignment] = WeakValueDictionary()

    def add(self, attempt: Attempt) -> None:
        """It is ours."""
        self._share(attempt.assignment)
        self.attempts[attempt.key] = attempt
        if not attempt.end_acked:
            self.owed[attempt.key] = attempt
        if not attempt.ended:
            self.working[attempt.key] = attempt

    def _share(self, new: Assignment) -> None:
        """What thousands of runs of one deployment have alike is kept once."""
        known = self._alike.setdefault((new.deployment, new.revision, new.pool), new)
        if known.work == new.work:
            new.work = known.work
        if known.template == new.template:
            new.template = known.template

    def settle(self, attempt: Attempt) -> None:
        """The server has its end, or wants to hear no more of it."""
        self.owed.pop(attempt.key, None)

    def disown(self, attempt: Attempt) -> None:
        """It is not ours any more, though something of it may still run."""
        self.settle(attempt)
        if attempt.key in self.working:
            self.leaving.add(attempt.key)

    def stop_working(self, attempt: Attempt) -> None:
        """Nothing of it runs any more."""
        self.working.pop(attempt.key, None)
        if attempt.key in self.leaving:
            self.leaving.discard(attempt.key)
            self.on_left()

    def remove(self, attempt: Attempt) -> None:
        """Its folder is gone."""
        if self.attempts.get(attempt.key) is attempt:
            del self.attempts[attempt.key]
            self.owed.pop(attempt.key, None)
            self.working.pop(attempt.key, None)

    def held(self) -> list[Held]:
        """What a sync names."""
        return [attempt.held() for attempt in self.owed.values()]

    def launching(self) -> bool:
        """Whether something is on its way to run."""
        return any(
            attempt.state in (AttemptState.CLAIMED, AttemptState.STARTING)
            for attempt in self.working.values()
        )

    def is_full(self) -> bool:
        """Whether as many run as may, whatever the server knows of it."""
        return len(self.working) >= self.limit

    def free(self) -> int:
        """How many more could be taken. One that ended is counted until the server has its end: it
        knows of that slot then, before this agent could say so."""
        return max(0, self.limit - self.slots_in_use())

    def slots_in_use(self) -> int:
        """Attempts that count against the limit."""
        return len(self.owed) + len(self.leaving)

    def free_capacity(self) -> dict[str, float]:
        """What of the capacity could be taken; an attempt counts for as long as in :meth:`free`."""
        taken = [(attempt.successor or attempt.assignment).need for attempt in self.owed.values()]
        taken += [self.attempts[key].assignment.need for key in self.leaving]
        return self._less(taken)

    def allot(self, need: Mapping[str, float]) -> dict[str, list[int]] | None:
        """Devices for what is needed, those with the lowest numbers; None if it does not fit beside what runs.

        What has ended does not count, though the server may not know of it: nothing of it uses anything.
        """
        if not need:
            return {}
        if not fits(need, self._less([attempt.assignment.need for attempt in self.working.values()])):
            return None
        return {
            name: self._unused(name)[: int(amount)]
            for name, amount in need.items()
            if name not in DIVISIBLE and amount
        }

    def visible(self, attempt: Attempt) -> dict[str, list[int]]:
        """The devices that an attempt may use, of each kind that there is."""
        none: dict[str, list[int]] = {name: [] for name in self.capacity if name not in DIVISIBLE}
        return none | dict(attempt.devices)

    def in_use(self, name: str) -> set[int]:
        """Numbers of the devices of a kind that something runs on, or may come to."""
        return {number for attempt in self.working.values() for number in attempt.devices.get(name, ())}

    def _unused(self, name: str) -> list[int]:
        used = self.in_use(name)
        return [number for number in range(int(self.capacity[name])) if number not in used]

    def _less(self, taken: Iterable[Mapping[str, float]]) -> dict[str, float]:
        """The capacity without what is taken. It may have been made smaller than that."""
        left = dict(self.capacity)
        for need in taken:
            for name, amount in need.items():
                left[name] = left.get(name, 0.0) - amount
        return {name: max(0.0, left[name]) for name in self.capacity}
