"""Deployments: a named, runnable thing. Each change makes an immutable revision."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from shunter_work_pools.contracts.base import Contract, Instant, Json, Name, Tag

#: Parameters of a run, encoded as JSON, may take this many bytes.
PARAMETERS_LIMIT = 512 * 1024
#: A result, encoded as JSON, may take this many bytes.
RESULT_LIMIT = 64 * 1024

EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86_400)]
PositiveSeconds = Annotated[float, Field(gt=0, le=10 * 365 * 86_400)]


class Work(Contract):
    """What an attempt executes: exactly one of ``command`` and ``entrypoint``.

    Attributes:
        command: program and arguments. A program with a slash is relative to ``source``.
        entrypoint: ``module:function``, ``path.py:function`` or ``path.py``, found from ``source``.
        source: folder on the agent's machine from which relative paths are meant; first on ``sys.path``.
        working_dir: where the process starts; default: a folder of the attempt's own.
        env: variables set for the run, over those the agent passes.
        pass_env: names of variables taken from the agent's own environment.
        python: interpreter for an entrypoint; default: the agent's own.
        timeout: seconds from start to forced end; None: no limit.
        start_timeout: seconds from claim to start.
        grace: seconds between SIGTERM and SIGKILL when the run is stopped.
    """

    command: list[str] | None = Field(default=None, min_length=1)
    entrypoint: str | None = Field(default=None, min_length=1)
    source: str | None = None
    working_dir: str | None = None
    env: dict[EnvName, str] = {}
    pass_env: list[EnvName] = []
    python: str | None = None
    timeout: PositiveSeconds | None = None
    start_timeout: PositiveSeconds = 300.0
    grace: Seconds = 10.0

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.command is None) == (self.entrypoint is None):
            raise ValueError("exactly one of command and entrypoint must be given")
        texts = [*(self.command or []), self.entrypoint or "", *self.env.values()]
        if any("\0" in text for text in texts):
            raise ValueError("a NUL character cannot be part of a command, entrypoint or variable")
        return self


class RetryPolicy(Contract):
    """How often, and after which delay, an attempt that did not complete is tried again.

    Attributes:
        count: attempts after the first, 0 to 1000.
        delay: seconds between the end of an attempt and the next one being due.
    """

    count: int = Field(default=0, ge=0, le=1000)
    delay: Seconds = 0.0


class CronSchedule(Contract):
    """Slots by a cron expression, in local time of ``timezone`` (an IANA name)."""

    kind: Literal["cron"] = "cron"
    cron: str
    timezone: str = "UTC"


class IntervalSchedule(Contract):
    """Slots every ``seconds`` of physical time, counted from ``anchor`` (default: the first deploy)."""

    kind: Literal["interval"] = "interval"
    seconds: Annotated[float, Field(ge=1, le=10 * 365 * 86_400)]
    anchor: Instant | None = None
    timezone: str = "UTC"


class Schedule(Contract):
    """A named schedule of a deployment."""

    name: Name = "default"
    when: Annotated[CronSchedule | IntervalSchedule, Field(discriminator="kind")]
    parameters: dict[str, Json] = {}
    paused: bool = False


OnLost = Literal["wait", "retry", "crash"]


class DeploymentSpec(Contract):
    """Everything a revision fixes.

    Attributes:
        work: what to run.
        parameters: defaults, overridden by a schedule's and then by a run's own.
        parameter_schema: JSON schema (draft 2020-12) of the parameters; None: any object.
        tags: labels of the deployment and its runs.
        require: tags that the agent must have.
        pool: where it runs; None: by tags.
        queue: the pool's work queue; None: its ``default``.
        priority: of its runs within the queue, higher first.
        schedules: when runs are made.
        retries: the retry policy.
        on_lost: what happens after ``give_up_after`` of silence of the agent.
        description: free text.
    """

    work: Work
    parameters: dict[str, Json] = {}
    parameter_schema: dict[str, Json] | None = None
    tags: list[Tag] = Field(default=[], max_length=50)
    require: list[Tag] = Field(default=[], max_length=50)
    pool: Name | None = None
    queue: Name | None = None
    priority: int = Field(default=0, ge=-1000, le=1000)
    schedules: list[Schedule] = Field(default=[], max_length=1000)
    retries: RetryPolicy = RetryPolicy()
    on_lost: OnLost = "crash"
    description: str = Field(default="", max_length=10_000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [schedule.name for schedule in self.schedules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two schedules of one deployment are named {', '.join(twice)}")
        if self.queue is not None and self.pool is None:
            raise ValueError("a queue needs a pool: name the pool whose queue it is")
        self.tags = list(dict.fromkeys(self.tags))
        self.require = list(dict.fromkeys(self.require))
        return self


class ScheduleView(Contract):
    """A schedule as the server keeps it.

    Attributes:
        next_at: the next slot; None when paused or exhausted.
    """

    name: str
    when: Annotated[CronSchedule | IntervalSchedule, Field(discriminator="kind")]
    parameters: dict[str, Json] = {}
    paused: bool = False
    next_at: Instant | None = None


class Deployment(Contract):
    """A deployment with its current revision."""

    name: str
    revision: int
    paused: bool = False
    created_at: Instant
    updated_at: Instant
    spec: DeploymentSpec
    schedules: list[ScheduleView] = []


class Revision(Contract):
    """One immutable revision of a deployment."""

    deployment: str
    number: int
    created_at: Instant
    spec: DeploymentSpec


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


class DeploymentPatch(Contract):
    """Changes that are not a new revision."""

    paused: bool | None = None
