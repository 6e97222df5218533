"""Runs and attempts as people and programs see them, and how runs are made."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from shunter_work_pools.contracts.attempts import ToldProgress
from shunter_work_pools.contracts.base import Contract, Instant, Json, Name, Tag
from shunter_work_pools.contracts.states import Cause


class RunRequest(Contract):
    """A request to make one run of a deployment.

    Attributes:
        deployment: its name.
        parameters: over the deployment's defaults.
        tags: added to the deployment's.
        scheduled_at: when it is due; None: now.
        priority: over the deployment's.
        idempotency_key: the same key twice makes one run; the second request gets the first's run.
    """

    deployment: Name
    parameters: dict[str, Json] = {}
    tags: list[Tag] = Field(default=[], max_length=50)
    scheduled_at: Instant | None = None
    priority: int | None = Field(default=None, ge=-1000, le=1000)
    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None


class RunPatch(Contract):
    """Changes of a run that waits.

    Attributes:
        priority: within its queue, higher first.
    """

    priority: int = Field(ge=-1000, le=1000)


class RunBatch(Contract):
    """A request to make many runs, all or none."""

    runs: list[RunRequest] = Field(min_length=1, max_length=10_000)


class Attempt(Contract):
    """One try of a run.

    Attributes:
        state: an ``AttemptState``.
        agent: name of the agent that has or had the lease.
        epoch: the grant it is held under.
        pid: of the process, where there is one.
        exit_code: None if it ended by a signal or never started.
        signal: name such as ``SIGKILL``; None if it exited by itself.
        max_rss_bytes: highest resident set of one process of the tree, bytes.
        cpu_seconds: user and system time of the tree, seconds.
        log_size: bytes it wrote, known once it has ended.
        log_missing: how many of them are known to be lost: a mark takes their place in the log. Looked up
            for a look at one run only; else None.
        log_deleted: its output was deleted, as it need not be kept any more.
        lost: its agent is silent for longer than ``lost_after``.
        message: what a person should know, e.g. why it could not start.
        memory: bytes that it got, or gets, instead of what its deployment says: one before it ran out.
        note: what its launch waits for, in the engine's words.
        progress: how far the run itself says that it is, or was.
        commit: that its source was fetched at, or is to be: that of the attempts before.
    """

    number: int
    state: str
    cause: Cause | None = None
    message: str | None = None
    agent: str
    epoch: int
    pid: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    claimed_at: Instant
    started_at: Instant | None = None
    ended_at: Instant | None = None
    max_rss_bytes: int | None = None
    cpu_seconds: float | None = None
    log_size: int | None = None
    log_missing: int | None = None
    log_deleted: bool = False
    lost: bool = False
    memory: int | None = None
    note: str | None = None
    progress: ToldProgress | None = None
    commit: str | None = None


class Manifest(Contract):
    """What an engine was asked for, to run an attempt; without secrets."""

    run: UUID
    attempt: int
    manifest: Json


class Run(Contract):
    """One execution of a deployment.

    Attributes:
        state: a ``RunState``; while the run is Active, the state of its live attempt.
        pool, queue: None while no pool matches.
        late: it was still waiting ``late_after`` past the time it was due.
        held: it waits, and something that it belongs to is paused.
        scheduled_at: its slot, or the time it was asked for.
        due_at: when a waiting run may start next (a retry's delay and a schedule's jitter come on top of
            ``scheduled_at``); None when it is not waiting.
        slot: the due time of the schedule that made it; None if a person or program did.
        backfill: number of the backfill that made it, if one did.
        attempts: oldest first; in lists it is left empty.
    """

    id: UUID
    deployment: str
    revision: int
    pool: str | None
    queue: str | None
    tags: list[str]
    parameters: dict[str, Json]
    priority: int = 0
    state: str
    cause: Cause | None = None
    message: str | None = None
    late: bool = False
    lost: bool = False
    held: bool = False
    created_at: Instant
    scheduled_at: Instant
    due_at: Instant | None = None
    started_at: Instant | None = None
    ended_at: Instant | None = None
    schedule: str | None = None
    slot: Instant | None = None
    backfill: int | None = None
    result: Json = None
    attempt_count: int = 0
    attempts: list[Attempt] = []


class RunCreated(Contract):
    """Answer to making a run.

    Attributes:
        created: False if the idempotency key had made it before.
    """

    id: UUID
    created: bool = True


class RunsCreated(Contract):
    """Answer to making many runs, in the order of the request."""

    runs: list[RunCreated]


class RunPage(Contract):
    """One page of runs, newest first.

    Attributes:
        next: cursor of the next page; None at the end.
    """

    runs: list[Run]
    next: str | None = None


class Event(Contract):
    """Something that happened to a run.

    Attributes:
        kind: the state it came into (``Claimed``, ``Running``, ...) or a mark (``late``, ``lost``,
            ``released``, ``waiting``, ``left``, ``handed_over``), ``priority``, or of a deployment ``paused``, ``resumed``,
            ``catch_up_skipped`` and ``zone_unknown``.
        actor: who made it: user, scheduler, queue, agent, reaper.
    """

    at: Instant
    kind: str
    actor: str
    attempt: int | None = None
    data: dict[str, Json] = {}


class EventList(Contract):
    """The events of one run, oldest first."""

    events: list[Event]


class ExportedRun(Run):
    """A run with everything that is known of it."""

    events: list[Event] = []


class ExportPage(Contract):
    """One page of an export, in the order of the list; ``next`` is the cursor of the next page."""

    runs: list[ExportedRun]
    next: str | None = None
