"""Asynchronous tasks that were submitted: all of a flow's run on one loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any

from shunter import engine
from shunter.executors import ValuesHere
from shunter.executors.threads import here
from shunter.futures import TaskFuture
from shunter.scopes import current

#: At once; what awaits other tasks does not count.
MOST = 1000


class LoopLane(ValuesHere):
    """The loop, made when it is first needed."""

    here = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: deque[TaskFuture[Any]] = deque()
        self._active = 0

    def start(self, run: TaskFuture[Any]) -> None:
        """Have it run on the loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._run, name="shunter-loop", daemon=True).start()
        self._ready.append(run)
        self._loop.call_soon_threadsafe(self._pump)

    def interrupt(self, run: TaskFuture[Any]) -> None:
        """Cancel it there."""
        task = run._native
        if task is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        """End the loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def changed(self, by: int) -> None:
        """So many more are at work; on the loop's thread."""
        self._active += by
        self._pump()

    def _run(self) -> None:
        assert self._loop is not None
        here.loop = True
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _pump(self) -> None:
        assert self._loop is not None
        while self._ready and self._active < MOST:
            run = self._ready.popleft()
            turn = engine.attempt_started(run)
            if turn is None:
                continue
            self._active += 1
            run._native = self._loop.create_task(self._execute(run, turn), context=run._context)

    async def _execute(self, run: TaskFuture[Any], turn: int) -> None:
        value, error = None, None
        current.set(run)
        try:
            value = await engine.invoke(run)
        except BaseException as exc:
            error = exc
        run._native = None
        if run.task.hooks:  # which may take their time
            await asyncio.to_thread(engine.attempt_ended, run, turn, value, error)
        else:
            engine.attempt_ended(run, turn, value, error)
        self.changed(-1)


async def wait_for(future: TaskFuture[Any]) -> None:
    """Wait for its end in the loop that asks."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def ring() -> None:
        if not ended.done():
            ended.set_result(None)

    def note(_: TaskFuture[Any]) -> None:
        try:
            loop.call_soon_threadsafe(ring)
        except RuntimeError:
            return  # the loop was closed meanwhile: nobody waits there

    future.add_done_callback(note)
    scope = current.get()
    lane = scope.root.loop_lane if scope is not None and here.loop else None
    if lane is not None:
        lane.changed(-1)
    pool = here.lane
    if pool is None:
        try:
            await ended
        finally:
            if lane is not None:
                lane.changed(1)
        return
    with pool.lending():
        await ended
