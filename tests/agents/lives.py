"""One life of an agent in this process, on a state folder that outlives it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from shunter_agents.daemon import Agent
from shunter_agents.options import Options
from shunter_agents.state_folder import StateFolder
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.launcher import Launcher
from tests.agents.fake_server import FakeServer


class Life:
    """A running agent.

    Attributes:
        done: its exit code, once it has ended.
    """

    def __init__(self, server: FakeServer, root: Path, launcher: Launcher, **options: Any) -> None:
        self.folder = StateFolder(root, "a1")
        self.launcher = launcher
        self.agent = Agent(
            server,
            lambda kind: launcher,
            self.folder,
            Options(name="a1", pools=["default"], queues=[], tags=[], **{"limit": 8} | options),
        )
        self.done = asyncio.ensure_future(self.agent.run())

    def attempts(self) -> list[str]:
        """Names of the attempts' folders."""
        return sorted(path.name for path in self.folder.attempts.iterdir())

    async def die(self) -> None:
        """End as if killed: nothing more is written, said or done; what was launched goes on."""
        self.done.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.done
        self.folder.close()

    async def drained(self, seconds: float = 10.0) -> int:
        """Let it drain; its exit code."""
        self.agent.drain()
        async with asyncio.timeout(seconds):
            code = await self.done
        self.folder.close()
        return code


@contextlib.asynccontextmanager
async def life(
    server: FakeServer, root: Path, launcher: Launcher | None = None, **options: Any
) -> AsyncIterator[Life]:
    """An agent that is ended at the end of the block, if it has not ended before; its ``Options``."""
    one = Life(server, root, launcher or FakeLauncher(), **options)
    try:
        yield one
    finally:
        if not one.done.done():
            await one.die()
        else:
            with contextlib.suppress(OSError):
                one.folder.close()
            if not one.done.cancelled():
                one.done.result()
