"""Report: the steps of attempts as their agents saw them, each counted once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import JSON, Row, bindparam, delete, insert, select, update

from shunter_work_pools.contracts.agents import MANIFEST_LIMIT, Report, ReportAck
from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.deployments import RESULT_LIMIT, DeploymentSpec
from shunter_work_pools.contracts.states import (
    ATTEMPT_ENDS,
    LAUNCH_FAILURES,
    Actor,
    AttemptState,
    Cause,
    RunState,
    cause_fits,
    may_move_attempt,
)
from shunter_work_pools.queue import retries
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.handover import others_have
from shunter_work_pools.queue.lanes import Limits, all_limits, hold_limits, lane_of
from shunter_work_pools.queue.limits import places_freed
from shunter_work_pools.queue.parameters import json_size
from shunter_work_pools.queue.routing import marked
from shunter_work_pools.storage.schema import (
    agents,
    attempts,
    deployments,
    leases,
    manifests,
    payloads,
    ready,
    runs,
)
from shunter_work_pools.storage.store import Tx

_LEASES = (
    select(leases, agents.c.name.label("agent"))
    .join(agents, agents.c.id == leases.c.agent_id)
    .where(leases.c.run_id.in_(bindparam("wanted", expanding=True)))
    .order_by(leases.c.run_id)
    .with_for_update(of=leases)
)
_PROGRESS = (
    update(leases)
    .where(leases.c.run_id == bindparam("run"), leases.c.epoch == bindparam("held_epoch"))
    .values(
        state=bindparam("new_state"),
        seq=bindparam("new_seq"),
        started_at=bindparam("new_started_at"),
        pid=bindparam("new_pid"),
        message=bindparam("new_message"),
        commit=bindparam("new_commit"),
        note=bindparam("new_note"),
    )
)

_DROP_MANIFEST = delete(manifests).where(
    manifests.c.run_id == bindparam("run"), manifests.c.attempt == bindparam("number")
)
_KEEP_MANIFEST = insert(manifests).values(
    run_id=bindparam("run"), attempt=bindparam("number"), document=bindparam("told", type_=JSON)
)

#: Run, attempt, epoch.
Key = tuple[UUID, int, int]
#: Whether a run is tried again: as its policy says, in any case, or not.
Retry = Literal["policy", "always", "never"]


class Steps:
    """The steps of many attempts, gathered so that each kind of row is written once.

    An attempt that started and ended within one batch never touches its lease but to delete it.
    """

    def __init__(self, tx: Tx, lost_after: float) -> None:
        self.tx = tx
        self.lost_after = lost_after
        self.events: list[dict[str, Any]] = []
        self.progress: list[dict[str, Any]] = []
        self.ends: list[_End] = []
        self.manifests: dict[tuple[UUID, int], dict[str, Any]] = {}

    def write(self) -> None:
        """Write everything."""
        tx = self.tx
        if self.progress:
            tx.conn.execute(_PROGRESS, self.progress)
        _write_ends(tx, self.ends, self.events, lost_after=self.lost_after)
        if self.manifests:
            # One that is told again, under a new epoch, takes the place of the older.
            rows = list(self.manifests.values())
            tx.conn.execute(_DROP_MANIFEST, rows)
            tx.conn.execute(_KEEP_MANIFEST, rows)
        record(tx, self.events)


class _End:
    """An attempt's end, with all that is kept of it."""

    def __init__(
        self,
        lease: Row[Any],
        state: AttemptState,
        actor: Actor,
        ended_at: Micros,
        *,
        cause: str | None,
        message: str | None,
        started_at: Micros | None,
        pid: int | None,
        seq: int,
        result: Any = None,
        exit_code: int | None = None,
        signal: str | None = None,
        max_rss_bytes: int | None = None,
        cpu_seconds: float | None = None,
        log_size: int | None = None,
        commit: str | None = None,
    ) -> None:
        self.lease = lease
        self.state = state
        self.actor = actor
        self.result = result
        self.row = {
            "run_id": lease.run_id,
            "number": lease.attempt,
            "epoch": lease.epoch,
            "seq": seq,
            "agent": lease.agent,
            "state": state.value,
            "cause": cause,
            "message": message,
            "claimed_at": lease.granted_at,
            "started_at": started_at,
            "ended_at": ended_at,
            "pid": pid,
            "exit_code": exit_code,
            "signal": signal,
            "max_rss_bytes": max_rss_bytes,
            "cpu_seconds": cpu_seconds,
            "log_size": log_size,
            "memory": lease.memory,
            "progress": lease.progress,
            "commit": commit or lease.commit,
        }


def report(tx: Tx, agent_id: int, reports: list[Report], lost_after: float) -> list[ReportAck]:
    """Apply reports of one agent; acknowledgements, one per attempt, in the order of the batch.

    A report with a number that was seen is skipped, so sending twice is harmless. One under an epoch
    that is no longer held changes nothing and is answered as stale.

    Args:
        lost_after: an agent heard of within so many seconds may be given what this one could not launch.
    """
    wanted = list(dict.fromkeys(item.run for item in reports))
    hold_limits(tx)
    held = {lease.run_id: lease for lease in tx.conn.execute(_LEASES, {"wanted": wanted})}
    steps = Steps(tx, lost_after)
    acks: dict[Key, ReportAck] = {}
    late: list[Report] = []
    ordered = sorted(reports, key=_key_of)
    groups = [(key, sorted(group, key=lambda item: item.seq)) for key, group in groupby(ordered, _key_of)]
    for key, batch in groups:
        lease = held.get(key[0])
        if lease is None or lease.agent_id != agent_id or (lease.attempt, lease.epoch) != key[1:]:
            late.append(batch[-1])
        else:
            acks[key] = _apply(tx, steps, lease, batch)
    acks |= _after_the_end(tx, late)
    steps.write()
    for end in steps.ends:
        freed(tx, end.lease)
    return [acks[key] for key, _ in groups]


def _key_of(item: Report) -> Key:
    return item.run, item.attempt, item.epoch


def _after_the_end(tx: Tx, late: Sequence[Report]) -> dict[Key, ReportAck]:
    """Their leases are gone: either this very report ended it (and its answer was lost), or it is stale.

    Args:
        late: the last report of each attempt.
    """
    if not late:
        return {}
    rows = tx.conn.execute(
        select(attempts.c.run_id, attempts.c.number, attempts.c.epoch, attempts.c.seq).where(
            attempts.c.run_id.in_({item.run for item in late})
        )
    )
    known = {(row.run_id, row.number, row.epoch): row.seq for row in rows}
    stale = [item for item in late if known.get(_key_of(item), 0) < item.seq]
    handed_over = others_have(tx, stale) if stale else set()
    acks = {}
    for item in late:
        key = _key_of(item)
        acks[key] = ReportAck(run=item.run, attempt=item.attempt, seq=max(item.seq, known.get(key, 0)))
    for item in stale:
        key = _key_of(item)
        acks[key].stale, acks[key].handed_over = True, key in handed_over
        acks[key].detail = f"attempt {item.attempt} is not held under epoch {item.epoch} (any more)"
    return acks


#: What has been told of an attempt by the time that it is in a state.
_TOLD: dict[AttemptState, frozenset[AttemptState]] = {
    AttemptState.STARTING: frozenset({AttemptState.STARTING}),
    AttemptState.RUNNING: frozenset({AttemptState.STARTING, AttemptState.RUNNING}),
}


def _was_told(lease: Row[Any], state: AttemptState, step: AttemptState) -> bool:
    """Whether the agent before has told a step of an attempt that was handed over in a state."""
    if state is AttemptState.CANCELLING:  # it says nothing of how far it had come
        return step is AttemptState.STARTING or lease.started_at is not None
    return step in _TOLD.get(state, ())


def _apply(tx: Tx, steps: Steps, lease: Row[Any], batch: list[Report]) -> ReportAck:
    state = AttemptState(lease.state)
    started_at, pid, message, seq = lease.started_at, lease.pid, lease.message, lease.seq
    commit = lease.commit
    reached = lease.granted_at if started_at is None else started_at
    ended = False
    refused: str | None = None
    for item in batch:
        if item.seq <= seq:
            continue
        if ended:
            refused = "a report after the end"
            break
        # Batches travel for different times, and the clock may be set: no step may seem to come before the
        # one it follows.
        reached = at = max(reached, tx.now - round(item.age * 1_000_000))
        doubts = list(filter(None, [_keep_manifest(steps, item)]))
        commit = item.commit or commit
        if item.state in ATTEMPT_ENDS:
            result, remark = _result(item)
            if result is None:
                result = lease.result
            cause, doubt = _cause(item, lease.superseded_by)
            said = _text(item.message) or message
            steps.ends.append(
                _End(
                    lease,
                    item.state,
                    Actor.AGENT,
                    at,
                    cause=cause,
                    message="; ".join(filter(None, (said, remark, doubt, *doubts))) or None,
                    started_at=started_at,
                    pid=item.pid or pid,
                    seq=item.seq,
                    result=result,
                    exit_code=item.exit_code,
                    signal=_text(item.signal),
                    max_rss_bytes=item.max_rss_bytes,
                    cpu_seconds=item.cpu_seconds,
                    log_size=item.log_size,
                    commit=commit,
                )
            )
            ended = True
        else:
            if item.state is AttemptState.RUNNING and started_at is None:
                started_at = at
                if lease.attempt == 1 and lease.due_at is not None:
                    tx.changes.running_after.append(max(0.0, (at - lease.due_at) / 1_000_000))
            pid = item.pid or pid
            message = "; ".join(filter(None, (_text(item.message) or message, *doubts))) or None
            if may_move_attempt(state, item.state, Actor.AGENT):
                state = item.state
            elif lease.handed_over and _was_told(lease, state, item.state):
                seq = item.seq
                continue
            elif state is not AttemptState.CANCELLING:  # there progress is noted, the state stays
                # What comes after it counts all the same: an end must never be lost to a step before it.
                refused = f"an attempt cannot go from {state.value} to {item.state.value}"
                seq = item.seq
                continue
            steps.events.append(event_row(lease.run_id, item.state.value, Actor.AGENT, at, lease.attempt))
        seq = item.seq
    if not ended and seq > lease.seq:
        steps.progress.append(
            {
                "run": lease.run_id,
                "held_epoch": lease.epoch,
                "new_state": state.value,
                "new_seq": seq,
                "new_started_at": started_at,
                "new_pid": pid,
                "new_message": message,
                "new_commit": commit,
                "new_note": lease.note if started_at is None else None,
            }
        )
    if seq > lease.seq:
        tx.changes.runs.add(lease.run_id)
    if refused is not None:
        # Acknowledged, or the agent would send it for ever; told, so that it is not silent.
        return ReportAck(run=lease.run_id, attempt=lease.attempt, seq=batch[-1].seq, detail=refused)
    return ReportAck(run=lease.run_id, attempt=lease.attempt, seq=seq)


def superseded(limit: str) -> str:
    """Why a run was ended for another."""
    return f"a newer run took its place: {limit} is full"


def _text(value: str | None) -> str | None:
    """Without NUL, which Postgres does not keep: what an agent has to say must not hold up an end."""
    return value and value.replace("\0", "\N{REPLACEMENT CHARACTER}")


#: What an end counts as whose reported cause does not fit it: it has ended, and that must be kept.
_CAUSE_UNCLEAR: dict[AttemptState, Cause | None] = {
    AttemptState.COMPLETED: None,
    AttemptState.FAILED: Cause.EXIT_CODE,
    AttemptState.CRASHED: Cause.KEEPER_LOST,
    AttemptState.TIMED_OUT: Cause.TIMEOUT,
    AttemptState.CANCELLED: Cause.CANCELLED,
}


def _cause(item: Report, superseded_by: str | None) -> tuple[Cause | None, str | None]:
    """The cause to keep of an end, and a remark where it is not the reported one.

    Args:
        superseded_by: what it was to be stopped for, as ``leases`` has it.
    """
    if item.state is AttemptState.CANCELLED and superseded_by is not None:
        return Cause.SUPERSEDED, superseded(superseded_by)
    if cause_fits(item.state, item.cause):
        return item.cause, None
    told = item.cause.value if item.cause else "none"
    return _CAUSE_UNCLEAR[item.state], f"the agent gave a cause that does not fit: {told}"


def _result(item: Report) -> tuple[Any, str | None]:
    remark = _unfit("result", item.result, RESULT_LIMIT)
    return (None, remark) if remark else (item.result, None)


def _keep_manifest(steps: Steps, item: Report) -> str | None:
    """Keep what the engine was asked for, if a report tells it; a remark if it cannot be kept."""
    remark = _unfit("manifest", item.manifest, MANIFEST_LIMIT)
    if item.manifest is not None and remark is None:
        row = {"run": item.run, "number": item.attempt, "told": item.manifest}
        steps.manifests[item.run, item.attempt] = row  # of two in a batch the last
    return remark


def _unfit(what: str, value: Any, limit: int) -> str | None:
    """Why a document of a report is not kept, if it is not: its end must not be held up by it."""
    if value is None:
        return None
    try:
        size = json_size(value)
    except ValueError as exc:
        return f"the {what} was not kept: it is not JSON ({exc})"
    return f"the {what} was not kept: {size} bytes are more than {limit}" if size > limit else None


_RUNS = (
    select(runs, deployments.c.max_active)
    .join(deployments, deployments.c.id == runs.c.deployment_id)
    .where(runs.c.id.in_(bindparam("wanted", expanding=True)))
    .order_by(runs.c.id)
    .with_for_update(of=runs)
)
_DROP = delete(leases).where(leases.c.run_id.in_(bindparam("wanted", expanding=True)))
_KEEP = insert(attempts)
_END_RUN = (
    update(runs)
    .where(runs.c.id == bindparam("run"), runs.c.state == RunState.ACTIVE.value)
    .values(
        state=bindparam("new_state"),
        cause=bindparam("new_cause"),
        message=bindparam("new_message"),
        attempts=bindparam("new_attempts"),
        attempts_forgiven=bindparam("new_forgiven"),
        started_at=bindparam("new_started_at"),
        ended_at=bindparam("new_ended_at"),
    )
)
_READY = insert(ready)


def _write_ends(
    tx: Tx,
    ends: list[_End],
    event_rows: list[dict[str, Any]],
    retry: Retry = "policy",
    lost_after: float = 0.0,
) -> None:
    """Leases go, attempts stay, runs end or wait for their next attempt.

    Args:
        lost_after: an agent heard of within so many seconds may be given what another could not launch.
    """
    if not ends:
        return
    wanted = [end.lease.run_id for end in ends]
    found = {run.id: run for run in tx.conn.execute(_RUNS, {"wanted": wanted})}
    run_rows, ready_rows, results = [], [], []

    @cache  # a batch may be of a thousand ends, and of thousands of agents that are looked at
    def another_fits(agent_id: int, queue_id: int, deployment_id: int, revision: int) -> bool:
        spec = revision_spec(tx, deployment_id, revision)
        return retries.another_fits(tx, agent_id, queue_id, spec, lost_after)

    known: Limits | None = None

    for end in ends:
        run, row = found[end.lease.run_id], end.row
        spec = revision_spec(tx, run.deployment_id, run.revision)
        nth = row["number"] - run.attempts_forgiven
        by_policy = retry == "policy" and not end.lease.cancelling
        forgiven = by_policy and retries.forgiven(spec.retries, end.state, row["cause"])
        again = (
            forgiven
            or retry == "always"
            or (by_policy and retries.wanted(spec.retries, end.state, row["cause"], nth))
        )
        event_rows.append(
            event_row(
                run.id,
                end.state.value,
                end.actor,
                row["ended_at"],
                row["number"],
                **{key: row[key] for key in ("cause", "exit_code", "signal") if row[key] is not None},
            )
        )
        started_at = run.started_at if run.started_at is not None else row["started_at"]
        run_rows.append(
            {
                "run": run.id,
                "new_state": RunState.RETRYING.value if again else end.state.value,
                "new_cause": row["cause"],
                "new_message": row["message"],
                "new_attempts": row["number"],
                "new_forgiven": run.attempts_forgiven + forgiven,
                "new_started_at": started_at,
                "new_ended_at": None if again else row["ended_at"],
            }
        )
        tx.changes.runs.add(run.id)
        tx.changes.pools.add(end.lease.pool_id)
        if again:
            delay = retries.delay(spec.retries, run.id, row["number"], nth, forgiven=forgiven)
            lease = end.lease
            avoids = row["cause"] in LAUNCH_FAILURES and another_fits(
                lease.agent_id, lease.queue_id, run.deployment_id, run.revision
            )
            known = known or all_limits(tx)
            ready_rows.append(_waiting(tx, end, run, spec, delay, lease.agent_id if avoids else None, known))
            told: dict[str, Any] = {"delay": delay / 1_000_000}
            if avoids:
                told["avoids"] = row["agent"]
            if forgiven:
                told["uncounted"] = True
            event_rows.append(
                event_row(run.id, RunState.RETRYING.value, end.actor, tx.now, row["number"], **told)
            )
        else:
            tx.changes.ended[end.state.value, row["cause"] or ""] += 1
            if end.result is not None:
                results.append({"run": run.id, "new_result": end.result})
    places_freed(
        tx,
        [end.lease.run_id for end in ends if end.lease.limited],
        {run.deployment_id for run in found.values() if run.max_active is not None},
        {end.lease.backfill_id for end in ends if end.lease.backfill_id is not None},
    )
    tx.conn.execute(_DROP, {"wanted": wanted})
    tx.conn.execute(_KEEP, [end.row for end in ends])
    tx.conn.execute(_END_RUN, run_rows)
    if ready_rows:
        tx.conn.execute(_READY, ready_rows)
    if results:
        statement = (
            update(payloads)
            .where(payloads.c.run_id == bindparam("run"))
            .values(result=bindparam("new_result"))
        )
        tx.conn.execute(statement, results)


def _waiting(
    tx: Tx, end: _End, run: Row[Any], spec: DeploymentSpec, delay: Micros, avoid: int | None, known: Limits
) -> dict[str, Any]:
    """The row of a run that waits for its next attempt, which is not given to the agent ``avoid``."""
    lease = end.lease
    # The end may seem to be ahead of a clock that was set back.
    due = min(end.row["ended_at"], tx.now) + delay
    if due > tx.now:
        tx.changes.becomes_due((due - tx.now) / 1_000_000)
    elif avoid is not None:
        tx.changes.becomes_due(max(0.0, (due + retries.AVOIDED_FOR - tx.now) / 1_000_000))
    lane_id = lane_of(tx, run, spec, lease.queue_id, known=known)
    return {
        "run_id": run.id,
        "lane_id": lane_id,
        "due_at": due,
        "late": marked(run),
        "avoid_agent_id": avoid,
    }


def freed(tx: Tx, lease: Row[Any]) -> None:
    """Tell that an agent has room again for what a lease took of it."""
    need = revision_spec(tx, lease.deployment_id, lease.revision).need
    tx.changes.freed.setdefault(lease.agent_id, {})[lease.run_id] = need


def end_attempt(
    tx: Tx,
    lease: Row[Any],
    state: AttemptState,
    actor: Actor,
    *,
    cause: str,
    message: str | None = None,
    retry: Retry = "never",
) -> None:
    """End an attempt now that its agent will not report on; ``lease`` is a locked row of leases."""
    if not hasattr(lease, "agent"):
        lease = tx.conn.execute(_LEASES, {"wanted": [lease.run_id]}).one()
    end = _End(
        lease,
        state,
        actor,
        max(tx.now, lease.started_at or lease.granted_at),
        cause=cause,
        message=message or lease.message,
        started_at=lease.started_at,
        pid=lease.pid,
        seq=lease.seq,
    )
    event_rows: list[dict[str, Any]] = []
    _write_ends(tx, [end], event_rows, retry)
    record(tx, event_rows)


def end_cancelled(tx: Tx, lease: Row[Any], actor: Actor) -> None:
    """End an attempt that was to be stopped, and of which nothing goes on."""
    limit = lease.superseded_by
    cause, message = ("cancelled", None) if limit is None else ("superseded", superseded(limit))
    end_attempt(tx, lease, AttemptState.CANCELLED, actor, cause=cause, message=message)


def owns(tx: Tx, agent: str, key: Key) -> bool:
    """Whether an agent has, or had, (run, attempt, epoch)."""
    return key in owned_logs(tx, agent, {key})


def owned_logs(
    tx: Tx, agent: str, keys: set[tuple[UUID, int, int]]
) -> dict[tuple[UUID, int, int], int | None]:
    """Which of (run, attempt, epoch) an agent has or had, with the size of the output once it is known.

    One whose output was deleted is not among them: it does not come back.
    """
    wanted = {run_id for run_id, _, _ in keys}
    found: dict[tuple[UUID, int, int], int | None] = {}
    live = (
        select(leases.c.run_id, leases.c.attempt, leases.c.epoch)
        .join(agents, agents.c.id == leases.c.agent_id)
        .where(leases.c.run_id.in_(wanted), agents.c.name == agent)
    )
    for row in tx.conn.execute(live):
        found[row.run_id, row.attempt, row.epoch] = None
    ended = select(attempts.c.run_id, attempts.c.number, attempts.c.epoch, attempts.c.log_size).where(
        attempts.c.run_id.in_(wanted), attempts.c.agent == agent, attempts.c.log_deleted.is_(False)
    )
    for run_id, number, epoch, log_size in tx.conn.execute(ended):
        found[run_id, number, epoch] = log_size
    return {key: size for key, size in found.items() if key in keys}
