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


def check_json(value: Any, place: str) -> None:
    """Refuse what JSON does not have: NaN, infinities, lone surrogates.

    Raises:
        BadRequest: it names ``place``.
    """
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as exc:
        raise BadRequest(f"{place} is not JSON: {exc}") from exc


@lru_cache(maxsize=1000)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def check_parameters(
    spec: DeploymentSpec, parameters: dict[str, Any], place: str, partial: bool = False
) -> None:
    """Refuse parameters that are too large or do not fit the deployment's schema.

    Args:
        spec: the deployment's revision.
        parameters: defaults and the run's own, merged.
        place: whose they are, for the error.
        partial: required ones may be missing still.

    Raises:
        BadRequest: missing, extra or of the wrong type, all named.
        TooLarge: more than 512 KiB as JSON.
    """
    if parameters:
        try:
            size = len(json.dumps(parameters, allow_nan=False, ensure_ascii=False).encode())
        except ValueError as exc:  # NaN, infinities, lone surrogates
            raise BadRequest(f"the parameters of {place} are not JSON: {exc}") from exc
        if size > PARAMETERS_LIMIT:
            raise TooLarge(
                f"the parameters of {place} take {size} bytes, more than {PARAMETERS_LIMIT}",
                "Pass the address of the data instead of the data.",
            )
    if spec.parameter_schema is None:
        return
    validator = _validator(json.dumps(spec.parameter_schema, sort_keys=True))
    faults = []
    for error in sorted(validator.iter_errors(parameters), key=lambda error: list(map(str, error.path))):
        if partial and error.validator == "required" and not error.path:
            continue
        where = ".".join(str(step) for step in error.path)
        faults.append(f"{where}: {error.message}" if where else error.message)
    if faults:
        known = ", ".join(spec.parameter_schema.get("properties", {})) or "none"
        raise BadRequest(
            f"the parameters of {place} do not fit: {'; '.join(faults[:10])}",
            f"Parameters it takes: {known}.",
        )
