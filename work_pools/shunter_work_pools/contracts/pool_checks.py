"""Checks of a pool: the server has a command of its own run in it, to see that runs come through."""

from __future__ import annotations

from uuid import UUID

from shunter_work_pools.contracts.base import Contract
from shunter_work_pools.contracts.states import Cause


class PoolCheck(Contract):
    """A check, which is a run like any other.

    Attributes:
        pool, queue: that it is made in.
        deployment: the server's own, whose run it is.
        created: by this request; else it was under way already.
        state: as that of a run.
        ended: whether it has, and all of its log that there will be is in ``log``.
        agent: that has or had it; None: none yet.
        sentence, next_step: why it is where it is, and what a person can do about it, as of any run.
        log: what the command wrote, at most 4 kB.
        mark: changes whenever something is new; for the next look.
    """

    pool: str
    queue: str
    run: UUID
    deployment: str
    created: bool = False
    state: str
    cause: Cause | None = None
    ended: bool = False
    agent: str | None = None
    sentence: str = ""
    next_step: str = ""
    log: str = ""
    mark: str = ""
