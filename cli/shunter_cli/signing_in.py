"""Sign in with an account that one has already: OpenID Connect by the device authorization grant (RFC 8628).

The browser may be on another machine; what the provider says goes to the server, which makes a key of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shunter_cli.faults import tell
from shunter_work_pools.contracts.errors import ServerUnreachable, ShunterError

if TYPE_CHECKING:
    import httpx

    from shunter_work_pools.contracts.identities import NewKey
    from shunter_work_pools.contracts.sign_in import SignInInfo

#: Seconds between two questions, unless the provider wants others; so many more when it says that they are too fast.
INTERVAL, SLOWER = 5.0, 5.0
#: Seconds for an answer of the provider, and bytes of it.
PATIENCE, LARGEST = 10.0, 1_000_000
_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class _Provider:
    """Where it is asked."""

    device: str
    token: str


def sign_in(url: str, sleep: Callable[[float], None] = time.sleep) -> NewKey | None:
    """A key of the server, for who signs in with its provider; None: it has none.

    Args:
        url: root of the server's API.

    Raises:
        ShunterError: the provider or the server says no, the provider cannot be used, or time ran out.
    """
    import httpx

    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.sign_in import SignInRequest

    with Client(url, "") as client:
        info = client.sign_in_info()
        if info.issuer is None:
            return None
        with httpx.Client(timeout=PATIENCE, follow_redirects=False) as http:
            id_token = _id_token(http, info, sleep)
        return client.sign_in(SignInRequest(id_token=id_token))


def _id_token(http: httpx.Client, info: SignInInfo, sleep: Callable[[float], None]) -> str:
    assert info.issuer is not None
    provider = _found(http, info.issuer)
    client = {"client_id": info.client_id or ""}
    status, begun = _ask(http, provider.device, {**client, "scope": info.scopes})
    if status != 200:
        raise _refused(info.issuer, begun)
    code, address = _word(begun, "user_code"), _word(begun, "verification_uri")
    tell(
        f"To sign in, open\n\n  {address}\n\nin a browser, on any machine, and type in the code\n\n  {code}\n"
    )
    if "verification_uri_complete" in begun:
        tell(f"Or open {_word(begun, 'verification_uri_complete')}\n")
    asked = {**client, "grant_type": _GRANT, "device_code": _word(begun, "device_code")}
    interval, left = _seconds(begun, "interval", INTERVAL), _seconds(begun, "expires_in", 600.0)
    while left > 0:
        sleep(interval)
        left -= interval
        try:
            status, answer = _ask(http, provider.token, asked)
        except ServerUnreachable:
            interval *= 2  # as the RFC has it
            continue
        if status == 200:
            return _word(answer, "id_token")
        error = answer.get("error")
        if error == "slow_down":
            interval += SLOWER
        elif error == "expired_token":
            break
        elif error != "authorization_pending":
            raise _refused(info.issuer, answer)
    raise ShunterError("nobody signed in while the code was good", "Begin again: `shunter login URL`.")


def _found(http: httpx.Client, issuer: str) -> _Provider:
    status, document = _ask(http, issuer.rstrip("/") + "/.well-known/openid-configuration", None)
    if status != 200 or document.get("issuer") != issuer:
        raise ShunterError(
            f"what is at {issuer} is not the OpenID Connect provider that the server names", "Tell its admin."
        )
    if "device_authorization_endpoint" not in document:
        raise ShunterError(
            f"{issuer} has no device flow (RFC 8628), by which the command line signs in",
            "Ask an admin for a key: `shunter key create`.",
        )
    return _Provider(_word(document, "device_authorization_endpoint"), _word(document, "token_endpoint"))


def _ask(http: httpx.Client, url: str, form: Mapping[str, str] | None) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer; a form is posted."""
    import httpx

    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise ShunterError(
            f"the provider wants to be asked at {url!r}, which is not https", "Tell its admin."
        )
    try:
        if form is None:
            response = http.get(url)
        else:
            response = http.post(url, data=dict(form), headers={"Accept": "application/json"})
        found = response.json() if len(response.content) <= LARGEST else None
    except httpx.HTTPError as exc:
        raise ServerUnreachable(
            f"the provider does not answer at {url}: {exc or type(exc).__name__}"
        ) from exc
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ShunterError(
            f"the answer of {url} is not understood ({response.status_code})", "Tell its admin."
        )
    return response.status_code, found


def _word(document: Mapping[str, Any], name: str) -> str:
    """A text that may be shown on a terminal."""
    found = document.get(name)
    if not isinstance(found, str) or not found or not found.isascii() or not found.isprintable():
        raise ShunterError(
            f"the provider's answer has no {name}, or none that can be used", "Tell its admin."
        )
    return found


def _seconds(document: Mapping[str, Any], name: str, otherwise: float) -> float:
    found = document.get(name, otherwise)
    return float(found) if isinstance(found, int | float) and 0 < found <= 3600 else otherwise


def _refused(issuer: str, answer: Mapping[str, Any]) -> ShunterError:
    said = str(answer.get("error_description") or answer.get("error") or "it does not say why")[:300]
    return ShunterError(f"{issuer} refuses to sign you in: {said!r}")
