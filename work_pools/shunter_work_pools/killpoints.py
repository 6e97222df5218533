"""Named instants at which a test may kill the server with SIGKILL: what was committed has not been answered yet.

Set ``SHUNTER_TEST_KILL_SERVER_AT`` to one of :data:`POINTS`. Unset, as everywhere outside tests, a point is a
call of an empty function.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "after-run-created",
    "after-claim-committed",
    "after-reports-committed",
    "after-release-committed",
    "after-leave-committed",
    "after-logs-appended",
    "after-journals-committed",
    "after-cancel-committed",
    "after-drain-committed",
    "after-handover-committed",
    "after-join-committed",
    "after-renewal-committed",
)

_AT = os.environ.get("SHUNTER_TEST_KILL_SERVER_AT")

if _AT is None:

    def reached(point: str) -> None:
        """Nothing, outside tests."""

else:
    if _AT not in POINTS:
        raise ValueError(f"SHUNTER_TEST_KILL_SERVER_AT={_AT} is not one of {', '.join(POINTS)}")

    def reached(point: str) -> None:
        """Die if ``point`` is the one to die at."""
        if point == _AT:
            os.kill(os.getpid(), signal.SIGKILL)
