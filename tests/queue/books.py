"""The books of a queue: what must hold in its tables after every transaction, whatever happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from shunter_work_pools.contracts.states import (
    ATTEMPT_ENDS,
    RUN_ENDS,
    Actor,
    AttemptState,
    Cause,
    RunState,
    cause_fits,
    may_move_attempt,
    may_move_run,
)
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.lanes import need_text
from shunter_work_pools.storage.schema import (
    agents,
    attempts,
    backfills,
    deployments,
    events,
    lane_limits,
    lanes,
    lease_limits,
    leases,
    limits,
    pauses,
    payloads,
    pools,
    queues,
    ready,
    runs,
    schedules,
)
from shunter_work_pools.storage.store import Tx

_WAITING = {RunState.SCHEDULED, RunState.RETRYING}
_ENDS = {state.value for state in ATTEMPT_ENDS}
_ATTEMPT_STATES = {state.value for state in AttemptState}


def audit(tx: Tx) -> None:
    """Compare everything with everything; AssertionError if anything does not agree."""
    run_rows = {row.id: row for row in tx.conn.execute(select(runs))}
    ready_rows = {row.run_id: row for row in tx.conn.execute(select(ready))}
    lease_rows = {row.run_id: row for row in tx.conn.execute(select(leases))}
    lane_rows = {row.id: row for row in tx.conn.execute(select(lanes))}
    payload_rows = {row.run_id: row for row in tx.conn.execute(select(payloads))}
    attempt_rows: dict[UUID, list[Any]] = defaultdict(list)
    for row in tx.conn.execute(select(attempts).order_by(attempts.c.run_id, attempts.c.number)):
        attempt_rows[row.run_id].append(row)
    event_rows: dict[UUID, list[Any]] = defaultdict(list)
    for row in tx.conn.execute(select(events).where(events.c.run_id.is_not(None)).order_by(events.c.id)):
        event_rows[row.run_id].append(row)

    assert set(payload_rows) == set(run_rows)
    assert set(ready_rows) | set(lease_rows) | set(attempt_rows) <= set(run_rows)
    for run_id, run in run_rows.items():
        state = RunState(run.state)
        places = (run_id in ready_rows, run_id in lease_rows, state in RUN_ENDS)
        assert sum(places) == 1, f"run {run_id} ({state}) is in ready, leases, ended: {places}"
        assert places == (state in _WAITING, state is RunState.ACTIVE, state in RUN_ENDS)
        assert (run.ended_at is not None) == (state in RUN_ENDS)
        assert (run_id.version, run_id.variant) == (7, "specified in RFC 4122")
        _audit_attempts(run, attempt_rows[run_id], lease_rows.get(run_id))
        if run_id in ready_rows:
            _audit_place(tx, run, ready_rows[run_id], lane_rows)
        if state in RUN_ENDS:
            assert cause_fits(AttemptState(state.value), None if run.cause is None else Cause(run.cause))
        _audit_events(run, lease_rows.get(run_id), event_rows[run_id])
    _audit_limits(tx, run_rows, ready_rows, lease_rows, lane_rows)
    _audit_pauses(tx)


def _audit_limits(
    tx: Tx,
    run_rows: dict[UUID, Any],
    ready_rows: dict[UUID, Any],
    lease_rows: dict[UUID, Any],
    lane_rows: Any,
) -> None:
    """Whatever waits and whatever is active is under the limits that its run says, and under no others."""
    there = tx.conn.execute(select(limits)).all()
    counted: dict[UUID, set[int]] = defaultdict(set)
    for row in tx.conn.execute(select(lease_limits)):
        counted[row.run_id].add(row.limit_id)
    over: dict[int, set[int]] = defaultdict(set)
    for row in tx.conn.execute(select(lane_limits)):
        over[row.lane_id].add(row.limit_id)
    ids = {row.id for row in there}
    for lane in lane_rows.values():
        assert over[lane.id] == {int(word) for word in lane.limits.split()} & ids, f"lane {lane.id}"
    assert set(counted) <= set(lease_rows), "something counts under a limit that is not active"
    for run_id, lease in lease_rows.items():
        # (One that was deleted is not counted any more, the lease has the mark still.)
        assert lease.limited or not counted[run_id]
        _audit_under(tx, run_rows[run_id], counted[run_id], there)
    for run_id, waiting in ready_rows.items():
        if waiting.lane_id is not None:
            _audit_under(tx, run_rows[run_id], over[waiting.lane_id], there)


def _audit_under(tx: Tx, run: Any, found: set[int], there: Any) -> None:
    spec = revision_spec(tx, run.deployment_id, run.revision)
    tagged = {row.id for row in there if row.tag in run.tags}
    named = {row.id: row.created_at for row in there if row.tag is None and row.name in spec.limits}
    # One of that name that was made anew since is another.
    before = {limit_id for limit_id, made in named.items() if made < run.created_at}
    assert tagged | before <= found <= tagged | set(named), f"run {run.id} is under {found}"


def exceeded(tx: Tx) -> set[tuple[str, str]]:
    """Kind and name of the limits of which more is active than they allow."""
    kinds: list[tuple[str, Any, Any, Any, Any]] = [
        ("pool", pools, pools.c.name, pools.c.limit, leases.c.pool_id),
        ("queue", queues, queues.c.name, queues.c.limit, leases.c.queue_id),
        ("deployment", deployments, deployments.c.name, deployments.c.max_active, leases.c.deployment_id),
        ("limit", limits, limits.c.name, limits.c.max, lease_limits.c.limit_id),
        ("backfill", backfills, backfills.c.id, backfills.c.concurrency, leases.c.backfill_id),
    ]
    found = set()
    for kind, table, name, most, counted in kinds:
        used = select(func.count()).where(counted == table.c.id).scalar_subquery()
        found |= {(kind, str(one)) for one in tx.conn.scalars(select(name).where(most < used))}
    return found


def _audit_pauses(tx: Tx) -> None:
    """Whatever has somebody who paused it is paused, and there."""
    kinds = {
        "deployment": deployments,
        "schedule": schedules,
        "queue": queues,
        "pool": pools,
        "agent": agents,
    }
    paused = {
        (kind, row.id)
        for kind, table in kinds.items()
        for row in tx.conn.execute(select(table).where(table.c.paused))
        if not (getattr(row, "deleted_at", None) or getattr(row, "removed", False))
    }
    told = {(row.kind, row.ref_id) for row in tx.conn.execute(select(pauses))}
    assert told <= paused | {("server", 0)}, f"not paused, or gone: {told - paused}"


def _audit_attempts(run: Any, ended: list[Any], lease: Any) -> None:
    """Numbered without holes, each under a higher epoch than the one before."""
    assert [row.number for row in ended] == list(range(1, run.attempts + 1))
    epochs = [row.epoch for row in ended]
    for row in ended:
        assert cause_fits(AttemptState(row.state), None if row.cause is None else Cause(row.cause))
        assert row.claimed_at <= row.ended_at
        assert row.started_at is None or row.claimed_at <= row.started_at <= row.ended_at
    if lease is not None:
        assert (lease.attempt, lease.epoch) == (run.attempts + 1, run.epoch)
        assert lease.backfill_id == run.backfill_id
        assert lease.cancelling == (lease.state == AttemptState.CANCELLING.value)
        epochs.append(lease.epoch)
    assert epochs == sorted(set(epochs)), f"epochs of run {run.id}: {epochs}"
    assert not epochs or epochs[-1] <= run.epoch


def _audit_place(tx: Tx, run: Any, waiting: Any, lane_rows: dict[int, Any]) -> None:
    assert waiting.late == (run.late or run.backfill_id is not None)
    assert not (run.late and run.backfill_id is not None)
    if waiting.lane_id is None:
        assert run.queue_id is None
        return
    lane = lane_rows[waiting.lane_id]
    assert (lane.queue_id, lane.priority, lane.deployment_id, lane.backfill_id) == (
        run.queue_id,
        run.priority,
        run.deployment_id,
        run.backfill_id or 0,
    )
    spec = revision_spec(tx, run.deployment_id, run.revision)
    assert (lane.require, lane.need) == (" ".join(sorted(spec.require)), need_text(spec.need))


def _audit_events(run: Any, lease: Any, rows: list[Any]) -> None:
    """The events alone tell where the run is, by allowed steps made by those who may make them."""
    run_state: RunState | None = None
    attempt_state: AttemptState | None = None
    attempt, epoch = 0, 0
    for at, row in enumerate(rows):
        actor = Actor(row.actor)
        said = f"event {at} of run {run.id}: {row.kind} by {row.actor}, from {run_state}/{attempt_state}"
        if row.kind == RunState.SCHEDULED.value:
            assert may_move_run(run_state, RunState.SCHEDULED, actor), said
            run_state = RunState.SCHEDULED
        elif row.kind == AttemptState.CLAIMED.value:
            assert may_move_run(run_state, RunState.ACTIVE, actor), said
            assert may_move_attempt(None, AttemptState.CLAIMED, actor), said
            assert row.data["epoch"] > epoch, said
            run_state, attempt_state = RunState.ACTIVE, AttemptState.CLAIMED
            attempt, epoch = row.attempt, row.data["epoch"]
        elif row.kind == RunState.RETRYING.value:
            assert attempt_state in ATTEMPT_ENDS, said
            assert may_move_run(RunState.ACTIVE, RunState.RETRYING, actor), said
            run_state, attempt_state = RunState.RETRYING, None
        elif row.kind in _ENDS:
            run_state, attempt_state = _ended(row, actor, run_state, attempt_state, rows[at + 1 :], said)
        elif row.kind in _ATTEMPT_STATES:
            assert row.attempt == attempt, said
            after = AttemptState(row.kind)
            assert attempt_state is not None, said
            if attempt_state is AttemptState.CANCELLING and actor is Actor.AGENT:
                continue  # progress of an attempt that is being stopped is noted; it stays Cancelling
            assert may_move_attempt(attempt_state, after, actor), said
            attempt_state = after
        elif row.kind == "released":
            assert run_state is RunState.ACTIVE, said
            again = {RunState.SCHEDULED, RunState.RETRYING}
            assert all(may_move_run(RunState.ACTIVE, back, actor) for back in again), said
            # Which of the two it was before is what the run says; the last event decides.
            run_state = RunState.SCHEDULED if attempt == 1 else RunState.RETRYING
            if at == len(rows) - 1 or rows[at + 1].kind != AttemptState.CLAIMED.value:
                run_state = RunState(run.state) if RunState(run.state) in again else run_state
            attempt_state = None
        elif row.kind == "handed_over":
            assert run_state is RunState.ACTIVE, said
            assert row.data["epoch"] == epoch + 1, said
            epoch = row.data["epoch"]
        elif row.kind == "left":
            assert (run_state, actor) == (RunState.ACTIVE, Actor.AGENT), said
        else:
            assert row.kind in {"late", "lost", "found", "routed", "priority", "waiting"}, said
    assert run_state is not None
    assert run_state.value == run.state, f"events of {run.id} lead to {run_state}, the run says {run.state}"
    if lease is not None:
        assert attempt_state is not None
        assert attempt_state.value == lease.state


def _ended(
    row: Any,
    actor: Actor,
    run_state: RunState | None,
    attempt_state: AttemptState | None,
    following: list[Any],
    said: str,
) -> tuple[RunState, AttemptState | None]:
    end = AttemptState(row.kind)
    if run_state is not RunState.ACTIVE:
        assert may_move_run(run_state, RunState(row.kind), actor), said
        return RunState(row.kind), None
    assert may_move_attempt(attempt_state, end, actor), said
    if any(True for later in following[:1] if later.kind == RunState.RETRYING.value):
        return RunState.ACTIVE, end
    assert may_move_run(run_state, RunState(row.kind), actor), said
    return RunState(row.kind), end


def held_by(tx: Tx, column: Any) -> Counter[int]:
    """Live leases counted by a column of ``leases``."""
    return Counter(tx.conn.scalars(select(column)))
