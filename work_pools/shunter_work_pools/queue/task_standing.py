"""Task runs that had not ended when the attempt that they were in did: nothing tells of them any more, so they are Cancelled.

A process that is killed writes no ends. What its tasks were doing is over all the same, until another attempt says
otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Row, and_, not_, or_, select

from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.tasks import TASK_ENDS, TaskError, TaskState
from shunter_work_pools.storage.schema import attempts, leases, task_runs
from shunter_work_pools.storage.store import Tx

_OPEN = frozenset(state.value for state in TaskState if state not in TASK_ENDS)


class Standing(NamedTuple):
    """The attempts of a run.

    Attributes:
        live: number of the one that is at work; 0: none is.
        ended: those that are over.
    """

    live: int
    ended: Mapping[int, Row[Any]]

    def left(self, state: str, attempt: int) -> bool:
        """Whether a task run that was in a state in an attempt was left there."""
        return state in _OPEN and attempt != self.live

    def among(self, states: Collection[str]) -> ColumnElement[bool]:
        """Those that are in one of these states."""
        left = and_(task_runs.c.state.in_(_OPEN), task_runs.c.attempt != self.live)
        found = and_(task_runs.c.state.in_(states), not_(left))
        return or_(found, left) if TaskState.CANCELLED.value in states else found

    def ended_at(self, attempt: int) -> Micros | None:
        """When an attempt ended."""
        row = self.ended.get(attempt)
        return None if row is None else row.ended_at

    def error(self, attempt: int) -> TaskError:
        """Why a task run that was left has no value."""
        row = self.ended.get(attempt)
        how = "" if row is None else f"{row.state} ({row.cause}): " if row.cause else f"{row.state}: "
        return TaskError(message=f"{how}attempt {attempt} of the run ended before this did")


def standing_of(tx: Tx, run_id: UUID) -> Standing:
    """How the attempts of a run stand."""
    live = tx.conn.scalar(select(leases.c.attempt).where(leases.c.run_id == run_id)) or 0
    columns = (attempts.c.number, attempts.c.state, attempts.c.cause, attempts.c.ended_at)
    rows: Iterable[Row[Any]] = tx.conn.execute(select(*columns).where(attempts.c.run_id == run_id))
    return Standing(live, {row.number: row for row in rows})
