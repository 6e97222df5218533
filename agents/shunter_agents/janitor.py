"""One task that removes what is settled: the engine's remains, then the folder."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from shunter_agents.attempt import Attempt
from shunter_agents.console import get_logger
from shunter_agents.holdings import Holdings
from shunter_agents.killpoints import reached

log = get_logger()

#: Seconds until what could not be removed is tried again.
AGAIN = 30.0


class Janitor:
    """Removes attempts of which nobody wants to hear any more."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._settled: asyncio.Queue[Attempt] = asyncio.Queue()
        self.on_removed: Callable[[Attempt], None] = lambda attempt: None

    def take(self, attempt: Attempt) -> None:
        """Its end and all its output are with the server, or nobody wants them."""
        self._settled.put_nowait(attempt)

    async def run(self) -> None:
        """Remove for ever, beginning with what a former life left half removed."""
        await asyncio.to_thread(self._holdings.folder.empty_trash)
        while True:
            attempt = await self._settled.get()
            try:
                await self._remove(attempt)
            except Exception as exc:
                log.warning("the folder of a run cannot be removed", reason=str(exc), **attempt.names)
                asyncio.get_running_loop().call_later(AGAIN, self.take, attempt)

    async def _remove(self, attempt: Attempt) -> None:
        if attempt.handle is not None:
            await attempt.launcher.cleanup(attempt.handle)
        reached("before-folder-removed")
        # Out of sight in one step: a crash half-way leaves nothing that looks like an attempt.
        trash = self._holdings.folder.discard(attempt.journal.folder)
        reached("after-folder-renamed")
        self._holdings.remove(attempt)
        self.on_removed(attempt)
        if not _unlink_small(trash):
            await asyncio.to_thread(shutil.rmtree, trash, True)


def _unlink_small(folder: Path) -> bool:
    """Remove a folder that holds only some files and empty folders, without the price of a thread."""
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count == 20:
                    return False
                if entry.is_dir(follow_symlinks=False):
                    os.rmdir(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(folder)
    except OSError:
        return False
    return True
