"""Keys of people, credentials of agents and enrolment tokens: made, found, revoked.

Of a token only the hash is kept. One that has 256 bits of chance needs no slow hash: nobody can try them out.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, or_, select, text, update

from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.errors import Conflict, NotFound
from shunter_work_pools.contracts.identities import PREFIXES, Key, Kind, Role
from shunter_work_pools.storage.schema import keys
from shunter_work_pools.storage.store import Tx

_FIND = select(keys).where(keys.c.hash == bindparam("hash"))


def find(tx: Tx, hexdigest: str) -> Row[Any] | None:
    """The row of a token's SHA-256, in hex; whether it holds is for the caller to see."""
    return tx.conn.execute(_FIND, {"hash": hexdigest}).one_or_none()


def hash_of(token: str) -> str:
    """As it is kept."""
    return sha256(token.encode()).hexdigest()


def create(
    tx: Tx,
    kind: Kind,
    name: str,
    by: str,
    *,
    role: Role | None = None,
    pools: list[str] | None = None,
    manage_pools: bool = False,
    uses: int | None = None,
    expires_in: float | None = None,
    invitation: str | None = None,
    beside: bool = False,
) -> tuple[Key, str]:
    """Make a token, and what is kept of it; the token is never seen again.

    Args:
        by: who makes it.
        uses: of an enrolment.
        expires_in: seconds.
        invitation: by which an agent came.
        beside: another one of this kind and name may hold, too: the one that this is to replace.

    Raises:
        Conflict: one of this kind and name holds already.
    """
    hold_name(tx, kind, name)
    if not beside and tx.conn.execute(select(keys.c.id).where(*holding(tx, kind, name))).first():
        raise Conflict(
            f"there is a key of {_WORD[kind]} {name!r} already", "Revoke it first, or take another name."
        )
    token = PREFIXES[kind] + secrets.token_urlsafe(32)
    row = tx.conn.execute(
        insert(keys)
        .values(
            kind=kind.value,
            name=name,
            hash=hash_of(token),
            role=None if role is None else role.value,
            pools=pools or [],
            manage_pools=manage_pools,
            uses_left=uses,
            created_at=tx.now,
            created_by=by,
            expires_at=None if expires_in is None else tx.now + round(expires_in * 1_000_000),
            invitation=invitation,
        )
        .returning(keys)
    ).one()
    return view(row), token


_WORD = {
    Kind.PERSON: "a person named",
    Kind.AGENT: "agent",
    Kind.ENROLMENT: "the invitation",
    Kind.ATTEMPT: "attempt",  # none is kept of those
}


def hold_name(tx: Tx, kind: Kind, name: str) -> None:
    """Two that make something of one kind and name wait for each other, until this transaction ends."""
    if tx.postgres:
        lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 2))")
        tx.conn.execute(lock, {"name": f"{kind}:{name}"})


def holding(tx: Tx, kind: Kind, name: str) -> tuple[Any, ...]:
    """Conditions: one of that kind and name that holds."""
    return (
        keys.c.kind == kind.value,
        keys.c.name == name,
        keys.c.revoked_at.is_(None),
        or_(keys.c.expires_at.is_(None), keys.c.expires_at > tx.now),
        or_(keys.c.uses_left.is_(None), keys.c.uses_left > 0),
    )


def list_keys(tx: Tx, *, all_of_them: bool = False) -> list[Key]:
    """Keys by kind and name; without ``all_of_them`` those that hold."""
    statement = select(keys).order_by(keys.c.kind.desc(), keys.c.name, keys.c.id)
    found = [view(row) for row in tx.conn.execute(statement)]
    now = moment(tx.now)
    return [
        key
        for key in found
        if all_of_them
        or (
            key.revoked_at is None and (key.expires_at is None or key.expires_at > now) and key.uses_left != 0
        )
    ]


def revoke(tx: Tx, kind: Kind, name: str) -> list[Key]:
    """End all tokens of a kind and name, with effect at once.

    Raises:
        NotFound: none of them holds.
    """
    rows = tx.conn.execute(
        update(keys).where(*holding(tx, kind, name)).values(revoked_at=tx.now).returning(keys)
    ).all()
    if not rows:
        raise NotFound(f"there is no key of {_WORD[kind]} {name!r} that holds", "See `shunter key list`.")
    tx.changes.revoked.update(row.id for row in rows)
    return [view(row) for row in rows]


def revoked_since(tx: Tx, since: Micros) -> set[int]:
    """Keys that were revoked from a moment on."""
    return set(tx.conn.scalars(select(keys.c.id).where(keys.c.revoked_at >= since)))


def note_used(tx: Tx, used: Mapping[int, tuple[Micros, str]]) -> None:
    """Write down when keys were last used, and from where.

    Args:
        used: id -> moment and address.
    """
    statement = (
        update(keys)
        .where(keys.c.id == bindparam("key"))
        .values(last_used_at=bindparam("at"), last_used_from=bindparam("address"))
    )
    rows = [{"key": key, "at": at, "address": address[:64]} for key, (at, address) in sorted(used.items())]
    tx.conn.execute(statement, rows)


def forget_ended(tx: Tx, before: Micros) -> None:
    """Delete what ended before a moment. The names that service accounts took stay: those rows have no end by
    themselves, and one that was revoked keeps its account out."""
    over = or_(keys.c.expires_at < before, keys.c.revoked_at < before)
    tx.conn.execute(
        delete(keys).where(over, or_(keys.c.kind != Kind.AGENT.value, keys.c.expires_at.is_not(None)))
    )


def view(row: Row[Any]) -> Key:
    """A row, for people."""
    found = row._mapping

    def at(name: str) -> datetime | None:
        return None if found[name] is None else moment(found[name])

    return Key.model_validate(
        {
            "kind": found["kind"],
            "name": found["name"],
            "role": found["role"],
            "pools": found["pools"],
            "manage_pools": found["manage_pools"],
            "uses_left": found["uses_left"],
            "created_at": at("created_at"),
            "created_by": found["created_by"],
            "expires_at": at("expires_at"),
            "revoked_at": at("revoked_at"),
            "last_used_at": at("last_used_at"),
            "last_used_from": found["last_used_from"],
        }
    )
