"""Manifests before a real API server, and runs by them in a namespace that admits only what is restricted."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from shunter_infrastructure.kubernetes import manifest
from shunter_infrastructure.kubernetes.launcher import KubernetesLauncher
from shunter_infrastructure.kubernetes.rights import NEEDED
from shunter_infrastructure.launcher import Prepared
from shunter_work_pools.contracts.agents import Assignment
from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.launchers.attempts import assignment, shell
from tests.launchers.test_kubernetes_manifest import ALL


def _prepared(work: Assignment) -> Prepared:
    """As if the server had given the values of secret_env, which the template itself has here."""
    return Prepared(template_secrets=work.template.get("secret_env", {}))


class Place:
    """A namespace, and runs in it as an agent makes them: the Job, then what goes with it."""

    def __init__(self, cluster: Cluster, standard: str) -> None:
        self.cluster = cluster
        self.name = f"{standard}-{uuid4().hex[:8]}"
        label = {"pod-security.kubernetes.io/enforce": standard}
        metadata = {"name": self.name, "labels": label}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")

    def kubectl(self, *words: str, text: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.name, *words, text=text)

    def attempt(self, command: list[str] | None = None, **more: Any) -> Assignment:
        template = {"namespace": self.name, "image": images.PYTHON} | more.pop("template", {})
        return assignment(command, template=template, **more)

    def create(self, document: dict[str, Any], *words: str) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(
            self.kubectl("create", "-o", "json", "-f", "-", *words, text=json.dumps(document))
        )
        return made

    def dry_run(self, work: Assignment) -> dict[str, Any]:
        """What the API server would make of the Job."""
        return self.create(manifest.job(work, manifest.read_template(work), "a1", {}), "--dry-run=server")

    def run(self, work: Assignment, own: dict[str, str] | None = None) -> dict[str, Any]:
        """The pod at its end."""
        template, own = manifest.read_template(work), own or {}
        job = self.create(manifest.job(work, template, "a1", own))
        if work.work.entrypoint is not None:
            self.cluster.apply(manifest.runner(self.name))
        secret = manifest.secret(work, template, own, job["metadata"]["uid"], _prepared(work))
        if secret is not None:
            self.create(secret)
        name = job["metadata"]["name"]
        self.kubectl("wait", "--for=jsonpath={.status.ready}=0", f"job/{name}", "--timeout=60s")
        self.kubectl("wait", "--for=create", "pod", "-l", f"job-name={name}", "--timeout=60s")
        ended = "--for=jsonpath={.status.containerStatuses[0].state.terminated.finishedAt}"
        self.kubectl("wait", ended, "pod", "-l", f"job-name={name}", "--timeout=60s")
        (pod,) = json.loads(self.kubectl("get", "pods", "-o", "json", "-l", f"job-name={name}"))["items"]
        return dict(pod)

    def log(self, pod: dict[str, Any]) -> str:
        return self.kubectl("logs", pod["metadata"]["name"], "-c", "run")


@pytest.fixture(scope="module")
def restricted(cluster: Cluster) -> Iterator[Place]:
    place = Place(cluster, "restricted")
    yield place
    cluster.kubectl("delete", "namespace", place.name, "--wait=false")


def terminated(pod: dict[str, Any]) -> dict[str, Any]:
    (status,) = pod["status"]["containerStatuses"]
    state: dict[str, Any] = status["state"]["terminated"]
    return state


def test_a_command_runs_with_all_that_it_is_told_of_and_nothing_else(restricted: Place) -> None:
    script = """
    cat $SHUNTER_PARAMETERS; echo; id -u; printf '%s|' "$1" "$LITERAL" "$S" "$P"; echo
    [ -e /var/run/secrets/kubernetes.io ] || echo no account
    echo '{"made": 1}' > $SHUNTER_RESULT; env; exit 3
    """
    work = restricted.attempt(
        shell(script, "$$(HOME) $(SHUNTER_RUN_ID) $$$"),
        parameters={"city": "Zürich", "quoted": "a\\b\"'\n"},
        env={"LITERAL": "$(SHUNTER_POOL)$$"},
        pass_env=["P"],
        template={"secret_env": {"S": "hu$(sh)"}},
    )
    pod = restricted.run(work, {"P": "pa$$ed", "SHUNTER_TOKEN": "t"})
    lines = restricted.log(pod).splitlines()
    assert json.loads(lines[0]) == work.parameters
    assert lines[1] == "65532"
    assert lines[2] == "$$(HOME) $(SHUNTER_RUN_ID) $$$|$(SHUNTER_POOL)$$|hu$(sh)|pa$$ed|"
    assert lines[3] == "no account"
    assert not [one for one in lines[4:] if "TOKEN" in one]
    assert (terminated(pod)["exitCode"], terminated(pod)["message"]) == (3, '{"made": 1}\n')


def test_parameters_of_512_kib(restricted: Place) -> None:
    given = {"x": "y" * (512 * 1024 - len('{"x": ""}'))}
    script = "import json, os; print(len(json.load(open(os.environ['SHUNTER_PARAMETERS']))['x']))"
    pod = restricted.run(restricted.attempt(["python3", "-c", script], parameters=given))
    assert restricted.log(pod) == f"{len(given['x'])}\n"


CODE = """
def double(number: int):
    return number * 2

def large():
    return "x" * 5000

def fails():
    raise ValueError("ü" * 4000)
"""


@pytest.mark.parametrize("user", [65532, 0])
def test_a_python_function_leaves_its_value_or_its_exception_as_the_message(
    cluster: Cluster, restricted: Place, user: int
) -> None:
    """Also as root, who could write beside the file, but never put another in its place."""
    place = restricted if user else Place(cluster, "baseline")
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"app.py": CODE}}
    place.kubectl("apply", "-f", "-", text=json.dumps(code))
    template = {
        "user": user,
        "workdir": "/code",
        "mounts": [{"type": "config_map", "source": "code", "target": "/code"}],
    }
    pod = place.run(place.attempt(entrypoint="app:double", parameters={"number": 21}, template=template))
    assert (terminated(pod)["exitCode"], terminated(pod)["message"]) == (0, "42"), place.log(pod)
    pod = place.run(place.attempt(entrypoint="app.py:large", template=template))
    assert "message" not in terminated(pod)
    assert "it takes 5002 bytes as JSON, more than the 4095 allowed" in place.log(pod)
    pod = place.run(place.attempt(entrypoint="app:fails", template=template))
    assert terminated(pod)["exitCode"] == 1
    failure = json.loads(terminated(pod)["message"])
    assert failure["kind"] == "exception"
    assert failure["text"].startswith("ValueError: üüü")
    if place is not restricted:
        cluster.kubectl("delete", "namespace", place.name, "--wait=false")


def test_a_message_of_more_is_cut_to_more_than_the_limit(restricted: Place) -> None:
    """So that a cut one is always known by its length."""
    sidecars = [
        {"name": f"s{number}", "image": images.PYTHON, "command": ["sleep", "600"]} for number in range(3)
    ]
    for template, limit in (({}, 4095), ({"sidecars": sidecars}, 3071)):
        write = (
            'printf "%0*d" $((SHUNTER_RESULT_LIMIT + 500)) 7 > $SHUNTER_RESULT; echo $SHUNTER_RESULT_LIMIT'
        )
        pod = restricted.run(restricted.attempt(shell(write), template=template, grace=0))
        assert manifest.result_limit(pod["spec"]) == limit
        assert restricted.log(pod) == f"{limit}\n"
        assert len(terminated(pod)["message"]) == limit + 1


def test_a_job_ends_with_its_run_whatever_its_sidecars_do(restricted: Place) -> None:
    script = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    template = {
        "sidecars": [{"name": "beside", "image": images.PYTHON, "command": shell(script)}],
        "init_containers": [
            {
                "name": "before",
                "image": images.PYTHON,
                "command": shell("echo made > /shared/file"),
                "volumeMounts": [{"name": "mount-0", "mountPath": "/shared"}],
            }
        ],
        "mounts": [{"target": "/shared"}],
    }
    pod = restricted.run(restricted.attempt(["cat", "/shared/file"], template=template))
    assert restricted.log(pod) == "made\n"
    name = pod["metadata"]["labels"]["job-name"]
    restricted.kubectl("wait", "--for=condition=Complete", f"job/{name}", "--timeout=60s")


def test_an_image_without_a_shell(restricted: Place) -> None:
    """Nothing but the command is executed in it."""
    from tests.cluster.programs import PAUSE

    template = {"image": PAUSE, "pull_policy": "never", "read_only": True}
    pod = restricted.run(restricted.attempt(["/catatonit", "-V"], template=template))
    assert terminated(pod)["exitCode"] == 0, pod["status"]
    assert "catatonit" in restricted.log(pod)


@pytest.mark.parametrize("variable", sorted(set(ALL) - {"namespace"}))
def test_what_each_variable_makes_is_a_job(cluster: Cluster, restricted: Place, variable: str) -> None:
    """The API server takes it; strictly, so that a field of a wrong name would be refused."""
    template = {variable: ALL[variable]}
    if variable.endswith("_request"):
        template[variable.removesuffix("_request")] = ALL[variable.removesuffix("_request")]
    if variable == "mounts":
        template["mounts"] = [one for one in ALL["mounts"] if one.get("type") != "host_path"]
    work = restricted.attempt(["true"], template=template)
    made = restricted.dry_run(work)
    sent = manifest.job(work, manifest.read_template(work), "a1", {})
    assert restricted.dry_run(work)["kind"] == "Job"
    assert lost(sent, made) == []


def lost(sent: Any, made: Any, path: str = "") -> list[str]:
    """What was sent and is not in what was made; quantities and the like may be written otherwise."""
    if isinstance(sent, dict):
        return [
            one
            for key, value in sent.items()
            for one in ([f"{path}.{key}"] if key not in made else lost(value, made[key], f"{path}.{key}"))
        ]
    if isinstance(sent, list):
        if len(sent) != len(made):
            return [path]
        return [
            one
            for number, (a, b) in enumerate(zip(sent, made, strict=True))
            for one in lost(a, b, f"{path}.{number}")
        ]
    return []


def test_what_is_not_restricted_is_not_let_in(restricted: Place) -> None:
    """A Job is made, and its pod refused: in the controller's words, which are an event."""
    for template, words in (
        ({"user": 0}, "runAsNonRoot"),
        ({"mounts": [{"type": "host_path", "source": "/", "target": "/host"}]}, "hostPath"),
        ({"cap_add": ["SYS_ADMIN"]}, "unrestricted capabilities"),
        ({"patch": {"spec": {"template": {"spec": {"hostNetwork": True}}}}}, "host namespaces"),
    ):
        work = restricted.attempt(["true"], template=template)
        job = restricted.create(manifest.job(work, manifest.read_template(work), "a1", {}))
        name = job["metadata"]["name"]
        chosen = f"involvedObject.name={name},reason=FailedCreate"
        restricted.kubectl("wait", "--for=create", "event", f"--field-selector={chosen}", "--timeout=60s")
        (event, *_) = json.loads(
            restricted.kubectl("get", "events", "-o", "json", f"--field-selector={chosen}")
        )["items"]
        assert words in event["message"]
        restricted.kubectl("delete", "job", name, "--wait=false")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ({"patch": {"spec": {"template": {"spec": {"dnsPolicy": "Sometimes"}}}}}, "dnsPolicy: Unsupported value"),
        ({"tolerations": [{"key": "a", "operator": "Maybe"}]}, "operator: Unsupported value"),
        ({"cpu": 1, "patch": {"spec": {"template": {"spec": {"containers": [
            {"name": "run", "resources": {"requests": {"cpu": "2"}}}]}}}}}, "must be less than or equal to cpu limit"),
    ],
)  # fmt: skip
def test_values_are_the_api_servers_to_judge(restricted: Place, template: dict[str, Any], told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        restricted.dry_run(restricted.attempt(["true"], template=template))


PAGE = Path(__file__).parents[2] / "docs/kubernetes-pools.md"


async def _reach(launcher: KubernetesLauncher, namespace: str) -> str:
    try:
        return await launcher.reach({"namespace": namespace})
    finally:
        await launcher.close()


def test_the_rights_on_the_page_are_those_that_an_agent_needs(restricted: Place, tmp_path: Path) -> None:
    """With the Role as it stands there everything that an agent does is done, and a Secret cannot be read."""
    (role,) = re.findall(r"```yaml\n(apiVersion: rbac.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    made = json.loads(restricted.kubectl("create", "-o", "json", "-f", "-", text=role))
    stated = {
        (group, resource, verb)
        for rule in made["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert stated == {(group, resource, verb) for group, resource, verbs in NEEDED for verb in verbs}
    config = tmp_path / "kubeconfig"
    restricted.cluster.account(config, "agent", made["rules"], namespace=restricted.name)
    agent = Cluster(config)
    work = restricted.attempt(["echo", "hi"], template={"secret_env": {"S": "hush"}})
    template = manifest.read_template(work)
    job = json.loads(
        agent.kubectl(
            "create", "-o", "json", "-f", "-", text=json.dumps(manifest.job(work, template, "a1", {}))
        )
    )
    secret = manifest.secret(work, template, {}, job["metadata"]["uid"], _prepared(work))
    agent.kubectl("create", "-f", "-", text=json.dumps(secret))
    runner = manifest.runner(restricted.name)
    runner["metadata"]["name"] += "-of-agent"
    agent.kubectl("create", "-f", "-", text=json.dumps(runner))
    name = job["metadata"]["name"]
    agent.kubectl("wait", "--for=condition=Complete", f"job/{name}", "--timeout=60s")
    agent.kubectl(
        "patch", "job", name, "--type=merge", "-p", json.dumps({"metadata": manifest.held_by("a2", 2)})
    )
    found = agent.get("jobs", "-l", manifest.SELECTOR + f"={work.run}")["items"][0]["metadata"]
    assert (found["labels"][manifest.AGENT], found["annotations"][manifest.EPOCH]) == ("a2", "2")
    assert found["labels"][manifest.RUN] == str(work.run)
    (pod,) = agent.get("pods", "-l", f"{manifest.RUN}={work.run}")["items"]
    pods = f"/api/v1/namespaces/{restricted.name}/pods"
    assert agent.kubectl("get", "--raw", f"{pods}/{pod['metadata']['name']}/log") == "hi\n"
    agent.kubectl("get", "--raw", f"/api/v1/namespaces/{restricted.name}/events?limit=1")
    launcher = KubernetesLauncher(environ={"KUBECONFIG": str(config)})
    assert asyncio.run(_reach(launcher, restricted.name)), "no agent could take over from another"
    with pytest.raises(RuntimeError, match=r"cannot get resource .secrets"):
        agent.get("secret", name)
    assert restricted.kubectl("get", "secret", name, "-o", "name")
    agent.kubectl("delete", "job", name, "--cascade=background")
    restricted.kubectl(
        "wait", "--for=delete", f"secret/{name}", f"pod/{pod['metadata']['name']}", "--timeout=60s"
    )
