"""Parameters of runs: their size, and whether they fit the deployment's JSON schema."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from shunter_work_pools.contracts.deployments import PARAMETERS_LIMIT, DeploymentSpec
from shunter_work_pools.contracts.errors import BadRequest, TooLarge


def check_schema(schema: dict[str, Any] | None) -> None:
    """Refuse a parameter schema that is none.

    Raises:
        BadRequest: not a JSON schema (draft 2020-12).
    """
    if schema is None:
        return
    check_json(schema, "parameter_schema")
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        raise BadRequest(f"parameter_schema is not a JSON schema: {exc.message}") from exc


#: Levels of lists and objects in each other. Readers of JSON give up somewhere above: what is kept must
#: be readable for everybody it is sent to.
DEPTH_LIMIT = 100


def json_size(value: Any) -> int:
    """Bytes of ``value`` as JSON.

    Raises:
        ValueError: NaN, infinities, lone surrogates, or nested too deeply.
    """
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH_LIMIT:
            raise ValueError(f"lists and objects are nested deeper than {DEPTH_LIMIT} levels")
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = [one for one in inner if isinstance(one, dict | list)]
    return len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())


def check_json(value: Any, place: str) -> None:
    """Refuse what JSON does not have, and what cannot be read back everywhere.

    Raises:
        BadRequest: it names ``place``.
    """
    try:
        json_size(value)
    except ValueError as exc:
        raise BadRequest(f"{place} is not JSON: {exc}") from exc


@lru_cache(maxsize=1000)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # An empty registry: a schema that refers to an address is not fetched from there.
    return Draft202012Validator(json.loads(schema), registry=Registry())


def _faults(spec: DeploymentSpec, parameters: dict[str, Any]) -> list[Any]:
    from referencing.exceptions import Unresolvable

    validator = _validator(json.dumps(spec.parameter_schema, sort_keys=True))
    try:
        return sorted(validator.iter_errors(parameters), key=lambda error: list(map(str, error.path)))
    except (Unresolvable, RecursionError) as exc:
        raise BadRequest(
            f"the deployment's parameter_schema cannot be followed: {type(exc).__name__}: {exc}",
            "Deploy it with a schema whose references lead somewhere within it.",
        ) from exc


def _check_size(parameters: dict[str, Any], place: str) -> None:
    try:
        size = json_size(parameters)
    except ValueError as exc:
        raise BadRequest(f"the parameters of {place} are not JSON: {exc}") from exc
    if size > PARAMETERS_LIMIT:
        raise TooLarge(
            f"the parameters of {place} take {size} bytes, more than {PARAMETERS_LIMIT}",
            "Pass the address of the data instead of the data.",
        )


def _words(error: Any) -> str:
    where = ".".join(str(step) for step in error.path)
    return f"{where}: {error.message}" if where else str(error.message)


def _wrong(spec: DeploymentSpec, parameters: dict[str, Any], partial: bool) -> list[Any]:
    if spec.parameter_schema is None:
        return []
    return [
        error
        for error in _faults(spec, parameters)
        if not (partial and error.validator == "required" and not error.path)
    ]


def _known(spec: DeploymentSpec) -> str:
    names = (spec.parameter_schema or {}).get("properties", {})
    return f"Parameters it takes: {', '.join(names) or 'none'}."


def parameter_faults(
    spec: DeploymentSpec, parameters: dict[str, Any], place: str, partial: bool = False
) -> list[tuple[list[str | int], str, str]]:
    """All that does not fit, each as path into the parameters, detail and remedy.

    Args:
        spec, parameters, place: as for :func:`check_parameters`.
        partial: required ones may be missing still.

    Raises:
        BadRequest: the schema cannot be followed, or the parameters are not JSON.
        TooLarge: more than 512 KiB as JSON.
    """
    _check_size(parameters, place)
    return [
        (list(error.path), f"the parameters of {place} do not fit: {_words(error)}", _known(spec))
        for error in _wrong(spec, parameters, partial)
    ]


def check_parameters(spec: DeploymentSpec, parameters: dict[str, Any], place: str) -> None:
    """Refuse parameters that are too large or do not fit the deployment's schema.

    Args:
        spec: the deployment's revision.
        parameters: defaults and the run's own, merged.
        place: whose they are, for the error.

    Raises:
        BadRequest: missing, extra or of the wrong type, all named.
        TooLarge: more than 512 KiB as JSON.
    """
    if parameters:
        _check_size(parameters, place)
    wrong = _wrong(spec, parameters, False)
    if wrong:
        told = "; ".join(_words(error) for error in wrong[:10])
        raise BadRequest(f"the parameters of {place} do not fit: {told}", _known(spec))
