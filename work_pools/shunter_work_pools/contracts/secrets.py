"""Values that nobody is shown: kept by the server, encrypted, or by an agent alone."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints

from shunter_work_pools.contracts.base import Contract, Instant, Name

#: Bytes of a secret's value, in UTF-8.
SECRET_LIMIT = 64 * 1024


class FromSecret(Contract):
    """The value of a secret that the server keeps."""

    secret: Name


class FromAgent(Contract):
    """The value of a secret that the agent has by its own settings; it never passes the server."""

    agent_secret: Name


#: Where the value of a variable comes from.
EnvValue = str | FromSecret | FromAgent


class Secret(Contract):
    """A secret, without its value.

    Attributes:
        version: counts its values.
        used_by: deployments whose current revision names it.
        readable: the server has the key that its value was encrypted by.
    """

    name: str
    version: int
    created_at: Instant
    updated_at: Instant
    used_by: list[str] = []
    readable: bool = True


def _fits(value: str) -> str:
    if "\0" in value:
        raise ValueError("a NUL character cannot be part of a variable")
    if len(value.encode()) > SECRET_LIMIT:
        raise ValueError(f"it has more than {SECRET_LIMIT} bytes")
    return value


class SecretValue(Contract):
    """Sets the value of a secret: up to ``SECRET_LIMIT`` bytes, and no NUL."""

    value: Annotated[str, StringConstraints(min_length=1), AfterValidator(_fits)] = Field(repr=False)


class SecretList(Contract):
    """Secrets by name."""

    secrets: list[Secret]


class SecretsRequest(Contract):
    """An agent asks for the secrets of an attempt that it holds."""

    session: UUID
    run: UUID
    attempt: int = Field(ge=1)
    epoch: int = Field(ge=1)


class AttemptSecrets(Contract):
    """What an attempt may have.

    Attributes:
        env: variable -> value.
        template_env: the same, of the pool's template and the deployment's variables (``secret_env``).
        source: value of the secret that opens its source; None: it needs none.
        masked: values that are not to be seen in its output beside those above: what the same secrets were before,
            as it may have been given those.
        token: of the attempt's own, if its work asks for one; it dies with the attempt.
        missing: names of secrets that it wants and that are not there (any more).
        unreadable: names of those (of variables of ``secret_env``) that the server has no key for: they cannot even
            be masked.
    """

    env: dict[str, str] = Field(default={}, repr=False)
    template_env: dict[str, str] = Field(default={}, repr=False)
    source: str | None = Field(default=None, repr=False)
    masked: list[str] = Field(default=[], repr=False)
    token: str | None = Field(default=None, repr=False)
    missing: list[str] = []
    unreadable: list[str] = []

    @property
    def values(self) -> list[str]:
        """All that is not to be seen."""
        own = [*self.env.values(), *self.template_env.values(), *self.masked]
        return own + [one for one in (self.source, self.token) if one is not None]


class OwnSecrets(Contract):
    """The secrets of an attempt, for itself: variable -> value, as it has them in its environment."""

    env: dict[str, str] = Field(default={}, repr=False)
