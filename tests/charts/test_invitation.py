"""What ``shunter agent invite`` says for Kubernetes is taken by the chart."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from shunter_cli.joining import line_for_helm
from tests.charts.charts import CHARTS, run


@pytest.mark.parametrize(("pool_type", "manage_pools"), [("kubernetes", True), ("process", False)])
def test_the_line_renders_agents_that_join(helm4: Path, pool_type: str, manage_pools: bool) -> None:
    line = line_for_helm(
        "https://shunter.example.com/api", "she_it", "main", pool_type, manage_pools=manage_pools
    )
    _, made, installed = line.replace("&&", "|").split(" | ")
    assert "secret generic shunter-join" in made
    words = shlex.split(installed)
    assert words[:4] == ["helm", "install", "agents", "helm/shunter-agent"]
    (pods,) = [
        one
        for one in run(helm4, "template", "agents", CHARTS / "shunter-agent", *words[4:]).documents
        if one["kind"] == "Deployment"
    ]
    text = str(pods["spec"]["template"])
    assert "'secretName': 'shunter-join'" in text or "'name': 'shunter-join'" in text
    assert "https://shunter.example.com/api" in text
    assert ("--create-pool" in text) == manage_pools
    assert "she_it" not in text
