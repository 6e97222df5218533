"""A bad value is refused before anything reaches a cluster, by a sentence that names it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.charts import bad_values_agent, bad_values_server
from tests.charts.charts import CHARTS, render

_CHARTS = {"shunter-agent": bad_values_agent, "shunter-server": bad_values_server}
ROWS = [(name, *row) for name, module in _CHARTS.items() for row in module.ROWS]


@pytest.mark.parametrize("name", _CHARTS)
def test_what_rows_are_added_to_is_right(helm: Path, name: str) -> None:
    assert render(helm, CHARTS / name, dict(_CHARTS[name].RIGHT)).documents


@pytest.mark.parametrize(
    ("name", "values", "told"), ROWS, ids=[f"{row[0]}-{json.dumps(row[1])}" for row in ROWS]
)
def test_it_is_refused_by_name(helm: Path, name: str, values: Mapping[str, Any], told: str) -> None:
    said = render(helm, CHARTS / name, dict(_CHARTS[name].RIGHT), dict(values))
    assert said.code != 0, "it was taken"
    assert re.search(told, said.said), said.said
    assert any(_is_named(keys, said.said) for keys in _keys(values)), said.said
    assert said.printed.strip() == ""


def _keys(values: Mapping[str, Any]) -> Iterator[list[str]]:
    """Each value that is set, by its keys, and what it is part of: a fault may be of that."""
    for key, value in values.items():
        yield [key]
        if isinstance(value, Mapping):
            yield from ([key, *below] for below in _keys(value))


def _is_named(keys: list[str], message: str) -> bool:
    """As people write it, as schemas do, or (an unknown key) by what it was found in."""
    return (
        re.search(rf"(?<![\w.]){re.escape('.'.join(keys))}\b", message) is not None
        or f"'/{'/'.join(keys)}" in message
        or (f"at '/{'/'.join(keys[:-1])}'".replace("'/'", "''") in message and f"'{keys[-1]}'" in message)
    )
