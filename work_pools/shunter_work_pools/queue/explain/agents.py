"""Which agents could take a run, and why none does now: none has what it wants, all are away, or all are busy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select

from shunter_work_pools.contracts.capacity import fits, rounded, shown
from shunter_work_pools.contracts.explanations import AgentReason, Code
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.queue.explain.line import COUNTED, Line
from shunter_work_pools.queue.explain.pauses import who_paused
from shunter_work_pools.queue.explain.reason import (
    Reason,
    counted,
    lasting,
    message,
    names,
    short,
    since,
)
from shunter_work_pools.queue.explain.start_line import required as by_hand_or_found
from shunter_work_pools.queue.explain.start_line import start_line
from shunter_work_pools.queue.lanes import needed
from shunter_work_pools.queue.standing import BUSY, Standing
from shunter_work_pools.storage.schema import deployments, leases
from shunter_work_pools.storage.store import Tx

#: Agents and runs that details name.
_NAMED = 20
#: Runs that a sentence names of those that hold what is wanted.
_HOLDERS = 3


def unfit_reason(tx: Tx, kind: Any, nearest: Sequence[Standing]) -> Reason | None:
    """Why no agent can take runs of a kind, even if none were busy; None: some can.

    Args:
        kind: a row of lanes with its pool and queue, or a :class:`~shunter_work_pools.queue.standing.Kind`.
        nearest: the agents that come nearest, see :func:`~shunter_work_pools.queue.standing.nearest_to_it`.
    """
    reasons = {one.reason for one in nearest}
    if not reasons or AgentReason.OTHER_POOLS in reasons:
        return Reason(
            Code.NEVER_SERVED,
            f"no agent has ever served pool {kind.pool}",
            f"Start one: {start_line(tx, kind, [])}.",
            {"pool": kind.pool},
        )
    details: dict[str, Any] = {"agents": [one.name for one in nearest[:_NAMED]]}
    if AgentReason.OTHER_QUEUES in reasons:
        return Reason(
            Code.QUEUE_NOT_SERVED,
            f"no agent serves queue {kind.queue} of pool {kind.pool}: {_these(nearest)} "
            f"{'serves' if len(nearest) == 1 else 'serve'} other queues of it",
            f"Start one that does: {start_line(tx, kind, nearest, queue=True)}.",
            details | {"pool": kind.pool, "queue": kind.queue},
        )
    if AgentReason.LACKS_TAGS in reasons:
        return _tags_missing(tx, kind, nearest, details)
    if AgentReason.LACKS_CAPACITY in reasons:
        return _capacity_never(tx, kind, nearest, details)
    if BUSY & reasons or AgentReason.CAN_TAKE in reasons:
        return None
    return _away(tx, kind, nearest, reasons, details)


def _these(agents: Sequence[Standing]) -> str:
    return names([one.name for one in agents])


def _tags_missing(tx: Tx, kind: Any, nearest: Sequence[Standing], details: dict[str, Any]) -> Reason:
    closest = min(nearest, key=lambda one: len(one.missing))
    required = kind.require.split()
    what = f"tag {required[0]}" if len(required) == 1 else f"all tags that are required ({names(required)})"
    lacks = "" if len(required) == 1 else f": the closest, {closest.name}, lacks {names(closest.missing)}"
    by_hand, _ = by_hand_or_found(kind, nearest)
    more = [f"--tag {tag}" for tag in closest.missing]
    again = f"; or end {closest.name} and start it again with {' '.join(more)} besides"
    if not set(closest.missing) <= set(by_hand):
        again = ""
    return Reason(
        Code.TAGS_MISSING,
        f"no agent of pool {kind.pool} has {what}{lacks}",
        f"Start one that has: {start_line(tx, kind, nearest)}{again}.",
        details | {"require": required, "closest": closest.name, "missing": closest.missing},
    )


def _capacity_never(tx: Tx, kind: Any, nearest: Sequence[Standing], details: dict[str, Any]) -> Reason:
    need = needed(kind.need)
    # What is short everywhere alike is told; else what the closest agent is short of.
    closest = min(nearest, key=lambda one: (len(one.short), -sum(one.short.values())))
    most = {name: max(one.offer.capacity.get(name, 0.0) for one in nearest) for name in closest.short}
    nowhere = {name: amount for name, amount in most.items() if not fits({name: need[name]}, most)}
    if nowhere:
        wants = {name: need[name] for name in nowhere}
        has = f"has {_more_than(nowhere)}"
    else:
        wants = need
        has = f"has all of that: the closest, {closest.name}, has {had(closest.short)}"
    return Reason(
        Code.CAPACITY_NEVER,
        f"it needs {shown(wants)}, and no agent of pool {kind.pool} that could take it {has}",
        f"Start an agent that has more: {start_line(tx, kind, nearest, more=wants)}; or deploy with a smaller "
        "--need.",
        details | {"need": need, "most": most, "closest": closest.name},
    )


def _more_than(most: dict[str, float]) -> str:
    """``more than 2``, ``any gpu``, ``any gpu or more than memory=8GiB``."""
    some = rounded({name: amount for name, amount in most.items() if amount})
    if len(most) == 1:
        some = some.rpartition("=")[2]
    parts = [
        *(f"any {name}" for name in sorted(most) if not most[name]),
        *([f"more than {some}"] if some else []),
    ]
    return " or ".join(parts)


def had(amounts: Mapping[str, float]) -> str:
    """What there is of something: ``gpu=1``, ``no gpu``."""
    return rounded(amounts) if any(amounts.values()) else f"no {' and no '.join(sorted(amounts))}"


_AWAY = {
    AgentReason.LOST: (Code.AGENTS_LOST, "lost"),
    AgentReason.DRAINING: (Code.AGENTS_DRAINING, "draining"),
    AgentReason.PAUSED: (Code.AGENTS_PAUSED, "paused"),
    AgentReason.UNHEALTHY: (Code.AGENTS_UNHEALTHY, "unwell"),
}


def _away(
    tx: Tx, kind: Any, nearest: Sequence[Standing], reasons: set[AgentReason], details: dict[str, Any]
) -> Reason:
    start = start_line(tx, kind, nearest)
    if len(reasons) > 1:
        how = Counter(one.reason for one in nearest)
        told = [f"{how[reason]} {_AWAY[reason][1]}" for reason in _AWAY if how[reason]]
        return Reason(
            Code.AGENTS_AWAY,
            f"none of the {len(nearest)} agents that could take it takes anything now: {names(told)}",
            f"See `shunter agent list --pool {kind.pool}`, or start another: {start}.",
            details | {"how": {reason.value: count for reason, count in how.items()}},
        )
    (reason,) = reasons
    code, word = _AWAY[reason]
    subject = (
        f"agent {nearest[0].name}, the only one that could take it, is {word}"
        if len(nearest) == 1
        else f"the {len(nearest)} agents that could take it are all {word}"
    )
    one = nearest[0]
    if reason is AgentReason.LOST:
        one = max(nearest, key=lambda agent: agent.row.last_seen_at)
        last = "" if len(nearest) == 1 else f" ({one.name})"
        sentence = f"{subject}: last heard of{last} at {since(one.row.last_seen_at, tx.now)}"
        step = f"Start it again on {one.row.host or 'its machine'}, or another: {start}."
    elif reason is AgentReason.DRAINING:
        sentence = f"{subject}: {'it takes nothing new and ends' if len(nearest) == 1 else 'they take nothing new and end'} when idle"
        step = f"Start another: {start}."
    elif reason is AgentReason.PAUSED:
        said = who_paused(tx, "agent", one.offer.agent_id)
        sentence = subject + said.words
        step = f"Let it go on: `shunter agent resume {one.name}`."
        details = details | said.details
    else:
        sentence = f"{subject}: {message('; '.join(one.row.troubles))}"
        step = f"Mend what it says: `shunter agent inspect {one.name}`. It goes on by itself then."
        details = details | {"troubles": one.row.troubles}
    return Reason(code, sentence, step, details)


# ---- busy


def busy_reason(tx: Tx, lane: Row[Any], nearest: Sequence[Standing], line: Line) -> Reason:
    """Why none of the agents that could take a run has room for it.

    Args:
        line: who waits before it.
    """
    short_of = [one for one in nearest if one.reason is AgentReason.CAPACITY_BUSY]
    code, sentence, details = (
        _capacity_busy(tx, lane, nearest, short_of) if short_of else _slots_busy(tx, nearest)
    )
    details["agents"] = [one.name for one in nearest[:_NAMED]]
    start = start_line(tx, lane, nearest)
    step = f"Wait for one of these to end, or start another agent: {start}."
    if not (line.ahead or line.turns):
        return Reason(code, sentence, step, details)
    details |= {"ahead": line.ahead, "in_turn_with": line.turns}
    ahead = f"more than {counted(COUNTED, 'run')}" if line.ahead > COUNTED else counted(line.ahead, "run")
    turns = f"{'at least ' if line.more_turns else ''}{counted(line.turns, 'other deployment')}"
    turns = f"{'in turn with' if line.ahead else 'for its turn with'} {turns}"
    behind = " ".join([*([f"behind {ahead}"] if line.ahead else []), *([turns] if line.turns else [])])
    higher = f"Wait, start another agent ({start}), or give it a higher priority."
    return Reason(Code.IN_LINE, f"it waits {behind}: {sentence}", higher, details)


def _slots_busy(tx: Tx, nearest: Sequence[Standing]) -> tuple[Code, str, dict[str, Any]]:
    slots = sum(one.row.limit for one in nearest)
    holders = _holders(tx, nearest)
    of = f"agent {nearest[0].name}" if len(nearest) == 1 else f"the {len(nearest)} agents that could take it"
    all_of_them = "the one slot" if slots == 1 else f"all {slots:,} slots"
    sentence = (
        f"{all_of_them} of {of} {'is' if slots == 1 else 'are'} taken, the longest by {_told(tx, holders[0])}"
    )
    return Code.SLOTS_BUSY, sentence, {"slots": slots, "runs": [str(one.run_id) for one in holders]}


def _capacity_busy(
    tx: Tx, lane: Row[Any], nearest: Sequence[Standing], short_of: Sequence[Standing]
) -> tuple[Code, str, dict[str, Any]]:
    wanted = {name for one in short_of for name in one.short}
    need = {name: amount for name, amount in needed(lane.need).items() if name in wanted}
    most = {name: max(one.short.get(name, 0.0) for one in short_of) for name in sorted(wanted)}
    free = f"no more than {rounded(most)} is free" if any(most.values()) else "none is free"
    who = [row for row in _holders(tx, short_of, _NAMED) if _takes(tx, row, wanted)]
    by = names([f"{short(row.run_id)} ({row.name})" for row in who])
    held = f", held by {'run' if len(who) == 1 else 'runs'} {by}" if who else ""
    of = f"agent {short_of[0].name}" if len(nearest) == 1 else "any agent that could take it"
    return (
        Code.CAPACITY_BUSY,
        f"it needs {shown(need)}, and on {of} {free}{held}",
        {"need": need, "free": most, "runs": [str(row.run_id) for row in who]},
    )


def _takes(tx: Tx, lease: Row[Any], wanted: set[str]) -> bool:
    return bool(wanted.intersection(revision_spec(tx, lease.deployment_id, lease.revision).need))


def _holders(tx: Tx, agents: Sequence[Standing], most: int = _HOLDERS) -> list[Row[Any]]:
    """The leases that agents have had longest."""
    statement = (
        select(
            leases.c.run_id,
            leases.c.granted_at,
            leases.c.deployment_id,
            leases.c.revision,
            deployments.c.name,
        )
        .join(deployments, deployments.c.id == leases.c.deployment_id)
        .where(leases.c.agent_id.in_([one.offer.agent_id for one in agents]))
        .order_by(leases.c.granted_at, leases.c.run_id)
        .limit(most)
    )
    return list(tx.conn.execute(statement))


def _told(tx: Tx, lease: Row[Any]) -> str:
    return f"run {short(lease.run_id)} ({lease.name}) for {lasting(tx.now - lease.granted_at)}"
