"""Where a run goes: to the pool it names, or to the one whose match tags it all carries.

Several pools match: the one with most match tags, then the highest priority, then the one with most *free
capacity*, then by name. Free are the slots of its live agents that no attempt takes, no more than its limit
leaves, less the runs that are due there already; a pool that is paused, or has no live agents, comes
last. That is looked at only
where pools tie, and what is placed at once takes of it, so that a burst spreads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Row, bindparam, func, select, update

from shunter_work_pools.contracts.agents import HOLD_LIMIT
from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue.lanes import all_limits, hold_limits, lane_of
from shunter_work_pools.storage.schema import agents, lanes, leases, pools, queues, ready, runs

if TYPE_CHECKING:
    from shunter_work_pools.storage.store import Tx

#: Microseconds: agents heard of within are there to take something now. They sync every ``HOLD_LIMIT`` seconds.
THERE_FOR = round(3 * HOLD_LIMIT * 1_000_000)
#: So many due runs of a pool are counted: where as many wait in each, none is without work whichever is taken.
COUNTED = 10_000

_NAMED = (
    select(pools.c.id.label("pool_id"), queues.c.id.label("queue_id"))
    .join(queues, queues.c.pool_id == pools.c.id)
    .where(pools.c.name == bindparam("pool"), queues.c.name == bindparam("queue"))
)
_BY_TAGS = (
    select(
        pools.c.id,
        pools.c.name,
        pools.c.match,
        pools.c.priority,
        pools.c.limit,
        pools.c.paused,
        queues.c.id.label("queue_id"),
    )
    .join(queues, queues.c.pool_id == pools.c.id)
    .where(queues.c.name == "default", pools.c.deleted_at.is_(None))
)
_THERE = select(agents.c.id, agents.c.pools, agents.c.limit, agents.c.troubles).where(
    agents.c.last_seen_at > bindparam("since"),
    agents.c.draining.is_(False),
    agents.c.paused.is_(False),
    agents.c.drain_session.is_distinct_from(agents.c.session),
)
_HELD = select(leases.c.agent_id, leases.c.pool_id, func.count()).group_by(
    leases.c.agent_id, leases.c.pool_id
)
_IN_POOL = (
    select(lanes.c.id)
    .join(queues, queues.c.id == lanes.c.queue_id)
    .where(queues.c.pool_id == bindparam("pool"))
)
_WAITING = select(func.count()).select_from(
    select(ready.c.run_id)
    .where(ready.c.lane_id.in_(_IN_POOL), ready.c.due_at <= bindparam("now"))
    .limit(COUNTED)
    .subquery()
)


class Free(NamedTuple):
    """How much room a pool has, in the order of preference: one that starts runs now first, then free capacity."""

    served: bool
    slots: int


def _preference(pool: Row[Any]) -> tuple[int, int]:
    """By what pools that match come one before the other; alike: they tie."""
    return -len(pool.match), -pool.priority


class Router:
    """Where runs go; for those that are placed at once.

    A pool matches if the run carries all of its match tags; one without match tags takes only what names it.
    """

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._pools: Sequence[Row[Any]] | None = None
        self._named: dict[tuple[str, str | None], tuple[int, int] | None] = {}
        self._best: dict[tuple[str, ...], list[Row[Any]]] = {}
        self._free: dict[int, Free] = {}
        self._placed: Counter[int] = Counter()

    def place(self, spec: DeploymentSpec, tags: Iterable[str]) -> tuple[int, int] | None:
        """Pool and queue (their ids) of a run with ``tags``, which takes of the pool's room; None: nothing fits."""
        found = self._by_name(spec) if spec.pool is not None else self._by_tags(tuple(tags))
        if found is not None:
            self._placed[found[0]] += 1
        return found

    def _by_name(self, spec: DeploymentSpec) -> tuple[int, int] | None:
        assert spec.pool is not None
        key = (spec.pool, spec.queue)
        if key not in self._named:  # not kept any longer: a name may come to mean another pool
            wanted = {"pool": spec.pool, "queue": spec.queue or "default"}
            found = self._tx.conn.execute(_NAMED, wanted).one_or_none()
            self._named[key] = None if found is None else (found.pool_id, found.queue_id)
        return self._named[key]

    def _by_tags(self, tags: tuple[str, ...]) -> tuple[int, int] | None:
        best = self._best.get(tags)
        if best is None:
            best = self._best[tags] = self.best(tags)
        if not best:
            return None
        pool = best[0] if len(best) == 1 else self.freest(best)
        return pool.id, pool.queue_id

    def pools(self) -> Sequence[Row[Any]]:
        """The pools that take runs by their tags, the most specific first, then by priority and name."""
        if self._pools is None:
            found = list[Row[Any]](self._tx.conn.execute(_BY_TAGS))
            with_tags = [row for row in found if row.match]
            self._pools = sorted(with_tags, key=lambda row: (*_preference(row), row.name))
        return self._pools

    def best(self, tags: Iterable[str]) -> list[Row[Any]]:
        """The pools that match best, by name: none, one, or those that tie."""
        carried = set(tags)
        matching = [pool for pool in self.pools() if carried.issuperset(pool.match)]
        return [pool for pool in matching if _preference(pool) == _preference(matching[0])]

    def freest(self, tied: Sequence[Row[Any]]) -> Row[Any]:
        """Of pools that match equally well the one with most free capacity, then the first by name."""
        unknown = [pool for pool in tied if pool.id not in self._free]
        if unknown:
            self._free |= free_capacity(self._tx, unknown)
        # The first of equals is kept, and they are sorted by name.
        return max(tied, key=lambda pool: self._room(pool.id))

    def _room(self, pool_id: int) -> Free:
        free = self._free[pool_id]
        return free._replace(slots=free.slots - self._placed[pool_id])


def free_capacity(tx: Tx, wanted: Sequence[Row[Any]]) -> dict[int, Free]:
    """How much room pools have, by id.

    Args:
        wanted: rows with id, name, limit and paused.
    """
    held: Counter[int] = Counter()
    active: Counter[int] = Counter()
    for agent_id, pool_id, count in tx.conn.execute(_HELD):
        held[agent_id] += count
        active[pool_id] += count
    slots: dict[str, int] = {}
    for agent in tx.conn.execute(_THERE, {"since": tx.now - THERE_FOR}):
        if not agent.troubles:
            for name in agent.pools:
                slots[name] = slots.get(name, 0) + max(0, agent.limit - held[agent.id])
    found = {}
    for pool in wanted:
        free = slots.get(pool.name, 0)
        if pool.limit is not None:
            free = min(free, max(0, pool.limit - active[pool.id]))
        waiting = tx.conn.scalar(_WAITING, {"pool": pool.id, "now": tx.now}) or 0
        found[pool.id] = Free(pool.name in slots and not pool.paused, free - waiting)
    return found


def marked(run: Any) -> bool:
    """What ``ready.late`` says of a run: it is late already, or a backfill's, which never will be.

    Args:
        run: a row of runs, or a run that is about to be made.
    """
    return bool(run.late) or run.backfill_id is not None


def place_unplaced(tx: Tx) -> None:
    """Look again at the runs that have no place; called when pools change."""
    from shunter_work_pools.queue.catalog import revision_spec
    from shunter_work_pools.queue.events import event_row, record

    hold_limits(tx)
    waiting: Sequence[Any] = tx.conn.execute(
        select(
            runs.c.id,
            runs.c.deployment_id,
            runs.c.revision,
            runs.c.priority,
            runs.c.tags,
            runs.c.backfill_id,
        )
        .join(ready, ready.c.run_id == runs.c.id)
        .where(ready.c.lane_id.is_(None))
        .order_by(runs.c.id)
        # Runs, too: the priority that somebody changes at this moment is the one that counts.
        .with_for_update(of=[ready, runs])
    ).all()
    if not waiting:
        return
    rows = []
    router = Router(tx)
    known = all_limits(tx)
    for run in waiting:
        spec = revision_spec(tx, run.deployment_id, run.revision)
        found = router.place(spec, run.tags)
        if found is None:
            continue
        pool_id, queue_id = found
        lane_id = lane_of(tx, run, spec, queue_id, known=known)
        tx.conn.execute(update(runs).where(runs.c.id == run.id).values(pool_id=pool_id, queue_id=queue_id))
        tx.conn.execute(update(ready).where(ready.c.run_id == run.id).values(lane_id=lane_id))
        tx.changes.pools.add(pool_id)
        tx.changes.runs.add(run.id)
        rows.append(event_row(run.id, "routed", Actor.QUEUE, tx.now))
    record(tx, rows)
