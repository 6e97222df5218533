"""Limits: made, changed, kept to, and what becomes of runs when one is full.

Two kinds are looked at alike by a claim. A *shared* limit is a row of ``limits``: deployments name it, or it
holds for all runs that carry its tag; a run's lane says under which it is. A deployment's own limit is a column
of it. (Those of pools, queues and backfills are columns, too, and only ever let runs wait.)

Live attempts are counted, never a counter kept: what is counted is the leases themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Uuid,
    and_,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    tuple_,
    union,
    update,
)

from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.errors import BadRequest, Conflict, NotFound
from shunter_work_pools.contracts.limits import Limit, LimitPatch, LimitSpec, Rate, unfit
from shunter_work_pools.contracts.states import Actor, AttemptState, Cause, RunState
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.lanes import LaneKey, lanes_of
from shunter_work_pools.storage.schema import (
    deployments,
    lane_limits,
    lanes,
    lease_limits,
    leases,
    limit_starts,
    limits,
    pauses,
    pools,
    queues,
    ready,
    revisions,
    run_tags,
    runs,
)
from shunter_work_pools.storage.store import Tx

#: Runs that one transaction ends or stops at the most.
BATCH = 500
#: Readers that change nothing (a backup, a list of limits) are not in the way, and nobody waits for them.
_ALONE = text("LOCK TABLE limits IN EXCLUSIVE MODE")


# ---- made, changed, deleted


def _row(tx: Tx, name: str) -> Row[Any]:
    row = tx.conn.execute(select(limits).where(limits.c.name == name)).one_or_none()
    if row is None:
        from shunter_work_pools.queue.catalog import nearest

        raise NotFound(
            f"there is no limit {name!r}", nearest(name, list(tx.conn.scalars(select(limits.c.name))))
        )
    return row


def _alone(tx: Tx) -> None:
    """Whoever has put a run under the limits there are commits first, and who is about to waits: none slips by.

    To be called before anything else is locked; see :func:`~shunter_work_pools.queue.lanes.hold_limits`.
    """
    if tx.postgres:
        tx.conn.execute(_ALONE)


def create_limit(tx: Tx, spec: LimitSpec) -> None:
    """Make a limit; one of a tag holds at once for the runs that carry it, those that wait and those that run.

    Raises:
        Conflict: the name is taken.
    """
    _alone(tx)
    if tx.conn.scalar(select(limits.c.id).where(limits.c.name == spec.name)) is not None:
        raise Conflict(
            f"there is a limit {spec.name!r} already", "Choose another name, or `shunter limit update`."
        )
    limit_id = tx.conn.execute(
        insert(limits)
        .values(
            name=spec.name,
            tag=spec.tag,
            max=spec.max,
            rate_count=None if spec.rate is None else spec.rate.count,
            rate_seconds=None if spec.rate is None else spec.rate.seconds,
            strategy=spec.strategy,
            created_at=tx.now,
        )
        .returning(limits.c.id)
    ).scalar_one()
    of_it = _runs_under(tx, spec)
    if of_it is not None:
        _count_active(tx, limit_id, of_it)
        _put_under(tx, limit_id, of_it)
    tx.changes.limits = True


def _runs_under(tx: Tx, spec: LimitSpec) -> Select[Any] | None:
    """Ids of the runs that a new limit holds for, ended ones among them; None: there can be none.

    A name that was another limit's before may stand in revisions whose runs wait still.
    """
    if spec.tag is not None:
        return select(run_tags.c.run_id).where(run_tags.c.tag == spec.tag)
    rows = tx.conn.execute(
        select(revisions.c.deployment_id, revisions.c.number, revisions.c.spec["limits"].label("limits"))
    )
    naming = [(row.deployment_id, row.number) for row in rows if spec.name in (row.limits or ())]
    if not naming:
        return None
    live = (RunState.SCHEDULED.value, RunState.RETRYING.value, RunState.ACTIVE.value)
    of_them = tuple_(runs.c.deployment_id, runs.c.revision).in_(naming)
    return select(runs.c.id).where(runs.c.state.in_(live), of_them)


def _count_active(tx: Tx, limit_id: int, of_it: Select[Any]) -> None:
    """Live attempts of some runs count from now on."""
    counting = (
        select(leases.c.run_id).where(leases.c.run_id.in_(of_it)).order_by(leases.c.run_id).with_for_update()
    )
    live = list(tx.conn.scalars(counting))
    if live:
        tx.conn.execute(insert(lease_limits), [{"limit_id": limit_id, "run_id": run_id} for run_id in live])
        tx.conn.execute(
            update(leases)
            .where(
                leases.c.run_id.in_(select(lease_limits.c.run_id).where(lease_limits.c.limit_id == limit_id))
            )
            .values(limited=True)
        )


def _put_under(tx: Tx, limit_id: int, of_it: Select[Any]) -> None:
    """Waiting ones of some runs go to lanes under a limit, as many at once as are in one lane."""
    columns = [lanes.c[name] for name in LaneKey._fields]
    found = tx.conn.execute(
        select(lanes.c.id, *columns)
        .join(ready, ready.c.lane_id == lanes.c.id)
        .where(ready.c.run_id.in_(of_it))
        .distinct()
        .order_by(lanes.c.id)
    ).all()
    there = set(tx.conn.scalars(select(limits.c.id)))  # a lane may still name one that was deleted
    ways = {}
    for row in found:
        key = LaneKey(*row[1:])
        over = there.intersection(map(int, key.limits.split())) | {limit_id}
        ways[row.id] = key._replace(limits=" ".join(map(str, sorted(over))))
    to = lanes_of(tx, ways.values())
    for lane_id, key in ways.items():
        # A claim holds rows of runs that wait here no more.
        moved = (
            select(ready.c.run_id)
            .where(ready.c.lane_id == lane_id, ready.c.run_id.in_(of_it))
            .order_by(ready.c.run_id)
            .with_for_update()
        )
        tx.conn.execute(
            update(ready).where(ready.c.run_id.in_(moved), ready.c.lane_id == lane_id).values(lane_id=to[key])
        )


def patch_limit(tx: Tx, name: str, patch: LimitPatch) -> None:
    """Change a limit.

    Raises:
        NotFound: there is none of that name.
        BadRequest: what is left limits nothing, or cannot be.
    """
    _alone(tx)
    row = _row(tx, name)
    given = patch.model_fields_set
    if "strategy" in given and patch.strategy is None:
        raise BadRequest("strategy cannot be null", "Leave it out to keep it as it is.")
    most = patch.max if "max" in given else row.max
    rate = patch.rate if "rate" in given else _rate(row)
    strategy = patch.strategy or row.strategy
    if fault := unfit(most, rate, strategy):
        raise BadRequest(f"limit {name!r}: {fault}", "Give it a max or a rate that fits, or delete it.")
    full_until = _full_until(tx, row.id, rate)
    tx.conn.execute(
        update(limits)
        .where(limits.c.id == row.id)
        .values(
            max=most,
            rate_count=None if rate is None else rate.count,
            rate_seconds=None if rate is None else rate.seconds,
            strategy=strategy,
            full_until=full_until,
        )
    )
    if full_until is not None and full_until > tx.now:
        tx.changes.becomes_due((full_until - tx.now) / 1_000_000)
    tx.changes.limits = True
    tx.changes.pools |= _pools_under(tx, [row.id])


def _rate(row: Row[Any]) -> Rate | None:
    return None if row.rate_count is None else Rate(count=row.rate_count, seconds=row.rate_seconds)


def _full_until(tx: Tx, limit_id: int, rate: Rate | None) -> Micros | None:
    """When a rate allows the next start, by the starts that are known."""
    if rate is None:
        return None
    statement = select(limit_starts.c.at).where(limit_starts.c.limit_id == limit_id)
    starts = sorted(tx.conn.scalars(statement), reverse=True)
    return None if len(starts) < rate.count else starts[rate.count - 1] + round(rate.seconds * 1_000_000)


def delete_limit(tx: Tx, name: str) -> None:
    """Delete a limit; what it held back goes on.

    Raises:
        NotFound: there is none of that name.
        Conflict: a deployment names it.
    """
    _alone(tx)
    row = _row(tx, name)
    named = [] if row.tag is not None else _naming(tx).get(name, [])
    if named:
        shown = ", ".join(repr(one) for one in named[:5]) + (", ..." if len(named) > 5 else "")
        raise Conflict(
            f"limit {name!r} is named by deployment {shown}",
            "Change or delete these first, or raise its max.",
        )
    tx.changes.pools |= _pools_under(tx, [row.id])
    for table in (lane_limits, lease_limits, limit_starts):
        tx.conn.execute(delete(table).where(table.c.limit_id == row.id))
    tx.conn.execute(delete(limits).where(limits.c.id == row.id))
    tx.changes.limits = True


#: Names of deployments that a limit is shown with.
_SHOWN = 100


def _naming(tx: Tx) -> dict[str, list[str]]:
    """Names of the deployments whose current revisions name limits, in order, by the limit."""
    current = and_(
        revisions.c.deployment_id == deployments.c.id, revisions.c.number == deployments.c.revision
    )
    rows = tx.conn.execute(
        select(deployments.c.name, revisions.c.spec["limits"].label("limits"))
        .join(revisions, current)
        .where(deployments.c.deleted_at.is_(None))
        .order_by(deployments.c.name)
    )
    found: dict[str, list[str]] = {}
    for row in rows:
        for limit in row.limits or ():
            found.setdefault(limit, []).append(row.name)
    return found


def list_limits(tx: Tx, name: str | None = None) -> list[Limit]:
    """All limits by name, or the one of a name.

    Raises:
        NotFound: there is none of that name.
    """
    statement = select(limits).order_by(limits.c.name)
    if name is not None:
        statement = statement.where(limits.c.id == _row(tx, name).id)
    active = _counts(tx, select(lease_limits.c.limit_id, func.count()).group_by(lease_limits.c.limit_id))
    waiting = _counts(
        tx,
        select(lane_limits.c.limit_id, func.count())
        .join(ready, ready.c.lane_id == lane_limits.c.lane_id)
        .group_by(lane_limits.c.limit_id),
    )
    named = _naming(tx)
    return [
        Limit(
            name=row.name,
            tag=row.tag,
            max=row.max,
            rate=_rate(row),
            strategy=row.strategy,
            created_at=moment(row.created_at),
            active=active.get(row.id, 0),
            waiting=waiting.get(row.id, 0),
            full_until=moment(row.full_until) if row.full_until and row.full_until > tx.now else None,
            deployments=[] if row.tag is not None else named.get(row.name, [])[:_SHOWN],
        )
        for row in tx.conn.execute(statement).all()
    ]


def _counts(tx: Tx, statement: Any) -> dict[int, int]:
    return {row[0]: row[1] for row in tx.conn.execute(statement)}


# ---- places that become free


def places_freed(
    tx: Tx,
    limited: Collection[UUID] = (),
    limited_deployments: Collection[int] = (),
    of_backfills: Collection[int] = (),
) -> None:
    """Leases are about to go: what waited for their places may be claimable, in whichever pool it waits.

    Args:
        limited: runs whose leases counted under shared limits.
        limited_deployments: those with a limit of their own whose leases go.
        of_backfills: those whose leases go.
    """
    if limited:
        gone = (
            delete(lease_limits).where(lease_limits.c.run_id.in_(limited)).returning(lease_limits.c.limit_id)
        )
        tx.changes.pools |= _pools_under(tx, set(tx.conn.scalars(gone)))
    if limited_deployments:
        tx.changes.pools |= _pools_of(tx, lanes.c.deployment_id.in_(limited_deployments))
    if of_backfills:
        tx.changes.pools |= _pools_of(tx, lanes.c.backfill_id.in_(of_backfills))


def _pools_under(tx: Tx, limit_ids: Iterable[int]) -> set[int]:
    """Pools with lanes under any of some limits."""
    under = select(lane_limits.c.lane_id).where(lane_limits.c.limit_id.in_(list(limit_ids)))
    return _pools_of(tx, lanes.c.id.in_(under))


def _pools_of(tx: Tx, condition: ColumnElement[bool]) -> set[int]:
    waits = select(ready.c.run_id).where(ready.c.lane_id == lanes.c.id).exists()
    in_queues = select(lanes.c.queue_id).where(condition, waits)
    return set(tx.conn.scalars(select(queues.c.pool_id).where(queues.c.id.in_(in_queues)).distinct()))


# ---- what becomes of runs when a limit is full

_ACTS = union(
    select(literal(1)).where(select(limits.c.id).where(limits.c.strategy != "enqueue").exists()),
    select(literal(1)).where(
        select(deployments.c.id)
        .where(deployments.c.when_full != "enqueue", deployments.c.deleted_at.is_(None))
        .exists()
    ),
)


def any_acts(tx: Tx) -> bool:
    """Whether any limit does something else than to let runs wait; reads only."""
    return tx.conn.execute(_ACTS).first() is not None


def act_when_full(tx: Tx) -> bool:
    """End or stop runs, as full limits say whose strategy is not to wait; whether there may be more to do.

    ``cancel_new``: new runs that are due while a limit is full end as skipped. ``cancel_running``: of those
    active and due as many of the newest (by when they were to start) as fit win; the others end as superseded,
    the active ones by being asked to stop. Runs that are held are not due.
    """
    more = False
    for kind, row in _full(tx):
        active = tx.conn.execute(_active_under(kind, row.id)).all()
        if len(active) < row.max:
            continue  # a place became free while its row was waited for
        due = _due_under(kind, row.id, tx.now)
        if row.strategy == "cancel_new":
            beaten = _oldest(tx, due.where(runs.c.state == RunState.SCHEDULED.value))
            if beaten:
                _end(tx, beaten, Cause.SKIPPED, f"{_named(kind, row.name)} was full when it was due")
        else:
            newest = [(one.scheduled_at, one.run_id) for one in [*_newest(tx, due, row.max), *active]]
            last = sorted(newest)[-row.max]  # of those that win
            beaten = _oldest(tx, due.where(tuple_(literal(last[0]), literal(last[1], Uuid())) > _AGE))
            if beaten:
                _end(
                    tx,
                    beaten,
                    Cause.SUPERSEDED,
                    f"a newer run took its place: {_named(kind, row.name)} is full",
                )
            _stop(
                tx,
                [one for one in active if (one.scheduled_at, one.run_id) < last and not one.cancelling],
                _named(kind, row.name),
            )
        more |= len(beaten) == BATCH
    return more


def _named(kind: str, name: str) -> str:
    return f"limit {name}" if kind == "limit" else f"deployment {name}"


_FULL = {
    "deployment": select(
        deployments.c.id,
        deployments.c.name,
        deployments.c.max_active.label("max"),
        deployments.c.when_full.label("strategy"),
    )
    .where(
        deployments.c.when_full != "enqueue",
        deployments.c.max_active
        <= select(func.count()).where(leases.c.deployment_id == deployments.c.id).scalar_subquery(),
    )
    .order_by(deployments.c.id)
    .with_for_update(key_share=True),
    "limit": select(limits.c.id, limits.c.name, limits.c.max, limits.c.strategy)
    .where(
        limits.c.strategy != "enqueue",
        limits.c.max <= select(func.count()).where(lease_limits.c.limit_id == limits.c.id).scalar_subquery(),
    )
    .order_by(limits.c.id)
    .with_for_update(key_share=True),
}


def _full(tx: Tx) -> list[tuple[str, Row[Any]]]:
    """Kind and row (id, name, max, strategy) of the limits that are full and do something, locked."""
    found = ((kind, list[Row[Any]](tx.conn.execute(statement))) for kind, statement in _FULL.items())
    return [(kind, row) for kind, rows in found for row in rows]


def _active_under(kind: str, ref_id: int) -> Any:
    statement = select(leases.c.run_id, leases.c.cancelling, runs.c.scheduled_at).join(
        runs, runs.c.id == leases.c.run_id
    )
    if kind == "deployment":
        return statement.where(leases.c.deployment_id == ref_id)
    counted = select(lease_limits.c.run_id).where(lease_limits.c.limit_id == ref_id)
    return statement.where(leases.c.run_id.in_(counted))


#: How new a run is: by when it was to start.
_AGE = tuple_(runs.c.scheduled_at, runs.c.id)


def _due_under(kind: str, ref_id: int, now: Micros) -> Select[Any]:
    """Runs that are due under a limit, and when they were to start; not those that are held."""
    statement = (
        select(ready.c.run_id, runs.c.scheduled_at)
        .join(lanes, lanes.c.id == ready.c.lane_id)
        .join(queues, queues.c.id == lanes.c.queue_id)
        .join(pools, pools.c.id == queues.c.pool_id)
        .join(deployments, deployments.c.id == lanes.c.deployment_id)
        .join(runs, runs.c.id == ready.c.run_id)
        .where(
            ready.c.due_at <= now,
            deployments.c.paused.is_(False),
            queues.c.paused.is_(False),
            pools.c.paused.is_(False),
            ~select(pauses.c.ref_id).where(pauses.c.kind == "server").exists(),
        )
    )
    if kind == "deployment":
        return statement.where(lanes.c.deployment_id == ref_id)
    return statement.where(
        lanes.c.id.in_(select(lane_limits.c.lane_id).where(lane_limits.c.limit_id == ref_id))
    )


def _newest(tx: Tx, due: Select[Any], most: int) -> Sequence[Row[Any]]:
    return tx.conn.execute(due.order_by(runs.c.scheduled_at.desc(), runs.c.id.desc()).limit(most)).all()


def _oldest(tx: Tx, due: Select[Any]) -> list[UUID]:
    """The oldest of them, ``BATCH`` at the most, locked."""
    statement = due.order_by(runs.c.scheduled_at, runs.c.id).limit(BATCH)
    return list(tx.conn.scalars(statement.with_for_update(of=ready, skip_locked=True)))


def _end(tx: Tx, waiting: list[UUID], cause: Cause, message: str) -> None:
    """End runs whose rows of ``ready`` are locked."""
    state = RunState.CANCELLED.value
    tx.conn.execute(delete(ready).where(ready.c.run_id.in_(waiting)))
    tx.conn.execute(
        update(runs)
        .where(runs.c.id.in_(waiting))
        .values(state=state, cause=cause.value, message=message, ended_at=tx.now)
    )
    record(tx, [event_row(run_id, state, Actor.QUEUE, tx.now, cause=cause.value) for run_id in waiting])
    tx.changes.ended[state, cause.value] += len(waiting)
    tx.changes.runs.update(waiting)


def _stop(tx: Tx, beaten: list[Any], limit: str) -> None:
    """Ask the agents of active runs to stop them; those that are being reported on are left to the next look."""
    locked = tx.conn.execute(
        select(leases)
        .where(leases.c.run_id.in_([lease.run_id for lease in beaten]), leases.c.cancelling.is_(False))
        .order_by(leases.c.run_id)
        .with_for_update(skip_locked=True)
    ).all()
    if not locked:
        return
    state = AttemptState.CANCELLING.value
    tx.conn.execute(
        update(leases)
        .where(leases.c.run_id.in_([lease.run_id for lease in locked]))
        .values(cancelling=True, state=state, superseded_by=limit)
    )
    record(
        tx,
        [
            event_row(lease.run_id, state, Actor.QUEUE, tx.now, lease.attempt, cause=Cause.SUPERSEDED.value)
            for lease in locked
        ],
    )
    tx.changes.runs.update(lease.run_id for lease in locked)
    tx.changes.agents.update(lease.agent_id for lease in locked)
