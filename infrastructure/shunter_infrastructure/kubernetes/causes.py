"""What a launch waits for, and what will not get better by waiting: from what the cluster says of a Job and its pod.

Pure functions over documents as the API has them. Words of the scheduler, the kubelet and of admission are passed on
as they are: they name what a person has to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shunter_work_pools.contracts.kubernetes_reserved import RUN_CONTAINER
from shunter_work_pools.contracts.states import Cause

Document = dict[str, Any]

#: Seconds that a fault may last before it ends the attempt: registries and Secrets may come back.
PULL_GRACE, CONFIG_GRACE, REJECTED_GRACE = 60.0, 60.0, 10.0

_PULL = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
#: Of these no waiting helps.
_FINAL = {"InvalidImageName", "ErrImageNeverPull"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}
_USUAL = {"ContainerCreating", "PodInitializing"}


@dataclass(frozen=True)
class Fault:
    """What keeps an attempt from starting.

    Attributes:
        cause: of its end, if it stays so.
        detail: what is wrong, in the cluster's words.
        remedy: what to do about it.
        grace: seconds that it may stay so.
    """

    cause: Cause
    detail: str
    remedy: str
    grace: float


def note(pod: Document | None, events: list[Document]) -> tuple[str, Cause | None]:
    """What a launch waits for, in one sentence, and the cause of its end if it waits in vain.

    Args:
        pod: it has not begun; None if there is none yet.
        events: of the Job while there is no pod, later of the pod; none if they were not asked for.
    """
    if pod is None:
        said = _last(events, "FailedCreate")
        return (
            (f"its pod cannot be made: {said}", Cause.REJECTED)
            if said
            else ("its pod is about to be made", None)
        )
    fault = fault_of_pod(pod)
    if fault is not None:
        return fault.detail, fault.cause
    unscheduled = _unscheduled(pod)
    if unscheduled:
        return unscheduled, Cause.UNSCHEDULABLE
    if not pod["spec"].get("nodeName"):
        return "its pod waits for the scheduler", None
    node = f"node {pod['spec']['nodeName']}"
    said = _last(events, "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedMapVolume")
    if said:
        return f"{node} cannot make its container: {said}", Cause.START_FAILED
    begun = _running_init(pod)
    if begun:
        return f"init container {begun} runs on {pod['spec']['nodeName']}", None
    return f"{node} fetches the image, or makes the container", None


def fault_of_pod(pod: Document) -> Fault | None:
    """Why the container of a pod cannot begin, if that is a fault."""
    for one in [*_statuses(pod, "initContainerStatuses"), *_statuses(pod, "containerStatuses")]:
        waiting = one.get("state", {}).get("waiting")
        if not waiting or waiting.get("reason") in _USUAL:
            continue
        reason, said = str(waiting.get("reason") or ""), " ".join(str(waiting.get("message") or "").split())
        which = "" if one["name"] == RUN_CONTAINER else f" of container {one['name']}"
        if reason in _PULL:
            return Fault(
                Cause.IMAGE_PULL,
                f"the image{which} cannot be had: {reason}{f': {said}' if said else ''}",
                pull_remedy(said, reason),
                0.0 if reason in _FINAL else PULL_GRACE,
            )
        if reason in _CONFIG:
            return Fault(
                Cause.START_FAILED,
                f"the container{which} cannot be made: {reason}{f': {said}' if said else ''}",
                _config_remedy(said),
                CONFIG_GRACE,
            )
    return None


def fault_of_job(events: list[Document]) -> Fault | None:
    """Why a Job gets no pod, if waiting is no help: what admission said. (A quota may have room later.)"""
    said = _last(events, "FailedCreate")
    if not said or "exceeded quota" in said:
        return None
    if "forbidden" in said or "denied the request" in said or "is invalid" in said:
        return Fault(
            Cause.REJECTED, f"its pod is not admitted: {said}", rejection_remedy(said), REJECTED_GRACE
        )
    return None


def _unscheduled(pod: Document) -> str:
    for one in pod.get("status", {}).get("conditions", []):
        if one["type"] == "PodScheduled" and one["status"] == "False":
            said = str(one.get("message") or "")
            return (
                f"{one.get('reason') or 'Unschedulable'}: {said}"
                if said
                else "the scheduler has no node for it"
            )
    return ""


def has_begun(pod: Document) -> bool:
    """Whether the command of a pod runs, or ran."""
    one = run_status(pod)
    if one is None:
        return False
    state = one.get("state", {})
    if "running" in state:
        return True
    return "terminated" in state and was_started(state["terminated"])


def was_started(terminated: Document) -> bool:
    """Whether a container that ended ever ran."""
    began = terminated.get("startedAt")
    return bool(began) and not str(began).startswith("1970-") and terminated.get("reason") not in _NEVER_RAN


#: What the kubelet calls the end of a container that containerd could not start.
_NEVER_RAN = {"StartError", "ContainerCannotRun"}


def is_over(pod: Document) -> bool:
    """Whether nothing of a pod runs any more, or ever will."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def run_status(pod: Document) -> Document | None:
    """The status of the container that is the run's; None as long as there is none."""
    return next((one for one in _statuses(pod, "containerStatuses") if one["name"] == RUN_CONTAINER), None)


def _running_init(pod: Document) -> str:
    for one in _statuses(pod, "initContainerStatuses"):
        if "running" in one.get("state", {}):
            return str(one["name"])
    return ""


def _statuses(pod: Document, which: str) -> list[Document]:
    found: list[Document] = pod.get("status", {}).get(which) or []
    return found


def _last(events: list[Document], *reasons: str) -> str:
    """The words of the last event of some kinds."""
    for one in reversed(events):
        if one.get("reason") in reasons:
            return " ".join(str(one.get("message") or "").split())
    return ""


def pull_remedy(said: str, reason: str = "") -> str:
    """What to do about an image that cannot be had."""
    low = said.lower()
    if reason == "ErrImageNeverPull":
        return "Load the image onto the nodes, or give the pool another pull_policy."
    if reason == "InvalidImageName":
        return "Correct the variable image."
    if any(
        word in low for word in ("denied", "unauthorized", "authentication required", "authorization failed")
    ):
        return "Correct the image's name, or name the registry's credentials in the variable pull_secrets."
    if "no match for platform" in low or "no matching manifest" in low:
        return "Use an image for the nodes' architecture, or choose nodes by the variable node_selector."
    return "Correct the variable image, push the image, or let the nodes reach its registry."


def _config_remedy(said: str) -> str:
    low = said.lower()
    if "runasnonroot" in low or "run as non-root" in low or "will run as root" in low:
        return "Give the variable user a number other than 0, or use an image whose user is a number."
    if "not found" in low and ("secret" in low or "configmap" in low):
        return "Make it in the pool's namespace, or correct the variable that names it."
    return "Correct the pool's template or the deployment's variables."


def rejection_remedy(said: str) -> str:
    """What to do about an object that the cluster does not admit."""
    if "violates PodSecurity" in said:
        return "Change the pool's template, or let the namespace's pod-security.kubernetes.io/enforce label admit it."
    if "exceeded quota" in said:
        return "Make the namespace's quota larger, or ask for less."
    if "webhook" in said or "denied the request" in said or "ValidatingAdmissionPolicy" in said:
        return "Change the pool's template to what the cluster's admission rules admit."
    if "maximum" in said or "minimum" in said:
        return "Keep within the namespace's LimitRange."
    return "Correct the pool's template or the deployment's variables."
