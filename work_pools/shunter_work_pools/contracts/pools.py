"""Work pools and their work queues."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shunter_work_pools.contracts.base import Contract, Instant, Json, Name, Tag
from shunter_work_pools.contracts.pauses import Pause, PausePatch
from shunter_work_pools.contracts.secret_variables import ShownVariables

PoolType = Literal["process", "docker", "kubernetes"]
Limit = Field(default=None, ge=0, le=1_000_000)
Priority = Field(default=0, ge=-1000, le=1000)


class PoolSpec(Contract):
    """A request to make a pool; it gets a queue named ``default``.

    Attributes:
        match: a deployment that names no pool goes to the pool whose match tags it all carries.
        limit: live attempts at once in the whole pool; None: no limit of its own.
        priority: between pools that match equally well, higher first.
        template: values of the variables that the pool's launcher has; see ``contracts.pool_templates``.
    """

    name: Name
    type: PoolType = "process"
    match: list[Tag] = Field(default=[], max_length=50)
    limit: int | None = Limit
    priority: int = Priority
    template: dict[str, Json] = {}


class PoolPatch(PausePatch):
    """Changes of a pool; only the fields that are set are changed."""

    match: list[Tag] | None = Field(default=None, max_length=50)
    limit: int | None = Limit
    priority: int | None = Field(default=None, ge=-1000, le=1000)
    template: dict[str, Json] | None = None


class QueueSpec(Contract):
    """A request to make a work queue in a pool.

    Attributes:
        priority: between the pool's queues, higher first.
        limit: live attempts at once from this queue; None: no limit of its own.
    """

    name: Name
    priority: int = Priority
    limit: int | None = Limit


class QueuePatch(PausePatch):
    """Changes of a queue; only the fields that are set are changed."""

    priority: int | None = Field(default=None, ge=-1000, le=1000)
    limit: int | None = Limit


class Queue(Contract):
    """A work queue: an ordered line inside a pool."""

    name: str
    pool: str
    priority: int
    limit: int | None
    paused: bool
    pause: Pause | None = None
    waiting: int = 0
    active: int = 0


class Pool(Contract):
    """A work pool as the server keeps it.

    Attributes:
        waiting: runs that are Scheduled or Retrying.
        active: live leases.
        template: as it was given, but for secret values: null.
        agents: names of agents that were heard of within ``lost_after``.
    """

    name: str
    type: PoolType
    match: list[str]
    limit: int | None
    priority: int
    template: ShownVariables
    paused: bool
    pause: Pause | None = None
    created_at: Instant
    queues: list[Queue] = []
    waiting: int = 0
    active: int = 0
    agents: list[str] = []


class PoolList(Contract):
    """All pools, by name."""

    pools: list[Pool]
