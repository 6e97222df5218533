"""People who sign in by OpenID Connect: an ID token of the provider is changed for a key that holds for half a day."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shunter_work_pools.contracts.errors import Forbidden, Unauthenticated
from shunter_work_pools.contracts.identities import Role
from shunter_work_pools.contracts.sign_in import SignInInfo, called, granted_role
from shunter_work_pools.identity_tokens import BadToken, read
from shunter_work_pools.issuer_keys import Issuer, Place

#: Seconds after which an ID token is too old to sign in with: what it is for is done at once.
FRESH_FOR = 600.0


class SignIn:
    """What the settings ``server.oidc_*`` say, at work.

    Args:
        issuer, client_id, scopes, roles: the settings.
        clock: seconds since the epoch.

    Attributes:
        info: as it is told to who wants to sign in.
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        scopes: str,
        roles: Sequence[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.info = SignInInfo(issuer=issuer, client_id=client_id, scopes=scopes)
        self._clock = clock
        self._roles = roles
        self._client_id = client_id
        self._issuer = Issuer(Place(issuer))

    async def known(self, id_token: str) -> tuple[str, Role]:
        """What somebody is called, and his role.

        Raises:
            Unauthenticated: the token is not believed.
            Forbidden: nothing that the provider says of him gives a role.
            Unavailable: the provider's keys cannot be had.
        """
        now = self._clock()
        try:
            draft = read(id_token)
            claims = await self._issuer.verified(draft, self._client_id, now)
            self._check_meant(claims, now)
        except BadToken as exc:
            raise Unauthenticated(f"the ID token is not taken: {exc}", "Sign in again.") from exc
        name, role = called(claims), granted_role(self._roles, claims)
        if role is None:
            raise Forbidden(
                f"nothing that the provider says of {name} gives a role here",
                "Ask an admin: server.oidc_roles says which claims do.",
            )
        return name, role

    def _check_meant(self, claims: Mapping[str, Any], now: float) -> None:
        """Beyond signature and audience (OpenID Connect Core, 3.1.3.7).

        Raises:
            BadToken: it is meant for another client, or old.
        """
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        meant = claims.get("azp")
        if (meant is not None or several) and meant != self._client_id:
            raise BadToken("it was made for another client (azp)")
        issued = claims.get("iat")
        if not isinstance(issued, int | float) or now - issued > FRESH_FOR:
            raise BadToken("it is old (iat)")

    async def close(self) -> None:
        """Close the connections."""
        await self._issuer.close()
