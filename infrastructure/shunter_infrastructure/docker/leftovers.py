"""Containers of attempts whose folder is gone: nobody will ever ask for them. Told first, removed a while later."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import docker

from shunter_infrastructure.docker.container import FOLDER, ROOT
from shunter_infrastructure.docker.engine import Engine
from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Seconds between two looks; what is found in one is removed in the next.
GRACE = 60.0


class Leftovers:
    """Looks after what this agent's former lives left on the engine.

    Args:
        root: the folder of all attempts of the agent.
        grace: seconds that something is left alone after it was told of.
    """

    def __init__(self, engine: Engine, root: Path, grace: float = GRACE) -> None:
        self._engine = engine
        self._root = root
        self._grace = grace
        self._told: set[str] = set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except (LauncherUnavailable, docker.errors.APIError) as exc:
                log.debug("the engine's containers cannot be looked through now", reason=str(exc))
            await asyncio.sleep(self._grace)

    async def look(self) -> None:
        """Tell of leftovers, and remove those that were told of before.

        Raises:
            LauncherUnavailable: the engine is away.
            docker.errors.APIError: it says no.
        """
        label = f"{ROOT}={self._root}"
        found = await self._engine.call(lambda client: client.containers(all=True, filters={"label": label}))
        gone = {one["Id"]: one for one in found if not Path(one["Labels"][FOLDER]).exists()}
        for container in gone.keys() & self._told:
            await self._engine.call(partial(_remove, container=container))
            log.warning("a container that nobody owns was removed", container=_name(gone[container]))
        self._told = gone.keys() - self._told
        for container in self._told:
            log.warning(
                "a container of a former life of this agent is owned by nobody; it will be removed",
                container=_name(gone[container]),
                after=self._grace,
            )


def _name(one: dict[str, object]) -> str:
    names = one.get("Names")
    return str(names[0]).lstrip("/") if isinstance(names, list) and names else str(one["Id"])


def _remove(client: docker.APIClient, *, container: str) -> None:
    client.remove_container(container, v=True, force=True)
