"""One task that brings the journals of flows to the server, by offset, and before each line the result that it names.

Live attempts are looked at every :data:`LOOK` seconds, an ended one at once: its end is told only when the server has the
whole journal, so that whoever goes on from it misses nothing. Lines stay in their file until the server has them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from shunter_agents.attempt import Attempt, Key
from shunter_agents.killpoints import reached
from shunter_agents.link import Backoff, Link, Server, Trouble, judge, told, whole
from shunter_infrastructure.task_files import TaskFiles, parsed, results_in
from shunter_work_pools.contracts.agents import LogFrame, LogSize
from shunter_work_pools.contracts.errors import NoRoom
from shunter_work_pools.contracts.log_frames import encode_frames
from shunter_work_pools.contracts.result_pieces import PIECES_LIMIT, ResultPiece, encode_pieces
from shunter_work_pools.contracts.tasks import LINE_LIMIT, ResultSize
from shunter_work_pools.daemon_log import get_logger
from shunter_work_pools.masking import Mask

log = get_logger()

#: Seconds between two looks at the journals of what runs.
LOOK = 0.5
#: Bytes of journals in one upload, and of results.
UPLOAD, PIECE = 1024 * 1024, 4 * 1024 * 1024
#: Attempts whose results are on their way at once.
AT_ONCE = 4
#: Seconds until a journal that the server does not take, or that cannot be read, is tried again.
PARKED = 30.0
#: Seconds for which a server that has no room for results is asked again; after that it does without them.
PATIENCE = 600.0


@dataclass
class Way:
    """How far the journal of an attempt has come.

    Attributes:
        seen: bytes of the file at the last look.
        sent: offset up to which the server has it; None: to be asked.
        final: bytes of the file, once nothing writes it any more.
        lines: what comes next, whole lines.
        results: names of results that must be there before.
        busy: results are on their way.
    """

    attempt: Attempt
    files: TaskFiles
    sent: int | None
    seen: int = 0
    final: int | None = None
    lines: bytes = b""
    results: list[str] = field(default_factory=list)
    brought: set[str] = field(default_factory=set)
    busy: bool = False


class TaskShipper:
    """Journals on their way. Nothing is lost with it: the files have them, the server knows how much it has.

    Attributes:
        on_done: called when nothing more of an attempt that has ended will be brought.
        on_stuck: called when it may take for ever.
    """

    def __init__(self, server: Server, name: str, link: Link) -> None:
        self._server = server
        self._name = name
        self._link = link
        self._ways: dict[Key, Way] = {}
        self._live: dict[Key, Way] = {}
        self._ready: deque[Way] = deque()
        self._wake = asyncio.Event()
        self._one_by_one = 0
        self._few = asyncio.Semaphore(AT_ONCE)
        self._bringing: set[asyncio.Task[None]] = set()
        self._no_room_since: float | None = None
        self.on_done: Callable[[Attempt], None] = lambda attempt: None
        self.on_stuck: Callable[[Attempt], None] = lambda attempt: None

    def owes(self, attempt: Attempt) -> bool:
        """Whether the server does not have all that there is of its journal at this moment."""
        way = self._way(attempt)
        if way is None:
            return False
        size = way.files.journal_size()
        return size > 0 and way.sent != size

    async def has_crash_hooks(self, attempt: Attempt) -> bool:
        """Whether the server has it in a journal that the run itself brought; asked until there is an answer."""
        run, number = attempt.key
        backoff = Backoff()
        while not attempt.dropped:
            frame = LogFrame(
                run=run, attempt=number, epoch=attempt.assignment.epoch, offset=0, length=0, gap=0
            )
            try:
                answer = await whole(self._server.upload_journals(self._name, encode_frames([(frame, b"")])))
            except Exception as exc:
                if judge(exc) is Trouble.BAD:
                    log.error(
                        "whether a run that crashed has hooks is not told",
                        reason=told(exc),
                        **attempt.names,
                    )
                    return False
                await self._link.trouble(exc, backoff, "to say whether a run that crashed has hooks")
                continue
            self._link.up()
            if not answer.sizes[0].stale or frame.epoch == attempt.assignment.epoch:
                return answer.sizes[0].crash_hooks
        return False

    def watch(self, attempt: Attempt) -> None:
        """It runs, and may write; what is to be masked of it is known."""
        way = self._way(attempt)
        if way is None:
            return
        if not self._live:
            self._wake.set()
        self._live[attempt.key] = way

    def finish(self, attempt: Attempt) -> None:
        """It has ended: nothing writes any more."""
        self._live.pop(attempt.key, None)
        way = self._way(attempt)
        if way is None or not attempt.tasks_owed:
            self._ways.pop(attempt.key, None)
            return
        way.final = way.files.journal_size()
        self._queue(way)

    def forget(self, attempt: Attempt) -> None:
        """Its journal is of no interest any more."""
        self._live.pop(attempt.key, None)
        self._ways.pop(attempt.key, None)
        attempt.tasks_owed = False

    async def run(self) -> None:
        """Bring journals for ever."""
        try:
            backoff = Backoff()
            while True:
                if not self._ready:
                    await self._look()
                batch = self._gather()
                if batch:
                    await self._bring(batch, backoff)
        finally:
            for task in self._bringing:
                task.cancel()
            await asyncio.gather(*self._bringing, return_exceptions=True)

    def _way(self, attempt: Attempt) -> Way | None:
        """That of an attempt; None if its launcher's runs bring their journals themselves, and have left nothing to bring."""
        way = self._ways.get(attempt.key)
        if way is None:
            files = attempt.launcher.task_files(attempt.journal.folder)
            if files is None:
                return None
            # The server may have some of it: another life of the agent brought that, or the run itself, if it is found
            # at its end only.
            known = attempt.adopted or attempt.ended
            way = self._ways[attempt.key] = Way(attempt, files, None if known else 0)
        return way

    def _queue(self, way: Way) -> None:
        if way.busy or way in self._ready or self._ways.get(way.attempt.key) is not way:
            return
        self._ready.append(way)
        self._wake.set()

    async def _look(self) -> None:
        """Wait until there may be something: at once for what has ended, by the clock for what runs."""
        self._wake.clear()
        if not self._live:
            await self._wake.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await self._wake.wait()
                if self._ready:
                    return
        for way in self._live.values():
            size = way.files.journal_size()
            if size > way.seen:
                way.seen = size
                self._queue(way)

    def _gather(self) -> list[Way]:
        """Those whose lines go with the next upload."""
        batch: list[Way] = []
        room = UPLOAD
        while self._ready and room > 0:
            way = self._ready.popleft()
            if way.busy or self._ways.get(way.attempt.key) is not way or not self._read(way):
                continue
            if way.results:
                self._spawn(way)
                continue
            batch.append(way)
            room -= len(way.lines)
            if self._one_by_one > 0:
                self._one_by_one -= 1
                break
        return batch

    def _read(self, way: Way) -> bool:
        """Have its next lines at hand; False if there is nothing to send now."""
        if way.lines or way.sent is None:
            return True
        try:
            data = way.files.read_journal(way.sent, UPLOAD)
            if b"\n" not in data and len(data) == UPLOAD:
                data = way.files.read_journal(way.sent, LINE_LIMIT)
        except OSError as exc:
            if way.final == 0 or (way.final is None and isinstance(exc, FileNotFoundError)):
                return False  # there is none (any more)
            log.error("the journal of a run cannot be read", reason=str(exc), **way.attempt.names)
            self._later(way)
            return False
        end = len(data) if len(data) >= LINE_LIMIT else data.rfind(b"\n") + 1
        if not end:  # nothing, or the beginning of a line: what is still torn at the end stays so
            if way.final is not None:
                self._done(way)
            return False
        way.lines = data[:end]
        way.results = [name for name in results_in(way.lines) if name not in way.brought]
        assert way.attempt.mask is not None, "what is not to be seen of it is not known"
        if way.attempt.mask:
            way.lines = masked(way.lines, way.attempt.mask)
        return True

    async def _bring(self, batch: list[Way], backoff: Backoff) -> None:
        frames = [(_frame(way), way.lines) for way in batch]
        try:
            body = encode_frames(frames)
            answer = await whole(self._server.upload_journals(self._name, body), len(body))
        except Exception as exc:
            if judge(exc) is Trouble.BAD:
                self._isolate(batch, told(exc))
                return
            self._ready.extendleft(reversed(batch))
            await self._link.trouble(exc, backoff, "journals of runs")
            return
        backoff.reset()
        self._link.up()
        reached("after-journal-taken")
        by_key = {(size.run, size.attempt): size for size in answer.sizes}
        for way, (frame, _) in zip(batch, frames, strict=True):
            if self._ways.get(way.attempt.key) is way:
                self._account(way, frame, by_key.get(way.attempt.key))

    def _account(self, way: Way, frame: LogFrame, size: LogSize | None) -> None:
        """Go on from where the server says it is."""
        names = way.attempt.names
        if size is not None and size.stale:
            if frame.epoch != way.attempt.assignment.epoch:
                self._queue(way)  # it was granted anew meanwhile
                return
            log.info("the server takes no more of the journal of this run", **names)
            self._done(way)
        elif size is not None and size.full:
            log.warning("the journal of this run has reached its limit; no more of it is kept", **names)
            self._done(way)
        elif size is None or (frame.length and size.size == frame.offset):
            log.error("the journal of a run does not arrive", offset=frame.offset, **names)
            self._later(way)
        else:
            way.sent, way.lines = size.size, b""
            self._queue(way)  # perhaps there is more already, and if not it may be done

    def _spawn(self, way: Way) -> None:
        way.busy = True
        run, number = way.attempt.key
        task = asyncio.create_task(self._bring_results(way), name=f"results {run}.{number}")
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)

    async def _bring_results(self, way: Way) -> None:
        """All that its next lines name, small ones together and large ones piece by piece."""
        async with self._few:
            backoff = Backoff()
            at = dict.fromkeys(way.results, 0)
            while (pieces := self._pieces(way, at)) and self._ways.get(way.attempt.key) is way:
                try:
                    sizes = await self._bring_pieces(way, pieces)
                except Exception as exc:
                    if judge(exc) is not Trouble.BAD and not self._without_room(exc):
                        await self._link.trouble(exc, backoff, "results of tasks")
                        continue
                    sizes = [ResultSize(size=0, refused=told(exc))] * len(pieces)
                else:
                    self._no_room_since = None
                    backoff.reset()
                    self._link.up()
                for (piece, _), size in zip(pieces, sizes, strict=True):
                    self._account_result(way, piece, size, at)
        if at:
            return  # nobody asks for it any more
        way.brought.update(way.results)
        way.results, way.busy = [], False
        reached("after-results-taken")
        self._queue(way)

    def _without_room(self, exc: Exception) -> bool:
        """Whether the server has had no room for results for too long: no run is to be held up for ever by that."""
        if not isinstance(exc, NoRoom):
            return False
        now = asyncio.get_running_loop().time()
        if self._no_room_since is None:
            self._no_room_since = now
        return now - self._no_room_since > PATIENCE

    def _pieces(self, way: Way, at: dict[str, int]) -> list[tuple[ResultPiece, bytes]]:
        """What fits into one upload of the results that are not there yet; those that cannot be read are given up.

        Args:
            at: how much of each the server has.
        """
        pieces: list[tuple[ResultPiece, bytes]] = []
        room = PIECE
        for name, offset in list(at.items()):
            if room <= 0 or len(pieces) == PIECES_LIMIT:
                break
            try:
                data, size = way.files.read_result(name, offset, room)
            except OSError as exc:
                self._give_up(way, name, told(exc), at)
                continue
            piece = ResultPiece(name=name, offset=offset, size=size, length=len(data))
            pieces.append((piece, data))
            room -= len(data)
        return pieces

    async def _bring_pieces(self, way: Way, pieces: list[tuple[ResultPiece, bytes]]) -> list[ResultSize]:
        run, number = way.attempt.key
        body = encode_pieces(pieces)
        upload = self._server.upload_task_results(self._name, run, number, way.attempt.assignment.epoch, body)
        sizes = (await whole(upload, len(body))).results
        if len(sizes) != len(pieces):
            raise ValueError(f"the server tells of {len(sizes)} pieces of results, {len(pieces)} were sent")
        return sizes

    def _account_result(self, way: Way, piece: ResultPiece, size: ResultSize, at: dict[str, int]) -> None:
        if size.complete:
            del at[piece.name]
        elif size.refused is not None:
            self._give_up(way, piece.name, size.refused, at)
        elif size.size == piece.offset:
            reason = f"it does not arrive: the server has {size.size} bytes of {piece.size}"
            self._give_up(way, piece.name, reason, at)
        else:
            at[piece.name] = size.size

    def _give_up(self, way: Way, name: str, reason: str, at: dict[str, int]) -> None:
        """Its line goes all the same: who goes on from it has that task executed again, and says so."""
        del at[name]
        log.error(
            "a result of a task cannot be brought to the server",
            result=name,
            reason=reason,
            **way.attempt.names,
        )

    def _isolate(self, batch: list[Way], reason: str) -> None:
        if len(batch) > 1:
            log.warning("an upload of journals was refused; sending one by one", reason=reason)
            self._one_by_one = len(batch)
            self._ready.extendleft(reversed(batch))
            return
        log.error("the journal of a run is refused", reason=reason, again_in=PARKED, **batch[0].attempt.names)
        self._later(batch[0])

    def _later(self, way: Way) -> None:
        """Nothing else waits for it meanwhile, not even its attempt's end."""
        self._live.pop(way.attempt.key, None)
        self.on_stuck(way.attempt)
        asyncio.get_running_loop().call_later(PARKED, self._again, way)

    def _again(self, way: Way) -> None:
        if self._ways.get(way.attempt.key) is not way:
            return
        if way.final is None:
            self.watch(way.attempt)
        self._queue(way)

    def _done(self, way: Way) -> None:
        self._live.pop(way.attempt.key, None)
        if way.final is None:
            way.sent = None  # whoever takes it up again asks
            return
        self._ways.pop(way.attempt.key, None)
        way.attempt.tasks_owed = False
        reached("after-journal-brought")
        self.on_done(way.attempt)


def masked(lines: bytes, mask: Mask) -> bytes:
    """The same number of bytes, without secrets but in results, which must stay what they are."""
    if mask.cover(lines) == lines:
        return lines
    return b"\n".join(line if _is_result(line) else mask.cover(line) for line in lines.split(b"\n"))


def _is_result(line: bytes) -> bool:
    return isinstance(parsed(line).get("r"), dict)


def _frame(way: Way) -> LogFrame:
    run, number = way.attempt.key
    return LogFrame.model_construct(
        run=run,
        attempt=number,
        epoch=way.attempt.assignment.epoch,
        offset=way.sent or 0,
        length=len(way.lines),
        gap=0,
    )
