"""Parts of manifests are checked without a cluster, by a table that is made from the package kubernetes."""

from __future__ import annotations

from typing import Any

import pytest

from shunter_work_pools.contracts.kubernetes_check import MERGE_KEYS, FaultyManifest, check, fields_of
from shunter_work_pools.contracts.kubernetes_fields import FIELDS
from tests.contracts import kubernetes_client_fields


def test_the_table_is_that_of_the_package() -> None:
    written = kubernetes_client_fields.PAGE.read_text("utf-8")
    assert written == kubernetes_client_fields.page(), (
        "stale: python -m tests.contracts.kubernetes_client_fields"
    )


def test_every_type_and_every_merge_key_is_in_the_table() -> None:
    plain = {"str", "int", "bool", "number", "any", "quantity"}
    kinds = {kind.strip("[]{}") for name in FIELDS for kind in fields_of(name).values()}
    assert kinds <= plain | set(FIELDS)
    for place, key in MERGE_KEYS.items():
        kind, field = place.split(".")
        listed = fields_of(kind)[field]
        assert listed.startswith("["), place
        assert key in fields_of(listed.strip("[]")), place


def told(value: Any, kind: str = "Job", *, patch: bool = True) -> list[tuple[str, str, str]]:
    with pytest.raises(FaultyManifest) as caught:
        check(value, kind, patch=patch)
    return [(".".join(map(str, path)), detail, remedy) for path, detail, remedy in caught.value.faults]


def pod(**fields: Any) -> dict[str, Any]:
    return {"spec": {"template": {"spec": fields}}}


@pytest.mark.parametrize(
    ("patch", "path", "detail", "remedy"),
    [
        (pod(hostAliazes=[]), "spec.template.spec.hostAliazes", "is not a field of PodSpec", "Did you mean hostAliases?"),
        ({"spec": {"tempalte": {}}}, "spec.tempalte", "is not a field of JobSpec", "Did you mean template?"),
        (pod(containers=[{"name": "run", "comand": ["x"]}]), "spec.template.spec.containers.0.comand", "is not a field of Container", "command"),
        (pod(containers=[{"image": "x"}]), "spec.template.spec.containers.0", "has no name", "$patch: replace"),
        (pod(containers={}), "spec.template.spec.containers", "must be a list, not an object", ""),
        (pod(hostNetwork="yes"), "spec.template.spec.hostNetwork", "must be true or false, not 'yes'", ""),
        (pod(priority=True), "spec.template.spec.priority", "must be a whole number, not True", ""),
        (pod(priority=1.5), "spec.template.spec.priority", "must be a whole number", ""),
        (pod(nodeSelector={"a": 1}), "spec.template.spec.nodeSelector.a", "must be a string, not 1", ""),
        (pod(overhead={"cpu": "lots"}), "spec.template.spec.overhead.cpu", "must be a quantity, as in 500m or 2Gi", ""),
        (pod(affinity=[]), "spec.template.spec.affinity", "must be an object (Affinity), not a list", ""),
        ({"status": {}}, "status", "is not a field of Job", ""),
        ([], "", "must be an object (Job), not a list", ""),
    ],
)  # fmt: skip
def test_a_wrong_patch_is_told_with_its_place(patch: Any, path: str, detail: str, remedy: str) -> None:
    ((where, what, do),) = told(patch)
    assert where == path
    assert detail in what
    assert remedy in do


def test_all_that_is_wrong_is_told() -> None:
    assert len(told(pod(hostAliazes=[], priority="x", containers=[{"name": "run", "img": ""}]))) == 3


def test_what_there_is_passes() -> None:
    check(
        pod(
            containers=[
                {
                    "name": "run",
                    "resources": {"limits": {"cpu": 1, "memory": "2Gi", "x.com/y": 0.5}},
                    "livenessProbe": {"httpGet": {"port": "http"}},
                    "env": [{"name": "A", "$patch": "delete"}],
                    "startupProbe": None,
                }
            ],
            volumes=[{"$patch": "replace"}, {"name": "v", "emptyDir": {"sizeLimit": 100}}],
            nodeSelector={"a": None},
            securityContext={"$retainKeys": ["runAsUser"]},
        ),
        "Job",
        patch=True,
    )


def test_null_and_directives_are_of_patches_alone() -> None:
    assert told({"key": None}, "Toleration", patch=False)[0][1] == "must be a string, not null"
    assert "is not a field" in told({"$patch": "delete"}, "Toleration", patch=False)[0][1]
