"""One task that brings the owed reports of all attempts to the server: in order, once, in batches.

While one batch is under way the next one gathers. A first step (Starting) waits a moment for the one
that mostly follows it; anything else goes at once.

A batch that the server refuses as wrong would block everything behind it. So its attempts are sent one
by one; the one that is wrong is sent with its bare facts only; and if even that is refused, it is tried
again at growing intervals while all others go on. It is never dropped: the server still counts on it,
and would grant it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

from shunter_agents.attempt import Attempt, Key
from shunter_agents.holdings import Holdings
from shunter_agents.journal import SEQ
from shunter_agents.killpoints import reached
from shunter_agents.link import Backoff, Link, Server, Trouble, judge, told, whole
from shunter_work_pools.contracts.agents import REPORT_LIMIT, Report, ReportAck, ReportBatch
from shunter_work_pools.contracts.states import AttemptState
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Seconds that a Starting may wait for a Running to travel with.
COMPANY = 0.02
#: Seconds until a refused report is tried again: the first time, and at most.
PARKED, PARKED_LIMIT = 2.0, 60.0


class Reporter:
    """Owed reports on their way. Nothing is lost with it: the journal has them."""

    def __init__(self, server: Server, name: str, session: UUID, link: Link, holdings: Holdings) -> None:
        self._server = server
        self._name = name
        self._session = session
        self._link = link
        self._holdings = holdings
        self._waiting: dict[Key, Attempt] = {}
        self._alone: list[Attempt] = []
        self._bare: set[Key] = set()
        self._parked: dict[Key, float] = {}
        self._urgent = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self.met = asyncio.Event()  # before its first sync of a session the server takes no reports
        self.on_acked: Callable[[Attempt], None] = lambda attempt: None
        self.on_stale: Callable[[Attempt, ReportAck], None] = lambda attempt, ack: None

    def add(self, attempt: Attempt) -> None:
        """The attempt owes something new."""
        if attempt.dropped or not attempt.steps:
            return
        self._waiting[attempt.key] = attempt
        if attempt.state is not AttemptState.STARTING:
            self._urgent.set()
        elif self._soon is None and not self._urgent.is_set():
            self._soon = asyncio.get_running_loop().call_later(COMPANY, self._urgent.set)

    def forget(self, attempt: Attempt) -> None:
        """Nothing is owed for it any more."""
        self._waiting.pop(attempt.key, None)
        self._bare.discard(attempt.key)
        self._parked.pop(attempt.key, None)

    async def run(self) -> None:
        """Bring reports for ever."""
        backoff = Backoff()
        await self.met.wait()
        while True:
            if not self._alone:
                await self._urgent.wait()
                await asyncio.sleep(0)  # what this turn of the loop still adds comes along
            batch, reports = self._take()
            if not reports:
                continue
            body = ReportBatch.model_construct(session=self._session, reports=reports)
            try:
                answer = await whole(self._server.report(self._name, body))
            except Exception as exc:
                if judge(exc) is Trouble.BAD:
                    self._isolate(batch, told(exc))
                    continue
                self._put_back(batch)
                await self._link.trouble(exc, backoff, "reports")
                continue
            backoff.reset()
            self._link.up()
            self._acknowledge(batch, reports, answer.acks)

    def _take(self) -> tuple[list[Attempt], list[Report]]:
        if self._alone:
            attempt = self._alone.pop()
            self._waiting.pop(attempt.key, None)
            return [attempt], attempt.reports(bare=attempt.key in self._bare)
        self._urgent.clear()
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        batch: list[Attempt] = []
        reports: list[Report] = []
        for attempt in list(self._waiting.values()):
            if len(reports) + len(attempt.steps) > REPORT_LIMIT:
                self._urgent.set()
                break
            del self._waiting[attempt.key]
            owed = attempt.reports(bare=attempt.key in self._bare)
            if not owed:
                continue  # the server had more of it already than was under way, or its end is held
            batch.append(attempt)
            reports += owed
        return batch, reports

    def _put_back(self, batch: list[Attempt]) -> None:
        for attempt in batch:
            self.add(attempt)
        self._urgent.set()

    def _acknowledge(self, batch: list[Attempt], reports: list[Report], acks: list[ReportAck]) -> None:
        by_key = {(ack.run, ack.attempt): ack for ack in acks}
        sent = {(report.run, report.attempt): (report.seq, report.epoch) for report in reports}
        for attempt in batch:
            if attempt.dropped:
                continue
            ack = by_key.get(attempt.key)
            seq, epoch = sent[attempt.key]
            if epoch != attempt.assignment.epoch:
                self.add(attempt)  # granted anew while the batch was under way
            elif ack is None:
                self._refused(attempt, "the server did not acknowledge it")
            elif ack.stale:
                self.on_stale(attempt, ack)
            elif ack.seq < seq:
                attempt.acknowledge(ack.seq)
                self._refused(attempt, ack.detail or "the server did not take it")
            else:
                if ack.seq >= SEQ[AttemptState.COMPLETED]:
                    reached("after-end-reported")
                elif ack.seq == SEQ[AttemptState.RUNNING]:
                    reached("after-running-reported")
                attempt.acknowledge(ack.seq)
                if ack.detail is not None:
                    log.error("the server refused a report", reason=ack.detail, **attempt.names)
                self._parked.pop(attempt.key, None)
                self._bare.discard(attempt.key)
                self.on_acked(attempt)

    def _isolate(self, batch: list[Attempt], reason: str) -> None:
        if len(batch) > 1:
            log.warning("a batch of reports was refused; sending them one by one", reason=reason)
            self._alone += batch
            return
        self._refused(batch[0], reason)

    def _refused(self, attempt: Attempt, reason: str) -> None:
        """This attempt's reports are not taken as they are."""
        if attempt.key not in self._bare:
            log.error(
                "the report of a run was refused; sending its bare facts",
                reason=reason,
                report=[report.model_dump(mode="python") for report in attempt.reports()],
                **attempt.names,
            )
            self._bare.add(attempt.key)
            delay = 0.0
        else:
            delay = self._parked[attempt.key] = min(
                self._parked.get(attempt.key, PARKED / 2) * 2, PARKED_LIMIT
            )
            log.error("the report of a run is refused", reason=reason, again_in=delay, **attempt.names)
        asyncio.get_running_loop().call_later(delay, self._again, attempt)

    def _again(self, attempt: Attempt) -> None:
        if attempt.dropped or not attempt.steps or attempt.key not in self._holdings.attempts:
            return
        self._alone.append(attempt)
        self._urgent.set()
