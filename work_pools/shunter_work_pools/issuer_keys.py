"""The keys of an issuer: had when they are needed, kept, and had anew when a token names one that is not among them."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from shunter_work_pools.contracts.errors import Unavailable
from shunter_work_pools.daemon_log import get_logger
from shunter_work_pools.identity_tokens import Draft, Key, UnknownKey, keys_of, verified

log = get_logger()

#: Seconds after which keys are had anew in any case: one that the issuer took back is not believed for longer.
KEPT_FOR = 3600.0
#: Seconds between two looks for a key that is not there: strangers may name any.
LOOK_EVERY = 10.0
#: Seconds for an answer, and bytes of it.
PATIENCE, LARGEST = 5.0, 1_000_000
_DISCOVERY = "/.well-known/openid-configuration"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Place:
    """Where an issuer and its keys are.

    Attributes:
        issuer: as its tokens name it; None: as the API server says.
        jwks: URL or file of its keys; None: where its discovery document says.
        api_server: of a Kubernetes cluster, to be asked instead of the issuer; None: the issuer is asked.
        ca_file: of the authority that signed the certificates there; None: those of the system.
        token_file: a token for that API server; it is shown to nobody else.
    """

    issuer: str | None = None
    jwks: str | None = None
    api_server: str | None = None
    ca_file: str | None = None
    token_file: str | None = None


class Issuer:
    """An issuer, as far as its tokens are to be believed.

    Args:
        place: where it is.
        clock: seconds that only rise.
    """

    def __init__(self, place: Place, clock: Callable[[], float] = time.monotonic) -> None:
        self.place = place
        self._clock = clock
        self._http: httpx.AsyncClient | None = None
        self._lock = asyncio.Lock()
        self._name = place.issuer
        self._keys: list[Key] | None = None
        self._had_at = 0.0  # when the keys were had
        self._looked_at: float | None = None  # when they were last looked for, in vain or not
        self._fault = ""

    async def name(self) -> str:
        """The issuer, as its tokens name it.

        Raises:
            Unavailable: it cannot be known now.
        """
        if self._name is None:
            await self._look(self._keys)
        assert self._name is not None
        return self._name

    async def verified(self, draft: Draft, audience: str, now: float) -> Mapping[str, Any]:
        """The claims of a token that this issuer made for an audience; see :func:`identity_tokens.verified`.

        Raises:
            BadToken: it did not.
            Unavailable: its keys cannot be had now.
        """
        keys = self._keys
        if keys is None or self._clock() - self._had_at > KEPT_FOR:
            keys = await self._look(keys)
        try:
            return verified(draft, keys, issuer=await self.name(), audience=audience, now=now)
        except UnknownKey:
            newer = await self._look(keys)
            if newer is keys:
                raise
            return verified(draft, newer, issuer=await self.name(), audience=audience, now=now)

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()

    async def _look(self, seen: list[Key] | None) -> list[Key]:
        """The keys, had anew unless somebody did just now; ``seen``: those that were not enough."""
        async with self._lock:
            if self._keys is not None and self._keys is not seen:
                return self._keys
            now = self._clock()
            if self._looked_at is None or now - self._looked_at >= LOOK_EVERY:
                self._looked_at = now
                try:
                    self._name, self._keys = await self._read()
                    self._had_at, self._fault = now, ""
                except (OSError, ValueError, httpx.HTTPError) as exc:
                    self._fault = f"{exc or type(exc).__name__}"
                    log.warning("the keys of an issuer cannot be had", reason=self._fault, of=self._told())
            if self._keys is None:
                raise Unavailable(
                    f"the keys of {self._told()} cannot be had now, by which the token is checked",
                    "The server's log tells why. Ask again.",
                )
            return self._keys

    def _told(self) -> str:
        return self.place.issuer or self.place.api_server or "the issuer"

    async def _read(self) -> tuple[str, list[Key]]:
        place = self.place
        if place.api_server is not None:
            # Its own addresses, not those that it tells: they may be reached from nowhere here.
            issuer = place.issuer or _text(await self._get(place.api_server + _DISCOVERY), "issuer")
            return issuer, keys_of(await self._get(f"{place.api_server}/openid/v1/jwks"))
        assert place.issuer is not None
        jwks = place.jwks
        if jwks is None:
            found = await self._get(place.issuer.rstrip("/") + _DISCOVERY)
            if _text(found, "issuer") != place.issuer:
                raise ValueError(f"what is at {place.issuer} says that it is another issuer")
            jwks = _text(found, "jwks_uri")
        if "://" not in jwks:
            return place.issuer, keys_of(json.loads(await asyncio.to_thread(Path(jwks).read_bytes)))
        return place.issuer, keys_of(await self._get(jwks))

    async def _get(self, url: str) -> Any:
        return await self.ask("GET", url)

    async def ask(self, method: str, url: str, body: Any = None) -> Any:
        """The JSON at a URL of the issuer, or of its API server, which alone is shown the token.

        Raises:
            OSError, ValueError, httpx.HTTPError: it cannot be had.
        """
        if urlsplit(url).scheme != "https" and urlsplit(url).hostname not in _LOOPBACK:
            raise ValueError(f"{url} is not https: anybody on the way could put keys of his own there")
        if self._http is None:
            self._http = await asyncio.to_thread(self._client)
        place, headers = self.place, {"Accept": "application/json, application/jwk-set+json"}
        if place.token_file is not None and place.api_server and url.startswith(f"{place.api_server}/"):
            # Read each time: it is renewed.
            token = await asyncio.to_thread(Path(place.token_file).read_text, "ascii")
            headers["Authorization"] = f"Bearer {token.strip()}"
        async with self._http.stream(method, url, json=body, headers=headers) as response:
            data = bytearray()
            async for part in response.aiter_bytes():
                data += part
                if len(data) > LARGEST:
                    raise ValueError(f"{url} answers more than {LARGEST} bytes")
        if not response.is_success:
            raise ValueError(f"{url} answers {response.status_code} {response.reason_phrase}")
        return json.loads(data)

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=self.place.ca_file),
            timeout=PATIENCE,
            follow_redirects=False,
            trust_env=self.place.api_server
            is None,  # no proxy for the outside world reaches a cluster's inside
        )


def _text(document: Any, name: str) -> str:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, str) or not found:
        raise ValueError(f"the discovery document has no {name}")
    return found
