"""The steps before a launch that fetch the code of an attempt and build its environment."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from shunter_agents.attempt import Attempt
from shunter_agents.sources.shared import Told
from shunter_agents.sources.shelf import Shelf
from shunter_infrastructure.launcher import LaunchFailed, NotReady, Prepared
from shunter_work_pools.contracts.code_sources import GitSource
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.states import Cause
from shunter_work_pools.daemon_log import get_logger

if TYPE_CHECKING:
    from shunter_agents.sources.archive import Archives
    from shunter_agents.sources.environment import Environments
    from shunter_agents.sources.git import Repositories

log = get_logger()

#: Seconds between two looks for what is not wanted any more.
COLLECT_EVERY = 3600.0


class Code:
    """Sources and environments of an agent; other agents of its home share what it keeps.

    Args:
        cache: folder of all that is kept.
        environ: of the agent.
        keep: seconds that something is kept after its last use.
        limit: bytes of code, and of environments, that are kept; None: no limit.

    Attributes:
        on_commit: called with an attempt and the commit that it runs, as soon as that is known.
        on_note: called with an attempt and what it waits for; empty: nothing any more.
        untimed: what is done within it takes nothing of the attempt's time to start.
    """

    def __init__(self, cache: Path, environ: Mapping[str, str], keep: float, limit: int | None) -> None:
        self._cache = cache
        self._keep, self._limit = keep, limit
        self._code, self._built = Shelf(cache / "code"), Shelf(cache / "environments")
        self._environ = environ
        self.on_commit: Callable[[Attempt, str], None] = lambda attempt, commit: None
        self.on_note: Callable[[Attempt, str], None] = lambda attempt, note: None
        self.untimed: Callable[[Attempt], contextlib.AbstractContextManager[None]] = lambda attempt: (
            contextlib.nullcontext()
        )

    # Loaded when they are used: most agents use none of them.

    @functools.cached_property
    def _repositories(self) -> Repositories:
        from shunter_agents.sources.git import Repositories

        return Repositories(self._cache / "repositories", self._code, self._environ)

    @functools.cached_property
    def _archives(self) -> Archives:
        from shunter_agents.sources.archive import Archives

        return Archives(self._code, self._cache / "archives")

    @functools.cached_property
    def _environments(self) -> Environments:
        from shunter_agents.sources.environment import Environments

        return Environments(self._built, self._cache / "downloads", self._environ)

    async def fetch(self, attempt: Attempt, prepared: Prepared) -> Prepared:
        """The first step: the code is there."""
        source = attempt.assignment.work.source
        if source is None or isinstance(source, str):
            return prepared
        self._demand_open(attempt.assignment.work)
        with self._progress(attempt) as told, _disk():
            user, secret = attempt.journal.folder, prepared.source_secret
            if isinstance(source, GitSource):
                root, commit = await self._repositories.fetch(source, secret, attempt.commit, user, told)
                self.on_commit(attempt, commit)
            else:
                root = await self._archives.fetch(source, secret, user, told)
        return dataclasses.replace(prepared, source=_inside(root, source.folder))

    async def build(self, attempt: Attempt, prepared: Prepared) -> Prepared:
        """The second step: the environment is there."""
        work = attempt.assignment.work
        if work.environment is None:
            return prepared
        if not attempt.launcher.capabilities.environments:
            raise LaunchFailed(
                Cause.REJECTED,
                f"the {attempt.launcher.name} launcher builds no environments: there the image is the environment",
                "Put what is required into the image, and deploy it without an environment.",
            )
        self._demand_open(work)
        with self._progress(attempt) as told, _disk():
            python = await self._environments.build(
                work.environment,
                prepared.source or _local(work),
                attempt.journal.folder,
                told,
                # As another user: code of packages must not run as the agent's. Nor where its policy says what runs.
                trusted=work.run_as is None and prepared.rules.builds,
            )
        return dataclasses.replace(prepared, python=python)

    def _demand_open(self, work: Work) -> None:
        """Another user must be able to enter the folders that lead to what is kept."""
        if work.run_as is None:
            return
        self._cache.mkdir(parents=True, exist_ok=True)
        for folder in (self._cache, *self._cache.parents):
            if not folder.stat().st_mode & 0o001:
                raise LaunchFailed(
                    Cause.SOURCE,
                    f"the user {work.run_as} cannot reach what is kept in {self._cache}: {folder} is closed to others",
                    "Let agent.cache name a folder that all may enter, such as /var/cache/shunter.",
                )

    async def collect(self) -> None:
        """Remove for ever what nobody wants any more."""
        while True:
            await self._collect()
            await asyncio.sleep(COLLECT_EVERY)

    async def _collect(self) -> None:
        if self._cache.exists():
            for shelf in (self._code, self._built):
                try:
                    removed = await asyncio.to_thread(shelf.collect, self._keep, self._limit)
                except OSError as exc:
                    log.warning("what is kept of code cannot be removed", reason=str(exc))
                    continue
                if removed:
                    log.info(
                        "removed what nobody used any more", folder=str(shelf.folder), count=len(removed)
                    )
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._repositories.collect, self._keep)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._archives.collect, self._keep)

    @contextlib.contextmanager
    def _progress(self, attempt: Attempt) -> Iterator[Told]:
        """What is called with progress. From the first word on the clock stands still: whoever makes progress has
        limits of its own. Who waits for a server that does not answer says nothing."""
        with contextlib.ExitStack() as stack:
            said = False

            def told(words: str) -> None:
                nonlocal said
                if not said:
                    stack.enter_context(self.untimed(attempt))
                said = True
                self.on_note(attempt, words)

            try:
                yield told
            finally:
                if said:
                    self.on_note(attempt, "")


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise NotReady(f"its code cannot be kept on the agent's disk: {exc}", cause=Cause.SOURCE) from exc


def _local(work: Work) -> Path | None:
    return None if work.local_source is None else Path(os.path.abspath(work.local_source))


def _inside(root: Path, folder: str) -> Path:
    """A folder of what was fetched; links in it that lead elsewhere are not followed."""
    place = root / folder
    if not place.resolve().is_relative_to(root.resolve()):
        raise LaunchFailed(Cause.SOURCE, f"the folder {folder!r} leads out of the source")
    if not place.is_dir():
        raise LaunchFailed(
            Cause.SOURCE, f"there is no folder {folder!r} in the source", "Correct the source's folder."
        )
    return place
