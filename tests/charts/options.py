"""The options of a chart: the keys of its values.yaml, compared with its schema and with what sets them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.charts.charts import read

Keys = tuple[str, ...]
#: What Helm gives to a chart that is part of another, whether the chart has it or not.
_HELMS = {"global"}
#: Set, and to nothing.
_NOTHING = object()


class Options:
    """What can be set in a chart.

    Args:
        chart: its folder.
    """

    def __init__(self, chart: Path) -> None:
        self._chart = chart
        self.defaults = read(chart / "values.yaml")
        self._schema: dict[str, Any] = json.loads((chart / "values.schema.json").read_text())

    def faults_of_schema(self) -> list[str]:
        """Where the schema and values.yaml do not have the same keys, or the schema would take any."""
        return list(self._compare((), self.defaults, self._schema))

    def leaves(self) -> dict[Keys, Any]:
        """Each option with its default; what Kubernetes has the keys of is one option, with all below it."""
        return dict(self._leaves((), self.defaults, self._schema))

    def untested(self) -> list[str]:
        """Options that neither a file in ``ci/`` nor a unit test sets to anything but their default."""
        given = [one for values in self._given() for one in _flat((), values)]
        return [
            ".".join(leaf)
            for leaf, default in self.leaves().items()
            if not any(_sets(leaf, default, keys, value) for keys, value in given)
        ]

    def _given(self) -> Iterator[Any]:
        """All values that are given to it anywhere."""
        for path in (self._chart / "ci").glob("*-values.yaml"):
            yield read(path)
        for path in (self._chart / "tests").glob("*_test.yaml"):
            for suite in yaml.safe_load_all(path.read_text()):
                for one in (suite, *suite["tests"]):
                    yield from (_nested(key, value) for key, value in (one.get("set") or {}).items())
                    for name in one.get("values") or []:
                        yield read(path.parent / name)

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        name = schema.get("$ref", "")
        if not name:
            return schema
        found: Any = self._schema
        for part in name.removeprefix("#/").split("/"):
            found = found[part]
        return self._resolved(found)

    def _compare(self, keys: Keys, values: Any, schema: dict[str, Any]) -> Iterator[str]:
        schema = self._resolved(schema)
        described = schema.get("properties")
        if described is None or not isinstance(values, dict):
            return
        name = ".".join(keys) or "(top)"
        if schema.get("additionalProperties") is not False:
            yield f"{name}: the schema takes unknown keys"
        alone = set(described) - set(values) - (_HELMS if not keys else set())
        for key in sorted(
            alone if values else ()
        ):  # an option that is empty names its keys in the schema only
            yield f"{name}: {key} is in the schema alone"
        for key in sorted(set(values) - set(described)):
            yield f"{name}: {key} is in values.yaml alone"
        for key in set(described) & set(values):
            yield from self._compare((*keys, key), values[key], described[key])

    def _leaves(self, keys: Keys, values: Any, schema: dict[str, Any]) -> Iterator[tuple[Keys, Any]]:
        schema = self._resolved(schema)
        if not isinstance(values, dict) or "properties" not in schema:
            yield keys, values
            return
        for key, value in values.items():
            yield from self._leaves((*keys, key), value, schema["properties"].get(key, {}))


def _sets(leaf: Keys, default: Any, keys: Keys, value: Any) -> bool:
    """Whether what is given changes an option: itself, something in it, or all of what it is part of (to nothing)."""
    if len(keys) > len(leaf):
        return keys[: len(leaf)] == leaf and value != _at(default, keys[len(leaf) :])
    return leaf[: len(keys)] == keys and (value is None or (keys == leaf and value != default))


def _at(value: Any, keys: Keys) -> Any:
    for key in keys:
        value = value.get(key, _NOTHING) if isinstance(value, dict) else _NOTHING
    return value


def _flat(keys: Keys, value: Any) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flat((*keys, str(key)), below)
    else:
        yield keys, value


def _nested(path: str, value: Any) -> Any:
    """What ``set`` of a unit test means: a dot goes down, unless a backslash is before it; an index is a list's."""
    for part in reversed(re.split(r"(?<!\\)\.", path)):
        name, *index = re.split(r"\[\d+\]", part)
        value = {name.replace("\\.", "."): [value] if index else value}
    return value
