"""Who asks: people by keys with roles, agents by credentials for pools, attempts by tokens, joiners by enrolment.

The server keeps none of these tokens, only their hashes. Each begins with a word that says what it is, so that
one that turns up where it should not be can be told and found.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from shunter_work_pools.contracts.base import Contract, Instant, Name
from shunter_work_pools.contracts.deployments import PositiveSeconds
from shunter_work_pools.contracts.key_kinds import Kind, Role

__all__ = ["Kind", "Role"]


#: What a token of each kind begins with.
PREFIXES = {
    Kind.PERSON: "shk_",
    Kind.AGENT: "sha_",
    Kind.ENROLMENT: "she_",
    Kind.ATTEMPT: "shr_",
}


class WhoAmI(Contract):
    """Who the server takes the sender of a request for.

    Attributes:
        name: of the key or agent; of an attempt ``RUN.NUMBER``.
        role: of a person.
        pools: of an agent or an enrolment token.
        manage_pools: an agent may make these pools, and set their templates and match tags.
        expires_at: when the token ends; None: it does not by itself.
    """

    kind: Kind
    name: str
    role: Role | None = None
    pools: list[str] = []
    manage_pools: bool = False
    expires_at: Instant | None = None


class Key(Contract):
    """A key as the server keeps it, without the key itself.

    Attributes:
        kind: ``person``, ``agent`` (the credential of one) or ``enrolment``.
        name: of the person's key, of the agent, of the invitation.
        uses_left: of an enrolment token.
        last_used_at: within a minute or so.
        last_used_from: the address of the sender.
    """

    kind: Kind
    name: str
    role: Role | None = None
    pools: list[str] = []
    manage_pools: bool = False
    uses_left: int | None = None
    created_at: Instant
    created_by: str
    expires_at: Instant | None = None
    revoked_at: Instant | None = None
    last_used_at: Instant | None = None
    last_used_from: str | None = None


class KeyRequest(Contract):
    """Asks for a person's key.

    Attributes:
        expires_in: seconds; None: it does not expire by itself.
    """

    name: Name
    role: Role
    expires_in: PositiveSeconds | None = None


class NewKey(Contract):
    """A key that was made; ``token`` is shown this once."""

    key: Key
    token: str


class KeyList(Contract):
    """Keys by kind and name."""

    keys: list[Key]


class InvitationRequest(Contract):
    """Asks for an enrolment token.

    Attributes:
        pool: that the agents will serve; it exists.
        uses: so many agents may join by it.
        expires_in: seconds.
        manage_pools: these agents may make the pool, and set its template and match tags.
    """

    pool: Name
    name: Name | None = None
    uses: int = Field(default=1, ge=1, le=10_000)
    expires_in: Annotated[float, Field(gt=0, le=30 * 86_400)] = 3600.0
    manage_pools: bool = False


#: SHA-256 of a token, in hex: all that the server keeps of one.
TokenHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class JoinRequest(Contract):
    """Makes an agent of who has an enrolment token; sent with that token.

    The agent makes its own token and writes it down before it asks, so that no answer can be lost: the same request
    again is answered alike, and spends nothing.

    Attributes:
        name: of the agent.
        token_hash: of the agent's own token, which has 256 bits of chance and begins as ``PREFIXES`` says.
        host: for people.
    """

    name: Name
    token_hash: TokenHash
    host: str = Field(default="", max_length=255)


class CredentialRequest(Contract):
    """An agent gives itself a new token; sent with the old one, which holds until the new one was used."""

    token_hash: TokenHash


class Credential(Contract):
    """What an agent's own token is good for. The agent alone has the token, with mode 0600.

    Attributes:
        renew_after: seconds after which it asks for a new one.
    """

    agent: str
    pools: list[str]
    expires_at: Instant
    renew_after: float
