"""Everything the agent owns, and how much more it could take."""

from __future__ import annotations

from collections.abc import Callable

from shunter_agents.attempt import Attempt, Key
from shunter_agents.state_folder import StateFolder
from shunter_work_pools.contracts.agents import Held
from shunter_work_pools.contracts.states import AttemptState


class Holdings:
    """The attempts of this agent.

    Attributes:
        attempts: all that have a folder.
        owed: those that a sync must name: ours, and the server does not have their end.
        working: those of which something runs, or may come to run.
        leaving: those of them that are not ours any more: the server does not know that they run.
        on_left: called when one of ``leaving`` has stopped.
    """

    def __init__(self, folder: StateFolder, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.attempts: dict[Key, Attempt] = {}
        self.owed: dict[Key, Attempt] = {}
        self.working: dict[Key, Attempt] = {}
        self.leaving: set[Key] = set()
        self.on_left: Callable[[], None] = lambda: None

    def add(self, attempt: Attempt) -> None:
        """It is ours."""
        self.attempts[attempt.key] = attempt
        if not attempt.end_acked:
            self.owed[attempt.key] = attempt
        if not attempt.ended:
            self.working[attempt.key] = attempt

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

    def free(self) -> int:
        """How many more could be taken. One that ended is counted until the server has its end: it
        knows of that slot then, before this agent could say so."""
        return max(0, self.limit - len(self.owed) - len(self.leaving))
