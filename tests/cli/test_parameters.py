"""``-p key=value``: typed by the schema where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shunter_cli import parameters
from shunter_work_pools.contracts.errors import InvalidInput

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "year": {"type": "integer"},
        "name": {"type": "string"},
        "label": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "share": {"anyOf": [{"type": "string"}, {"type": "number"}]},
        "mode": {"enum": ["1", "2"]},
        "level": {"$ref": "#/$defs/Level"},
        "free": {},
        "listed": {"type": ["string", "array"]},
    },
    "$defs": {"Level": {"enum": ["1", "high"]}},
    "additionalProperties": {"type": "string"},
}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("year=2013", 2013),
        ("year=abc", "abc"),  # refused by the server, which names what it wants
        ("name=2013", "2013"),
        ("name=null", "null"),
        ('name="x"', '"x"'),
        ("label=null", None),
        ("label=5", "5"),
        ("either=5", 5),
        ("either=5.5", "5.5"),
        ("share=5", 5),
        ("mode=1", "1"),
        ("level=1", "1"),
        ("free=[1, 2]", [1, 2]),
        ("free=text", "text"),
        ("free=NaN", "NaN"),
        ("listed=[1]", [1]),
        ("listed={}", "{}"),
        ("other=5", "5"),
        ("name=a=b", "a=b"),
        ("name=", ""),
    ],
)
def test_a_value_is_typed_by_the_schema(word: str, expected: Any) -> None:
    assert list(parameters.parse([word], SCHEMA).values()) == [expected]


def test_without_a_schema_json_is_read_and_everything_else_is_text() -> None:
    words = ["a=1", "b=true", 'c="1"', 'd={"x": null}', "e=2013-01-01", "f=", "g=1e400"]
    assert parameters.parse(words, None) == {
        "a": 1,
        "b": True,
        "c": "1",
        "d": {"x": None},
        "e": "2013-01-01",
        "f": "",
        "g": "1e400",
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [(["year"], "'year' is not key=value"), (["=1"], "not key=value"), (["a=1", "a=2"], "twice")],
)
def test_what_is_no_parameter_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parameters.parse(words, None)


def test_a_file_gives_parameters_and_words_go_over_them(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text('{"year": 2000, "name": "x"}')
    assert parameters.parse(["year=2013"], SCHEMA, str(file)) == {"year": 2013, "name": "x"}
    for text, says in [
        ("[1]", "holds no JSON object"),
        ("{", "is not JSON"),
        ('{"a": NaN}', "NaN is not JSON"),
    ]:
        file.write_text(text)
        with pytest.raises(InvalidInput, match=says):
            parameters.parse([], None, str(file))
    with pytest.raises(InvalidInput, match="cannot be read"):
        parameters.parse([], None, str(tmp_path / "none.json"))
