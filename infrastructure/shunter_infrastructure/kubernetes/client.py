"""Requests to a cluster's API server: raw JSON, and what refusals mean.

Where the server is and who we are, ``kubernetes.aio`` finds out: KUBECONFIG, ``~/.kube/config``, or the service
account of the pod that we are in. Its models are not used: an object of theirs costs ten times what its JSON does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import time
from asyncio import sslproto
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import yaml
from kubernetes.aio import client as library
from kubernetes.aio import config

from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_work_pools.contracts.errors import ShunterError
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Requests under way at once, beside streams.
CALLS = 32
#: Seconds for a connection, and for an answer to begin.
CONNECT, ANSWER = 10.0, 60.0
#: How often a request that the server puts off is sent again, and the longest wait in between, seconds.
TRIES, LONGEST_WAIT = 5, 30.0
#: Bytes that a TLS connection sets aside to read into; asyncio's own 256 KiB are much for hundreds of them.
_TLS_BUFFER = 32 * 1024
#: Seconds before credentials that were refused are looked for again.
_NEW_CREDENTIALS = 1.0
_UNAUTHORIZED, _TOO_MANY, _AWAY = 401, 429, (502, 503, 504)


class Refused(ShunterError):
    """The API server said no.

    Attributes:
        status: of HTTP: 403 forbidden, 404 not found, 409 conflict, 422 invalid, ...
        reason: in one word, as its ``Status`` has it: ``AlreadyExists``, ``Forbidden``.
    """

    def __init__(self, status: int, reason: str, said: str) -> None:
        super().__init__(said)
        self.status = status
        self.reason = reason


class Answer:
    """An answer that is read while it is written.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, response: aiohttp.ClientResponse, fault: Callable[[int, bytes], ShunterError]) -> None:
        self.status: int = response.status
        self._response = response
        self._fault = fault

    async def demand(self) -> None:
        """Make sure that it is what was asked for.

        Raises:
            LauncherUnavailable: the server does not know us, or puts it off.
            Refused: it says no.
        """
        if self.status >= 400:
            raise self._fault(self.status, await self._response.read())

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes; whole when this ends."""
        async for piece in self._response.content.iter_any():
            yield piece

    async def lines(self) -> AsyncIterator[bytes]:
        """The lines of the body, however long."""
        parts: list[bytes] = []
        async for piece in self._response.content.iter_any():
            first, *more = piece.split(b"\n")
            parts.append(first)
            for part in more:
                yield b"".join(parts)
                parts = [part]


class Client:
    """One API server; nothing is asked of it before the first request.

    Args:
        environ: KUBECONFIG, HOME, KUBERNETES_SERVICE_HOST and _PORT.

    Attributes:
        requests: how many were sent.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._api: library.ApiClient | None = None
        self._loading = asyncio.Lock()
        self._loaded_at = 0.0
        self._slots = asyncio.Semaphore(CALLS)
        self.requests = 0

    @property
    def address(self) -> str:
        """Where it is, as far as known."""
        return str(self._api.configuration.host) if self._api is not None else "(not known yet)"

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Ask for something, and again if the server puts it off (429, or Retry-After).

        Only what can be sent twice may be sent: a Job by its name, a deletion by its uid.

        Raises:
            LauncherUnavailable: the server cannot be reached, does not know us, or puts it off for too long.
            Refused: it says no.
        """
        for left in reversed(range(TRIES)):
            async with self._slots, self._request(method, path, query, body, content_type, ANSWER) as found:
                text = await found.read()
                if found.status < 400:
                    return self._parsed(text)
                delay = _put_off(found)
                if delay is None or not left:
                    raise self._fault(found.status, text)
            await asyncio.sleep(delay)
        raise AssertionError

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise LauncherUnavailable(
                f"the server at {self.address} does not answer as an API server does: {_status(text)[1]!r:.200}",
                "See that the kubeconfig's server leads to the cluster, and that no proxy answers in its place.",
            )
        return parsed

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str] | None = None, silence: float | None = None
    ) -> AsyncIterator[Answer]:
        """An answer that is read while it is written; it takes a connection for as long.

        Args:
            silence: seconds without a byte after which it counts as broken off; None: never.

        Raises:
            LauncherUnavailable: the server cannot be reached, or the answer was broken off.
        """
        async with self._request("GET", path, query, None, "", silence) as found:
            yield Answer(found, self._fault)

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        silence: float | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        for known in (True, False):
            api = await self._connected()
            try:
                response = await self._send(api, method, path, query, body, content_type, silence)
            except (aiohttp.ClientError, OSError) as exc:
                raise self._unreachable(exc) from exc
            if response.status == _UNAUTHORIZED and known and await self._renewed(api):
                response.release()
                continue
            try:
                yield response
            except (aiohttp.ClientError, OSError) as exc:
                raise self._unreachable(exc) from exc
            finally:
                response.release() if response.content.at_eof() else response.close()
            return

    async def _send(
        self,
        api: library.ApiClient,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        silence: float | None,
    ) -> aiohttp.ClientResponse:
        try:
            who = await api.configuration.auth_settings()
        except (config.ConfigException, OSError) as exc:
            raise LauncherUnavailable(
                f"the credentials for {self.address} cannot be had: {exc}", _LOGIN
            ) from exc
        headers = {"Accept": "application/json", "User-Agent": "shunter"}
        if content_type:
            headers["Content-Type"] = content_type
        for setting in who.values():
            headers[str(setting["key"])] = str(setting["value"])
        url = f"{api.configuration.host}{path}{'?' + urlencode(query) if query else ''}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=silence)
        self.requests += 1
        rest: Any = api.rest_client  # the library has no types here
        sent = await rest.request(method, url, headers, body, _request_timeout=timeout)
        response: aiohttp.ClientResponse = sent.response
        return response

    # -- who we are

    async def _connected(self) -> library.ApiClient:
        async with self._loading:
            if self._api is None:
                self._api = await self._load()
                self._loaded_at = time.monotonic()
            return self._api

    async def _renewed(self, refused: library.ApiClient) -> bool:
        """Whether there may be other credentials than those that were refused: a rotated token, a new kubeconfig."""
        async with self._loading:
            if self._api is refused and time.monotonic() - self._loaded_at > _NEW_CREDENTIALS:
                self._api = await self._load()
                self._loaded_at = time.monotonic()
                # What goes on over the old connections may end there.
                asyncio.get_running_loop().call_later(600, lambda: asyncio.ensure_future(refused.close()))
            return self._api is not refused

    async def _load(self) -> library.ApiClient:
        sslproto.SSLProtocol.max_size = (
            _TLS_BUFFER  # of all in this process: there is no other place to say it
        )
        made = library.Configuration()
        made.connection_pool_maxsize = 0  # streams are bounded where they are opened, calls here
        try:
            await self._configure(made)
            return library.ApiClient(made)
        except (
            config.ConfigException,
            yaml.YAMLError,
            OSError,
            ValueError,
            TypeError,
            AttributeError,
        ) as exc:
            raise LauncherUnavailable(
                f"the kubeconfig {self._kubeconfig() or 'of the service account'} cannot be used: "
                f"{' '.join(str(exc).split())}",
                "Correct it; `kubectl --kubeconfig ... get jobs` with the same file must work.",
            ) from exc

    async def _configure(self, made: library.Configuration) -> None:
        path = self._kubeconfig()
        if path is None:
            if "KUBERNETES_SERVICE_HOST" not in self._environ:
                raise LauncherUnavailable(
                    "no cluster is known: KUBECONFIG is not set, there is no ~/.kube/config, and this is no pod",
                    "Set KUBECONFIG to the cluster's kubeconfig, or run the agent in the cluster.",
                )
            config.load_incluster_config(made)
            return
        files = [each for each in path.split(os.pathsep) if each]
        for file in files:
            if os.path.exists(file):
                Path(file).read_bytes()  # one that cannot be read is told as such
        if not any(os.path.exists(file) for file in files):
            raise LauncherUnavailable(
                f"KUBECONFIG is {path}, and there is no such file",
                "Set KUBECONFIG to the cluster's kubeconfig.",
            )
        loader = await config.load_kube_config(path, client_configuration=made, persist_config=False)
        if "exec" in (loader._user or ()):

            async def refresh(current: library.Configuration) -> None:
                await loader.load_from_exec_plugin()
                current.api_key["BearerToken"] = loader.token

            if not hasattr(loader, "token") and not hasattr(loader, "cert_file"):
                raise config.ConfigException(
                    "the command of its exec section gave no credentials; the agent's log says why"
                )
            if hasattr(loader, "token"):
                setattr(made, "refresh_api_key_hook", refresh)  # noqa: B010 - the library declares it as None

    def _kubeconfig(self) -> str | None:
        """The files that say where the cluster is; None: the service account does."""
        named = self._environ.get("KUBECONFIG")
        if named:
            return os.path.expanduser(named)
        usual = Path(self._environ.get("HOME") or Path.home()) / ".kube" / "config"
        return str(usual) if usual.exists() else None

    # -- what refusals mean

    def _fault(self, status: int, text: bytes) -> ShunterError:
        reason, said = _status(text)
        if status == _UNAUTHORIZED:
            return LauncherUnavailable(
                f"the API server at {self.address} does not know us: {said or 'Unauthorized'}", _LOGIN
            )
        if status == _TOO_MANY or status in _AWAY:
            return LauncherUnavailable(
                f"the API server at {self.address} puts us off ({status}): {said}", "It is tried again."
            )
        return Refused(status, reason, said or f"HTTP status {status}")

    def _unreachable(self, exc: BaseException) -> LauncherUnavailable:
        said = " ".join(str(exc).split()) or type(exc).__name__
        if isinstance(exc, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
            remedy = "See that certificate-authority of the kubeconfig is that of this cluster."
        else:
            remedy = "See that the cluster runs, and that the kubeconfig's server leads to it."
        return LauncherUnavailable(f"the API server at {self.address} cannot be reached: {said}", remedy)

    async def close(self) -> None:
        """Let go of it."""
        if self._api is not None:
            await self._api.close()


_LOGIN = "Its credentials may have expired: log in again, or have a new kubeconfig made; the agent takes it by itself."


def _put_off(response: aiohttp.ClientResponse) -> float | None:
    """Seconds to wait before a request is sent again; None: it was answered.

    https://kubernetes.io/docs/concepts/cluster-administration/flow-control/
    """
    told = response.headers.get("Retry-After")
    if response.status != _TOO_MANY and (response.status < 500 or told is None):
        return None
    try:
        return min(LONGEST_WAIT, max(0.1, float(told or 1)))
    except ValueError:
        return 1.0


def _status(text: bytes) -> tuple[str, str]:
    """Reason and message of a ``Status``, or of what a proxy answered in its place."""
    try:
        found = json.loads(text)
        return str(found.get("reason") or ""), " ".join(str(found.get("message") or "").split())
    except (ValueError, AttributeError):
        return "", " ".join(text[:500].decode(errors="replace").split())
