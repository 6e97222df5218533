"""Events: what happened to a run, written in the same transaction as the change itself."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import insert

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.storage.schema import events
from shunter_work_pools.storage.store import Tx

_INSERT = insert(events)


def event_row(
    run_id: UUID | None,
    kind: str,
    actor: Actor,
    at: Micros,
    attempt: int | None = None,
    deployment_id: int | None = None,
    **data: Any,
) -> dict[str, Any]:
    """One row of ``events``."""
    return {
        "run_id": run_id,
        "deployment_id": deployment_id,
        "kind": kind,
        "actor": actor.value,
        "at": at,
        "attempt": attempt,
        "data": data or None,
    }


def record(tx: Tx, rows: list[dict[str, Any]]) -> None:
    """Write events, oldest first; what a person did with the name of that person, if it is known."""
    if rows:
        if tx.behalf is not None and tx.behalf.name:
            for row in rows:
                if row["actor"] == Actor.USER.value:
                    row["data"] = (row["data"] or {}) | {"by": tx.behalf.name}
        tx.conn.execute(_INSERT, rows)
        tx.changes.events += rows
