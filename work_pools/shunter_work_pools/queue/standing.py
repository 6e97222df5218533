"""How agents stand to a kind of runs: which can take one, and what keeps each of the others from it.

It is judged by what a claim goes by: what agents said of themselves, and the live leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, String, cast, select

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.capacity import fits
from shunter_work_pools.contracts.deployments import DeploymentSpec
from shunter_work_pools.contracts.explanations import AgentReason
from shunter_work_pools.queue.claim import Demand, Offer, correct
from shunter_work_pools.queue.lanes import need_text, needed
from shunter_work_pools.storage.schema import agents
from shunter_work_pools.storage.store import Tx

#: As they are looked at: what comes later is nearer to taking a run.
ORDER = {reason: at for at, reason in enumerate(AgentReason)}
#: There is a limit to what can be had now, but not for ever.
BUSY = frozenset({AgentReason.SLOTS_BUSY, AgentReason.CAPACITY_BUSY})
#: It has all that is wanted, and takes nothing now.
AWAY = frozenset({AgentReason.LOST, AgentReason.DRAINING, AgentReason.PAUSED, AgentReason.UNHEALTHY})


@dataclass(frozen=True)
class Kind:
    """A kind of runs, as a lane would have it; see :class:`~shunter_work_pools.queue.claim.Demand`."""

    pool_id: int
    pool: str
    queue: str
    require: str
    need: str

    @property
    def needs(self) -> dict[str, float]:
        """What a run takes of its agent; not to be changed."""
        return needed(self.need)

    @classmethod
    def of(cls, spec: DeploymentSpec, pool: Row[Any], queue: str) -> Kind:
        """What runs of a deployment want in a queue of a pool."""
        return cls(pool.id, pool.name, queue, " ".join(sorted(spec.require)), need_text(spec.need))


@dataclass
class Standing:
    """One agent.

    Attributes:
        row: of agents.
        offer: what it could take, by what it has less what leases take of it.
        reason: whether it can take a run of the kind now, or the first thing that keeps it.
        missing: tags that are required and it has not.
        short: of what is needed and it has not enough: what it has, or for ``capacity_busy`` has free.
    """

    row: Row[Any]
    offer: Offer
    reason: AgentReason
    missing: list[str] = field(default_factory=list)
    short: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The agent's."""
        return str(self.row.name)

    @property
    def held(self) -> int:
        """Slots that leases take."""
        return max(0, self.offer.limit - self.offer.free)


def standings(
    tx: Tx, kind: Demand, pool: str, lost_after: float, *, everybody: bool = False, busy: bool = True
) -> list[Standing]:
    """How agents stand to a kind of runs, by name.

    Args:
        kind: of a lane, or what would be one.
        pool: name of its pool.
        lost_after: an agent not heard of within so many seconds is lost.
        everybody: also those that do not serve the pool.
        busy: whether it is of interest that some have no room.
    """
    statement = select(agents).order_by(agents.c.name)
    if not everybody:  # of thousands only these are looked at closely
        statement = statement.where(cast(agents.c.pools, String).contains(f'"{pool}"', autoescape=True))
    found = []
    for row in tx.conn.execute(statement):
        offer = Offer(
            agent_id=row.id,
            session=row.session,
            pools=frozenset({kind.pool_id} if pool in row.pools else ()),
            queues=frozenset(row.queues),
            tags=frozenset(row.tags).union(row.found_tags),
            free=row.limit,
            limit=row.limit,
            capacity=row.capacity,
            free_capacity=dict(row.capacity),
        )
        found.append(_unfit(offer, row, kind) or Standing(row, offer, AgentReason.CAN_TAKE))
    alive_after = tx.now - round(lost_after * 1_000_000)
    for one in found:
        if one.reason is AgentReason.CAN_TAKE:
            one.reason = _away(one.row, alive_after) or one.reason
    there = [one for one in found if one.reason is AgentReason.CAN_TAKE]
    if there and busy:
        correct(tx, [one.offer for one in there])
        for one in there:
            one.reason = _busy(one, kind)
    return found


def _unfit(offer: Offer, row: Row[Any], kind: Demand) -> Standing | None:
    """What keeps an agent from it however little it has to do."""
    need = needed(kind.need)
    if kind.pool_id not in offer.pools:
        return Standing(row, offer, AgentReason.OTHER_POOLS)
    if not offer.reaches(kind):
        return Standing(row, offer, AgentReason.OTHER_QUEUES)
    if missing := offer.lacks(kind):
        return Standing(row, offer, AgentReason.LACKS_TAGS, missing=sorted(missing))
    if not fits(need, offer.capacity):
        return Standing(row, offer, AgentReason.LACKS_CAPACITY, short=_short(need, offer.capacity))
    return None


def could_take(offer: Offer, kind: Demand) -> bool:
    """Whether an agent could take a run of a kind if it had nothing to do."""
    return offer.reaches(kind) and not offer.lacks(kind) and fits(needed(kind.need), offer.capacity)


def _short(need: dict[str, float], has: Any) -> dict[str, float]:
    return {name: has.get(name, 0.0) for name, amount in need.items() if not fits({name: amount}, has)}


def _away(row: Row[Any], alive_after: Micros) -> AgentReason | None:
    if row.last_seen_at <= alive_after:
        return AgentReason.LOST
    if row.draining or row.drain_session == row.session:
        return AgentReason.DRAINING
    if row.paused:
        return AgentReason.PAUSED
    return AgentReason.UNHEALTHY if row.troubles else None


def _busy(one: Standing, kind: Demand) -> AgentReason:
    if one.offer.fits(kind):
        return AgentReason.CAN_TAKE
    if not one.offer.serves(kind):
        return AgentReason.SLOTS_BUSY
    one.short = _short(needed(kind.need), one.offer.free_capacity)
    return AgentReason.CAPACITY_BUSY


def nearest_to_it(found: Sequence[Standing]) -> list[Standing]:
    """Those that come nearest to taking a run: all that can, or are busy, or are away, or lack the same thing."""
    stage = max((_stage(one.reason) for one in found), default=0)
    return [one for one in found if _stage(one.reason) == stage]


def _stage(reason: AgentReason) -> int:
    if reason in AWAY:
        return ORDER[AgentReason.UNHEALTHY]
    return ORDER[AgentReason.CAPACITY_BUSY] if reason in BUSY else ORDER[reason]
