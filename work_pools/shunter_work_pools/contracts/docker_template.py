"""The template of a docker pool: the variables that make the container of a run.

A deployment may override single variables (``DeploymentSpec.variables``); each replaces the pool's whole value.
What is missing here is missing on purpose: :data:`RESERVED` says why.
"""

from __future__ import annotations

import posixpath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from shunter_work_pools.contracts.deployments import EnvName
from shunter_work_pools.contracts.sizes import LOOKS, parsed

#: Prefix of the labels and variables that are Shunter's.
LABELS, VARIABLES = "shunter.", "SHUNTER_"
#: Where the files of a run are in its container: parameters, result, and the runner of Python entrypoints.
RUN_FOLDER = "/shunter"

#: Variables that people look for, and why there are none.
RESERVED = {
    "auto_remove": "the container is how a restarted agent finds the run's end: it is removed once that was told",
    "remove": "the container is how a restarted agent finds the run's end: it is removed once that was told",
    "restart": "a container that is started again would run the same attempt twice; use the deployment's retries",
    "restart_policy": "a container that is started again would run the same attempt twice; use the deployment's retries",
    "name": "the container is found again by its name, which is made of run and attempt",
    "log_driver": "output is read back from the driver `local`, without doubles or holes; log_size bounds it",
    "log_config": "output is read back from the driver `local`, without doubles or holes; log_size bounds it",
    "tty": "a terminal mixes stdout with stderr and changes line ends",
    "privileged": "it gives a run all rights on the machine; cap_add and devices give it what it needs",
    "command": "it is the deployment's; command_prefix goes before it",
    "detach": "every run is watched by its agent",
}


def _size(value: int | str) -> int | str:
    if isinstance(value, str) and not parsed(value):
        raise ValueError(f"{value!r} is not a size. {LOOKS}")
    return value


Size = Annotated[
    Annotated[int, Field(gt=0, le=2**50)] | Annotated[str, StringConstraints(max_length=40)],
    AfterValidator(_size),
]
Word = Annotated[str, StringConstraints(pattern=r"^[^\s\x00]+$", max_length=1000)]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=100_000)]
Absolute = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4096)]
Capability = Annotated[str, StringConstraints(pattern=r"^(CAP_)?[A-Z_]+$", max_length=64)]
Variable = Annotated[EnvName, StringConstraints(max_length=1000)]
Device = Annotated[
    str, StringConstraints(pattern=r"^/[^:\x00]+(:/[^:\x00]+)?(:[rwm]{1,3})?$", max_length=4096)
]


def hides_files(target: str) -> bool:
    """Whether something that is mounted at an absolute path hides the files of the run, or everything."""
    path = posixpath.normpath(f"/{target.lstrip('/')}")
    return path == "/" or f"{path}/".startswith(f"{RUN_FOLDER}/")


def bytes_of(value: int | str) -> int:
    """Bytes of a size that was validated."""
    return value if isinstance(value, int) else int(parsed(value) or 0)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Mount(_Part):
    """Something of the engine's machine, or memory, at a path in the container."""

    type: Literal["bind", "volume", "tmpfs"] = "volume"
    """bind: a folder or file of the engine's machine; volume: one of the engine's, by name; tmpfs: memory."""
    source: Annotated[Text, StringConstraints(min_length=1, max_length=4096)] | None = None
    """Path on the engine's machine (bind) or name (volume; without one it is removed with the container)."""
    target: Absolute
    """Where it is in the container."""
    read_only: bool = False
    """The run cannot write to it."""
    size: Size | None = None
    """Of a tmpfs."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.type == "bind" and not (self.source or "").startswith("/"):
            raise ValueError("a bind mount needs a source that is an absolute path on the engine's machine")
        if self.type == "volume" and "/" in (self.source or ""):
            raise ValueError("a volume's source is its name; for a path give type bind")
        if self.type == "tmpfs" and self.source is not None:
            raise ValueError("a tmpfs has no source")
        if self.type != "tmpfs" and self.size is not None:
            raise ValueError("only a tmpfs has a size")
        if hides_files(self.target):
            raise ValueError(f"target cannot be / or below {RUN_FOLDER}, where the files of the run are")
        return self


class DockerTemplate(_Part):
    """The variables of docker pools."""

    image: Word
    """The image, as in localhost/python:3.11 or registry/name@sha256:..."""
    pull_policy: Literal["always", "if_not_present", "never"] = "if_not_present"
    """When it is fetched. Credentials are those of the agent's own Docker configuration (DOCKER_CONFIG)."""
    platform: Word | None = None
    """Of the image, as in linux/arm64; by default the engine's own."""
    command_prefix: list[Text] = Field(default=[], max_length=100)
    """Goes before each command, as in ["nice", "-n", "10"]."""
    image_entrypoint: bool = False
    """The image's ENTRYPOINT is kept, and the command is its arguments; by default the command replaces it."""
    python: Word = "python3"
    """Interpreter of Python entrypoints in the image."""
    env: dict[Variable, Text] = {}
    """Variables; the deployment's own go over them."""
    workdir: Absolute | None = None
    """Where commands start and Python entrypoints are found; by default the image's WORKDIR."""
    user: Word | None = None
    """USER or UID[:GID]; by default the image's USER."""
    mounts: list[Mount] = Field(default=[], max_length=100)
    """Folders, volumes and memory."""
    networks: list[Word] = Field(default=[], max_length=20)
    """Names of networks; none, host; by default the engine's bridge."""
    dns: list[Word] = Field(default=[], max_length=20)
    """Addresses of name servers."""
    extra_hosts: dict[Word, Word] = {}
    """Further names, with their addresses (or host-gateway)."""
    cpu: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Cores it may use, as in 1.5."""
    memory: Size | None = None
    """Memory, swap included; a deployment's memory_limit goes over it."""
    pids: Annotated[int, Field(gt=0)] | None = None
    """Processes and threads it may have."""
    shm_size: Size | None = None
    """Of /dev/shm; by default 64MiB."""
    devices: list[Device] = Field(default=[], max_length=100)
    """Devices of the engine's machine: /dev/x, /dev/x:/dev/y or /dev/x:/dev/y:rw."""
    gpus: Annotated[int, Field(ge=1, le=1024)] | Literal["all"] | None = None
    """GPUs for each run, any of them. With `need gpu=N` of a deployment its agent chooses which."""
    cap_drop: list[Capability] = Field(default=[], max_length=100)
    """Capabilities it does not get, or ALL."""
    cap_add: list[Capability] = Field(default=[], max_length=100)
    """Capabilities it gets beyond the engine's own."""
    read_only: bool = False
    """Only mounts can be written to, and the folder of the run's result."""
    init: bool = True
    """A small init is process 1: signals reach the command, and the dead are buried."""
    labels: dict[Word, Text] = {}
    """Labels of the container; those that begin with shunter. are Shunter's."""
    log_size: Size = "1GiB"
    """Output that the engine keeps of one run. What an agent that is away longer misses is marked in the log."""

    @model_validator(mode="after")
    def _ours(self) -> Self:
        for name in self.labels:
            if name.startswith(LABELS):
                raise ValueError(f"labels.{name}: labels that begin with {LABELS} find the run again")
        for name in self.env:
            if name.startswith(VARIABLES):
                raise ValueError(f"env.{name}: variables that begin with {VARIABLES} are set by the agent")
        targets = [mount.target.rstrip("/") for mount in self.mounts]
        twice = next((one for one in targets if targets.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"mounts: two have the target {twice}")
        return self
