"""Explain: why a run is where it is, from what the queue itself decides by, and what a person can do about it.

What is asked of the tables does not depend on how many runs wait: lanes are looked at, and of those that wait before
a run no more than a thousand are counted.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select

from shunter_work_pools.contracts.errors import NotFound
from shunter_work_pools.contracts.explanations import Explanation
from shunter_work_pools.contracts.states import RUN_ENDS, RunState
from shunter_work_pools.queue.explain.active import active_reasons
from shunter_work_pools.queue.explain.ended import ended_reason
from shunter_work_pools.queue.explain.reason import told
from shunter_work_pools.queue.explain.waiting import waiting_prefix, waiting_reasons
from shunter_work_pools.storage.schema import deployments, leases, ready, runs
from shunter_work_pools.storage.store import Tx

_RUN = (
    select(
        runs,
        deployments.c.name.label("deployment"),
        leases.c.state.label("attempt_state"),
        ready.c.lane_id,
        ready.c.due_at,
        ready.c.avoid_agent_id,
    )
    .join(deployments, deployments.c.id == runs.c.deployment_id)
    .outerjoin(leases, leases.c.run_id == runs.c.id)
    .outerjoin(ready, ready.c.run_id == runs.c.id)
)


def explain(tx: Tx, run_id: UUID, lost_after: float, give_up_after: float) -> Explanation:
    """Why a run is where it is; reads only.

    Args:
        lost_after: an agent not heard of within so many seconds is lost.
        give_up_after: and after so many ``on_lost`` says what becomes of its runs.

    Raises:
        NotFound: there is no such run.
    """
    run = tx.conn.execute(_RUN.where(runs.c.id == run_id)).one_or_none()
    if run is None:
        raise NotFound(f"there is no run {run_id}", "See `shunter run list`.")
    state = RunState(run.state)
    prefix = ""
    if state in RUN_ENDS:
        reasons = [ended_reason(tx, run)]
    elif state is RunState.ACTIVE:
        reasons = active_reasons(tx, run, lost_after, give_up_after)
    else:
        reasons = waiting_reasons(tx, run, lost_after)
        prefix = waiting_prefix(tx, run)
    first, *others = reasons
    also = [
        {"code": one.code.value, "sentence": told(one.sentence), "next_step": one.next_step} for one in others
    ]
    return Explanation(
        run=run_id,
        state=run.attempt_state or run.state,
        code=first.code.value,
        sentence=told(prefix + first.sentence),
        next_step=first.next_step,
        details=first.details | {"late": bool(run.late), "also": also},
    )
