"""Where an active run is: on which agent, how far, and what happens if that does not go on."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.durations import exactly
from shunter_work_pools.contracts.explanations import Code
from shunter_work_pools.contracts.states import AttemptState, Cause
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.explain.ended import who_asked
from shunter_work_pools.queue.explain.reason import Reason, at_utc, message, names, short, since, until
from shunter_work_pools.queue.handover import NOBODY, kind_of, reach_of, takers
from shunter_work_pools.queue.retries import wanted
from shunter_work_pools.storage.schema import agents, events, leases, pools, queues
from shunter_work_pools.storage.store import Tx

_LEASE = (
    select(
        leases,
        agents.c.name.label("agent"),
        agents.c.host,
        agents.c.last_seen_at,
        agents.c.reaches,
        pools.c.name.label("pool"),
        queues.c.name.label("queue"),
    )
    .join(agents, agents.c.id == leases.c.agent_id)
    .join(pools, pools.c.id == leases.c.pool_id)
    .join(queues, queues.c.id == leases.c.queue_id)
)


def active_reasons(tx: Tx, run: Row[Any], lost_after: float, give_up_after: float) -> list[Reason]:
    """Where an active run is, and what holds besides; the first is to be told.

    Args:
        run: of runs.
        lost_after, give_up_after: seconds of silence.
    """
    lease = tx.conn.execute(_LEASE.where(leases.c.run_id == run.id)).one()
    spec = revision_spec(tx, run.deployment_id, run.revision)
    details = {
        "agent": lease.agent,
        "attempt": lease.attempt,
        "pid": lease.pid,
        "claimed_at": at_utc(lease.granted_at),
        "started_at": None if lease.started_at is None else at_utc(lease.started_at),
        "note": lease.note,
    }
    silent = lease.lost or lease.last_seen_at <= tx.now - round(lost_after * 1_000_000)
    how_far = _how_far(tx, run, lease, spec, details, silent)
    if not silent:
        return [how_far]
    return [_silent(tx, run, lease, spec, lost_after, give_up_after, details), how_far]


def _how_far(
    tx: Tx, run: Row[Any], lease: Row[Any], spec: DeploymentSpec, details: dict[str, Any], silent: bool
) -> Reason:
    if lease.cancelling:
        return _stopping(tx, run, lease, spec, details, silent)
    where = f"agent {lease.agent}"
    stop = f"`shunter run cancel {short(run.id)}` stops it."
    says = f"; the engine says: {message(lease.note)}" if lease.note else ""
    granted_at = _granted_at(tx, lease)
    if lease.state == AttemptState.CLAIMED.value:
        return Reason(
            Code.CLAIMED,
            f"{where} was given it at {since(granted_at, tx.now)}, and has not said yet that it begins{says}",
            f"Nothing: it begins at once, or is given to another. See `shunter agent inspect {lease.agent}`.",
            details,
        )
    if lease.started_at is None:
        ends = granted_at + round(spec.work.start_timeout * 1_000_000)
        return Reason(
            Code.STARTING,
            f"{where} is launching it, and has until {until(ends, tx.now)} for that{says}",
            f"Nothing: it starts, or ends as Crashed. {stop}",
            details | {"until": at_utc(ends)},
        )
    pid = f" as process {lease.pid}" if lease.pid else ""
    sentence = f"it has run on {where}{pid} since {since(lease.started_at, tx.now)}"
    if spec.work.timeout is not None:
        ends = lease.started_at + round(spec.work.timeout * 1_000_000)
        sentence += f"; its time is over at {until(ends, tx.now)}"
        details = details | {"timeout_at": at_utc(ends)}
    return Reason(
        Code.RUNNING,
        sentence,
        f"Nothing: it is at work. `shunter run logs {short(run.id)} --follow` shows it; {stop}",
        details,
    )


def _stopping(
    tx: Tx, run: Row[Any], lease: Row[Any], spec: DeploymentSpec, details: dict[str, Any], silent: bool
) -> Reason:
    asked_at: Micros = (
        tx.conn.scalar(
            select(events.c.at)
            .where(events.c.run_id == run.id, events.c.kind == AttemptState.CANCELLING.value)
            .order_by(events.c.id.desc())
            .limit(1)
        )
        or lease.granted_at
    )
    details = details | {"asked_at": at_utc(asked_at)}
    back = ", once it is back," if silent else ""
    grace = f"agent {lease.agent}{back} gives it {exactly(spec.work.grace)} to end, then kills it"
    wait = f"Nothing: it ends by itself. `shunter run wait {short(run.id)}` waits for it."
    if lease.superseded_by is not None:
        return Reason(
            Code.SUPERSEDING,
            f"it is being stopped since {since(asked_at, tx.now)}, as a newer run takes its place: "
            f"{lease.superseded_by} is full; {grace}",
            wait,
            details | {"for": lease.superseded_by},
        )
    return Reason(
        Code.CANCELLING,
        f"it is being stopped, as {who_asked(tx, run.id)} asked at {since(asked_at, tx.now)}; {grace}",
        wait,
        details,
    )


def _granted_at(tx: Tx, lease: Row[Any]) -> Micros:
    """When the agent that has it now was given it: its time to start counts from then on."""
    if not lease.handed_over:
        return int(lease.granted_at)
    last = (
        select(events.c.at)
        .where(events.c.run_id == lease.run_id, events.c.kind == "handed_over")
        .order_by(events.c.id.desc())
        .limit(1)
    )
    return int(tx.conn.scalar(last) or lease.granted_at)


def _silent(
    tx: Tx,
    run: Row[Any],
    lease: Row[Any],
    spec: DeploymentSpec,
    lost_after: float,
    give_up_after: float,
    details: dict[str, Any],
) -> Reason:
    given_up = lease.last_seen_at + round(give_up_after * 1_000_000)
    if lease.cancelling:
        then = "then the run ends as Cancelled"
    elif spec.on_lost == "wait":
        then = ""
    elif spec.on_lost == "retry" or (
        Cause.AGENT_LOST in spec.retries.on
        and wanted(
            spec.retries,
            AttemptState.CRASHED,
            Cause.AGENT_LOST.value,
            lease.attempt - run.attempts_forgiven,
        )
    ):
        then = "then the run is tried again"
    else:
        then = "then the run ends as Crashed"
    what = (
        f"it has until {until(given_up, tx.now)} to come back, {then}"
        if then
        else "the run waits for it however long that takes"
    )
    reach = reach_of(lease, spec)
    left = lease.session == NOBODY
    able = None if reach is None else takers(tx, kind_of(lease, spec), reach, lost_after, full=left)
    if able is not None:
        able = [one for one in able if one.row.id != lease.agent_id]
    details = details | {"handed_over_to": None if able is None else [one.name for one in able]}
    if able:
        what = f"it is handed over to {names([one.name for one in able])} at the server's next look"
    elif able is not None:
        what = (
            f"it is handed over as soon as another agent that reaches its work {'is there, and none is' if left else 'has room, and none has'} now; "
            f"meanwhile {what}"
        )
    machine = lease.host or "its machine"
    return Reason(
        Code.AGENT_SILENT,
        f"agent {lease.agent} was told to stop and has left it to another one: {what}"
        if left
        else f"agent {lease.agent}, which has it, is silent since {since(lease.last_seen_at, tx.now)}: {what}",
        f"Look after {machine}; the agent finds the run again. If it is gone for good: "
        f"`shunter agent remove {lease.agent}`.",
        details
        | {
            "last_seen_at": at_utc(lease.last_seen_at),
            "given_up_at": at_utc(given_up) if then else None,
            "on_lost": spec.on_lost,
        },
    )
