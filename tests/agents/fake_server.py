"""A server in this process that keeps the rules of the protocol, and can be away, forget and lie."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import (
    Assignment,
    Held,
    LogAnswer,
    LogSize,
    ReleaseRequest,
    Report,
    ReportAck,
    ReportAnswer,
    ReportBatch,
    SyncAnswer,
    SyncRequest,
)
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.errors import BadRequest, NotFound, ServerUnreachable, StaleEpoch
from shunter_work_pools.contracts.log_frames import decode_frames
from shunter_work_pools.contracts.pools import Pool
from shunter_work_pools.contracts.result_pieces import decode_pieces
from shunter_work_pools.contracts.secrets import AttemptSecrets, SecretsRequest
from shunter_work_pools.contracts.states import ATTEMPT_ENDS
from shunter_work_pools.contracts.tasks import ResultSize, ResultSizes
from tests.patience import SOON

Key = tuple[UUID, int]


@dataclass
class Lease:
    """One attempt as the server sees it.

    Attributes:
        steps: the reports it took, in order.
        live: still leased.
        log: its output; zeros where ``gaps`` says that it is lost.
        journal, results: of its flow.
    """

    assignment: Assignment
    steps: list[Report] = field(default_factory=list)
    cancelling: bool = False
    live: bool = True
    log: bytearray = field(default_factory=bytearray)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    journal: bytearray = field(default_factory=bytearray)
    results: dict[str, bytearray] = field(default_factory=dict)

    @property
    def states(self) -> list[str]:
        return [step.state.value for step in self.steps]

    @property
    def end(self) -> Report | None:
        return next((step for step in self.steps if step.state in ATTEMPT_ENDS), None)


class FakeServer:
    """Implements the client's protocol.

    Attributes:
        waiting: assignments not granted yet.
        leases: attempts that were granted.
        away: while set, every request fails with it.
        logs_away: while set, every upload of output fails with it.
        journals_away: the same for journals; ``journal_tries`` counts uploads of them.
        results_away: while set, every upload of results fails with it.
        refused_results: names of those that it does not take; ``result_uploads`` counts uploads of results.
        lose: kinds of requests (``sync``, ``report``, ``logs``, ``journals``, ``results``, ``release``) whose next answer is lost after
            it took effect.
        uploads: after each upload, what there was of the attempts in it.
        refuse: a report for which it answers True makes its whole batch a bad request.
        api_url: said to runs.
        secrets: what it answers to who holds an attempt and asks for its secrets; an exception is raised.
        asked: attempts whose secrets were asked for.
    """

    def __init__(self) -> None:
        self.waiting: list[Assignment] = []
        self.leases: dict[Key, Lease] = {}
        self.away: Exception | None = None
        self.logs_away: Exception | None = None
        self.journals_away: Exception | None = None
        self.results_away: Exception | None = None
        self.refused_results: set[str] = set()
        self.result_uploads = 0
        self.journal_tries = 0
        self.lose: list[str] = []
        self.refuse: Callable[[Report], bool] = lambda report: False
        self.api_url = "http://fake/api"
        self.secrets: AttemptSecrets | Exception = AttemptSecrets()
        self.asked: list[Key] = []
        self.syncs: list[SyncRequest] = []
        self.batches: list[list[Report]] = []
        self.released: list[Key] = []
        self.uploads: list[dict[Key, int]] = []
        self.drain = False
        self.lease_for = 240.0
        self.lost_after = 30.0
        self.session: UUID | None = None
        self.changed = asyncio.Condition()

    # -- what a test does

    def add(
        self,
        *words: str,
        run: UUID | None = None,
        attempt: int = 1,
        exclusive: bool = False,
        need: dict[str, float] | None = None,
        **work: Any,
    ) -> Key:
        """Make a run of the fake launcher's script due."""
        self.waiting.append(
            Assignment(
                run=run or uuid4(),
                attempt=attempt,
                epoch=1,
                session=uuid4(),
                deployment="fake",
                revision=1,
                pool="default",
                queue="default",
                scheduled_at=datetime.now(UTC),
                work=Work(command=["fake", *words], **work),
                exclusive=exclusive,
                need=need or {},
            )
        )
        self.touch()
        return self.waiting[-1].run, attempt

    def grant(self, assignment: Assignment, session: UUID) -> None:
        """Grant an attempt to a session, as a former life of the agent would have got it."""
        granted = assignment.model_copy(update={"session": session})
        self.leases[granted.run, granted.attempt] = Lease(granted)

    def cancel(self, key: Key) -> None:
        self.leases[key].cancelling = True
        self.touch()

    def take_away(self, key: Key) -> None:
        self.leases[key].live = False
        self.touch()

    def back(self) -> None:
        self.away = None
        self.touch()

    def touch(self) -> None:
        async def notify() -> None:
            async with self.changed:
                self.changed.notify_all()

        self._note = asyncio.ensure_future(notify())

    async def until(self, true: Callable[[], bool], seconds: float = SOON) -> None:
        """Wait until something is true, looked at whenever anything happens here."""
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(true)

    async def ended(self, *keys: Key) -> None:
        await self.until(lambda: all(key in self.leases and self.leases[key].end for key in keys))

    # -- what the agent calls

    async def get_pool(self, name: str) -> Pool:
        self._reach()
        if name == "missing":
            raise NotFound("there is no pool 'missing'", "Make it.")
        return Pool(
            name=name,
            type="process",
            match=[],
            limit=None,
            priority=0,
            template={},
            paused=False,
            created_at=datetime.now(UTC),
        )

    async def sync(self, name: str, request: SyncRequest) -> SyncAnswer:
        self._reach()
        request = SyncRequest.model_validate(request.model_dump())
        self.syncs.append(request)
        self.session = request.session
        await self._tell()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.hold_for
        while True:
            answer = self._difference(request)
            if answer.assignments or answer.cancel or answer.forget or answer.drain:
                break
            left = deadline - loop.time()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left), self.changed:
                    await self.changed.wait()
            except TimeoutError:
                break
            self._reach()
        self._lost("sync")
        return answer

    def _difference(self, request: SyncRequest) -> SyncAnswer:
        held = {(one.run, one.attempt): one for one in request.holds}
        live = {key: lease for key, lease in self.leases.items() if lease.live}
        free = request.free if request.taking else 0
        if request.taking:  # a slot whose end came meanwhile is free, as the agent would say
            free += sum(1 for key in held if key in self.leases and self.leases[key].end)

        def holds(key: Key, lease: Lease) -> bool:
            return key in held and held[key].epoch == lease.assignment.epoch

        again = [lease.assignment for key, lease in live.items() if not holds(key, lease)]
        while free > 0 and self.waiting and not again:
            granted = self.waiting.pop(0).model_copy(update={"session": request.session})
            self.leases[granted.run, granted.attempt] = Lease(granted)
            again.append(granted)
            break
        return SyncAnswer(
            protocol=PROTOCOL,
            assignments=again,
            cancel=[
                Held(run=key[0], attempt=key[1], epoch=lease.assignment.epoch)
                for key, lease in live.items()
                if lease.cancelling and holds(key, lease) and not held[key].stopping
            ],
            forget=[
                one
                for key, one in held.items()
                if not (key in live and holds(key, live[key]))
                and not (key in self.leases and self.leases[key].end)
            ],
            drain=self.drain,
            server_time=datetime.now(UTC),
            lost_after=self.lost_after,
            give_up_after=300,
            lease_for=self.lease_for,
        )

    async def report(self, name: str, batch: ReportBatch) -> ReportAnswer:
        self._reach()
        if batch.session != self.session:
            raise NotFound("not synced in this session")
        batch = ReportBatch.model_validate(batch.model_dump())
        if any(self.refuse(report) for report in batch.reports):
            raise BadRequest("one of these is wrong")
        self.batches.append(batch.reports)
        acks: dict[Key, ReportAck] = {}
        for report in batch.reports:
            key = (report.run, report.attempt)
            lease = self.leases.get(key)
            known = lease.steps[-1].seq if lease and lease.steps else 0
            mine = lease is not None and lease.assignment.epoch == report.epoch
            if lease is None or not mine or not (lease.live or report.seq <= known):
                acks[key] = ReportAck(run=key[0], attempt=key[1], seq=0, stale=True)
                continue
            if report.seq > known:
                lease.steps.append(report)
                if report.state in ATTEMPT_ENDS:
                    lease.live = False
            acks[key] = ReportAck(run=key[0], attempt=key[1], seq=max(known, report.seq))
        await self._tell()
        self._lost("report")
        return ReportAnswer(acks=list(acks.values()))

    async def upload_logs(self, name: str, body: bytes) -> LogAnswer:
        self._reach()
        if self.logs_away is not None:
            raise self.logs_away
        sizes: dict[Key, LogSize] = {}
        for frame, data in decode_frames(body):
            key = (frame.run, frame.attempt)
            lease = self.leases.get(key)
            if lease is None or lease.assignment.epoch != frame.epoch:
                sizes[key] = LogSize(run=key[0], attempt=key[1], size=0, stale=True)
                continue
            if frame.gap and frame.offset <= len(lease.log) < frame.offset + frame.gap:
                lease.gaps.append((len(lease.log), frame.offset + frame.gap))
                lease.log += bytes(lease.gaps[-1][1] - len(lease.log))
            elif frame.offset <= len(lease.log):
                lease.log += data[len(lease.log) - frame.offset :]
            sizes[key] = LogSize(run=key[0], attempt=key[1], size=len(lease.log))
        self.uploads.append({key: size.size for key, size in sizes.items()})
        await self._tell()
        self._lost("logs")
        return LogAnswer(sizes=list(sizes.values()))

    async def upload_journals(self, name: str, body: bytes) -> LogAnswer:
        self._reach()
        self.journal_tries += 1
        if self.journals_away is not None:
            await self._tell()
            raise self.journals_away
        sizes = []
        for frame, data in decode_frames(body):
            lease = self.leases.get((frame.run, frame.attempt))
            if lease is None or lease.assignment.epoch != frame.epoch:
                sizes.append(LogSize(run=frame.run, attempt=frame.attempt, size=0, stale=True))
                continue
            if frame.offset <= len(lease.journal):
                new = bytes(data[len(lease.journal) - frame.offset :])
                lease.journal += new[: new.rfind(b"\n") + 1]
            sizes.append(LogSize(run=frame.run, attempt=frame.attempt, size=len(lease.journal)))
        await self._tell()
        self._lost("journals")
        return LogAnswer(sizes=sizes)

    async def upload_task_results(
        self, name: str, run: UUID, attempt: int, epoch: int, body: bytes
    ) -> ResultSizes:
        self._reach()
        lease = self.leases.get((run, attempt))
        if lease is None or lease.assignment.epoch != epoch:
            raise StaleEpoch("the attempt is not this agent's")
        if self.results_away is not None:
            raise self.results_away
        sizes = []
        for piece, data in decode_pieces(body):
            if piece.name in self.refused_results:
                sizes.append(ResultSize(size=0, refused="it is not what its name says"))
                continue
            kept = lease.results.setdefault(piece.name, bytearray())
            if piece.offset <= len(kept):
                kept += data[len(kept) - piece.offset :]
            sizes.append(ResultSize(size=len(kept), complete=len(kept) == piece.size))
        self.result_uploads += 1
        await self._tell()
        self._lost("results")
        return ResultSizes(results=sizes)

    async def release(self, name: str, request: ReleaseRequest) -> ReportAnswer:
        self._reach()
        acks = []
        for one in request.attempts:
            lease = self.leases.pop((one.run, one.attempt), None)
            if lease is not None:
                self.released.append((one.run, one.attempt))
            acks.append(ReportAck(run=one.run, attempt=one.attempt, seq=0, stale=lease is None))
        await self._tell()
        self._lost("release")
        return ReportAnswer(acks=acks)

    async def leave(self, name: str, request: ReleaseRequest) -> ReportAnswer:
        self._reach()
        raise NotFound("there is no such path: this is a server of the version before")

    async def attempt_secrets(self, name: str, request: SecretsRequest) -> AttemptSecrets:
        self._reach()
        if request.session != self.session:
            raise NotFound("not synced in this session")
        key = (request.run, request.attempt)
        self.asked.append(key)
        await self._tell()
        lease = self.leases.get(key)
        if lease is None or lease.assignment.epoch != request.epoch:
            raise StaleEpoch("not held")
        if isinstance(self.secrets, Exception):
            raise self.secrets
        return self.secrets.model_copy(deep=True)

    def _reach(self) -> None:
        if self.away is not None:
            raise self.away

    def _lost(self, kind: str) -> None:
        if kind in self.lose:
            self.lose.remove(kind)
            raise ServerUnreachable(f"the answer of {kind} was lost")

    async def _tell(self) -> None:
        await asyncio.sleep(0)  # a real server is never there within one turn of the loop
        async with self.changed:
            self.changed.notify_all()
