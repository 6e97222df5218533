"""Why a run waits: its time, its place, what is paused, what is full, and the agents, in this order.

All that holds is found, by the very conditions that a claim goes by; the first one is told.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, select

from shunter_work_pools.contracts.explanations import AgentReason, Code
from shunter_work_pools.contracts.states import RunState
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.claim import OBSTACLES
from shunter_work_pools.queue.explain.agents import busy_reason, unfit_reason
from shunter_work_pools.queue.explain.ended import how_it_ended, last_attempt
from shunter_work_pools.queue.explain.limits import limit_reasons
from shunter_work_pools.queue.explain.line import line_of
from shunter_work_pools.queue.explain.pauses import pause_reasons
from shunter_work_pools.queue.explain.reason import Reason, at_utc, lasting, names, short, stamp, until
from shunter_work_pools.queue.routing import Router
from shunter_work_pools.queue.standing import nearest_to_it, standings
from shunter_work_pools.storage.schema import backfills, deployments, events, lanes, pools, queues, schedules
from shunter_work_pools.storage.store import Tx

#: A lane with its queue, pool and deployment, and a column for each obstacle.
_LANE = (
    select(
        lanes.c.id,
        lanes.c.priority,
        lanes.c.deployment_id,
        lanes.c.require,
        lanes.c.need,
        lanes.c.limits,
        lanes.c.backfill_id,
        queues.c.id.label("queue_id"),
        queues.c.name.label("queue"),
        queues.c.priority.label("queue_priority"),
        queues.c.limit.label("queue_limit"),
        pools.c.id.label("pool_id"),
        pools.c.name.label("pool"),
        pools.c.limit.label("pool_limit"),
        deployments.c.name.label("deployment"),
        deployments.c.max_active,
        backfills.c.concurrency,
        *(obstacle.label(name) for name, obstacle in OBSTACLES.items()),
    )
    .join(queues, queues.c.id == lanes.c.queue_id)
    .join(pools, pools.c.id == queues.c.pool_id)
    .join(deployments, deployments.c.id == lanes.c.deployment_id)
    .join(backfills, backfills.c.id == lanes.c.backfill_id, isouter=True)
    .where(lanes.c.id == bindparam("lane"))
)
#: What holds without a lane, too.
_NO_LANE = select(
    deployments.c.id.label("deployment_id"),
    deployments.c.name.label("deployment"),
    deployments.c.paused.label("deployment_paused"),
    OBSTACLES["server_paused"].label("server_paused"),
).where(deployments.c.id == bindparam("deployment"))


def waiting_reasons(tx: Tx, run: Row[Any], lost_after: float) -> list[Reason]:
    """All reasons for which a run waits, the one to tell first; at least one.

    Args:
        run: of runs, with ``lane_id``, ``due_at`` and ``avoid_agent_id`` of ready.
    """
    found = [] if run.due_at <= tx.now else [_not_due(tx, run)]
    if run.lane_id is None:
        row = tx.conn.execute(_NO_LANE, {"deployment": run.deployment_id}).one()
        return [*found, _no_place(tx, run), *pause_reasons(tx, row)]
    (lane,) = list[Row[Any]](tx.conn.execute(_LANE, {"lane": run.lane_id, "now": tx.now}))
    found += pause_reasons(tx, lane)
    found += limit_reasons(tx, lane)
    # Whether agents are busy does not matter to what is held back anyway.
    nearest = nearest_to_it(standings(tx, lane, lane.pool, lost_after, busy=not found))
    unfit = unfit_reason(tx, lane, nearest)
    if unfit is not None:
        return [*found, unfit]
    if found:
        return found
    if any(one.reason is AgentReason.CAN_TAKE for one in nearest):
        avoided = _avoids(tx, run, [one.name for one in nearest], nearest[0].offer.agent_id)
        return [avoided or _about_to_start(nearest[0].name)]
    return [busy_reason(tx, lane, nearest, line_of(tx, run, lane, nearest))]


def waiting_prefix(tx: Tx, run: Row[Any]) -> str:
    """What comes before the reason: that the run is late, which attempt it is that waits."""
    parts = []
    if run.late and run.due_at <= tx.now:
        parts.append(f"late by {lasting(tx.now - run.due_at)}")
    if run.state == RunState.RETRYING.value and run.due_at <= tx.now:
        parts.append(f"attempt {run.attempts + 1} waits")
    return f"{', '.join(parts)}: " if parts else ""


# ---- its time


def _not_due(tx: Tx, run: Row[Any]) -> Reason:
    details = {"due_at": at_utc(run.due_at)}
    skip = f"Nothing: it starts by itself then. `shunter run skip {short(run.id)}` ends it unstarted."
    if run.state == RunState.RETRYING.value:
        last = last_attempt(tx, run.id)
        spec = revision_spec(tx, run.deployment_id, run.revision)
        most = run.attempts_forgiven + 1 + spec.retries.count
        # Another may follow although the policy wants no more: an agent was lost.
        of = f" of {most}" if run.attempts < most else ""
        sentence = (
            f"attempt {run.attempts} {how_it_ended(last)}; attempt {run.attempts + 1}{of} is due at "
            f"{until(run.due_at, tx.now)}"
        )
        return Reason(Code.RETRY_DELAY, sentence, skip, details | {"last_cause": last.cause})
    if run.slot_at is not None and run.due_at > run.slot_at:
        name = tx.conn.scalar(select(schedules.c.name).where(schedules.c.id == run.schedule_id))
        sentence = (
            f"its slot of schedule {name} is {stamp(run.slot_at)}, and the schedule's jitter has it start at "
            f"{until(run.due_at, tx.now)}"
        )
        return Reason(Code.SLOT_JITTER, sentence, skip, details | {"schedule": name})
    by = tx.conn.scalar(
        select(events.c.actor).where(events.c.run_id == run.id).order_by(events.c.id).limit(1)
    )
    asked = "the scheduler asked for" if by == "scheduler" else "it was asked for when it was made"
    sentence = f"it is due at {until(run.due_at, tx.now)}, as {asked}"
    return Reason(Code.DUE_LATER, sentence, skip, details | {"asked_by": by})


# ---- its place


def _no_place(tx: Tx, run: Row[Any]) -> Reason:
    spec = revision_spec(tx, run.deployment_id, run.revision)
    if spec.pool is not None:
        queue = f"queue {spec.queue} of " if spec.queue else ""
        return Reason(
            Code.PLACE_GONE,
            f"its deployment, as it was then, names {queue}pool {spec.pool}, which is not there any more",
            f"Make it again (`shunter pool create {spec.pool} --type process`"
            + (f", `shunter queue create {spec.pool} {spec.queue}`" if spec.queue else "")
            + f"), or end the run: `shunter run skip {short(run.id)}`.",
            {"pool": spec.pool, "queue": spec.queue},
        )
    return no_pool_reason(Router(tx), run.tags, run.id)


def no_pool_reason(router: Router, tags: list[str], run: UUID | None = None) -> Reason:
    """Why no pool takes runs with these tags by them; none does.

    Args:
        run: that waits: it keeps its tags, whatever is deployed. None: it is asked of those that will be made.
    """
    by_match = router.pools()
    if not by_match:
        return Reason(
            Code.NO_POOLS,
            f"no pool takes runs by their tags, and its deployment names none{'' if tags else ', nor has it tags'}",
            _give_match(tags) if run is None else _take_it(run, tags, None),
            {"tags": tags},
        )
    closest = min(by_match, key=lambda pool: (len(set(pool.match).difference(tags)), -len(pool.match)))
    missing = sorted(set(closest.match).difference(tags))
    return Reason(
        Code.NO_POOL_MATCHES,
        f"no pool matches its tags ({', '.join(tags)}): the closest, {closest.name}, also wants {names(missing)}"
        if tags
        else "no pool matches it: it names none, and has no tags",
        _deploy_so(tags, closest, missing) if run is None else _take_it(run, tags, closest),
        {"tags": tags, "closest": closest.name, "missing": missing},
    )


def _take_it(run: UUID, tags: list[str], closest: Row[Any] | None) -> str:
    """What makes a pool take a run that waits."""
    if not tags:
        return (
            f"No pool can ever take it: end it (`shunter run skip {short(run)}`), deploy with --pool NAME, and start "
            "it again."
        )
    if closest is None:
        return f"Make one that does: {_new_pool(tags)}; or `shunter pool update NAME{_match(tags)}`."
    fewer = [tag for tag in closest.match if tag in tags] or tags
    return (
        f"Make one that does: {_new_pool(tags)}; or let {closest.name} take it: "
        f"`shunter pool update {closest.name}{_match(fewer)}`."
    )


def _give_match(tags: list[str]) -> str:
    if not tags:
        return "Deploy with --pool NAME."
    return "Give a pool match tags (`shunter pool update NAME --match TAG`), or deploy with --pool NAME."


def _deploy_so(tags: list[str], closest: Row[Any], missing: list[str]) -> str:
    more = " ".join(f"--tag {tag}" for tag in missing)
    deploy = f"Deploy with {more} or with --pool {closest.name}"
    return f"{deploy}, or make a pool: {_new_pool(tags)}." if tags else f"{deploy}."


def _new_pool(tags: list[str]) -> str:
    return f"`shunter pool create NAME --type process{_match(tags)}`"


def _match(tags: list[str]) -> str:
    return "".join(f" --match {tag}" for tag in tags[:3])


# ---- nothing holds it


def _avoids(tx: Tx, run: Row[Any], can: list[str], first: int) -> Reason | None:
    from shunter_work_pools.queue.retries import AVOIDED_FOR

    ends = run.due_at + AVOIDED_FOR
    if len(can) > 1 or run.avoid_agent_id != first or ends < tx.now:
        return None
    return Reason(
        Code.AVOIDS_AGENT,
        f"agent {can[0]}, which alone has room for it now, could not launch its last attempt: "
        f"another may take it until {until(ends, tx.now)}, then {can[0]} may again",
        f"Nothing: it starts by itself then. What was wrong: `shunter run inspect {short(run.id)}`.",
        {"agent": can[0], "until": at_utc(ends)},
    )


def _about_to_start(agent: str) -> Reason:
    return Reason(
        Code.ABOUT_TO_START,
        f"nothing holds it back: agent {agent} has room for it",
        f"Nothing: it is about to start. If it is not, look at the agent: `shunter agent inspect {agent}`.",
        {"agent": agent},
    )
