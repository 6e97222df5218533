"""The protocol between an agent and the server: sync, reports, logs, release.

Sync is level-triggered: the agent says all that it holds, the server answers all that should be
different. A lost answer heals itself at the next sync. Reports travel apart, numbered per attempt, so
that sending twice is harmless.
"""

from __future__ import annotations

from typing import Annotated, Self
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator

from shunter_work_pools.contracts.base import Contract, Instant, Json, Name, Tag
from shunter_work_pools.contracts.capacity import Amounts
from shunter_work_pools.contracts.code_sources import COMMIT
from shunter_work_pools.contracts.deployments import Seconds, Work
from shunter_work_pools.contracts.pauses import Pause, PausePatch
from shunter_work_pools.contracts.secret_variables import SECRETS
from shunter_work_pools.contracts.secrets import FromAgent, FromSecret
from shunter_work_pools.contracts.states import AttemptState, Cause

#: Longest time, in seconds, that the server holds a sync without an answer.
HOLD_LIMIT = 10.0
#: Seconds: the usual length of a lease, see ``SyncAnswer.lease_for``.
LEASE_FOR = 240.0
#: Seconds before the end of its lease at which the work of an exclusive run is ended at the latest.
LEASE_MARGIN = 5.0
#: Bytes of a manifest, as JSON.
MANIFEST_LIMIT = 64 * 1024
#: Reports in one batch.
REPORT_LIMIT = 1000
#: Bytes of one log upload, framing included.
LOG_UPLOAD_LIMIT = 8 * 1024 * 1024
#: Media type of a log upload: frames of one JSON line (``LogFrame``), then ``length`` raw bytes.
LOG_MEDIA_TYPE = "application/vnd.shunter.log-frames"
#: Bytes of output by which an agent that takes over finds its place in an engine's log, at the most: usually, and where
#: the last of them are mostly masked.
OUTPUT_TAIL, MASKED_TAIL = 256, 8 * 1024

#: Why an agent is unhealthy, for people.
Trouble = Annotated[str, StringConstraints(min_length=1, max_length=1000)]

#: What the engine says that a launch waits for, one sentence; empty: nothing.
NOTE_LIMIT = 1000
Note = Annotated[str, StringConstraints(max_length=NOTE_LIMIT)]
#: Where an agent's work is, for comparison only: an agent that says the same can reach it.
Reach = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Held(Contract):
    """An attempt that the agent holds.

    Attributes:
        stopping: the agent knows already that it must end; without it a cancellation is told again at
            every sync (which then is not held).
        note: what the engine says that its launch waits for.
    """

    run: UUID
    attempt: int = Field(ge=1)
    epoch: int = Field(ge=1)
    stopping: bool = False
    note: Note = ""


class SyncRequest(Contract):
    """What the agent has, and what it could take.

    Attributes:
        protocol: version the agent speaks.
        session: UUIDv7 of this life of the daemon; a newer session of a name replaces an older one.
        identity: random id of the agent's state folder: who it is, whatever it is called.
        pools: pools it serves, in its order of preference.
        queues: only these queues of its pools; empty: all.
        tags: what runs may demand of it.
        found_tags: what it found out about its machine by itself; demanded alike, shown apart.
        capacity: what it has that runs may need.
        free_capacity: what of that is free now: less what runs that it has, and what runs on it still although
            it has it no more.
        limit: attempts it may hold at once.
        taking: whether it wants more at all; False while it drains or is unhealthy.
        draining: it takes nothing new any more, and ends when nothing is left.
        troubles: why it is unhealthy, one sentence each.
        reaches: pool -> where the work of its runs is. What an agent that fell silent held there may be handed
            over to another one that says the same. Pools whose work only this agent can reach are not in it.
        free: attempts it can take now: its limit, less those it holds, less what still runs on it
            although it holds it no more.
        holds: the attempts whose end the server has not acknowledged. (Those of which only output is
            owed are not among them.)
        hold_for: seconds the server may hold the request until there is something to say.
        host, version: for people.
    """

    protocol: int
    session: UUID
    identity: UUID
    pools: list[Name] = Field(min_length=1, max_length=100)
    queues: list[Name] = []
    tags: list[Tag] = []
    found_tags: list[Tag] = Field(default=[], max_length=50)
    capacity: Amounts = {}
    free_capacity: Amounts = {}
    limit: int = Field(ge=1, le=100_000)
    taking: bool = True
    draining: bool = False
    troubles: list[Trouble] = Field(default=[], max_length=20)
    reaches: dict[Name, Reach] = {}
    free: int = Field(ge=0, le=100_000)
    holds: list[Held] = []
    hold_for: Annotated[float, Field(ge=0, le=HOLD_LIMIT)] = HOLD_LIMIT
    host: str = ""
    version: str = ""


class Output(Contract):
    """How much of an attempt's output the server has from the agents before.

    Attributes:
        size: offset in the output up to which it knows it.
        tail: its last bytes before ``size``, at most ``MASKED_TAIL``, in base64: by them it is found in the engine's
            log. Secrets in them are masked.
        started: the server knows that the attempt has begun: if nothing of it is found, somebody deleted it,
            and it is not begun again.
    """

    size: int = Field(ge=0)
    tail: str = ""
    started: bool = False


class Assignment(Contract):
    """An attempt granted to an agent, with all it needs to launch it.

    Attributes:
        session: the session it was granted to. An agent that finds nothing written down about it
            and whose machine has rebooted since that session cannot know whether it began.
        exclusive: it must have ended ``lease_for`` seconds after the agent last sent a request that was
            answered.
        need: what it takes of the agent's capacity; the agent chooses which devices these are.
        template: the variables of its pool's template, with the deployment's own over them; null in place of
            secret values, which the agent fetches when it launches the attempt.
        commit: of its source's repository: attempts before ran it, so this one does; None: the agent finds out which
            one it is, and reports it.
        handed_over: another agent had it and fell silent (or this one, whose folder is gone): it may run, or
            have ended. The work is found, not begun anew, if there is any; and it is not given back. None: nobody
            had it.
        goes_on: an attempt before has left a journal: this one is given a token, by which it learns what was completed.
    """

    run: UUID
    attempt: int
    epoch: int
    session: UUID
    deployment: str
    revision: int
    pool: str
    queue: str
    tags: list[str] = []
    parameters: dict[str, Json] = {}
    scheduled_at: Instant
    work: Work
    exclusive: bool = False
    need: dict[str, float] = {}
    template: dict[str, Json] = {}
    handed_over: Output | None = None
    commit: Annotated[str, StringConstraints(pattern=COMMIT)] | None = None
    goes_on: bool = False

    @property
    def wants_token(self) -> bool:
        """It is to speak to the server."""
        return self.work.token or self.goes_on

    @property
    def wants_server_secrets(self) -> bool:
        """Values that the server keeps belong to it."""
        source = self.work.source
        return (
            any(isinstance(value, FromSecret) for value in self.work.env.values())
            or (source is not None and not isinstance(source, str) and source.secret is not None)
            or bool(self.template.get(SECRETS))
            or self.wants_token
        )

    @property
    def wants_secrets(self) -> bool:
        """Values that the server or the agent keeps belong to it."""
        return self.wants_server_secrets or any(
            isinstance(value, FromAgent) for value in self.work.env.values()
        )


class SyncAnswer(Contract):
    """What should be different on the agent.

    Attributes:
        assignments: start these (those it holds already are not repeated).
        cancel: stop these and report how they ended.
        forget: no longer its own: stop them, report nothing.
        let_go: no longer its own, for another agent has them now: report nothing, and leave the work alone.
        drain: take nothing new, end when nothing is left.
        server_time: the server's clock.
        lost_after, give_up_after: seconds of silence until the server marks, then acts.
        lease_for: seconds after the sending of this sync's request at which nothing of an exclusive
            attempt may run any more, unless a later sync is answered.
    """

    protocol: int
    assignments: list[Assignment] = []
    cancel: list[Held] = []
    forget: list[Held] = []
    let_go: list[Held] = []
    drain: bool = False
    server_time: Instant
    lost_after: float
    give_up_after: float
    lease_for: float = LEASE_FOR


class Report(Contract):
    """One step of an attempt.

    Attributes:
        seq: 1, 2, 3, ... per attempt; the server keeps the last one.
        age: seconds between the step and the sending of this batch, by the agent's boot-time clock,
            so that a wrong wall clock does no harm.
        state: where the attempt is now.
        cause: with an end other than Completed.
        result: JSON value left by the run, up to 64 KiB.
        log_size: total bytes of output as it was written, lost ones included; with an end.
        commit: that its source was fetched at, if it is a repository's; with Running or the end.
        manifest: what the engine was asked for, without secrets; once, with Running or the end.
            Up to ``MANIFEST_LIMIT``.
    """

    run: UUID
    attempt: int = Field(ge=1)
    epoch: int = Field(ge=1)
    seq: int = Field(ge=1)
    age: Seconds
    state: AttemptState
    cause: Cause | None = None
    message: str | None = Field(default=None, max_length=10_000)
    pid: int | None = None
    exit_code: int | None = None
    signal: Annotated[str, StringConstraints(max_length=32)] | None = None
    max_rss_bytes: int | None = None
    cpu_seconds: float | None = None
    result: Json = None
    log_size: int | None = Field(default=None, ge=0)
    manifest: Json = None
    commit: Annotated[str, StringConstraints(pattern=COMMIT)] | None = None


class ReportBatch(Contract):
    """Reports of one agent; those of one attempt in the order of ``seq``."""

    session: UUID
    reports: list[Report] = Field(max_length=REPORT_LIMIT)


class ReportAck(Contract):
    """What the server made of the reports of one attempt.

    Attributes:
        seq: the last one it has; the agent forgets up to it.
        stale: the epoch is no longer held: stop that work, forget it.
        handed_over: another agent has it now: with ``stale``, leave the work alone.
    """

    run: UUID
    attempt: int
    seq: int
    stale: bool = False
    handed_over: bool = False
    detail: str | None = None


class ReportAnswer(Contract):
    """Acknowledgements, one per attempt in the batch."""

    acks: list[ReportAck]


class LogFrame(Contract):
    """Header of one frame of a log upload: ``length`` bytes of an attempt's output from ``offset``.

    Attributes:
        offset: in the output as the attempt wrote it.
        gap: so many bytes from ``offset`` on are lost (``length`` is 0 then): a mark takes their place.
    """

    run: UUID
    attempt: int = Field(ge=1)
    epoch: int = Field(ge=1)
    offset: int = Field(ge=0)
    length: int = Field(ge=0, le=LOG_UPLOAD_LIMIT)
    gap: int = Field(default=0, ge=0, le=2**62)

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.gap and self.length:
            raise ValueError("a gap has no bytes")
        return self


class LogSize(Contract):
    """How much of an attempt's output the server has; the agent goes on from there.

    Attributes:
        size: offset in the output up to which it knows it, as bytes or as a gap.
        stale: the attempt is not this agent's (any more), or unknown: send no more.
        full: more of its output is not kept: send no more.
        crash_hooks: of a journal: the flow has hooks for a crash, as far as was known before.
    """

    run: UUID
    attempt: int
    size: int
    stale: bool = False
    full: bool = False
    crash_hooks: bool = False


class LogAnswer(Contract):
    """Sizes after an upload, one per attempt in it."""

    sizes: list[LogSize]


class ReleaseRequest(Contract):
    """Attempts given back: before they were started, so that they wait again at once; or, left, wherever they are, so
    that another agent which reaches their work goes on with it."""

    session: UUID
    attempts: list[Held] = Field(max_length=REPORT_LIMIT)


class Agent(Contract):
    """An agent as the server knows it.

    Attributes:
        lost: not heard of for longer than ``lost_after``.
        stopped: not heard of any more after it said that it drains, with nothing left: it has ended.
        active: attempts it holds.
        draining: it takes nothing new any more, and ends when nothing is left.
        troubles: why it takes nothing now, one sentence each.
        paused: it is given nothing new, what it holds goes on.
        capacity: what it has that runs may need.
        free_capacity: that, less what the attempts that it holds take.
        reaches: pool -> where the work of its runs is, if others can reach it, too.
    """

    name: str
    pools: list[str]
    queues: list[str] = []
    tags: list[str] = []
    found_tags: list[str] = []
    capacity: dict[str, float] = {}
    free_capacity: dict[str, float] = {}
    limit: int
    active: int = 0
    host: str = ""
    version: str = ""
    first_seen_at: Instant
    last_seen_at: Instant
    lost: bool = False
    stopped: bool = False
    draining: bool = False
    troubles: list[str] = []
    paused: bool = False
    pause: Pause | None = None
    reaches: dict[str, str] = {}


class AgentPatch(PausePatch):
    """Pauses an agent or lets it go on."""


class AgentList(Contract):
    """All agents, by name."""

    agents: list[Agent]


class ServerPatch(PausePatch):
    """Stops the handing out of runs to agents (maintenance), or lets it go on. What runs goes on, slots are made
    into runs, and these wait."""


class ServerInfo(Contract):
    """What a server says of itself.

    Attributes:
        store: ``sqlite`` or ``postgres``.
        pause: who stopped the handing out of runs (maintenance), and why; None: it goes on.
        schema_version: of the database.
        database_bytes: its size.
    """

    version: str
    protocol: int
    server_time: Instant
    store: str
    pause: Pause | None = None
    started_at: Instant | None = None
    schema_version: str = ""
    database_bytes: int | None = None
