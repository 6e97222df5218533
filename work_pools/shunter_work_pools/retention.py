"""Retention at work: goes over what need not be kept, in small steps with rests between them.

A step is a look (a read), log files (in a thread), then one short transaction. After each step it rests for
several times as long as the step took, so that claims have the store to themselves most of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from uuid import UUID

from shunter_work_pools.contracts.deployments import Keep
from shunter_work_pools.contracts.errors import Conflict
from shunter_work_pools.queue import remove, retain
from shunter_work_pools.queue.retain import Doomed, Part, Rule
from shunter_work_pools.storage.logs import LogStore
from shunter_work_pools.storage.results import ResultStore
from shunter_work_pools.storage.store import Store

#: A step is followed by a rest of so many times its length, and of at least so many seconds.
_REST_FACTOR = 4.0
_SHORTEST_REST = 0.005


class Retention:
    """Deletes ended runs, logs and events that need not be kept.

    Args:
        store: where the rows are.
        logs, results: where the files are.
        keep: what is kept where a deployment does not say.
    """

    def __init__(self, store: Store, logs: LogStore, results: ResultStore, keep: Keep) -> None:
        self.store = store
        self.logs = logs
        self.results = results
        self.keep = keep
        self._going: set[UUID] = set()
        self._receiving: Counter[UUID] = Counter()

    # ---- between output that still arrives and logs that are deleted

    @contextlib.contextmanager
    def receiving(self, runs: set[UUID]) -> Iterator[set[UUID]]:
        """Output of these runs is being written; yields those of them whose logs are just being deleted."""
        self._receiving.update(runs)
        try:
            yield runs & self._going
        finally:
            self._receiving.subtract(runs)
            for run in runs:
                if self._receiving[run] <= 0:
                    del self._receiving[run]

    async def _delete(
        self, doomed: Sequence[Doomed], delete_rows: Callable[[list[UUID]], Awaitable[object]]
    ) -> int:
        """Delete logs, then rows; how many were free to be deleted."""
        free = [one for one in doomed if not self._receiving[one.run_id] and one.run_id not in self._going]
        ids = [one.run_id for one in free]
        self._going.update(ids)
        try:
            await asyncio.to_thread(self._delete_logs, free)
            if ids:
                await delete_rows(ids)
        finally:
            self._going.difference_update(ids)
        return len(ids)

    def _delete_logs(self, doomed: Sequence[Doomed]) -> None:
        for one in doomed:
            for attempt in range(1, one.attempts + 1):
                self.logs.delete(one.run_id, attempt)

    async def _delete_rows(self, ids: list[UUID]) -> int:
        gone = await self.store.write(lambda tx: retain.ended_of(tx, ids))
        await asyncio.to_thread(self._delete_results, gone)
        # Of one run there may be a hundred thousand: not all of them in one transaction.
        await self._repeat(lambda: self.store.write(lambda tx: retain.delete_tasks(tx, gone)))
        return await self.store.write(lambda tx: retain.delete_runs(tx, ids))

    def _delete_results(self, ids: Sequence[UUID]) -> None:
        for run_id in ids:
            self.results.delete(run_id)

    # ---- one run

    async def delete_run(self, run_id: UUID) -> None:
        """Delete a run that has ended, with its log and events.

        Raises:
            NotFound: there is none.
            Conflict: it has not ended, or its output is arriving at this moment.
        """
        doomed = await self.store.read(lambda tx: retain.deletable(tx, run_id))
        if not await self._delete([doomed], self._delete_rows):
            raise Conflict(f"output of run {run_id} is arriving at this moment", "Ask again.")

    # ---- everything

    async def sweep(self) -> None:
        """Delete all that need not be kept now."""
        for rule in await self.store.read(lambda tx: retain.rules(tx, self.keep)):
            if rule.deleted:
                await self._repeat(partial(self._cancel_waiting, rule))
            await self._repeat(partial(self._runs, rule))
            await self._repeat(partial(self._deployment_events, rule))
            if rule.deleted:
                await self.store.write(partial(retain.finish_deployment, deployment_id=rule.deployment_id))
            else:
                for part in ("logs", "events"):
                    await self._part(rule, part)
        for pool_id in await self.store.read(retain.deleted_pools):
            await self.store.write(partial(retain.finish_pool, pool_id=pool_id))
        await self._results_of_completed()

    async def _results_of_completed(self) -> None:
        """A run that completed has no attempt any more that would ask for them."""
        there = await asyncio.to_thread(self.results.runs)
        for at in range(0, len(there), retain.BATCH):
            batch = there[at : at + retain.BATCH]
            completed = await self.store.read(partial(retain.completed_of, run_ids=batch))
            await asyncio.to_thread(
                self._delete_results, [run for run in completed if not self._receiving[run]]
            )

    async def _repeat(self, step: Callable[[], Awaitable[int]]) -> None:
        """Do steps while they find a whole batch to do, resting in between."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            done = await step()
            if done:
                await asyncio.sleep(max(_SHORTEST_REST, (loop.time() - began) * _REST_FACTOR))
            if done < retain.BATCH:
                return

    async def _cancel_waiting(self, rule: Rule) -> int:
        return await self.store.write(lambda tx: remove.cancel_waiting(tx, rule.deployment_id))

    async def _runs(self, rule: Rule) -> int:
        doomed = await self.store.read(lambda tx: retain.doomed_runs(tx, rule))
        return await self._delete(doomed, self._delete_rows)

    async def _deployment_events(self, rule: Rule) -> int:
        if not rule.deleted and rule.keep.events_for is None:
            return 0
        return await self.store.write(lambda tx: retain.delete_deployment_events(tx, rule))

    async def _part(self, rule: Rule, part: Part) -> None:
        if rule.limits(part) == (None, None):
            return
        step = self._logs if part == "logs" else self._events
        await self._repeat(partial(step, rule))
        to = await self.store.read(
            lambda tx: None if retain.doomed_parts(tx, rule, part) else retain.done_until(tx, rule, part)
        )
        if to is not None:
            await self.store.write(lambda tx: retain.move_cursor(tx, rule, part, to))

    async def _logs(self, rule: Rule) -> int:
        doomed = await self.store.read(lambda tx: retain.doomed_parts(tx, rule, "logs"))
        return await self._delete(
            doomed, lambda ids: self.store.write(lambda tx: retain.note_logs_deleted(tx, ids))
        )

    async def _events(self, rule: Rule) -> int:
        doomed = await self.store.read(lambda tx: retain.doomed_parts(tx, rule, "events"))
        ids = [one.run_id for one in doomed]
        if ids:
            await self.store.write(lambda tx: retain.delete_events(tx, ids))
        return len(ids)
