"""Explanations: why a run is where it is, and where the runs of a deployment go."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from shunter_work_pools.contracts.base import Contract, Json


class Code(StrEnum):
    """Why a run is where it is; ``docs/explanations.md`` has the sentence of each.

    Where several hold of a waiting run, the one that stands first here is told, the others beside it.
    """

    # It waits: its time has not come.
    DUE_LATER = "due_later"
    SLOT_JITTER = "slot_jitter"
    RETRY_DELAY = "retry_delay"
    # It has no place.
    PLACE_GONE = "place_gone"
    NO_POOLS = "no_pools"
    NO_POOL_MATCHES = "no_pool_matches"
    # Something that it belongs to is paused.
    SERVER_PAUSED = "server_paused"
    POOL_PAUSED = "pool_paused"
    QUEUE_PAUSED = "queue_paused"
    DEPLOYMENT_PAUSED = "deployment_paused"
    # A limit is reached.
    POOL_FULL = "pool_full"
    QUEUE_FULL = "queue_full"
    DEPLOYMENT_FULL = "deployment_full"
    BACKFILL_FULL = "backfill_full"
    LIMIT_FULL = "limit_full"
    TAG_LIMIT_FULL = "tag_limit_full"
    RATE_USED_UP = "rate_used_up"
    # No agent can take it.
    NEVER_SERVED = "never_served"
    QUEUE_NOT_SERVED = "queue_not_served"
    TAGS_MISSING = "tags_missing"
    CAPACITY_NEVER = "capacity_never"
    AGENTS_LOST = "agents_lost"
    AGENTS_DRAINING = "agents_draining"
    AGENTS_PAUSED = "agents_paused"
    AGENTS_UNHEALTHY = "agents_unhealthy"
    AGENTS_AWAY = "agents_away"
    # Those that can are busy.
    CAPACITY_BUSY = "capacity_busy"
    SLOTS_BUSY = "slots_busy"
    IN_LINE = "in_line"
    AVOIDS_AGENT = "avoids_agent"
    ABOUT_TO_START = "about_to_start"
    # It is active.
    AGENT_SILENT = "agent_silent"
    SUPERSEDING = "superseding"
    CANCELLING = "cancelling"
    CLAIMED = "claimed"
    STARTING = "starting"
    RUNNING = "running"
    # It has ended.
    COMPLETED = "completed"
    EXIT_CODE = "exit_code"
    EXCEPTION = "exception"
    SIGNAL_OWN = "signal_own"
    SIGNAL_OUTSIDE = "signal_outside"
    OOM = "oom"
    EVICTED = "evicted"
    PREEMPTED = "preempted"
    IMAGE_PULL = "image_pull"
    UNSCHEDULABLE = "unschedulable"
    START_FAILED = "start_failed"
    START_TIMEOUT = "start_timeout"
    AGENT_LOST = "agent_lost"
    NODE_LOST = "node_lost"
    KEEPER_LOST = "keeper_lost"
    SOURCE = "source"
    DELETED = "deleted"
    REJECTED = "rejected"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    CANCELLED_WAITING = "cancelled_waiting"
    SKIPPED = "skipped"
    SKIPPED_WHEN_FULL = "skipped_when_full"
    SUPERSEDED = "superseded"


#: Of a run that was just made: it waits until somebody does something.
WANTS_SOMEBODY = frozenset(
    {
        *(Code.PLACE_GONE, Code.NO_POOLS, Code.NO_POOL_MATCHES),
        *(Code.SERVER_PAUSED, Code.POOL_PAUSED, Code.QUEUE_PAUSED, Code.DEPLOYMENT_PAUSED),
        *(Code.NEVER_SERVED, Code.QUEUE_NOT_SERVED, Code.TAGS_MISSING, Code.CAPACITY_NEVER),
        *(
            Code.AGENTS_LOST,
            Code.AGENTS_DRAINING,
            Code.AGENTS_PAUSED,
            Code.AGENTS_UNHEALTHY,
            Code.AGENTS_AWAY,
        ),
    }
)


class Explanation(Contract):
    """Why a run is where it is.

    Attributes:
        state: a ``RunState``; while the run is Active, the state of its live attempt.
        code: one of :class:`Code`; a newer server may know more.
        sentence: the same for people. Moments in it are in UTC.
        next_step: what a person can do, with the command where there is one.
        details: what the sentence was made from. ``also``: what holds besides, each with ``code``, ``sentence``
            and ``next_step``.
    """

    run: UUID
    state: str
    code: str
    sentence: str
    next_step: str
    details: dict[str, Json] = {}


class AgentReason(StrEnum):
    """Whether an agent can take a run, or what keeps it; what stands first is looked at first."""

    OTHER_POOLS = "other_pools"
    OTHER_QUEUES = "other_queues"
    LACKS_TAGS = "lacks_tags"
    LACKS_CAPACITY = "lacks_capacity"
    LOST = "lost"
    DRAINING = "draining"
    PAUSED = "paused"
    UNHEALTHY = "unhealthy"
    SLOTS_BUSY = "slots_busy"
    CAPACITY_BUSY = "capacity_busy"
    CAN_TAKE = "can_take"


class PoolReason(StrEnum):
    """Why a pool is chosen, or not."""

    NAMED = "named"
    CHOSEN = "chosen"
    NOT_NAMED = "not_named"
    NO_MATCH_TAGS = "no_match_tags"
    MISSING_TAGS = "missing_tags"
    LESS_SPECIFIC = "less_specific"
    LOWER_PRIORITY = "lower_priority"
    LESS_FREE = "less_free"
    BY_NAME = "by_name"


class PoolRoute(Contract):
    """A pool, and why the runs of a deployment go there or not.

    Attributes:
        code: one of :class:`PoolReason`.
        missing: its match tags that the runs do not carry.
        free: free slots of its live agents within its limit, less the runs that wait there; looked at only where
            several pools match equally well.
    """

    name: str
    chosen: bool
    code: str
    sentence: str
    match: list[str] = []
    priority: int = 0
    missing: list[str] = []
    free: int | None = None


class AgentRoute(Contract):
    """An agent, and whether it can take the runs of a deployment.

    Attributes:
        takes: ``now``, ``later`` (it could, but is busy, or the runs are held back: a pause, a full limit) or ``never`` (as
            things are).
        code: one of :class:`AgentReason`.
        missing: tags that are required and it has not.
        short: what is needed and it has not, or not free: how much of it it has, or has free.
        tags: its tags and those that it found by itself.
    """

    name: str
    takes: str
    code: str
    sentence: str
    pools: list[str] = []
    tags: list[str] = []
    found_tags: list[str] = []
    missing: list[str] = []
    short: dict[str, float] = {}


class Route(Contract):
    """Where the runs of a deployment go, and why.

    Attributes:
        tags: those of its runs, with what was asked for besides.
        require, need: what an agent must have.
        pool, queue: where they go; None: nowhere yet.
        sentence: what comes of it.
        pools, agents: all of them; what is chosen, and what can take runs, first.
    """

    deployment: str
    revision: int
    tags: list[str] = []
    require: list[str] = []
    need: dict[str, float] = {}
    pool: str | None = None
    queue: str | None = None
    sentence: str
    pools: list[PoolRoute] = []
    agents: list[AgentRoute] = []
