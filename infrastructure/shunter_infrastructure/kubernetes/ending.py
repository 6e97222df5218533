"""How a run's pod ended: from what the cluster says of pod and Job to an :class:`Exit`.

The pod knows most. When it is gone before anybody looked, the Job still has the exit code: its podFailurePolicy makes
the cluster write it down (https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy).
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

from shunter_infrastructure import exit_codes, outcome
from shunter_infrastructure.copied_output import OUTPUT
from shunter_infrastructure.kubernetes import causes
from shunter_infrastructure.launcher import Exit, Handle
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.kubernetes_reserved import RUN_CONTAINER
from shunter_work_pools.contracts.states import Cause

Document = dict[str, Any]

#: Seconds after which a pod that should be gone is given up: its node says nothing any more.
LOST_GRACE = 30.0
#: Characters of the end of an init container's output that are told when it fails.
_WORDS = 500
#: Seconds within which the kubelet deletes a pod whose end was asked for and has come.
_DELETES_WITHIN = 5.0

_DISRUPTIONS = {
    "PreemptionByScheduler": Cause.PREEMPTED,
    "EvictionByEvictionAPI": Cause.EVICTED,
    "TerminationByKubelet": Cause.EVICTED,
    "DeletionByTaintManager": Cause.NODE_LOST,
    "DeletionByPodGC": Cause.NODE_LOST,
}
#: What the kubelet says of pods that it ends, or never lets begin.
_REASONS = {
    "Evicted": Cause.EVICTED,
    "Preempting": Cause.PREEMPTED,
    "NodeLost": Cause.NODE_LOST,
    "NodeShutdown": Cause.EVICTED,
    "Terminated": Cause.EVICTED,
    "Shutdown": Cause.EVICTED,
}
#: What a kubelet says of a start during which its engine ended: gRPC's and ttrpc's words for a connection that is gone.
_ENGINE_AWAY = ("context canceled", "error reading from server", "transport is closing", "ttrpc: closed")
_ARCHITECTURE = "Use an image for the node's architecture, or begin a script with #! and its interpreter."
_REPLACED = "The result has U+FFFD in it: the cluster puts that in place of what is not UTF-8 text."
#: What a container gets when its pod is deleted, and when the grace is over.
_DELETED_BY = ("SIGTERM", "SIGKILL")
_CODE = re.compile(r"failed with exit code (\d+) matching")


def seconds(moment: str) -> float:
    """Seconds since the epoch of a time as the API has it."""
    return datetime.fromisoformat(moment).timestamp()


def is_lost(pod: Document, now: float) -> bool:
    """Whether a pod should long be gone; ``now`` in seconds since the epoch."""
    until = gone_by(pod)
    return until is not None and now > until and not causes.is_over(pod)


def gone_by(pod: Document) -> float | None:
    """When a pod that is being deleted is given up, in seconds since the epoch; None if it is not deleted."""
    metadata = pod["metadata"]
    deadline = metadata.get("deletionTimestamp")
    if deadline is None:
        return None
    if "doomed" in pod:  # when that was seen here: the cluster's clock may be another
        return float(pod["doomed"]) + float(metadata.get("deletionGracePeriodSeconds") or 0) + LOST_GRACE
    return seconds(deadline) + LOST_GRACE


def exit_of(handle: Handle, job: Document | None, pod: Document | None, ended: Stamp) -> Exit:
    """The end of an attempt whose output is in its folder.

    Args:
        job, pod: as they were last seen; None if nobody saw them.
        ended: when that was.
    """
    status = None if pod is None else causes.run_status(pod)
    terminated = status["state"].get("terminated") if status is not None else None
    if pod is not None and terminated and causes.was_started(terminated) and not _is_unknown(terminated):
        return _of_container(handle, pod, terminated, ended)
    size = _size(handle)
    if pod is not None and (terminated or causes.is_over(pod) or _disruption(pod)):
        cause, said, remedy = without_end(pod)
        return Exit(ended, error=cause, message=" ".join(filter(None, (said, remedy))), log_size=size)
    if pod is not None and is_lost(pod, ended.wall):
        node = pod["spec"].get("nodeName")
        return Exit(
            ended,
            error=Cause.NODE_LOST,
            message=f"Node {node} does not answer any more; whether the run still goes on there cannot be known.",
            log_size=size,
        )
    return _of_job(handle, job, ended, size)


def _of_container(handle: Handle, pod: Document, terminated: Document, seen: Stamp) -> Exit:
    code = int(terminated["exitCode"])
    name, error = exit_codes.inferred(code), None
    result, failure, told = _left(handle, terminated, code)
    oom = terminated.get("reason") == "OOMKilled" and code != 0
    if failure is not None and failure.kind == "source":
        error = Cause.SOURCE
    if oom:
        limit = _memory(pod)
        told.append(
            f"The kernel killed it, or a process of it, at its limit{f' of {limit} bytes' if limit else ''} of memory."
        )
    said = exit_codes.not_executed(handle.folder / OUTPUT) if code else None
    stopped = None if code == 0 or oom else _disruption(pod) or _deleted(pod, terminated)
    if said is not None:
        error, name = Cause.START_FAILED, None
        told.append(f"The command cannot be executed in image {_image(pod)}: {said}.")
        if "format error" in said.lower():
            told.append(
                "Use an image for the node's architecture, or begin a script with #! and its interpreter."
            )
    elif stopped is not None:
        error = stopped[0]
        told.append(stopped[1])
    if name is not None:
        told.append(exit_codes.told(code, name))
    return Exit(
        ended=_moment(handle, terminated, seen),
        exit_code=code,
        signal=name,
        oom=oom,
        error=error,
        message=" ".join(told) or None,
        exception=failure is not None and failure.kind == "exception",
        result=result,
        log_size=_size(handle),
    )


def _left(handle: Handle, terminated: Document, code: int) -> tuple[Any, outcome.Failure | None, list[str]]:
    """Result and failure that a run left in its termination message, and what is to be told of them."""
    message = str(terminated.get("message") or "")
    if not message:
        return None, None, []
    limit = int(handle.data["result_limit"])
    whole = len(message.encode()) <= limit
    if code and handle.data["entrypoint"]:
        failure = outcome.parsed_failure(message.encode()) if whole else None
        if failure is None and not whole:  # the cluster keeps the end of it
            failure = outcome.Failure("exception", f"… {message[-1000:]}")
        if failure is not None:
            return None, failure, [failure.text]
    if not whole:
        return (
            None,
            None,
            [
                f"The result in $SHUNTER_RESULT was not kept: on Kubernetes it may have {limit} bytes, and it has more."
            ],
        )
    result, complaint = outcome.parsed_result(message.encode())
    # The kubelet does not say that it put these in place of what is no UTF-8.
    doubt = _REPLACED if "\ufffd" in message and complaint is None else None
    return result, None, list(filter(None, (complaint, doubt)))


def without_end(pod: Document) -> tuple[Cause, str, str]:
    """Cause, words and remedy for a pod that is over, and whose command did not end, as far as anybody knows."""
    disruption = _disruption(pod)
    if disruption is not None:
        return *disruption, ""
    status = pod.get("status", {})
    terminated = ((causes.run_status(pod) or {}).get("state") or {}).get("terminated")
    if terminated and not causes.was_started(terminated):
        return _not_started(pod, str(terminated.get("message") or terminated.get("reason")))
    reason, said = str(status.get("reason") or ""), " ".join(str(status.get("message") or "").split())
    if terminated and _is_unknown(terminated):
        return Cause.NODE_LOST, f"Its node lost its container: {terminated.get('message') or reason}", ""
    if _is_deleted(pod):
        return Cause.DELETED, f"Its pod {pod['metadata']['name']} was deleted by somebody.", ""
    failed = _failed_init(pod)
    if failed is not None:
        return Cause.START_FAILED, failed, "Correct it in the variable init_containers."
    return (
        Cause.START_FAILED,
        f"node {pod['spec'].get('nodeName')} does not take its pod: {': '.join(filter(None, (reason, said)))}",
        "Correct the pool's template, or see what the node lacks.",
    )


def _failed_init(pod: Document) -> str | None:
    for one in pod.get("status", {}).get("initContainerStatuses") or []:
        terminated = one.get("state", {}).get("terminated")
        if terminated and terminated.get("exitCode"):
            said = " ".join(str(terminated.get("message") or "").split())[-_WORDS:]
            ended = f"init container {one['name']} ended with exit code {terminated['exitCode']}"
            return f"{ended}: {said}" if said else ended
    return None


def _not_started(pod: Document, said: str) -> tuple[Cause, str, str]:
    command = (_run(pod).get("command") or ["of the image"])[0]
    low, said = said.lower(), " ".join(said.split())
    if any(words in low for words in _ENGINE_AWAY):
        detail = f"The container engine of node {pod['spec'].get('nodeName')} went away while it started the container"
        return Cause.NODE_LOST, f"{detail}: {said}", ""
    detail, remedy = (
        "the container cannot be started",
        "Correct the pool's template or the deployment's variables.",
    )
    if "exec format error" in low:
        detail = f"the command {command} is no program that the node can execute"
        remedy = _ARCHITECTURE
    elif "permission denied" in low:
        detail = f"the command {command} may not be executed in image {_image(pod)}"
        remedy = "Make it executable there, or name its interpreter first."
    elif "executable file not found" in low or "no such file or directory" in low:
        detail = f"the command {command} was not found in image {_image(pod)}"
        remedy = (
            "Correct the command, or use an image that has it. (Without a shell in it, sh -c cannot be used.)"
        )
    return Cause.START_FAILED, f"{detail}: {said}", remedy


def _disruption(pod: Document) -> tuple[Cause, str] | None:
    """https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions"""
    status = pod.get("status", {})
    for one in status.get("conditions", []):
        if one["type"] == "DisruptionTarget" and one["status"] == "True":
            reason = str(one.get("reason") or "")
            said = " ".join(str(status.get("message") or one.get("message") or "").split())
            cause = _REASONS.get(str(status.get("reason")), _DISRUPTIONS.get(reason, Cause.EVICTED))
            return cause, f"{reason}: {said.removesuffix('.')}."
    if status.get("reason") in _REASONS:
        said = " ".join(str(status.get("message") or "").split())
        return _REASONS[status["reason"]], f"{status['reason']}: {said.removesuffix('.')}."
    return None


def _deleted(pod: Document, terminated: Document) -> tuple[Cause, str] | None:
    """Whether somebody had deleted it before it ended."""
    deadline = pod["metadata"].get("deletionTimestamp")
    if deadline is None:
        return None
    # The kubelet deletes what it has ended once more, without a grace: the time is then that of the second time.
    before = float(pod["metadata"].get("deletionGracePeriodSeconds") or _DELETES_WITHIN)
    if seconds(terminated["finishedAt"]) < seconds(deadline) - before:
        return None
    return Cause.DELETED, f"Its pod {pod['metadata']['name']} was deleted by somebody."


def _is_deleted(pod: Document) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp") or pod.get("gone"))


def _of_job(handle: Handle, job: Document | None, ended: Stamp, size: int) -> Exit:
    """The end of what has no pod any more."""
    name = handle.data["name"]
    for one in [] if job is None else job.get("status", {}).get("conditions", []):
        if one["status"] != "True":
            continue
        said = str(one.get("message") or "")
        if one["type"] == "Complete":
            return Exit(
                ended,
                exit_code=0,
                message="Its pod was gone before its result could be read.",
                log_size=size,
            )
        if one["type"] not in ("Failed", "FailureTarget"):
            continue
        code = _CODE.search(said)
        if code is not None:
            return _by_code(int(code[1]), ended, size)
        if "DisruptionTarget" in said:
            return Exit(ended, error=Cause.EVICTED, message=f"Its pod was disrupted: {said}", log_size=size)
        if one.get("reason") == "DeadlineExceeded":
            return Exit(
                ended,
                error=Cause.DELETED,
                message="The cluster ended it at its Job's activeDeadlineSeconds: no agent had ended it in time.",
                log_size=size,
            )
    what = f"Job {name}" if job is None or job.get("gone") else f"pod of Job {name}"
    return Exit(
        ended,
        error=Cause.DELETED,
        message=f"The {what} was deleted by somebody; how the run ended cannot be known.",
        log_size=size,
    )


def _by_code(code: int, ended: Stamp, size: int) -> Exit:
    name = exit_codes.inferred(code)
    told = ["Its pod was gone before its end could be read; the exit code is from its Job."]
    if name is not None:
        told.append(exit_codes.told(code, name))
    error = None
    if name in _DELETED_BY:
        error = Cause.DELETED
        told.append("A pod that is deleted ends so, and this one was deleted by somebody.")
    return Exit(ended, exit_code=code, signal=name, error=error, message=" ".join(told), log_size=size)


def _moment(handle: Handle, terminated: Document, seen: Stamp) -> Stamp:
    """When it ended, by the node's clock so long after its start; that has no parts of seconds, so at the latest."""
    ran = max(0.0, seconds(terminated["finishedAt"]) - seconds(terminated["startedAt"])) + 1.0
    began = handle.started
    if began is None or (began.boot == seen.boot and began.ticks + ran > seen.ticks):
        return seen
    return Stamp(began.boot, began.ticks + ran, began.wall + ran)


def _is_unknown(terminated: Document) -> bool:
    return terminated.get("reason") == "ContainerStatusUnknown"


def _run(pod: Document) -> Document:
    containers: list[Document] = pod["spec"].get("containers") or [{}]
    return next((one for one in containers if one.get("name") == RUN_CONTAINER), {})


def _image(pod: Document) -> str:
    return str(_run(pod).get("image") or "")


def _memory(pod: Document) -> str:
    return str(_run(pod).get("resources", {}).get("limits", {}).get("memory") or "")


def _size(handle: Handle) -> int:
    try:
        return (handle.folder / OUTPUT).stat().st_size
    except FileNotFoundError:
        return 0


def began(pod: Document, before: Stamp | None) -> Stamp | None:
    """When the command of a pod began, by its node's clock, as far as that can be true here.

    Args:
        before: a moment here at which it surely had not begun; None: none is known.
    """
    status = causes.run_status(pod)
    state = {} if status is None else status["state"]
    at = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    if at is None:
        return None
    now = Stamp.now()
    ago = max(0.0, time.time() - seconds(at))
    if before is not None:
        ago = min(ago, now.ticks - before.ticks)
    return Stamp(now.boot, now.ticks - ago, now.wall - ago)


def job_is_over(job: Document) -> bool:
    """Whether a Job has ended, and makes no pod any more."""
    conditions = job.get("status", {}).get("conditions", [])
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)
