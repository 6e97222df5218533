"""Why an agent takes nothing new at the moment: at most one sentence of each kind.

Troubles are told once when they come, change and go: in the log, and to the server by the next sync,
which is sent at once. What is held stays held and what is owed stays owed, whatever the trouble.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from shunter_agents.attempt import Key
from shunter_agents.breaker import Breaker
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Seconds after which a write to the state folder is slow.
SLOW = 1.0
#: Characters of a sentence; the contract allows 1,000.
SENTENCE = 900


class Kind(StrEnum):
    """What can be wrong."""

    DISK = "disk"
    MEMORY = "memory"
    CHECK = "health check"
    LAUNCHES = "launches"
    ENGINE = "engine"
    SPOOL = "spool"
    POLICY = "policy"


class Health:
    """The troubles of one agent.

    Args:
        folder: its state folder, for the sentences about it.

    Attributes:
        on_change: called when a trouble came, changed or went.
        on_writing: called when something could not be written down, or only slowly: the disk should be
            looked at.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = lambda: Stamp.now().ticks) -> None:
        self._folder = folder
        self._breaker = Breaker(clock)
        self._troubles: dict[Kind, str] = {}
        self._waiting: dict[Key, str] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.on_writing: Callable[[], None] = lambda: None

    @property
    def troubles(self) -> list[str]:
        """A sentence for each, in the order of :class:`Kind`."""
        return [self._troubles[kind] for kind in Kind if kind in self._troubles]

    def has(self, kind: Kind) -> bool:
        """Whether there is trouble of this kind."""
        return kind in self._troubles

    def allows(self, launching: Callable[[], bool]) -> int | None:
        """How many runs may be taken at this moment; None: as many as there is room for.

        Args:
            launching: whether a launch is under way, as a probe of the breaker would be.
        """
        if not self._troubles:
            return None
        if set(self._troubles) != {Kind.LAUNCHES} or self._breaker.probe_in() > 0:
            return 0
        return 0 if launching() else 1

    def next_change(self) -> float | None:
        """Seconds until :meth:`allows` may say something else by itself; None: it will not."""
        return self._breaker.probe_in() or None if self._breaker.open else None

    def trouble(self, kind: Kind, sentence: str) -> None:
        """Something is wrong."""
        text = sentence.encode("utf-8", "replace").decode()[:SENTENCE]
        if self._troubles.get(kind) == text:
            return
        self._troubles[kind] = text
        log.warning("nothing new is taken", trouble=text)
        self.on_change()

    def well(self, kind: Kind) -> None:
        """Nothing of this kind is wrong."""
        text = self._troubles.pop(kind, None)
        if text is None:
            return
        log.info("a trouble is over", trouble=text, left=self.troubles)
        self.on_change()

    # -- the disk, as writing finds it

    @contextlib.contextmanager
    def writing(self, **names: object) -> Iterator[None]:
        """Around a write to the state folder: what fails or takes long becomes a trouble. Raises what it raises."""
        began = time.monotonic()
        try:
            yield
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR):  # a run can remove even its own folder
                log.error("something could not be written down", reason=str(exc), **names)
            else:
                self.unwritable(exc)
                self.on_writing()
            raise
        finally:
            if time.monotonic() - began > SLOW:
                self.slow()
                self.on_writing()

    def unwritable(self, exc: OSError) -> None:
        """The state folder cannot be written."""
        self.trouble(Kind.DISK, f"the state folder {self._folder} cannot be written: {exc.strerror or exc}")

    def slow(self) -> None:
        """Writing to the state folder takes long."""
        if not self.has(Kind.DISK):
            self.trouble(
                Kind.DISK,
                f"the disk of the state folder {self._folder} is slow: a small write takes more than {SLOW:g} s",
            )

    # -- launches

    def launch_failed(self, reason: str) -> None:
        """A launch failed."""
        self._breaker.failed()
        if self._breaker.open:
            self.trouble(
                Kind.LAUNCHES,
                f"{self._breaker.failures} launches in a row have failed, the last one: {reason.rstrip('.')}; "
                "a single run is tried from time to time",
            )

    def launched(self, started: Stamp) -> None:
        """A launch succeeded whose work began at ``started``."""
        self._breaker.succeeded(started.ticks)
        if not self._breaker.open:
            self.well(Kind.LAUNCHES)

    @property
    def doubts(self) -> bool:
        """The last launch that is known of failed: whether one succeeds is of interest."""
        return self._breaker.failures > 0

    def engine_away(self, key: Key, reason: str) -> None:
        """An attempt waits for the engine of its launcher."""
        self._waiting[key] = reason
        self.trouble(Kind.ENGINE, f"an engine is away: {reason}")

    def engine_back(self, key: Key) -> None:
        """An attempt waits for it no more."""
        if self._waiting.pop(key, None) is None:
            return
        if self._waiting:
            self.trouble(Kind.ENGINE, f"an engine is away: {next(iter(self._waiting.values()))}")
        else:
            self.well(Kind.ENGINE)
