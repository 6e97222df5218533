"""Remove: what nobody needs any more is deleted; what somebody needs is refused, with the reason.

Pools, queues and deployments are marked as deleted and their names are free at once, for runs refer to them:
their rows go when the last run does (:mod:`~shunter_work_pools.queue.retain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, delete, func, select, update

from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.errors import BadRequest, Conflict
from shunter_work_pools.contracts.states import Actor, Cause, RunState
from shunter_work_pools.queue import joining, pauses
from shunter_work_pools.queue.catalog import DEFAULT_QUEUE, deployment_row, pool_row, queue_row, revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.lanes import hold_limits
from shunter_work_pools.queue.reap import end_lost
from shunter_work_pools.queue.sync import agent_row
from shunter_work_pools.storage.schema import (
    agents,
    deployments,
    lanes,
    leases,
    pools,
    queues,
    ready,
    revisions,
    runs,
    schedules,
)
from shunter_work_pools.storage.store import Tx

#: Waiting runs of a deleted deployment that one transaction ends at the most.
BATCH = 200


def _count(tx: Tx, statement: Select[Any]) -> int:
    return int(tx.conn.scalar(select(func.count()).select_from(statement.subquery())) or 0)


# ---- deployments


def delete_deployment(tx: Tx, name: str) -> int:
    """Mark a deployment as deleted: no slots, no claims, its name is free. Its id.

    Its waiting runs are ended by :func:`cancel_waiting`.

    Raises:
        NotFound: there is none.
        Conflict: runs of it are active.
    """
    found = deployment_row(tx, name)
    tx.conn.execute(select(deployments.c.id).where(deployments.c.id == found.id).with_for_update())
    active = _count(tx, select(leases.c.run_id).where(leases.c.deployment_id == found.id))
    if active:
        verb = "is" if active == 1 else "are"
        raise Conflict(
            f"{active} {'run' if active == 1 else 'runs'} of deployment {name!r} {verb} active",
            f"Wait for their end, or cancel them: see `shunter run list --deployment {name}`.",
        )
    tx.conn.execute(
        update(deployments)
        .where(deployments.c.id == found.id)
        # Paused: nothing of it is claimed until all that waits has ended.
        .values(name=f"{name}~{found.id}", deleted_at=tx.now, updated_at=tx.now, paused=True)
    )
    tx.conn.execute(
        update(schedules).where(schedules.c.deployment_id == found.id).values(removed=True, next_at=None)
    )
    its = list(tx.conn.scalars(select(schedules.c.id).where(schedules.c.deployment_id == found.id)))
    pauses.forget(tx, "deployment", [found.id])
    pauses.forget(tx, "schedule", its)
    tx.changes.schedules = True
    return int(found.id)


def cancel_waiting(tx: Tx, deployment_id: int) -> int:
    """End waiting runs of a deleted deployment, up to ``BATCH``; how many."""
    in_lanes = (
        select(ready.c.run_id)
        .join(lanes, lanes.c.id == ready.c.lane_id)
        .where(lanes.c.deployment_id == deployment_id)
    )
    unplaced = (
        select(ready.c.run_id)
        .join(runs, runs.c.id == ready.c.run_id)
        .where(ready.c.lane_id.is_(None), runs.c.deployment_id == deployment_id)
    )
    waiting: list[UUID] = []
    for statement in (in_lanes, unplaced):
        locked = statement.limit(BATCH - len(waiting)).with_for_update(of=ready, skip_locked=True)
        waiting += list(tx.conn.scalars(locked))
    if not waiting:
        return 0
    tx.conn.execute(delete(ready).where(ready.c.run_id.in_(waiting)))
    tx.conn.execute(
        update(runs)
        .where(runs.c.id.in_(waiting))
        .values(
            state=RunState.CANCELLED.value,
            cause=Cause.CANCELLED.value,
            message="its deployment was deleted",
            ended_at=tx.now,
        )
    )
    state = RunState.CANCELLED.value
    record(tx, [event_row(run_id, state, Actor.USER, tx.now, cause="cancelled") for run_id in waiting])
    tx.changes.ended[state, Cause.CANCELLED.value] += len(waiting)
    tx.changes.runs.update(waiting)
    return len(waiting)


# ---- pools and queues


def delete_pool(tx: Tx, name: str, alive_after: Micros) -> None:
    """Mark a pool that nobody needs as deleted; its name is free.

    Args:
        alive_after: agents heard of since this moment count as alive.

    Raises:
        NotFound: there is none.
        Conflict: runs wait or are active in it, a deployment names it, or a live agent serves it.
    """
    pool = pool_row(tx, name)
    tx.conn.execute(select(pools.c.id).where(pools.c.id == pool.id).with_for_update())
    what = f"pool {name!r}"
    _refuse_runs(tx, what, queues.c.pool_id == pool.id, leases.c.pool_id == pool.id)
    _refuse_deployments(tx, what, revisions.c.spec["pool"].as_string() == name)
    serving = [row.name for row in _alive(tx, alive_after) if name in row.pools]
    _refuse_agents(what, serving)
    gone = {"name": f"{name}~{pool.id}", "deleted_at": tx.now}
    tx.conn.execute(update(pools).where(pools.c.id == pool.id).values(match=[], **gone))
    pauses.forget(tx, "pool", [pool.id])
    its = list(tx.conn.scalars(select(queues.c.id).where(queues.c.pool_id == pool.id)))
    pauses.forget(tx, "queue", its)


def delete_queue(tx: Tx, pool_name: str, name: str, alive_after: Micros) -> None:
    """Mark a queue that nobody needs as deleted; its name is free.

    Raises:
        NotFound: there is no such pool or queue.
        BadRequest: it is the pool's ``default`` queue.
        Conflict: runs wait or are active in it, a deployment or a live agent names it.
    """
    queue = queue_row(tx, pool_name, name)
    if name == DEFAULT_QUEUE:
        raise BadRequest(f"every pool has a queue {DEFAULT_QUEUE!r}", "Delete the pool, or pause the queue.")
    tx.conn.execute(select(pools.c.id).where(pools.c.id == queue.pool_id).with_for_update())
    what = f"queue {name!r} of pool {pool_name!r}"
    _refuse_runs(tx, what, queues.c.id == queue.id, leases.c.queue_id == queue.id)
    spec = revisions.c.spec
    _refuse_deployments(
        tx, what, (spec["pool"].as_string() == pool_name) & (spec["queue"].as_string() == name)
    )
    serving = [row.name for row in _alive(tx, alive_after) if pool_name in row.pools and name in row.queues]
    _refuse_agents(what, serving)
    tx.conn.execute(
        update(queues)
        .where(queues.c.id == queue.id)
        .values(name=f"{name}~{queue.id}", deleted_at=tx.now, paused=True)
    )
    pauses.forget(tx, "queue", [queue.id])


def _refuse_runs(tx: Tx, what: str, waits: ColumnElement[bool], active: ColumnElement[bool]) -> None:
    waiting = _count(
        tx,
        select(ready.c.run_id)
        .join(lanes, lanes.c.id == ready.c.lane_id)
        .join(queues, queues.c.id == lanes.c.queue_id)
        .where(waits),
    )
    live = _count(tx, select(leases.c.run_id).where(active))
    if waiting or live:
        raise Conflict(
            f"not all runs in {what} have ended: {waiting} waiting, {live} active",
            "Wait for their end, or cancel them.",
        )


def _refuse_deployments(tx: Tx, what: str, names: ColumnElement[bool]) -> None:
    current = (revisions.c.deployment_id == deployments.c.id) & (revisions.c.number == deployments.c.revision)
    found = list(
        tx.conn.scalars(
            select(deployments.c.name)
            .join(revisions, current)
            .where(deployments.c.deleted_at.is_(None), names)
            .order_by(deployments.c.name)
            .limit(6)
        )
    )
    if found:
        raise Conflict(f"{what} is named by deployment {_some(found)}", "Change or delete these first.")


def _refuse_agents(what: str, serving: list[str]) -> None:
    if serving:
        raise Conflict(f"{what} is served by agent {_some(sorted(serving))}", "Stop these first.")


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _alive(tx: Tx, alive_after: Micros) -> list[Row[Any]]:
    return list(tx.conn.execute(select(agents).where(agents.c.last_seen_at > alive_after)))


# ---- agents


@dataclass(frozen=True)
class Silence:
    """What the server knows of agents that are silent.

    Attributes:
        alive_after: agents heard of since this moment count as alive.
        lease_for: so long after it was last heard of an agent may have the work of an exclusive run going on.
        hearing_since: before this moment nobody could be heard, so that silence tells nothing.
    """

    alive_after: Micros
    lease_for: Micros
    hearing_since: Micros


def remove_agent(tx: Tx, name: str, silence: Silence, *, give_up: bool) -> None:
    """Forget an agent that is gone, and revoke its credential; should it come back otherwise, it is registered anew.

    Args:
        give_up: end the attempts that it holds at once, as ``on_lost`` says after a long silence; somebody
            knows that its machine is gone. One that would wait for ever ends as Crashed.

    Raises:
        NotFound: there is none.
        Conflict: it is alive, holds attempts that are not to be given up, or ones of exclusive runs whose
            lease has not passed yet.
    """
    # Not yet against those who only refer to it: a report of it may be under way, and hold what is locked next.
    locked = select(agents).where(agents.c.id == agent_row(tx, name).id).with_for_update(key_share=True)
    agent = tx.conn.execute(locked).one()
    hold_limits(tx)
    held = tx.conn.execute(
        select(leases, agents.c.name.label("agent"))
        .join(agents, agents.c.id == leases.c.agent_id)
        .where(leases.c.agent_id == agent.id)
        .order_by(leases.c.run_id)
        .with_for_update(of=leases)
    ).all()
    if agent.last_seen_at > silence.alive_after:
        holds = f" and holds {_attempts(held)}" if held else ""
        raise Conflict(f"agent {name!r} is alive{holds}", "Stop it first, and wait until it counts as lost.")
    if held and not give_up:
        raise Conflict(
            f"agent {name!r} is lost and holds {_attempts(held)}",
            "Wait until it is back or given up. If its machine is gone for good, and the work on it: "
            f"`shunter agent remove {name}` ends them now.",
        )
    specs = [revision_spec(tx, lease.deployment_id, lease.revision) for lease in held]
    passed = max(agent.last_seen_at, silence.hearing_since) + silence.lease_for
    exclusive = sum(spec.exclusive for spec in specs)
    if exclusive and passed >= tx.now:
        until = moment(passed).isoformat(timespec="seconds").replace("+00:00", "Z")
        raise Conflict(
            f"agent {name!r} holds {exclusive} {'run that is' if exclusive == 1 else 'runs that are'} exclusive, "
            f"and may have work of it going on until {until}",
            "Ask again after that.",
        )
    for lease, spec in zip(held, specs, strict=True):
        end_lost(tx, lease, spec, f"its agent {name} was removed by hand as gone")
    tx.conn.execute(delete(agents).where(agents.c.id == agent.id))
    pauses.forget(tx, "agent", [agent.id])
    joining.forget(tx, name)


def _attempts(held: Sequence[Row[Any]]) -> str:
    return f"{len(held)} {'attempt' if len(held) == 1 else 'attempts'}"
