"""Submit: runs are made, by people, programs and schedules, one or many at a time."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text

from shunter_work_pools.contracts.base import Micros, micros
from shunter_work_pools.contracts.errors import Conflict
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.contracts.states import Actor, RunState
from shunter_work_pools.queue.catalog import Placed, deployment, revision_spec
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.queue.ids import new_run_id, reverse
from shunter_work_pools.queue.lanes import LaneKey, all_limits, lane_key, lanes_of
from shunter_work_pools.queue.parameters import check_parameters
from shunter_work_pools.queue.routing import Router, marked
from shunter_work_pools.storage.schema import payloads, ready, run_tags, runs
from shunter_work_pools.storage.store import Tx


@dataclass
class NewRun:
    """A run that is about to be made."""

    deployment: Placed
    parameters: dict[str, Any]
    due_at: Micros
    tags: list[str] = field(default_factory=list)
    priority: int | None = None
    late: bool = False
    schedule_id: int | None = None
    slot_at: Micros | None = None
    backfill_id: int | None = None
    idempotency_key: str | None = None

    @property
    def own_priority(self) -> int:
        """Its own, or the deployment's."""
        return self.deployment.spec.priority if self.priority is None else self.priority

    @property
    def all_tags(self) -> list[str]:
        """The deployment's and its own, each once."""
        return list(dict.fromkeys([*self.deployment.spec.tags, *self.tags]))


def submit(tx: Tx, requests: list[RunRequest]) -> list[tuple[UUID, bool]]:
    """Make runs, all or none: their ids, and whether each was made now or by an earlier request.

    Raises:
        NotFound: there is no such deployment.
        BadRequest, TooLarge: parameters that do not fit.
        Conflict: an idempotency key was used before for something else.
    """
    known = _by_key(tx, [request.idempotency_key for request in requests if request.idempotency_key])
    placed: dict[str, Placed] = {}
    outcome: list[tuple[UUID, bool] | None] = []
    new: list[NewRun] = []
    key_at: dict[str, int] = {}
    for index, request in enumerate(requests):
        target = placed.get(request.deployment)
        if target is None:
            target = placed[request.deployment] = deployment(tx, request.deployment)
        where = f"run {index + 1} of {len(requests)}" if len(requests) > 1 else f"a run of {target.name!r}"
        key = request.idempotency_key
        if key is not None and key in known:
            outcome.append((_same(tx, known[key], target, request.parameters, key), False))
            continue
        parameters = target.spec.parameters | request.parameters
        check_parameters(target.spec, parameters, where)
        if key is not None and key in key_at:
            twin = new[key_at[key]]
            if twin.deployment.id != target.id or twin.parameters != parameters:
                raise _conflict(key)
            outcome.append(None)
            continue
        if key is not None:
            key_at[key] = len(new)
        new.append(
            NewRun(
                deployment=target,
                parameters=parameters,
                due_at=micros(request.scheduled_at) if request.scheduled_at else tx.now,
                tags=request.tags,
                priority=request.priority,
                idempotency_key=key,
            )
        )
        outcome.append(None)
    made = make_runs(tx, new, Actor.USER)
    by_key = {run.idempotency_key: run_id for run, run_id in zip(new, made, strict=True)}
    fresh = iter(made)
    answer: list[tuple[UUID, bool]] = []
    seen: set[str] = set()
    for request, done in zip(requests, outcome, strict=True):
        key = request.idempotency_key
        if done is not None:
            answer.append(done)
        elif key is not None and key in seen:
            answer.append((by_key[key], False))
        else:
            if key is not None:
                seen.add(key)
            answer.append((next(fresh), True))
    return answer


#: Advisory locks that idempotency keys share.
_KEY_BUCKETS = 256
_LOCK_KEYS = text("SELECT pg_advisory_xact_lock(1936225906, :bucket)")


def _by_key(tx: Tx, keys: list[str]) -> dict[str, Any]:
    if not keys:
        return {}
    if tx.postgres:
        # Two requests with one key at once: the second waits here, then finds the first's run.
        # By buckets: thousands of keys in one batch would use up the locks of the whole cluster.
        for bucket in sorted({zlib.crc32(key.encode()) % _KEY_BUCKETS for key in keys}):
            tx.conn.execute(_LOCK_KEYS, {"bucket": bucket})
    statement = (
        select(
            runs.c.id, runs.c.deployment_id, runs.c.revision, runs.c.idempotency_key, payloads.c.parameters
        )
        .join(payloads, payloads.c.run_id == runs.c.id)
        .where(runs.c.idempotency_key.in_(keys))
    )
    return {row.idempotency_key: row for row in tx.conn.execute(statement)}


def _same(tx: Tx, row: Any, target: Placed, parameters: dict[str, Any], key: str) -> UUID:
    """The run of a request that comes again, maybe after the deployment has changed."""
    defaults = revision_spec(tx, row.deployment_id, row.revision).parameters
    if row.deployment_id != target.id or row.parameters != defaults | parameters:
        raise _conflict(key)
    run_id: UUID = row.id
    return run_id


def _conflict(key: str) -> Conflict:
    return Conflict(
        f"the idempotency key {key!r} was used for another deployment or other parameters",
        "Use a new key for a new run.",
    )


_INSERT_RUNS, _INSERT_PAYLOADS = insert(runs), insert(payloads)
_INSERT_TAGS, _INSERT_READY = insert(run_tags), insert(ready)


_Place = tuple[int | None, int | None, int | None]


def _places(tx: Tx, new: list[NewRun]) -> list[_Place]:
    """Pool, queue and lane of each run."""
    router, known = Router(tx), all_limits(tx)
    keys: dict[tuple[Any, ...], LaneKey] = {}  # many runs are alike
    found: list[tuple[int, LaneKey] | None] = []
    for run in new:
        target, tags = run.deployment, tuple(run.all_tags)
        at = router.place(target.spec, tags)
        if at is None:
            found.append(None)
            continue
        alike = (at[1], run.own_priority, target.id, tags, run.backfill_id)
        if alike not in keys:
            keys[alike] = lane_key(known, *alike[:3], target.spec, tags, run.backfill_id)
        found.append((at[0], keys[alike]))
    lane_ids = lanes_of(tx, set(keys.values()))
    return [
        (None, None, None) if one is None else (one[0], one[1].queue_id, lane_ids[one[1]]) for one in found
    ]


def make_runs(tx: Tx, new: list[NewRun], actor: Actor) -> list[UUID]:
    """Write runs that were checked before; their ids, in order."""
    ids: list[UUID] = []
    run_rows, payload_rows, tag_rows, ready_rows, event_rows = [], [], [], [], []
    places = _places(tx, new)
    for index, run in enumerate(new):
        run_id = new_run_id(tx.now, index)
        ids.append(run_id)
        tags = run.all_tags
        pool_id, queue_id, lane_id = places[index]
        run_rows.append(
            {
                "id": run_id,
                "id_reversed": reverse(run_id.hex),
                "deployment_id": run.deployment.id,
                "revision": run.deployment.revision,
                "pool_id": pool_id,
                "queue_id": queue_id,
                "priority": run.own_priority,
                "tags": tags,
                "state": RunState.SCHEDULED.value,
                "late": run.late,
                "created_at": tx.now,
                "scheduled_at": run.due_at if run.slot_at is None else run.slot_at,
                "attempts": 0,
                "attempts_forgiven": 0,
                "epoch": 0,
                "schedule_id": run.schedule_id,
                "slot_at": run.slot_at,
                "backfill_id": run.backfill_id,
                "idempotency_key": run.idempotency_key,
            }
        )
        payload_rows.append({"run_id": run_id, "parameters": run.parameters})
        tag_rows += [{"tag": tag, "run_id": run_id} for tag in tags]
        ready_rows.append({"run_id": run_id, "lane_id": lane_id, "due_at": run.due_at, "late": marked(run)})
        event_rows.append(event_row(run_id, RunState.SCHEDULED.value, actor, tx.now))
        if run.late:
            event_rows.append(event_row(run_id, "late", actor, tx.now))
        if run.due_at > tx.now:
            tx.changes.becomes_due((run.due_at - tx.now) / 1_000_000)
        elif pool_id is not None:
            tx.changes.pools.add(pool_id)
    if run_rows:
        tx.conn.execute(_INSERT_RUNS, run_rows)
        tx.conn.execute(_INSERT_PAYLOADS, payload_rows)
        tx.conn.execute(_INSERT_READY, ready_rows)
        if tag_rows:
            tx.conn.execute(_INSERT_TAGS, tag_rows)
        record(tx, event_rows)
    return ids
