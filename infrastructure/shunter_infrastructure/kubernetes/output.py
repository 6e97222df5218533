"""The output of pods, copied from the kubelets' logs into the folders of their attempts, without doubles or holes.

How one log becomes a file is in ``log.py``. A stream that is followed goes over to a new log by itself, but the kubelet
may leave out what was written to the old one at that very moment, and nothing in the API could tell: that there was
such a moment is said at the end of the output.

No stream that ends says that it was whole: the API server hides it when the kubelet breaks off. So the end of a copy is
compared with the last line of the log.

At most ``MOST_OPEN`` logs are followed at once. The others wait: one of them is read every five seconds, in turn, and
each is read whole at its end, sixteen at a time. So a run takes two requests, and a long one that waits one more now
and then; one with much output that is followed, one every five seconds while it writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from shunter_infrastructure.copied_output import OUTPUT
from shunter_infrastructure.kubernetes.log import (
    LONGEST_TIME,
    TIME,
    Copy,
    Lines,
    NodeAway,
    NoLog,
    OtherLog,
    Search,
    Unwritable,
    ends_with,
    is_sealed,
    seal,
)
from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_work_pools.contracts.agents import Output

CONTAINER = "run"
#: Logs that are followed at once: each is a connection here, at the API server and at the kubelet, and there one of
#: the 128 inotify instances that a kernel usually allows.
MOST_OPEN = 100
#: Seconds until a log whose stream ended is followed again: at first, and at most, while nothing new comes. Of a
#: container that ended, the launcher hears sooner.
_PAUSE, _LONGEST_PAUSE = 5.0, 300.0
#: Seconds between two reads of logs that wait, whichever they are; and between two tries.
_TURN, _AGAIN = 5.0, 1.0
#: Logs of what has ended that are read at once: connections are dear, and few of them are as fast as many. One that
#: takes longer than so many seconds stands in nobody's way: its node may be silent.
_MOST_READ, _QUICK = 16, 1.0
#: Seconds for which the stream of a container that has ended may bring the rest.
_REST = 1.0
#: Seconds for which the log of what has ended is asked for, while the node does not give it.
_PATIENCE = 30.0
#: The kubelet looks every 10 s whether a log is over its size. Of one that has so many bytes and grows it is asked,
#: every so many seconds, whether there is a new one.
_CHECK_BYTES, _CHECK_AFTER = 1 << 20, 5.0


class Pod(NamedTuple):
    """Whose log."""

    namespace: str
    name: str


class Answer(Protocol):
    """The answer to a request, as it comes."""

    status: int

    def pieces(self) -> AsyncIterator[bytes]:
        """Its body.

        Raises:
            LauncherUnavailable: it was broken off.
        """


class Api(Protocol):
    """What is needed of the API server."""

    def stream(self, path: str, query: Mapping[str, str]) -> AbstractAsyncContextManager[Answer]:
        """A GET that may last for days, over a connection of its own.

        Raises:
            LauncherUnavailable: the API server is away.
        """


@dataclass
class _One:
    """What is copied.

    Attributes:
        grown: something came, or the stream has ended.
        streams: a stream is open.
        copy: what it is copied by, as long as it streams.
    """

    pod: Pod
    folder: Path
    handed_over: Output | None
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    streams: bool = False
    copy: Copy | None = None


class Outputs:
    """Copies the logs of pods, each into the folder of its attempt.

    Args:
        api: the API server.
        most_open: logs that are followed at once.
    """

    def __init__(self, api: Api, *, most_open: int = MOST_OPEN) -> None:
        self._api = api
        self._most_open = most_open
        self._followed: dict[Path, tuple[_One, asyncio.Task[None]]] = {}
        self._waiting: dict[Path, tuple[Pod, Output | None]] = {}
        self._ending: set[Path] = set()  # nobody else may copy those
        self._reads = asyncio.Semaphore(_MOST_READ)
        self._turns: asyncio.Task[None] | None = None
        self._turn: tuple[Path, asyncio.Task[None]] | None = None  # which of those that wait is read now
        self._closed = False

    # -- while it runs

    def follow(self, pod: Pod, folder: Path, handed_over: Output | None = None) -> None:
        """Copy the output of a container that has begun, from now on.

        Args:
            handed_over: what the server has of it from the agent before; the same in every call.
        """
        if self._closed or self.copies(folder) or not folder.exists():
            return
        self._waiting[folder] = pod, handed_over
        self._fill()

    def copies(self, folder: Path) -> bool:
        """Whether the output of an attempt is followed, waits for its turn, or is completed."""
        return folder in self._followed or folder in self._waiting or folder in self._ending

    def _fill(self) -> None:
        """Follow as many as may be, and let the others have their turns. While many end, none begins to be followed: it
        may be the next to end, and a connection costs more than all that there is to read."""
        busy = self._turn and self._turn[0]
        while len(self._followed) < self._most_open and not self._closed and not self._reads.locked():
            folder = next((one for one in self._waiting if one != busy), None)
            if folder is None:
                break
            pod, handed_over = self._waiting.pop(folder)
            one = _One(pod, folder, handed_over)
            self._followed[folder] = one, asyncio.create_task(self._follow(one), name=f"output of {pod.name}")
        if self._waiting and self._turns is None and not self._closed:
            self._turns = asyncio.create_task(self._take_turns(), name="outputs in turn")

    async def _follow(self, one: _One) -> None:
        pause = _PAUSE
        while True:
            before = _size(one.folder)
            with contextlib.suppress(LauncherUnavailable, Unwritable, NodeAway):
                try:
                    await self._copy(one, follow=True)
                except OtherLog:
                    await self._settle(one)
                    continue
                except NoLog:
                    return
                finally:
                    one.streams, one.copy = False, None
                    one.grown.set()
            pause = _PAUSE if _size(one.folder) > before else min(2 * pause, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _take_turns(self) -> None:
        while self._waiting:
            folder, (pod, handed_over) = next(iter(self._waiting.items()))
            self._waiting[folder] = self._waiting.pop(folder)
            task = asyncio.create_task(self._glance(_One(pod, folder, handed_over)))
            self._turn = folder, task
            await asyncio.wait([task])
            self._turn = None
            self._fill()
            await asyncio.sleep(_TURN)
        self._turns = None

    async def _glance(self, one: _One) -> None:
        with contextlib.suppress(LauncherUnavailable, Unwritable, NodeAway, NoLog):
            await self._read_whole(one)

    async def forget(self, folder: Path) -> None:
        """Follow it no more."""
        self._waiting.pop(folder, None)
        _, task = self._followed.pop(folder, (None, None))
        if self._turn is not None and self._turn[0] == folder:
            task = self._turn[1]
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._fill()

    async def close(self) -> None:
        """Follow none any more."""
        self._closed = True
        if self._turns is not None:
            self._turns.cancel()
        for folder in [*self._followed, *self._waiting]:
            await self.forget(folder)

    # -- when it has ended

    async def complete(self, pod: Pod, folder: Path, handed_over: Output | None = None) -> None:
        """Copy what is missing of a container that has ended, or say at the end of the output that it cannot be had.

        A node that does not give the log is asked again for half a minute at most. Of a container that never began
        there is no log: this is not for it.

        Args:
            handed_over: as with :meth:`follow`.

        Raises:
            LauncherUnavailable: the API server is away, or the output cannot be written here.
        """
        known, _ = self._followed.get(folder, (None, None))
        one = known or _One(pod, folder, handed_over)
        self._ending.add(folder)
        try:
            if known is None:
                await self.forget(folder)  # that its turn does not come meanwhile
            if not is_sealed(folder):
                cut = not await self._bring_home(one)
                with _writing():
                    seal(folder, cut=cut)
            else:
                with _writing():
                    seal(folder, cut=False)
        except Unwritable as exc:
            raise LauncherUnavailable(
                f"the output of a run cannot be written to {folder}: {exc}", "Free space there."
            ) from exc
        finally:
            await self.forget(folder)
            self._ending.discard(folder)

    @contextlib.asynccontextmanager
    async def in_turn(self) -> AsyncIterator[None]:
        """Among the few that read, in the order of asking; who takes long lets the next one begin. What is less urgent
        than the end of a run stands behind them here, too."""
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._reads.release()

        await self._reads.acquire()
        slow = asyncio.get_running_loop().call_later(_QUICK, leave)
        try:
            yield
        finally:
            slow.cancel()
            leave()

    async def _bring_home(self, one: _One) -> bool:
        """Whether all that the log had is here."""
        until = 0.0
        while True:
            try:
                async with self.in_turn():
                    until = until or time.monotonic() + _PATIENCE
                    if await self._is_home(one):
                        return True
            except NoLog:
                return False
            except NodeAway:
                pass
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_AGAIN)

    async def _is_home(self, one: _One) -> bool:
        tail = await self._tail(one.pod)
        if one.folder in self._followed:
            if await self._catches_up(one, tail):
                return True
        elif tail and ends_with(one.folder, tail, whole=False) and _size(one.folder) < _CHECK_BYTES:
            return True  # its turn came after its last words
        await self.forget(one.folder)
        await self._read_whole(one)
        return ends_with(one.folder, tail, whole=True)

    async def _tail(self, pod: Pod) -> list[tuple[str, bytes]]:
        """The last line of a log, or its last piece."""
        lines, found = Lines(), list[tuple[str, bytes]]()
        async with self._log(pod, {"tailLines": "1"}) as answer:
            async for piece in answer.pieces():
                found += lines.feed(piece)
        lines.finish()
        return found

    async def _catches_up(self, one: _One, tail: list[tuple[str, bytes]]) -> bool:
        """Whether the stream brings all of it. Much output is looked at from its beginning all the same: the kubelet
        may have begun a new log."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REST):
                while True:
                    one.grown.clear()
                    if one.copy is not None:
                        with _writing():
                            one.copy.note()
                    if ends_with(one.folder, tail, whole=False):
                        return _size(one.folder) < _CHECK_BYTES
                    if not one.streams:
                        return False
                    await one.grown.wait()
        return False

    # -- reading

    async def _read_whole(self, one: _One) -> None:
        while True:
            try:
                await self._copy(one, follow=False)
            except OtherLog:
                await self._settle(one)
            else:
                return

    async def _copy(self, one: _One, *, follow: bool) -> None:
        """Read the log once, to its end, or until it is another."""
        known = one.handed_over is not None and one.handed_over.size > 0
        async with self._log(one.pod, {"follow": "true"} if follow else {}) as answer:
            one.streams = follow
            with _writing():
                copying = Copy(one.folder, known=known)
            with contextlib.closing(copying) as copy:
                one.copy = copy if follow else None
                await self._take(one, copy, answer, follow=follow)
                copy.finish()

    async def _take(self, one: _One, copy: Copy, answer: Answer, *, follow: bool) -> None:
        checking: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(None) as alarm:
                async for piece in answer.pieces():
                    with _writing():
                        copy.take(piece)
                    one.grown.set()
                    if follow and copy.passed > _CHECK_BYTES and (checking is None or checking.done()):
                        checking = asyncio.create_task(self._check(one, copy, alarm))
        except TimeoutError as exc:
            raise OtherLog from exc
        finally:
            if checking is not None:
                checking.cancel()

    async def _check(self, one: _One, copy: Copy, alarm: asyncio.Timeout) -> None:
        """See that a stream goes over to the new logs that the kubelet begins, and break it off if it does not: one
        that was begun before the stream had come to the end of the old one is never seen by it."""
        seen = -1
        while copy.passed != seen:  # once more after the last that came
            seen = copy.passed
            await asyncio.sleep(_CHECK_AFTER)
            with contextlib.suppress(LauncherUnavailable, Unwritable, NodeAway, NoLog):
                if await self._is_left_behind(one, copy):
                    alarm.reschedule(asyncio.get_running_loop().time())
                    return

    async def _is_left_behind(self, one: _One, copy: Copy) -> bool:
        if not copy.place or await self._first(one.pod) in ("", copy.place.first):
            return False
        for _ in range(2):
            passed = copy.passed
            search = await self._search(one)
            if search.base is not None:
                copy.go_over(search.first, search.base)
                return False
            await asyncio.sleep(_AGAIN)
            if copy.passed != passed:
                return False  # it is not at the end of the old one yet
        return True

    async def _first(self, pod: Pod) -> str:
        """Time of the first line of a log; empty: it has none."""
        head = bytearray()
        async with self._log(pod, {"limitBytes": str(LONGEST_TIME)}) as answer:
            async for piece in answer.pieces():
                head += piece
        found = TIME.match(head)
        return found[0].decode().strip() if found else ""

    async def _search(self, one: _One) -> Search:
        """Look through a log for what is known of it."""
        async with self._log(one.pod, {}) as answer:
            with _writing():
                search = Search(one.folder, one.handed_over)
            async for piece in answer.pieces():
                with _writing():
                    search.take(piece)
        search.finish()
        return search

    async def _settle(self, one: _One) -> None:
        """Find where a log goes on that is another than before. That it cannot be found is believed of two reads: one
        may have been broken off."""
        search = await self._search(one)
        if search.lost:
            await asyncio.sleep(_AGAIN)
            search = await self._search(one)
        with _writing():
            search.settle()

    @contextlib.asynccontextmanager
    async def _log(self, pod: Pod, query: Mapping[str, str]) -> AsyncIterator[Answer]:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/log"
        async with self._api.stream(path, {"container": CONTAINER, "timestamps": "true", **query}) as answer:
            if answer.status != 200:
                _refuse(answer.status, b"".join([piece async for piece in answer.pieces()]))
            yield answer


def _refuse(status: int, body: bytes) -> None:
    """Tell apart why there is no log."""
    said, about = body[:500].decode(errors="replace").strip(), ""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(body)
        said, about = str(told["message"]), str(told.get("details", {}).get("kind"))
    if status in (401, 403):
        raise LauncherUnavailable(
            f"the API server does not give the log of a pod: {said}", "Allow get on pods/log there."
        )
    # About "pods/log" it is the kubelet's word, which does not know its pods yet when it was started just now.
    if status == 404 and about == "pods":
        raise NoLog(said)
    raise NodeAway(said)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise Unwritable(exc.strerror or str(exc)) from exc


def _size(folder: Path) -> int:
    try:
        return (folder / OUTPUT).stat().st_size
    except FileNotFoundError:
        return 0
