"""What the chart for the server takes as settings is what the server has; and what holds for all that it makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools.contracts.settings import SETTINGS
from tests.charts.charts import CHARTS, EXAMPLES, Document, containers, example, read, render

CHART = CHARTS / "shunter-server"
#: Settings that the chart gives by other values, or that have one value in a pod.
_OTHERWISE = {
    *("server.host", "server.port", "server.allowed_hosts", "server.allow_plaintext", "server.trust"),
    *("server.database_url", "server.secret_keys", "server.tls_cert", "server.tls_key"),
    *("server.oidc_issuer", "server.oidc_client_id", "server.oidc_scopes", "server.oidc_roles"),
}
FILES = [file for name, file in EXAMPLES if name == CHART.name]


def _described() -> dict[str, Any]:
    """Setting -> what the schema says of it."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    groups = schema["definitions"]["settings"]["properties"]
    return {
        f"{group}.{name}": described
        for group, of_group in groups.items()
        for name, described in of_group["properties"].items()
    }


def test_every_setting_of_the_server_can_be_set_by_its_name() -> None:
    wanted = {name for name in SETTINGS if name.startswith(("server.", "keep.", "log."))}
    assert wanted >= _OTHERWISE
    assert set(_described()) == wanted - _OTHERWISE


def test_the_server_takes_what_the_chart_makes_of_settings(helm: Path) -> None:
    given = read(example(CHART.name, "settings-values.yaml"))["settings"]
    assert {f"{group}.{name}" for group, of_group in given.items() for name in of_group} == set(_described())
    (server,) = _servers(render(helm, CHART, example(CHART.name, "settings-values.yaml")).documents)
    variables = {one["name"]: one.get("value") for one in server["env"]}
    for group, of_group in given.items():
        for name, value in of_group.items():
            setting = SETTINGS[f"{group}.{name}"]
            assert setting.read(variables[setting.variable]) == setting.read(value)


@pytest.fixture(scope="module", params=FILES)
def documents(request: pytest.FixtureRequest, helm4: Path) -> list[Document]:
    """What each file of values makes."""
    return render(helm4, CHART, example(CHART.name, request.param)).documents


def test_every_variable_is_one_of_the_servers(documents: list[Document]) -> None:
    known = {setting.variable for setting in SETTINGS.values()} | {"SHUNTER_HOME"}
    for document in documents:
        for container in containers(document):
            names = {one["name"] for one in container.get("env", []) if one["name"].startswith("SHUNTER_")}
            assert names <= known


def test_trust_is_what_the_server_reads(documents: list[Document]) -> None:
    for server in _servers(documents):
        for one in server["env"]:
            if one["name"] == "SHUNTER_SERVER_TRUST":
                assert SETTINGS["server.trust"].read(one["value"])


def test_only_the_workload_is_behind_the_service(documents: list[Document]) -> None:
    """Hooks, the test and the backup have labels of their own."""
    (service,) = [one for one in documents if one["kind"] == "Service"]
    wanted = service["spec"]["selector"].items()
    chosen = [one["kind"] for one in documents if wanted <= _pod_labels(one).items()]
    assert chosen in (["StatefulSet"], ["Deployment"])


def test_no_password_is_in_what_is_rendered(documents: list[Document]) -> None:
    """Secrets are named, and none is made."""
    assert [one for one in documents if one["kind"] == "Secret"] == []
    for document in documents:
        for container in containers(document):
            for one in container.get("env", []):
                if one["name"] in ("SHUNTER_TOKEN", "SHUNTER_SERVER_SECRET_KEYS", "PGPASSWORD"):
                    assert set(one["valueFrom"]) == {"secretKeyRef"}


def test_pods_are_confined_and_have_their_share(documents: list[Document]) -> None:
    """By default; what a file of values gives instead is its own."""
    for document in documents:
        for container in containers(document):
            if "shunter-server" in container["image"]:
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert {"requests", "limits"} <= set(container["resources"])


def test_only_who_needs_a_token_of_the_cluster_has_one(documents: list[Document]) -> None:
    """The hook that makes the Secret, and a server that asks the API server for its keys."""
    for document in documents:
        for spec in _pods(document):
            (first, *_) = spec["containers"]
            asks = first["name"] == "bootstrap" or any(
                one["name"] == "SHUNTER_SERVER_TRUST"
                and any(
                    rule.issuer is rule.api_server is None
                    for rule in SETTINGS["server.trust"].read(one["value"])
                )
                for one in first["env"]
            )
            assert spec["automountServiceAccountToken"] is asks


def test_it_is_rendered_the_same_each_time(helm4: Path) -> None:
    """Who compares what is rendered with what there is (GitOps) sees no difference."""
    first, again = (render(helm4, CHART, example(CHART.name, "sqlite-values.yaml")) for _ in range(2))
    assert first.printed == again.printed


def test_a_copy_takes_away_older_ones_and_what_a_killed_one_left(helm4: Path, tmp_path: Path) -> None:
    (job,) = [
        one
        for one in render(helm4, CHART, {"backup": {"enabled": True, "keep": 2}}).documents
        if one["kind"] == "CronJob"
    ]
    (container,) = containers(job)
    folder = tmp_path / "backups"
    folder.mkdir()
    for name in ("20200101T000000Z", "20210101T000000Z", "20220101T000000Z"):
        (folder / f"shunter-{name}.db").write_bytes(b"")
    for rest in ("", "-journal"):
        (folder / f".shunter-20230101T000000Z.db.7.partial{rest}").write_bytes(b"half")
    (folder / "mine.db").write_bytes(b"")
    bin = Path(sys.executable).parent
    env = {"SHUNTER_HOME": str(tmp_path / "home"), "KEEP": "2", "PATH": f"{bin}:{os.environ['PATH']}"}
    subprocess.run([bin / "shunter", "server", "upgrade-db"], env=env, check=True, capture_output=True)
    script = container["args"][0].replace("/backups", str(folder))
    subprocess.run([*container["command"], script], env=env, check=True, capture_output=True)
    *older, new = sorted(one.name for one in folder.iterdir() if one.name != "mine.db")
    assert older == ["shunter-20220101T000000Z.db"]
    assert (folder / new).read_bytes().startswith(b"SQLite format 3")
    assert (folder / "mine.db").exists()


def _servers(documents: list[Document]) -> list[Document]:
    return [
        container
        for document in documents
        if document["kind"] in ("StatefulSet", "Deployment")
        for container in containers(document)
        if container["name"] == "server"
    ]


def _pod_labels(document: Document) -> dict[str, str]:
    """Of the pods that an object describes, or is."""
    if document["kind"] == "Pod":
        return dict(document["metadata"]["labels"])
    spec = document.get("spec", {})
    template = spec.get("template") or spec.get("jobTemplate", {}).get("spec", {}).get("template") or {}
    return dict(template.get("metadata", {}).get("labels", {}))


def _pods(document: Document) -> Iterator[Document]:
    """The specification of each pod in it."""
    for value in document.values():
        if isinstance(value, dict):
            if "containers" in value:
                yield value
            yield from _pods(value)
