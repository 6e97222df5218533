"""One task that brings the output of all attempts to the server, by offset, fairly, in bounded memory.

Live attempts are looked at every :data:`LOOK` seconds, an ended one at once. Output stays in its file
until the server has it, however long that takes; what is in memory is one upload.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from shunter_agents.attempt import Attempt, Key
from shunter_agents.link import Backoff, Link, Server, Trouble, judge, told
from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_work_pools.contracts.agents import LogFrame, LogSize
from shunter_work_pools.contracts.log_frames import encode_frames
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Seconds between two looks at the output of what runs.
LOOK = 0.3
#: Bytes of output in one upload, and the least that one attempt gets of it while many have some.
UPLOAD, SHARE = 1024 * 1024, 32 * 1024
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

    def watch(self, attempt: Attempt) -> None:
        """It runs, and may write."""
        if not self._live:
            self._wake.set()
        self._live[attempt.key] = attempt

    def finish(self, attempt: Attempt) -> None:
        """It has ended: ``log_final`` is known."""
        self._live.pop(attempt.key, None)
        if attempt.log_done:
            return
        self._ready.append(attempt)
        self._wake.set()

    def forget(self, attempt: Attempt) -> None:
        """Its output is of no interest any more."""
        self._live.pop(attempt.key, None)
        attempt.log_done = True

    async def run(self) -> None:
        """Bring output for ever."""
        backoff = Backoff()
        while True:
            if not self._ready:
                await self._look()
            batch, frames = await self._gather()
            if not frames:
                continue
            try:
                answer = await self._server.upload_logs(self._name, encode_frames(frames))
            except Exception as exc:
                if judge(exc) is Trouble.BAD:
                    self._isolate(batch, told(exc))
                    continue
                self._ready.extendleft(reversed([one for one in batch if not one.log_done]))
                await self._link.trouble(exc, backoff, "output of runs")
                continue
            backoff.reset()
            self._link.up()
            self._account(batch, frames, answer.sizes)

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
            data = b"" if attempt.log_sent is None else await self._read(attempt, min(share, room))
            if data is None or (not data and attempt.log_sent is not None):
                continue
            frame = LogFrame.model_construct(
                run=attempt.key[0],
                attempt=attempt.key[1],
                epoch=attempt.assignment.epoch,
                offset=attempt.log_sent or 0,
                length=len(data),
            )
            batch.append(attempt)
            frames.append((frame, data))
            room -= len(data)
            if self._one_by_one > 0:
                self._one_by_one -= 1
                break
        return batch, frames

    async def _read(self, attempt: Attempt, limit: int) -> bytes | None:
        """Its next output; None if it cannot be had now."""
        assert attempt.handle is not None
        assert attempt.log_sent is not None
        if attempt.log_final is not None and attempt.log_sent >= attempt.log_final:
            self._done(attempt)
            return None
        try:
            data = await attempt.launcher.read_output(attempt.handle, attempt.log_sent, limit)
        except LauncherUnavailable:
            self._later(attempt)
            return None
        except Exception as exc:
            log.error("the output of a run cannot be read", reason=str(exc), **attempt.names)
            self._later(attempt)
            return None
        if not data and attempt.log_final is not None:
            log.error(
                "output of a run is missing at its end",
                offset=attempt.log_sent,
                expected=attempt.log_final,
                **attempt.names,
            )
            self._done(attempt)
        return data

    def _account(self, batch: list[Attempt], frames: Frames, sizes: list[LogSize]) -> None:
        """Go on from where the server says it is."""
        by_key = {(size.run, size.attempt): size for size in sizes}
        for attempt, (frame, data) in zip(batch, frames, strict=True):
            if attempt.log_done:
                continue
            size = by_key.get(attempt.key)
            if size is not None and size.stale:
                if frame.epoch == attempt.assignment.epoch:
                    log.info("the server takes no more output of this run", **attempt.names)
                    self._done(attempt)
                continue
            before = attempt.log_sent
            if size is None or (data and size.size == before):
                log.error("output of a run does not arrive", offset=before, **attempt.names)
                self._later(attempt)
                continue
            attempt.log_sent = size.size
            if attempt.log_final is not None and size.size >= attempt.log_final:
                self._done(attempt)
            elif attempt.log_final is not None or data:
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
