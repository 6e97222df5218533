"""What a run says of itself while it is at work: how far it is, and its result."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import bindparam, select

from shunter_work_pools.storage.schema import leases
from shunter_work_pools.storage.store import Tx

_LIVE = select(leases.c.run_id).where(
    leases.c.run_id == bindparam("run"), leases.c.attempt == bindparam("number")
)


def is_live(tx: Tx, run_id: UUID, attempt: int) -> bool:
    """Whether an attempt has a lease, whoever holds it."""
    return tx.conn.scalar(_LIVE, {"run": run_id, "number": attempt}) is not None
