"""What an entrypoint takes, found by importing it in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shunter_infrastructure.run_environment import runner_path

INSPECTOR = Path(runner_path()).with_name("inspect_entrypoint.py")
Inspect = Callable[..., dict[str, Any]]


@pytest.fixture
def inspect(tmp_path: Path) -> Inspect:
    """Writes ``code`` to flow.py and inspects an entrypoint."""

    def inspect(entrypoint: str, code: str = "") -> dict[str, Any]:
        (tmp_path / "flow.py").write_text(textwrap.dedent(code))
        done = subprocess.run(
            [sys.executable, str(INSPECTOR), entrypoint, "--source", str(tmp_path)],
            capture_output=True,
            text=True,
            cwd="/",
        )
        found: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (1 if "error" in found else 0), done.stderr
        return found

    return inspect


@pytest.mark.parametrize("entrypoint", ["flow.py:main", "flow:main"])
def test_a_signature(inspect: Inspect, entrypoint: str) -> None:
    code = '''
    import datetime
    def main(year: int, day: datetime.date, name: str = "x", *, tags: list[str] | None = None, free=1):
        """Read a year.

        And more.
        """
    '''
    found = inspect(entrypoint, code)
    assert found["description"] == "Read a year."
    schema = found["parameter_schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["year", "day"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["year"]["type"] == "integer"
    assert schema["properties"]["day"]["format"] == "date"
    assert schema["properties"]["name"]["default"] == "x"
    fits = jsonschema.Draft202012Validator(schema)
    assert fits.is_valid({"year": 1, "day": "2026-01-01", "tags": ["a"], "free": {}})
    for wrong in ({}, {"year": "x", "day": ""}, {"year": 1, "day": "2026-01-01", "other": 1}):
        assert not fits.is_valid(wrong)


def test_any_keyword(inspect: Inspect) -> None:
    schema = inspect("flow:main", "def main(a, **more): pass")["parameter_schema"]
    fits = jsonschema.Draft202012Validator(schema)
    assert fits.is_valid({"a": 1, "b": 2})
    assert not fits.is_valid({"b": 2})


def test_no_parameters(inspect: Inspect) -> None:
    schema = inspect("flow:main", "def main(): pass")["parameter_schema"]
    assert jsonschema.Draft202012Validator(schema).is_valid({})
    assert not jsonschema.Draft202012Validator(schema).is_valid({"a": 1})


def test_names_that_models_have(inspect: Inspect) -> None:
    code = "def main(json: int, schema: str, model_config: int, self: int, copy=1, _private: int = 2): pass"
    schema = inspect("flow:main", code)["parameter_schema"]
    assert set(schema["properties"]) == {"json", "schema", "model_config", "self", "copy", "_private"}


def test_other_types(inspect: Inspect) -> None:
    code = """
    from __future__ import annotations
    import dataclasses, enum, pathlib
    from typing import Literal
    import pydantic
    class Color(enum.Enum): RED = "red"
    @dataclasses.dataclass
    class Point: x: int
    class Model(pydantic.BaseModel): names: list[str]
    def main(color: Color, point: Point, model: Model, mode: Literal["a"], where: pathlib.Path = pathlib.Path("/x")):
        pass
    """
    schema = inspect("flow:main", code)["parameter_schema"]
    fits = jsonschema.Draft202012Validator(schema)
    good = {"color": "red", "point": {"x": 1}, "model": {"names": []}, "mode": "a"}
    assert fits.is_valid(good)
    for name, wrong in (
        ("color", "blue"),
        ("point", {}),
        ("model", {"names": [1]}),
        ("mode", "b"),
        ("where", 1),
    ):
        assert not fits.is_valid(good | {name: wrong}), name
    assert schema["properties"]["where"]["default"] == "/x"


def test_what_the_users_code_prints_does_no_harm(inspect: Inspect) -> None:
    code = """
    import os, subprocess, sys
    print("noise", flush=True)
    os.write(1, b"more noise")
    subprocess.run(["echo", "even more"])
    def main(): pass
    """
    assert inspect("flow:main", code)["parameter_schema"] is not None


def test_a_file_is_not_executed(inspect: Inspect) -> None:
    found = inspect("flow.py", '"""A script."""\nraise SystemExit(1)')
    assert found == {"parameter_schema": None, "description": "A script."}


@pytest.mark.parametrize(
    ("entrypoint", "code", "kind", "text"),
    [
        ("nosuch.py:main", "", "missing-file", "nosuch.py does not exist"),
        ("nosuch.py", "", "missing-file", "nosuch.py cannot be read"),
        ("nosuch:main", "", "missing-module", "'nosuch'"),
        ("flow:nosuch", "", "missing-function", "'nosuch'"),
        ("flow:main", "import nosuchpackage", "import-failed", "nosuchpackage"),
        ("flow:main", "1 / 0", "import-failed", "ZeroDivisionError"),
        ("flow:main", "import sys; sys.exit(0)", "import-failed", "SystemExit"),
        ("flow.py", "def main(:", "import-failed", "SyntaxError"),
        ("flow:main", "main = 3", "not-callable", "is not a function"),
        ("flow", "", "bad-entrypoint", "not of the form"),
        ("flow:main", "def main(a, /): pass", "unsupported-signature", "'a' by position only"),
        ("flow:main", "class W: pass\ndef main(w: W): pass", "unsupported-signature", "parameter 'w'"),
        ("flow:main", "def main(w: 'Nowhere'): pass", "unsupported-signature", "Nowhere"),
    ],
)
def test_what_is_wrong(inspect: Inspect, entrypoint: str, code: str, kind: str, text: str) -> None:
    found = inspect(entrypoint, code)
    assert found["kind"] == kind
    assert text in found["error"]


def test_where_it_is_wrong(inspect: Inspect) -> None:
    detail = inspect("flow:main", "def f():\n    return 1 / 0\nf()")["detail"]
    assert "ZeroDivisionError" in detail
    assert "line 2, in f" in detail
    assert "runner.py" not in detail
