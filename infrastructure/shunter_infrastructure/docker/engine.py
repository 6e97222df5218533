"""Calls to a Docker engine, off the event loop; and what its refusals mean.

The ``docker`` package knows where the engine is (DOCKER_HOST, TLS) and how to log in to registries. What goes on
for long, events and output, comes over connections of their own, which cost no thread: see :meth:`Engine.stream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
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

#: Calls that are under way at once, and pulls of images, which may take long.
CALLS, PULLS = 8, 2
#: Seconds that an engine may take to answer, and between two words of a pull.
ANSWER, PULL_ANSWER = 120, 600

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
        self._pulls = ThreadPoolExecutor(PULLS, thread_name_prefix="docker-pull")
        self._where: Address | None = None
        self._version = ""
        self._pulling: dict[tuple[str, str | None], asyncio.Future[None]] = {}
        self.is_podman = False

    async def call(self, ask: Callable[[docker.APIClient], T]) -> T:
        """Ask the engine something.

        Raises:
            LauncherUnavailable: it is away.
            docker.errors.APIError: it says no.
        """
        return await self._within(self._calls, ask)

    async def _within(self, pool: ThreadPoolExecutor, ask: Callable[[docker.APIClient], T]) -> T:
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

        return await asyncio.get_running_loop().run_in_executor(pool, do)

    def _connected(self) -> docker.APIClient:
        if self._client is None:
            options = docker.utils.kwargs_from_env(environment=dict(self._environ))
            client = docker.APIClient(version="auto", timeout=ANSWER, max_pool_size=CALLS + PULLS, **options)
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

    async def pull(self, image: str, platform: str | None) -> None:
        """Fetch an image; who asks for the same one at the same time waits for the same fetch.

        Raises:
            LauncherUnavailable: the engine is away.
            LaunchFailed: it cannot be had.
        """
        key = (image, platform)
        task = self._pulling.get(key)
        if task is None:
            task = self._pulling[key] = asyncio.ensure_future(self._pull(image, platform))
            task.add_done_callback(lambda done: self._pulling.pop(key, None))
            task.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # somebody may have gone
        await asyncio.shield(task)

    async def _pull(self, image: str, platform: str | None) -> None:
        repository, tag = docker.utils.parse_repository_tag(image)

        def ask(client: docker.APIClient) -> None:
            words = client.pull(repository, tag=tag or "latest", stream=True, decode=True, platform=platform)
            for word in words:
                if "error" in word:
                    raise LaunchFailed(*_image_fault(image, str(word["error"])))

        try:
            await self._within(self._pulls, ask)
        except APIError as exc:
            raise LaunchFailed(*_image_fault(image, explanation(exc))) from exc

    @contextlib.asynccontextmanager
    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncIterator[Answer]:
        """An answer that is read while it is written, on the event loop.

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
                    streams.get(self._where, self._version + path, params, ANSWER)
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
        for pool in (self._calls, self._pulls):
            pool.shutdown(wait=False, cancel_futures=True)
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


_SPACE = "Free space on the engine's machine, for example by `docker system prune`."


def _image_fault(image: str, said: str) -> tuple[Cause, str, str]:
    if "no space left" in said:
        return Cause.IMAGE_PULL, f"the engine has no space left for image {image}: {said}", _SPACE
    remedy = (
        "Correct the pool's variable image, push the image, or let the agent's machine reach its registry."
    )
    if any(word in said for word in ("denied", "unauthorized", "authentication required")):
        remedy = "Correct the image's name, or log in: `docker login` as the agent's user, or DOCKER_CONFIG."
    return Cause.IMAGE_PULL, f"the image {image} cannot be pulled: {said}", remedy


def missing_image(image: str) -> LaunchFailed:
    """The image is not there, and may not be pulled."""
    return LaunchFailed(
        Cause.IMAGE_PULL,
        f"the image {image} is not on the engine, and pull_policy is never",
        "Load it there, or give the pool another pull_policy.",
    )


def start_fault(said: str, command: str, image: str) -> LaunchFailed:
    """What the engine said when the container was made or started, with what to do about it."""
    low = said.lower()
    if "no space left" in low:
        return LaunchFailed(Cause.START_FAILED, f"the engine has no space left: {said}", _SPACE)
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
