"""Calls to a Docker engine, off the event loop; and what its refusals mean.

The ``docker`` package knows where the engine is (DOCKER_HOST, TLS) and how to log in to registries. What goes on
for long (events, output, pulls) comes over connections of their own, which cost no thread: see :meth:`Engine.stream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import urlsplit

import docker
import docker.errors
import docker.tls
import docker.utils
import requests.exceptions
import urllib3.exceptions
from docker.errors import APIError

from shunter_infrastructure.docker import streams
from shunter_infrastructure.docker.streams import Address, Answer
from shunter_infrastructure.launcher import LauncherUnavailable, LaunchFailed
from shunter_work_pools.contracts.states import Cause

T = TypeVar("T")

#: Calls that are under way at once.
CALLS = 8
#: Seconds that an engine may take to answer.
ANSWER = 120

_AWAY = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)


class Engine:
    """One engine, found as Docker's own tools do; nothing is asked of it before the first call.

    Args:
        environ: DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._client: docker.APIClient | None = None
        self._calls = ThreadPoolExecutor(CALLS, thread_name_prefix="docker")
        self._where: Address | None = None
        self._version = ""
        self.is_podman = False

    async def call(self, ask: Callable[[docker.APIClient], T]) -> T:
        """Ask the engine something.

        Raises:
            LauncherUnavailable: it is away.
            docker.errors.APIError: it says no.
        """

        def do() -> T:
            try:
                return ask(self._connected())
            except APIError as exc:
                if exc.status_code in (502, 503):  # a proxy before it, or a daemon that stops
                    raise self._away(exc) from exc
                raise
            except docker.errors.DockerException as exc:
                raise self._away(exc) from exc
            except _AWAY as exc:
                raise self._away(exc) from exc

        return await asyncio.get_running_loop().run_in_executor(self._calls, do)

    def _connected(self) -> docker.APIClient:
        if self._client is None:
            options = docker.utils.kwargs_from_env(environment=dict(self._environ))
            client = docker.APIClient(version="auto", timeout=ANSWER, max_pool_size=CALLS, **options)
            parts = client.version().get("Components") or []
            self.is_podman = any("Podman" in str(part.get("Name")) for part in parts)
            self._client = client
        return self._client

    def _away(self, exc: Exception) -> LauncherUnavailable:
        return LauncherUnavailable(
            f"the Docker engine at {self.address} cannot be reached: {_reason(exc)}",
            "Start it, set DOCKER_HOST to where it is, and let the agent's user use its socket.",
        )

    @property
    def address(self) -> str:
        """Where it is."""
        return self._environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"

    @property
    def is_here(self) -> bool:
        """Whether its files are those of this machine, as far as its address tells."""
        return self.address.startswith(("unix:", "/"))

    @contextlib.asynccontextmanager
    async def stream(
        self,
        path: str,
        params: Mapping[str, str],
        *,
        method: str = "GET",
        headers: Mapping[str, str] = MappingProxyType({}),
        patience: float = ANSWER,
    ) -> AsyncIterator[Answer]:
        """An answer that is read while it is written, on the event loop.

        Args:
            patience: seconds until it must have begun.

        Raises:
            LauncherUnavailable: the engine is away, or went away while it was read.
        """
        if self._where is None:
            version = await self.call(lambda client: str(client.api_version))
            self._where, self._version = self._find(), f"/v{version}"
        broken: OSError | None = None
        async with contextlib.AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(
                    streams.ask(
                        self._where, self._version + path, params, patience, method=method, headers=headers
                    )
                )
            except OSError as exc:
                raise self._away(exc) from exc
            try:
                yield answer
            except streams.Broken as exc:
                broken = exc
        if broken is not None:
            raise self._away(broken) from broken

    def _find(self) -> Address:
        """Where streams are to be had."""
        assert self._client is not None
        host = docker.utils.parse_host(self.address, tls=bool(self._client.cert))
        if host.startswith("http+unix:"):
            return Address(path="/" + host.removeprefix("http+unix:").lstrip("/"))
        found = urlsplit(host)
        if found.scheme not in ("http", "https", "tcp") or not found.hostname or not found.port:
            raise LauncherUnavailable(
                f"DOCKER_HOST={self.address} is of a kind that the docker launcher cannot use",
                "Give unix:///path, or tcp://host:port; forward the socket of an ssh:// host to one of these.",
            )
        secure = found.scheme == "https" or self._client.base_url.startswith("https:")
        return Address(None, found.hostname, found.port, _tls(self._client) if secure else None)

    async def close(self) -> None:
        """Let go of it; what runs goes on."""
        self._calls.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()


def _tls(client: docker.APIClient) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=client.verify if isinstance(client.verify, str) else None)
    if client.verify is False:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if client.cert:
        context.load_cert_chain(*client.cert)
    return context


def explanation(exc: APIError) -> str:
    """What the engine said, in one line."""
    said = exc.explanation
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said or exc)
    return " ".join(text.split())


def _reason(exc: BaseException) -> str:
    """The innermost words: what is around them names Python objects."""
    while True:
        inner = exc.__cause__ or exc.__context__
        if inner is None or (isinstance(exc, OSError) and exc.strerror):
            break
        exc = inner
    return str(getattr(exc, "strerror", None) or exc) or type(exc).__name__


SPACE = "Free space on the engine's machine, for example by `docker system prune`."


def start_fault(said: str, command: str, image: str) -> LaunchFailed:
    """What the engine said when the container was made or started, with what to do about it."""
    low = said.lower()
    if "no space left" in low:
        return LaunchFailed(Cause.START_FAILED, f"the engine has no space left: {said}", SPACE)
    if "exec format error" in low:
        return LaunchFailed(
            Cause.START_FAILED,
            f"the command {command} is no program that the engine's machine can execute: {said}",
            "Use an image for its architecture (variable platform), or begin a script with #! and its interpreter.",
        )
    if "permission denied" in low and "exec" in low:
        return LaunchFailed(
            Cause.START_FAILED,
            f"the command {command} may not be executed in image {image}: {said}",
            "Make it executable there, or name its interpreter first.",
        )
    if "executable file not found" in low or ("exec" in low and "no such file or directory" in low):
        return LaunchFailed(
            Cause.START_FAILED,
            f"the command {command} was not found in image {image}: {said}",
            "Correct the command, or use an image that has it. (Without a shell in it, sh -c cannot be used.)",
        )
    if "could not select device driver" in low:
        return LaunchFailed(
            Cause.START_FAILED,
            f"the engine knows no GPUs: {said}",
            "Install the NVIDIA container toolkit on its machine, or remove the variable gpus.",
        )
    return LaunchFailed(
        Cause.START_FAILED,
        f"the container cannot be started: {said}",
        "Correct the pool's template or the deployment's variables.",
    )
