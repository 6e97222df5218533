"""What is believed of a signed token: everything is right, or it is refused with the reason."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from shunter_work_pools.identity_tokens import (
    LEEWAY,
    TOKEN_LIMIT,
    BadToken,
    UnknownKey,
    keys_of,
    read,
    verified,
)
from tests.joining.signing import ISSUER, NOW, OTHER_KEY, RSA_KEY, Curves, claims, part, public, token

KEYS = {"keys": [public(RSA_KEY)]}
CURVES = Curves()


def check(text: str, keys: dict[str, Any] = KEYS, now: float = NOW, audience: str = "shunter") -> Any:
    return verified(read(text), keys_of(keys), issuer=ISSUER, audience=audience, now=now)


def test_a_good_one() -> None:
    assert check(token())["sub"] == "system:serviceaccount:runs:agent"
    assert check(token(aud="shunter"))["aud"] == "shunter"
    assert check(token(aud=["other", "shunter"]))
    assert check(token(kid=None)), "an issuer with one key need not name it"


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (CURVES.p256, "ES256"),
        (CURVES.p384, "ES384"),
        (CURVES.ed, "EdDSA"),
        (RSA_KEY, "RS512"),
        (RSA_KEY, "PS256"),
    ],
)
def test_kinds_of_keys(key: Any, alg: str) -> None:
    assert check(token(key, alg), {"keys": [public(key)]})


def hmac_signed(secret: bytes, alg: str = "HS256") -> str:
    """Signed with a text that everybody knows; the library itself refuses to do it."""
    body = f"{part({'alg': alg, 'typ': 'JWT', 'kid': 'k1'})}.{part(claims())}"
    signature = hmac.new(secret, body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def unsigned(alg: str) -> str:
    return f"{part({'alg': alg, 'kid': 'k1'})}.{part(claims())}."


PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
GOOD = token()
HEAD, BODY, SIGNATURE = GOOD.split(".")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (unsigned("none"), "alg"),
        (unsigned("None"), "alg"),
        (unsigned("nOnE"), "alg"),
        (hmac_signed(PEM), "alg"),
        (hmac_signed(PEM.strip()), "alg"),
        (hmac_signed(json.dumps(public(RSA_KEY)).encode()), "alg"),
        (token(CURVES.p256, "ES256"), "alg"),
        (token(OTHER_KEY), "signature"),
        (f"{HEAD}.{part(claims(sub='system:serviceaccount:kube-system:admin'))}.{SIGNATURE}", "signature"),
        (f"{part({'alg': 'RS512', 'kid': 'k1'})}.{BODY}.{SIGNATURE}", "signature"),
        (f"{HEAD}.{BODY}.", "signature"),
        (f"{HEAD}.{BODY}.{'A' if SIGNATURE[0] != 'A' else 'B'}{SIGNATURE[1:]}", "signature"),
        (token(OTHER_KEY, kid="k2"), "key that its issuer does not have"),
        (token(OTHER_KEY, kid="k1", header={"jwk": public(OTHER_KEY)}), "signature"),
        (token(OTHER_KEY, kid="k1", header={"jku": "https://evil.example/jwks"}), "signature"),
        (token(OTHER_KEY, kid="k1", header={"x5u": "https://evil.example/x5"}), "signature"),
        (token(OTHER_KEY, kid="../../dev/null"), "key that its issuer does not have"),
        (token(header={"crit": ["exp"]}), "not a signed token"),
        (token(iss="https://other.example"), "another issuer"),
        (token(iss=f"{ISSUER}/"), "another issuer"),
        (token(iss=None), "another issuer"),
        (token(aud=["https://kubernetes.default.svc"]), "audience 'shunter'"),
        (token(aud="shunter2"), "audience 'shunter'"),
        (token(aud="xshunterx"), "audience 'shunter'"),
        (token(aud=[]), "audience 'shunter'"),
        (token(aud=None), "audience 'shunter'"),
        (token(sub=None), "(sub)"),
        (token(sub=""), "(sub)"),
        (token(exp=NOW - LEEWAY - 1), "expired"),
        (token(exp=None), "never expires"),
        (token(exp="soon"), "(exp)"),
        (token(exp=float("nan")), "(exp)"),
        (token(exp=float("inf")), "(exp)"),
        (token(exp=True), "(exp)"),
        (token(exp=10**30), "(exp)"),
        (token(nbf=NOW + LEEWAY + 1), "(nbf)"),
        (token(iat=NOW + LEEWAY + 1), "(iat)"),
        (token(filler="x" * TOKEN_LIMIT), "larger"),
        ("", "not a signed token"),
        ("a.b.c", "not a signed token"),
        ("..", "not a signed token"),
        (f"{HEAD}.{'A' * 4000}.{SIGNATURE}", "not a signed token"),
        (f"{part([1])}.{BODY}.{SIGNATURE}", "not a signed token"),
        (f"{HEAD}.{part([1])}.{SIGNATURE}", "not a signed token"),
        (f"{base64.urlsafe_b64encode(b'[' * 9000).decode()}.{BODY}.{SIGNATURE}", "not a signed token"),
        ("ö" * 10, "not a signed token"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(BadToken, match=reason.replace("(", r"\(").replace(")", r"\)")) as refused:
        check(text)
    told = str(refused.value)
    assert len(told) < 120
    assert not any(len(piece) > 20 and piece in told for piece in text.split(".")), (
        "of the token nothing is told"
    )


def test_clocks_may_differ_a_little() -> None:
    assert check(token(exp=NOW - LEEWAY + 1, nbf=NOW + LEEWAY - 1, iat=NOW + LEEWAY - 1))


def test_only_public_keys_that_sign_count() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    small = {"keys": [public(RSA_KEY) | {"alg": "RS256"}]}
    assert keys_of({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k1"}]}) == []
    assert keys_of({"keys": [public(RSA_KEY, use="enc")]}) == []
    assert (
        keys_of({"keys": [public(weak), public(CURVES.k1), {"kty": "RSA"}, {"kty": "EC", "crv": "x"}, 3]})
        == []
    )
    assert keys_of({"keys": [public(RSA_KEY, alg="HS256")]}) == []
    with pytest.raises(BadToken, match="alg"):
        check(token(alg="PS256"), small)
    leaked = {**RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True), "kid": "k1", "key_ops": ["verify"]}
    (found,) = keys_of({"keys": [leaked]})
    assert not hasattr(found.public, "private_bytes"), (
        "a private key that is published counts as its public part"
    )
    assert check(token(), {"keys": [leaked]})


def test_which_of_several_keys() -> None:
    both = {"keys": [public(OTHER_KEY, "k2"), public(RSA_KEY)]}
    assert check(token(), both)
    with pytest.raises(BadToken, match="kid"):
        check(token(kid=None), both)
    assert check(token(), {"keys": [public(OTHER_KEY), public(RSA_KEY)]}), "two of one name: either"
    with pytest.raises(UnknownKey):
        check(token(kid="k3"), both)


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": "x"}])
def test_no_set_of_keys(document: object) -> None:
    with pytest.raises(ValueError, match="no set of keys"):
        keys_of(document)
