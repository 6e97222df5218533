"""What may stand in a deployment file. The JSON schema for editors is made of these models.

Each value is read strictly: a number is not taken for a text, nor a text for a number, unless a variable
made that text. What a field means is in :mod:`shunter_work_pools.contracts.deployments`; here are the short
forms that people write.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from shunter_cli import causes, durations, limit_words, sizes
from shunter_cli.deployment_files.places import Written
from shunter_cli.deployment_files.wording import words
from shunter_cli.deployment_files.yaml_tree import scalar
from shunter_work_pools.contracts.base import Json, Name, Tag
from shunter_work_pools.contracts.capacity import MOST_NAMES
from shunter_work_pools.contracts.code_sources import ArchiveSource, Environment, GitSource
from shunter_work_pools.contracts.deployments import (
    RETRIED_CAUSES,
    UNCOUNTED_CAUSES,
    CatchUp,
    EnvName,
    OnLost,
    UserName,
)
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.limits import PLACES, Strategy
from shunter_work_pools.contracts.secrets import EnvValue, FromAgent, FromSecret
from shunter_work_pools.contracts.states import Cause

#: Deployments that one file may have, schedules that one deployment may have.
DEPLOYMENTS_LIMIT, SCHEDULES_LIMIT = 1000, 1000
_LONGEST = 10 * 365 * 86_400
_DURATION = r"^((\d+(\.\d+)?|\.\d+)(ms|d|h|m|s))+$|^(\d+(\.\d+)?|\.\d+)$"


def wrong(detail: str, remedy: str = "") -> PydanticCustomError:
    """A complaint with its remedy, for the validators of this module."""
    return PydanticCustomError("said", "{detail}", {"detail": detail, "remedy": remedy})


def _number(value: Any) -> Any:
    """A number or switch for a text that a variable made."""
    if isinstance(value, Written):
        try:
            return scalar(str(value))
        except ValueError:
            return value
    return value


def _seconds(least: float, *, zero: bool) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise wrong("must be a duration", "Write it like 5m, 1h30m or a number of seconds.")
        try:
            found = durations.seconds(value, "", zero=zero) if isinstance(value, str) else _plain(value, zero)
        except InvalidInput as exc:
            raise wrong(exc.detail.strip(), exc.remedy) from exc
        if found < least:
            raise wrong(f"{value!r} is shorter than one second", "Use 1s or more.")
        return found

    return read


def _plain(value: float, zero: bool) -> float:
    """A number of seconds, within the bounds that durations in text have."""
    if value < 0 or value > _LONGEST:
        durations.seconds(f"{value:.0f}s", "", zero=zero)  # says which of the two
    if value == 0 and not zero:
        raise wrong("0 is zero: it must be longer", "Write it like 5m, 1h30m or a number of seconds.")
    return float(value)


def _in_schema(**bound: float) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "number", **bound}, {"type": "string", "pattern": _DURATION}]})


def _words(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError as exc:
        detail = f"cannot be split as a shell would: {str(exc).lower()}"
        raise wrong(detail, "Mend its quotes, or write it as a list.") from exc


def _retries(value: Any) -> Any:
    value = _number(value)
    return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _memory(value: Any) -> int:
    value = _number(value)
    try:
        if isinstance(value, str):
            return sizes.memory(value, "")
        if isinstance(value, int) and not isinstance(value, bool):
            return sizes.limit(value, str(value), "")
    except InvalidInput as exc:
        raise wrong(exc.detail, exc.remedy) from exc
    raise wrong("must be a size", "Write it like 512MiB, 1.5GiB or a number of bytes.")


def _need(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise wrong("must be a mapping", "Write it like {gpu: 1, cpu: 0.5, memory: 8GiB}.")
    try:
        return limit_words.amounts([f"{name}={_amount(one)}" for name, one in value.items()], "")
    except InvalidInput as exc:
        raise wrong(exc.detail.strip(), exc.remedy) from exc


def _amount(value: Any) -> str:
    """As one would type it; not the ``.0`` that TOML and YAML allow of a whole number."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _causes(value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise wrong("must be a list of causes", "Write it like [oom, timeout].")
    try:
        return causes.retried(value, "")
    except InvalidInput as exc:
        raise wrong(exc.detail.strip(), exc.remedy) from exc


def _uncounted(value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise wrong("must be a list of causes", "Write it like [preempted, evicted].")
    try:
        return causes.uncounted(value, "")
    except InvalidInput as exc:
        raise wrong(exc.detail.strip(), exc.remedy) from exc


def _moment(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.strip())
        except ValueError:
            pass
    raise wrong(
        f"{value!r} is not a time" if isinstance(value, str) else "must be a time",
        "Write it like 2027-03-28T06:00:00+02:00, or 2027-03-28 06:00 for the schedule's zone.",
    )


_LIKE_A_SIZE = {
    "anyOf": [
        {"type": "integer", "minimum": sizes.LEAST, "maximum": sizes.MOST},
        {"type": "string", "examples": ["512MiB", "1.5GiB"]},
    ]
}
Span = Annotated[float, BeforeValidator(_seconds(0, zero=True)), _in_schema(minimum=0)]
PositiveSpan = Annotated[float, BeforeValidator(_seconds(0, zero=False)), _in_schema(exclusiveMinimum=0)]
Interval = Annotated[float, BeforeValidator(_seconds(1, zero=False)), _in_schema(minimum=1)]
_LIKE_A_TIME = {"type": "string", "examples": ["2027-03-28", "2027-03-28T06:00:00+02:00"]}
Memory = Annotated[int, BeforeValidator(_memory), WithJsonSchema(_LIKE_A_SIZE)]
_LIKE_A_NEED = {
    "type": "object",
    "maxProperties": MOST_NAMES,
    "propertyNames": {"pattern": r"^[a-z][a-z0-9_.-]{0,62}$"},
    "additionalProperties": {
        "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "examples": ["8GiB"]}]
    },
}
Need = Annotated[dict[str, float], BeforeValidator(_need), WithJsonSchema(_LIKE_A_NEED)]
Places = Annotated[int, Field(ge=0, le=PLACES), BeforeValidator(_number)]
Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema(_LIKE_A_TIME)]
Switch = Annotated[bool, BeforeValidator(_number)]
Text = Annotated[str, StringConstraints(min_length=1)]
Amount = Annotated[int, Field(ge=0, le=100_000_000), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=0, le=1000), BeforeValidator(_number)]
Backoff = Annotated[float, Field(ge=1, le=100), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
Causes = Annotated[
    list[Cause],
    BeforeValidator(_causes),
    WithJsonSchema({"type": "array", "items": {"type": "string", "enum": sorted(RETRIED_CAUSES)}}),
]
Uncounted = Annotated[
    list[Cause],
    BeforeValidator(_uncounted),
    WithJsonSchema({"type": "array", "items": {"type": "string", "enum": sorted(UNCOUNTED_CAUSES)}}),
]
Factor = Annotated[float, Field(gt=1, le=100), BeforeValidator(_number)]
Slots = Annotated[int, Field(ge=1, le=10_000), BeforeValidator(_number)]
Priority = Annotated[int, Field(ge=-1000, le=1000), BeforeValidator(_number)]
_EITHER = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
    ]
}
Command = Annotated[
    Annotated[list[str], Field(min_length=1)], BeforeValidator(_words), WithJsonSchema(_EITHER)
]


def _env_value(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) != 1 or not value.keys() <= {"secret", "agent_secret"}:
            raise wrong("must be a text or name a secret", "Write it like {secret: warehouse}.")
        (kind,) = value
        return _named(kind, value[kind])
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return str(value)


def _named(kind: str, name: Any) -> EnvValue:
    try:
        name = _NAME.validate_python(name)
    except ValidationError as exc:
        raise wrong(f"names no {kind}: {name!r}", "Letters, digits and any of . _ - make a name.") from exc
    return FromSecret(secret=str(name)) if kind == "secret" else FromAgent(agent_secret=str(name))


_NAME: TypeAdapter[str] = TypeAdapter(Name)
_LIKE_A_VARIABLE = {
    "anyOf": [
        {"type": "string"},
        *(
            {
                "type": "object",
                "properties": {kind: _NAME.json_schema()},
                "required": [kind],
                "additionalProperties": False,
            }
            for kind in ("secret", "agent_secret")
        ),
    ]
}
EnvEntry = Annotated[EnvValue, PlainValidator(_env_value), WithJsonSchema(_LIKE_A_VARIABLE)]


class Part(BaseModel):
    """Base: strict, and nothing that is not known."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class ScheduleEntry(Part):
    """When runs are made: exactly one of cron, interval and rrule."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [one]} for one in ("cron", "interval", "rrule")]}
    )

    name: Name = "default"
    """Its name; needed where a deployment has several."""
    cron: Annotated[str, StringConstraints(max_length=1000)] | None = None
    """Five fields (minute, hour, day of month, month, day of week), six with seconds first, or @daily."""
    interval: Interval | None = None
    """Physical time between two slots, at least one second: 90, 5m, 1h30m."""
    rrule: Annotated[str, StringConstraints(min_length=1, max_length=10_000)] | None = None
    """Recurrence rule of RFC 5545: FREQ=..., or lines DTSTART, RRULE, RDATE, EXDATE."""
    timezone: str = "UTC"
    """IANA zone whose local time is meant, such as Europe/Berlin."""
    day: Literal["or", "and"] | None = None
    """With cron: whether day of month and day of week must match either (or, the default) or both (and)."""
    anchor: Moment | None = None
    """With interval: a moment that is a slot; default: the first deploy."""
    parameters: dict[str, Json] = {}
    """Over the deployment's parameters."""
    jitter: Span = 0.0
    """Runs start within this time after their slot."""
    start: Moment | None = None
    """No slots before. Without an offset it is local time of the zone."""
    end: Moment | None = None
    """No slots after. Without an offset it is local time of the zone."""
    paused: Switch = False
    """Makes no slots."""
    catch_up: CatchUp = "all"
    """What becomes of slots that were missed: all are made up for, the latest one, or none."""
    catch_up_age: PositiveSpan = 86_400.0
    """Slots older than this are not made up for."""
    catch_up_slots: Slots = 100
    """Of slots missed at once, so many of the newest are made up for."""


class MoreMemoryEntry(Part):
    """How much more memory a run gets after it ran out of it."""

    factor: Factor
    """So many times what the attempt had that ended."""
    up_to: Memory
    """Not more than this: 8GiB, or a number of bytes."""


_MORE_MEMORY_SCHEMA = {"anyOf": [MoreMemoryEntry.model_json_schema(), {"type": "null"}]}


class RetriesEntry(Part):
    """How an attempt that did not complete is tried again."""

    count: Count = 0
    """Further attempts after the first."""
    delay: Span = 0.0
    """Time between the first two attempts."""
    backoff: Backoff = 1.0
    """Each further delay is so many times the one before."""
    max_delay: Span = 3600.0
    """A delay that grows does so up to this."""
    jitter: Share = 0.0
    """Up to this share of a delay is added to it."""
    on: Causes = []
    """Only after these causes; by default after any."""
    uncounted: Uncounted = []
    """After these (preempted, evicted, node_lost) always, whatever count says, and without counting."""
    more_memory: Annotated[MoreMemoryEntry | None, WithJsonSchema(_MORE_MEMORY_SCHEMA)] = None
    """After oom the next attempt gets more memory, if it has a limit: {factor: 2, up_to: 8GiB}."""


class KeepEntry(Part):
    """What is kept of ended runs; what is not given here is by the server's settings."""

    runs: Amount | None = None
    """Of so many of the newest runs."""
    runs_for: PositiveSpan | None = None
    """So long after the run's end."""
    logs: Amount | None = None
    """Logs of so many of the newest runs."""
    logs_for: PositiveSpan | None = None
    """Logs so long after the run's end."""
    events: Amount | None = None
    """Events of so many of the newest runs."""
    events_for: PositiveSpan | None = None
    """Events so long after the run's end."""


class GitEntry(Part):
    """Code of a git repository, fetched by the agent."""

    git: Text
    """URL of the repository: https, ssh, or user@host:path."""
    branch: Text | None = None
    """Branch; by default the repository's own."""
    tag: Text | None = None
    """Tag, instead of a branch."""
    commit: Text | None = None
    """Commit, instead of a branch."""
    folder: str = ""
    """Folder of the repository that paths are meant from."""
    secret: Name | None = None
    """Secret that opens it: a token for https, a private key for ssh."""
    user: Text | None = None
    """Of https, beside the secret."""


class ArchiveEntry(Part):
    """Code in a zip, tar or whl file, fetched by the agent."""

    archive: Text
    """URL of the archive: https://, s3:// and others."""
    sha256: Text | None = None
    """Of the archive, in hex; what differs is not run."""
    folder: str = ""
    """Folder of the archive that paths are meant from."""
    secret: Name | None = None
    """Secret with options of the file system, a JSON object."""


class EnvironmentEntry(Part):
    """A Python environment that the agent builds once."""

    python: Text | None = None
    """Version, 3.12, or path of its interpreter; by default the agent's."""
    requirements: Annotated[list[Text], Field(max_length=1000)] = []
    """Packages, as one writes them for pip."""
    requirements_file: Text | None = None
    """File of the source that lists packages."""
    lock: Text | None = None
    """File of the source: uv.lock, pylock.toml, or requirements with hashes."""


def _source(value: Any) -> Any:
    if isinstance(value, str | GitEntry | ArchiveEntry):
        return value
    if not isinstance(value, dict) or ("git" in value) == ("archive" in value):
        raise wrong(
            "must be a folder, or a mapping with git or archive",
            "Write it like {git: https://host/code.git}.",
        )
    return _read(value, GitEntry, GitSource) if "git" in value else _read(value, ArchiveEntry, ArchiveSource)


def _environment(value: Any) -> Any:
    return _read(value, EnvironmentEntry, Environment) if isinstance(value, dict) else value


def _read(value: Any, entry: type[BaseModel], contract: type[BaseModel]) -> BaseModel:
    """An entry that is one, and that the contract takes: what is wrong with it is said in its own words."""
    try:
        found = entry.model_validate(value)
        contract.model_validate(found.model_dump())
    except ValidationError as exc:
        first: dict[str, Any] = dict(exc.errors(include_url=False)[0])
        detail, remedy = words(first, entry.model_fields)
        where = ".".join(str(step) for step in first["loc"])
        raise wrong(f"{where}: {detail}" if where else detail, remedy) from exc
    return found


_SOURCE_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        GitEntry.model_json_schema(),
        ArchiveEntry.model_json_schema(),
    ]
}

_RETRIES_SCHEMA = {
    "anyOf": [{"type": "integer", "minimum": 0, "maximum": 1000}, RetriesEntry.model_json_schema()]
}


class Defaults(Part):
    """What the deployments of a file share; each may say otherwise. env, need, parameters, variables and keep are merged."""

    parameters: dict[str, Json] = {}
    """Parameters of its runs; a schedule's and a run's own go over them."""
    tags: Annotated[list[Tag], Field(max_length=50)] = []
    """Labels of the deployment and its runs; without a pool they choose one."""
    require: Annotated[list[Tag], Field(max_length=50)] = []
    """Tags that the agent must have."""
    need: Need = {}
    """What a run takes of its agent while it is active: gpu: 1, cpu: 0.5, memory: 8GiB."""
    limits: Annotated[list[Name], Field(max_length=20)] = []
    """Limits that its runs share with those of other deployments."""
    max_active: Places | None = None
    """Of its runs, so many at once."""
    when_full: Strategy = "enqueue"
    """What becomes of a run that is due while max_active is reached."""
    pool: Name | None = None
    """Work pool where it runs; by its tags if none is named."""
    queue: Name | None = None
    """The pool's work queue; by default the one named default."""
    priority: Priority = 0
    """Within the queue, higher first."""
    retries: Annotated[RetriesEntry, BeforeValidator(_retries), WithJsonSchema(_RETRIES_SCHEMA)] = (
        RetriesEntry()
    )
    """Further attempts if one does not complete: a number, or count, delay and the like."""
    timeout: PositiveSpan | None = None
    """Longest time of an attempt."""
    start_timeout: PositiveSpan = 300.0
    """Longest time until an attempt has started."""
    grace: Span = 10.0
    """Time between SIGTERM and SIGKILL."""
    memory_limit: Memory | None = None
    """Memory that all processes of an attempt may use together: 512MiB, 1.5GiB or a number of bytes."""
    env: dict[EnvName, EnvEntry] = {}
    """Variables of the run: texts, or {secret: NAME} for a secret of the server, {agent_secret: NAME} for an agent's."""
    pass_env: list[EnvName] = []
    """Names of variables that are taken over from the agent."""
    working_dir: Text | None = None
    """Where it starts, from this file's folder; by default a folder of its own."""
    run_as: UserName | None = None
    """The user of the agent's machine as whom it runs, by name or number; by default the agent's own."""
    token: Switch = False
    """Its runs are given a token, by which they speak to the server of themselves; flows in containers and pods need it."""
    python: Text | None = None
    """Interpreter of an entrypoint; by default the agent's."""
    source: Annotated[
        Text | GitEntry | ArchiveEntry, BeforeValidator(_source), WithJsonSchema(_SOURCE_SCHEMA)
    ] = "."
    """Where entrypoint and command are found: a folder, by default this file's, or what the agent fetches."""
    no_source: Switch = False
    """Nothing of a folder is needed: the code is installed."""
    environment: Annotated[
        EnvironmentEntry | None,
        BeforeValidator(_environment),
        WithJsonSchema(EnvironmentEntry.model_json_schema()),
    ] = None
    """Python environment that the agent builds for it and what wants the same."""
    on_lost: OnLost = "crash"
    """What to do with a run whose agent stays silent."""
    exclusive: Switch = False
    """Two attempts of a run never work at once: an agent that is cut off ends the work itself."""
    keep: KeepEntry = KeepEntry()
    """How long its ended runs, their logs and events are kept."""
    variables: dict[str, Json] = {}
    """Over those of the pool's template, each as a whole: image, memory, mounts and others."""


class DeploymentEntry(Defaults):
    """A named, runnable thing: exactly one of entrypoint and command."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["entrypoint"]}, {"required": ["command"]}]}
    )

    name: Name
    """Its name, unique on the server."""
    description: Annotated[str, StringConstraints(max_length=10_000)] = ""
    """For people; by default an entrypoint's docstring."""
    entrypoint: Text | None = None
    """path.py:function, module:function or path.py, found from source."""
    command: Command | None = None
    """Program and arguments: a list, or a text that is split as a shell would."""
    schedules: Annotated[list[ScheduleEntry], Field(max_length=SCHEDULES_LIMIT)] = []
    """When runs are made."""


class File(Part):
    """Deployments of Shunter."""

    model_config = ConfigDict(title="Shunter deployment file")

    defaults: Defaults = Defaults()
    """What the deployments of this file share."""
    deployments: Annotated[list[DeploymentEntry], Field(min_length=1, max_length=DEPLOYMENTS_LIMIT)]
    """The deployments, each with a name of its own."""
