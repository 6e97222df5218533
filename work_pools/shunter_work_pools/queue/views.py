"""Runs, pools, deployments and agents as people see them; reads only."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, and_, exists, false, func, or_, select, tuple_

from shunter_work_pools.contracts.agents import Agent
from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import Deployment, DeploymentSpec, Revision, ScheduleView
from shunter_work_pools.contracts.errors import BadRequest, Conflict, NotFound
from shunter_work_pools.contracts.pools import Pool, Queue
from shunter_work_pools.contracts.runs import Attempt, Event, ExportedRun, Manifest, Run
from shunter_work_pools.contracts.states import ATTEMPT_LIVE, RUN_ENDS, Cause, RunState
from shunter_work_pools.queue import pauses, schedule_views, timetable
from shunter_work_pools.queue.catalog import deployment_row, pool_row, queue_row, revision_spec
from shunter_work_pools.queue.drain import has_stopped
from shunter_work_pools.queue.ids import lowest_id, reverse
from shunter_work_pools.queue.progress import told_progress
from shunter_work_pools.queue.sync import agent_row
from shunter_work_pools.storage.schema import (
    agents,
    attempts,
    deployments,
    events,
    lanes,
    leases,
    manifests,
    payloads,
    pools,
    queues,
    ready,
    revisions,
    run_tags,
    runs,
    schedules,
)
from shunter_work_pools.storage.schema import pauses as pause_rows
from shunter_work_pools.storage.store import Tx

PAGE_LIMIT = 500
#: Events of a deployment that are shown.
EVENT_LIMIT = 1000
_HEX = re.compile(r"[0-9a-f]{1,32}")
_ENDS = {state.value for state in RUN_ENDS}
_LIVE = {state.value for state in ATTEMPT_LIVE}


def maybe(value: Micros | None) -> Any:
    """The moment of a column that may be NULL."""
    return None if value is None else moment(value)


# ---- runs


def find_run(tx: Tx, wanted: str) -> UUID:
    """The run of an id or of a unique suffix of one.

    Raises:
        BadRequest: not hexadecimal.
        NotFound: none has it.
        Conflict: several have it; some are named.
    """
    digits = wanted.lower().replace("-", "")
    if not _HEX.fullmatch(digits):
        raise BadRequest(f"{wanted!r} is no run id, nor the end of one", "Copy it from `shunter run list`.")
    if len(digits) == 32:
        found = tx.conn.scalar(select(runs.c.id).where(runs.c.id == UUID(digits)))
        if found is None:
            raise NotFound(f"there is no run {wanted}", "See `shunter run list`.")
        return UUID(int=found.int)
    prefix = reverse(digits)
    ids = list(
        tx.conn.scalars(
            select(runs.c.id).where(runs.c.id_reversed >= prefix, runs.c.id_reversed < prefix + "g").limit(3)
        )
    )
    if not ids:
        raise NotFound(f"no run's id ends in {wanted!r}", "See `shunter run list`.")
    if len(ids) > 1:
        some = ", ".join(str(run_id) for run_id in ids[:2])
        raise Conflict(f"several runs' ids end in {wanted!r}: {some}, ...", "Type more of its digits.")
    only: UUID = ids[0]
    return only


#: Of a row of runs with its deployment, pool and queue, if it has these: whether something of it is paused, be it
#: the whole server. (That the pause of a schedule keeps no run waiting: it makes none.)
_PAUSED = or_(
    select(pause_rows.c.ref_id).where(pause_rows.c.kind == "server").exists(),
    deployments.c.paused,
    func.coalesce(queues.c.paused, false()),
    func.coalesce(pools.c.paused, false()),
)
_RUN = (
    select(
        runs,
        deployments.c.name.label("deployment"),
        pools.c.name.label("pool"),
        queues.c.name.label("queue"),
        schedules.c.name.label("schedule"),
        payloads.c.parameters,
        payloads.c.result,
        leases.c.state.label("attempt_state"),
        leases.c.started_at.label("lease_started_at"),
        leases.c.lost,
        leases.c.attempt.label("live_attempt"),
        ready.c.due_at,
        _PAUSED.label("held"),
    )
    .join(deployments, deployments.c.id == runs.c.deployment_id)
    .join(payloads, payloads.c.run_id == runs.c.id)
    .outerjoin(pools, pools.c.id == runs.c.pool_id)
    .outerjoin(queues, queues.c.id == runs.c.queue_id)
    .outerjoin(schedules, schedules.c.id == runs.c.schedule_id)
    .outerjoin(leases, leases.c.run_id == runs.c.id)
    .outerjoin(ready, ready.c.run_id == runs.c.id)
)


def _run(row: Row[Any], attempts_of: list[Attempt]) -> Run:
    state = row.state
    if state == RunState.ACTIVE.value and row.attempt_state is not None:
        state = row.attempt_state
    told = row.state in _ENDS or row.state == RunState.RETRYING.value
    started_at = row.started_at if row.started_at is not None else row.lease_started_at
    return Run.model_construct(
        id=row.id,
        deployment=row.deployment,
        revision=row.revision,
        pool=row.pool,
        queue=row.queue,
        tags=row.tags,
        parameters=row.parameters,
        priority=row.priority,
        state=state,
        cause=Cause(row.cause) if told and row.cause else None,
        message=row.message if told else None,
        late=row.late,
        lost=bool(row.lost),
        held=row.due_at is not None and bool(row.held),
        created_at=moment(row.created_at),
        scheduled_at=moment(row.scheduled_at),
        due_at=maybe(row.due_at),
        started_at=maybe(started_at),
        ended_at=maybe(row.ended_at),
        schedule=row.schedule,
        slot=maybe(row.slot_at),
        backfill=row.backfill_id,
        result=row.result,
        attempt_count=row.attempts + (1 if row.live_attempt is not None else 0),
        attempts=attempts_of,
    )


def run(tx: Tx, run_id: UUID) -> Run:
    """One run with all its attempts.

    Raises:
        NotFound: there is none.
    """
    row = tx.conn.execute(_RUN.where(runs.c.id == run_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no run {run_id}", "See `shunter run list`.")
    return _run(row, attempts_of(tx, run_id))


def attempts_of(tx: Tx, run_id: UUID) -> list[Attempt]:
    """The attempts of a run, oldest first, the live one last."""
    return attempts_by_run(tx, [run_id])[run_id]


def attempts_by_run(tx: Tx, run_ids: list[UUID]) -> dict[UUID, list[Attempt]]:
    """The attempts of each of many runs, oldest first, the live one last."""
    found: dict[UUID, list[Attempt]] = {run_id: [] for run_id in run_ids}
    ended = (
        select(attempts).where(attempts.c.run_id.in_(run_ids)).order_by(attempts.c.run_id, attempts.c.number)
    )
    for row in tx.conn.execute(ended):
        found[row.run_id].append(_ended_attempt(row))
    live = (
        select(leases, agents.c.name.label("agent"))
        .join(agents, agents.c.id == leases.c.agent_id)
        .where(leases.c.run_id.in_(run_ids))
    )
    for row in tx.conn.execute(live):
        found[row.run_id].append(_live_attempt(row))
    return found


def _ended_attempt(row: Row[Any]) -> Attempt:
    return Attempt.model_construct(
        number=row.number,
        state=row.state,
        cause=Cause(row.cause) if row.cause else None,
        message=row.message,
        agent=row.agent,
        epoch=row.epoch,
        pid=row.pid,
        exit_code=row.exit_code,
        signal=row.signal,
        claimed_at=moment(row.claimed_at),
        started_at=maybe(row.started_at),
        ended_at=maybe(row.ended_at),
        max_rss_bytes=row.max_rss_bytes,
        cpu_seconds=row.cpu_seconds,
        log_size=row.log_size,
        log_deleted=row.log_deleted,
        lost=False,
        memory=row.memory,
        note=None,
        commit=row.commit,
        progress=told_progress(row.progress),
    )


def _live_attempt(row: Row[Any]) -> Attempt:
    return Attempt(
        number=row.attempt,
        state=row.state,
        message=row.message,
        agent=row.agent,
        epoch=row.epoch,
        pid=row.pid,
        claimed_at=moment(row.granted_at),
        started_at=maybe(row.started_at),
        lost=row.lost,
        memory=row.memory,
        note=row.note,
        commit=row.commit,
        progress=told_progress(row.progress),
    )


def manifest(tx: Tx, run_id: UUID, attempt: int | None) -> Manifest:
    """What an engine was asked for, for an attempt of a run; None: for the last that has any.

    Raises:
        NotFound: there is no such run, or nothing is known of that.
    """
    asked = select(manifests).where(manifests.c.run_id == run_id)
    if attempt is not None:
        asked = asked.where(manifests.c.attempt == attempt)
    row = tx.conn.execute(asked.order_by(manifests.c.attempt.desc()).limit(1)).one_or_none()
    if row is not None:
        return Manifest(run=run_id, attempt=row.attempt, manifest=row.document)
    run(tx, run_id)
    which = "the run" if attempt is None else f"attempt {attempt}"
    raise NotFound(
        f"no manifest of {which} is kept",
        "Runs of engines (docker, kubernetes) have one from when they run.",
    )


_IS_HELD = and_(
    runs.c.state.in_([RunState.SCHEDULED.value, RunState.RETRYING.value]),
    or_(
        select(pause_rows.c.ref_id).where(pause_rows.c.kind == "server").exists(),
        *(
            exists(select(1).where(kind.c.id == ref_id, kind.c.paused).correlate(runs))
            for kind, ref_id in (
                (deployments, runs.c.deployment_id),
                (queues, runs.c.queue_id),
                (pools, runs.c.pool_id),
            )
        ),
    ),
)


@dataclass(frozen=True)
class RunFilter:
    """Which runs a list is about; None and empty mean: any.

    Attributes:
        states: shown states (of runs or live attempts), any of them.
        tags: all of them.
        created_after, created_before, scheduled_after, scheduled_before: moments, inclusive lower and
            exclusive upper bounds.
        cursor: ``next`` of the page before.
        limit: 1 to 500.
    """

    states: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    pool: str | None = None
    queue: str | None = None
    deployment: str | None = None
    late: bool | None = None
    held: bool | None = None
    created_after: Any = None
    created_before: Any = None
    scheduled_after: Any = None
    scheduled_before: Any = None
    cursor: str | None = None
    limit: int = 50


def list_runs(tx: Tx, wanted: RunFilter) -> tuple[list[Run], str | None]:
    """One page of runs, newest first, and the cursor of the next.

    Newest is what was made last; with a bound of ``scheduled_at``, what was due last: an index walks the
    one order or the other, and a page of an hour long ago costs no more than the newest one.

    Raises:
        BadRequest: an unknown state, a limit out of bounds, a cursor that is none.
        NotFound: a pool or deployment that does not exist.
    """
    if not 1 <= wanted.limit <= PAGE_LIMIT:
        raise BadRequest(f"limit is {wanted.limit}; it must be 1 to {PAGE_LIMIT}")
    by_slot = wanted.scheduled_after is not None or wanted.scheduled_before is not None
    order = [runs.c.scheduled_at.desc(), runs.c.id.desc()] if by_slot else [runs.c.id.desc()]
    page = select(runs.c.id, runs.c.scheduled_at).order_by(*order).limit(wanted.limit + 1)
    for condition in _conditions(tx, wanted):
        page = page.where(condition)
    if wanted.cursor is not None:
        page = page.where(_after(wanted.cursor, by_slot))
    found = tx.conn.execute(page).all()
    more = len(found) > wanted.limit
    found = found[: wanted.limit]
    if not found:
        return [], None
    last = found[-1]
    cursor = f"{last.scheduled_at:x}-{last.id.hex}" if by_slot else last.id.hex
    return runs_of(tx, [row.id for row in found]), (cursor if more else None)


def runs_of(tx: Tx, run_ids: list[UUID]) -> list[Run]:
    """Runs by their ids, in that order, without their attempts."""
    if not run_ids:
        return []
    rows = {row.id: row for row in tx.conn.execute(_RUN.where(runs.c.id.in_(run_ids)))}
    return [_run(rows[run_id], []) for run_id in run_ids if run_id in rows]


def export_runs(tx: Tx, wanted: RunFilter) -> tuple[list[ExportedRun], str | None]:
    """One page of runs as :func:`list_runs` gives it, with their attempts and events.

    Raises:
        BadRequest, NotFound: as :func:`list_runs`.
    """
    page, following = list_runs(tx, wanted)
    ids = [one.id for one in page]
    attempts_ = attempts_by_run(tx, ids)
    happened: dict[UUID, list[Event]] = {run_id: [] for run_id in ids}
    for row in tx.conn.execute(select(events).where(events.c.run_id.in_(ids)).order_by(events.c.id)):
        happened[row.run_id].append(_event(row))
    return [
        ExportedRun.model_construct(**dict(one) | {"attempts": attempts_[one.id], "events": happened[one.id]})
        for one in page
    ], following


def _after(cursor: str, by_slot: bool) -> ColumnElement[bool]:
    """What comes on the pages after a cursor."""
    match = re.fullmatch(r"(?:(-?[0-9a-f]{1,15})-)?([0-9a-f]{32})", cursor)
    if match is None or (match[1] is not None) is not by_slot:
        raise BadRequest(
            "the cursor is not one that this server gave out for these filters", "Start again without it."
        )
    if match[1] is None:
        return runs.c.id < UUID(match[2])
    return tuple_(runs.c.scheduled_at, runs.c.id) < tuple_(int(match[1], 16), UUID(match[2]))


def _conditions(tx: Tx, wanted: RunFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.states:
        conditions.append(_of_states(wanted.states))
    conditions.extend(
        exists(select(1).where(run_tags.c.run_id == runs.c.id, run_tags.c.tag == tag).correlate(runs))
        for tag in dict.fromkeys(wanted.tags)
    )
    if wanted.pool is not None:
        pool = pool_row(tx, wanted.pool)
        conditions.append(runs.c.pool_id == pool.id)
        if wanted.queue is not None:
            conditions.append(runs.c.queue_id == queue_row(tx, wanted.pool, wanted.queue).id)
    if wanted.deployment is not None:
        conditions.append(runs.c.deployment_id == deployment_row(tx, wanted.deployment).id)
    if wanted.late is not None:
        conditions.append(runs.c.late if wanted.late else ~runs.c.late)
    if wanted.held is not None:
        conditions.append(_IS_HELD if wanted.held else ~_IS_HELD)
    # Ids sort by creation, so bounds of time are bounds of the primary key.
    if wanted.created_after is not None:
        conditions.append(runs.c.id >= UUID(int=lowest_id(max(0, micros(wanted.created_after)))))
    if wanted.created_before is not None:
        conditions.append(runs.c.id < UUID(int=lowest_id(max(0, micros(wanted.created_before)))))
    if wanted.scheduled_after is not None:
        conditions.append(runs.c.scheduled_at >= micros(wanted.scheduled_after))
    if wanted.scheduled_before is not None:
        conditions.append(runs.c.scheduled_at < micros(wanted.scheduled_before))
    return conditions


def _of_states(states: tuple[str, ...]) -> Any:
    known = {state.value for state in RunState} | _LIVE
    unknown = [state for state in states if state not in known]
    if unknown:
        raise BadRequest(f"there is no state {unknown[0]!r}", f"States: {', '.join(sorted(known))}.")
    of_run = [state for state in states if state in {s.value for s in RunState}]
    of_attempt = [state for state in states if state in _LIVE]
    parts: list[ColumnElement[bool]] = []
    if of_run:
        parts.append(runs.c.state.in_(of_run))
    if of_attempt:
        live = select(leases.c.run_id).where(leases.c.state.in_(of_attempt))
        parts.append(and_(runs.c.state == RunState.ACTIVE.value, runs.c.id.in_(live)))
    return or_(*parts)


def events_of(tx: Tx, run_id: UUID) -> list[Event]:
    """The events of a run, oldest first.

    Raises:
        NotFound: there is no such run.
    """
    rows = tx.conn.execute(select(events).where(events.c.run_id == run_id).order_by(events.c.id)).all()
    if not rows and tx.conn.scalar(select(runs.c.id).where(runs.c.id == run_id)) is None:
        raise NotFound(f"there is no run {run_id}", "See `shunter run list`.")
    return [_event(row) for row in rows]


def _event(row: Row[Any]) -> Event:
    return Event.model_construct(
        at=moment(row.at), kind=row.kind, actor=row.actor, attempt=row.attempt, data=row.data or {}
    )


def deployment_events(tx: Tx, name: str) -> list[Event]:
    """The events of a deployment that belong to none of its runs, oldest first, the newest 1000.

    Raises:
        NotFound: there is no such deployment.
    """
    row = deployment_row(tx, name)
    newest = (
        select(events)
        .where(events.c.run_id.is_(None), events.c.deployment_id == row.id)
        .order_by(events.c.id.desc())
        .limit(EVENT_LIMIT)
    )
    return [_event(event) for event in reversed(tx.conn.execute(newest).all())]


# ---- pools and agents


def list_pools(tx: Tx, lost_after: float, name: str | None = None) -> list[Pool]:
    """All pools by name, or the one of a name, with the agents heard of within ``lost_after`` seconds.

    Raises:
        NotFound: there is no pool of that name.
    """
    statement = select(pools).where(pools.c.deleted_at.is_(None)).order_by(pools.c.name)
    if name is not None:
        pool_row(tx, name)
        statement = statement.where(pools.c.name == name)
    active = {
        row[0]: row[1]
        for row in tx.conn.execute(select(leases.c.queue_id, func.count()).group_by(leases.c.queue_id))
    }
    waiting = {
        row[0]: row[1]
        for row in tx.conn.execute(
            select(lanes.c.queue_id, func.count())
            .join(ready, ready.c.lane_id == lanes.c.id)
            .group_by(lanes.c.queue_id)
        )
    }
    alive = tx.conn.execute(select(agents).where(agents.c.last_seen_at > _alive_after(tx, lost_after))).all()
    pool_pauses, queue_pauses = pauses.known(tx, "pool"), pauses.known(tx, "queue")
    found = []
    for row in tx.conn.execute(statement).all():
        own = [
            Queue(
                name=queue.name,
                pool=row.name,
                priority=queue.priority,
                limit=queue.limit,
                paused=queue.paused,
                pause=queue_pauses.get(queue.id),
                waiting=waiting.get(queue.id, 0),
                active=active.get(queue.id, 0),
            )
            for queue in tx.conn.execute(
                select(queues)
                .where(queues.c.pool_id == row.id, queues.c.deleted_at.is_(None))
                .order_by(queues.c.priority.desc(), queues.c.name)
            )
        ]
        found.append(
            Pool(
                name=row.name,
                type=row.type,
                match=row.match,
                limit=row.limit,
                priority=row.priority,
                template=row.template,
                paused=row.paused,
                pause=pool_pauses.get(row.id),
                created_at=moment(row.created_at),
                queues=own,
                waiting=sum(queue.waiting for queue in own),
                active=sum(queue.active for queue in own),
                agents=sorted(agent.name for agent in alive if row.name in agent.pools),
            )
        )
    return found


def queue_view(tx: Tx, pool: str, name: str) -> Queue:
    """One queue of a pool.

    Raises:
        NotFound: there is no such pool or queue.
    """
    queue_row(tx, pool, name)
    return next(queue for queue in list_pools(tx, 0, pool)[0].queues if queue.name == name)


def _alive_after(tx: Tx, lost_after: float) -> Micros:
    return tx.now - round(lost_after * 1_000_000)


#: How many attempts of a revision an agent holds: what these need is in the revision.
_BY_AGENT = select(
    leases.c.agent_id, leases.c.deployment_id, leases.c.revision, func.count().label("held")
).group_by(leases.c.agent_id, leases.c.deployment_id, leases.c.revision)


def list_agents(tx: Tx, lost_after: float, name: str | None = None) -> list[Agent]:
    """All agents by name, or the one of a name; lost are those not heard of within ``lost_after`` seconds.

    Raises:
        NotFound: there is no agent of that name.
    """
    statement = select(agents).order_by(agents.c.name)
    if name is not None:
        agent_row(tx, name)
        statement = statement.where(agents.c.name == name)
    alive_after = _alive_after(tx, lost_after)
    active: Counter[int] = Counter()
    used: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for lease in tx.conn.execute(_BY_AGENT):
        active[lease.agent_id] += lease.held
        for resource, amount in revision_spec(tx, lease.deployment_id, lease.revision).need.items():
            used[lease.agent_id][resource] += amount * lease.held
    agent_pauses = pauses.known(tx, "agent")
    return [
        Agent(
            name=row.name,
            pools=row.pools,
            queues=row.queues,
            tags=row.tags,
            found_tags=row.found_tags,
            capacity=row.capacity,
            free_capacity={
                resource: max(0.0, amount - used[row.id][resource])
                for resource, amount in row.capacity.items()
            },
            limit=row.limit,
            active=active[row.id],
            host=row.host,
            version=row.version,
            first_seen_at=moment(row.first_seen_at),
            last_seen_at=moment(row.last_seen_at),
            lost=row.last_seen_at <= alive_after and not has_stopped(row, active[row.id]),
            stopped=row.last_seen_at <= alive_after and has_stopped(row, active[row.id]),
            draining=row.draining or row.drain_session == row.session,
            troubles=row.troubles,
            reaches=row.reaches,
            paused=row.paused,
            pause=agent_pauses.get(row.id),
        )
        for row in tx.conn.execute(statement)
    ]


# ---- deployments


def _deployments(tx: Tx, rows: list[Row[Any]]) -> list[Deployment]:
    timetables: dict[int, list[ScheduleView]] = {row.id: [] for row in rows}
    live = timetable.live_rows(tx, list(timetables))
    for schedule, view in zip(live, schedule_views.views_of(tx, live), strict=True):
        timetables[schedule.deployment_id].append(view)
    own_pauses = pauses.known(tx, "deployment", [row.id for row in rows if row.paused])
    found = []
    for row in rows:
        spec = revision_spec(tx, row.id, row.revision)
        found.append(
            Deployment.model_construct(
                name=row.name,
                revision=row.revision,
                paused=row.paused,
                pause=own_pauses.get(row.id),
                created_at=moment(row.created_at),
                updated_at=moment(row.updated_at),
                spec=spec,
                schedules=timetables[row.id],
            )
        )
    return found


def deployment_view(tx: Tx, name: str) -> Deployment:
    """One deployment.

    Raises:
        NotFound: there is none of that name.
    """
    return _deployments(tx, [deployment_row(tx, name)])[0]


def list_deployments(tx: Tx, cursor: str | None, limit: int) -> tuple[list[Deployment], str | None]:
    """One page of deployments by name, and the cursor of the next.

    Raises:
        BadRequest: a limit out of bounds.
    """
    if not 1 <= limit <= PAGE_LIMIT:
        raise BadRequest(f"limit is {limit}; it must be 1 to {PAGE_LIMIT}")
    there = deployments.c.deleted_at.is_(None)
    statement = select(deployments).where(there).order_by(deployments.c.name).limit(limit + 1)
    if cursor is not None:
        statement = statement.where(deployments.c.name > cursor)
    rows = list(tx.conn.execute(statement).all())
    more = len(rows) > limit
    rows = rows[:limit]
    return _deployments(tx, rows), (rows[-1].name if more else None)


def list_revisions(tx: Tx, name: str) -> list[Revision]:
    """The revisions of a deployment, newest first.

    Raises:
        NotFound: there is no such deployment.
    """
    row = deployment_row(tx, name)
    statement = (
        select(revisions).where(revisions.c.deployment_id == row.id).order_by(revisions.c.number.desc())
    )
    return [
        Revision(
            deployment=name,
            number=revision.number,
            created_at=moment(revision.created_at),
            spec=DeploymentSpec.model_validate(revision.spec, extra="ignore"),
        )
        for revision in tx.conn.execute(statement)
    ]
