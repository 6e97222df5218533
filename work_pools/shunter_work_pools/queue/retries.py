"""Retries: whether an attempt is followed by another, when that is due, and whom it is not given to."""

from __future__ import annotations

import hashlib
from uuid import UUID

from sqlalchemy import select

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.capacity import fits
from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy
from shunter_work_pools.contracts.states import LAUNCH_FAILURES, AttemptState
from shunter_work_pools.storage.schema import agents, attempts, pools, queues
from shunter_work_pools.storage.store import Tx

#: So long after a run became due it is not given to the agent that could not launch it; then to any.
AVOIDED_FOR: Micros = 60_000_000
_ENDS = frozenset({AttemptState.FAILED, AttemptState.CRASHED, AttemptState.TIMED_OUT})


def wanted(policy: RetryPolicy, end: AttemptState, cause: str | None, nth: int) -> bool:
    """Whether a policy asks for another attempt.

    Args:
        end, cause: of the attempt.
        nth: 1 for the first retry since the run was made, or was last retried by hand.
    """
    return end in _ENDS and nth <= policy.count and (not policy.on or cause in policy.on)


def delay(policy: RetryPolicy, run_id: UUID, attempt: int, nth: int) -> Micros:
    """Microseconds between the end of an attempt and the next one: grows, and is spread by the jitter.

    The first delay is the policy's own; those after it grow up to ``max_delay``. The share of the jitter is
    fixed by run and attempt, so that whoever asks gets the same.

    Args:
        attempt: number of the one that ended.
        nth: as for :func:`wanted`.
    """
    most = max(policy.delay, policy.max_delay)
    seconds = policy.delay
    for _ in range(nth - 1):
        if not 0 < seconds < most or policy.backoff == 1:
            break
        seconds = min(most, seconds * policy.backoff)
    digest = hashlib.blake2b(f"{run_id}:{attempt}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest) / 2**64
    return round(seconds * (1 + policy.jitter * share) * 1_000_000)


def another_fits(tx: Tx, agent_id: int, queue_id: int, spec: DeploymentSpec, lost_after: float) -> bool:
    """Whether an agent but this one is well, serves a queue and has what is demanded.

    Args:
        spec: of the run.
        lost_after: an agent heard of within so many seconds counts as alive.
    """
    place = tx.conn.execute(
        select(queues.c.name, pools.c.name.label("pool"))
        .join(pools, pools.c.id == queues.c.pool_id)
        .where(queues.c.id == queue_id)
    ).one()
    alive_after = tx.now - round(lost_after * 1_000_000)
    others = select(agents).where(
        agents.c.id != agent_id,
        agents.c.last_seen_at > alive_after,
        agents.c.draining.is_(False),
        agents.c.paused.is_(False),
        agents.c.drain_session.is_distinct_from(agents.c.session),
    )
    return any(
        not other.troubles
        and place.pool in other.pools
        and (not other.queues or place.name in other.queues)
        and {*other.tags, *other.found_tags}.issuperset(spec.require)
        and fits(spec.need, other.capacity)
        for other in tx.conn.execute(others)
    )


def avoided_still(
    tx: Tx, run_id: UUID, attempt: int, queue_id: int, spec: DeploymentSpec, lost_after: float
) -> int | None:
    """The agent that an attempt which was given back is not given to: the one that could not launch the last.

    Args:
        attempt: number of the one given back.
        lost_after: an agent heard of within so many seconds counts as alive.
    """
    before = tx.conn.execute(
        select(attempts.c.cause, agents.c.id)
        .join(agents, agents.c.name == attempts.c.agent)
        .where(attempts.c.run_id == run_id, attempts.c.number == attempt - 1)
    ).one_or_none()
    if before is None or before.cause not in LAUNCH_FAILURES:
        return None
    return before.id if another_fits(tx, before.id, queue_id, spec, lost_after) else None
