"""What an agent's own policy says, for the people of its machine: no server is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter_cli import output
from shunter_cli.output import Output
from shunter_work_pools.contracts.configuration import load
from shunter_work_pools.contracts.durations import exactly
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.home import home_from_env

if TYPE_CHECKING:
    from shunter_agents.policy import Policy

_SIZES = {("maximum", "memory_limit"), ("limits", "core"), ("limits", "fsize")}


def show(file: str | None, name: str | None, output_as: Output) -> None:
    """Read the policy as the agent would, and print its rules.

    Args:
        file: that was given; None: that of the settings, or of the agent with this name.

    Raises:
        InvalidInput: the agent would not start with it.
    """
    from shunter_agents.policy import read

    path, must = _path(file, name)
    policy = read(path, must=must)
    there = path.exists()
    if output_as is not Output.TABLE:
        rules = policy.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        output.show_data({"file": str(path), "exists": there, "rules": rules}, output_as)
        return
    rows = [(f"[{section}]", key, _words(section, key, value)) for section, key, value in policy.rules()]
    rows += [("[secrets]", one, _source(where)) for one, where in sorted(policy.secrets.items())]
    if rows:
        output.table(("SECTION", "KEY", "WHAT"), rows, elastic=("WHAT",))
        output.say("")
    output.say(f"{path}{'' if there else ' is not there: anything is allowed'}")
    if there:
        output.say(f"not restricted: {output.words(_open(policy)) if _open(policy) else 'nothing'}")


def _path(file: str | None, name: str | None) -> tuple[Path, bool]:
    if file is not None:
        return Path(os.path.abspath(os.path.expanduser(file))), True
    if name is not None:
        from shunter_agents.policy import FILE

        return home_from_env().agents / name / FILE, False
    named = load()["agent.policy"]
    if named:
        return Path(named), True
    raise InvalidInput(
        "there is no setting agent.policy, and no agent is named",
        "Name the file with --policy FILE, or the agent with --name NAME.",
    )


def _open(policy: Policy) -> list[str]:
    """Sections by which nothing is restricted; whoever wrote some rules may have meant those as well."""
    closed = {section for section, _, _ in policy.rules()}
    return [
        section for section in type(policy).model_fields if section not in closed and section != "secrets"
    ]


def _words(section: str, key: str, value: Any) -> str:
    if (section, key) in _SIZES:
        return output.size(value)
    if (section, key) == ("maximum", "timeout"):
        return exactly(value)
    if (section, key) == ("limits", "umask"):
        return f"{value:04o}"
    if isinstance(value, dict):
        return output.amounts(value)
    if isinstance(value, list):
        return ", ".join(value) or "nothing"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _source(where: Any) -> str:
    return f"variable {where.env}" if where.env is not None else f"file {where.file}"
