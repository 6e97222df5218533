"""Signed tokens of others (JWT, RFC 7519): what a server believes of one, and why not.

Pure: keys and time come from outside. What is asked of a token follows RFC 8725, the best current practices: which
algorithms count is decided by the kind of the issuer's key, never by the token; only public keys count, so that none is
taken for the secret of an HMAC; where the token says that keys are (``jku``, ``x5u``, ``jwk``) is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

#: Characters of a token, and keys of an issuer.
TOKEN_LIMIT, KEYS_LIMIT = 16_384, 200
#: Seconds that clocks may differ.
LEEWAY = 30.0
#: Bits of an RSA key, at the least.
_RSA_BITS = 2048
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class BadToken(Exception):
    """The token is not believed; the text says why, and nothing that who has it does not know."""


class UnknownKey(BadToken):
    """It is signed with a key that is not among those given; there may be newer ones."""


@dataclass(frozen=True)
class Key:
    """A public key of an issuer.

    Attributes:
        kid: its name; None: it has none.
        algorithms: that it may be used with.
    """

    kid: str | None
    algorithms: Sequence[str]
    public: Any


@dataclass(frozen=True)
class Draft:
    """What a token says before anything of it is proven.

    Attributes:
        issuer: empty if it does not say.
        kid: of the key that it is signed with, it says.
    """

    text: str
    issuer: str
    kid: str | None


def looks_like_one(text: str) -> bool:
    """Whether it has the three parts of a signed token."""
    return text.count(".") == 2 and text.startswith("ey")


def read(text: str) -> Draft:
    """What a token says of itself, to find the keys by.

    Raises:
        BadToken: it is none, too large, or of a kind that is not taken.
    """
    if len(text) > TOKEN_LIMIT:
        raise BadToken(f"it is larger than {TOKEN_LIMIT} characters")
    try:
        header = jwt.get_unverified_header(text)
        claims = jwt.decode(text, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError) as exc:
        raise BadToken("it is not a signed token (JWT) of a kind that is taken") from exc
    kid, issuer = header.get("kid"), claims.get("iss")
    return Draft(
        text, issuer if isinstance(issuer, str) else "", kid if isinstance(kid, str) and kid else None
    )


def keys_of(document: object) -> list[Key]:
    """The keys of a JWK set (RFC 7517) that signatures can be checked with; others are passed over.

    Raises:
        ValueError: it is no such set.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("keys"), list):
        raise ValueError("it is no set of keys (JWKS)")
    found = [_key(one) for one in document["keys"][:KEYS_LIMIT] if isinstance(one, Mapping)]
    return [key for key in found if key is not None]


def _key(entry: Mapping[str, Any]) -> Key | None:
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        return None
    public_part = {name: value for name, value in entry.items() if name not in _PRIVATE}
    makers = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk}
    make: Any = makers.get(str(entry.get("kty")))
    if make is None:  # also "oct": a secret that is published is none
        return None
    try:
        public = make(public_part)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    fitting = _algorithms(public)
    said = entry.get("alg")
    kid = entry.get("kid")
    usable = [name for name in fitting if said is None or name == said]
    return Key(kid if isinstance(kid, str) else None, usable, public) if usable else None


def _algorithms(public: object) -> Sequence[str]:
    if isinstance(public, rsa.RSAPublicKey):
        return _RSA if public.key_size >= _RSA_BITS else ()
    if isinstance(public, ec.EllipticCurvePublicKey):
        name = _CURVES.get(public.curve.name)
        return (name,) if name else ()
    return ("EdDSA",) if isinstance(public, ed25519.Ed25519PublicKey) else ()


def verified(
    draft: Draft, keys: Sequence[Key], *, issuer: str, audience: str, now: float
) -> Mapping[str, Any]:
    """The claims of a token that is what it says.

    Args:
        keys: of the issuer.
        issuer, audience: that it must name.
        now: seconds since the epoch.

    Raises:
        UnknownKey: none of the keys is the one that it names.
        BadToken: it is not believed.
    """
    named = [key for key in keys if draft.kid is None or key.kid == draft.kid]
    if not named:
        raise UnknownKey("it is signed with a key that its issuer does not have")
    if len(named) > 1 and draft.kid is None:
        raise BadToken("it does not say with which of its issuer's keys it is signed (kid)")
    claims = _claims(draft.text, named)
    if claims.get("iss") != issuer:
        raise BadToken("it is of another issuer")
    said = claims.get("aud")
    if audience not in ([said] if isinstance(said, str) else said if isinstance(said, list) else []):
        raise BadToken(f"it is not for the audience {audience!r}")
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        raise BadToken("it does not say whose it is (sub)")
    _check_time(claims, now)
    return claims


def _claims(text: str, named: Sequence[Key]) -> dict[str, Any]:
    # What the claims must be is checked here, by the given time; the library checks the signature alone.
    unchecked: Any = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
    for key in named:
        try:
            return jwt.decode(text, key.public, algorithms=list(key.algorithms), options=unchecked)
        except jwt.InvalidAlgorithmError:
            reason = "it is signed in a way that does not fit its issuer's key (alg)"
        except (jwt.PyJWTError, ValueError, TypeError):
            reason = "its signature is wrong"
    raise BadToken(reason)


def _check_time(claims: Mapping[str, Any], now: float) -> None:
    expires, begins, issued = (_moment(claims, name) for name in ("exp", "nbf", "iat"))
    if expires is None:
        raise BadToken("it never expires (exp)")
    if now >= expires + LEEWAY:
        raise BadToken(f"it expired {now - expires:.0f} seconds ago")
    if begins is not None and now < begins - LEEWAY:
        raise BadToken(f"it holds only in {begins - now:.0f} seconds (nbf)")
    if issued is not None and now < issued - LEEWAY:
        raise BadToken(f"it was made {issued - now:.0f} seconds from now: two clocks differ (iat)")


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    said = claims.get(name)
    if said is None:
        return None
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= 1e11:
        raise BadToken(f"it has a moment that is none ({name})")
    return float(said)
