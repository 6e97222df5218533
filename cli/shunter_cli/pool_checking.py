"""Following the check of a pool: each state as it comes, why it waits while it does, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shunter_cli.faults import tell
from shunter_cli.waiting import AGAIN, HOLD, TIMED_OUT
from shunter_work_pools.contracts.errors import ServerUnreachable, Unavailable

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.pool_checks import PoolCheck

#: Seconds after which it is asked again why a check waits: that changes without a word.
_WHY_EVERY = 2.0


def follow(client: Client, pool: str, limit: float, say: Callable[[str], None]) -> PoolCheck:
    """The check of a pool once it has ended, or as it is after ``limit`` seconds.

    A server that goes away meanwhile is waited for.

    Args:
        say: is told of each state and of each new reason, a line at a time.

    Raises:
        ShunterError: there is no such pool, or the server was not there to begin with.
    """
    deadline = time.monotonic() + limit
    found = client.check_pool(pool)
    say(f"run {found.run} of {found.deployment}{'' if found.created else ', which was under way already'}")
    told = ""
    while True:
        line = f"{found.state}: {found.sentence}"
        if line != told:
            say(line)
            told = line
        left = deadline - time.monotonic()
        if found.ended or left <= 0:
            return found
        found = _next(client, found, min(HOLD if found.agent else _WHY_EVERY, left), deadline)


def exit_code(found: PoolCheck) -> int:
    """0 if it is Completed, 1 at any other end, 124 if it has not ended."""
    if found.state == "Completed":
        return 0
    return 1 if found.ended else TIMED_OUT


def _next(client: Client, known: PoolCheck, hold: float, deadline: float) -> PoolCheck:
    """The check when something is new, or after ``hold`` seconds; patient with a server that is away."""
    away = False
    while True:
        try:
            return client.get_pool_check(known.pool, known.run, wait=hold, seen=known.mark)
        except (ServerUnreachable, Unavailable) as exc:
            if not away:
                tell(f"{exc.detail}; waiting for it to come back")
                away = True
            left = deadline - time.monotonic()
            if left <= 0:
                return known
            time.sleep(min(AGAIN, left))
