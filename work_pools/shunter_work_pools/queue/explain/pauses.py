"""What is paused that a waiting run belongs to; by whom, why and since when."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, tuple_

from shunter_work_pools.contracts.explanations import Code
from shunter_work_pools.queue.explain.reason import Reason, message, since, stamp
from shunter_work_pools.storage.schema import pauses
from shunter_work_pools.storage.store import Tx

#: Id under which the pause of the server is kept.
_SERVER = 0


def pause_reasons(tx: Tx, lane: Row[Any]) -> list[Reason]:
    """One for each thing that is paused.

    Args:
        lane: with a column for each obstacle that can be; one without a place has neither pool nor queue.
    """
    found = []
    if lane.server_paused:
        said = who_paused(tx, "server", _SERVER)
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

    def __init__(self, row: Row[Any] | None, now: int) -> None:
        self.words = ""
        self.details: dict[str, Any] = {}
        if row is None:
            return
        by = f" by {message(row.by)}" if row.by else ""
        why = f": {message(row.reason)}" if row.reason else ""
        self.words = f" since {since(row.at, now)}{by}{why}"
        self.details = {"by": row.by, "reason": row.reason, "paused_at": stamp(row.at)}


def who_paused(tx: Tx, kind: str, ref_id: int) -> Said:
    """What is known of the pause of one thing."""
    wanted = tuple_(pauses.c.kind, pauses.c.ref_id) == tuple_(kind, ref_id)
    return Said(tx.conn.execute(select(pauses).where(wanted)).one_or_none(), tx.now)
