"""One look at everything: what runs, what is late, what failed, which agents there are."""

from __future__ import annotations

from shunter_work_pools.contracts.agents import Agent, ServerInfo
from shunter_work_pools.contracts.base import Contract, Instant
from shunter_work_pools.contracts.deployments import ScheduleView
from shunter_work_pools.contracts.pools import Pool
from shunter_work_pools.contracts.runs import Run


class Status(Contract):
    """The server at one moment. Lists hold the ten most telling ones; counts count all.

    Attributes:
        live: state -> number of runs that wait or are active; ``Scheduled`` counts those that are due.
        upcoming: Scheduled runs that are not due yet.
        late: waiting runs that are late.
        failed: runs that ended Failed, Crashed or TimedOut since ``since``.
        active_runs: longest running first.
        late_runs: longest waiting first.
        failed_runs: latest first.
        next_slots: the schedules that are due next, soonest first.
    """

    server: ServerInfo
    since: Instant
    live: dict[str, int]
    upcoming: int
    late: int
    failed: int
    active_runs: list[Run]
    late_runs: list[Run]
    failed_runs: list[Run]
    agents: list[Agent]
    pools: list[Pool]
    next_slots: list[ScheduleView]
