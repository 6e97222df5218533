"""The JSON schema of deployment files, by which editors check and complete them."""

from __future__ import annotations

import json
from typing import Any


def schema() -> dict[str, Any]:
    """The schema (draft 2020-12)."""
    from shunter_cli.deployment_files.model import File

    made: dict[str, Any] = _for_variables(File.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | made


def schema_text() -> str:
    """The schema as the file that is published."""
    return json.dumps(schema(), indent=2) + "\n"


def _for_variables(part: Any) -> Any:
    """Let ``${NAME}`` stand for any value that is no list or mapping, and drop titles that repeat names."""
    if isinstance(part, list):
        return [_for_variables(one) for one in part]
    if not isinstance(part, dict):
        return part
    if isinstance(part.get("properties"), dict):
        part = part | {
            "properties": {
                key: {name: value for name, value in one.items() if name != "title"}
                for key, one in part["properties"].items()
            }
        }
    made = {key: _for_variables(one) for key, one in part.items()}
    if not _refuses_variables(made):
        return made
    outside = {key: made.pop(key) for key in ("description", "default", "title") if key in made}
    return {"anyOf": [made, {"type": "string", "pattern": r"\$\{"}]} | outside


def _refuses_variables(part: dict[str, Any]) -> bool:
    """Whether it describes a value that a variable may stand for, but not its text."""
    kind = part.get("type")
    return kind in ("integer", "number", "boolean") or (
        kind == "string" and bool({"enum", "pattern"} & set(part))
    )
