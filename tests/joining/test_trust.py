"""Service accounts that are trusted: which token is whose, where keys come from, and what strangers cannot cause."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools import trust
from shunter_work_pools.contracts.errors import InvalidInput, Unauthenticated, Unavailable
from shunter_work_pools.contracts.identities import Kind
from shunter_work_pools.contracts.trust import parsed
from shunter_work_pools.identities import Identity
from shunter_work_pools.identity_tokens import LEEWAY, UnknownKey, read
from shunter_work_pools.issuer_keys import KEPT_FOR, LOOK_EVERY, Issuer, Place
from shunter_work_pools.trust import Trusted
from tests.joining.issuer_server import IssuerServer, issuer_server
from tests.joining.signing import NOW, OTHER_KEY, RSA_KEY, public, token

DISCOVERY, JWKS, REVIEWS = (
    "/.well-known/openid-configuration",
    "/openid/v1/jwks",
    "/apis/authentication.k8s.io/v1/tokenreviews",
)


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[IssuerServer]:
    async with issuer_server(tmp_path) as one:
        one.answers[JWKS] = {"keys": [public(RSA_KEY)]}
        one.answers[DISCOVERY] = {"issuer": one.url, "jwks_uri": one.url + JWKS}
        yield one


def rule(issuer: IssuerServer, account: str = "runs/agent", **more: Any) -> dict[str, Any]:
    return {
        "serviceAccount": account,
        "pools": ["cluster"],
        "issuer": issuer.url,
        "caFile": issuer.ca_file,
    } | more


def trusted(*rules: dict[str, Any], clock: Clock | None = None, **environ: str) -> Trusted:
    return Trusted(parsed(list(rules)), environ, clock or Clock())


def good(issuer: IssuerServer, **more: Any) -> str:
    return token(**{"iss": issuer.url, **more})


async def known(by: Trusted, text: str) -> Identity:
    found = await by.identify(text)
    assert found is not None
    return found


async def refused(by: Trusted, text: str, reason: str) -> None:
    with pytest.raises(Unauthenticated, match=reason):
        await by.identify(text)


async def test_who_is_taken(issuer: IssuerServer) -> None:
    by = trusted(
        rule(issuer, managePools=True),
        rule(issuer, "other/agent", pools=["a", "b"], audience="https://shunter.example"),
    )
    found = await by.identify(good(issuer))
    until = int((NOW + 3600 + LEEWAY) * 1_000_000)
    assert found == Identity(
        Kind.AGENT,
        "runs/agent",
        pools=frozenset({"cluster"}),
        manage_pools=True,
        expires_at=until,
        account="runs/agent",
    )
    other = good(issuer, sub="system:serviceaccount:other:agent", aud=["https://shunter.example"])
    assert (await known(by, other)).pools == {"a", "b"}

    await refused(by, good(issuer, sub="system:serviceaccount:runs:default"), "nobody who is trusted")
    await refused(by, good(issuer, sub="system:serviceaccount:runs2:agent"), "nobody who is trusted")
    await refused(by, good(issuer, sub="system:serviceaccount:runs:agent2"), "nobody who is trusted")
    await refused(by, good(issuer, sub="runs/agent"), "nobody who is trusted")
    # An account is taken with the audience that its own rule names, not with that of another rule.
    await refused(by, good(issuer, sub="system:serviceaccount:other:agent"), "not for the audience|nobody")
    await refused(by, good(issuer, aud="https://kubernetes.default.svc"), "not for the audience")
    await refused(by, good(issuer, iss="https://elsewhere.example"), "its issuer is none that is trusted")
    await refused(by, good(issuer, exp=NOW - 100), "expired 100 seconds ago")
    await refused(by, "x" * 20_000, "larger than")
    await refused(by, token(OTHER_KEY, iss=issuer.url), "signature")
    await by.close()


async def test_of_two_clusters_each_counts_for_its_own(issuer: IssuerServer, tmp_path: Path) -> None:
    """The same account of another cluster is somebody else, whoever's keys it is signed with."""
    (tmp_path / "second").mkdir()
    async with issuer_server(tmp_path / "second") as second:
        second.answers[JWKS] = {"keys": [public(OTHER_KEY)]}
        second.answers[DISCOVERY] = {"issuer": second.url, "jwks_uri": second.url + JWKS}
        by = trusted(rule(issuer), rule(second, pools=["elsewhere"]))
        assert (await known(by, good(issuer))).pools == {"cluster"}
        there = await known(by, token(OTHER_KEY, iss=second.url))
        assert there.pools == {"elsewhere"}
        assert there.account == f"{second.url}:runs/agent", "two that are called alike are told apart"
        await refused(by, token(OTHER_KEY, iss=issuer.url), "signature")
        await refused(by, token(RSA_KEY, iss=second.url), "signature")
        await by.close()


async def test_keys_that_the_issuer_changes(issuer: IssuerServer) -> None:
    clock = Clock(0.0)
    one = Issuer(Place(issuer.url, ca_file=issuer.ca_file), clock)
    old, new = good(issuer), token(OTHER_KEY, kid="k2", iss=issuer.url)
    assert await one.verified(read(old), "shunter", NOW)
    issuer.answers[JWKS] = {"keys": [public(RSA_KEY), public(OTHER_KEY, "k2")]}
    with pytest.raises(UnknownKey):  # they were just had
        await one.verified(read(new), "shunter", NOW)
    clock.now = LOOK_EVERY
    assert await one.verified(read(new), "shunter", NOW)

    # Whoever names keys that there are not makes it ask once in a while, not each time.
    asked = len(issuer.asked)
    strangers = [token(OTHER_KEY, kid=f"x{number}", iss=issuer.url) for number in range(50)]
    clock.now += LOOK_EVERY
    found = await asyncio.gather(
        *(one.verified(read(text), "shunter", NOW) for text in strangers), return_exceptions=True
    )
    assert all(isinstance(fault, UnknownKey) for fault in found)
    assert len(issuer.asked) - asked == 2, issuer.paths()

    # One that is taken back is not believed for longer than an hour; if the issuer is away, the others are.
    issuer.answers[JWKS] = {"keys": [public(OTHER_KEY, "k2")]}
    clock.now += KEPT_FOR + 1
    with pytest.raises(UnknownKey):
        await one.verified(read(old), "shunter", NOW)
    issuer.answers.clear()
    clock.now += KEPT_FOR + 1
    assert await one.verified(read(new), "shunter", NOW)
    await one.close()


async def test_an_issuer_that_is_away_is_no_wrong_token(issuer: IssuerServer) -> None:
    good_answers = dict(issuer.answers)
    issuer.answers.clear()
    clock = Clock(0.0)
    one = Issuer(Place(issuer.url, ca_file=issuer.ca_file), clock)
    for _ in range(5):
        with pytest.raises(Unavailable):
            await one.verified(read(good(issuer)), "shunter", NOW)
    assert len(issuer.asked) == 1, "it is not asked for each request"
    issuer.answers |= good_answers
    clock.now = LOOK_EVERY
    assert await one.verified(read(good(issuer)), "shunter", NOW)
    await one.close()


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (DISCOVERY, {"issuer": "https://elsewhere.example", "jwks_uri": "https://elsewhere.example/k"}),
        (DISCOVERY, {"issuer": "SELF", "jwks_uri": "http://elsewhere.example/k"}),
        (DISCOVERY, {"issuer": "SELF", "jwks_uri": "file:///etc/passwd"}),
        (DISCOVERY, {"issuer": "SELF"}),
        (DISCOVERY, [1]),
        (DISCOVERY, b"{"),
        (DISCOVERY, "https://localhost:1/elsewhere"),
        (JWKS, b'{"keys": [' + b"1," * 600_000 + b"1]}"),
        (JWKS, {"keys": 1}),
        (JWKS, 500),
    ],
)
async def test_what_an_issuer_must_not_say(issuer: IssuerServer, path: str, answer: Any) -> None:
    if isinstance(answer, dict) and answer.get("issuer") == "SELF":
        answer = answer | {"issuer": issuer.url}
    issuer.answers[path] = answer
    by = trusted(rule(issuer))
    with pytest.raises(Unavailable):
        await by.identify(good(issuer))
    await by.close()


async def test_its_certificate_must_be_right(issuer: IssuerServer) -> None:
    by = trusted({"serviceAccount": "runs/agent", "pools": ["a"], "issuer": issuer.url})
    with pytest.raises(Unavailable):
        await by.identify(good(issuer))
    assert issuer.asked == []
    await by.close()


async def test_keys_of_a_file(issuer: IssuerServer, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [public(RSA_KEY)]}))
    by = trusted(rule(issuer, jwks=str(file)))
    assert await by.identify(good(issuer))
    assert issuer.asked == []


async def test_inside_a_cluster_its_api_server_is_asked(
    issuer: IssuerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the pod's own token, which is read anew each time, and shown to nobody else."""
    monkeypatch.setattr(trust, "OWN", tmp_path)
    (tmp_path / "token").write_text("own-token-1\n")
    issuer.answers[DISCOVERY] = {"issuer": "https://kubernetes.default.svc", "jwks_uri": "https://10.0.0.1/x"}
    by = trusted(
        {"serviceAccount": "runs/agent", "pools": ["cluster"]},
        KUBERNETES_SERVICE_HOST="localhost",
        KUBERNETES_SERVICE_PORT=str(issuer.port),
    )
    assert await by.identify(good(issuer, iss="https://kubernetes.default.svc"))
    assert [(path, bearer) for _, path, bearer, _ in issuer.asked] == [
        (DISCOVERY, "Bearer own-token-1"),
        (JWKS, "Bearer own-token-1"),
    ]
    await by.close()
    with pytest.raises(InvalidInput, match="runs in none"):
        trusted({"serviceAccount": "runs/agent", "pools": ["cluster"]})


async def test_asking_the_api_server_about_each_token(issuer: IssuerServer, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("own-token")
    settings = {"apiServer": issuer.url, "tokenFile": str(tmp_path / "own"), "review": True}
    by = trusted(rule(issuer, **settings))
    subject = "system:serviceaccount:runs:agent"
    held = {"authenticated": True, "user": {"username": subject}, "audiences": ["shunter"]}
    issuer.answers[REVIEWS] = {"status": held}
    text = good(issuer)
    found = await known(by, text)
    assert found.expires_at == int((NOW + trust.REVIEW_COUNTS_FOR) * 1_000_000)
    method, path, bearer, body = issuer.asked[-1]
    assert (method, path, bearer) == ("POST", REVIEWS, "Bearer own-token")
    assert body["spec"] == {"token": text, "audiences": ["shunter"]}
    for status in (
        {"authenticated": False},
        held | {"audiences": ["https://kubernetes.default.svc"]},
        held | {"audiences": []},
        held | {"user": {"username": "system:serviceaccount:runs:other"}},
    ):
        issuer.answers[REVIEWS] = {"status": status}
        await refused(by, text, "does not hold any more")
    issuer.answers[REVIEWS] = 403
    with pytest.raises(Unavailable, match="TokenReview"):
        await by.identify(text)
    await by.close()
