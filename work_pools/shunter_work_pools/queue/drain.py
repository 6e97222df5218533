"""Drain: an agent is told to take nothing new, and to end once nothing is left."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.errors import Conflict
from shunter_work_pools.queue.sync import agent_row
from shunter_work_pools.storage.schema import agents
from shunter_work_pools.storage.store import Tx


def has_stopped(row: Any, holds: int) -> bool:
    """Whether an agent that is not heard of any more has ended as it was to: it said last that it drains, and
    had nothing left.

    Args:
        row: of agents.
        holds: its live leases.
    """
    return bool(row.draining) and not holds


def drain(tx: Tx, name: str, alive_after: Micros) -> None:
    """Tell it to this life of an agent: the next one, by a start anew, takes runs again. Twice is as good as once.

    Args:
        alive_after: agents heard of since this moment count as alive.

    Raises:
        NotFound: there is none.
        Conflict: it is lost: nobody would hear it.
    """
    locked = select(agents).where(agents.c.id == agent_row(tx, name).id).with_for_update()
    agent = tx.conn.execute(locked).one()
    if agent.last_seen_at <= alive_after:
        raise Conflict(
            f"agent {name!r} is lost: it cannot be told anything",
            f"It is given nothing new meanwhile. If it is gone for good: `shunter agent remove {name}`.",
        )
    tx.conn.execute(update(agents).where(agents.c.id == agent.id).values(drain_session=agent.session))
    tx.changes.agents.add(agent.id)
