"""Both Helms take the charts with every file of values, and make the same of them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml

from tests.charts.building import Tools
from tests.charts.charts import CHARTS, EXAMPLES, NAMES, containers, example, least, render, run, version


def test_there_are_charts() -> None:
    assert NAMES == ["shunter-agent", "shunter-server"]
    assert {name for name, _ in EXAMPLES} == set(NAMES)


@pytest.mark.parametrize(("name", "file"), EXAMPLES)
def test_it_is_linted_without_a_warning(helm: Path, name: str, file: str) -> None:
    said = run(helm, "lint", "--strict", str(CHARTS / name), f"--values={example(name, file)}")
    assert said.code == 0, said.printed + said.said
    assert "[WARNING]" not in said.printed


@pytest.mark.parametrize(("name", "file"), EXAMPLES)
def test_both_make_the_same_of_it(chart_tools: Tools, name: str, file: str) -> None:
    three, four = (
        render(one, CHARTS / name, example(name, file)) for one in (chart_tools.helm3, chart_tools.helm4)
    )
    assert three.documents
    assert three.documents == four.documents


#: Labels that the charts have themselves.
_OWN = {
    f"app.kubernetes.io/{one}": "another" for one in ("name", "instance", "component", "part-of", "version")
}


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_ones_own_neither_replace_nor_repeat_those_of_the_chart(helm4: Path, name: str) -> None:
    """Pods are found by the chart's; and who renders over it (Flux) refuses a key that is there twice."""
    labels = {"commonLabels": _OWN | {"team": "a", "zone": "b"}, "podLabels": _OWN | {"team": "c"}}
    rendered = render(helm4, CHARTS / name, *least(name), labels)
    (workload,) = [one for one in rendered.documents if one["kind"] in ("Deployment", "StatefulSet")]
    pod = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"].items() <= pod.items()
    assert (pod["team"], pod["zone"], workload["metadata"]["labels"]["team"]) == ("c", "b", "a")
    for document in yaml.compose_all(rendered.printed):
        assert _repeated(document) == []


def _repeated(node: yaml.Node | None) -> list[str]:
    """Keys that a mapping in it has more than once."""
    if isinstance(node, yaml.SequenceNode):
        return [key for one in node.value for key in _repeated(one)]
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [key.value for key, _ in node.value]
    return [key for key in keys if keys.count(key) > 1] + [
        key for _, value in node.value for key in _repeated(value)
    ]


@pytest.mark.parametrize(("name", "file"), EXAMPLES)
def test_nothing_is_made_twice(helm4: Path, name: str, file: str) -> None:
    made = [
        (one["apiVersion"], one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        for one in render(helm4, CHARTS / name, example(name, file)).documents
    ]
    assert sorted(made, key=str) == sorted(set(made), key=str)


@pytest.mark.parametrize(("name", "file"), EXAMPLES)
def test_every_image_says_which_it_is(helm4: Path, name: str, file: str) -> None:
    """A tag that moves, or none, is another image tomorrow."""
    images = [
        container["image"]
        for document in render(helm4, CHARTS / name, example(name, file)).documents
        for container in containers(document)
    ]
    assert images
    for image in images:
        tag = image.rpartition("/")[2].partition(":")[2]
        assert "@sha256:" in image or tag not in ("", "latest"), image


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_packages_own_unless_it_is_said(helm4: Path, name: str) -> None:
    own = f"localhost/{name}:{version()}"
    documents = render(helm4, CHARTS / name, *least(name)).documents
    assert {one["image"] for document in documents for one in containers(document)} == {own}


@pytest.mark.parametrize("name", NAMES)
def test_unit_tests_of_the_templates_pass(chart_tools: Tools, name: str, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    said = run(
        chart_tools.unittest, "--strict", "--output-type=JUnit", f"--output-file={report}", str(CHARTS / name)
    )
    assert said.code == 0, said.printed + said.said
    assert report.read_text().count("<testcase ") >= 50


@pytest.mark.parametrize("name", NAMES)
def test_a_package_has_what_is_needed_and_no_more(
    helm: Path, chart_tools: Tools, name: str, tmp_path: Path
) -> None:
    said = run(helm, "package", str(CHARTS / name), f"--destination={tmp_path}")
    assert said.code == 0, said.said
    archive = tmp_path / f"{name}-{version()}.tgz"
    assert (
        render(helm, archive, *least(name)).documents == render(helm, CHARTS / name, *least(name)).documents
    )
    with tarfile.open(archive) as packed:
        names = {path.removeprefix(f"{name}/") for path in packed.getnames()}
    assert {"Chart.yaml", "README.md", "UPGRADING.md", "values.yaml", "values.schema.json"} <= names
    assert "templates/NOTES.txt" in names
    assert [path for path in names if path.startswith(("ci/", "tests/")) or path.endswith(".gotmpl")] == []
