"""Parameters as people write them, ``-p key=value``, typed by the deployment's schema."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from shunter_work_pools.contracts.errors import InvalidInput

Schema = dict[str, Any]


def parse(
    words: Sequence[str], schema: Schema | None, file: str | None = None, option: str = "-p"
) -> dict[str, Any]:
    """The parameters of ``key=value`` words, over those of a JSON file.

    A value stays text where the schema says string; otherwise it is what JSON makes of it, and text if
    that makes nothing of it.

    Args:
        schema: JSON schema of the parameters; None: unknown.
        file: path of a file that holds one JSON object, ``-`` for stdin.
        option: where the words were written, for messages.

    Raises:
        InvalidInput: a word without ``=``, a key that is given twice, a file that is not JSON.
    """
    given: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            example = f"{option} {'year=2013' if option == '-p' else 'image=python:3.12'}".strip()
            raise InvalidInput(f"{option} {word!r} is not key=value".strip(), f"Write for example {example}.")
        if key in given:
            raise InvalidInput(f"{option} {key} is given twice".strip(), "Give it once.")
        given[key] = value(text, _property(schema, key))
    return (from_file(file) if file else {}) | given


def value(text: str, schema: Schema | None) -> Any:
    """One value, typed by its schema."""
    try:
        parsed = _json(text)
    except ValueError:
        return text
    allowed = _types(schema or {}, schema or {})
    if allowed is None or "string" not in allowed:
        return parsed
    kind = _kind(parsed)
    wider = {"number"} if kind == "integer" else set()
    return parsed if kind != "string" and ({kind} | wider) & allowed else text


def scalar(text: str, schema: Schema | None, key: str) -> Any:
    """The value of one parameter, typed by its schema where that wants neither text, list nor object."""
    if schema is None:
        return text
    found = value(text, _property(schema, key) or {"type": "string"})
    return text if isinstance(found, list | dict) else found


def from_file(path: str) -> dict[str, Any]:
    """The JSON object in a file, or on stdin for ``-``.

    Raises:
        InvalidInput: it cannot be read, or is not one JSON object.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInput(f"--params-file {path} cannot be read: {exc}", "Check the path.") from exc
    try:
        found = _json(text)
    except ValueError as exc:
        raise InvalidInput(
            f"--params-file {path} is not JSON: {exc}", "It must hold one JSON object."
        ) from exc
    if not isinstance(found, dict):
        raise InvalidInput(f"--params-file {path} holds no JSON object", 'Write it like {"year": 2013}.')
    return found


def _json(text: str) -> Any:
    """A value of JSON: Python's reader would also take NaN, and make infinity of 1e400."""
    return json.loads(text, parse_constant=_no_constant, parse_float=_finite)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _property(schema: Schema | None, key: str) -> Schema | None:
    if not schema:
        return None
    found = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    if not isinstance(found, dict):
        return None
    return found | {"$defs": schema.get("$defs", {})}


def _kind(parsed: Any) -> str:
    if parsed is None:
        return "null"
    names: list[tuple[type, str]] = [
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
    ]
    return next((name for kind, name in names if isinstance(parsed, kind)), "object")


def _types(schema: Schema, root: Schema, depth: int = 0) -> set[str] | None:
    """The JSON types that a schema allows; None if it does not say."""
    if depth > 20:
        return None
    if isinstance(ref := schema.get("$ref"), str):
        found = root.get("$defs", {}).get(ref.rpartition("/")[2])
        return _types(found, root, depth + 1) if isinstance(found, dict) else None
    if "type" in schema:
        named = schema["type"]
        return set(named) if isinstance(named, list) else {str(named)}
    if "enum" in schema:
        return {_kind(one) for one in schema["enum"]}
    if "const" in schema:
        return {_kind(schema["const"])}
    branches = schema.get("anyOf") or schema.get("oneOf")
    if not branches:
        return None
    every: set[str] = set()
    for branch in branches:
        found_types = _types(branch, root, depth + 1)
        if found_types is None:
            return None
        every |= found_types
    return every
