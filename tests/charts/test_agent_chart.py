"""The chart for agents says what the agent says: its rights, its settings, its options, its version."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shunter_agents.__main__ import main as agent_main
from shunter_infrastructure.kubernetes.rights import NEEDED
from shunter_work_pools.contracts.settings import SETTINGS
from shunter_work_pools.contracts.sizes import parse_size
from tests.charts.building import Tools

CHART = Path(__file__).parents[2] / "helm" / "shunter-agent"
VALUE_FILES = sorted((CHART / "ci").glob("*-values.yaml"))
Object = dict[str, Any]


def rendered(tools: Tools, file: Path) -> list[Object]:
    """The objects of a release with these values."""
    done = subprocess.run(
        [tools.helm4, "template", "agents", CHART, "--namespace", "x", "--values", file],
        capture_output=True,
        text=True,
        check=True,
    )
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def pods(objects: list[Object]) -> Iterator[Object]:
    """The specification of each pod in them, whoever makes it."""
    for one in objects:
        spec = one["spec"].get("jobTargetRef", one["spec"]) if "spec" in one else {}
        if one["kind"] == "Pod":
            yield one["spec"]
        elif "template" in spec:
            yield spec["template"]["spec"]


def containers(objects: list[Object], image: str) -> Iterator[Object]:
    """Containers of the chart's own image, in all pods."""
    for pod in pods(objects):
        for one in [*pod.get("initContainers", []), *pod["containers"]]:
            if image in one["image"]:
                yield one


@pytest.fixture(params=VALUE_FILES, ids=lambda file: file.name)
def objects(request: pytest.FixtureRequest, tools: Tools) -> list[Object]:
    """What each file of values makes."""
    return rendered(tools, request.param)


def test_the_role_has_the_verbs_that_the_launcher_needs(tools: Tools) -> None:
    found = rendered(tools, CHART / "ci" / "minimal-values.yaml")
    (role,) = [one for one in found if one["kind"] == "Role"]
    granted = {
        (group, resource): tuple(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == {(group, resource): verbs for group, resource, verbs in NEEDED}


def test_nothing_is_made_for_the_whole_cluster(objects: list[Object]) -> None:
    assert not [one["kind"] for one in objects if one["kind"].startswith("Cluster")]
    assert all(one["metadata"].get("namespace") for one in objects if "extra" not in str(one["metadata"]["name"]))


def test_every_variable_is_one_that_shunter_knows(objects: list[Object]) -> None:
    known = {setting.variable for setting in SETTINGS.values()} | {"SHUNTER_HOME"}
    for one in containers(objects, "shunter-agent"):
        names = [variable["name"] for variable in one["env"]]
        assert {name for name in names if name.startswith("SHUNTER_")} <= known
        assert len(names) == len(set(names))


def test_every_option_is_one_that_the_agent_has(objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    for one in containers(objects, "shunter-agent"):
        if one["args"][:2] == ["agent", "start"]:
            given: dict[str, Any] = {}
            monkeypatch.setattr("sys.argv", ["shunter", *one["args"][2:]])
            monkeypatch.setattr(
                "shunter_agents.__main__.run_agent", lambda pools, **more: given.update(more, pools=pools) or 0
            )
            assert agent_main() == 0
            assert given["pools"] and given["name"] == "$(POD_NAME)"


def test_every_pod_is_restricted_and_counted(objects: list[Object]) -> None:
    for pod in pods(objects):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in containers(objects, "shunter-agent"):
        confined = one["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True and confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}
        for kind in ("requests", "limits"):
            assert set(one["resources"][kind]) == {"cpu", "memory", "ephemeral-storage"}


def test_what_an_agent_stores_has_room() -> None:
    """The pod would be evicted for what is over these limits, and its output with it."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    state = values["state"]

    def size(text: str) -> int:
        return parse_size(text if text.endswith("B") else f"{text}B")

    assert size(state["spoolLimit"]) + 2 * size(state["cacheLimit"]) < size(state["sizeLimit"])
    limit = values["resources"]["limits"]["ephemeral-storage"]
    assert size(state["sizeLimit"]) + size(state["tmpSizeLimit"]) <= size(limit)


def test_every_value_is_in_the_schema_and_nothing_else_is() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == set(values) | {"global"}

    def compare(where: str, value: Object, part: Object) -> None:
        for name, inner in value.items():
            rule = part["properties"][name]
            if rule.get("additionalProperties") is False and "properties" in rule and inner:
                assert set(rule["properties"]) == set(inner), f"{where}{name}"
                compare(f"{where}{name}.", inner, rule)

    compare("", values, schema)


def test_every_value_is_used(tools: Tools) -> None:
    """A value that changes nothing is a promise that nobody keeps."""
    templates = "".join(file.read_text() for file in (CHART / "templates").rglob("*") if file.is_file())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in values:
        assert re.search(rf"Values\.{name}\b", templates), name
