"""Agents that a real Kubernetes cluster vouches for: tokens made by its API server, checked by its keys."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from shunter_work_pools import trust
from shunter_work_pools.client import Client
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import Unauthenticated
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.contracts.trust import parsed
from shunter_work_pools.trust import Trusted
from tests.agents.real_server import Site, site
from tests.cli.console import Console, console, until
from tests.cluster.cluster import Cluster
from tests.engines.docker import IMAGE
from tests.joining.signing import OTHER_KEY, token
from tests.patience import SOON

EC_KEY = ec.generate_private_key(ec.SECP256R1())

pytestmark = pytest.mark.timeout(240)


@dataclass
class Accounts:
    """A namespace with service accounts: ``agent``, ``other`` and ``reader``, which may read the cluster's keys.

    Attributes:
        rule: of ``agent``, where the server is outside of the cluster.
    """

    cluster: Cluster
    namespace: str
    folder: Path
    rule: dict[str, Any]

    def token(self, account: str = "agent", audience: str = "shunter", *more: str) -> str:
        """One that the API server makes."""
        words = ("create", "token", account, "-n", self.namespace, f"--audience={audience}", *more)
        return self.cluster.kubectl(*words).strip()


@pytest.fixture(scope="module")
def accounts(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Accounts]:
    folder, namespace = tmp_path_factory.mktemp("accounts"), f"joining-{uuid4().hex[:8]}"
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        *(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
            for name in ("agent", "other", "reader")
        ),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": namespace},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:auth-delegator",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
        },
    )
    seen = json.loads(cluster.kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json"))
    its = seen["clusters"][0]["cluster"]
    (folder / "ca.crt").write_bytes(base64.b64decode(its["certificate-authority-data"]))
    (folder / "token").write_text(cluster.kubectl("create", "token", "reader", "-n", namespace))
    rule = {
        "serviceAccount": f"{namespace}/agent",
        "pools": ["made-by-agent"],
        "managePools": True,
        "apiServer": its["server"],
        "caFile": str(folder / "ca.crt"),
        "tokenFile": str(folder / "token"),
    }
    yield Accounts(cluster, namespace, folder, rule)
    cluster.kubectl("delete", "clusterrolebinding", namespace)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="module")
def here(accounts: Accounts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server outside of the cluster, which pods reach as well."""
    flags = {
        "server.trust": json.dumps([accounts.rule]),
        "server.host": "0.0.0.0",
        "server.allow_plaintext": "true",
        "server.allowed_hosts": "*",
    }
    with site(tmp_path_factory.mktemp("trusting"), flags) as one:
        yield one


def refused(here: Site, text: str) -> str:
    with Client(here.client.api_url, text) as client, pytest.raises(Unauthenticated) as why:
        client.whoami()
    assert text not in why.value.detail
    return why.value.detail


def test_tokens_of_the_cluster(here: Site, accounts: Accounts) -> None:
    with Client(here.client.api_url, accounts.token()) as client:
        me = client.whoami()
    assert (me.name, me.pools, me.manage_pools) == (f"{accounts.namespace}/agent", ["made-by-agent"], True)
    assert "audience" in refused(here, accounts.token("agent", "https://kubernetes.default.svc"))
    assert "nobody who is trusted" in refused(here, accounts.token("other"))
    assert "audience" in refused(here, (accounts.folder / "token").read_text().strip())
    head, body, signature = accounts.token().split(".")
    other = accounts.token("other").split(".")
    assert "signature" in refused(here, f"{head}.{body}.{other[2]}")
    assert "signature" in refused(here, f"{head}.{other[1]}.{signature}")
    now = time.time()
    forged = {"iss": "https://kubernetes.default.svc", "exp": now + 60, "nbf": now, "iat": now}
    subject = f"system:serviceaccount:{accounts.namespace}:agent"
    kid = json.loads(base64.urlsafe_b64decode(head + "=="))["kid"]
    assert "alg" in refused(here, token(OTHER_KEY, kid=kid, sub=subject, **forged))
    assert "signature" in refused(here, token(EC_KEY, "ES256", kid=kid, sub=subject, **forged))
    assert "does not have" in refused(here, token(EC_KEY, "ES256", kid="mine", sub=subject, **forged))


def test_an_agent_serves_by_nothing_but_its_token(
    here: Site, accounts: Accounts, tmp_path: Path, module_cache: Path
) -> None:
    """In an empty home. It makes its pool, and goes by the token that is in the file at each moment."""
    file, template = tmp_path / "token", tmp_path / "template.json"
    file.write_text(accounts.token())
    template.write_text("{}")
    far: Console = console(tmp_path / "far", tmp_path / "folder", 1, module_cache)
    far = far.having(SHUNTER_API_URL=here.client.api_url, SHUNTER_TOKEN_FILE=str(file))
    pool = ("--pool", "made-by-agent", "--create-pool", "process", "--template-file", str(template))
    (tmp_path / "far").mkdir()
    log = tmp_path / "far" / "log"
    with log.open("wb") as out:
        agent = far.spawn("agent", "start", "--name", "in-cluster", *pool, stdout=out, stderr=out)
    try:
        until(lambda: "in-cluster" in [one.name for one in here.client.list_agents().agents])
        assert here.client.get_pool("made-by-agent").type == "process"

        def completes() -> None:
            run = here.client.create_run(RunRequest(deployment="quick")).id
            assert here.ended(run).state == "Completed"

        here.client.deploy("quick", DeploymentSpec(work=Work(command=["true"]), pool="made-by-agent"))
        completes()
        fresh = accounts.token()
        swap(file, fresh)
        completes()
        assert not list((tmp_path / "far").rglob("credential*")), "nothing secret is kept"
        taken = far("agent", "start", "--pool", "made-by-agent", "--name", "in-cluster", "--once")
        assert taken.code == 2, "one at a time in a home"
    finally:
        agent.terminate()
        assert agent.wait(SOON) == 0, log.read_text()


def swap(file: Path, text: str) -> None:
    """As the kubelet replaces it: by another file."""
    draft = file.with_suffix(".new")
    draft.write_text(text)
    draft.replace(file)


async def test_inside_the_cluster_nothing_has_to_be_said(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pod of the account ``reader``: where the API server is, its authority and its own token."""
    monkeypatch.setattr(trust, "OWN", accounts.folder)
    host, _, port = accounts.rule["apiServer"].removeprefix("https://").rpartition(":")
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    rule = {"serviceAccount": f"{accounts.namespace}/agent", "pools": ["cluster"]}
    by = Trusted(parsed([rule]), environ)
    found = await by.identify(accounts.token())
    assert found is not None
    assert found.account == f"{accounts.namespace}/agent"
    await by.close()


async def test_a_review_knows_what_the_keys_cannot(accounts: Accounts) -> None:
    """A token that is bound to something which is gone: its signature is as good as ever."""
    secret = {"name": "bound", "namespace": accounts.namespace}
    accounts.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": secret})
    bound = accounts.token("agent", "shunter", "--bound-object-kind=Secret", "--bound-object-name=bound")
    keys_only, reviewing = (
        Trusted(parsed([accounts.rule | {"review": review}]), {}) for review in (False, True)
    )
    assert await reviewing.identify(bound)
    accounts.cluster.kubectl("delete", "secret", "bound", "-n", accounts.namespace)

    async def is_refused() -> bool:  # the API server itself remembers for ten seconds what it found
        try:
            await reviewing.identify(bound)
        except Unauthenticated as exc:
            return "does not hold any more" in exc.detail
        return False

    async with asyncio.timeout(SOON):
        while not await is_refused():  # noqa: ASYNC110
            await asyncio.sleep(0.5)
    assert await keys_only.identify(bound)
    await keys_only.close()
    await reviewing.close()


def address_for(accounts: Accounts) -> str:
    """This machine's address, as the cluster sees it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((urlsplit(accounts.rule["apiServer"]).hostname, 1))
        return str(probe.getsockname()[0])


def test_a_pod_shows_its_projected_token(here: Site, accounts: Accounts) -> None:
    script = (
        "import json, os, urllib.request as r; token = open('/var/run/secrets/shunter/token').read();"
        f"url = 'http://{address_for(accounts)}:{here.port}/api/v1/whoami';"
        "print(r.urlopen(r.Request(url, headers={'Authorization': 'Bearer ' + token}), timeout=20).read().decode())"
    )
    source = {"serviceAccountToken": {"audience": "shunter", "expirationSeconds": 600, "path": "token"}}
    spec = {
        "serviceAccountName": "agent",
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "containers": [
            {
                "name": "agent",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python3", "-c", script],
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/shunter"}],
            }
        ],
        "volumes": [{"name": "token", "projected": {"sources": [source]}}],
    }
    where = ("-n", accounts.namespace)
    metadata = {"name": "pod", "namespace": accounts.namespace}
    accounts.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def phase() -> str:
        return str(accounts.cluster.get("pod", "pod", *where)["status"]["phase"])

    until(lambda: phase() in ("Succeeded", "Failed"), 90)
    said = accounts.cluster.kubectl("logs", "pod", *where)
    assert phase() == "Succeeded", said
    assert json.loads(said)["name"] == f"{accounts.namespace}/agent"
