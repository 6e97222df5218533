"""A bad value is refused before anything reaches a cluster, by a sentence that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.charts import bad_values_agent, bad_values_server
from tests.charts.bad_values import Bad
from tests.charts.charts import CHARTS, least, render

ROWS = [("shunter-agent", row) for row in bad_values_agent.ROWS] + [
    ("shunter-server", row) for row in bad_values_server.ROWS
]


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{name}-{row.value}" for name, row in ROWS])
def test_it_is_refused_by_name(helm: Path, name: str, row: Bad) -> None:
    said = render(helm, CHARTS / name, *least(name), row.values)
    assert said.code != 0, f"{row.value} was taken"
    assert row.told in said.said
    assert row.named_in(said.said), said.said
    assert said.printed.strip() == ""
