"""What is paused that a waiting run belongs to; by whom, why and since when."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from shunter_work_pools.contracts.base import Micros, micros
from shunter_work_pools.contracts.explanations import Code
from shunter_work_pools.contracts.pauses import Pause
from shunter_work_pools.queue.explain.reason import Reason, at_utc, message, since
from shunter_work_pools.queue.pauses import SERVER, Kind, known
from shunter_work_pools.storage.store import Tx


def pause_reasons(tx: Tx, lane: Row[Any]) -> list[Reason]:
    """One for each thing that is paused.

    Args:
        lane: with a column for each obstacle that can be, or what would be one; one without a place has neither pool nor queue.
    """
    found = []
    if lane.server_paused:
        said = who_paused(tx, "server", SERVER)
        found.append(
            Reason(
                Code.SERVER_PAUSED,
                f"the server hands out no runs: maintenance{said.words}",
                "Let it go on: `shunter server resume`.",
                said.details,
            )
        )
    if getattr(lane, "pool_paused", False):
        said = who_paused(tx, "pool", lane.pool_id)
        found.append(
            Reason(
                Code.POOL_PAUSED,
                f"pool {lane.pool} is paused{said.words}",
                f"Let it go on: `shunter pool resume {lane.pool}`.",
                {"pool": lane.pool} | said.details,
            )
        )
    if getattr(lane, "queue_paused", False):
        said = who_paused(tx, "queue", lane.queue_id)
        found.append(
            Reason(
                Code.QUEUE_PAUSED,
                f"queue {lane.queue} of pool {lane.pool} is paused{said.words}",
                f"Let it go on: `shunter queue resume {lane.pool} {lane.queue}`.",
                {"pool": lane.pool, "queue": lane.queue} | said.details,
            )
        )
    if lane.deployment_paused:
        said = who_paused(tx, "deployment", lane.deployment_id)
        found.append(
            Reason(
                Code.DEPLOYMENT_PAUSED,
                f"deployment {lane.deployment} is paused{said.words}",
                f"Let it go on: `shunter deployment resume {lane.deployment}`.",
                {"deployment": lane.deployment} | said.details,
            )
        )
    return found


class Said:
    """What is known of a pause.

    Attributes:
        words: to follow "is paused": `` since ... by ...: why``; empty if nothing is known.
        details: the same for programs.
    """

    def __init__(self, pause: Pause | None, now: Micros) -> None:
        self.words = ""
        self.details: dict[str, Any] = {}
        if pause is None:
            return
        by = f" by {message(pause.by)}" if pause.by else ""
        why = f": {message(pause.reason)}" if pause.reason else ""
        self.words = f" since {since(micros(pause.at), now)}{by}{why}"
        self.details = {"by": pause.by, "reason": pause.reason, "paused_at": at_utc(micros(pause.at))}


def who_paused(tx: Tx, kind: Kind, ref_id: int) -> Said:
    """What is known of the pause of one thing."""
    return Said(known(tx, kind, [ref_id]).get(ref_id), tx.now)
