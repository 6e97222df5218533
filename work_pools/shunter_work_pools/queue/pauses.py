"""Who paused what, and why: kept beside what is paused, in the transaction that pauses it.

That something is paused stands where claims and schedules look. Only maintenance, the pause of the whole server,
is nothing but its row here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from sqlalchemy import delete, insert, select

from shunter_work_pools.contracts.base import moment
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.contracts.pauses import Pause, PausePatch
from shunter_work_pools.storage.schema import pauses
from shunter_work_pools.storage.store import Tx

Kind = Literal["deployment", "schedule", "queue", "pool", "agent", "server"]

#: The id under which the pause of the server itself is kept.
SERVER = 0


def wanted(patch: PausePatch) -> bool | None:
    """Whether a patch pauses or resumes; None: neither.

    Raises:
        BadRequest: ``paused`` is null, or there is a reason for nothing.
    """
    if "paused" in patch.model_fields_set and patch.paused is None:
        raise BadRequest("paused cannot be null", "Leave it out to keep it as it is.")
    if patch.reason and patch.paused is None:
        raise BadRequest("there is a reason, but nothing to pause or resume", "Send paused with it.")
    return patch.paused


def note(tx: Tx, kind: Kind, ref_id: int, patch: PausePatch) -> bool:
    """Keep who pauses something, and why, or forget it as it is resumed; whether that is news.

    A name that is known goes before the one that is claimed. What is paused already takes a new reason, with who gives it and when. Without one it stays as it is.
    """
    if patch.paused is None:
        return False
    there = tx.conn.scalar(select(pauses.c.ref_id).where(pauses.c.kind == kind, pauses.c.ref_id == ref_id))
    if patch.paused and there is not None and not patch.reason:
        return False
    forget(tx, kind, [ref_id])
    if patch.paused:
        by = tx.behalf.name if tx.behalf is not None and tx.behalf.name else patch.by
        row = {"kind": kind, "ref_id": ref_id, "by": by, "reason": patch.reason, "at": tx.now}
        tx.conn.execute(insert(pauses).values(row))
    return patch.paused or there is not None


def forget(tx: Tx, kind: Kind, ref_ids: Collection[int]) -> None:
    """What these were paused for is of no interest any more: they are resumed, or gone."""
    if ref_ids:
        tx.conn.execute(delete(pauses).where(pauses.c.kind == kind, pauses.c.ref_id.in_(ref_ids)))


def known(tx: Tx, kind: Kind, ref_ids: Collection[int] | None = None) -> dict[int, Pause]:
    """Who paused what of a kind, by id; None: all that is paused of it."""
    if ref_ids is not None and not ref_ids:
        return {}
    statement = select(pauses).where(pauses.c.kind == kind)
    if ref_ids is not None:
        statement = statement.where(pauses.c.ref_id.in_(ref_ids))
    return {
        row.ref_id: Pause(by=row.by, reason=row.reason, at=moment(row.at))
        for row in tx.conn.execute(statement)
    }
