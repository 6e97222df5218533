"""The template of a kubernetes pool: the variables that make the Job of a run.

A deployment may override single variables (``DeploymentSpec.variables``); each replaces the pool's whole value.
What has no variable is said by ``patch``, a strategic merge patch over the whole Job. What is missing here is missing on purpose: :data:`RESERVED` says why.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from shunter_work_pools.contracts.docker_template import (
    Absolute,
    Capability,
    Text,
    Variable,
    Word,
    hides_files,
)
from shunter_work_pools.contracts.kubernetes_check import FaultyManifest, check
from shunter_work_pools.contracts.kubernetes_reserved import (
    FOUND,
    LABELS,
    ONCE,
    RULES,
    RUN_CONTAINER,
    RUN_FOLDER,
    TIMEOUTS,
    VARIABLES,
    faults,
)
from shunter_work_pools.contracts.sizes import parsed

#: Whom a run is, unless the template says otherwise: no user of any machine, and not root.
USER = 65532

#: Variables that people look for, and why there are none.
RESERVED = {
    "name": FOUND,
    "generate_name": FOUND,
    "restart_policy": ONCE,
    "backoff_limit": ONCE,
    "pod_failure_policy": ONCE,
    "completions": "a run is one pod",
    "parallelism": "a run is one pod; make several runs",
    "active_deadline_seconds": TIMEOUTS,
    "timeout": TIMEOUTS,
    "termination_grace_period_seconds": "it is the deployment's grace",
    "ttl_seconds_after_finished": "the agent removes the Job once its end was told; the Job keeps for 7 days if none does",
    "command": "it is the deployment's; command_prefix goes before it",
    "args": "it is the deployment's; command_prefix goes before it",
    "privileged": "it gives a run all rights on the node; cap_add gives it what it needs",
    "tty": "a terminal mixes stdout with stderr and changes line ends",
}

_SIZE_LOOKS = "Write it like 512MiB, 512Mi, 1.5GiB or a plain number of bytes."


def bytes_of(value: int | str) -> int:
    """Bytes of a size, which may have a unit as Kubernetes writes it (``512Mi``); 0 if it is none."""
    if isinstance(value, int):
        return value
    return parsed(value) or parsed(f"{value}B") or 0


def _size(value: int | str) -> int | str:
    if not bytes_of(value):
        raise ValueError(f"{value!r} is not a size. {_SIZE_LOOKS}")
    return value


def _number(value: Any) -> Any:
    """Docker's users are text."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,10}", value, re.ASCII) else value


def _tolerations(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
    check(value, "[Toleration]")
    return value


def _containers(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
    check(value, "[Container]")
    names = [one.get("name") for one in value]
    for number, name in enumerate(names):
        if not name or name == RUN_CONTAINER or names.index(name) < number:
            told = "has no name" if not name else f"cannot be named {name}"
            remedy = f"Give each a name of its own; {RUN_CONTAINER} is the run."
            raise FaultyManifest([([number, "name"], told, remedy)])
        if value[number].get("restartPolicy", "Always") != "Always":
            raise FaultyManifest(
                [([number, "restartPolicy"], "can only be Always, or be left out", "Leave it out.")]
            )
        if "restartPolicyRules" in value[number]:
            raise FaultyManifest(
                [([number, "restartPolicyRules"], f"cannot be set: {RULES}", "Leave it out.")]
            )
    return value


def _patch(value: dict[str, Any]) -> dict[str, Any]:
    check(value, "Job", patch=True)
    found = list(faults(value))
    if found:
        raise FaultyManifest(found)
    return value


_LABEL = r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)"
_DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"

Size = Annotated[
    Annotated[int, Field(gt=0, le=2**50)] | Annotated[str, StringConstraints(max_length=40)],
    AfterValidator(_size),
]
#: Name of an object: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
ObjectName = Annotated[str, StringConstraints(pattern=rf"^{_DNS_NAME}$", max_length=253)]
Namespace = Annotated[str, StringConstraints(pattern=rf"^{_DNS_LABEL}$")]
#: A key and a value of a label: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/
Key = Annotated[str, StringConstraints(pattern=rf"^({_DNS_NAME}/)?{_LABEL}$", max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=rf"^{_LABEL}?$")]
Cores = Annotated[float, Field(gt=0, le=10_000)]
Containers = Annotated[list[dict[str, Any]], Field(max_length=20), AfterValidator(_containers)]
User = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_number)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Source(_Part):
    """A Secret or a ConfigMap of the namespace."""

    secret: ObjectName | None = None
    """Name of the Secret."""
    config_map: ObjectName | None = None
    """Name of the ConfigMap."""
    optional: bool = False
    """The run starts without it, too."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.secret is None) == (self.config_map is None):
            raise ValueError("exactly one of secret and config_map must be given")
        return self


class KeyOf(Source):
    """One value of a Secret or a ConfigMap that is there already."""

    key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", max_length=253)]
    """Which of its values."""


class AllOf(Source):
    """All values of a Secret or a ConfigMap that is there already."""

    prefix: Annotated[str, StringConstraints(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$", max_length=100)] = ""
    """Goes before each name."""


class Mount(_Part):
    """Something of the cluster, or memory, at a path in the container."""

    type: Literal["empty_dir", "pvc", "config_map", "secret", "host_path"] = "empty_dir"
    """empty_dir: a folder that ends with the run; pvc: a PersistentVolumeClaim; config_map, secret: its values as
    files; host_path: of the node, where the namespace admits it."""
    source: Annotated[Text, StringConstraints(min_length=1, max_length=4096)] | None = None
    """Name of the claim, ConfigMap or Secret; path on the node (host_path)."""
    target: Absolute
    """Where it is in the container."""
    read_only: bool = False
    """The run cannot write to it."""
    sub_path: Annotated[Text, StringConstraints(pattern=r"^[^/]", max_length=4096)] | None = None
    """Only this part of it."""
    memory: bool = False
    """Of an empty_dir: it is memory, and counts as the run's."""
    size: Size | None = None
    """Of an empty_dir: a run that writes more is evicted."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.type == "empty_dir":
            if self.source is not None:
                raise ValueError("an empty_dir has no source")
        elif self.source is None:
            raise ValueError(f"a mount of type {self.type} needs a source")
        elif self.type == "host_path" and not self.source.startswith("/"):
            raise ValueError("a host_path needs a source that is an absolute path on the node")
        if self.type != "empty_dir" and (self.size is not None or self.memory):
            raise ValueError("only an empty_dir has a size or is memory")
        if hides_files(self.target):
            raise ValueError(f"target cannot be / or below {RUN_FOLDER}, where the files of the run are")
        if ":" in self.target:
            raise ValueError("target cannot have a colon")
        return self


class KubernetesTemplate(_Part):
    """The variables of kubernetes pools."""

    namespace: Namespace = "default"
    """Where the Jobs are."""
    image: Word
    """The image, as in localhost/python:3.11 or registry/name@sha256:..."""
    pull_policy: Literal["always", "if_not_present", "never"] = "if_not_present"
    """When a node fetches it."""
    pull_secrets: list[ObjectName] = Field(default=[], max_length=20)
    """Secrets of the namespace with credentials of registries."""
    command_prefix: list[Text] = Field(default=[], max_length=100)
    """Goes before each command, as in ["nice", "-n", "10"]."""
    image_entrypoint: bool = False
    """The image's ENTRYPOINT is kept, and the command is its arguments; by default the command replaces it."""
    python: Word = "python3"
    """Interpreter of Python entrypoints in the image."""
    env: dict[Variable, Text] = {}
    """Variables; the deployment's own go over them."""
    secret_env: dict[Variable, Text | None] = {}
    """Variables whose values are secret: they go by a Secret that ends with the run, over env, and are never shown.
    null: the value that is there stays."""
    env_refs: dict[Variable, KeyOf] = {}
    """Variables whose values are in Secrets and ConfigMaps that are there already, as in
    {"PASSWORD": {"secret": "db", "key": "password"}}."""
    env_from: list[AllOf] = Field(default=[], max_length=50)
    """Secrets and ConfigMaps whose values are all variables, as in [{"secret": "db"}]; all others go over them."""
    workdir: Absolute | None = None
    """Where commands start and Python entrypoints are found; by default the image's WORKDIR."""
    user: User | Literal["image"] = USER
    """Number of the user; image: the one that the image names by number, which is not root."""
    group: User | None = None
    """Number of the group; by default that of the user."""
    fs_group: User | None = None
    """Group to which files of volumes are given."""
    read_only: bool = False
    """Only mounts can be written to, and the file of the run's result."""
    init: bool = True
    """The pod's own first process is process 1 of all its containers: signals reach a command that has no handler
    for them, and the dead are buried. Without it, the command is process 1 itself."""
    cap_add: list[Capability] = Field(default=[], max_length=100)
    """Capabilities; by default none. NET_BIND_SERVICE is all that a restricted namespace admits."""
    cpu: Cores | None = None
    """Cores it may use, as in 1.5."""
    cpu_request: Cores | None = None
    """Cores kept for it; by default all that it may use."""
    memory: Size | None = None
    """Memory; a deployment's memory_limit goes over it."""
    memory_request: Size | None = None
    """Memory kept for it; by default all that it may use."""
    ephemeral_storage: Size | None = None
    """What it may write to the node's disk, output included; a run that writes more is evicted."""
    ephemeral_storage_request: Size | None = None
    """Disk kept for it; by default all that it may use."""
    gpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    """GPUs for each run. `need gpu=N` of a deployment goes over it."""
    gpu_resource: Key = "nvidia.com/gpu"
    """What the cluster calls them."""
    mounts: list[Mount] = Field(default=[], max_length=100)
    """Volumes."""
    node_selector: dict[Key, LabelValue] = {}
    """Labels that the node must have, as in {"kubernetes.io/arch": "arm64"}."""
    tolerations: Annotated[list[dict[str, Any]], Field(max_length=50), AfterValidator(_tolerations)] = []
    """Taints that are borne, as a pod's manifest has them."""
    spot: Literal["allowed", "preferred", "required"] | None = None
    """Spot nodes of GKE, EKS, AKS and Karpenter: their taints are borne; they are preferred; no others are taken."""
    service_account: ObjectName | None = None
    """Whom the pod acts for; by default the namespace's default."""
    service_account_token: bool = False
    """Its token is put into the pod."""
    priority_class: ObjectName | None = None
    """Who is preempted for whom."""
    runtime_class: ObjectName | None = None
    """What runs the containers, as in gvisor."""
    init_containers: Containers = []
    """Containers that end before the run begins, in this order, as a pod's manifest has them."""
    sidecars: Containers = []
    """Containers that begin before the run, after the init_containers, and end after it; as a pod's manifest has
    them."""
    labels: dict[Key, LabelValue] = {}
    """Labels of Job and pod; those that begin with shunter.dev/ are Shunter's."""
    annotations: dict[Key, Text] = {}
    """Annotations of Job and pod; those that begin with shunter.dev/ are Shunter's."""
    patch: Annotated[dict[str, Any], AfterValidator(_patch)] = {}
    """A strategic merge patch over the whole Job, for all that has no variable, as in
    {"spec": {"template": {"spec": {"hostAliases": [{"ip": "10.0.0.9", "hostnames": ["db"]}]}}}}."""

    @model_validator(mode="after")
    def _ours(self) -> Self:
        for variable in ("labels", "annotations"):
            for name in getattr(self, variable):
                if name.startswith(LABELS):
                    raise ValueError(f"{variable}.{name}: those that begin with {LABELS} find the run again")
        for variable in ("env", "secret_env", "env_refs"):
            for name in getattr(self, variable):
                if name.startswith(VARIABLES):
                    raise ValueError(
                        f"{variable}.{name}: variables that begin with {VARIABLES} are set by the agent"
                    )
        return self

    @model_validator(mode="after")
    def _once(self) -> Self:
        targets = [mount.target.rstrip("/") for mount in self.mounts]
        twice = next((one for one in targets if targets.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"mounts: two have the target {twice}")
        names = [one["name"] for one in self.init_containers + self.sidecars]
        twice = next((one for one in names if names.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"sidecars: there is an init container named {twice} already")
        named = next((name for name in self.env_refs if name in self.secret_env or name in self.env), None)
        if named is not None:
            raise ValueError(f"env_refs.{named}: there is a value of this name already")
        return self
