"""What no patch may change of a run's Job: by it the run is found again, runs once, or tells its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from shunter_work_pools.contracts.kubernetes_check import Fault
from shunter_work_pools.contracts.kubernetes_patch import merged

#: Prefix of the labels and annotations, and of the variables, that are Shunter's.
LABELS, VARIABLES = "shunter.dev/", "SHUNTER_"
MANAGED_BY, MANAGER = "app.kubernetes.io/managed-by", "shunter"
#: Where the files of a run are in its container: parameters, result, and the runner of Python entrypoints.
RUN_FOLDER = "/shunter"
FILES, RESULT = f"{RUN_FOLDER}/run", f"{RUN_FOLDER}/result.json"
#: Name of the container whose end is the run's, and of the volume with its files.
RUN_CONTAINER, RUN_VOLUME = "run", "shunter"
#: Seconds that a Job which nobody removes stays after its end.
KEPT_FOR = 7 * 86_400

Document = dict[str, Any]
Path = tuple[str, ...]

ONCE = "a Job that tries again would run the same attempt twice; use the deployment's retries"
RULES = "a rule of it may restart all containers of the pod, the run's too: the same attempt would run twice"
TIMEOUTS = "time-outs are the agent's; use the deployment's timeout, start_timeout and grace"
FOUND = "the Job is found again by its name, which is made of run and attempt"
_MARKS = "by these the run is found again"
_ALONE = "a run is one container in one pod; for more, use the variables sidecars and init_containers"
_TOLD = "the run's result is the message that its container ends with"
_SPEC = {
    **dict.fromkeys(("backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes"), ONCE),
    **dict.fromkeys(("podFailurePolicy", "podReplacementPolicy", "successPolicy"), ONCE),
    **dict.fromkeys(("completions", "parallelism", "completionMode"), _ALONE),
    **dict.fromkeys(
        ("selector", "manualSelector"), "the cluster makes it, so that the Job has its own pod alone"
    ),
    "activeDeadlineSeconds": TIMEOUTS,
    "managedBy": "another controller would not make the pod, or not this way",
    "suspend": "nobody would resume it; pause the deployment, the queue or the pool",
}
_POD = {
    "restartPolicy": ONCE,
    "activeDeadlineSeconds": TIMEOUTS,
    "terminationGracePeriodSeconds": "it is the deployment's grace",
    "ephemeralContainers": "no pod begins with any",
}
_RUN = {
    **dict.fromkeys(
        ("command", "args"), "it is the deployment's; the variable command_prefix goes before it"
    ),
    **dict.fromkeys(("terminationMessagePath", "terminationMessagePolicy"), _TOLD),
    **dict.fromkeys(("restartPolicy", "restartPolicyRules"), ONCE),
    "image": "it is the variable image",
    "workingDir": "it is the variable workdir, and the deployment's working_dir",
    "tty": "a terminal mixes stdout with stderr and changes line ends",
}

_NAMED: Document = {
    "labels": {MANAGED_BY: MANAGER, **{f"{LABELS}{one}": "" for one in ("run", "attempt", "pool")}},
    "annotations": {f"{LABELS}parameters": ""},
}
#: What every run's Job has of that.
SKELETON: Document = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {
        "name": "",
        "namespace": "",
        "labels": _NAMED["labels"] | {f"{LABELS}{one}": "" for one in ("deployment", "agent")},
        "annotations": {f"{LABELS}{one}": "" for one in ("deployment", "agent", "pool", "epoch")},
    },
    "spec": {
        **dict.fromkeys(("backoffLimit", "completions", "parallelism"), 0),
        **dict.fromkeys(("podFailurePolicy", "podReplacementPolicy"), "as it is"),
        "ttlSecondsAfterFinished": KEPT_FOR,
        "template": {
            "metadata": _NAMED,
            "spec": {
                **dict.fromkeys(("restartPolicy", "terminationGracePeriodSeconds"), "as it is"),
                "containers": [
                    {
                        "name": RUN_CONTAINER,
                        **dict.fromkeys(("image", "command", "terminationMessagePolicy"), "as it is"),
                        "env": [{"name": f"{VARIABLES}RUN_ID", "value": ""}],
                        "volumeMounts": [{"name": RUN_VOLUME, "mountPath": FILES, "readOnly": True}],
                        "terminationMessagePath": RESULT,
                    }
                ],
                "volumes": [{"name": RUN_VOLUME}],
            },
        },
    },
}


def faults(patch: Document, job: Document = SKELETON) -> Iterator[Fault]:
    """All that a patch changes of a Job and may not; one for each reason.

    Raises:
        FaultyManifest: it is no patch.
    """
    before, after = _leaves(job), _leaves(merged(job, patch))
    told: set[str] = set()
    for path in sorted(path for path in {**before, **after} if before.get(path) != after.get(path)):
        why = _why(path, after.get(path))
        if why is not None and why not in told:
            told.add(why)
            yield list(path), f"cannot be changed: {why}", "Leave it out."


def _why(path: Path, value: str | None) -> str | None:
    """Why something may not be changed; None: it may."""
    match path:
        case ("metadata", *rest) | ("spec", "template", "metadata", *rest):
            return _why_named(rest)
        case ("spec", "ttlSecondsAfterFinished"):
            return (
                None
                if value is not None and int(value) >= KEPT_FOR
                else (
                    f"an agent that was away finds the run's end in the Job; it stays at least {KEPT_FOR} seconds"
                )
            )
        case ("spec", "template", "spec", "containers", name, *rest):
            return _why_container(rest) if name == RUN_CONTAINER else _ALONE
        case ("spec", "template", "spec", "containers"):
            return _ALONE
        case ("spec", "template", "spec", "initContainers", _, "restartPolicyRules", *_):
            return RULES
        case ("spec", "template", "spec", "volumes", name, *_):
            return f"the run's files are in volume {RUN_VOLUME}" if name == RUN_VOLUME else None
        case ("spec", "template", "spec", field, *_):
            return _POD.get(field)
        case ("spec", field, *_):
            return _SPEC.get(field)
    return "a run is a Job of batch/v1, as the agent makes it"


def _why_named(path: list[str]) -> str | None:
    match path:
        case ["namespace"]:
            return "it is the variable namespace"
        case ["labels" | "annotations", key]:
            return _MARKS if key.startswith(LABELS) or key == MANAGED_BY else None
        case ["labels" | "annotations"]:
            return None
        case ["ownerReferences" | "finalizers", *_]:
            return "the Job is removed by its agent, once the run's end was told"
    return FOUND


def _why_container(path: list[str]) -> str | None:
    match path:
        case ["env", name, *_]:
            return (
                f"variables that begin with {VARIABLES} are set by the agent"
                if name.startswith(VARIABLES)
                else None
            )
        case ["volumeMounts", target, *_]:
            inside = f"{target.rstrip('/')}/".startswith(f"{RUN_FOLDER}/") or not target.strip("/")
            return f"the files of the run are below {RUN_FOLDER}" if inside else None
        case ["resources", "limits", "memory"]:
            return "it is the variable memory, which a deployment's memory_limit goes over"
        case [field, *_]:
            return _RUN.get(field)
    return None


def _leaves(value: Any, path: Path = ()) -> dict[Path, str]:
    """Path -> value as JSON. Elements of lists are found by their name, where they have one."""
    if isinstance(value, dict) and value:
        found: dict[Path, str] = {}
        for key, inner in value.items():
            found |= _leaves(inner, (*path, key))
        return found
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        key = "mountPath" if all("mountPath" in one for one in value) else "name"
        if all(key in one for one in value):
            found = {}
            for one in value:
                found |= _leaves(one, (*path, str(one[key])))
            return found
    return {path: json.dumps(value, sort_keys=True)}
