"""Which limits are reached that a waiting run is under, and by which runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select

from shunter_work_pools.contracts.durations import exactly
from shunter_work_pools.contracts.explanations import Code
from shunter_work_pools.queue.explain.reason import Reason, at_utc, lasting, names, short, until
from shunter_work_pools.storage.schema import (
    deployments,
    lease_limits,
    leases,
    limits,
)
from shunter_work_pools.storage.store import Tx

#: Runs that are named of those that hold places.
_SHOWN = 3


def limit_reasons(tx: Tx, lane: Row[Any]) -> list[Reason]:
    """One for each limit that is reached.

    Args:
        lane: with a column for each obstacle, or what would be one.
    """
    found = []
    if lane.pool_full:
        found.append(
            _full(
                tx,
                Code.POOL_FULL,
                f"pool {lane.pool}",
                lane.pool_limit,
                leases.c.pool_id == lane.pool_id,
                lambda more: f"shunter pool update {lane.pool} --limit {more}",
            )
        )
    if lane.queue_full:
        found.append(
            _full(
                tx,
                Code.QUEUE_FULL,
                f"queue {lane.queue} of pool {lane.pool}",
                lane.queue_limit,
                leases.c.queue_id == lane.queue_id,
                lambda more: f"shunter queue update {lane.pool} {lane.queue} --limit {more}",
            )
        )
    if lane.deployment_full:
        found.append(
            _full(
                tx,
                Code.DEPLOYMENT_FULL,
                f"deployment {lane.deployment}",
                lane.max_active,
                leases.c.deployment_id == lane.deployment_id,
                lambda more: f"shunter deploy --name {lane.deployment} --max-active {more} ...",
            )
        )
    if lane.backfill_full:
        found.append(
            _full(
                tx,
                Code.BACKFILL_FULL,
                f"backfill {lane.backfill_id} of deployment {lane.deployment}",
                lane.concurrency,
                leases.c.backfill_id == lane.backfill_id,
                None,
            )
        )
    return [*found, *_shared(tx, lane)] if lane.limit_full else found


def _shared(tx: Tx, lane: Row[Any]) -> list[Reason]:
    active = select(func.count()).where(lease_limits.c.limit_id == limits.c.id).scalar_subquery()
    over = tx.conn.execute(
        select(limits, active.label("active"))
        .where(limits.c.id.in_([int(limit_id) for limit_id in lane.limits.split()]))
        .order_by(limits.c.tag.is_not(None), limits.c.name)
    ).all()
    found, used_up = [], []
    for row in over:
        if row.max is not None and row.max <= row.active:
            counted = select(lease_limits.c.run_id).where(lease_limits.c.limit_id == row.id)
            what = f"limit {row.name}" if row.tag is None else f"limit {row.name} of tag {row.tag}"
            found.append(
                _full(
                    tx,
                    Code.LIMIT_FULL if row.tag is None else Code.TAG_LIMIT_FULL,
                    what,
                    row.max,
                    leases.c.run_id.in_(counted),
                    partial("shunter limit update {} --max {}".format, row.name),
                )
            )
        if row.full_until is not None and row.full_until > tx.now:
            used_up.append(_rate(tx, row))
    return found + used_up


def _rate(tx: Tx, row: Row[Any]) -> Reason:
    starts = f"{row.rate_count:,} {'start' if row.rate_count == 1 else 'starts'}"
    return Reason(
        Code.RATE_USED_UP,
        f"limit {row.name} allows {starts} in any {exactly(row.rate_seconds)}, and they are used up until "
        f"{until(row.full_until, tx.now)}",
        f"Nothing: it may start then. Or allow more: `shunter limit update {row.name} --rate "
        f"{row.rate_count + 1}/{exactly(row.rate_seconds)}`.",
        {"limit": row.name, "until": at_utc(row.full_until)},
    )


def _full(
    tx: Tx,
    code: Code,
    what: str,
    most: int,
    holds: ColumnElement[bool],
    raised: Callable[[int], str] | None,
) -> Reason:
    """A reason that a limit of live attempts is reached.

    Args:
        holds: true of the leases that count.
        raised: the command that raises it, if there is one.
    """
    count = tx.conn.scalar(select(func.count()).select_from(leases).where(holds)) or 0
    details: dict[str, Any] = {"max": most, "active": count, "runs": []}
    by_hand = f", or raise it: `{raised(most + 1)}`." if raised else "."
    if not count:
        return Reason(
            code, f"{what} has a limit of {most:,}: none of its runs may start", "Wait" + by_hand, details
        )
    oldest = tx.conn.execute(
        select(leases.c.run_id, leases.c.granted_at, deployments.c.name)
        .join(deployments, deployments.c.id == leases.c.deployment_id)
        .where(holds)
        .order_by(leases.c.granted_at, leases.c.run_id)
        .limit(_SHOWN)
    ).all()
    details["runs"] = [str(row.run_id) for row in oldest]
    details["oldest_since"] = at_utc(oldest[0].granted_at)
    shown = [f"{short(row.run_id)} ({row.name})" for row in oldest]
    # Names knows how many there are beyond those shown.
    everyone = names([*shown, *[""] * (count - len(shown))])
    return Reason(
        code,
        f"{what} is full: {count:,} of {most:,} active, by {'run' if count == 1 else 'runs'} {everyone}, "
        f"the oldest for {lasting(tx.now - oldest[0].granted_at)}",
        "Wait for one of them to end" + by_hand,
        details,
    )
