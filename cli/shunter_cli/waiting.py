"""Waiting for a run to change, by held requests: an answer comes the moment there is something new."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from uuid import UUID

from shunter_cli.faults import tell
from shunter_work_pools.contracts.errors import ServerUnreachable, Unavailable
from shunter_work_pools.contracts.states import RUN_ENDS

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.runs import Run

#: Longest time, in seconds, that one request is held.
HOLD = 10.0
#: Seconds between two tries to reach a server that was there before.
AGAIN = 1.0
#: Exit code when the time ran out, as ``timeout(1)`` has it.
TIMED_OUT = 124

_ENDS = {state.value for state in RUN_ENDS}


def has_ended(run: Run) -> bool:
    """Whether the run is at an end state."""
    return run.state in _ENDS


def waits(run: Run) -> bool:
    """Whether the run waits for its first or its next attempt."""
    return run.state in ("Scheduled", "Retrying")


def exit_code(run: Run) -> int:
    """0 if Completed, 1 at any other end, 124 if it has not ended."""
    if not has_ended(run):
        return TIMED_OUT
    return 0 if run.state == "Completed" else 1


def until_end(client: Client, run: str | UUID, limit: float | None) -> Run:
    """The run once it has ended, or as it is after ``limit`` seconds.

    A server that goes away meanwhile is waited for: it may be restarted, and the run goes on without it.

    Raises:
        ShunterError: there is no such run, or the server was not there to begin with.
    """
    deadline = None if limit is None else time.monotonic() + limit
    found = client.get_run(run)
    while not has_ended(found):
        left = HOLD if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return found
        found = next_state(client, found, min(HOLD, left), deadline)
    return found


def next_state(client: Client, known: Run, hold: float, deadline: float | None = None) -> Run:
    """The run when something is new, or after ``hold`` seconds; patient with a server that is away."""
    told = False
    while True:
        try:
            return client.get_run(known.id, wait=hold, seen=(known.state, known.attempt_count))
        except (ServerUnreachable, Unavailable) as exc:
            if not told:
                tell(f"{exc.detail}; waiting for it to come back")
                told = True
            left = AGAIN if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return known
            time.sleep(min(AGAIN, left))
