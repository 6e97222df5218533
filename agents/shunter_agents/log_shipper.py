"""One task that brings the output of all attempts to the server, by offset, fairly, in bounded memory.

Live attempts are looked at every :data:`LOOK` seconds, an ended one at once. Output stays in its file
until the server has it, however long that takes, or until it has to make room (:mod:`spool`): then the
server is told of a gap. What is in memory is one upload; it is sent until the server has taken it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from shunter_agents.attempt import Attempt, Key
from shunter_agents.link import Backoff, Link, Server, Trouble, judge, told, whole
from shunter_infrastructure.launcher import Handle, LauncherUnavailable
from shunter_work_pools.contracts.agents import LogFrame, LogSize
from shunter_work_pools.contracts.log_frames import encode_frames
from shunter_work_pools.daemon_log import get_logger
from shunter_work_pools.masking import Mask

log = get_logger()

#: Seconds between two looks at the output of what runs.
LOOK = 0.3
#: Bytes of output in one upload, and the least that one attempt gets of it while many have some.
UPLOAD, SHARE = 1024 * 1024, 32 * 1024
#: Bytes of output at the most that are masked at once: nothing else happens meanwhile.
MASKED = 128 * 1024
#: Seconds until an attempt whose output the server does not take, or that cannot be read, is tried again.
PARKED = 30.0

Frames = list[tuple[LogFrame, bytes]]


class LogShipper:
    """Output on its way. Nothing is lost with it: the files have it, the server knows how much it has."""

    def __init__(self, server: Server, name: str, link: Link) -> None:
        self._server = server
        self._name = name
        self._link = link
        self._live: dict[Key, Attempt] = {}
        self._ready: deque[Attempt] = deque()
        self._wake = asyncio.Event()
        self._one_by_one = 0
        self.on_done: Callable[[Attempt], None] = lambda attempt: None
        self.on_output: Callable[[], None] = lambda: None

    def watch(self, attempt: Attempt) -> None:
        """It runs, and may write; what is to be masked of it is known."""
        if not self._live:
            self._wake.set()
        self._live[attempt.key] = attempt
        self.on_output()

    def finish(self, attempt: Attempt) -> None:
        """It has ended: ``log_final`` is known."""
        self._live.pop(attempt.key, None)
        if attempt.log_done:
            return
        self._ready.append(attempt)
        self._wake.set()
        self.on_output()

    def forget(self, attempt: Attempt) -> None:
        """Its output is of no interest any more."""
        self._live.pop(attempt.key, None)
        attempt.log_done = True

    async def run(self) -> None:
        """Bring output for ever."""
        backoff = Backoff()
        batch: list[Attempt] = []
        frames: Frames = []
        while True:
            if not frames:
                if not self._ready:
                    await self._look()
                batch, frames = await self._gather()
                continue
            try:
                body = encode_frames(frames)
                answer = await whole(self._server.upload_logs(self._name, body), len(body))
            except Exception as exc:
                if judge(exc) is Trouble.BAD:
                    self._isolate(batch, told(exc))
                    frames = []
                    continue
                await self._link.trouble(exc, backoff, "output of runs")
                # The same again: of what is on its way nothing is lost, whatever has become of its file.
                frames = [
                    (_gap(one) if frame.gap else frame, data)
                    for one, (frame, data) in zip(batch, frames, strict=True)
                ]
                continue
            backoff.reset()
            self._link.up()
            self._account(batch, frames, answer.sizes)
            frames = []

    async def _look(self) -> None:
        """Wait until there may be something: at once for what has ended, by the clock for what runs."""
        self._wake.clear()
        if self._live:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._wake.wait()
                    if self._ready:
                        return
            self._ready.extend(self._live.values())
        else:
            await self._wake.wait()

    async def _gather(self) -> tuple[list[Attempt], Frames]:
        """The next upload: a share for each of those that wait longest."""
        batch: list[Attempt] = []
        frames: Frames = []
        room = UPLOAD
        share = max(SHARE, UPLOAD // max(1, len(self._ready)))
        taken: set[Key] = set()
        while self._ready and room > 0:
            attempt = self._ready.popleft()
            if attempt.log_done or attempt.handle is None or attempt.key in taken:
                continue
            taken.add(attempt.key)
            frame, data = await self._next(attempt, min(share, room))
            if frame is None:
                continue
            batch.append(attempt)
            frames.append((frame, data))
            room -= len(data)
            if self._one_by_one > 0:
                self._one_by_one -= 1
                break
        return batch, frames

    async def _next(self, attempt: Attempt, limit: int) -> tuple[LogFrame | None, bytes]:
        """What to send of it now: its output, a gap in it, or the question how much of it is there."""
        if attempt.log_sent is None:
            return _frame(attempt), b""
        data = await self._read(attempt, attempt.log_sent, limit)
        if attempt.log_done:
            return None, b""
        if attempt.log_sent < attempt.log_gone:  # looked at after reading: it may be a hole that was read
            return _gap(attempt), b""
        return (_frame(attempt, length=len(data)), data) if data else (None, b"")

    async def _read(self, attempt: Attempt, offset: int, limit: int) -> bytes:
        """Its next output; nothing if it cannot be had now."""
        assert attempt.handle is not None
        assert attempt.mask is not None, "what is not to be seen of it is not known"
        if attempt.log_final is not None and offset >= attempt.log_final:
            self._done(attempt)
            return b""
        try:
            if attempt.mask:
                data = await _masked(attempt, attempt.handle, attempt.mask, offset, limit)
            else:
                data = await attempt.launcher.read_output(attempt.handle, offset, limit)
        except LauncherUnavailable:
            self._later(attempt)
            return b""
        except Exception as exc:
            log.error("the output of a run cannot be read", reason=str(exc), **attempt.names)
            self._later(attempt)
            return b""
        if not data and attempt.log_final is not None:
            log.error(
                "output of a run is missing at its end",
                offset=offset,
                expected=attempt.log_final,
                **attempt.names,
            )
            attempt.log_gone = attempt.log_final  # found so again by a next life
        return data

    def _account(self, batch: list[Attempt], frames: Frames, sizes: list[LogSize]) -> None:
        """Go on from where the server says it is."""
        by_key = {(size.run, size.attempt): size for size in sizes}
        for attempt, (frame, _) in zip(batch, frames, strict=True):
            if attempt.log_done:
                continue
            size = by_key.get(attempt.key)
            if size is not None and size.stale:
                if frame.epoch == attempt.assignment.epoch:
                    log.info("the server takes no more output of this run", **attempt.names)
                    self._done(attempt)
                else:
                    self._ready.append(attempt)  # it was granted anew meanwhile
                continue
            if size is not None and size.full:
                log.warning(
                    "the log of this run has reached its limit; no more of it is kept", **attempt.names
                )
                self._done(attempt)
                continue
            before = attempt.log_sent
            new = frame.length + frame.gap
            if size is None or (new and size.size == before):
                log.error("output of a run does not arrive", offset=before, **attempt.names)
                self._later(attempt)
                continue
            attempt.log_sent = size.size
            if attempt.log_final is not None and size.size >= attempt.log_final:
                self._done(attempt)
            elif attempt.log_final is not None or new:
                self._ready.append(attempt)  # perhaps there is more already

    def _isolate(self, batch: list[Attempt], reason: str) -> None:
        if len(batch) > 1:
            log.warning("an upload of output was refused; sending one by one", reason=reason)
            self._one_by_one = len(batch)
            self._ready.extendleft(reversed(batch))
            return
        log.error("the output of a run is refused", reason=reason, again_in=PARKED, **batch[0].names)
        self._later(batch[0])

    def _later(self, attempt: Attempt) -> None:
        self._live.pop(attempt.key, None)
        asyncio.get_running_loop().call_later(PARKED, self._again, attempt)

    def _again(self, attempt: Attempt) -> None:
        if attempt.log_done:
            return
        if attempt.log_final is None:
            self.watch(attempt)
        else:
            self.finish(attempt)

    def _done(self, attempt: Attempt) -> None:
        attempt.log_done = True
        self._live.pop(attempt.key, None)
        self.on_done(attempt)


async def _masked(attempt: Attempt, handle: Handle, mask: Mask, offset: int, limit: int) -> bytes:
    """Output without what is to be masked. What may be the beginning of a value is left for later."""
    size = attempt.log_final  # before reading: once it is known, nothing more is written
    before = min(offset, mask.reach)
    asked = before + max(min(limit, MASKED), 2 * mask.reach)
    seen = await attempt.launcher.read_output(handle, offset - before, asked)
    whole = size is not None and (len(seen) < asked or offset - before + len(seen) >= size)
    return mask.cover(seen)[before : len(seen) if whole else mask.held(seen)]


def _frame(attempt: Attempt, length: int = 0, gap: int = 0) -> LogFrame:
    return LogFrame.model_construct(
        run=attempt.key[0],
        attempt=attempt.key[1],
        epoch=attempt.assignment.epoch,
        offset=attempt.log_sent or 0,
        length=length,
        gap=gap,
    )


def _gap(attempt: Attempt) -> LogFrame:
    """All that was given up of it and is not with the server."""
    return _frame(attempt, gap=attempt.log_gone - (attempt.log_sent or 0))
