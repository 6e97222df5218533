"""What a chart says of itself is true: versions, README, schema; and each of its options is tried somewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.charts import documents
from tests.charts.building import Tools
from tests.charts.charts import CHARTS, NAMES, read, version
from tests.charts.options import Options


@pytest.mark.parametrize("name", NAMES)
def test_versions_are_the_packages(name: str) -> None:
    chart = read(CHARTS / name / "Chart.yaml")
    assert (chart["name"], chart["version"], chart["appVersion"]) == (name, version(), version())
    assert f"localhost/{name}:{version()}" in chart["annotations"]["artifacthub.io/images"]


@pytest.mark.parametrize("name", NAMES)
def test_readme_is_what_make_charts_writes(chart_tools: Tools, name: str, tmp_path: Path) -> None:
    shutil.copytree(CHARTS / name, tmp_path / name)
    documents.write(chart_tools, tmp_path)
    assert (CHARTS / name / "README.md").read_text() == (tmp_path / name / "README.md").read_text(), (
        "make charts"
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_in_the_readme_with_a_sentence(name: str) -> None:
    rows = re.findall(
        r"^\| ([\w.\[\]-]+) \|.*\| (.*) \|$", (CHARTS / name / "README.md").read_text(), re.MULTILINE
    )
    assert [key for key, sentence in rows if not sentence.strip()] == []
    told = {tuple(key.split(".")) for key, _ in rows}
    leaves = Options(CHARTS / name).leaves()
    assert len(leaves) > 50
    assert [".".join(leaf) for leaf in leaves if not any(leaf[: len(one)] == one for one in told)] == []


@pytest.mark.parametrize("name", NAMES)
def test_schema_and_values_have_the_same_keys(name: str) -> None:
    assert Options(CHARTS / name).faults_of_schema() == []


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_set_in_some_test(name: str) -> None:
    assert Options(CHARTS / name).untested() == []
