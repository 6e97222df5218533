"""A real API server takes all that the charts make of each file of values, and has nothing to warn of.

Kinds of others (KEDA's, the Gateway API's, the Prometheus Operator's) are defined in it as their makers do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.charts.building import Tools
from tests.charts.charts import CHARTS, EXAMPLES, Document, example, render
from tests.cluster.cluster import Cluster

_DEFINED = (
    "httproutes.gateway.networking.k8s.io",
    "podmonitors.monitoring.coreos.com",
    "scaledjobs.keda.sh",
    "scaledobjects.keda.sh",
    "servicemonitors.monitoring.coreos.com",
    "triggerauthentications.keda.sh",
)


@pytest.fixture(scope="module")
def kinds(cluster: Cluster, chart_tools: Tools) -> Iterator[None]:
    """Kinds of others, as long as these tests need them."""
    names = [f"customresourcedefinition/{name}" for name in _DEFINED]
    # On the server's side: some are longer than the annotation of a client may be.
    cluster.kubectl("apply", "--server-side", "-f", str(chart_tools.kinds))
    cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
    yield
    cluster.kubectl("delete", *names, "--wait=false")


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, kinds: None) -> Iterator[str]:
    """Its API server warns of every pod that the Pod Security Standard *restricted* would refuse."""
    name = f"accepted-{os.getpid()}"
    label = {"pod-security.kubernetes.io/warn": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": label}})
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def try_out(cluster: Cluster, namespace: str, documents: list[Document]) -> str:
    """Have the API server check and complete objects, and keep none of them; what it says of each.

    A pod is only taken where what it names is there: that is made before, and removed afterwards.
    """
    named = [each for one in documents if one["kind"] == "Pod" for each in _named(one["spec"], namespace)]
    if named:
        cluster.apply(*named)
    try:
        listed = {"apiVersion": "v1", "kind": "List", "items": documents}
        words = ["--dry-run=server", "--validate=strict", "--warnings-as-errors", "-n", namespace, "-f", "-"]
        return cluster.kubectl("apply", *words, text=json.dumps(listed))
    finally:
        for one in named:
            cluster.kubectl("delete", one["kind"], one["metadata"]["name"], "-n", namespace)


def _named(spec: Document, namespace: str) -> Iterator[Document]:
    if name := spec.get("serviceAccountName"):
        yield {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace},
        }
    if name := spec.get("runtimeClassName"):
        yield {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": name},
            "handler": "runc",
        }
    if (name := spec.get("priorityClassName", "system-")) and not name.startswith("system-"):
        yield {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": 1,
        }


def here(document: Document, namespace: str) -> Document:
    """An object of a namespace that there is not, as if it were in this one."""
    if "namespace" in document["metadata"]:
        document["metadata"]["namespace"] = namespace
    return document


@pytest.mark.parametrize(("name", "file"), EXAMPLES)
def test_it_is_taken_without_a_warning(
    cluster: Cluster, namespace: str, helm: Path, name: str, file: str
) -> None:
    made = render(helm, CHARTS / name, example(name, file), namespace=namespace).documents
    said = try_out(cluster, namespace, [here(one, namespace) for one in made])
    assert said.count("(server dry run)") == len(made)


def test_every_kind_of_others_is_among_what_was_taken(helm4: Path) -> None:
    made = {
        one["kind"]
        for name, file in EXAMPLES
        for one in render(helm4, CHARTS / name, example(name, file)).documents
    }
    assert {
        "HTTPRoute",
        "PodMonitor",
        "ScaledJob",
        "ScaledObject",
        "ServiceMonitor",
        "TriggerAuthentication",
    } <= made


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (
            {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "spec": {"triggers": 1}},
            "spec.triggers",
        ),
        (
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "spec": {"rules": [{"backends": []}]},
            },
            "unknown field",
        ),
        (
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "spec": {"containers": [{"name": "main", "image": "localhost/python:3.11"}]},
            },
            "would violate PodSecurity",
        ),
    ],
)
def test_what_is_wrong_is_not_taken(cluster: Cluster, namespace: str, document: Document, told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        try_out(cluster, namespace, [{**document, "metadata": {"name": "wrong"}}])
