"""Agents that are known by their service account: Kubernetes says who they are, and nothing secret is handed out.

An agent in a cluster shows a token that the cluster made for it, for this server alone (audience) and for an hour or so.
It is checked here against the cluster's public keys, without asking the cluster each time.
https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from shunter_work_pools.contracts.errors import InvalidInput, Unauthenticated, Unavailable
from shunter_work_pools.contracts.identities import Kind
from shunter_work_pools.contracts.trust import Trust
from shunter_work_pools.identities import Identity
from shunter_work_pools.identity_tokens import LEEWAY, BadToken, Draft, read
from shunter_work_pools.in_cluster import OWN, own_api_server
from shunter_work_pools.issuer_keys import Issuer, Place

#: Seconds for which an answer of the API server about a token counts.
REVIEW_COUNTS_FOR = 30.0
_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"


class Trusted:
    """What the setting ``server.trust`` says, at work.

    Args:
        rules: the setting.
        environ: says where the API server of the cluster is that this runs in.
        clock: seconds since the epoch.

    Raises:
        InvalidInput: a rule means the cluster that this runs in, and it runs in none.
    """

    def __init__(
        self,
        rules: Sequence[Trust],
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._issuers: dict[Place, Issuer] = {}
        self._rules: list[tuple[Trust, Issuer]] = []
        for rule in rules:
            place = _place(rule, environ)
            self._rules.append((rule, self._issuers.setdefault(place, Issuer(place))))

    async def identify(self, token: str) -> Identity | None:
        """The service account that a token is of.

        Raises:
            Unauthenticated: it is not believed, or of nobody who is trusted; it says why.
            Unavailable: it cannot be checked now.
        """
        if not self._rules:
            return None
        try:
            return await self._checked(read(token), self._clock())
        except BadToken as exc:
            raise Unauthenticated(
                f"the service account's token is not taken: {exc}",
                "docs/joining.md tells how an agent in a cluster gets one, and server.trust who is taken.",
            ) from exc

    async def close(self) -> None:
        """Close the connections."""
        for issuer in self._issuers.values():
            await issuer.close()

    async def _checked(self, draft: Draft, now: float) -> Identity:
        away: Unavailable | None = None
        fault = BadToken("its issuer is none that is trusted")
        for issuer in self._issuers.values():
            try:
                if await issuer.name() != draft.issuer:
                    continue
            except Unavailable as exc:
                away = exc
                continue
            try:
                return await self._of_issuer(draft, issuer, now)
            except BadToken as exc:
                fault = exc
        if away is not None:
            raise away
        raise fault

    async def _of_issuer(self, draft: Draft, issuer: Issuer, now: float) -> Identity:
        rules = [rule for rule, its in self._rules if its is issuer]
        fault: BadToken | None = None
        for audience in dict.fromkeys(rule.audience for rule in rules):
            try:
                claims = await issuer.verified(draft, audience, now)
            except BadToken as exc:
                fault = fault or exc
                continue
            rule = next(
                (one for one in rules if one.audience == audience and one.subject == claims["sub"]), None
            )
            if rule is None:
                fault = BadToken(f"{claims['sub']!r} is nobody who is trusted")
                continue
            until = float(claims["exp"]) + LEEWAY
            if rule.review:
                await _review(issuer, draft, rule)
                until = min(until, now + REVIEW_COUNTS_FOR)
            return self._identity(rule, issuer, until)
        assert fault is not None
        raise fault

    def _identity(self, rule: Trust, issuer: Issuer, until: float) -> Identity:
        account = rule.service_account
        if len(self._issuers) > 1:
            account = f"{issuer.place.issuer or issuer.place.api_server}:{account}"
        return Identity(
            Kind.AGENT,
            account,
            pools=frozenset(rule.pools),
            manage_pools=rule.manage_pools,
            expires_at=int(until * 1_000_000),
            account=account,
        )


def _place(rule: Trust, environ: Mapping[str, str]) -> Place:
    api_server, ca_file, token_file = rule.api_server, rule.ca_file, rule.token_file
    if rule.issuer is None and api_server is None:
        api_server = own_api_server(environ)
        if api_server is None:
            raise InvalidInput(
                f"server.trust names {rule.service_account} without a cluster, and this server runs in none",
                "Say its issuer, or its apiServer.",
            )
        ca_file, token_file = str(OWN / "ca.crt"), str(OWN / "token")
    return Place(rule.issuer, rule.jwks, api_server.rstrip("/") if api_server else None, ca_file, token_file)


async def _review(issuer: Issuer, draft: Draft, rule: Trust) -> None:
    """Ask the API server.

    Raises:
        BadToken: it does not take the token.
        Unavailable: it does not answer.
    """
    assert issuer.place.api_server is not None
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": draft.text, "audiences": [rule.audience]},
    }
    try:
        answer: Any = await issuer.ask("POST", issuer.place.api_server + _REVIEWS, body)
        status = answer["status"]
        user, audiences = status.get("user", {}).get("username"), status.get("audiences", [])
    except (OSError, ValueError, KeyError, AttributeError, TypeError, httpx.HTTPError) as exc:
        raise Unavailable(
            "the cluster's API server does not say whether the token holds (TokenReview)",
            "Ask again. The server needs the right to create tokenreviews.authentication.k8s.io.",
        ) from exc
    if status.get("authenticated") is not True or user != rule.subject or rule.audience not in audiences:
        raise BadToken("the cluster says that it does not hold any more")
