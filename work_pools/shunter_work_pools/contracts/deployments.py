"""Deployments: a named, runnable thing. Each change makes an immutable revision."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from shunter_work_pools.contracts.base import Contract, Instant, Json, Name, Tag
from shunter_work_pools.contracts.capacity import Amounts
from shunter_work_pools.contracts.code_sources import Environment, Source
from shunter_work_pools.contracts.limits import Places, Strategy
from shunter_work_pools.contracts.pauses import Pause, PausePatch
from shunter_work_pools.contracts.secret_variables import WithoutSecrets
from shunter_work_pools.contracts.secrets import EnvValue
from shunter_work_pools.contracts.sizes import size
from shunter_work_pools.contracts.states import CAUSES, AttemptState, Cause

#: Parameters of a run, encoded as JSON, may take this many bytes.
PARAMETERS_LIMIT = 512 * 1024
#: A result, encoded as JSON, may take this many bytes.
RESULT_LIMIT = 64 * 1024

#: Bytes of memory that a limit allows at the least: less than a process needs to begin is a mistake.
MEMORY_LEAST = 1024 * 1024

EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
#: POSIX.1-2017, 3.437: portable user names; or a number.
UserName = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,31}|[0-9]{1,10})$")]
Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86_400)]
PositiveSeconds = Annotated[float, Field(gt=0, le=10 * 365 * 86_400)]


class Work(Contract):
    """What an attempt executes: exactly one of ``command`` and ``entrypoint``.

    Attributes:
        command: program and arguments. A program with a slash is relative to ``source``.
        entrypoint: ``module:function``, ``path.py:function`` or ``path.py``, found from ``source``.
        source: from where relative paths are meant; first on ``sys.path``: a folder on the agent's machine, or what
            the agent fetches.
        environment: that it runs in, built by the agent; None: ``python``'s, or the agent's own.
        working_dir: where the process starts; default: a folder of the attempt's own.
        env: variables set for the run, over those the agent passes; the values of secrets come when it starts.
        pass_env: names of variables taken from the agent's own environment.
        python: interpreter for an entrypoint; default: the agent's own.
        timeout: seconds from start to forced end; None: no limit.
        start_timeout: seconds from claim to start.
        grace: seconds between SIGTERM and SIGKILL when the run is stopped.
        memory_limit: bytes that all processes of the run may use together; None: no limit.
        run_as: user of the agent's machine as whom it runs; None: the agent's own.
        token: it is given a token of its own, by which it may report its progress and fetch its secrets.
    """

    command: list[str] | None = Field(default=None, min_length=1)
    entrypoint: str | None = Field(default=None, min_length=1)
    source: Source | None = None
    environment: Environment | None = None
    working_dir: str | None = None
    env: dict[EnvName, EnvValue] = {}
    pass_env: list[EnvName] = []
    python: str | None = None
    timeout: PositiveSeconds | None = None
    start_timeout: PositiveSeconds = 300.0
    grace: Seconds = 10.0
    memory_limit: int | None = Field(default=None, ge=MEMORY_LEAST, le=2**50)
    run_as: UserName | None = None
    token: bool = False

    @property
    def plain_env(self) -> dict[str, str]:
        """The variables whose values are no secrets."""
        return {name: value for name, value in self.env.items() if isinstance(value, str)}

    @property
    def local_source(self) -> str | None:
        """The source, if it is a folder on the agent's machine."""
        return self.source if isinstance(self.source, str) else None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.command is None) == (self.entrypoint is None):
            raise ValueError("exactly one of command and entrypoint must be given")
        if self.environment is not None and self.python is not None:
            raise ValueError("an environment brings its own python: name the version there")
        texts = [*(self.command or []), self.entrypoint or "", *self.plain_env.values()]
        if any("\0" in text for text in texts):
            raise ValueError("a NUL character cannot be part of a command, entrypoint or variable")
        return self


#: Causes after which a policy may try again: what somebody asked for is not among them.
RETRIED_CAUSES = frozenset(
    cause
    for end in (AttemptState.FAILED, AttemptState.CRASHED, AttemptState.TIMED_OUT)
    for cause in CAUSES[end]
)


#: Causes that say nothing against a run, after which a policy may try again without counting.
UNCOUNTED_CAUSES = (Cause.PREEMPTED, Cause.EVICTED, Cause.NODE_LOST)


class MoreMemory(Contract):
    """How much more memory a run gets when it is tried again after ``oom``.

    Attributes:
        factor: so many times what the attempt had that ended.
        up_to: bytes; not more than that.
    """

    factor: float = Field(gt=1, le=100)
    up_to: int = Field(gt=0, le=2**50)


class RetryPolicy(Contract):
    """How often, and after which delay, an attempt that did not complete is tried again.

    Attributes:
        count: attempts after the first, 0 to 1000.
        delay: seconds between the end of an attempt and the next one being due.
        backoff: each further delay is so many times the one before, up to ``max_delay`` seconds.
        jitter: 0 to 1; up to this share of a delay is added to it, so that what failed together does not
            come back together. How much is fixed for each attempt.
        on: only after these causes; empty: after any.
        uncounted: after these (``preempted``, ``evicted``, ``node_lost``) it is tried again whatever ``count`` and
            ``on`` say, and that try does not count.
        more_memory: after ``oom`` the next attempt gets more, if it had a limit.
    """

    count: int = Field(default=0, ge=0, le=1000)
    delay: Seconds = 0.0
    backoff: float = Field(default=1.0, ge=1, le=100)
    max_delay: Seconds = 3600.0
    jitter: float = Field(default=0.0, ge=0, le=1)
    on: list[Cause] = []
    uncounted: list[Literal[Cause.PREEMPTED, Cause.EVICTED, Cause.NODE_LOST]] = []
    more_memory: MoreMemory | None = None

    @field_validator("on")
    @classmethod
    def _retried(cls, causes: list[Cause]) -> list[Cause]:
        asked_for = sorted(cause.value for cause in causes if cause not in RETRIED_CAUSES)
        if asked_for:
            raise ValueError(f"a run that was {asked_for[0]} is not tried again: somebody wanted it so")
        return list(dict.fromkeys(causes))


class CronSchedule(Contract):
    """Slots by a cron expression, in local time of ``timezone`` (an IANA name).

    Attributes:
        cron: 5 fields, 6 (the first are seconds), or a nickname such as ``@daily``.
        day: where both the day of the month and the day of the week are restricted: ``or`` takes days
            that match either (as cron(8) does), ``and`` days that match both.
    """

    kind: Literal["cron"] = "cron"
    cron: Annotated[str, StringConstraints(max_length=1000)]
    timezone: str = "UTC"
    day: Literal["or", "and"] = "or"


class IntervalSchedule(Contract):
    """Slots every ``seconds`` of physical time, counted from ``anchor`` (default: the first deploy)."""

    kind: Literal["interval"] = "interval"
    seconds: Annotated[float, Field(ge=1, le=10 * 365 * 86_400)]
    anchor: Instant | None = None
    timezone: str = "UTC"


class RRuleSchedule(Contract):
    """Slots by a recurrence rule of RFC 5545, in local time of ``timezone``.

    Attributes:
        rrule: ``FREQ=...``, or the lines ``DTSTART:``, ``RRULE:``, ``RDATE:`` and ``EXDATE:``. Without
            DTSTART it begins at the first deploy.
    """

    kind: Literal["rrule"] = "rrule"
    rrule: Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
    timezone: str = "UTC"


#: When slots are.
When = Annotated[CronSchedule | IntervalSchedule | RRuleSchedule, Field(discriminator="kind")]

#: What becomes of slots that passed while none could be made into runs.
CatchUp = Literal["all", "latest", "none"]


class Schedule(Contract):
    """A named schedule of a deployment.

    Attributes:
        parameters: over the deployment's.
        paused: makes no slots. `schedule pause` and `resume` change it without a new revision; a deploy
            does only if what it says differs from the revision before.
        jitter: seconds within which a run starts after its slot; how many is fixed for each slot.
        start, end: slots before ``start`` and after ``end`` are none.
        catch_up: what becomes of missed slots: all are made up for, the latest one, or none.
        catch_up_age: seconds; older ones are not made up for.
        catch_up_slots: of those missed at once so many of the newest are made up for.
    """

    name: Name = "default"
    when: When
    parameters: dict[str, Json] = {}
    paused: bool = False
    jitter: Seconds = 0.0
    start: Instant | None = None
    end: Instant | None = None
    catch_up: CatchUp = "all"
    catch_up_age: PositiveSeconds = 86_400.0
    catch_up_slots: int = Field(default=100, ge=1, le=10_000)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError("end must be after start")
        return self


class Keep(Contract):
    """What is kept of runs that have ended; None: what the server's settings say.

    Attributes:
        runs, logs, events: of so many of the newest runs.
        runs_for, logs_for, events_for: seconds since the run's end.
    """

    runs: int | None = Field(default=None, ge=0, le=100_000_000)
    runs_for: PositiveSeconds | None = None
    logs: int | None = Field(default=None, ge=0, le=100_000_000)
    logs_for: PositiveSeconds | None = None
    events: int | None = Field(default=None, ge=0, le=100_000_000)
    events_for: PositiveSeconds | None = None


OnLost = Literal["wait", "retry", "crash"]


class DeploymentSpec(Contract):
    """Everything a revision fixes.

    Attributes:
        work: what to run.
        parameters: defaults, overridden by a schedule's and then by a run's own.
        parameter_schema: JSON schema (draft 2020-12) of the parameters; None: any object.
        tags: labels of the deployment and its runs.
        require: tags that the agent must have.
        need: what a run takes of its agent while it is active, e.g. ``{"gpu": 1, "memory": 2**33}``; a slot
            comes on top.
        limits: names of limits that its runs share with other deployments'.
        max_active: live attempts of it at once, of all its revisions; None: no limit of its own.
        when_full: what becomes of a run that is due while ``max_active`` is reached.
        pool: where it runs; None: by tags.
        queue: the pool's work queue; None: its ``default``.
        priority: of its runs within the queue, higher first.
        schedules: when runs are made.
        retries: the retry policy.
        on_lost: what happens after ``give_up_after`` of silence of the agent.
        exclusive: no two attempts of a run ever work at the same time, also not when its agent is cut off:
            the agent ends the work itself before its lease ends (setting ``server.lease_for``).
        keep: how long its runs, their logs and events are kept.
        variables: over those of the pool's template, each as a whole. Secret values are null in answers; null in
            a request: as the revision before has it.
        description: free text.
    """

    work: Work
    parameters: dict[str, Json] = {}
    parameter_schema: dict[str, Json] | None = None
    tags: list[Tag] = Field(default=[], max_length=50)
    require: list[Tag] = Field(default=[], max_length=50)
    need: Amounts = {}
    limits: list[Name] = Field(default=[], max_length=20)
    max_active: Places | None = None
    when_full: Strategy = "enqueue"
    pool: Name | None = None
    queue: Name | None = None
    priority: int = Field(default=0, ge=-1000, le=1000)
    schedules: list[Schedule] = Field(default=[], max_length=1000)
    retries: RetryPolicy = RetryPolicy()
    on_lost: OnLost = "crash"
    exclusive: bool = False
    keep: Keep = Keep()
    variables: dict[str, Json] = Field(default={}, max_length=100)
    description: str = Field(default="", max_length=10_000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named = Counter(schedule.name for schedule in self.schedules)
        twice = sorted(name for name, count in named.items() if count > 1)
        if twice:
            raise ValueError(f"two schedules of one deployment are named {', '.join(twice)}")
        if self.queue is not None and self.pool is None:
            raise ValueError("a queue needs a pool: name the pool whose queue it is")
        if self.when_full != "enqueue" and not self.max_active:
            raise ValueError(f"when_full {self.when_full} needs a max_active of at least 1")
        more, limit = self.retries.more_memory, self.work.memory_limit
        if more is not None and limit is not None and more.up_to <= limit:
            raise ValueError(
                f"retries.more_memory goes up to {size(more.up_to)}, which is no more than its memory_limit of "
                f"{size(limit)}"
            )
        self.tags = list(dict.fromkeys(self.tags))
        self.require = list(dict.fromkeys(self.require))
        self.limits = list(dict.fromkeys(self.limits))
        self.need = {name: amount for name, amount in sorted(self.need.items()) if amount}
        return self


#: A spec in an answer.
ShownSpec = Annotated[DeploymentSpec, WithoutSecrets]


class ScheduleView(Schedule):
    """A schedule as the server keeps it.

    Attributes:
        deployment: whose it is.
        words: what it means, e.g. ``every weekday at 06:00 in Berlin``.
        next_at: the next slot; None when it or its deployment is paused, or it is exhausted.
        pause: who paused it, and why; None: it is not paused, or was deployed so.
    """

    deployment: str = ""
    words: str = ""
    next_at: Instant | None = None
    pause: Pause | None = None


class SchedulePage(Contract):
    """One page of schedules, by deployment and name; ``next`` is the cursor of the next page."""

    schedules: list[ScheduleView]
    next: str | None = None


class SchedulePatch(PausePatch):
    """Changes of a schedule that are not a new revision."""


class SlotPreview(Contract):
    """A slot to come.

    Attributes:
        utc: the moment.
        local: the same in the schedule's zone, RFC 3339 with its offset.
        remark: what a change of the clock does to it; None: nothing.
    """

    utc: Instant
    local: str
    remark: str | None = None


class Preview(Contract):
    """The next slots of a schedule; fewer than asked for if it is exhausted."""

    words: str
    slots: list[SlotPreview]


class PreviewRequest(Contract):
    """Asks for the next slots of a schedule that need not be deployed.

    Attributes:
        after: slots from this moment on, inclusive; None: now.
    """

    schedule: Schedule
    after: Instant | None = None
    count: int = Field(default=10, ge=1, le=1000)


class Deployment(Contract):
    """A deployment with its current revision."""

    name: str
    revision: int
    paused: bool = False
    pause: Pause | None = None
    created_at: Instant
    updated_at: Instant
    spec: ShownSpec
    schedules: list[ScheduleView] = []


class Revision(Contract):
    """One immutable revision of a deployment."""

    deployment: str
    number: int
    created_at: Instant
    spec: ShownSpec


class Applied(Contract):
    """Answer to a deploy.

    Attributes:
        changed: whether a new revision was made; the same spec twice makes none.
        warnings: what will keep its runs waiting, e.g. no agent serves the pool.
    """

    deployment: Deployment
    changed: bool
    warnings: list[str] = []


class DeploymentPage(Contract):
    """One page of deployments, by name; ``next`` is the cursor of the next page."""

    deployments: list[Deployment]
    next: str | None = None


class RevisionList(Contract):
    """The revisions of a deployment, newest first."""

    revisions: list[Revision]


class DeploymentPatch(PausePatch):
    """Changes that are not a new revision."""


class Named(Contract):
    """A deployment to be made: its name and all of it."""

    name: Name
    spec: DeploymentSpec


class ApplyRequest(Contract):
    """Asks to make or change several deployments, all or none.

    Attributes:
        dry_run: only say what would change.
    """

    deployments: list[Named] = Field(min_length=1, max_length=1000)
    dry_run: bool = False


class Change(Contract):
    """What an apply does to one deployment.

    Attributes:
        change: ``created``, ``changed`` or ``unchanged``.
        revision: its number afterwards.
        before: the spec it had.
        next_at: its next slot afterwards; None with ``dry_run``.
    """

    name: str
    change: Literal["created", "changed", "unchanged"]
    revision: int
    before: ShownSpec | None = None
    warnings: list[str] = []
    next_at: Instant | None = None


class ApplyAnswer(Contract):
    """What was, or would be, changed, in the order of the request.

    A refusal carries ``faults``, all that were found: objects with ``deployment`` (its place in the
    request), ``loc`` (path into its spec), ``detail`` and ``remedy``.
    """

    deployments: list[Change]


class RollbackRequest(Contract):
    """Asks to make an earlier revision the current one, as a new revision.

    Attributes:
        to: number of the revision; None: the one before the current one.
    """

    to: int | None = Field(default=None, ge=1)


class BackfillRequest(Contract):
    """Asks to make runs of the slots of a schedule from ``start`` up to, not including, ``end``.

    Slots that have a run already are left alone, so the same request again goes on where it stopped.

    Attributes:
        schedule: its name; None: the deployment's only one.
        concurrency: of the backfill's runs, so many are active at once; None: no limit of its own.
        after: go on after this slot (``next`` of the answer before).
        limit: slots that are looked at.
        dry_run: only count.
    """

    start: Instant
    end: Instant
    schedule: Name | None = None
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    after: Instant | None = None
    limit: int = Field(default=500, ge=1, le=1000)
    dry_run: bool = False


class BackfillAnswer(Contract):
    """What a backfill did.

    Attributes:
        backfill: number of the backfill; its runs carry it. None with ``dry_run``.
        slots: how many were looked at; with ``dry_run`` all that there are.
        made: runs that were made, or would be.
        next: to go on after; None at the end.
    """

    schedule: str
    backfill: int | None = None
    slots: int
    made: int
    next: Instant | None = None


class Skipped(Contract):
    """How many waiting runs were ended as skipped; ``more``: there are others, ask again."""

    runs: int
    more: bool = False
