"""The server, as a run speaks to it by the token of its attempt: a few requests, with nothing but the standard library.

``SHUNTER_API_URL`` and ``SHUNTER_RUN_TOKEN`` say where and who. Whatever may pass by itself is ``Away``: to be tried again.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urlencode, urlsplit

from shunter.errors import AttemptOver, ServerAway, ServerRefused

T = TypeVar("T")

#: Seconds that one step on the way may take.
_TIMEOUT = 30.0
_SOONEST, _LATEST = 0.05, 5.0
_PASSING = (408, 425, 429)
#: In each answer of a Shunter server.
_HEADER = "Shunter-Protocol"


class OwnServer:
    """One connection to it; requests of several threads come one after the other.

    Args:
        url: root of the API.
        token: of the attempt.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = urlsplit(url)
        self._token = token
        self._lock = threading.Lock()
        self._connection: HTTPConnection | None = None
        self._proxy = _proxy(url)

    def ask(
        self, method: str, path: str, query: Mapping[str, object], body: bytes | None = None
    ) -> tuple[bytes, HTTPMessage]:
        """Body and headers of the answer.

        Args:
            path: below ``/v1/attempt/``.
            query: parameters; those that are None are left out.

        Raises:
            ServerAway: there is none now.
            ServerRefused: it says no; ``AttemptOver``, if that is why.
        """
        given = urlencode({name: value for name, value in query.items() if value is not None})
        target = f"{self._url.path.rstrip('/')}/v1/attempt/{path}" + (f"?{given}" if given else "")
        headers = {"Authorization": f"Bearer {self._token}", "User-Agent": "shunter"}
        if self._proxy is not None and self._url.scheme == "http":
            target = f"http://{self._url.netloc}{target}"
            headers |= _login(self._proxy)
        if body is not None:
            headers["Content-Type"] = "application/octet-stream"
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._connected()
                self._connection.request(method, target, body, headers)
                response = self._connection.getresponse()
                data = response.read()
            except (OSError, HTTPException) as exc:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                raise ServerAway(f"no answer of {self._url.netloc}: {exc or type(exc).__name__}") from exc
        if response.headers.get(_HEADER) is None:  # a proxy's, whose server is away or not there yet
            raise ServerAway(
                f"what answers at {self._url.netloc} is no Shunter server: it says {response.status} {response.reason}"
            )
        if 200 <= response.status < 300:
            return data, response.headers
        said = f"{self._url.netloc} says {response.status} {response.reason}: {_detail(data)}"
        if response.status >= 500 or response.status in _PASSING:
            raise ServerAway(said)
        raise (AttemptOver if b"problem:attempt-over" in data else ServerRefused)(said, response.status)

    def _connected(self) -> HTTPConnection:
        to = self._proxy or self._url
        made: HTTPConnection
        if self._url.scheme == "https":
            from shunter_work_pools.client_tls import trust

            made = HTTPSConnection(to.hostname or "", to.port, timeout=_TIMEOUT, context=trust("https"))
            if self._proxy is not None:
                made.set_tunnel(self._url.hostname or "", self._url.port, _login(self._proxy))
        else:
            made = HTTPConnection(to.hostname or "", to.port, timeout=_TIMEOUT)
        return made


def of_process() -> OwnServer | None:
    """The server of this run; None: it has no token."""
    url, token = os.environ.get("SHUNTER_API_URL"), os.environ.get("SHUNTER_RUN_TOKEN")
    return OwnServer(url, token) if url and token else None


def patiently(work: Callable[[], T], seconds: float, doing: str) -> T:
    """Do it again and again while the server is away.

    Args:
        doing: what waits for it, for the run's log.

    Raises:
        ServerAway: it is still away after so many seconds.
    """
    until, pause, said = time.monotonic() + seconds, _SOONEST, False
    while True:
        try:
            return work()
        except ServerAway as exc:
            pause = min(pause * 2, _LATEST)
            if time.monotonic() + pause > until:
                raise
            if pause == _LATEST and not said:
                said = True
                from shunter.loggers import get_logger

                get_logger("shunter").warning("%s waits for the server: %s", doing, exc)
        time.sleep(pause * random.uniform(0.5, 1))  # nosec B311 # spreads load over time, hides nothing


def _proxy(url: str) -> SplitResult | None:
    """The proxy on the way, split; None: there is none."""
    if not any(name.lower().endswith("_proxy") and value for name, value in os.environ.items()):
        return None
    from shunter_work_pools.proxies import proxy_for

    found = proxy_for(url)
    return None if found is None else urlsplit(found.url)


def _login(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {b64encode(words).decode()}"}


def _detail(data: bytes) -> str:
    try:
        return str(json.loads(data)["detail"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")
