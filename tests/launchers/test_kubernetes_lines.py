"""The lines of the documentation about kubernetes pools, as they stand, and what is said to wrong ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from shunter_infrastructure.kubernetes import manifest
from shunter_infrastructure.launcher import Prepared
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import SyncRequest
from shunter_work_pools.contracts.secrets import SecretsRequest
from tests.agents.real_server import Site, site
from tests.cluster.cluster import Cluster
from tests.launchers.test_docker_lines import refused, said, shunter
from tests.launchers.test_kubernetes_admitted import lost


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server; no cluster is needed to speak of templates."""
    with site(tmp_path_factory.mktemp("lines")) as one:
        yield one


def in_pod(**fields: Any) -> str:
    return "patch=" + json.dumps({"spec": {"template": {"spec": fields}}})


def in_run(**fields: Any) -> str:
    return in_pod(containers=[{"name": "run", **fields}])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["template image: names no image", "--template image="]),
        (["image=x", "imagee=y"], ["template imagee", "not a variable of kubernetes pools", "Did you mean image?"]),
        (["image=x", "namespace=No Good"], ["template namespace"]),
        (["image=x", f"namespace={'n' * 64}"], ["template namespace"]),
        (["image=x", "memory=lots"], ["template memory", "'lots' is not a size", "512Mi"]),
        (["image=x", "cpu=0"], ["template cpu", "greater than 0"]),
        (["image=x", "user=root"], ["template user"]),
        (["image=x", "spot=maybe"], ["template spot", "preferred"]),
        (["image=x", "pull_policy=sometimes"], ["template pull_policy", "if_not_present"]),
        (["image=x", "backoff_limit=3"], ["backoff_limit", "same attempt twice", "retries"]),
        (["image=x", "restart_policy=Always"], ["restart_policy", "same attempt twice"]),
        (["image=x", "ttl_seconds_after_finished=1"], ["ttl_seconds_after_finished", "7 days"]),
        (["image=x", "active_deadline_seconds=1"], ["active_deadline_seconds", "time-outs are the agent's"]),
        (["image=x", 'labels={"shunter.dev/run": "1"}'], ["labels.shunter.dev/run", "find the run again"]),
        (["image=x", 'labels={"a b": "1"}'], ["template labels.a b"]),
        (["image=x", f'labels={{"a": "{"v" * 64}"}}'], ["template labels.a"]),
        (["image=x", 'env={"SHUNTER_RUN_ID": "1"}'], ["env.SHUNTER_RUN_ID", "set by the agent"]),
        (["image=x", 'secret_env={"SHUNTER_X": "1"}'], ["secret_env.SHUNTER_X", "set by the agent"]),
        (["image=x", 'secret_env={"A": null}'], ["template secret_env.A: has no value", "Give it one"]),
        (["image=x", 'env_refs={"A": {"key": "k"}}'], ["env_refs.A", "exactly one of secret and config_map"]),
        (["image=x", 'env={"A": ""}', 'env_refs={"A": {"secret": "s", "key": "k"}}'], ["env_refs.A", "already"]),
        (["image=x", 'mounts=[{"target": "/shunter/x"}]'], ["mounts.0", "/shunter"]),
        (["image=x", 'mounts=[{"target": "//x/../shunter"}]'], ["mounts.0", "/shunter"]),
        (["image=x", 'mounts=[{"type": "pvc", "target": "/x"}]'], ["mounts.0", "needs a source"]),
        (["image=x", 'mounts=[{"target": "/a"}, {"target": "/a/"}]'], ["mounts", "two have the target /a"]),
        (["image=x", 'tolerations=[{"kee": "x"}]'], ["template tolerations.0.kee", "field of Toleration", "Did you mean key?"]),
        (["image=x", 'sidecars=[{"image": "y"}]'], ["template sidecars.0.name", "has no name"]),
        (["image=x", 'sidecars=[{"name": "run", "image": "y"}]'], ["sidecars.0.name", "cannot be named run"]),
        (["image=x", 'init_containers=[{"name": "a", "restartPolicy": "Never"}]'], ["init_containers.0.restartPolicy"]),
        (["image=x", 'sidecars=[{"name": "a", "restartPolicyRules": []}]'], ["sidecars.0.restartPolicyRules", "run twice"]),
        (["image=x", in_pod(initContainers=[{"name": "a", "restartPolicyRules": [{"action": "RestartAllContainers"}]}])], ["initContainers.a.restartPolicyRules", "run twice"]),
        (["image=x", 'sidecars=[{"name": "a"}]', 'init_containers=[{"name": "a"}]'], ["named a already"]),
        (["image=x", "patch=[]"], ["template patch", "dictionary"]),
        (["image=x", in_pod(hostAliazes=[])], ["template patch.spec.template.spec.hostAliazes", "not a field of PodSpec", "Did you mean hostAliases?"]),
        (["image=x", in_pod(hostNetwork="yes")], ["patch.spec.template.spec.hostNetwork: must be true or false"]),
        (["image=x", in_pod(restartPolicy="OnFailure")], ["patch.spec.template.spec.restartPolicy: cannot be changed", "same attempt twice"]),
        (["image=x", in_pod(containers=[{"name": "two", "image": "y"}])], ["containers.two", "sidecars"]),
        (["image=x", in_pod(containers=[{"name": "run", "$patch": "delete"}])], ["containers", "cannot be changed"]),
        (["image=x", in_pod(containers=None)], ["containers", "cannot be changed"]),
        (["image=x", in_pod(volumes=[{"name": "shunter", "$patch": "delete"}])], ["volumes.shunter", "the run's files"]),
        (["image=x", in_run(command=["x"])], ["containers.run.command: cannot be changed", "command_prefix"]),
        (["image=x", in_run(terminationMessagePath="/x")], ["terminationMessagePath", "result"]),
        (["image=x", in_run(terminationMessagePolicy="FallbackToLogsOnError")], ["terminationMessagePolicy", "result"]),
        (["image=x", in_run(env=[{"name": "SHUNTER_AGENT", "value": ""}])], ["env.SHUNTER_AGENT", "set by the agent"]),
        (["image=x", in_run(env=[{"$patch": "replace"}])], ["env.SHUNTER_RUN_ID"]),
        (["image=x", in_run(volumeMounts=[{"name": "a", "mountPath": "/shunter"}])], ["volumeMounts./shunter"]),
        (["image=x", in_run(restartPolicyRules=[{"action": "Restart"}])], ["restartPolicyRules", "same attempt twice"]),
        (["image=x", in_run(resources={"limits": {"memory": "1Gi"}})], ["resources.limits.memory", "variable memory"]),
        (["image=x", in_run(tty=True)], ["tty", "mixes stdout with stderr"]),
        (["image=x", 'patch={"metadata": {"name": "mine"}}'], ["patch.metadata.name", "made of run and attempt"]),
        (["image=x", 'patch={"metadata": {"generateName": "mine-"}}'], ["patch.metadata.generateName"]),
        (["image=x", 'patch={"metadata": {"namespace": "x"}}'], ["patch.metadata.namespace", "variable namespace"]),
        (["image=x", 'patch={"metadata": {"labels": {"shunter.dev/agent": "x"}}}'], ["labels.shunter.dev/agent", "found again"]),
        (["image=x", 'patch={"metadata": {"labels": {"$patch": "replace"}}}'], ["patch.metadata.labels", "found again"]),
        (["image=x", 'patch={"metadata": {"annotations": null}}'], ["patch.metadata.annotations", "found again"]),
        (["image=x", 'patch={"metadata": {"ownerReferences": [{"uid": "1"}]}}'], ["ownerReferences", "removed by its agent"]),
        (["image=x", 'patch={"metadata": {"finalizers": ["a/b"]}}'], ["finalizers", "removed by its agent"]),
        (["image=x", 'patch={"spec": {"backoffLimit": 3}}'], ["patch.spec.backoffLimit", "same attempt twice"]),
        (["image=x", 'patch={"spec": {"parallelism": 2}}'], ["patch.spec.parallelism"]),
        (["image=x", 'patch={"spec": {"podFailurePolicy": {"rules": [{"action": "Ignore"}]}}}'], ["podFailurePolicy", "same attempt twice"]),
        (["image=x", 'patch={"spec": {"podReplacementPolicy": "TerminatingOrFailed"}}'], ["podReplacementPolicy"]),
        (["image=x", 'patch={"spec": {"activeDeadlineSeconds": 5}}'], ["activeDeadlineSeconds", "agent's"]),
        (["image=x", 'patch={"spec": {"ttlSecondsAfterFinished": 5}}'], ["ttlSecondsAfterFinished", "604800"]),
        (["image=x", 'patch={"spec": {"ttlSecondsAfterFinished": null}}'], ["ttlSecondsAfterFinished", "604800"]),
        (["image=x", 'patch={"spec": {"suspend": true}}'], ["suspend", "nobody would resume it"]),
        (["image=x", 'patch={"spec": {"managedBy": "a/b"}}'], ["managedBy"]),
        (["image=x", 'patch={"spec": {"$patch": "replace"}}'], ["patch.spec", "cannot be changed"]),
        (["image=x", 'patch={"kind": "CronJob"}'], ["patch.kind", "Job of batch/v1"]),
        (["image=x", 'patch={"status": {}}'], ["patch.status"]),
    ],
)  # fmt: skip
def test_a_wrong_template_makes_no_pool(there: Site, words: list[str], told: list[str]) -> None:
    flags = [part for word in words for part in ("--template", word)]
    text = refused(there, "pool", "create", "wrong", "--type", "kubernetes", *flags)
    for part in told:
        assert part in text, text
    assert "wrong" not in [pool.name for pool in there.client.list_pools().pools]


@pytest.mark.parametrize(
    "word",
    [
        in_pod(hostAliases=[{"ip": "10.0.0.9", "hostnames": ["db"]}]),
        in_pod(dnsPolicy="None"),
        in_run(livenessProbe={"exec": {"command": ["true"]}}),
        in_run(resources={"requests": {"cpu": "100m"}}),
        in_pod(initContainers=[{"name": "more", "image": "y"}]),
        'patch={"spec": {"ttlSecondsAfterFinished": 864000}}',
        'patch={"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "batch"}}}',
        'patch={"metadata": {"annotations": {"a/b": "c"}}}',
    ],
)
def test_what_a_patch_may_say(there: Site, word: str) -> None:
    name = f"may-{abs(hash(word))}"
    said(there, "pool", "create", name, "--type", "kubernetes", "--template", "image=x", "--template", word)
    assert json.loads(said(there, "pool", "template", "preview", name))["kind"] == "Job"


def test_secret_values_are_shown_to_nobody(there: Site, tmp_path: Path) -> None:
    """Not by any command, nor by any answer of the server; and what was read can be sent again."""
    hush = "hush-hush"
    template = ["--template", "image=x", "--template", f'secret_env={{"KEY": "{hush}"}}']
    said(there, "pool", "create", "secret", "--type", "kubernetes", *template)
    deploy = ["deploy", "--name", "secret", "--pool", "secret", "--no-check"]
    over = f'secret_env={{"KEY": "{hush}-1", "MORE": "{hush}-2"}}'
    said(there, *deploy, "--var", over, "--", "true")
    shown = [
        said(there, "pool", "inspect", "secret"),
        said(there, "pool", "inspect", "secret", "-o", "json"),
        said(there, "pool", "list", "-o", "json"),
        said(there, "pool", "template", "show", "secret"),
        said(there, "pool", "template", "show", "secret", "-o", "yaml"),
        said(there, "pool", "template", "preview", "secret"),
        said(there, "pool", "template", "preview", "secret", "secret", "-o", "yaml"),
        said(there, "pool", "template", "set", "secret", "cpu=1", "-o", "json"),
        said(there, "deployment", "inspect", "secret"),
        said(there, "deployment", "inspect", "secret", "-o", "json"),
        said(there, "deployment", "list", "-o", "json"),
        said(there, "deployment", "history", "secret", "-o", "json"),
        said(there, "deployment", "history", "secret"),
        said(there, "deployment", "events", "secret", "-o", "json"),
        shunter(there, *deploy, "--var", 'secret_env={"KEY": "x"}', "--dry-run", "--", "true").stdout,
        said(there, *deploy, "--var", over, "-o", "json", "--", "true"),
    ]
    for text in shown:
        assert hush not in text
    assert "KEY (values are not shown)" in shown[3]
    (env,) = [
        one
        for one in json.loads(shown[5])["spec"]["template"]["spec"]["containers"][0]["env"]
        if one["name"] == "KEY"
    ]
    assert list(env["valueFrom"]) == ["secretKeyRef"]

    # What was read can be sent again.
    spec = there.client.get_deployment("secret").spec
    assert spec.variables == {"secret_env": {"KEY": None, "MORE": None}}
    assert not there.client.deploy("secret", spec).changed
    changed = spec.model_copy(update={"variables": {"secret_env": {"MORE": None}, "cpu": 2}})
    assert there.client.deploy("secret", changed).changed
    text = refused(there, *deploy, "--var", 'secret_env={"NEW": null}', "--", "true")
    assert "variable secret_env.NEW of pool 'secret': has no value" in text


def test_a_wrong_change_changes_nothing(there: Site) -> None:
    said(there, "pool", "create", "kept", "--type", "kubernetes", "--template", "image=x")
    before = there.client.get_pool("kept").template
    assert "template memory" in refused(there, "pool", "template", "set", "kept", "memory=none")
    assert "is not a field" in refused(there, "pool", "template", "set", "kept", 'patch={"speck": {}}')
    assert there.client.get_pool("kept").template == before


def test_a_deployment_overrides_single_variables(there: Site) -> None:
    words = ["--template", "image=x", "--template", "cpu=2"]
    said(there, "pool", "create", "over", "--type", "kubernetes", *words)
    deploy = ["deploy", "--name", "over", "--pool", "over", "--no-check"]
    text = refused(there, *deploy, "--var", "cpus=1", "--", "true")
    assert "variable cpus of pool 'over'" in text
    assert "Did you mean cpu?" in text
    text = refused(there, *deploy, "--var", in_pod(priority="high"), "--", "true")
    assert "variable patch.spec.template.spec.priority of pool 'over': must be a whole number" in text
    said(there, *deploy, "--var", "image=y", "--var", "user=1000", "--need", "gpu=2", "--", "true")
    pod = json.loads(said(there, "pool", "template", "preview", "over", "over"))["spec"]["template"]["spec"]
    assert (pod["containers"][0]["image"], pod["securityContext"]["runAsUser"]) == ("y", 1000)
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "2", "nvidia.com/gpu": "2"}


def test_a_deployment_file_is_told_the_line_of_a_wrong_patch(there: Site) -> None:
    said(there, "pool", "create", "filed", "--type", "kubernetes", "--template", "image=x")
    folder = there.home / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "shunter.yaml").write_text(
        "deployments:\n- name: filed\n  pool: filed\n  command: 'true'\n  variables:\n    cpu: 1\n"
        "    patch:\n      spec:\n        template:\n          spec:\n            hostNetwerk: true\n"
    )
    text = refused(there, "deploy")
    assert "shunter.yaml:11" in text, text
    assert "Did you mean hostNetwork?" in text


def test_the_schema_of_the_variables(there: Site) -> None:
    said(there, "pool", "create", "exact", "--type", "kubernetes", "--template", "image=x")
    schema = json.loads(said(there, "pool", "template", "show", "exact", "--schema"))
    assert schema["required"] == ["image"]
    assert set(schema["properties"]) >= {"patch", "spot", "secret_env"}


def test_preview_is_what_an_agent_sends_but_for_the_ids(there: Site) -> None:
    """What the server grants is made into a Job here; secret values come with it, also after changes of what was read."""
    words = [
        "--template",
        "image=x",
        "--template",
        'secret_env={"KEY": "hush"}',
        "--template",
        "spot=required",
    ]
    said(there, "pool", "create", "sent", "--type", "kubernetes", *words)
    said(there, "pool", "template", "set", "sent", "cpu=1")
    deploy = ["deploy", "--name", "sent", "--pool", "sent", "--no-check", "--timeout", "60s"]
    said(there, *deploy, "--var", "user=1000", "--", "echo", "$(A) $$")
    preview = said(there, "pool", "template", "preview", "sent", "sent")
    run = json.loads(said(there, "run", "start", "sent", "-o", "json"))["id"]
    request = SyncRequest(
        session=uuid4(), identity=uuid4(), protocol=PROTOCOL, pools=["sent"], free=1, limit=1, hold_for=5
    )
    (granted,) = there.client.sync("a1", request).assignments
    template = manifest.read_template(granted)
    made = json.dumps(manifest.job(granted, template, "AGENT", {}), indent=2)
    scheduled_at = granted.scheduled_at.isoformat().replace("+00:00", "Z")
    for own, shown in ((run, str(UUID(int=0))), (scheduled_at, "1970-01-01T00:00:00Z")):
        assert own in made
        made = made.replace(own, shown)
    assert made == preview.rstrip("\n")
    assert "hush" not in granted.model_dump_json()
    asked = SecretsRequest(session=request.session, run=granted.run, attempt=1, epoch=granted.epoch)
    prepared = Prepared(template_secrets=there.client.attempt_secrets("a1", asked).template_env)
    secret = manifest.secret(granted, template, {}, "uid", prepared)
    assert secret is not None
    assert secret["stringData"] == {"KEY": "hush"}
    for words in (
        ["run", "inspect", run, "-o", "json"],
        ["run", "explain", run],
        ["run", "events", run, "-o", "json"],
    ):
        assert "hush" not in shunter(there, *words).stdout


def test_a_pool_of_a_cluster_from_its_making_to_a_run(there: Site, cluster: Cluster) -> None:
    """The lines of the page; and the Job that is there is the one that preview prints."""
    words = ["--match", "k8s", "--template", "namespace=default", "--template", "image=localhost/python:3.11"]
    said(there, "pool", "create", "cluster", "--type", "kubernetes", *words)
    said(there, "deploy", "--name", "hi", "--tag", "k8s", "--", "python3", "-c", 'print("hi")')
    said(there, "deploy", "--name", "nap", "--tag", "k8s", "--", "sleep", "600")
    preview = json.loads(said(there, "pool", "template", "preview", "cluster", "nap"))
    there.env["KUBECONFIG"] = str(cluster.kubeconfig)
    with there.agent("cluster-1", pool="cluster"):
        done = shunter(there, "run", "start", "hi", "--watch")
        assert (done.returncode, "hi\n" in done.stdout) == (0, True), done
        run = json.loads(said(there, "run", "start", "nap", "-o", "json"))["id"]
        chosen = f"{manifest.RUN}={run}"
        cluster.kubectl("wait", "--for=create", "job", "-l", chosen, "--timeout=60s")
        (job,) = cluster.get("jobs", "-l", chosen)["items"]
        said(there, "run", "cancel", run)
        there.ended(run)
        cluster.kubectl("wait", "--for=delete", f"job/{job['metadata']['name']}", "--timeout=60s")
    assert lost(preview, job) == []
    assert job["metadata"]["labels"].keys() == preview["metadata"]["labels"].keys()
    (sent,), (shown,) = (one["spec"]["template"]["spec"]["containers"] for one in (job, preview))
    assert [one["name"] for one in sent["env"]] == [one["name"] for one in shown["env"]]
    assert sent["command"] == shown["command"] == ["sleep", "600"]
