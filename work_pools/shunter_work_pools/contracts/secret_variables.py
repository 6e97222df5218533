"""Values of a template that are secret: the server keeps them and gives them to agents, and shows them to nobody.

Answers have null in their place. Whoever sends null back leaves the value as it is, so that what was read can be
changed and sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainSerializer, SerializerFunctionWrapHandler, WrapSerializer

#: The variable that holds them, by name.
SECRETS = "secret_env"

Variables = dict[str, Any]


def hidden(variables: Variables) -> Variables:
    """Variables as they are shown."""
    values = variables.get(SECRETS)
    if not isinstance(values, dict):
        return variables
    return variables | {SECRETS: dict.fromkeys(values)}


def kept(variables: Variables, before: Mapping[str, Any]) -> Variables:
    """Variables with the values that they had before where null says that those stay."""
    values, old = variables.get(SECRETS), before.get(SECRETS)
    if not isinstance(values, dict) or not isinstance(old, dict):
        return variables
    return variables | {
        SECRETS: {name: old.get(name) if value is None else value for name, value in values.items()}
    }


def _hidden_in(spec: Any, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
    document: dict[str, Any] = dump(spec)
    if "variables" in document:
        document["variables"] = hidden(document["variables"])
    return document


#: A template in an answer.
ShownVariables = Annotated[Variables, PlainSerializer(hidden)]
#: Of the spec of a deployment in an answer.
WithoutSecrets = WrapSerializer(
    lambda spec, dump: _hidden_in(spec, dump)
)  # without a type: the schema stays the spec's
