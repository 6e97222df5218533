"""The Job of a run, against literal documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter_infrastructure.kubernetes import manifest, source_files
from shunter_infrastructure.launcher import NOTHING, LaunchFailed, Prepared
from shunter_infrastructure.run_environment import told_more
from shunter_work_pools.contracts import kubernetes_reserved as reserved
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.secrets import FromAgent, FromSecret
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import assignment

RUN = UUID("01933b1e-0000-7000-8000-000000000001")
NAME = f"shunter-{RUN}-2"


def attempt(
    command: list[str] | None = None, template: dict[str, Any] | None = None, **work: Any
) -> Assignment:
    if command is None and "entrypoint" not in work:
        command = ["echo", "hi"]
    made = assignment(
        command, run=RUN, attempt=2, template={"image": "localhost/x:1"} | (template or {}), **work
    )
    return made.model_copy(update={"pool": "cluster", "epoch": 7})


def job_of(one: Assignment, own: dict[str, str] | None = None, agent: str = "a1") -> dict[str, Any]:
    return manifest.job(one, manifest.read_template(one), agent, own or {})


def secret_of(
    one: Assignment, own: dict[str, str] | None = None, prepared: Prepared = NOTHING
) -> dict[str, Any] | None:
    return manifest.secret(one, manifest.read_template(one), own or {}, "the-uid", prepared)


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


def run_of(job: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = pod_of(job)["containers"][0]
    return container


def env_of(job: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in run_of(job)["env"]}


FOUND_BY = {
    "app.kubernetes.io/managed-by": "shunter",
    "shunter.dev/run": str(RUN),
    "shunter.dev/attempt": "2",
    "shunter.dev/pool": "cluster",
}


def test_a_plain_command() -> None:
    one = attempt(parameters={"year": 2013, "city": "Zürich"}, timeout=60, start_timeout=30.5, grace=7)
    assert job_of(one) == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": NAME,
            "namespace": "default",
            "labels": FOUND_BY | {"shunter.dev/deployment": "hello", "shunter.dev/agent": "a1"},
            "annotations": {
                "shunter.dev/pool": "cluster",
                "shunter.dev/deployment": "hello",
                "shunter.dev/agent": "a1",
                "shunter.dev/epoch": "7",
            },
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "run", "operator": "NotIn", "values": [0]},
                    },
                ]
            },
            "ttlSecondsAfterFinished": 604800,
            "activeDeadlineSeconds": 3698,
            "template": {
                "metadata": {
                    "labels": FOUND_BY,
                    "annotations": {"shunter.dev/parameters": '{"year": 2013, "city": "Zürich"}'},
                },
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 7,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "shareProcessNamespace": True,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "run",
                            "image": "localhost/x:1",
                            "imagePullPolicy": "IfNotPresent",
                            "command": ["echo", "hi"],
                            "env": [
                                {"name": "SHUNTER_RUN_ID", "value": str(RUN)},
                                {"name": "SHUNTER_ATTEMPT", "value": "2"},
                                {"name": "SHUNTER_DEPLOYMENT", "value": "hello"},
                                {"name": "SHUNTER_REVISION", "value": "3"},
                                {"name": "SHUNTER_POOL", "value": "cluster"},
                                {"name": "SHUNTER_QUEUE", "value": "urgent"},
                                {"name": "SHUNTER_AGENT", "value": "a1"},
                                {"name": "SHUNTER_SCHEDULED_AT", "value": "2026-11-22T06:00:00Z"},
                                {"name": "SHUNTER_TAGS", "value": "[]"},
                                {"name": "SHUNTER_PARAMETERS", "value": "/shunter/run/parameters.json"},
                                {"name": "SHUNTER_RESULT", "value": "/shunter/result.json"},
                                {"name": "SHUNTER_RESULT_LIMIT", "value": "4095"},
                            ],
                            "volumeMounts": [
                                {"name": "shunter", "mountPath": "/shunter/run", "readOnly": True}
                            ],
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"]},
                            },
                            "terminationMessagePath": "/shunter/result.json",
                            "terminationMessagePolicy": "File",
                        }
                    ],
                    "volumes": [
                        {
                            "name": "shunter",
                            "projected": {
                                "defaultMode": 0o444,
                                "sources": [
                                    {
                                        "downwardAPI": {
                                            "items": [
                                                {
                                                    "path": "parameters.json",
                                                    "fieldRef": {
                                                        "fieldPath": "metadata.annotations['shunter.dev/parameters']"
                                                    },
                                                }
                                            ]
                                        }
                                    }
                                ],
                            },
                        }
                    ],
                },
            },
        },
    }
    assert secret_of(one) is None


ALL: dict[str, Any] = {
    "namespace": "runs",
    "pull_policy": "always",
    "pull_secrets": ["registry"],
    "command_prefix": ["nice"],
    "image_entrypoint": True,
    "env": {"A": "1", "B": "2", "C": "3"},
    "secret_env": {"S": "hush", "B": "hidden"},
    "env_refs": {"R": {"secret": "db", "key": "password"}, "M": {"config_map": "c", "key": "k", "optional": True}},
    "env_from": [{"secret": "all"}, {"config_map": "more", "prefix": "X_", "optional": True}],
    "workdir": "/srv",
    "user": "1000",
    "group": 2000,
    "fs_group": 3000,
    "read_only": True,
    "init": False,
    "cap_add": ["CAP_NET_BIND_SERVICE"],
    "cpu": 2,
    "cpu_request": 0.5,
    "memory": "1GiB",
    "memory_request": "512Mi",
    "ephemeral_storage": "2Gi",
    "gpus": 1,
    "mounts": [
        {"target": "/tmp", "memory": True, "size": "64Mi"},
        {"type": "pvc", "source": "data", "target": "/data", "read_only": True, "sub_path": "in"},
        {"type": "config_map", "source": "conf", "target": "/conf"},
        {"type": "secret", "source": "keys", "target": "/keys"},
        {"type": "host_path", "source": "/mnt", "target": "/mnt"},
    ],
    "node_selector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "spot": "required",
    "service_account": "runner",
    "service_account_token": True,
    "priority_class": "low",
    "runtime_class": "gvisor",
    "init_containers": [{"name": "prepare", "image": "localhost/x:1", "command": ["true"]}],
    "sidecars": [
        {
            "name": "proxy",
            "image": "localhost/x:1",
            "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
        }
    ],
    "labels": {"team": "blue"},
    "annotations": {"note": "any text: at all"},
    "patch": {
        "metadata": {"labels": {"cost": "7"}},
        "spec": {"template": {"spec": {"hostAliases": [{"ip": "10.0.0.9", "hostnames": ["db"]}]}}},
    },
}  # fmt: skip


def test_every_variable_has_its_place() -> None:
    job = job_of(attempt(template=ALL, env={"C": "own"}, working_dir="sub"))
    pod, run = pod_of(job), run_of(job)
    assert job["metadata"]["namespace"] == "runs"
    assert job["metadata"]["labels"] == FOUND_BY | {
        "team": "blue",
        "cost": "7",
        "shunter.dev/deployment": "hello",
        "shunter.dev/agent": "a1",
    }
    assert job["spec"]["template"]["metadata"]["labels"] == FOUND_BY | {"team": "blue"}
    assert job["spec"]["template"]["metadata"]["annotations"]["note"] == "any text: at all"
    assert job["metadata"]["annotations"]["note"] == "any text: at all"
    assert (run["imagePullPolicy"], run["args"], run.get("command")) == (
        "Always",
        ["nice", "echo", "hi"],
        None,
    )
    assert run["workingDir"] == "/srv/sub"
    env = env_of(job)
    assert (env["A"], env["C"]) == ("1", "own")
    assert env["B"] == {"secretKeyRef": {"name": NAME, "key": "B"}}
    assert env["S"] == {"secretKeyRef": {"name": NAME, "key": "S"}}
    assert env["R"] == {"secretKeyRef": {"name": "db", "key": "password"}}
    assert env["M"] == {"configMapKeyRef": {"name": "c", "key": "k", "optional": True}}
    assert env["SHUNTER_RESULT_LIMIT"] == "4095"
    assert run["envFrom"] == [
        {"secretRef": {"name": "all"}},
        {"configMapRef": {"name": "more", "optional": True}, "prefix": "X_"},
    ]
    assert run["resources"] == {
        "requests": {
            "cpu": "500m",
            "memory": "536870912",
            "ephemeral-storage": "2147483648",
            "nvidia.com/gpu": "1",
        },
        "limits": {
            "cpu": "2",
            "memory": "1073741824",
            "ephemeral-storage": "2147483648",
            "nvidia.com/gpu": "1",
        },
    }
    assert run["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        "readOnlyRootFilesystem": True,
    }
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 2000,
        "fsGroup": 3000,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["volumes"][1:] == [
        {"name": "mount-0", "emptyDir": {"medium": "Memory", "sizeLimit": "67108864"}},
        {"name": "mount-1", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
        {"name": "mount-2", "configMap": {"name": "conf"}},
        {"name": "mount-3", "secret": {"secretName": "keys"}},
        {"name": "mount-4", "hostPath": {"path": "/mnt"}},
    ]
    assert run["volumeMounts"][1:] == [
        {"name": "mount-0", "mountPath": "/tmp"},
        {"name": "mount-1", "mountPath": "/data", "subPath": "in", "readOnly": True},
        {"name": "mount-2", "mountPath": "/conf"},
        {"name": "mount-3", "mountPath": "/keys"},
        {"name": "mount-4", "mountPath": "/mnt"},
    ]
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert pod["tolerations"] == [
        {"key": "gpu", "operator": "Exists"},
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {
            "key": "eks.amazonaws.com/capacityType",
            "operator": "Equal",
            "value": "SPOT",
            "effect": "NoSchedule",
        },
        {
            "key": "kubernetes.azure.com/scalesetpriority",
            "operator": "Equal",
            "value": "spot",
            "effect": "NoSchedule",
        },
        {"key": "karpenter.sh/capacity-type", "operator": "Equal", "value": "spot", "effect": "NoSchedule"},
    ]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert [one["matchExpressions"][0]["values"] for one in terms] == [["true"], ["SPOT"], ["spot"], ["spot"]]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("runner", True)
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("low", "gvisor")
    assert "shareProcessNamespace" not in pod
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["hostAliases"] == [{"ip": "10.0.0.9", "hostnames": ["db"]}]
    assert pod["initContainers"] == [
        {
            "name": "prepare",
            "image": "localhost/x:1",
            "command": ["true"],
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        },
        {
            "name": "proxy",
            "image": "localhost/x:1",
            "restartPolicy": "Always",
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            },
        },
    ]


def test_a_python_entrypoint_has_the_runner_and_one_file_for_what_it_leaves() -> None:
    job = job_of(attempt(template={"python": "python3.12"}, entrypoint="app:main"))
    assert run_of(job)["command"] == ["python3.12", "/shunter/run/runner.py"]
    env = env_of(job)
    assert env["PYTHONUNBUFFERED"] == "1"
    assert env["SHUNTER_ENTRYPOINT"] == "app:main"
    assert env["SHUNTER_FAILURE"] == env["SHUNTER_RESULT"] == run_of(job)["terminationMessagePath"]
    runner = manifest.runner("runs")
    assert pod_of(job)["volumes"][0]["projected"]["sources"][1] == {
        "configMap": {
            "name": runner["metadata"]["name"],
            "items": [{"key": "runner.py", "path": "runner.py"}],
        }
    }
    assert runner["metadata"]["namespace"] == "runs"
    assert runner["immutable"] is True
    compile(runner["data"]["runner.py"], "runner.py", "exec")


def test_what_is_secret_goes_by_a_secret_that_the_job_owns() -> None:
    one = attempt(
        template={"secret_env": {"S": None, "OVER": None, "PASSED": None}},
        env={"OVER": "open", "OWN": FromSecret(secret="a"), "MINE": FromAgent(agent_secret="b")},
        pass_env=["PASSED", "SHUNTER_TOKEN", "NOT_THERE", "OWN"],
    )
    own = {"PASSED": "p4ss", "SHUNTER_TOKEN": "t0ken", "ELSE": "e1se", "OWN": "not-this"}
    prepared = Prepared(
        secrets={"OWN": "0wn", "MINE": "m1ne"},
        template_secrets={"S": "hush", "OVER": "hidden", "PASSED": "under"},
    )
    text = json.dumps(job_of(one, own))
    assert not [word for word in ("p4ss", "t0ken", "e1se", "not-this") if word in text]
    assert secret_of(one, own, prepared) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": NAME,
            "namespace": "default",
            "labels": {key: FOUND_BY[key] for key in list(FOUND_BY)[:3]},
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "name": NAME,
                    "uid": "the-uid",
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "immutable": True,
        "type": "Opaque",
        "stringData": {"S": "hush", "PASSED": "p4ss", "OWN": "0wn", "MINE": "m1ne"},
    }
    env = env_of(job_of(one, own))
    assert env["OVER"] == "open"
    assert env["OWN"] == {"secretKeyRef": {"name": NAME, "key": "OWN"}}
    assert "NOT_THERE" not in env
    with pytest.raises(LaunchFailed, match=r"secret_env.S of pool 'cluster' has no value") as failed:
        secret_of(attempt(template={"secret_env": {"S": None}}))
    assert failed.value.cause is Cause.REJECTED


@pytest.mark.parametrize(
    ("size", "is_small"), [(0, True), (16 * 1024, True), (16 * 1024 + 1, False), (512 * 1024, False)]
)
def test_large_parameters_are_in_the_secret(size: int, is_small: bool) -> None:
    one = attempt(parameters={"x": "y" * (size - len('{"x": ""}'))} if size else {})
    job, secret = job_of(one), secret_of(one)
    annotations = job["spec"]["template"]["metadata"].get("annotations", {})
    (source,) = pod_of(job)["volumes"][0]["projected"]["sources"]
    if is_small:
        assert json.loads(annotations["shunter.dev/parameters"]) == one.parameters
        assert (list(source), secret) == (["downwardAPI"], None)
    else:
        assert "shunter.dev/parameters" not in annotations
        assert source == {
            "secret": {"name": NAME, "items": [{"key": "parameters.json", "path": "parameters.json"}]}
        }
        assert secret is not None
        assert json.loads(secret["stringData"]["parameters.json"]) == one.parameters
        assert len(json.dumps(job)) < 8_000


def test_gpus_and_memory_of_the_deployment_go_over_the_template() -> None:
    one = attempt(
        template={"memory": "1GiB", "memory_request": "512MiB", "gpus": 1, "gpu_resource": "amd.com/gpu"},
        memory_limit=256 * 2**20,
    )
    one = one.model_copy(update={"need": {"gpu": 3.0}})
    assert run_of(job_of(one))["resources"] == {
        "requests": {"memory": str(256 * 2**20), "amd.com/gpu": "3"},
        "limits": {"memory": str(256 * 2**20), "amd.com/gpu": "3"},
    }


@pytest.mark.parametrize(
    ("template", "memory_limit", "requests", "limits"),
    [
        ({}, None, {"cpu": "1500m", "memory": str(2**30)}, {}),
        (
            {"cpu": 1, "cpu_request": 0.1, "memory": "512MiB", "memory_request": "1MiB"},
            None,
            {"cpu": "1500m", "memory": str(2**30)},
            {"cpu": "1500m", "memory": str(2**30)},
        ),
        (
            {"cpu": 4, "memory": "4GiB"},
            256 * 2**20,
            {"cpu": "1500m", "memory": str(256 * 2**20)},
            {"cpu": "4", "memory": str(256 * 2**20)},
        ),
    ],
)
def test_what_a_run_needs_is_asked_of_the_cluster(
    template: dict[str, Any], memory_limit: int | None, requests: dict[str, str], limits: dict[str, str]
) -> None:
    one = attempt(template=template, memory_limit=memory_limit)
    one = one.model_copy(update={"need": {"cpu": 1.5, "memory": 2.0**30}})
    found = run_of(job_of(one))["resources"]
    assert found == {"requests": requests} | ({"limits": limits} if limits else {})


def test_root_and_the_images_own_user_are_said() -> None:
    assert pod_of(job_of(attempt(template={"user": 0})))["securityContext"] == {
        "runAsNonRoot": False,
        "runAsUser": 0,
        "runAsGroup": 0,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod_of(job_of(attempt(template={"user": "image"})))["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_no_deadline_without_a_timeout() -> None:
    assert "activeDeadlineSeconds" not in job_of(attempt())["spec"]


def test_the_result_may_be_smaller_where_containers_share_the_message() -> None:
    sidecars = [{"name": f"s{number}", "image": "x"} for number in range(3)]
    job = job_of(attempt(template={"sidecars": sidecars}))
    assert env_of(job)["SHUNTER_RESULT_LIMIT"] == "3071"
    patch = {"spec": {"template": {"spec": {"initContainers": [{"name": "more", "image": "x"}]}}}}
    job = job_of(attempt(template={"sidecars": sidecars, "patch": patch}))
    assert env_of(job)["SHUNTER_RESULT_LIMIT"] == "2456"


@given(st.text(max_size=150))
def test_any_text_is_made_fit_for_a_label(text: str) -> None:
    made = manifest.label(text)
    assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", made)
    assert made == manifest.label(made)


def test_long_names_do_not_meet_in_one_label() -> None:
    first, second = "a" * 99 + "1", "a" * 99 + "2"
    assert manifest.label(first) != manifest.label(second)
    one = attempt().model_copy(update={"deployment": first, "pool": second})
    metadata = job_of(one, agent="b" * 100)["metadata"]
    assert metadata["annotations"]["shunter.dev/deployment"] == first
    assert metadata["annotations"]["shunter.dev/pool"] == second
    assert metadata["annotations"]["shunter.dev/agent"] == "b" * 100
    assert all(len(value) <= 63 for value in metadata["labels"].values())


def expanded(text: str) -> str:
    """As the kubelet expands a command, with no variable set: ``$$`` is ``$``, ``$(X)`` stays."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda found: "$" if found[0] == "$$" else f"<{found[0]}>", text)


@given(st.text(alphabet="$()aA ", max_size=12))
def test_commands_and_values_are_not_expanded(text: str) -> None:
    job = job_of(attempt([text or "x"], env={"V": text}))
    assert expanded(run_of(job)["command"][0]) == (text or "x")
    assert expanded(env_of(job)["V"]) == text


def changing(path: tuple[str, ...], value: Any) -> Any:
    """A patch that sets one leaf, elements of lists by their names."""
    if not path:
        return value
    if path[0] in ("containers", "initContainers", "volumes", "env", "volumeMounts") and len(path) > 1:
        key = "mountPath" if path[0] == "volumeMounts" else "name"
        return {path[0]: [{key: path[1]} | changing(path[2:], value)]}
    return {path[0]: changing(path[1:], value)}


def test_whatever_is_reserved_is_found_before_any_run_starts() -> None:
    """By the skeleton, which has to have what real Jobs have."""
    job = job_of(attempt(template=ALL | {"patch": {}}, timeout=1, entrypoint="a:b"))
    looked_at = 0
    for path in reserved._leaves(job):
        if reserved._why(path, None) is not None and path[-1] not in ("name", "mountPath"):
            assert list(reserved.faults(changing(path, 1))), path
            # What not every run has, and variables but one, is found deleted by the judgement on the real Job.
            late = {"activeDeadlineSeconds", "env", "args", "workingDir", "resources", "volumes"}
            assert late & set(path) or list(reserved.faults(changing(path, None))), path
            looked_at += 1
    assert looked_at > 40


def test_a_template_that_is_none_is_told_with_its_place() -> None:
    with pytest.raises(
        LaunchFailed, match=r"pool 'cluster' .* makes no Job: cpu: .*greater than 0"
    ) as failed:
        manifest.read_template(attempt(template={"cpu": 0}))
    assert failed.value.cause is Cause.REJECTED


def test_a_patch_is_judged_on_the_real_job_too() -> None:
    env = [{"name": "SHUNTER_QUEUE", "$patch": "delete"}]
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "run", "env": env}]}}}}
    with pytest.raises(LaunchFailed, match=r"env\.SHUNTER_QUEUE\.\w+ cannot be changed") as failed:
        job_of(attempt(template={"patch": patch}))
    assert failed.value.cause is Cause.REJECTED


def test_fetched_code_is_laid_out_by_the_secret_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("1")
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "same.py").symlink_to("lib/a.py")
    files = source_files.read(tmp_path)
    one = assignment(["./run"], template={"image": "i"}, working_dir="lib")
    made = manifest.job(one, manifest.read_template(one), "a1", {}, files)
    pod = made["spec"]["template"]["spec"]
    (run,) = pod["containers"]
    assert run["command"] == ["/shunter/run/source/run"]
    assert run["workingDir"] == "/shunter/run/source/lib"
    assert {"name": "SHUNTER_SOURCE", "value": "/shunter/run/source"} in run["env"]
    name = manifest.name_of(one.run, one.attempt)
    assert pod["volumes"][0]["projected"]["sources"][-1] == {
        "secret": {
            "name": name,
            "items": [
                {"key": "source-0", "path": "source/run", "mode": 0o555},
                {"key": "source-1", "path": "source/same.py"},
                {"key": "source-2", "path": "source/lib/a.py"},
            ],
        }
    }
    secret = manifest.secret(one, manifest.read_template(one), {}, "uid", source=files)
    assert secret is not None
    assert secret["data"] == {"source-0": "IyEvYmluL3NoCg==", "source-1": "MQ==", "source-2": "MQ=="}


@pytest.mark.parametrize("kind", ["large", "many", "out", "folder"])
def test_code_that_cannot_be_carried_into_a_pod_is_told(tmp_path: Path, kind: str) -> None:
    if kind == "large":
        (tmp_path / "a").write_bytes(b"x" * (700 * 1024 + 1))
    elif kind == "many":
        for number in range(1001):
            (tmp_path / str(number)).touch()
    elif kind == "out":
        (tmp_path / "a").symlink_to("/etc/passwd")
    else:
        (tmp_path / "b").mkdir()
        (tmp_path / "a").symlink_to("b")
    with pytest.raises(LaunchFailed) as caught:
        source_files.read(tmp_path)
    assert caught.value.cause is Cause.SOURCE
    assert "Put the code into the image" in caught.value.told


def test_a_run_with_a_token_brings_its_journal() -> None:
    one = attempt(token=True)
    env = env_of(job_of(one))
    assert env["SHUNTER_JOURNAL"] == "/shunter/tasks/journal"
    assert env["SHUNTER_BRING_JOURNAL"] == "1"
    assert env["SHUNTER_RUN_TOKEN"] == {"secretKeyRef": {"name": NAME, "key": "SHUNTER_RUN_TOKEN"}}
    pod = pod_of(job_of(one))
    assert {"name": "shunter-tasks", "emptyDir": {}} in pod["volumes"]
    assert {"name": "shunter-tasks", "mountPath": "/shunter/tasks"} in run_of(job_of(one))["volumeMounts"]
    given = {"SHUNTER_RUN_TOKEN": "the-token", "SHUNTER_API_URL": "http://server/api"}
    made = secret_of(one, prepared=Prepared(secrets=given))
    assert made is not None
    assert made["stringData"].items() >= given.items()


def test_a_run_believes_its_server_by_the_authorities_of_the_agent(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\n")
    one, prepared = attempt(), Prepared(authorities=file)
    told = told_more(prepared, manifest.AUTHORITIES)
    made = manifest.job(one, manifest.read_template(one), "a1", {}, told=told)
    assert env_of(made)["SHUNTER_TLS_CA"] == "/shunter/run/ca.pem"
    (volume,) = [each for each in pod_of(made)["volumes"] if each["name"] == reserved.RUN_VOLUME]
    items = [{"key": "ca.pem", "path": "ca.pem"}]
    assert {"secret": {"name": NAME, "items": items}} in volume["projected"]["sources"]
    secret = secret_of(one, prepared=prepared)
    assert secret is not None
    assert secret["stringData"] == {"ca.pem": "-----BEGIN CERTIFICATE-----\n"}
    file.unlink()
    with pytest.raises(
        LaunchFailed, match=r"ca\.pem, by which the run is to believe the server, cannot be read"
    ):
        secret_of(one, prepared=prepared)


def test_a_run_that_goes_on_has_a_token_too() -> None:
    one = attempt().model_copy(update={"goes_on": True})
    assert "SHUNTER_RUN_TOKEN" in env_of(job_of(one))
    assert "SHUNTER_JOURNAL" not in env_of(job_of(attempt()))
