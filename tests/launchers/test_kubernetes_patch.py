"""Strategic merge: kubectl is asked what a patch makes of a Job."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shunter_work_pools.contracts.kubernetes_check import FaultyManifest
from shunter_work_pools.contracts.kubernetes_patch import merged
from tests.cluster.cluster import Cluster

Document = dict[str, Any]

JOB: Document = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "x", "labels": {"a": "1", "b": "2"}},
    "spec": {
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"key": "t1", "operator": "Exists"}, {"key": "t2", "operator": "Exists"}],
                "imagePullSecrets": [{"name": "p1"}, {"name": "p2"}],
                "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["h1"]}],
                "topologySpreadConstraints": [
                    {"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
                ],
                "volumes": [{"name": "v1", "emptyDir": {}}, {"name": "v2", "emptyDir": {"medium": "Memory"}}],
                "containers": [
                    {
                        "name": "run",
                        "image": "x",
                        "command": ["a", "b"],
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}, {"name": "C", "value": "3"}],
                        "volumeMounts": [{"name": "v1", "mountPath": "/one"}, {"name": "v2", "mountPath": "/two"}],
                        "ports": [{"containerPort": 80, "name": "http"}],
                        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                    }
                ],
            }
        }
    },
}  # fmt: skip


def in_pod(**fields: Any) -> Document:
    return {"spec": {"template": {"spec": fields}}}


def in_run(**fields: Any) -> Document:
    return in_pod(containers=[{"name": "run", **fields}])


PATCHES = {
    "nothing": {},
    "labels": {"metadata": {"labels": {"b": None, "c": "3"}}},
    "map replaced": {"metadata": {"labels": {"$patch": "replace", "c": "3"}}},
    "map deleted": in_pod(nodeSelector={"$patch": "delete"}),
    "field deleted": in_pod(nodeSelector=None),
    "atomic list": in_pod(tolerations=[{"key": "t3", "operator": "Exists"}]),
    "env": in_run(env=[{"name": "B", "value": "9"}, {"name": "D", "value": "4"}]),
    "env in another order": in_run(env=[{"name": "C", "value": "c"}, {"name": "A", "value": "a"}]),
    "env new one first": in_run(env=[{"name": "D", "value": "4"}, {"name": "B", "value": "b"}]),
    "env deleted": in_run(env=[{"name": "B", "$patch": "delete"}, {"name": "E", "value": "5"}]),
    "env replaced": in_run(env=[{"$patch": "replace"}, {"name": "E", "value": "5"}]),
    "env all replaced by none": in_run(env=[{"$patch": "replace"}]),
    "value to source": in_run(env=[{"name": "A", "value": None, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
    "command": in_run(command=["c"]),
    "mounts": in_run(volumeMounts=[{"mountPath": "/two", "readOnly": True}, {"mountPath": "/three", "name": "v1"}]),
    "ports": in_run(ports=[{"containerPort": 80, "name": "web"}, {"containerPort": 81}]),
    "limits": in_run(resources={"limits": {"memory": None}, "requests": {"cpu": "100m"}}),
    "second container": in_pod(containers=[{"name": "more", "image": "y", "env": [{"name": "A", "value": None}]}]),
    "init containers where there were none": in_pod(initContainers=[{"name": "i", "image": "y", "tty": None}]),
    "volume of another kind": in_pod(volumes=[{"name": "v1", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]),
    "volume deleted": in_pod(volumes=[{"name": "v1", "$patch": "delete"}]),
    "pull secrets": in_pod(imagePullSecrets=[{"name": "p3"}]),
    "hosts": in_pod(hostAliases=[{"ip": "10.0.0.1", "hostnames": ["h2"]}, {"ip": "10.0.0.2", "hostnames": ["h3"]}]),
    "spread": in_pod(topologySpreadConstraints=[{"topologyKey": "zone", "maxSkew": 5}]),
    "deep where there was nothing": in_pod(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}}),
    "null where there was nothing": in_pod(dnsConfig={"searches": ["a"], "nameservers": None}),
    "a directive where there was nothing": in_pod(dnsConfig={"$patch": "replace", "searches": ["a"]}),
    "kept fields": in_run(resources={"$retainKeys": ["requests"], "requests": {"cpu": "1"}}),
}  # fmt: skip


def asked(cluster: Cluster, document: Document, patch: Document) -> Document:
    """What kubectl makes of it; with an empty patch: how it writes the document itself."""
    words = ("patch", "--local", "--type=strategic", "-o", "json", "-f", "-", "-p", json.dumps(patch))
    made = json.loads(cluster.kubectl(*words, text=json.dumps(document)))
    answer: Document = said(made)
    return answer


def said(value: Any) -> Any:
    """Without what kubectl leaves in what is new in a list: nulls, which are nothing to an API server, and
    directives, which are wrong there."""
    if isinstance(value, dict):
        return {key: said(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [said(one) for one in value if not (isinstance(one, dict) and "$patch" in one)]
    return value


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_makes_what_kubectl_makes_of_it(cluster: Cluster, name: str) -> None:
    ours = merged(JOB, PATCHES[name])
    assert asked(cluster, ours, {}) == asked(cluster, JOB, PATCHES[name])


NAMES = st.sampled_from(["A", "B", "C", "D", "E"])
PATHS = st.sampled_from(["/one", "/two", "/three"])
TEXT = st.sampled_from(["1", "2", ""])


def some(elements: st.SearchStrategy[Document], key: str) -> st.SearchStrategy[list[Document]]:
    """A list of a patch, now and then one that replaces or deletes."""
    listed = st.lists(elements, max_size=4, unique_by=lambda one: one[key])
    return st.one_of(listed, listed.map(lambda found: [{"$patch": "replace"}, *found]))


def named(
    key: str, names: st.SearchStrategy[str], **fields: st.SearchStrategy[Any]
) -> st.SearchStrategy[Document]:
    kept = st.fixed_dictionaries({key: names}, optional=fields)
    gone = st.fixed_dictionaries({key: names, "$patch": st.just("delete")})
    return st.one_of(kept, kept, gone)


RUN = st.fixed_dictionaries(
    {"name": st.sampled_from(["run", "other"])},
    optional={
        "env": some(named("name", NAMES, value=st.one_of(TEXT, st.none())), "name"),
        "volumeMounts": some(named("mountPath", PATHS, name=TEXT, readOnly=st.booleans()), "mountPath"),
        "command": st.one_of(st.none(), st.lists(TEXT, max_size=2)),
        "resources": st.dictionaries(
            st.sampled_from(["limits", "requests"]),
            st.one_of(
                st.none(), st.dictionaries(st.sampled_from(["cpu", "memory"]), st.sampled_from(["1", None]))
            ),
        ),
    },
)
POD = st.fixed_dictionaries(
    {},
    optional={
        "containers": some(RUN, "name"),
        "initContainers": some(RUN, "name"),
        "volumes": some(
            named("name", st.sampled_from(["v1", "v2", "v3"]), emptyDir=st.one_of(st.none(), st.just({}))),
            "name",
        ),
        "imagePullSecrets": some(named("name", st.sampled_from(["p1", "p2", "p3"])), "name"),
        "nodeSelector": st.one_of(st.none(), st.dictionaries(NAMES, st.one_of(TEXT, st.none()))),
        "tolerations": st.one_of(st.none(), st.lists(st.fixed_dictionaries({"key": NAMES}), max_size=2)),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pod=POD)
def test_any_patch_makes_what_kubectl_makes_of_it(cluster: Cluster, pod: Document) -> None:
    patch = in_pod(**pod)
    ours = merged(JOB, patch)
    assert asked(cluster, ours, {}) == asked(cluster, JOB, patch)


@given(pod=POD)
def test_neither_document_nor_patch_is_changed(pod: Document) -> None:
    patch = in_pod(**pod)
    before = copy.deepcopy((JOB, patch))
    merged(JOB, patch)
    assert (JOB, patch) == before


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        ({"spec": {"$patch": "remove"}}, r"spec\.\$patch: 'remove' is no directive"),
        (in_run(env=[{"name": "A", "$patch": "drop"}]), r"env\.\$patch: 'drop' is no directive"),
        (
            in_run(resources={"$retainKeys": ["limits"], "requests": {}}),
            r"requests is set and not in \$retainKeys",
        ),
    ],
)
def test_a_directive_that_says_nothing_is_refused(patch: Document, told: str) -> None:
    with pytest.raises(FaultyManifest, match=told):
        merged(JOB, patch)
