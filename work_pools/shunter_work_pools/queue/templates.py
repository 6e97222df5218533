"""Templates of pools: checked when a pool is made or changed, and with a deployment's variables over them.

Raises:
    BadRequest: every function here, with ``faults``: path, detail and remedy of each.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.contracts.kubernetes_check import FaultyManifest
from shunter_work_pools.contracts.pool_templates import TEMPLATES, TemplateKind
from shunter_work_pools.contracts.secret_variables import SECRETS
from shunter_work_pools.queue.parameters import check_json

Fault = tuple[list[str | int], str, str]


def check(pool_type: str, template: Mapping[str, Any]) -> None:
    """Refuse a template that no run could be launched by."""
    check_json(template, "template")
    found = list(faults(pool_type, template))
    if found:
        told = "; ".join(f"template {_where(loc)}{detail}" for loc, detail, _ in found[:10])
        raise BadRequest(
            told,
            found[0][2],
            faults=[{"loc": loc, "detail": detail, "remedy": remedy} for loc, detail, remedy in found],
        )


def faults(
    pool_type: str, template: Mapping[str, Any], variables: Mapping[str, Any] | None = None
) -> Iterator[Fault]:
    """All that is wrong with a template, or only with what ``variables`` change of it.

    Each is the path to the variable, what is wrong, and what to do.
    """
    merged = {**template, **(variables or {})}
    asked = template if variables is None else variables
    kind = TEMPLATES.get(pool_type)
    if kind is None:
        with_one = " or ".join(TEMPLATES)
        for name in asked:
            yield (
                [name],
                f"pools of type {pool_type} have no template",
                f"Leave it out, or use a pool of type {with_one}.",
            )
        return
    try:
        kind.model.model_validate(merged)
    except ValidationError as exc:
        for error in exc.errors(include_url=False):
            loc = [step for step in error["loc"] if step != "[key]"]
            if not loc or loc[0] in asked or variables is None:
                yield from _faults(loc, error, pool_type, kind)
        return
    for name, value in asked.get(SECRETS, {}).items():
        if value is None:
            yield [SECRETS, name], "has no value", f'Give it one, as in {SECRETS}={{"{name}": "..."}}.'


def _faults(loc: list[str | int], error: ErrorDetails, pool_type: str, kind: TemplateKind) -> Iterator[Fault]:
    raised = error.get("ctx", {}).get("error")
    if isinstance(raised, FaultyManifest):
        for path, detail, remedy in raised.faults:
            yield [*loc, *path], detail, remedy
        return
    message = error["msg"].removeprefix("Value error, ")
    name = str(loc[-1]) if loc else ""
    if error["type"] == "missing" and loc == ["image"]:
        yield loc, "names no image", "Give one, as in --template image=python:3.12."
    elif error["type"] == "extra_forbidden" and len(loc) == 1 and name in kind.reserved:
        yield loc, f"cannot be set: {kind.reserved[name]}", "Leave it out."
    elif error["type"] == "extra_forbidden" and len(loc) == 1:
        near = difflib.get_close_matches(name, kind.model.model_fields, 1)
        meant = f"Did you mean {near[0]}? " if near else ""
        known = ", ".join(sorted(kind.model.model_fields))
        yield loc, f"is not a variable of {pool_type} pools", f"{meant}There are: {known}."
    else:
        yield loc, message, "`shunter pool template show --schema` tells what each variable may be."


def _where(loc: list[str | int]) -> str:
    return f"{'.'.join(map(str, loc))}: " if loc else ""
