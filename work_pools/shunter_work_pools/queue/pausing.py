"""Pausing and resuming: deployments, schedules, agents, the server. (Pools and queues: ``catalog``.)

A schedule or deployment that is paused makes no slots; what it missed its policy decides later. What was due
before the pause is made before it begins. When it ends, the schedule's ``catch_up`` decides in the same
transaction which of the missed slots become runs; these are made like all that are due.

Runs of a paused deployment wait. A paused agent is given nothing; what it holds goes on. In maintenance, the
pause of the server, no server of the store hands out anything.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, update

from shunter_work_pools.contracts.agents import AgentPatch, ServerPatch
from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import DeploymentPatch, Schedule, SchedulePatch
from shunter_work_pools.contracts.errors import NotFound
from shunter_work_pools.contracts.pauses import PausePatch
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue import pauses, timetable
from shunter_work_pools.queue.catalog import deployment_row, nearest, revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.fire import fire_deployment
from shunter_work_pools.queue.sync import agent_row
from shunter_work_pools.storage.schema import agents, deployments, pools, schedules
from shunter_work_pools.storage.store import Tx


def patch_server(tx: Tx, patch: ServerPatch) -> None:
    """Begin or end maintenance.

    Raises:
        BadRequest: ``paused`` is null, or there is a reason for nothing.
    """
    pauses.wanted(patch)
    if pauses.note(tx, "server", pauses.SERVER, patch) and not patch.paused:
        _stir_all(tx)


def patch_agent(tx: Tx, name: str, patch: AgentPatch) -> None:
    """Pause or resume an agent, in this life of it and those to come.

    Raises:
        NotFound: there is no such agent.
        BadRequest: ``paused`` is null, or there is a reason for nothing.
    """
    agent = agent_row(tx, name)
    paused = pauses.wanted(patch)
    if paused is None:
        return
    tx.conn.execute(update(agents).where(agents.c.id == agent.id).values(paused=paused))
    pauses.note(tx, "agent", agent.id, patch)
    tx.changes.agents.add(agent.id)


def patch_deployment(tx: Tx, name: str, patch: DeploymentPatch, late_after: Micros, since: Micros) -> None:
    """Pause or resume a deployment: paused, it makes no slots and its waiting runs wait.

    Args:
        late_after, since: as for :func:`~shunter_work_pools.queue.fire.fire`.

    Raises:
        NotFound: there is no such deployment.
        BadRequest: ``paused`` is null, or there is a reason for nothing.
    """
    row = deployment_row(tx, name)
    paused = pauses.wanted(patch)
    if paused is None:
        return
    tx.conn.execute(update(deployments).where(deployments.c.id == row.id).values(paused=paused))
    news = pauses.note(tx, "deployment", row.id, patch)
    if paused is not row.paused:
        _pause_deployment(tx, row.id, paused, late_after, since)
        if not paused:
            _stir_all(tx)
    if news or paused is not row.paused:
        _tell(tx, row.id, patch)


def _tell(tx: Tx, deployment_id: int, patch: PausePatch, **more: Any) -> None:
    kind = "paused" if patch.paused else "resumed"
    told = more | {key: value for key, value in (("by", patch.by), ("reason", patch.reason)) if value}
    record(tx, [event_row(None, kind, Actor.USER, tx.now, deployment_id=deployment_id, **told)])


def _stir_all(tx: Tx) -> None:
    """Something may have become claimable anywhere."""
    tx.changes.pools.update(tx.conn.scalars(select(pools.c.id)))


def patch_schedule(
    tx: Tx, deployment: str, name: str, patch: SchedulePatch, late_after: Micros, since: Micros
) -> None:
    """Pause or resume one schedule.

    Args:
        late_after, since: as for :func:`~shunter_work_pools.queue.fire.fire`.

    Raises:
        NotFound: there is no such deployment, or no such schedule of it.
        BadRequest: ``paused`` is null, or there is a reason for nothing.
    """
    paused = pauses.wanted(patch)
    deployment_row(tx, deployment)
    # Locked, then read: nothing may be deployed meanwhile.
    locked = select(deployments).where(deployments.c.name == deployment).with_for_update(key_share=True)
    target = tx.conn.execute(locked).one()
    by_name = timetable.named(revision_spec(tx, target.id, target.revision))
    if name not in by_name:
        raise NotFound(f"deployment {deployment!r} has no schedule {name!r}", nearest(name, list(by_name)))
    if paused is None:
        return
    if paused:
        fire_deployment(tx, target.id, late_after, since)
    row = next(row for row in timetable.locked_rows(tx, target.id) if row.name == name)
    news = pauses.note(tx, "schedule", row.id, patch)
    if news or row.paused is not paused:
        _tell(tx, target.id, patch, schedule=name)
    if row.paused is paused:
        return
    tx.conn.execute(update(schedules).where(schedules.c.id == row.id).values(paused=paused))
    if paused:
        _stop(tx, [row])
    elif not target.paused:
        _go_on(tx, [row], by_name)
    tx.changes.schedules = True


def _pause_deployment(tx: Tx, deployment_id: int, paused: bool, late_after: Micros, since: Micros) -> None:
    """Bring the schedules in line with a deployment that is being paused or resumed; its row is locked."""
    if paused:
        fire_deployment(tx, deployment_id, late_after, since)
    rows = [row for row in timetable.locked_rows(tx, deployment_id) if not row.removed and not row.paused]
    if paused:
        _stop(tx, rows)
    else:
        number = tx.conn.scalar(select(deployments.c.revision).where(deployments.c.id == deployment_id))
        assert number is not None
        _go_on(tx, rows, timetable.named(revision_spec(tx, deployment_id, number)))
    tx.changes.schedules = True


def _stop(tx: Tx, rows: list[Row[Any]]) -> None:
    ids = [row.id for row in rows]
    tx.conn.execute(update(schedules).where(schedules.c.id.in_(ids)).values(next_at=None))


def _go_on(tx: Tx, rows: list[Row[Any]], by_name: dict[str, Schedule]) -> None:
    """Everything up to now was missed."""
    told = []
    for row in rows:
        schedule = by_name[row.name]
        done_until, passed_over = timetable.settle(row, schedule, tx.now)
        next_at = timetable.next_after(schedule, done_until, row.anchor_at)
        tx.conn.execute(
            update(schedules).where(schedules.c.id == row.id).values(done_until=done_until, next_at=next_at)
        )
        told.append(passed_over)
    timetable.tell(tx, told)
