"""Retries: whether an attempt is followed by another, when that is due, and whom it is not given to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import select

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.capacity import fits
from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy
from shunter_work_pools.contracts.sizes import parsed
from shunter_work_pools.contracts.states import LAUNCH_FAILURES, AttemptState, Cause
from shunter_work_pools.storage.schema import agents, attempts, pools, queues
from shunter_work_pools.storage.store import Tx

#: So long after a run became due it is not given to the agent that could not launch it; then to any.
AVOIDED_FOR: Micros = 60_000_000
#: The least delay after an end that does not count: what is preempted at once must not come back at once.
UNCOUNTED_DELAY: Micros = 5_000_000
_ENDS = frozenset({AttemptState.FAILED, AttemptState.CRASHED, AttemptState.TIMED_OUT})


def wanted(policy: RetryPolicy, end: AttemptState, cause: str | None, nth: int) -> bool:
    """Whether a policy asks for another attempt.

    Args:
        end, cause: of the attempt.
        nth: 1 for the first retry since the run was made, or was last retried by hand.
    """
    return end in _ENDS and nth <= policy.count and (not policy.on or cause in policy.on)


def forgiven(policy: RetryPolicy, end: AttemptState, cause: str | None) -> bool:
    """Whether an end is one that does not count: the run is tried again however often that happens."""
    return end is AttemptState.CRASHED and cause in policy.uncounted


def delay(policy: RetryPolicy, run_id: UUID, attempt: int, nth: int, *, forgiven: bool = False) -> Micros:
    """Microseconds between the end of an attempt and the next one: grows, and is spread by the jitter.

    The first delay is the policy's own; those after it grow up to ``max_delay``. The share of the jitter is
    fixed by run and attempt, so that whoever asks gets the same.

    Args:
        attempt: number of the one that ended.
        nth: as for :func:`wanted`.
        forgiven: it does not count, and nothing but time bounds how often that may come.
    """
    most = max(policy.delay, policy.max_delay)
    seconds = policy.delay
    for _ in range(nth - 1):
        if not 0 < seconds < most or policy.backoff == 1:
            break
        seconds = min(most, seconds * policy.backoff)
    digest = hashlib.blake2b(f"{run_id}:{attempt}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest) / 2**64
    spread = round(seconds * (1 + policy.jitter * share) * 1_000_000)
    return max(spread, UNCOUNTED_DELAY) if forgiven else spread


def memory_after(spec: DeploymentSpec, before: Any, template: Mapping[str, Any]) -> int | None:
    """Bytes that an attempt gets instead of what its deployment says; None: no other than that.

    Args:
        before: ``cause`` and ``memory`` of the attempt before it.
        template: the variables of its pool, with the deployment's over them.
    """
    more = spec.retries.more_memory
    if more is None or before.cause != Cause.OOM.value:
        return before.memory if more is not None else None
    had = before.memory or spec.work.memory_limit or _bytes(template.get("memory"))
    return None if had is None else max(had, min(more.up_to, int(had * more.factor)))


def _bytes(value: Any) -> int | None:
    """Bytes of a size as templates have it: a number, ``2GiB``, or ``2Gi`` as Kubernetes writes it."""
    return parsed(value) or parsed(f"{value}B") if isinstance(value, str) else value


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
