"""Templates of pools: checked when a pool is made or changed, and with a deployment's variables over them.

Raises:
    BadRequest: every function here, with ``faults``: path, detail and remedy of each.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from shunter_work_pools.contracts.docker_template import RESERVED, DockerTemplate
from shunter_work_pools.contracts.errors import BadRequest
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
    if pool_type == "kubernetes":
        return  # its launcher reads it
    if pool_type != "docker":
        for name in asked:
            yield (
                [name],
                f"pools of type {pool_type} have no template",
                "Leave it out, or use a docker pool.",
            )
        return
    try:
        DockerTemplate.model_validate(merged)
    except ValidationError as exc:
        for error in exc.errors(include_url=False):
            loc = [step for step in error["loc"] if step != "[key]"]
            if variables is None or not loc or loc[0] in variables:
                yield _fault(loc, error["type"], str(error["msg"]))


def _fault(loc: list[str | int], kind: str, message: str) -> Fault:
    message = message.removeprefix("Value error, ")
    if kind == "missing" and loc == ["image"]:
        return loc, "names no image", "Give one, as in --template image=python:3.12."
    name = str(loc[-1]) if loc else ""
    if kind == "extra_forbidden" and len(loc) == 1:
        if name in RESERVED:
            return loc, f"cannot be set: {RESERVED[name]}", "Leave it out."
        near = difflib.get_close_matches(name, DockerTemplate.model_fields, 1)
        meant = f"Did you mean {near[0]}? " if near else ""
        known = ", ".join(sorted(DockerTemplate.model_fields))
        return loc, "is not a variable of docker pools", f"{meant}There are: {known}."
    return loc, message, "`shunter pool template show --schema` tells what each variable may be."


def _where(loc: list[str | int]) -> str:
    return f"{'.'.join(map(str, loc))}: " if loc else ""
