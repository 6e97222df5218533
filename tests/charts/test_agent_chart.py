"""The chart for agents says what the agent says: its rights, its settings, its options; and its pods are confined."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shunter_agents.__main__ import main as agent
from shunter_infrastructure.kubernetes.rights import NEEDED
from shunter_work_pools.contracts.agents import ServerInfo
from shunter_work_pools.contracts.settings import SETTINGS
from shunter_work_pools.contracts.sizes import parsed
from shunter_work_pools.metrics import gauges
from shunter_work_pools.queue.census import Census
from tests.charts.charts import CHARTS, EXAMPLES, Document, containers, example, read, render

NAME = "shunter-agent"
FILES = [file for name, file in EXAMPLES if name == NAME]


@pytest.fixture(params=FILES)
def documents(request: pytest.FixtureRequest, helm4: Path) -> list[Document]:
    """What each file of values makes."""
    return render(helm4, CHARTS / NAME, example(NAME, request.param)).documents


def own(documents: list[Document]) -> Iterator[Document]:
    """The chart's own containers: agents, those that join, and tests."""
    for document in documents:
        yield from (one for one in containers(document) if NAME in one["image"])


def pods(document: Document) -> Iterator[Document]:
    """The specification of each pod in it."""
    for value in document.values():
        if isinstance(value, dict):
            if "containers" in value:
                yield value
            yield from pods(value)


def test_the_role_has_the_verbs_that_the_launcher_needs(helm4: Path) -> None:
    made = render(helm4, CHARTS / NAME, example(NAME, "minimal-values.yaml")).documents
    (role,) = [one for one in made if one["kind"] == "Role"]
    granted = {
        (group, resource): tuple(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == {(group, resource): verbs for group, resource, verbs in NEEDED}


def test_nothing_is_made_for_the_whole_cluster(documents: list[Document]) -> None:
    assert [one["kind"] for one in documents if one["kind"].startswith("Cluster")] == []


def test_every_variable_is_one_that_shunter_knows(documents: list[Document]) -> None:
    known = {setting.variable for setting in SETTINGS.values()} | {"SHUNTER_HOME"}
    for one in own(documents):
        names = [variable["name"] for variable in one["env"]]
        assert {name for name in names if name.startswith("SHUNTER_")} <= known
        assert len(names) == len(set(names)), "server-side apply refuses it"


def test_every_option_is_one_that_the_agent_has(
    documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = [one["args"][2:] for one in own(documents) if one["args"][:2] == ["agent", "start"]]
    assert started
    for words in started:
        given: dict[str, Any] = {}

        def run_agent(pools: list[str], given: dict[str, Any] = given, **more: Any) -> int:
            given.update(more, pools=pools)
            return 0

        monkeypatch.setattr("shunter_agents.__main__.run_agent", run_agent)
        monkeypatch.setattr("sys.argv", ["shunter agent start", *words])
        assert agent() == 0
        assert given["pools"]
        assert given["name"] == "$(POD_NAME)"


def test_every_pod_is_restricted_and_counted(documents: list[Document]) -> None:
    for document in documents:
        for pod in pods(document):
            assert pod["automountServiceAccountToken"] is False
            assert pod["enableServiceLinks"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in own(documents):
        confined = one["securityContext"]
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["capabilities"] == {"drop": ["ALL"]}
        for kind in ("requests", "limits"):
            assert set(one["resources"][kind]) == {"cpu", "memory", "ephemeral-storage"}


def test_what_an_agent_stores_has_room() -> None:
    """The pod would be evicted for what is over it, and output that the server does not have with it."""
    values = read(CHARTS / NAME / "values.yaml")
    state, most = values["state"], values["resources"]["limits"]["ephemeral-storage"]

    def size(word: str) -> int:
        found = parsed(word if word.endswith("B") else f"{word}B")
        assert found is not None
        return found

    assert size(state["spoolLimit"]) + 2 * size(state["cacheLimit"]) < size(state["sizeLimit"])
    assert size(state["sizeLimit"]) + size(state["tmpSizeLimit"]) <= size(most)


def test_every_value_has_a_template_that_goes_by_it() -> None:
    templates = "".join(
        path.read_text() for path in (CHARTS / NAME / "templates").rglob("*") if path.is_file()
    )
    values = read(CHARTS / NAME / "values.yaml")
    unused = [name for name in values if not re.search(rf"\.Values\.{name}\b", templates)]
    assert unused == ["global"]


def test_each_trigger_of_keda_finds_its_sample(helm4: Path) -> None:
    """KEDA takes the first sample with all labels that a trigger names, and fails where there is none."""
    made = render(helm4, CHARTS / NAME, example(NAME, "keda-values.yaml")).documents
    (scaled,) = [one for one in made if one["kind"] == "ScaledObject"]
    wanted = {"other": 100, "cluster": 1, "nightly": 20, "(other)": 1000}
    server = ServerInfo(version="1", protocol=3, server_time=datetime.now(UTC), store="sqlite")
    there = Census(server, {}, {}, 0, 0.0, 0, 0, {}, 0, {}, {}, {}, wanted=wanted)
    samples = [one for family in gauges(there, 0, None) for one in family.samples]
    found = []
    for trigger in scaled["spec"]["triggers"]:
        name, labels = trigger["metadata"]["valueLocation"].removesuffix("}").split("{")
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        (value,) = [one.value for one in samples if one.name == name and named.items() <= one.labels.items()]
        found.append(value)
    assert found == [1, 20]
