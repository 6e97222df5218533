"""Agents that join: invitations, credentials and their renewal, and names that belong to service accounts.

A name belongs to one credential, or to one service account, and is free again once that was revoked, has expired, or the
agent was removed. Of agents that came otherwise (by an admin's token) it is free while none is alive, for who may serve
what that one did.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from sqlalchemy import Row, String, cast, func, insert, literal, select, update

from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.errors import Conflict, NameInUse, Unauthenticated
from shunter_work_pools.contracts.identities import (
    Credential,
    CredentialRequest,
    InvitationRequest,
    JoinRequest,
    Kind,
    NewKey,
)
from shunter_work_pools.queue.catalog import pool_row
from shunter_work_pools.queue.keys import create, hold_name, holding
from shunter_work_pools.storage.schema import agents, keys, leases
from shunter_work_pools.storage.schema import pools as pool_table
from shunter_work_pools.storage.store import Tx

#: The part of a credential's time after which its agent asks for a new one.
RENEWED_AT = 1 / 3
#: How the hash of a service account's row begins, which no token has.
_BOUND = "sa:"
#: The same of one that is nobody's any more.
_GONE = "gone:"


def invite(tx: Tx, request: InvitationRequest, by: str) -> NewKey:
    """Make an enrolment token.

    Raises:
        NotFound: there is no such pool.
        Conflict: an invitation of that name holds.
    """
    pool_row(tx, request.pool)
    key, token = create(
        tx,
        Kind.ENROLMENT,
        request.name or f"{request.pool[:90]}-{secrets.token_hex(4)}",
        by,
        pools=[request.pool],
        manage_pools=request.manage_pools,
        uses=request.uses,
        expires_in=request.expires_in,
    )
    return NewKey(key=key, token=token)


def join(tx: Tx, invitation: int, request: JoinRequest, alive_after: Micros, holds_for: float) -> Credential:
    """Make the credential of an agent, and spend one use of the invitation. The same again is answered alike.

    Args:
        invitation: id of its row.
        alive_after: agents that were heard of since are alive.
        holds_for: seconds for which the credential holds.

    Raises:
        Unauthenticated: the invitation holds no more.
        NameInUse, Conflict: the name is not free.
    """
    by = tx.conn.execute(select(keys).where(keys.c.id == invitation).with_for_update()).one()
    if by.revoked_at is not None:
        raise Unauthenticated(f"the invitation {by.name!r} was revoked", "Ask for another one.")
    hold_name(tx, Kind.AGENT, request.name)
    known = _same(tx, request.name, request.token_hash)
    if known is not None:
        if known.pools != by.pools:
            raise Conflict(
                f"agent {request.name!r} has joined for {', '.join(known.pools)} already",
                f"`shunter agent remove {request.name}` lets it join anew.",
            )
        return _credential(tx, known, holds_for)
    if by.uses_left < 1:
        raise Unauthenticated(f"the invitation {by.name!r} is used up", "Ask for another one.")
    _check_free(tx, request.name, by.pools, alive_after)
    tx.conn.execute(update(keys).where(keys.c.id == by.id).values(uses_left=by.uses_left - 1))
    return _credential(tx, _insert(tx, request.name, request.token_hash, by, by.name, holds_for), holds_for)


def renew(tx: Tx, key: int | None, request: CredentialRequest, holds_for: float) -> Credential:
    """Give an agent a further token, which replaces its own with its first use. The same again is answered alike.

    Args:
        key: id of the row of the token that it showed.

    Raises:
        Unauthenticated: that one holds no more.
        Conflict: it has no credential of its own, or the token is somebody's.
    """
    own = tx.conn.execute(select(keys).where(keys.c.id == key)).one_or_none() if key is not None else None
    if own is None or own.kind != Kind.AGENT or own.hash.startswith(_BOUND):
        raise Conflict(
            "only the credential of an agent that joined is renewed", "`shunter agent join` makes one."
        )
    hold_name(tx, Kind.AGENT, own.name)
    own = tx.conn.execute(select(keys).where(keys.c.id == own.id)).one()
    if own.revoked_at is not None:
        raise Unauthenticated(f"the token of {own.name!r} was revoked", "")
    known = _same(tx, own.name, request.token_hash)
    if known is None:
        # Former tries whose token the agent has lost with its disk: nobody is to have them.
        unused = (keys.c.last_used_at.is_(None), keys.c.id != own.id)
        _end(tx, [*holding(tx, Kind.AGENT, own.name), *unused])
        known = _insert(tx, own.name, request.token_hash, own, own.invitation, holds_for)
    return _credential(tx, known, holds_for)


def replaced(tx: Tx, row: Row[Any]) -> bool:
    """Whether the token of a row was replaced by a newer one of its agent, that holds."""
    newer = select(keys.c.id).where(*holding(tx, Kind.AGENT, row.name), keys.c.id > row.id)
    return row.kind == Kind.AGENT and tx.conn.execute(newer.limit(1)).first() is not None


def first_use(tx: Tx, key: int, address: str) -> None:
    """A credential is used for the first time: those before it end."""
    row = tx.conn.execute(select(keys).where(keys.c.id == key)).one()
    hold_name(tx, Kind.AGENT, row.name)
    used = update(keys).where(keys.c.id == key, keys.c.last_used_at.is_(None))
    if tx.conn.execute(used.values(last_used_at=tx.now, last_used_from=address[:64])).rowcount:
        _end(tx, [*holding(tx, Kind.AGENT, row.name), keys.c.id < key])


def bind(
    tx: Tx, name: str, account: str, pools: Iterable[str], manage_pools: bool, alive_after: Micros
) -> int:
    """The row that says that an agent's name belongs to a service account; the first who comes has it.

    Raises:
        Unauthenticated: it was revoked.
        NameInUse, Conflict: the name is not free.
    """
    mark = _BOUND + sha256(f"{account}\n{name}".encode()).hexdigest()[: 64 - len(_BOUND)]
    hold_name(tx, Kind.AGENT, name)
    row = tx.conn.execute(select(keys).where(keys.c.hash == mark)).one_or_none()
    rights: dict[str, Any] = {"pools": sorted(pools), "manage_pools": manage_pools}
    if row is None:
        _check_free(tx, name, rights["pools"], alive_after)
        values = {"kind": Kind.AGENT.value, "name": name, "hash": mark, "created_at": tx.now, **rights}
        made = (
            insert(keys).values(**values, created_by=f"service account {account}"[:200]).returning(keys.c.id)
        )
        return int(tx.conn.execute(made).scalar_one())
    if row.revoked_at is not None:
        raise Unauthenticated(
            f"agent {name!r} of the service account {account} was revoked",
            f"`shunter agent remove {name}` lets it come back.",
        )
    if {one: getattr(row, one) for one in rights} != rights:
        tx.conn.execute(update(keys).where(keys.c.id == row.id).values(**rights))
    return int(row.id)


def forget(tx: Tx, name: str) -> None:
    """An agent is removed: what it had to show holds no more, and its name is free."""
    _end(tx, holding(tx, Kind.AGENT, name))
    # Not deleted: other servers of the database look for what was revoked.
    bound = (keys.c.kind == Kind.AGENT.value, keys.c.name == name, keys.c.hash.startswith(_BOUND))
    tx.conn.execute(update(keys).where(*bound).values(hash=literal(_GONE).concat(cast(keys.c.id, String))))


def _same(tx: Tx, name: str, token_hash: str) -> Row[Any] | None:
    """The row of a token that this agent has already made known; None: nobody has it.

    Raises:
        Conflict: it is somebody else's, or holds no more.
    """
    known = tx.conn.execute(select(keys).where(keys.c.hash == token_hash)).one_or_none()
    if known is None:
        return None
    expired = known.expires_at is not None and known.expires_at <= tx.now
    if known.kind != Kind.AGENT or known.name != name or known.revoked_at is not None or expired:
        raise Conflict("the token is taken, or holds no more", "Make another one.")
    return known


def _check_free(tx: Tx, name: str, pools: Iterable[str], alive_after: Micros) -> None:
    if tx.conn.execute(select(keys.c.id).where(*holding(tx, Kind.AGENT, name))).first() is not None:
        raise NameInUse(
            f"an agent named {name!r} has joined already",
            f"Take another name with --name. If that agent is gone for good: `shunter key revoke {name}`.",
        )
    remedy = f"Take another name with --name. If that agent is gone for good: `shunter agent remove {name}`."
    row = tx.conn.execute(
        select(agents.c.id, agents.c.pools, agents.c.last_seen_at).where(agents.c.name == name)
    ).one_or_none()
    if row is None:
        return
    revoked = select(func.max(keys.c.revoked_at)).where(keys.c.kind == Kind.AGENT.value, keys.c.name == name)
    # What was revoked may still run, but is not heard of any more.
    if row.last_seen_at > max(alive_after, tx.conn.scalar(revoked) or 0):
        raise NameInUse(f"an agent named {name!r} is alive", remedy)
    held = select(pool_table.c.name).join(leases, leases.c.pool_id == pool_table.c.id)
    held = held.where(leases.c.agent_id == row.id).distinct()
    others = sorted({*row.pools, *tx.conn.scalars(held)} - set(pools))
    if others:  # what it holds of them would be told by somebody who may not serve them
        raise Conflict(f"an agent named {name!r} served {', '.join(others)}, too", remedy)


def _insert(
    tx: Tx, name: str, token_hash: str, like: Row[Any], invitation: str | None, holds_for: float
) -> Row[Any]:
    values = {
        "kind": Kind.AGENT.value,
        "name": name,
        "hash": token_hash,
        "pools": like.pools,
        "manage_pools": like.manage_pools,
        "created_at": tx.now,
        "created_by": f"invitation {invitation}"[:200],
        "expires_at": tx.now + round(holds_for * 1_000_000),
        "invitation": invitation,
    }
    return tx.conn.execute(insert(keys).values(**values).returning(keys)).one()


def _credential(tx: Tx, row: Row[Any], holds_for: float) -> Credential:
    return Credential(
        agent=row.name, pools=row.pools, expires_at=moment(row.expires_at), renew_after=holds_for * RENEWED_AT
    )


def _end(tx: Tx, conditions: Iterable[Any]) -> None:
    ended = update(keys).where(*conditions).values(revoked_at=tx.now).returning(keys.c.id)
    tx.changes.revoked.update(tx.conn.scalars(ended))
