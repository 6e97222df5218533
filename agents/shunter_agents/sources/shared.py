"""Work that several wait for at once is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Told = Callable[[str], None]


class _Job(Generic[T]):
    def __init__(self) -> None:
        self.waiting: list[Told] = []
        self.said = ""
        self.task: asyncio.Task[T] | None = None

    def say(self, words: str) -> None:
        self.said = words
        for told in list(self.waiting):
            told(words)


class Shared(Generic[T]):
    """Jobs under way, by key. A job whose last waiter is cancelled is cancelled, too."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job[T]] = {}

    async def get(self, key: str, work: Callable[[Told], Coroutine[Any, Any, T]], told: Told) -> T:
        """The result of the job of a key, which is begun if it is not under way.

        Args:
            work: is given what to call with its progress, in words.
            told: is called with these.
        """
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job()
            job.task = asyncio.create_task(work(job.say), name=f"job {key[:80]}")
            job.task.add_done_callback(lambda task: self._done(key, job, task))
        assert job.task is not None
        job.waiting.append(told)
        if job.said:
            told(job.said)
        try:
            return await asyncio.shield(job.task)
        finally:
            job.waiting.remove(told)
            if not job.waiting and not job.task.done():
                if self._jobs.get(key) is job:
                    del self._jobs[key]  # who comes now begins anew
                job.task.cancel()

    def close(self, key: str) -> None:
        """Said by a job: who comes from now on wants another one, since this one has begun to look."""
        self._jobs.pop(key, None)

    def _done(self, key: str, job: _Job[T], task: asyncio.Task[T]) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]
        if not task.cancelled():
            task.exception()  # those who waited have it
