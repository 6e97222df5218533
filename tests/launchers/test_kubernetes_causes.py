"""What the cluster says of Jobs and pods, read as notes, faults and ends: literal documents as the API has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shunter_infrastructure.kubernetes import causes, ending
from shunter_infrastructure.kubernetes.watch import slim_pod
from shunter_infrastructure.launcher import Exit, Handle
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.states import Cause

Document = dict[str, Any]
STARTED, FINISHED = "2026-11-26T10:00:00Z", "2026-11-26T10:00:10Z"
SEEN = Stamp("boot", 1000.0, ending.seconds(FINISHED) + 5)


def pod(state: Document | None = None, *, node: str | None = "node-1", **more: Any) -> Document:
    """A pod as it is kept of one whose container has a state."""
    metadata = {"name": "shunter-x-1-abcde", "uid": "u", **more.pop("metadata", {})}
    status: Document = {"phase": "Pending", "conditions": [], **more}
    if state is not None:
        status["containerStatuses"] = [
            {"name": "sidecar", "state": {"running": {}}},
            {"name": "run", "state": state},
        ]
    limits = {"resources": {"limits": {"memory": "64Mi"}}}
    containers = [{"name": "run", "image": "python:3", "command": ["train", "--all"], **limits}]
    spec = {"containers": containers} | ({"nodeName": node} if node else {})
    return slim_pod({"metadata": metadata, "spec": spec, "status": status})


def waiting(reason: str, message: str = "") -> Document:
    return {"waiting": {"reason": reason, "message": message}}


def over(code: int, **more: Any) -> Document:
    return {
        "terminated": {
            "exitCode": code,
            "startedAt": STARTED,
            "finishedAt": FINISHED,
            "reason": "Error",
            **more,
        }
    }


def event(reason: str, message: str) -> Document:
    return {"reason": reason, "message": message}


def disrupted(reason: str, message: str = "words of the cluster") -> Document:
    return {
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]
    }


UNSCHEDULED = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes: no room",
        }
    ]
}


@pytest.mark.parametrize(
    ("found", "events", "words", "cause"),
    [
        (None, [], "its pod is about to be made", None),
        (None, [event("FailedCreate", "exceeded quota: q")], "its pod cannot be made: exceeded quota: q", Cause.REJECTED),
        (pod(node=None), [], "its pod waits for the scheduler", None),
        (pod(node=None, **UNSCHEDULED), [], "Unschedulable: 0/3 nodes: no room", Cause.UNSCHEDULABLE),
        (pod(), [], "node node-1 fetches the image", None),
        (pod(waiting("ContainerCreating")), [], "node node-1 fetches the image", None),
        (pod(waiting("ContainerCreating")), [event("FailedMount", "no secret"), event("Pulling", "x")],
         "node node-1 cannot make its container: no secret", Cause.START_FAILED),
        (pod(waiting("PodInitializing"), initContainerStatuses=[{"name": "setup", "state": {"running": {}}}]), [],
         "init container setup runs on node-1", None),
        (pod(waiting("ImagePullBackOff", "Back-off pulling")), [], "ImagePullBackOff: Back-off pulling", Cause.IMAGE_PULL),
    ],
)  # fmt: skip
def test_what_a_launch_waits_for(
    found: Document | None, events: list[Document], words: str, cause: Cause | None
) -> None:
    said, why = causes.note(found, events)
    assert words in said
    assert why is cause


@pytest.mark.parametrize(
    ("state", "cause", "patient", "remedy"),
    [
        (waiting("ErrImagePull", "not found"), Cause.IMAGE_PULL, True, "push the image"),
        (waiting("ErrImagePull", "pull access denied"), Cause.IMAGE_PULL, True, "pull_secrets"),
        (
            waiting("ErrImagePull", "no match for platform in manifest"),
            Cause.IMAGE_PULL,
            True,
            "architecture",
        ),
        (waiting("ImagePullBackOff"), Cause.IMAGE_PULL, True, "image"),
        (waiting("ErrImageNeverPull"), Cause.IMAGE_PULL, False, "pull_policy"),
        (waiting("InvalidImageName"), Cause.IMAGE_PULL, False, "variable image"),
        (
            waiting("CreateContainerConfigError", 'secret "x" not found'),
            Cause.START_FAILED,
            True,
            "namespace",
        ),
        (
            waiting("CreateContainerConfigError", "container has runAsNonRoot"),
            Cause.START_FAILED,
            True,
            "user",
        ),
        (waiting("CreateContainerError", "no such device"), Cause.START_FAILED, True, "template"),
        (waiting("RunContainerError", "no such device"), Cause.START_FAILED, True, "template"),
    ],
)
def test_what_does_not_get_better(state: Document, cause: Cause, patient: bool, remedy: str) -> None:
    fault = causes.fault_of_pod(pod(state))
    assert fault is not None
    assert (fault.cause, fault.grace > 0) == (cause, patient)
    assert remedy in fault.remedy


def test_the_fault_of_another_container_names_it() -> None:
    found = pod(initContainerStatuses=[{"name": "setup", "state": waiting("ErrImagePull", "no such image")}])
    fault = causes.fault_of_pod(found)
    assert fault is not None
    assert "container setup" in fault.detail


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('pods "x" is forbidden: violates PodSecurity "restricted"', "pod-security"),
        ('admission webhook "w" denied the request: no', "admission rules"),
        ('pods "x" is forbidden: maximum memory usage per Container is 1Gi', "LimitRange"),
        ('pods "x" is forbidden: exceeded quota: q', None),
        ("connection refused", None),
    ],
)
def test_what_admission_says(said: str, remedy: str | None) -> None:
    fault = causes.fault_of_job([event("FailedCreate", said)])
    if remedy is None:
        assert fault is None
        return
    assert fault is not None
    assert fault.cause is Cause.REJECTED
    assert remedy in fault.remedy


@pytest.mark.parametrize(
    ("state", "begun"),
    [
        (None, False),
        (waiting("ContainerCreating"), False),
        ({"running": {"startedAt": STARTED}}, True),
        (over(0), True),
        (over(128, reason="StartError", startedAt="1970-01-01T00:00:00Z"), False),
    ],
)
def test_whether_it_has_begun(state: Document | None, begun: bool) -> None:
    assert causes.has_begun(pod(state)) is begun


@pytest.fixture
def handle(tmp_path: Path) -> Handle:
    began = Stamp("boot", SEEN.ticks - 15, SEEN.wall - 15)
    data = {"name": "shunter-x-1", "entrypoint": False, "result_limit": 4095}
    return Handle("kubernetes", 1, tmp_path, began, data=data)


def end(handle: Handle, found: Document | None, job: Document | None = None) -> Exit:
    return ending.exit_of(handle, job, found, SEEN)


def test_an_exit_code(handle: Handle) -> None:
    found = end(handle, pod(over(3), phase="Failed"))
    assert (found.exit_code, found.signal, found.error, found.message) == (3, None, None, None)
    assert found.ended.ticks == SEEN.ticks - 15 + 10 + 1  # the node tells no parts of seconds


def test_a_signal_is_inferred(handle: Handle) -> None:
    found = end(handle, pod(over(143), phase="Failed"))
    assert (found.exit_code, found.signal, found.error) == (143, "SIGTERM", None)
    assert "is taken for SIGTERM" in (found.message or "")


def test_what_its_own_deadline_ended_is_no_disruption(handle: Handle) -> None:
    """That is how an agent stops it."""
    found = end(
        handle, pod(over(143), phase="Failed", reason="DeadlineExceeded", message="was active longer")
    )
    assert (found.signal, found.error) == ("SIGTERM", None)


def test_out_of_memory(handle: Handle) -> None:
    found = end(handle, pod(over(137, reason="OOMKilled"), phase="Failed"))
    assert (found.oom, found.error) == (True, None)
    assert "64Mi" in (found.message or "")


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("PreemptionByScheduler", Cause.PREEMPTED),
        ("EvictionByEvictionAPI", Cause.EVICTED),
        ("TerminationByKubelet", Cause.EVICTED),
        ("DeletionByTaintManager", Cause.NODE_LOST),
        ("DeletionByPodGC", Cause.NODE_LOST),
    ],
)
def test_disruptions(handle: Handle, reason: str, cause: Cause) -> None:
    """Also of a pod that never began; but what ended well in spite of it ended well."""
    for state in (over(143), None):
        found = end(handle, pod(state, phase="Failed", **disrupted(reason)))
        assert found.error is cause
        assert f"{reason}: words of the cluster" in (found.message or "")
    assert end(handle, pod(over(0), phase="Succeeded", **disrupted(reason))).error is None


@pytest.mark.parametrize("reason", ["Evicted", "NodeShutdown", "Terminated"])
def test_what_the_kubelet_ends(handle: Handle, reason: str) -> None:
    found = end(handle, pod(over(137), phase="Failed", reason=reason, message="The node was low on memory."))
    assert found.error is Cause.EVICTED
    assert "The node was low on memory." in (found.message or "")


def test_a_container_that_its_node_lost(handle: Handle) -> None:
    lost = over(137, reason="ContainerStatusUnknown", message="could not be located")
    found = end(handle, pod(lost, phase="Failed"))
    assert (found.error, found.exit_code) == (Cause.NODE_LOST, None)


@pytest.mark.parametrize(
    ("deleted", "grace", "error"),
    [
        ("2026-11-26T10:00:09Z", 1, Cause.DELETED),  # asked at :08
        ("2026-11-26T10:00:11Z", 0, Cause.DELETED),  # by the kubelet, once more
        ("2026-11-26T10:05:00Z", 30, None),  # long after its end
        ("2026-11-26T10:05:00Z", 0, None),
    ],
)
def test_deleted_before_or_after_its_end(
    handle: Handle, deleted: str, grace: int, error: Cause | None
) -> None:
    metadata = {"deletionTimestamp": deleted, "deletionGracePeriodSeconds": grace}
    assert end(handle, pod(over(143), phase="Failed", metadata=metadata)).error is error


def test_a_pod_that_should_long_be_gone(handle: Handle) -> None:
    metadata = {"deletionTimestamp": STARTED, "deletionGracePeriodSeconds": 30}
    found = pod({"running": {"startedAt": STARTED}}, phase="Running", metadata=metadata)
    begin = ending.seconds(STARTED)
    assert not ending.is_lost(found, begin + ending.LOST_GRACE - 1)
    assert ending.is_lost(found, begin + ending.LOST_GRACE + 1)
    late = Stamp("boot", 0, begin + ending.LOST_GRACE + 1)
    exit_ = ending.exit_of(handle, None, found, late)
    assert exit_.error is Cause.NODE_LOST
    assert "node-1 does not answer" in (exit_.message or "")


@pytest.mark.parametrize(
    ("said", "words", "remedy"),
    [
        ('exec: "train": executable file not found in $PATH', "train was not found in image python:3", "Without a shell"),
        ('exec: "train": permission denied', "train may not be executed", "executable"),
        ("exec /train: exec format error", "is no program that the node can execute", "architecture"),
        ("no space left", "cannot be started", "template"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_started(said: str, words: str, remedy: str) -> None:
    state = over(128, reason="StartError", startedAt="1970-01-01T00:00:00Z", message=said)
    cause, detail, help_ = ending.without_end(pod(state, phase="Failed"))
    assert cause is Cause.START_FAILED
    assert words in detail
    assert remedy in help_


@pytest.mark.parametrize(
    "said",
    [
        "failed to create containerd task: failed to create shim task: context canceled: unknown",
        "error reading from server: EOF",
    ],
)
def test_an_engine_that_goes_away_during_a_start_is_no_fault_of_the_template(said: str) -> None:
    state = over(128, reason="StartError", startedAt="1970-01-01T00:00:00Z", message=said)
    cause, detail, remedy = ending.without_end(pod(state, phase="Failed"))
    assert (cause, remedy) == (Cause.NODE_LOST, "")
    assert "engine of node node-1 went away" in detail
    assert said in detail


def test_an_init_container_that_fails() -> None:
    init = [{"name": "setup", "state": {"terminated": {"exitCode": 2}}}]
    cause, detail, _ = ending.without_end(pod(phase="Failed", initContainerStatuses=init))
    assert (cause, detail) == (Cause.START_FAILED, "init container setup ended with exit code 2")


def test_a_node_that_does_not_take_a_pod() -> None:
    found = pod(phase="Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu")
    cause, detail, _ = ending.without_end(found)
    assert cause is Cause.START_FAILED
    assert "OutOfcpu" in detail


def job(kind: str, message: str = "", reason: str = "") -> Document:
    return {
        "metadata": {"name": "shunter-x-1"},
        "status": {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]},
    }


@pytest.mark.parametrize(
    ("found", "code", "signal", "error"),
    [
        (job("Complete"), 0, None, None),
        (job("Failed", "Container run for pod n/x failed with exit code 9 matching FailJob rule at index 1"), 9, None, None),
        (job("FailureTarget", "Container run for pod n/x failed with exit code 137 matching FailJob rule at index 1"),
         137, "SIGKILL", Cause.DELETED),
        (job("Failed", "Container run for pod n/x failed with exit code 143 matching FailJob rule at index 1"),
         143, "SIGTERM", Cause.DELETED),
        (job("Failed", "Container run for pod n/x failed with exit code 134 matching FailJob rule at index 1"),
         134, "SIGABRT", None),
        (job("Failed", "Pod n/x has condition DisruptionTarget matching FailJob rule at index 0"), None, None, Cause.EVICTED),
        (job("Failed", "active longer", "DeadlineExceeded"), None, None, Cause.DELETED),
        (job("Failed", "limit", "BackoffLimitExceeded"), None, None, Cause.DELETED),
        (None, None, None, Cause.DELETED),
    ],
)  # fmt: skip
def test_what_a_job_says_when_its_pod_is_gone(
    handle: Handle, found: Document | None, code: int | None, signal: str | None, error: Cause | None
) -> None:
    exit_ = end(handle, None, found)
    assert (exit_.exit_code, exit_.signal, exit_.error) == (code, signal, error)
    assert exit_.message


@pytest.mark.parametrize(
    ("message", "code", "result", "told"),
    [
        ('{"a": 1}', 0, {"a": 1}, None),
        ("[1]", 3, [1], None),
        ("no JSON", 0, None, "is not JSON"),
        ("1" * 4095, 0, int("1" * 4095), None),
        ("1" * 4096, 0, None, "4095 bytes"),
    ],
)
def test_the_result(handle: Handle, message: str, code: int, result: Any, told: str | None) -> None:
    found = end(handle, pod(over(code, message=message), phase="Succeeded"))
    assert found.result == result
    assert (told or "") in (found.message or "")
    assert bool(found.message) is bool(told)


def test_the_failure_of_a_function(handle: Handle) -> None:
    handle.data["entrypoint"] = True
    failed = '{"kind": "exception", "text": "ValueError: no"}'
    found = end(handle, pod(over(1, message=failed), phase="Failed"))
    assert (found.exception, found.message, found.result) == (True, "ValueError: no", None)
    source = '{"kind": "source", "text": "no module x"}'
    assert end(handle, pod(over(1, message=source), phase="Failed")).error is Cause.SOURCE
    long = end(handle, pod(over(1, message="x" * 4096), phase="Failed"))
    assert long.exception
    assert (long.message or "").startswith("… xxx")
