"""An issuer of tests: keys, and tokens signed with them, right and wrong."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.example"
NOW = 1_800_000_000.0
#: Making one takes a tenth of a second.
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)


def public(key: Any, kid: str | None = "k1", **more: Any) -> dict[str, Any]:
    """The public part of a key, as an entry of a JWK set."""
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    kind: Any = next((maker for base, maker in kinds.items() if isinstance(key, base)), OKPAlgorithm)
    entry = dict(kind.to_jwk(key.public_key(), as_dict=True))
    return entry | ({"kid": kid} if kid is not None else {}) | more


def claims(**more: Any) -> dict[str, Any]:
    """Those of a good token; None takes one out."""
    good = {
        "iss": ISSUER,
        "aud": ["shunter"],
        "sub": "system:serviceaccount:runs:agent",
        "exp": NOW + 3600,
        "nbf": NOW - 10,
        "iat": NOW - 10,
    }
    return {name: value for name, value in (good | more).items() if value is not None}


def token(
    key: Any = RSA_KEY,
    alg: str = "RS256",
    kid: str | None = "k1",
    header: dict[str, Any] | None = None,
    **more: Any,
) -> str:
    """A signed token."""
    headers = ({"kid": kid} if kid is not None else {}) | (header or {})
    return jwt.encode(claims(**more), key, algorithm=alg, headers=headers)


def part(value: Any) -> str:
    """One part of a token, as it is on the wire."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@dataclass
class Curves:
    """Keys of other kinds."""

    p256: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    p384: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    k1: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256K1()))
    ed: Any = field(default_factory=ed25519.Ed25519PrivateKey.generate)
