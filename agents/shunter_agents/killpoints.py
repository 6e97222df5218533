"""Named instants at which a test may kill the daemon with SIGKILL.

Set ``SHUNTER_TEST_KILL_AT`` to one of :data:`POINTS`, or to ``POINT#N`` for the N-th time there. Unset, as everywhere outside tests, a point is a
call of an empty function.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: In the order in which a run passes them.
POINTS = (
    "after-sync-answer",
    "after-folder-made",
    "after-assignment-written",
    "after-starting-journaled",
    "after-launch-requested",
    "after-started",
    "after-running-journaled",
    "after-running-reported",
    "after-exit",
    "after-end-journaled",
    "after-end-reported",
    "before-folder-removed",
    "after-folder-renamed",
    "before-journal-cleared",
    "after-folder-recycled",
)

#: While output makes room on the disk; most runs never pass them.
RELIEF_POINTS = ("before-gap-journaled", "after-gap-journaled", "while-hole-punched", "after-hole-punched")

#: While the agent's credential is renewed.
RENEWAL_POINTS = ("after-next-token-written", "before-credential-replaced", "after-credential-replaced")
#: While it joins.
JOIN_POINTS = ("after-join-drafted", "after-join-answered", "after-join-settled")

#: While an agent that goes leaves its runs to others.
LEAVE_POINTS = ("after-work-left", "after-leave-answered")

#: While the journal of a flow is brought to the server.
JOURNAL_POINTS = ("after-results-taken", "after-journal-taken", "after-journal-brought")
#: While hooks of a crashed flow are called.
HOOK_POINTS = ("after-hooks-started", "after-hooks-told")

_ALL = POINTS + RELIEF_POINTS + RENEWAL_POINTS + JOIN_POINTS + LEAVE_POINTS + JOURNAL_POINTS + HOOK_POINTS
_AT = os.environ.get("SHUNTER_TEST_KILL_AT")

if _AT is None:

    def reached(point: str) -> None:
        """Nothing, outside tests."""

    async def requested(point: str, work: Coroutine[Any, Any, T]) -> T:
        """Just the work, outside tests."""
        return await work

else:
    _POINT, _, _time = _AT.partition("#")
    _times = itertools.count(1 - int(_time or 1))
    if _POINT not in _ALL:
        raise ValueError(f"SHUNTER_TEST_KILL_AT={_AT} is not one of {', '.join(_ALL)}")

    def reached(point: str) -> None:
        """Die if ``point`` is the one to die at, and the time has come."""
        if point == _POINT and next(_times) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async def requested(point: str, work: Coroutine[Any, Any, T]) -> T:
        """Die while ``work`` is under way, if ``point`` is the one to die at."""
        if point != _POINT:
            return await work
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=0.002)
        reached(point)
        return await task
