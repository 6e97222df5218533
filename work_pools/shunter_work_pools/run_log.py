"""What the server's log says of runs: each event one line, told when it is committed.

What needs no attention is told at level debug: with thousands of runs a minute nobody reads that otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from shunter_work_pools.contracts.states import AttemptState, Cause
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

_LEVELS = {"lost": logging.WARNING, "found": logging.INFO}


def _level(row: dict[str, Any]) -> int:
    if (
        row["kind"] == AttemptState.CRASHED.value
        and (row["data"] or {}).get("cause") == Cause.AGENT_LOST.value
    ):
        return logging.WARNING  # its agent was given up
    return _LEVELS.get(row["kind"], logging.DEBUG)


def tell(events: Iterable[dict[str, Any]]) -> None:
    """Tell of what happened to runs; ``events`` are rows of events.

    But for grants: of these the engine tells, who knows the agent.
    """
    everything = log.is_enabled_for(logging.DEBUG)
    for row in events:
        if row["kind"] == AttemptState.CLAIMED.value:
            continue
        level = _level(row)
        if row["run_id"] is not None and (everything or level > logging.DEBUG):
            told = {
                "run": row["run_id"],
                "attempt": row["attempt"],
                "by": row["actor"],
                **(row["data"] or {}),
            }
            log.log(level, f"run {row['kind'].lower()}", **told)
