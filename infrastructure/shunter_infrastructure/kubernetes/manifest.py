"""The Job of an attempt and what goes with it, as the API takes them. Pure: `pool template preview` prints the same.

A run is one Job of one pod, whose container ``run`` is the command. Its parameters and the runner of Python
entrypoints are files of one projected volume; its result is the container's termination message.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from shunter_infrastructure.kubernetes import spot
from shunter_infrastructure.kubernetes.source_files import SourceFile
from shunter_infrastructure.launcher import NO_DEVICES, NOTHING, LaunchFailed, Prepared
from shunter_infrastructure.run_environment import (
    GPU,
    RESERVED_PREFIX,
    RESULT_LIMIT,
    TLS_CA,
    command_from,
    described,
    folder_from,
    journal_brought_from,
    read_authorities,
    runner_path,
)
from shunter_infrastructure.task_files import FOLDER
from shunter_infrastructure.wrong_template import wrong_template
from shunter_work_pools.contracts import kubernetes_reserved as reserved
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.capacity import CPU, MEMORY
from shunter_work_pools.contracts.kubernetes_patch import merged
from shunter_work_pools.contracts.kubernetes_reserved import (
    FILES,
    KEPT_FOR,
    LABELS,
    MANAGED_BY,
    MANAGER,
    RESULT,
    RUN_CONTAINER,
    RUN_FOLDER,
    RUN_VOLUME,
)
from shunter_work_pools.contracts.kubernetes_template import KubernetesTemplate, Mount, Source, bytes_of
from shunter_work_pools.contracts.states import Cause

PARAMETERS = f"{FILES}/parameters.json"
RUNNER = f"{FILES}/runner.py"
AUTHORITIES = f"{FILES}/ca.pem"
#: Where a flow writes its journal: a volume of its own, as nothing else may be writable.
TASKS, _TASKS_VOLUME = f"{RUN_FOLDER}/{FOLDER}", "shunter-tasks"
#: By what a run speaks to the server.
_TOKEN = ("SHUNTER_RUN_TOKEN", "SHUNTER_API_URL")
#: Code that the agent has fetched.
SOURCE = f"{FILES}/source"

#: Labels of Jobs; pods have the first three. Values that a label refuses are made fit, the annotation is whole.
RUN, ATTEMPT, POOL = f"{LABELS}run", f"{LABELS}attempt", f"{LABELS}pool"
DEPLOYMENT, AGENT = f"{LABELS}deployment", f"{LABELS}agent"
#: Selects all Jobs and pods of runs.
SELECTOR = f"{MANAGED_BY}={MANAGER},{RUN}"
#: Annotations: the epoch of the lease by which the Job is held, and the identity of the agent that holds it, which no
#: other of its name has; the parameters, of the pod alone.
EPOCH, IDENTITY, GIVEN = f"{LABELS}epoch", f"{LABELS}identity", f"{LABELS}parameters"

#: Parameters of more bytes are in the run's Secret: an annotation is carried along by each event of its pod.
SMALL_PARAMETERS = 16 * 1024
#: Bytes of a container's termination message, and of those of a pod, which share them alike:
#: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
_MESSAGE, _MESSAGES = 4096, 12 * 1024

_POLICIES = {"always": "Always", "if_not_present": "IfNotPresent", "never": "Never"}
_LABEL_LIMIT = 63
_PARAMETERS_KEY, _RUNNER_KEY, _AUTHORITIES_KEY = "parameters.json", "runner.py", "ca.pem"

Document = dict[str, Any]
#: Seconds that a Job has beyond the time-outs that its agent keeps.
BACKSTOP = 3600


def name_of(run: UUID, attempt: int | str) -> str:
    """Of the Job, and of its Secret; see :func:`~shunter_infrastructure.launcher.number_of`."""
    return f"shunter-{run}-{attempt}"


def label(text: str) -> str:
    """A text as the value of a label: itself if it is one, else what is left of it and a hash of the whole."""
    if len(text) <= _LABEL_LIMIT and re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?", text):
        return text
    mark = hashlib.sha256(text.encode()).hexdigest()[:10]
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[: _LABEL_LIMIT - len(mark) - 1].strip("._-")
    return f"{kept}-{mark}" if kept else mark


def read_template(assignment: Assignment) -> KubernetesTemplate:
    """The template of an attempt, with its deployment's variables.

    Raises:
        LaunchFailed: it is none.
    """
    try:
        return _template_of(json.dumps(assignment.template))
    except ValidationError as exc:
        raise wrong_template(assignment, exc, "Job") from exc


@functools.lru_cache(maxsize=64)
def _template_of(text: str) -> KubernetesTemplate:
    """A template from its JSON: thousands of runs have the same, and share it."""
    return KubernetesTemplate.model_validate(json.loads(text))


def held_by(agent: str, epoch: int, identity: UUID | None = None) -> Document:
    """The part of a Job's metadata that says whose it is: also a merge patch that makes it another agent's."""
    annotations = {AGENT: agent, EPOCH: str(epoch)}
    if identity is not None:
        annotations[IDENTITY] = str(identity)
    return {"labels": {AGENT: label(agent)}, "annotations": annotations}


def result_limit(pod: Document) -> int:
    """Bytes that the result of a run may have, by the ``spec`` of its pod. A message of more is cut: it is none."""
    containers = sum(
        len(pod.get(kind) or []) for kind in ("containers", "initContainers", "ephemeralContainers")
    )
    return _limit_with(containers)


def result_limit_of(assignment: Assignment, template: KubernetesTemplate) -> int:
    """The same by what its pod is made of.

    Raises:
        LaunchFailed: the template's patch would break it.
    """
    if template.patch:  # it may add containers
        return result_limit(job(assignment, template, "", {})["spec"]["template"]["spec"])
    return _limit_with(1 + len(template.init_containers) + len(template.sidecars))


def _limit_with(containers: int) -> int:
    return min(_MESSAGE, _MESSAGES // max(1, containers)) - 1


def job(
    assignment: Assignment,
    template: KubernetesTemplate,
    agent: str,
    own: Mapping[str, str],
    source: Sequence[SourceFile] = (),
    *,
    number: str = "",
    told: Mapping[str, str] = NOTHING.told,
) -> Document:
    """The body of the request that creates the Job of an attempt.

    Args:
        agent: name of the agent.
        own: the agent's environment, for ``pass_env``; only names count here.
        source: the code that was fetched, if any was.
        number: the attempt's, as :func:`~shunter_infrastructure.launcher.number_of` gives it; default: its own.
        told: variables that say more of the run to itself.

    Raises:
        LaunchFailed: the template's patch would break it.
    """
    made = _unpatched(assignment, template, agent, own, source, number or str(assignment.attempt), told)
    if template.patch:
        made = _patched(made, template.patch, assignment.pool)
    pod = made["spec"]["template"]["spec"]
    limit = {"name": RESULT_LIMIT, "value": str(result_limit(pod))}
    next(one for one in pod["containers"] if one["name"] == RUN_CONTAINER)["env"].append(limit)
    return made


def _patched(made: Document, patch: Document, pool: str) -> Document:
    fault = next(reserved.faults(patch, made), None)
    if fault is not None:
        path, detail, _ = fault
        raise LaunchFailed(
            Cause.REJECTED,
            f"the patch in the template of pool {pool!r} makes no Job of a run: {'.'.join(map(str, path))} {detail}",
            "Correct it with `shunter pool template set`, or the deployment's variables.",
        )
    return merged(made, patch)


def _unpatched(
    assignment: Assignment,
    template: KubernetesTemplate,
    agent: str,
    own: Mapping[str, str],
    source: Sequence[SourceFile],
    number: str,
    told: Mapping[str, str],
) -> Document:
    work = assignment.work
    name = name_of(assignment.run, number)
    holder = held_by(agent, assignment.epoch)
    found_by = {
        MANAGED_BY: MANAGER,
        RUN: str(assignment.run),
        ATTEMPT: number,
        POOL: label(assignment.pool),
    }
    names = {POOL: assignment.pool, DEPLOYMENT: assignment.deployment}
    given = _encoded_parameters(assignment)
    spec: Document = {
        "backoffLimit": 0,
        "completions": 1,
        "parallelism": 1,
        # A pod that is on its way out may still run: no other takes its place, and no other ever runs.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": RUN_CONTAINER, "operator": "NotIn", "values": [0]},
                },
            ]
        },
        "ttlSecondsAfterFinished": KEPT_FOR,
        "template": {
            "metadata": {
                "labels": template.labels | found_by,
                "annotations": template.annotations
                | ({} if len(given) > SMALL_PARAMETERS else {GIVEN: given.decode()}),
            },
            "spec": _pod(assignment, template, agent, own, source, name, told),
        },
    }
    if work.timeout is not None:
        # The agent's next life gives a launch that had not begun its whole time to start once more.
        spec["activeDeadlineSeconds"] = math.ceil(work.start_timeout + work.timeout + work.grace) + BACKSTOP
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": template.namespace,
            "labels": template.labels
            | found_by
            | {DEPLOYMENT: label(assignment.deployment)}
            | holder["labels"],
            "annotations": template.annotations | names | holder["annotations"],
        },
        "spec": spec,
    }


def _encoded_parameters(assignment: Assignment) -> bytes:
    return json.dumps(assignment.parameters, ensure_ascii=False).encode()


# -- the pod


def _pod(
    assignment: Assignment,
    template: KubernetesTemplate,
    agent: str,
    own: Mapping[str, str],
    source: Sequence[SourceFile],
    name: str,
    told: Mapping[str, str],
) -> Document:
    user = None if template.user == "image" else template.user
    sidecars = [{**one, "restartPolicy": "Always"} for one in template.sidecars]
    made: Document = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(assignment.work.grace),
        "serviceAccountName": template.service_account,
        "automountServiceAccountToken": template.service_account_token,
        "enableServiceLinks": False,
        "shareProcessNamespace": template.init or None,
        "imagePullSecrets": [{"name": name} for name in template.pull_secrets],
        "nodeSelector": template.node_selector,
        "affinity": spot.affinity(template.spot),
        "tolerations": template.tolerations + spot.tolerations(template.spot),
        "priorityClassName": template.priority_class,
        "runtimeClassName": template.runtime_class,
        "securityContext": _filled(
            {
                "runAsNonRoot": user != 0,
                "runAsUser": user,
                "runAsGroup": user if template.group is None else template.group,
                "fsGroup": template.fs_group,
                "fsGroupChangePolicy": None if template.fs_group is None else "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            }
        ),
        "initContainers": [_confined(one) for one in template.init_containers + sidecars],
        "containers": [
            _container(
                assignment,
                template,
                _env(assignment, template, agent, own, name, told),
                SOURCE if source else None,
            )
        ],
        "volumes": [_run_volume(assignment, source, name, TLS_CA in told)]
        + ([{"name": _TASKS_VOLUME, "emptyDir": {}}] if assignment.wants_token else [])
        + [_volume(number, mount) for number, mount in enumerate(template.mounts)],
    }
    return _filled(made)


def _filled(document: Document) -> Document:
    """Without what is not said."""
    return {key: value for key, value in document.items() if value not in (None, [], {})}


def _confined(container: Document) -> Document:
    """A container of the template's, with no more rights than the run's unless it says so. Its output goes with its
    pod: the end of it is kept if it fails."""
    rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    confined = {**rights, **(container.get("securityContext") or {})}
    return {
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **container,
        "securityContext": confined,
    }


def _container(
    assignment: Assignment, template: KubernetesTemplate, env: list[Document], source: str | None
) -> Document:
    work = assignment.work
    command = (
        command_from(work.command, source)
        if work.command is not None
        else [work.python or template.python, RUNNER]
    )
    command = [_literal(word) for word in template.command_prefix + command]
    capabilities: Document = {"drop": ["ALL"]}
    if template.cap_add:
        capabilities["add"] = [name.removeprefix("CAP_") for name in template.cap_add]
    made: Document = {
        "name": RUN_CONTAINER,
        "image": template.image,
        "imagePullPolicy": _POLICIES[template.pull_policy],
        "args" if template.image_entrypoint else "command": command,
        "workingDir": folder_from(work.working_dir, source, template.workdir),
        "envFrom": [_all_of(one, one.prefix) for one in template.env_from],
        "env": env + ([{"name": "SHUNTER_SOURCE", "value": source}] if source else []),
        "resources": _resources(assignment, template),
        "volumeMounts": [{"name": RUN_VOLUME, "mountPath": FILES, "readOnly": True}]
        + ([{"name": _TASKS_VOLUME, "mountPath": TASKS}] if assignment.wants_token else [])
        + [_mounted(number, mount) for number, mount in enumerate(template.mounts)],
        "securityContext": _filled(
            {
                "allowPrivilegeEscalation": False,
                "capabilities": capabilities,
                "readOnlyRootFilesystem": template.read_only or None,
            }
        ),
        "terminationMessagePath": RESULT,
        "terminationMessagePolicy": "File",
    }
    return _filled(made)


def _literal(text: str) -> str:
    """A text that the kubelet, which puts variables in place of ``$(NAME)``, leaves as it is.

    https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
    """
    return re.sub(r"\$(?=[$(])", "$$", text)


def _env(
    assignment: Assignment,
    template: KubernetesTemplate,
    agent: str,
    own: Mapping[str, str],
    secret: str,
    told: Mapping[str, str],
) -> list[Document]:
    work = assignment.work
    known = described(assignment, agent, NO_DEVICES, PARAMETERS, RESULT)
    known |= journal_brought_from(RUN_FOLDER, assignment)
    if work.entrypoint is not None:
        known |= {"SHUNTER_ENTRYPOINT": work.entrypoint, "SHUNTER_FAILURE": RESULT}
    known |= told
    env: dict[str, Document] = {}
    if work.entrypoint is not None:
        env["PYTHONUNBUFFERED"] = {"value": "1"}
    env |= {name: {"value": _literal(value)} for name, value in template.env.items()}
    env |= {name: {"valueFrom": _key_of(ref, ref.key)} for name, ref in template.env_refs.items()}
    env |= {
        name: {"valueFrom": {"secretKeyRef": {"name": secret, "key": name}}}
        for name in _secret_names(assignment, template, own)
    }
    env |= {name: {"value": _literal(value)} for name, value in (work.plain_env | known).items()}
    return [{"name": name, **value} for name, value in env.items()]


def _key_of(source: Source, key: str) -> Document:
    kind = "secretKeyRef" if source.secret else "configMapKeyRef"
    return {kind: _named(source) | {"key": key}}


def _all_of(source: Source, prefix: str) -> Document:
    made: Document = {"secretRef" if source.secret else "configMapRef": _named(source)}
    return made | ({"prefix": prefix} if prefix else {})


def _named(source: Source) -> Document:
    return {"name": source.secret or source.config_map} | ({"optional": True} if source.optional else {})


def _resources(assignment: Assignment, template: KubernetesTemplate) -> Document:
    memory = assignment.work.memory_limit or (bytes_of(template.memory) if template.memory else None)
    storage = bytes_of(template.ephemeral_storage) if template.ephemeral_storage else None
    need = assignment.need
    gpus = math.ceil(need.get(GPU, 0)) or template.gpus
    cpu, memory_request = template.cpu, need.get(MEMORY)
    if cpu is not None and cpu < need.get(CPU, 0):
        cpu = need[CPU]  # the template's bound is for those that do not say what they need
    if memory_request is None and template.memory_request:
        memory_request = bytes_of(template.memory_request)
    if memory is not None and memory < need.get(MEMORY, 0) and assignment.work.memory_limit is None:
        memory = int(need[MEMORY])
    bounds: dict[str, tuple[float | None, float | None]] = {
        "cpu": (need.get(CPU, template.cpu_request), cpu),
        "memory": (memory_request, memory),
        "ephemeral-storage": (
            bytes_of(template.ephemeral_storage_request) if template.ephemeral_storage_request else None,
            storage,
        ),
        template.gpu_resource: (None, gpus),
    }
    requests, limits = {}, {}
    for name, (request, most) in bounds.items():
        kept = most if request is None else min(request, most or request)
        if kept is not None:
            requests[name] = _quantity(kept)
        if most is not None:
            limits[name] = _quantity(most)
    return _filled({"requests": requests, "limits": limits})


def _quantity(amount: float) -> str:
    """https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/"""
    return str(int(amount)) if amount == int(amount) else f"{max(1, round(amount * 1000))}m"


def _run_volume(
    assignment: Assignment, source: Sequence[SourceFile], secret: str, authorities: bool
) -> Document:
    sources: list[Document] = []
    if len(_encoded_parameters(assignment)) > SMALL_PARAMETERS:
        items = [{"key": _PARAMETERS_KEY, "path": _PARAMETERS_KEY}]
        sources.append({"secret": {"name": secret, "items": items}})
    else:
        reference = {"fieldPath": f"metadata.annotations['{GIVEN}']"}
        sources.append({"downwardAPI": {"items": [{"path": _PARAMETERS_KEY, "fieldRef": reference}]}})
    if assignment.work.entrypoint is not None:
        items = [{"key": _RUNNER_KEY, "path": _RUNNER_KEY}]
        sources.append({"configMap": {"name": runner_name(), "items": items}})
    if authorities:
        items = [{"key": _AUTHORITIES_KEY, "path": _AUTHORITIES_KEY}]
        sources.append({"secret": {"name": secret, "items": items}})
    if source:
        items = [_laid_out(file) for file in source]
        sources.append({"secret": {"name": secret, "items": items}})
    return {"name": RUN_VOLUME, "projected": {"defaultMode": 0o444, "sources": sources}}


def _laid_out(file: SourceFile) -> Document:
    return {"key": file.key, "path": f"source/{file.path}"} | ({"mode": 0o555} if file.executable else {})


def _volume(number: int, mount: Mount) -> Document:
    if mount.type == "empty_dir":
        size = str(bytes_of(mount.size)) if mount.size else None
        kind = {"emptyDir": _filled({"medium": "Memory" if mount.memory else None, "sizeLimit": size})}
    elif mount.type == "pvc":
        kind = {
            "persistentVolumeClaim": _filled({"claimName": mount.source, "readOnly": mount.read_only or None})
        }
    elif mount.type == "config_map":
        kind = {"configMap": {"name": mount.source}}
    elif mount.type == "secret":
        kind = {"secret": {"secretName": mount.source}}
    else:
        kind = {"hostPath": {"path": mount.source}}
    return {"name": f"mount-{number}", **kind}


def _mounted(number: int, mount: Mount) -> Document:
    made = {"name": f"mount-{number}", "mountPath": mount.target, "subPath": mount.sub_path}
    return _filled(made | {"readOnly": mount.read_only or None})


# -- what goes with it


def _secret_names(assignment: Assignment, template: KubernetesTemplate, own: Mapping[str, str]) -> list[str]:
    """Variables that go by the run's Secret: what is in an agent's environment is a credential more often than not."""
    work = assignment.work
    below = [name for name in {**template.secret_env, **_passed(assignment, own)} if name not in work.env]
    own_token = _TOKEN if assignment.wants_token else ()
    return [*below, *(name for name in work.env if name not in work.plain_env), *own_token]


def _passed(assignment: Assignment, own: Mapping[str, str]) -> dict[str, str]:
    """Variables of the agent's environment."""
    wanted = assignment.work.pass_env
    return {name: own[name] for name in wanted if name in own and not name.startswith(RESERVED_PREFIX)}


def secret(
    assignment: Assignment,
    template: KubernetesTemplate,
    own: Mapping[str, str],
    uid: str,
    prepared: Prepared = NOTHING,
    source: Sequence[SourceFile] = (),
    *,
    number: str = "",
) -> Document | None:
    """The Secret of an attempt, which the cluster removes with its Job; None if it needs none.

    Args:
        uid: of the Job. It is there before: nothing would remove a Secret whose Job was never made.
        prepared: has the values of secrets.
        source: the code that was fetched, if any was.
        number: as of :func:`job`.

    Raises:
        LaunchFailed: a secret variable has no value.
    """
    known = {**prepared.template_secrets, **_passed(assignment, own), **prepared.secrets}
    values: dict[str, str] = {}
    for name in _secret_names(assignment, template, own):
        value = known.get(name)
        if value is None:
            raise LaunchFailed(
                Cause.REJECTED,
                f"variable secret_env.{name} of pool {assignment.pool!r} has no value",
                "Give it one: `shunter pool template set`, or `shunter deploy --var`.",
            )
        values[name] = value
    given = _encoded_parameters(assignment)
    if len(given) > SMALL_PARAMETERS:
        values[_PARAMETERS_KEY] = given.decode()
    authorities = read_authorities(prepared)
    if authorities is not None:
        values[_AUTHORITIES_KEY] = authorities.decode()
    if not values and not source:
        return None
    number = number or str(assignment.attempt)
    name = name_of(assignment.run, number)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "blockOwnerDeletion": False}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": template.namespace,
            "labels": {MANAGED_BY: MANAGER, RUN: str(assignment.run), ATTEMPT: number},
            "ownerReferences": [owner],
        },
        "immutable": True,
        "type": "Opaque",
        "stringData": values,
    } | ({"data": {file.key: base64.b64encode(file.data).decode() for file in source}} if source else {})


def runner_name() -> str:
    """Name of the ConfigMap with the runner: of its content, so that agents of two versions have one each."""
    return f"shunter-runner-{hashlib.sha256(_runner()).hexdigest()[:16]}"


def runner(namespace: str) -> Document:
    """The ConfigMap with the runner of Python entrypoints, for all runs of a namespace."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": runner_name(), "namespace": namespace, "labels": {MANAGED_BY: MANAGER}},
        "immutable": True,
        "data": {_RUNNER_KEY: _runner().decode()},
    }


@functools.cache
def _runner() -> bytes:
    return Path(runner_path()).read_bytes()
