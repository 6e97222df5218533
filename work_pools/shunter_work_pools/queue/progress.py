"""What a run says of itself while it is at work: how far it is, and its result.

All of it is kept with the lease of its attempt, so it ends with that.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, select, update

from shunter_work_pools.contracts.attempts import OwnAttempt, Progress, ToldProgress
from shunter_work_pools.contracts.base import Json, moment
from shunter_work_pools.contracts.deployments import RESULT_LIMIT
from shunter_work_pools.contracts.errors import BadRequest, TooLarge
from shunter_work_pools.queue.parameters import json_size
from shunter_work_pools.storage.schema import deployments, leases
from shunter_work_pools.storage.store import Tx

_LIVE = select(leases.c.run_id).where(
    leases.c.run_id == bindparam("run"), leases.c.attempt == bindparam("number")
)


def is_live(tx: Tx, run_id: UUID, attempt: int) -> bool:
    """Whether an attempt has a lease, whoever holds it."""
    return tx.conn.scalar(_LIVE, {"run": run_id, "number": attempt}) is not None


def own_attempt(tx: Tx, run_id: UUID, attempt: int) -> OwnAttempt | None:
    """What an attempt is told of itself; None: it has no lease any more."""
    row = tx.conn.execute(
        select(leases, deployments.c.name)
        .join(deployments, deployments.c.id == leases.c.deployment_id)
        .where(leases.c.run_id == run_id, leases.c.attempt == attempt)
    ).one_or_none()
    if row is None:
        return None
    return OwnAttempt(
        run=run_id,
        attempt=attempt,
        deployment=row.name,
        revision=row.revision,
        state=row.state,
        stopping=row.cancelling,
        progress=told_progress(row.progress),
    )


def set_progress(tx: Tx, run_id: UUID, attempt: int, progress: Progress) -> bool:
    """Keep how far an attempt says it is; whether it has a lease still."""
    note = progress.note.replace("\0", "\N{REPLACEMENT CHARACTER}")
    kept = {"percent": progress.percent, "note": note, "at": tx.now}
    return _keep(tx, run_id, attempt, progress=kept)


def set_result(tx: Tx, run_id: UUID, attempt: int, value: Json) -> bool:
    """Keep the result that an attempt gives; whether it has a lease still.

    Raises:
        BadRequest: it cannot be kept.
        TooLarge: it has more than ``RESULT_LIMIT`` bytes.
    """
    try:
        size = json_size(value)
    except ValueError as exc:
        raise BadRequest(f"the result is not JSON that can be kept: {exc}") from exc
    if size > RESULT_LIMIT:
        raise TooLarge(f"the result has {size} bytes; it may have {RESULT_LIMIT}", "Leave a reference to it.")
    return _keep(tx, run_id, attempt, result=value)


def _keep(tx: Tx, run_id: UUID, attempt: int, **values: Any) -> bool:
    statement = update(leases).where(leases.c.run_id == run_id, leases.c.attempt == attempt).values(**values)
    if not tx.conn.execute(statement).rowcount:
        return False
    tx.changes.runs.add(run_id)
    return True


def told_progress(kept: Any) -> ToldProgress | None:
    """As people are shown it."""
    if kept is None:
        return None
    return ToldProgress(percent=kept["percent"], note=kept["note"], at=moment(kept["at"]))
