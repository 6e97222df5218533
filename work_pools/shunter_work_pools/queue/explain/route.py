"""Where the runs of a deployment go: each pool and each agent, with the reason for or against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select

from shunter_work_pools.contracts.capacity import rounded, shown
from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.explanations import AgentReason, AgentRoute, PoolReason, PoolRoute, Route
from shunter_work_pools.queue.catalog import DEFAULT_QUEUE, deployment
from shunter_work_pools.queue.explain.agents import had, unfit_reason
from shunter_work_pools.queue.explain.limits import limit_reasons
from shunter_work_pools.queue.explain.pauses import pause_reasons, who_paused
from shunter_work_pools.queue.explain.reason import Reason, message, names, since, told
from shunter_work_pools.queue.explain.waiting import no_pool_reason
from shunter_work_pools.queue.explain.would_be import lane_that_would_be
from shunter_work_pools.queue.routing import Free, Router, free_capacity
from shunter_work_pools.queue.standing import BUSY, Kind, Standing, nearest_to_it, standings
from shunter_work_pools.storage.schema import agents, pools
from shunter_work_pools.storage.store import Tx

_POOLS = select(pools).where(pools.c.deleted_at.is_(None)).order_by(pools.c.name)
_AGENTS = select(agents).order_by(agents.c.name)


def route(tx: Tx, name: str, more_tags: Sequence[str], lost_after: float) -> Route:
    """Where runs of a deployment would go that were made now; reads only.

    Args:
        more_tags: of a run, over the deployment's.
        lost_after: an agent not heard of within so many seconds is lost.

    Raises:
        NotFound: there is no such deployment.
    """
    target = deployment(tx, name)
    spec = target.spec
    tags = list(dict.fromkeys([*spec.tags, *more_tags]))
    rows = list(tx.conn.execute(_POOLS))
    router = Router(tx)
    told_of = _pools(tx, router, spec, tags, rows)
    chosen = next((row for row in rows if told_of[row.name].chosen), None)
    if chosen is None:
        standing: list[AgentRoute] = [_nowhere(row) for row in tx.conn.execute(_AGENTS)]
        queue = None
        why = no_pool_reason(router, tags)
        sentence = f"its runs wait: {why.sentence}"
    else:
        queue = spec.queue or DEFAULT_QUEUE
        kind = Kind.of(spec, chosen, queue)
        found = standings(tx, kind, chosen.name, lost_after, everybody=True)
        lane = lane_that_would_be(tx, target, tags, chosen.id, queue)
        held = [*pause_reasons(tx, lane), *limit_reasons(tx, lane)]
        standing = [_agent(tx, kind, one, held=bool(held)) for one in found]
        unfit = unfit_reason(tx, kind, nearest_to_it(found))
        sentence = _outcome(chosen.name, [*held, *([unfit] if unfit else [])], standing)
    return Route(
        deployment=target.name,
        revision=target.revision,
        tags=tags,
        require=spec.require,
        need=spec.need,
        pool=None if chosen is None else chosen.name,
        queue=queue,
        sentence=told(sentence),
        pools=sorted(told_of.values(), key=lambda one: not one.chosen),
        agents=sorted(standing, key=lambda one: ("now", "later", "never").index(one.takes)),
    )


def _outcome(pool: str, held: Sequence[Reason], standing: Sequence[AgentRoute]) -> str:
    if held:
        return f"its runs go to pool {pool}, and wait there: {held[0].sentence}"
    now = [one.name for one in standing if one.takes == "now"]
    if now:
        return f"its runs go to pool {pool}, where {names(now)} can take one now"
    later = [one.name for one in standing if one.takes == "later"]
    return f"its runs go to pool {pool}, where {names(later)} can take them when there is room again"


# ---- pools


def _pools(
    tx: Tx, router: Router, spec: DeploymentSpec, tags: list[str], rows: list[Row[Any]]
) -> dict[str, PoolRoute]:
    if spec.pool is not None:
        return {row.name: _by_name(spec.pool, row) for row in rows}
    best = router.best(tags)
    room = free_capacity(tx, best) if len(best) > 1 else {}
    chosen = router.freest(best) if len(best) > 1 else next(iter(best), None)
    found = {}
    for row in rows:
        one = _by_tags(row, tags, chosen, room)
        if row.id in room:
            one.free = room[row.id].slots
        found[row.name] = one
    if chosen is not None:
        one = found[chosen.name]
        one.sentence += _before_others(chosen, rows, found, room)
    return found


def _by_name(named: str, row: Row[Any]) -> PoolRoute:
    if row.name == named:
        return _pool(row, PoolReason.NAMED, "the deployment names it", chosen=True)
    return _pool(row, PoolReason.NOT_NAMED, f"the deployment names pool {named}")


def _by_tags(row: Row[Any], tags: list[str], chosen: Row[Any] | None, room: Mapping[int, Free]) -> PoolRoute:
    if not row.match:
        return _pool(row, PoolReason.NO_MATCH_TAGS, "it has no match tags: only who names it goes there")
    missing = [tag for tag in row.match if tag not in tags]
    if missing:
        return _pool(row, PoolReason.MISSING_TAGS, f"the runs lack {names(missing)}", missing=missing)
    assert chosen is not None
    if row.id == chosen.id:
        return _pool(
            row, PoolReason.CHOSEN, f"the runs carry its match tags ({names(row.match)})", chosen=True
        )
    if len(row.match) < len(chosen.match):
        return _pool(
            row,
            PoolReason.LESS_SPECIFIC,
            f"{chosen.name} matches more: {len(chosen.match)} tags, not {len(row.match)}",
        )
    alike = f"{chosen.name} matches as well"
    if row.priority < chosen.priority:
        return _pool(
            row, PoolReason.LOWER_PRIORITY, f"{alike}, with priority {chosen.priority}, not {row.priority}"
        )
    mine, its = room[row.id], room[chosen.id]
    if not mine.served and its.served:
        why = "it is paused" if row.paused else "no agent is there that takes runs of it"
        return _pool(row, PoolReason.LESS_FREE, f"{alike}, and starts runs now: {why}")
    if mine.slots < its.slots:
        return _pool(
            row, PoolReason.LESS_FREE, f"{alike}, with more room: {_ROOM} {its.slots:,}, not {mine.slots:,}"
        )
    return _pool(
        row,
        PoolReason.BY_NAME,
        f"{alike}, with as much room ({_ROOM} {its.slots:,}), and comes first by name",
    )


#: What room is counted in.
_ROOM = "free slots less waiting runs:"


def _before_others(
    chosen: Row[Any], rows: Sequence[Row[Any]], found: Mapping[str, PoolRoute], room: Mapping[int, Free]
) -> str:
    """By what the chosen pool comes before those that match alike."""
    by_reason: dict[str, list[Row[Any]]] = {}
    for row in rows:
        by_reason.setdefault(found[row.name].code, []).append(row)
    words = ""
    if lower := by_reason.get(PoolReason.LOWER_PRIORITY):
        words += (
            f"; its priority ({chosen.priority}) is higher than that of {names([row.name for row in lower])}"
        )
    free = f"{_ROOM} {room[chosen.id].slots:,}" if room else ""
    if less := by_reason.get(PoolReason.LESS_FREE):
        others = [row for row in less if room[row.id].served or not room[chosen.id].served]
        if others:
            next_one = max(room[row.id].slots for row in others)
            words += f"; it has more room ({free}) than {names([row.name for row in others])} ({next_one:,} at the most)"
        if idle := [row.name for row in less if row not in others]:
            words += f"; it starts runs now, and {names(idle)} {'does' if len(idle) == 1 else 'do'} not"
    if alike := by_reason.get(PoolReason.BY_NAME):
        words += (
            f"; with as much room as {names([row.name for row in alike])} ({free}) it comes first by name"
        )
    return words


def _pool(
    row: Row[Any], code: PoolReason, sentence: str, *, chosen: bool = False, missing: Sequence[str] = ()
) -> PoolRoute:
    return PoolRoute(
        name=row.name,
        chosen=chosen,
        code=code.value,
        sentence=sentence,
        match=row.match,
        priority=row.priority,
        missing=list(missing),
    )


# ---- agents


def _agent(tx: Tx, kind: Kind, one: Standing, *, held: bool) -> AgentRoute:
    """An agent.

    Args:
        held: whether the runs are held back whoever could take them.
    """
    can = one.reason is AgentReason.CAN_TAKE
    takes = "now" if can and not held else "later" if can or one.reason in BUSY else "never"
    return AgentRoute(
        name=one.name,
        takes=takes,
        code=one.reason.value,
        sentence=_why(tx, kind, one),
        missing=one.missing,
        short=one.short,
        **_traits(one.row),
    )


def _nowhere(row: Row[Any]) -> AgentRoute:
    return AgentRoute(
        name=row.name,
        takes="never",
        code=AgentReason.OTHER_POOLS.value,
        sentence="the runs have no pool that it could serve",
        **_traits(row),
    )


def _traits(row: Row[Any]) -> dict[str, Any]:
    return {"pools": row.pools, "tags": sorted({*row.tags, *row.found_tags}), "found_tags": row.found_tags}


def _why(tx: Tx, kind: Kind, one: Standing) -> str:
    row, offer = one.row, one.offer
    slots = f"{one.held} of {row.limit} slots taken"
    match one.reason:
        case AgentReason.OTHER_POOLS:
            return f"it serves {names(row.pools)}, not {kind.pool}"
        case AgentReason.OTHER_QUEUES:
            return f"of the queues it serves {names(row.queues)}, not {kind.queue}"
        case AgentReason.LACKS_TAGS:
            return f"it lacks {names(one.missing)}"
        case AgentReason.LACKS_CAPACITY:
            return f"it has {had(one.short)}, and {shown(_needs(kind, one))} is needed"
        case AgentReason.LOST:
            how = "stopped: it drained, and was last" if row.draining else "lost: last"
            return f"{how} heard of at {since(row.last_seen_at, tx.now)}"
        case AgentReason.DRAINING:
            return "it drains: it takes nothing new"
        case AgentReason.PAUSED:
            return f"it is paused{who_paused(tx, 'agent', offer.agent_id).words}"
        case AgentReason.UNHEALTHY:
            return f"unwell: {message('; '.join(row.troubles))}"
        case AgentReason.SLOTS_BUSY:
            return slots
        case AgentReason.CAPACITY_BUSY:
            return f"of what is needed ({shown(_needs(kind, one))}) it has {had(one.short)} free"
        case AgentReason.CAN_TAKE:
            found = sorted(set(kind.require.split()).intersection(row.found_tags).difference(row.tags))
            by_itself = f"; {names(found)} it found by itself" if found else ""
            free = {name: offer.free_capacity.get(name, 0.0) for name in kind.needs}
            has = f", {rounded(free)} free" if free else ""
            return f"{slots}{has}{by_itself}"


def _needs(kind: Kind, one: Standing) -> dict[str, float]:
    return {name: kind.needs[name] for name in one.short}
