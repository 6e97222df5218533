"""The audit: who did what, when and from where; written in the transaction that does it.

What is refused is written, too, apart from any change, many of one kind as one entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select

from shunter_work_pools.contracts.audit import AuditEntry
from shunter_work_pools.contracts.base import Json, Micros, micros, moment
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.storage.schema import audit
from shunter_work_pools.storage.store import BEHALF, Tx

#: Entries of one page, at the most.
PAGE_LIMIT = 1000
#: Entries that one transaction deletes at the most.
BATCH = 5_000
_WRITE = insert(audit)


@dataclass
class Deed:
    """Something that somebody asked for.

    Attributes:
        who, kind, address: who asks, what that is and from where.
        name: of a person who has a key of his own; empty: it is not known whom this is.
        action: name of the operation.
        target: what it is done to.
        status: of the answer.
        detail: what else a person should know; no secrets.
    """

    who: str
    kind: str
    address: str
    action: str
    target: str
    status: int
    name: str = ""
    detail: dict[str, Json] = field(default_factory=dict)
    _signed: bool = False

    def sign(self, tx: Tx) -> None:
        """Write it down, once."""
        if not self._signed:
            tx.conn.execute(_WRITE, [self.row(tx.now)])
            self._signed = True

    def row(self, at: Micros) -> dict[str, Any]:
        """As it is kept."""
        return {
            "at": at,
            "who": _kept(self.who, 200),
            "kind": self.kind,
            "address": _kept(self.address, 64),
            "action": self.action[:64],
            "target": _kept(self.target, 300),
            "status": self.status,
            "detail": self.detail or None,
        }


def _kept(text: str, most: int) -> str:
    """Without NUL, which Postgres does not keep."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:most]


def about(target: str, **detail: Json) -> None:
    """Say better what the request is about that is being served, than its path does."""
    deed = BEHALF.get()
    if deed is not None:
        deed.target = target
        deed.detail |= detail


def write(tx: Tx, deeds: Iterable[Deed]) -> None:
    """Write down what was refused."""
    tx.conn.execute(_WRITE, [deed.row(tx.now) for deed in deeds])


def entries(
    tx: Tx,
    *,
    who: str | None,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
    cursor: str | None,
    limit: int,
) -> tuple[list[AuditEntry], str | None]:
    """One page, newest first, and the cursor of the next.

    Raises:
        BadRequest: a limit out of bounds, or a cursor that no page gave.
    """
    if not 1 <= limit <= PAGE_LIMIT:
        raise BadRequest(f"limit is {limit}; it must be 1 to {PAGE_LIMIT}")
    statement = select(audit).order_by(audit.c.id.desc()).limit(limit + 1)
    if cursor is not None:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
            raise BadRequest("the cursor is none that a page gave", "Begin again without one.")
        statement = statement.where(audit.c.id < int(cursor))
    for column, value in ((audit.c.who, who), (audit.c.action, action)):
        if value is not None:
            statement = statement.where(column == value)
    if since is not None:
        statement = statement.where(audit.c.at >= micros(since))
    if until is not None:
        statement = statement.where(audit.c.at < micros(until))
    rows = tx.conn.execute(statement).all()
    page = [
        AuditEntry(
            id=row.id,
            at=moment(row.at),
            who=row.who,
            kind=row.kind,
            address=row.address,
            action=row.action,
            target=row.target,
            status=row.status,
            detail=row.detail,
        )
        for row in rows[:limit]
    ]
    return page, str(page[-1].id) if len(rows) > limit else None


def forget(tx: Tx, before: Micros) -> bool:
    """Delete the oldest entries of before a moment; whether there may be more of them."""
    old = select(audit.c.id).where(audit.c.at < before).order_by(audit.c.at).limit(BATCH)
    return tx.conn.execute(delete(audit).where(audit.c.id.in_(old))).rowcount == BATCH
