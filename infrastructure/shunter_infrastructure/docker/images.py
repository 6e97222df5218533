"""Images that the engine fetches from registries: one pull for all who want the same, and what it is doing, in words.

Who wants it no more leaves; the last one to leave hangs up, and the engine ends the pull. Credentials are read from
the Docker configuration at each pull, so that those of a new ``docker login`` hold at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import docker
import docker.auth
import docker.utils
from docker.errors import DockerException

from shunter_infrastructure.docker.engine import SPACE, Engine
from shunter_infrastructure.docker.streams import Answer
from shunter_infrastructure.launcher import LaunchFailed
from shunter_work_pools.contracts.states import Cause

#: Seconds for which a registry that is away is tried again.
GRACE = 30.0
#: Seconds between two tries, and between two words about how far a pull is.
_PAUSE, _WORDS = 2.0, 2.0
#: Seconds until a pull must have begun: the engine answers once the registry has.
_ANSWER = 600.0
#: In the engine's words: the registry, or the way to it, may be there again in a while.
_AWAY = re.compile(
    r"connection (refused|reset)|timeout|EOF|no such host|server misbehaving|no route to host|network is unreachable"
    r"|broken pipe|request canceled|toomanyrequests|too many requests|unexpected HTTP status: 5\d\d"
    r"|\b(429|50[0234]) [A-Z]",
    re.IGNORECASE,
)

Say = Callable[[str], None]


class Images:
    """Fetches images.

    Args:
        environ: DOCKER_CONFIG, the folder of ``config.json``.
        grace: seconds for which a registry that is away is tried again.
    """

    def __init__(self, engine: Engine, environ: Mapping[str, str], grace: float = GRACE) -> None:
        self._engine = engine
        self._config = environ.get("DOCKER_CONFIG")
        self._grace = grace
        self._pulls: dict[tuple[str, str | None], _Pull] = {}

    async def pull(self, image: str, platform: str | None, say: Say) -> None:
        """Fetch an image; who asks for the same one at the same time waits for the same fetch.

        Args:
            say: told what it is doing, when that changes.

        Raises:
            LauncherUnavailable: the engine is away.
            LaunchFailed: it cannot be had.
        """
        key = (image, platform)
        pull = self._pulls.get(key)
        if pull is None:
            pull = self._pulls[key] = _Pull()
            pull.task = asyncio.create_task(self._fetch(image, platform, pull), name=f"pull of {image}")
        pull.who.append(say)
        say(pull.words or f"pulling image {image}")
        try:
            await asyncio.shield(pull.task)
        finally:
            pull.who.remove(say)
            if self._pulls.get(key) is pull and (pull.task.done() or not pull.who):
                del self._pulls[key]
                pull.task.cancel()

    async def _fetch(self, image: str, platform: str | None, pull: _Pull) -> None:
        give_up = time.monotonic() + self._grace
        while True:
            said = await self._ask(image, platform, pull)
            if said is None:
                return
            if not _AWAY.search(said) or time.monotonic() + _PAUSE > give_up:
                raise LaunchFailed(*_fault(image, said))
            pull.say(f"the image {image} cannot be pulled now, and is tried again: {said}")
            await asyncio.sleep(_PAUSE)
            give_up = max(give_up, pull.came + self._grace)

    async def _ask(self, image: str, platform: str | None, pull: _Pull) -> str | None:
        """Try once; what the engine says against it, None if the image is there."""
        repository, tag = docker.utils.parse_repository_tag(image)
        params = {"fromImage": repository, "tag": tag or "latest"} | (
            {"platform": platform} if platform else {}
        )
        login = await self._engine.call(lambda client: self._login(client, repository))
        headers = {"X-Registry-Auth": login} if login else {}
        try:
            async with self._engine.stream(
                "/images/create", params, method="POST", headers=headers, patience=_ANSWER
            ) as answer:
                if answer.status != 200:
                    return await _refusal(answer)
                progress = _Progress(image)
                async for line in answer.lines():
                    word = json.loads(line) if line.strip() else {}
                    if "error" in word:
                        return str(word["error"])
                    if progress.take(word):
                        pull.came = time.monotonic()
                        pull.say_sometimes(progress.words)
        finally:
            pull.said_at = 0.0
        return None

    def _login(self, client: docker.APIClient, repository: str) -> str | None:
        """The header with the credentials for a registry, from the Docker configuration as it is now.

        Raises:
            LaunchFailed: they cannot be read.
        """
        try:
            client.reload_config(str(Path(self._config) / "config.json") if self._config else None)
            registry, _ = docker.auth.resolve_repository_name(repository)
            header = docker.auth.get_config_header(client, registry)
        except DockerException as exc:
            raise LaunchFailed(
                Cause.IMAGE_PULL,
                f"the credentials for the registry of {repository} cannot be had: {exc}",
                "Look at config.json in the Docker configuration of the agent's user (DOCKER_CONFIG).",
            ) from exc
        return header.decode() if isinstance(header, bytes) else header

    async def close(self) -> None:
        """Fetch nothing any more."""
        tasks = [pull.task for pull in self._pulls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Pull:
    """A pull that is under way.

    Attributes:
        who: is told what it does.
        words: that were told last.
        came: when it last came farther.
    """

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.who: list[Say] = []
        self.words = ""
        self.came = 0.0
        self.said_at = 0.0

    def say(self, words: str) -> None:
        self.words, self.said_at = words, time.monotonic()
        for say in self.who:
            say(words)

    def say_sometimes(self, words: str) -> None:
        if time.monotonic() - self.said_at >= _WORDS:
            self.say(words)


class _Progress:
    """How much of an image is there, from what the engine says of its layers: more of them become known as it goes."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._there: dict[str, int] = {}
        self._total: dict[str, int] = {}

    def take(self, word: dict[str, Any]) -> bool:
        """Whether more of it is there than before."""
        layer, status, detail = str(word.get("id")), word.get("status"), word.get("progressDetail") or {}
        before = sum(self._there.values())
        if status == "Downloading" and detail.get("total"):
            self._there[layer], self._total[layer] = int(detail.get("current", 0)), int(detail["total"])
        elif status in ("Download complete", "Pull complete") and layer in self._total:
            self._there[layer] = self._total[layer]
        return sum(self._there.values()) > before

    @property
    def words(self) -> str:
        there, total = (sum(part.values()) / 1e6 for part in (self._there, self._total))
        return f"pulling image {self._image}: {there:.0f} of {total:.0f} MB"


async def _refusal(answer: Answer) -> str:
    body = b"".join([piece async for piece in answer.pieces()])
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return " ".join(str(json.loads(body)["message"]).split())
    return f"HTTP {answer.status} {body[:500].decode(errors='replace')}"


def _fault(image: str, said: str) -> tuple[Cause, str, str]:
    if "no space left" in said:
        return Cause.IMAGE_PULL, f"the engine has no space left for image {image}: {said}", SPACE
    remedy = (
        "Correct the pool's variable image, push the image, or let the agent's machine reach its registry."
    )
    if any(word in said for word in ("denied", "unauthorized", "authentication required", "no basic auth")):
        remedy = "Correct the image's name, or log in: `docker login` as the agent's user, or DOCKER_CONFIG."
    return Cause.IMAGE_PULL, f"the image {image} cannot be pulled: {said}", remedy


def missing(image: str) -> LaunchFailed:
    """The image is not there, and may not be pulled."""
    return LaunchFailed(
        Cause.IMAGE_PULL,
        f"the image {image} is not on the engine, and pull_policy is never",
        "Load it there, or give the pool another pull_policy.",
    )
