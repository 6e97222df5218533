"""A namespace with rules: restricted pods alone, a quota, no network but what a policy lets through; and nothing left of it all."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from shunter_work_pools.contracts.runs import RunRequest
from tests.cli.console import until
from tests.cluster.cluster import Cluster
from tests.engines.docker import IMAGE
from tests.helm.conftest import NewPlace
from tests.helm.releases import AGENT, ROOT, SERVER, Place, Reached
from tests.helm.runs import ended, output

pytestmark = pytest.mark.timeout(400)

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
#: What a cluster makes and changes by itself.
ITS_OWN = re.compile(r"events|endpoints|endpointslices|leases|pods\.metrics|componentstatuses|podmetrics")


@pytest.fixture
def place(new_place: NewPlace, prefix: str) -> Iterator[Place]:
    """The namespace: pods without requests and limits are refused, and what no policy allows does not pass."""
    with new_place(f"{prefix}-restricted", helm=3, labels=RESTRICTED) as one:
        hard = {
            "requests.cpu": "2",
            "requests.memory": "2Gi",
            "limits.cpu": "12",
            "limits.memory": "4Gi",
            "pods": "12",
        }
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": hard}}
        policy = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
        }
        metadata = {"name": "rules", "namespace": one.namespace}
        one.terminal.cluster.apply({**quota, "metadata": metadata}, {**policy, "metadata": metadata})
        one.kubectl("wait", "--for=jsonpath={.status.hard.pods}=12", "resourcequota/rules", "--timeout=60s")
        yield one


def test_install_run_and_uninstall_in_a_namespace_with_rules(place: Place, cluster: Cluster) -> None:
    before = all_objects(cluster, place.namespace)
    trust = [{"serviceAccount": "agents-shunter-agent", "pools": ["cluster"], "managePools": True}]
    place.install("server", SERVER, {"trust": trust})
    agents = {
        "api": {"url": "http://server-shunter-server:4400/api"},
        "pools": ["cluster"],
        "match": ["k8s"],
        "template": {"image": IMAGE, "cpu": 0.2, "memory": "64Mi"},
    }
    place.install("agents", AGENT, agents)
    for release in ("server", "agents"):
        place.helm("test", release, "--timeout", "120s")
    with place.reached() as server:
        completes(server, "hi", "--", "sh", "-c", "echo hi")
        completes(server, "entry", "platform:machine", "--no-check")
        assert reaches_nothing(server)
        assert waits_for_the_quota(server)
    for release in ("agents", "server"):
        place.helm("uninstall", release, "--wait")
    kept = ("PersistentVolumeClaim", "server-shunter-server"), ("Secret", "server-shunter-server")
    wanted = {f"{kind}/{place.namespace}/{name}" for kind, name in kept}
    (runner,) = {one["metadata"]["name"] for one in place.get("configmaps")["items"]} - {"kube-root-ca.crt"}
    assert runner.startswith("shunter-runner-")
    wanted.add(f"ConfigMap/{place.namespace}/{runner}")
    volume = place.get("pvc", kept[0][1])["spec"]["volumeName"]
    wanted.add(f"PersistentVolume//{volume}")
    until(lambda: all_objects(cluster, place.namespace) - before == wanted, 30)
    told = [(ROOT / chart / "UPGRADING.md").read_text() for chart in (SERVER, AGENT)]
    assert all(word in told[0] for word in ("`pvc server-shunter-server`", "`secret server-shunter-server`"))
    assert "shunter-runner-" in told[1]


def completes(server: Reached, name: str, *words: str) -> None:
    """A deployment for the tag, to the good end of a run."""
    server.shunter.ok("deploy", "--name", name, "--tag", "k8s", *words)
    run = server.shunter.ok("run", "start", name, "--quiet").text.strip()
    server.shunter.ok("run", "wait", run, "--timeout", "90s", timeout=100)


def reaches_nothing(server: Reached) -> bool:
    """A run has the namespace's policy, not that of the charts: not even the API server answers it."""
    code = "import os, socket; socket.create_connection((os.environ['KUBERNETES_SERVICE_HOST'], 443), 3)"
    server.shunter.ok("deploy", "--name", "calls", "--tag", "k8s", "--", "python3", "-c", code)
    run = str(server.client.create_run(RunRequest(deployment="calls")).id)
    return ended(server, run).cause == "exit_code" and b"TimeoutError" in output(server, run)


def waits_for_the_quota(server: Reached) -> bool:
    """More than the namespace may have is asked for: the run waits, and people read why."""
    server.shunter.ok("deploy", "--name", "large", "--tag", "k8s", "--var", "cpu=20", "--", "true")
    run = str(server.client.create_run(RunRequest(deployment="large")).id)
    until(lambda: "exceeded quota" in server.client.explain_run(run).model_dump_json(), 60)
    server.client.cancel_run(run)
    return ended(server, run).state == "Cancelled"


def all_objects(cluster: Cluster, namespace: str) -> set[str]:
    """``KIND/NAMESPACE/NAME`` of all in a namespace, and of all that is in none, but for what a cluster has by itself."""
    found: set[str] = set()
    for scope, where in (("true", ("-n", namespace)), ("false", ())):
        words = ("api-resources", "--verbs=list", f"--namespaced={scope}", "-o", "name")
        kinds = [one for one in cluster.kubectl(*words).split() if not ITS_OWN.match(one)]
        path = '{range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}{"\\n"}{end}'
        found |= set(cluster.kubectl("get", ",".join(kinds), *where, "-o", f"jsonpath={path}").split())
    return found
