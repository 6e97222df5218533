"""One task that removes what is settled: the engine's remains, then the folder.

The folder is renamed at once, then made ready for another attempt, or emptied when there is nothing
better to do: making and removing files waits for other people's fsyncs, and runs do not have to.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from shunter_agents.attempt import Attempt
from shunter_agents.holdings import Holdings
from shunter_agents.journal import Journal
from shunter_agents.killpoints import reached
from shunter_infrastructure.removing import remove
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Seconds until what could not be removed is tried again.
AGAIN = 30.0


#: Discarded folders that may wait for a quiet moment.
HEAP = 5_000
#: Seconds without a run that make a moment quiet.
QUIET = 0.25


class Janitor:
    """Removes attempts of which nobody wants to hear any more."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._settled: asyncio.Queue[Attempt] = asyncio.Queue()
        self._heap: deque[Path] = deque()
        self.on_removed: Callable[[Attempt], None] = lambda attempt: None

    def take(self, attempt: Attempt) -> None:
        """Its end and all its output are with the server, or nobody wants them."""
        self._settled.put_nowait(attempt)

    def throw_away(self, folder: Path) -> None:
        """Discarded already, and never an attempt."""
        self._heap.append(folder)

    async def run(self) -> None:
        """Remove for ever, beginning with what a former life left half removed."""
        await asyncio.to_thread(self._holdings.folder.empty_trash)
        quiet = False
        while True:
            if self._heap and self._settled.empty() and (quiet or len(self._heap) > HEAP):
                await self._empty_one()
                quiet = quiet and not self._holdings.working
                continue
            try:
                async with asyncio.timeout(QUIET if self._heap else None):
                    attempt = await self._settled.get()
            except TimeoutError:
                quiet = not self._holdings.working
                continue
            quiet = False
            try:
                await self._remove(attempt)
            except Exception as exc:
                log.warning("the folder of a run cannot be removed", reason=str(exc), **attempt.names)
                asyncio.get_running_loop().call_later(AGAIN, self.take, attempt)

    async def _remove(self, attempt: Attempt) -> None:
        if attempt.handle is not None:
            await attempt.launcher.cleanup(attempt.handle)
        reached("before-folder-removed")
        if os.path.lexists(attempt.journal.folder):  # a run can remove even that
            self._put_away(attempt)
        self._holdings.remove(attempt)
        self.on_removed(attempt)

    def _put_away(self, attempt: Attempt) -> None:
        # Out of sight in one step: a crash half-way leaves nothing that looks like an attempt.
        folder = self._holdings.folder.discard(attempt.journal.folder)
        reached("after-folder-renamed")
        if not self._recycle(attempt, folder):
            self._heap.append(folder)
        reached("after-folder-recycled")

    def _recycle(self, attempt: Attempt, folder: Path) -> bool:
        try:
            if not attempt.launcher.recycle(folder):
                return False
            reached("before-journal-cleared")
            Journal(folder).clear()
        except OSError:
            return False
        return self._holdings.folder.keep_for_reuse(folder)

    async def _empty_one(self) -> None:
        folder = self._heap.popleft()
        if not _unlink_small(folder):
            await asyncio.to_thread(remove, folder)
        else:
            await asyncio.sleep(0)


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
