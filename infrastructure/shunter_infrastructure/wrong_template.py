"""What is told of a template by which no run can be launched."""

from __future__ import annotations

from pydantic import ValidationError

from shunter_infrastructure.launcher import LaunchFailed
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.states import Cause


def wrong_template(assignment: Assignment, fault: ValidationError, makes: str) -> LaunchFailed:
    """The end of an attempt whose template, with its deployment's variables, is none.

    Args:
        makes: what the engine would have been asked for.
    """
    first = fault.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"] if step != "[key]")
    return LaunchFailed(
        Cause.REJECTED,
        f"the template of pool {assignment.pool!r} with the variables of deployment "
        f"{assignment.deployment!r} makes no {makes}: {f'{where}: ' if where else ''}{first['msg']}",
        "Correct it with `shunter pool template set`, or the deployment's variables.",
    )
