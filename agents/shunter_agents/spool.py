"""Output that waits on this agent's disk, and how it makes room there: by holes at its beginning.

A run writes into its file and is never kept waiting, whatever becomes of the server. So that the disk stays
usable, blocks at the beginning of such files are given back once all of them together take more than
``agent.spool_limit``, or the disk has less than ``agent.min_disk`` left: first those that the server has,
then the oldest that it has not, of the attempt with the most. Those are lost, and the log shows a mark in
their place. Up to where is written down before there is a hole, so that zeros are never taken for output.
"""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from shunter_agents import holes
from shunter_agents.attempt import Attempt
from shunter_agents.health import Health, Kind
from shunter_agents.holdings import Holdings
from shunter_agents.killpoints import reached
from shunter_work_pools.contracts.sizes import size as in_words
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Bytes at the end of an output that are never given up.
TAIL = 64 * 1024
#: What is given up of one output at a time is at least this part of what it takes: few marks, not many.
PART = 4
#: Of most file systems: less is not given back.
BLOCK = 4096
#: Bytes per second that output is reckoned to grow by at most, and seconds between two looks.
RATE = 2**30
SOONEST, LATEST = 0.1, 5.0
#: Seconds to the next look where room is wanted and none can be made.
IN_VAIN = 1.0
#: Bytes in one call: while a hole is made, writers of that file wait.
SLICE = 32 * 2**20


@dataclass(frozen=True)
class Output:
    """The file of one attempt's output, as it is now.

    Attributes:
        size: bytes written so far.
        taken: bytes of the disk.
        settled: offset up to which nobody needs it any more.
    """

    attempt: Attempt
    path: Path
    size: int
    taken: int
    settled: int

    @property
    def idle(self) -> int:
        """Bytes of the disk that are taken for nothing."""
        return max(0, self.taken - (self.size - self.settled) - BLOCK) if self.settled else 0

    @property
    def last(self) -> int:
        """Offset up to which it may be given up."""
        return max(self.settled, _whole(self.size - TAIL))

    @property
    def losable(self) -> int:
        """Bytes that can be given up although the server does not have them."""
        return self.last - self.settled

    def cut(self, need: int) -> int:
        """Up to where to give it up for ``need`` bytes."""
        piece = max(need, self.taken // PART)
        return min(self.last, self.settled + _whole(piece + BLOCK - 1))


class Spool:
    """Keeps the output that waits within its room.

    Args:
        holdings: the attempts.
        limit: bytes of the disk that their output may take.
        min_disk: bytes that should be free where the state folder is.
        health: is told when there is too much output and no room can be made.
    """

    def __init__(self, holdings: Holdings, health: Health, limit: int, min_disk: int) -> None:
        self._holdings = holdings
        self._health = health
        self._limit = limit
        self._min_disk = min_disk
        self._possible: bool | None = None  # not known before it is needed
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be output from now on."""
        self._wake.set()

    async def run(self) -> None:
        """Look for ever, the sooner the less room there is; not at all while there is no output."""
        while True:
            self._wake.clear()
            pause = await self.look()
            if pause is None:
                await self._wake.wait()
            else:
                await asyncio.sleep(pause)

    async def look(self) -> float | None:
        """Make room where it is wanted; seconds until the next look, None: nothing is here."""
        outputs = self._outputs()
        over, short = self._lacking(outputs)
        want = max(over, short)
        if want > 0 and await self._relieve(outputs, over, short):
            return SOONEST  # and see whether it is enough
        self._tell(over)
        if want > 0:
            return IN_VAIN
        return min(LATEST, max(SOONEST, -want / RATE)) if self._holdings.attempts else None

    def waiting(self) -> int:
        """Bytes of output that the server does not have yet."""
        return sum(one.size - one.settled for one in self._outputs())

    def _outputs(self) -> list[Output]:
        found = []
        for attempt in self._holdings.attempts.values():
            path = attempt.launcher.output_file(attempt.handle) if attempt.handle is not None else None
            if path is None:
                continue
            try:
                facts = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(facts.st_mode):
                size = facts.st_size
                settled = size if attempt.log_done else max(attempt.log_sent or 0, attempt.log_gone)
                found.append(Output(attempt, path, size, facts.st_blocks * 512, _whole(min(settled, size))))
        return found

    def _lacking(self, outputs: list[Output]) -> tuple[int, int]:
        """Bytes over the limit, and bytes that the disk should have free and has not; negative: room."""
        disk = os.statvfs(self._holdings.folder.path)
        return sum(one.taken for one in outputs) - self._limit, self._min_disk - disk.f_bavail * disk.f_frsize

    async def _relieve(self, outputs: list[Output], over: int, short: int) -> bool:
        """Make room; whether there was any to be made."""
        if not self._can():
            return False
        made = False
        for one in sorted(outputs, key=lambda one: one.idle, reverse=True):
            if max(over, short) <= 0 or one.idle == 0:
                break
            if await self._give_up(one, one.settled):
                over, short, made = over - one.idle, short - one.idle, True
        if short > sum(one.losable for one in outputs):
            short = 0  # others have filled the disk: it would be lost for nothing
        for one in sorted(outputs, key=lambda one: one.losable, reverse=True):
            if max(over, short) <= 0 or one.losable == 0:
                break
            to = one.cut(max(over, short))
            if await self._give_up(one, to):
                over, short, made = over - (to - one.settled), short - (to - one.settled), True
        return made

    async def _give_up(self, one: Output, to: int) -> bool:
        """Give the output up to offset ``to`` up; whether there is a hole now."""
        attempt = one.attempt
        reached("before-gap-journaled")
        if to > attempt.log_gone:
            try:
                with self._health.writing(**attempt.names):
                    attempt.give_up_output(to)
            except OSError:
                return False
        reached("after-gap-journaled")
        if to > one.settled:
            log.warning(
                "output that the server does not have makes room; its log will show a mark",
                bytes=to - one.settled,
                **attempt.names,
            )
        try:
            await asyncio.to_thread(_punch, one.path, to)
        except OSError as exc:
            log.error("output of a run cannot make room", reason=str(exc), **attempt.names)
            return False
        reached("after-hole-punched")
        return True

    def _can(self) -> bool:
        if self._possible is None:
            try:
                self._possible = holes.possible(self._holdings.folder.lock_file)
            except OSError:
                return False  # for now
        return self._possible

    def _tell(self, over: int) -> None:
        if (over > 0) == self._health.has(Kind.SPOOL):
            return
        if over <= 0:
            self._health.well(Kind.SPOOL)
            return
        why = "what is left is too little of each" if self._can() else "its file system knows no holes"
        self._health.trouble(
            Kind.SPOOL,
            f"output that waits for the server takes {over + self._limit:,} bytes of the disk, "
            f"agent.spool_limit is {in_words(self._limit)}, and none of it can make room: {why}",
        )


def _whole(offset: int) -> int:
    """The last block's end that is not behind an offset."""
    return max(0, offset) // BLOCK * BLOCK


def _punch(path: Path, to: int) -> None:
    # Open for writing: as long as it is, nobody makes this file another attempt's (``Launcher.recycle``).
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for start in range(0, to, SLICE):
            holes.punch(fd, start, min(SLICE, to - start))
            reached("while-hole-punched")
    finally:
        os.close(fd)
