"""How people sign in with the account that they have already, by OpenID Connect."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from shunter_work_pools.contracts.base import Contract
from shunter_work_pools.contracts.identities import Role

#: Seconds that a key holds which somebody got by signing in.
SIGNED_IN_FOR = 12 * 3600.0


class SignInInfo(Contract):
    """Where people sign in.

    Attributes:
        issuer: the provider; None: there is none, and keys are made by an admin.
        client_id: what it knows this server's command line as.
        scopes: to be asked for, with blanks between.
    """

    issuer: str | None = None
    client_id: str | None = None
    scopes: str = ""


class SignInRequest(Contract):
    """Shows the ID token that the provider gave."""

    # Its length by itself: in the pattern it would make an automaton of megabytes.
    id_token: Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=16384)] = Field(repr=False)


def role_of(rule: str) -> tuple[str, str, Role]:
    """Claim, value and role of ``CLAIM=VALUE:ROLE``.

    Raises:
        ValueError: what is wrong, what to do.
    """
    looks = f"Write CLAIM=VALUE:ROLE, for example groups=platform:admin; roles are {', '.join(Role)}."
    claim, equals, rest = rule.partition("=")
    value, colon, role = rest.rpartition(":")
    if not (claim.strip() and equals and value.strip() and colon):
        raise ValueError(f"holds {rule!r}, which is not CLAIM=VALUE:ROLE", looks)
    if role not in list(Role):
        raise ValueError(f"holds {rule!r}, whose role there is not", looks)
    return claim.strip(), value.strip(), Role(role)


def granted_role(rules: Sequence[str], claims: Mapping[str, Any]) -> Role | None:
    """The highest role that the claims of an ID token give; None: none.

    A claim may be a list. An e-mail address counts only if the provider says that it is verified.
    """
    granted: list[Role] = []
    for claim, value, role in map(role_of, rules):
        said = claims.get(claim)
        if claim == "email" and claims.get("email_verified") is not True:
            continue
        if value in (said if isinstance(said, list) else [said]):
            granted.append(role)
    return max(granted, key=list(Role).index, default=None)


def called(claims: Mapping[str, Any]) -> str:
    """What a person is called in keys and the audit: the verified e-mail address, else what the provider knows it
    as. With a colon in it, so that no key that was made by hand has the same name."""
    known = claims.get("email") if claims.get("email_verified") is True else None
    text = known if isinstance(known, str) and known else str(claims["sub"])
    safe = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "@._+-") else "_" for sign in text)
    if safe == text and len(safe) <= 80:
        return f"oidc:{safe}"
    return f"oidc:{safe[:70]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"  # two that look alike are two
