"""Secrets of this agent's own side: in its environment or in files of its machine. Their values never pass the server.

They are read anew for each attempt, so that a file that is rotated counts at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from shunter_infrastructure.launcher import LaunchFailed
from shunter_work_pools.contracts.deployments import EnvName, Work
from shunter_work_pools.contracts.secrets import SECRET_LIMIT, FromAgent
from shunter_work_pools.contracts.states import Cause

_REMEDY = "Give it in [secrets] of the agent's agent.toml, or deploy to another pool."


class OwnSecret(BaseModel):
    """Where a value is: ``{env = "VARIABLE"}`` of the agent, or ``{file = "/path"}`` on its machine."""

    model_config = ConfigDict(extra="forbid")

    env: EnvName | None = None
    """A variable of the agent's environment."""
    file: Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4096)] | None = None
    """A file; one end of line at its end does not count."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("give exactly one of env and file")
        return self


#: The section ``[secrets]``.
OwnSecrets = Mapping[str, OwnSecret]


def own_values(work: Work, secrets: OwnSecrets) -> dict[str, str]:
    """The variables of some work that the agent itself has the values of.

    Raises:
        LaunchFailed: it has one not.
    """
    return {
        variable: _value(value.agent_secret, variable, secrets)
        for variable, value in work.env.items()
        if isinstance(value, FromAgent)
    }


def _value(name: str, variable: str, secrets: OwnSecrets) -> str:
    own = secrets.get(name)
    if own is None:
        raise LaunchFailed(
            Cause.REJECTED,
            f"this agent has no secret {name!r} of its own, which variable {variable} is",
            _REMEDY,
        )
    if own.env is not None:
        value = os.environ.get(own.env, "")
        if not value:
            raise LaunchFailed(
                Cause.REJECTED,
                f"the agent's secret {name!r} is its variable {own.env}, which is not set",
                "Start the agent with it.",
            )
        return value
    assert own.file is not None
    return _read(name, Path(own.file))


def _read(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(SECRET_LIMIT + 1)
        value = raw.decode()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise LaunchFailed(
            Cause.REJECTED,
            f"the file {path} of the agent's secret {name!r} cannot be read: {reason}",
            _REMEDY,
        ) from None  # the bytes are in the error
    value = value.removesuffix("\n").removesuffix("\r")
    if not value or len(raw) > SECRET_LIMIT or "\0" in value:
        wrong = (
            "is empty" if not value else "holds a NUL" if "\0" in value else f"is over {SECRET_LIMIT} bytes"
        )
        raise LaunchFailed(Cause.REJECTED, f"the file {path} of the agent's secret {name!r} {wrong}", _REMEDY)
    return value
