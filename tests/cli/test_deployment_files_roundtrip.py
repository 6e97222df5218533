"""Whatever is written down reads back as it was meant, and variables never change the form of a file."""

from __future__ import annotations

import json
import string
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from shunter_cli.deployment_files import toml_tree, yaml_tree
from shunter_cli.deployment_files.checking import read_tree
from shunter_cli.deployment_files.model import File
from shunter_cli.deployment_files.places import Node, Place, plain
from shunter_cli.deployment_files.variables import substitute

#: Characters that YAML lets stand as they are, with those that mean something to it among them.
TEXT = st.text(
    st.characters(exclude_categories=("Cs", "Cc"))
    | st.sampled_from("$${}:#-&*!|>'\"%@`,[]? \n\t~")
    | st.just("\U0001d11e"),
    max_size=20,
)
LINE = TEXT.filter(lambda text: "\x85" not in text)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | LINE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LINE, inner, max_size=4),
    max_leaves=12,
)
NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
SPANS = st.integers(1, 10**6) | st.sampled_from(["5m", "1h30m", "500ms", "2d"]) | st.floats(0.001, 10**6)
MOMENTS = st.sampled_from(["2027-01-01", "2027-03-28T06:00:00+02:00", "2027-01-01 12:30"])
PARAMETERS = st.dictionaries(NAMES, JSON, max_size=3)
SAID = {"parameters": PARAMETERS, "jitter": SPANS, "start": MOMENTS, "paused": st.booleans()} | {
    "catch_up": st.sampled_from(["all", "latest", "none"]),
    "catch_up_slots": st.integers(1, 10_000),
}
SCHEDULES = st.one_of(
    st.fixed_dictionaries({"name": NAMES, "cron": st.just("0 6 * * *")}, optional=SAID),
    st.fixed_dictionaries({"name": NAMES, "interval": st.integers(1, 10**6)}, optional=SAID),
    st.fixed_dictionaries({"name": NAMES, "rrule": st.just("FREQ=DAILY")}, optional=SAID),
)
SHARED = {
    "parameters": PARAMETERS,
    "tags": st.lists(NAMES, max_size=3),
    "pool": NAMES,
    "priority": st.integers(-1000, 1000),
    "retries": st.integers(0, 1000)
    | st.fixed_dictionaries(
        {"count": st.integers(0, 5), "delay": SPANS},
        optional={
            "backoff": st.integers(1, 100),
            "max_delay": SPANS,
            "jitter": st.sampled_from([0, 0.25, 1]),
            "on": st.lists(st.sampled_from(["oom", "timeout", "signal"]), unique=True),
        },
    ),
    "memory_limit": st.sampled_from(["1MiB", "1.5GiB", "200MB"]) | st.integers(2**20, 2**50),
    "need": st.fixed_dictionaries(
        {},
        optional={
            "gpu": st.integers(0, 8) | st.just(2.0),
            "cpu": st.floats(0, 64) | st.integers(0, 64),
            "memory": st.sampled_from(["1MiB", "1.5GiB"]) | st.integers(0, 2**50),
        },
    ),
    "limits": st.lists(NAMES, max_size=3),
    "max_active": st.integers(0, 10**6),
    "exclusive": st.booleans(),
    "timeout": SPANS,
    "env": st.dictionaries(st.sampled_from(["A", "B_2"]), LINE, max_size=2),
    "on_lost": st.sampled_from(["wait", "retry", "crash"]),
    "keep": st.fixed_dictionaries({}, optional={"runs": st.integers(0, 100), "logs_for": SPANS}),
}
ENTRIES = st.fixed_dictionaries(
    {"name": NAMES, "command": st.lists(LINE, min_size=1, max_size=3)},
    optional=SHARED | {"description": LINE, "schedules": st.lists(SCHEDULES, max_size=3)},
)
FILES = st.fixed_dictionaries(
    {"deployments": st.lists(ENTRIES, min_size=1, max_size=3)},
    optional={"defaults": st.fixed_dictionaries({}, optional=SHARED)},
)
MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _dollars(value: Any) -> Any:
    """With each dollar in a value doubled."""
    if isinstance(value, dict):
        return {key: _dollars(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_dollars(one) for one in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


def _without_none(value: Any) -> Any:
    """Without null, which TOML does not have."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value if one is not None] if isinstance(value, list) else value


def _yaml(value: Any) -> str:
    """In lines: within brackets the library writes words such as ``:a`` without the quotes they need."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()


def _toml(value: Any) -> str:
    """A value in TOML: its texts are those of JSON, but for DEL."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _toml_file(data: dict[str, Any]) -> str:
    """With tables at the top and all below them inline."""
    lines = ["[defaults]", *(f"{key} = {_toml(one)}" for key, one in data.get("defaults", {}).items())]
    for entry in data["deployments"]:
        inner = {key: one for key, one in entry.items() if key != "schedules"}
        lines += ["[[deployments]]", *(f"{_toml(key)} = {_toml(one)}" for key, one in inner.items())]
        for schedule in entry.get("schedules", []):
            lines += [
                "[[deployments.schedules]]  # a table",
                *(f"{key} = {_toml(one)}" for key, one in schedule.items()),
            ]
    return "\n".join(lines) + "\n"


def _read(folder: Path, name: str, text: str) -> File:
    path = folder / name
    path.write_text(text, "utf-8", newline="")
    tree, faults = read_tree(path, name, {})
    assert faults == []
    return File.model_validate(plain(tree))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@MANY
@given(data=FILES)
def test_a_model_in_yaml_reads_back(folder: Path, data: dict[str, Any]) -> None:
    assert _read(folder, "f.yaml", _yaml(_dollars(data))) == File.model_validate(data)


@MANY
@given(data=FILES)
def test_a_model_in_json_reads_back(folder: Path, data: dict[str, Any]) -> None:
    # JSON is YAML: a second writer, with other quotes.
    text = json.dumps(_dollars(data), ensure_ascii=False, indent=1).replace("\x7f", "\\u007f")
    assert _read(folder, "f.yaml", text) == File.model_validate(data)


@MANY
@given(data=FILES.map(_without_none))
def test_a_model_in_toml_reads_back(folder: Path, data: dict[str, Any]) -> None:
    assert _read(folder, "f.toml", _toml_file(_dollars(data))) == File.model_validate(data)


def _leaves(node: Node) -> list[tuple[Any, Place]]:
    """Keys and values that are neither list nor mapping, with their places."""
    if isinstance(node.value, dict):
        keys: list[tuple[Any, Place]] = list(node.keys.items())
        return keys + [leaf for one in node.value.values() for leaf in _leaves(one)]
    if isinstance(node.value, list):
        return [leaf for one in node.value for leaf in _leaves(one)]
    return [(node.value, node.place)]


@MANY
@given(data=FILES.map(_without_none), toml=st.booleans())
def test_everything_stands_at_its_place(data: dict[str, Any], toml: bool) -> None:
    text = _toml_file(data) if toml else json.dumps(data, ensure_ascii=False, indent=1)
    text = text.replace("\x7f", "\\u007f")
    tree, faults = (toml_tree if toml else yaml_tree).parse(text)
    assert tree is not None
    assert faults == []
    lines = text.split("\n")
    leaves = _leaves(tree)
    assert len(leaves) > 3
    for value, place in leaves:
        written = _toml(value) if toml else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        rest = lines[place.line - 1][place.column - 1 :]
        assert rest.startswith((written, str(value))), f"{value!r} is not at {place}: {rest!r}"


def _form(node: Node) -> Any:
    """What a tree is apart from its texts."""
    if isinstance(node.value, dict):
        return {key: _form(one) for key, one in node.value.items()}
    if isinstance(node.value, list):
        return [_form(one) for one in node.value]
    return type(node.value).__name__, node.place


@MANY
@given(
    data=st.dictionaries(NAMES, JSON, min_size=1, max_size=4),
    env=st.dictionaries(st.sampled_from(["A", "B"]), st.text(max_size=60) | LINE, min_size=2),
    written=st.lists(
        st.sampled_from(["${A}", "${B}", "${C:-x}", "$$", "$", "a", "${A:-y}", ": "]), max_size=5
    ),
    toml=st.booleans(),
)
def test_variables_never_change_the_form(
    data: dict[str, Any], env: dict[str, str], written: list[str], toml: bool
) -> None:
    data = _without_none(data) | {"v": "".join(written), "l": ["${A}", {"k": "${B}"}]}
    text = "\n".join(f"{_toml(key)} = {_toml(one)}" for key, one in data.items()) if toml else _yaml(data)
    tree, faults = (toml_tree if toml else yaml_tree).parse(text)
    assert tree is not None
    assert faults == []
    before = _form(tree)
    substitute(tree, env)
    assert _form(tree) == before
    assert tree.value["l"].value[0].value == env["A"]
    meant = "".join(
        {"${A}": env["A"], "${B}": env["B"], "${C:-x}": "x", "$$": "$", "${A:-y}": env["A"] or "y"}.get(
            one, one
        )
        for one in written
    )
    if "$" not in written:  # a lone dollar makes another thing of what follows it
        assert tree.value["v"].value == meant


@MANY
@given(text=st.text(st.sampled_from("ab:-[]{}&*!'\"#| \n\t$,0.1~?%@"), max_size=60))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    for module in (yaml_tree, toml_tree):
        tree, faults = module.parse(text)
        for fault in faults:
            assert fault.place is None or (fault.place.line >= 1 and fault.place.column >= 1)
            assert fault.place is None or fault.place.line <= text.count("\n") + 2
        if tree is not None and isinstance(tree.value, dict):
            substitute(tree, {})
            plain(tree)
