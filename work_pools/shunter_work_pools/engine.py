"""The server's inside: the store, what waits on it, and the loops that move things on.

Loops, each a named task; one that dies stops the server loudly:

* ``dispatch``: something may be claimable -> one claim for all agents that wait;
* ``schedule``: slots that are due become runs;
* ``reap``: late and lost are marked, given up is acted on;
* ``heartbeat``: when agents were last heard of, many in one commit;
* ``retain``: what need not be kept is deleted, in small steps;
* ``maintain``: partitions of the coming days;
* ``revocations``: keys that other servers of the database revoked are forgotten;
* ``pulse``: how late the event loop comes around is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import traceback
from base64 import b64encode
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

from prometheus_client.core import Metric

from shunter_work_pools import killpoints, run_log
from shunter_work_pools.contracts import PROTOCOL, SERVED_PROTOCOLS
from shunter_work_pools.contracts.agents import (
    MASKED_TAIL,
    OUTPUT_TAIL,
    Assignment,
    Held,
    ReportAck,
    ReportBatch,
    SyncAnswer,
    SyncRequest,
)
from shunter_work_pools.contracts.base import Micros
from shunter_work_pools.contracts.errors import NotFound, ProtocolMismatch, Refused, Unavailable
from shunter_work_pools.contracts.pauses import PausePatch
from shunter_work_pools.contracts.secrets import AttemptSecrets, SecretsRequest
from shunter_work_pools.contracts.states import ATTEMPT_ENDS
from shunter_work_pools.daemon_log import get_logger
from shunter_work_pools.glances import Glances
from shunter_work_pools.hub import Hub, Waiting
from shunter_work_pools.identities import LOOK_EVERY, Identities
from shunter_work_pools.journals import Journals
from shunter_work_pools.metrics import Metrics, gauges
from shunter_work_pools.queue import audit, fire, keys, reap, remove, secrets, timetable
from shunter_work_pools.queue.apply import Times
from shunter_work_pools.queue.census import census
from shunter_work_pools.queue.claim import MOST, Offer, claim, due_in, is_due
from shunter_work_pools.queue.drain import drain
from shunter_work_pools.queue.handover import hand_over, left_waits
from shunter_work_pools.queue.limits import act_when_full, any_acts
from shunter_work_pools.queue.notes import take_notes
from shunter_work_pools.queue.report import report
from shunter_work_pools.queue.status import server_info
from shunter_work_pools.queue.sync import (
    Difference,
    Registered,
    difference,
    heartbeat,
    note_seen,
    register,
)
from shunter_work_pools.retention import Retention
from shunter_work_pools.sealing import Sealer
from shunter_work_pools.secret_keys import SecretKeys, passing_keys
from shunter_work_pools.settings import Settings
from shunter_work_pools.storage.logs import LogStore
from shunter_work_pools.storage.migrate import HEAD
from shunter_work_pools.storage.partitions import make_partitions
from shunter_work_pools.storage.results import ResultStore
from shunter_work_pools.storage.store import Changes, Store, Tx, Work

T = TypeVar("T")
if TYPE_CHECKING:  # it is loaded where people sign in
    from shunter_work_pools.sign_in import SignIn

log = get_logger()

_SECOND: Micros = 1_000_000
#: Seconds to wait after the store failed before a loop tries again.
_PAUSE = 1.0
#: Seconds in which a store that can be served from answers a look.
_ANSWER = 3.0
#: Longest sleep of the schedule loop, seconds.
_LONGEST_SLEEP = 60.0
#: Slots are fired without a break as long as the schedule loop is never later than this, seconds.
_BREAK = 30.0
#: Seconds to wait when others (another server, a deploy) hold the schedules that are due.
_HELD = 0.05
#: Seconds between two looks at how late the event loop is.
_PULSE = 0.5
#: Seconds by which clocks may drift apart between two looks before it counts as a step.
_CLOCK_STEP = 5.0


class Engine:
    """One server's inside.

    Args:
        store: not opened yet.
        logs: where output is kept.
        results: where large results of tasks are kept.
        settings: times.
        secret_keys: None: keys that nobody else has, and that end with this engine.
        sign_in: by which people get keys who have an account elsewhere; None: they do not.
    """

    def __init__(
        self,
        store: Store,
        logs: LogStore,
        results: ResultStore,
        settings: Settings | None = None,
        secret_keys: SecretKeys | None = None,
        sign_in: SignIn | None = None,
    ) -> None:
        self.store = store
        self.secret_keys = secret_keys or passing_keys()
        self.sealer = Sealer(self.secret_keys)
        self.sign_in = sign_in
        self.logs = logs
        self.settings = settings or Settings()
        self.identities = Identities(store, self.secret_keys, self.settings.rate_limit)
        self.identities.alive_after = lambda now: self.silence(now).alive_after
        self.refusals = self.identities.refusals
        self.hub = Hub()
        self.metrics = Metrics()
        self._glances = Glances(store)
        self._clock = asyncio.get_running_loop().time  # for threads, too
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready = False
        self.started_at = datetime.now(UTC)
        self.retention = Retention(store, logs, results, self.settings.keep)
        self.journals = Journals(store, results, self.sealer, self.retention)
        self._retain_now = asyncio.Event()
        self._registered: dict[str, tuple[SyncRequest, Registered]] = {}
        self._seen: dict[int, float] = {}  # agent id -> monotonic time; written down and forgotten
        self._heard: dict[int, float] = {}  # the same, not forgotten
        #: Held from the look at who waits until those are told what was granted to them.
        self._claiming = asyncio.Lock()
        #: Whether a limit does something else than to let runs wait; as of the last look.
        self._limits_act = False
        self._tasks: list[asyncio.Task[None]] = []
        self._hearing_since = asyncio.get_running_loop().time()
        self._last_look: tuple[Micros, float] | None = None
        #: At whether the store answers; the last one.
        self._look: asyncio.Task[Unavailable | None] | None = None
        #: When the loop that never rests for long last came around, by ``time.monotonic()``.
        self.moved_at = time.monotonic()
        #: As of the last look of the schedule loop, by the store's clock; see :meth:`fires_since`.
        self.firing_since: Micros = 0
        #: When the schedule loop is to look again at the latest, by the store's clock.
        self._next_look: Micros = 0

    # ---- life

    async def start(self) -> None:
        """Open the store and spawn the loops.

        Raises:
            StoreError: the store cannot be used.
        """
        await self.store.open()
        if self.store.schema_found != HEAD:
            log.info("the database has this version's schema now", before=self.store.schema_found, now=HEAD)
        self.store.on_commit = self._committed
        self.store.on_transaction = self.metrics.transaction
        self._hearing_since = asyncio.get_running_loop().time()
        await self.store.write(make_partitions)
        await self._seal_all()
        await self.store.write(reap.from_the_future)
        self.firing_since = self._next_look = await self.store.read(lambda tx: tx.now)
        await self.store.write(timetable.reckon_anew)
        await self._look_ahead()
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "dispatch": self._dispatch,
            "schedule": self._schedule,
            "reap": self._reap,
            "heartbeat": self._heartbeat,
            "retain": self._retain,
            "maintain": self._maintain,
            "pulse": self._pulse,
        }
        if self.store.kind == "postgres":
            loops["revocations"] = self._revocations
        for name, body in loops.items():
            task = asyncio.create_task(self._forever(name, body), name=name)
            self._tasks.append(task)
        self.ready = True

    async def _seal_all(self) -> None:
        """Seal by the newest key what is not, and say what cannot be read."""
        done = await self.store.write(lambda tx: secrets.reseal(tx, self.sealer))
        if done.count:
            log.info("secret values are sealed by the newest key now", count=done.count)
        if done.unreadable:
            log.error(
                "no secret key of this server opens these secret values; what needs them does not start",
                remedy="Give the key that they were sealed with back, behind the newest one: server.secret_keys, or "
                "the file secret_key. Or set them anew.",
                values=done.unreadable,
            )

    def _committed(self, changes: Changes) -> None:
        if changes.revoked:
            self.identities.forget(changes.revoked)
        self.hub.committed(changes)
        self.metrics.committed(changes)
        run_log.tell(changes.events)

    async def store_answers(self) -> None:
        """See that it does. Who asks while somebody does shares his look, so that many cost no more than one.

        Raises:
            Unavailable: it does not, or not within a few seconds.
        """
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_at_store(), name="look at the store")
        done, _ = await asyncio.wait([self._look], timeout=_ANSWER)
        if not done:
            raise Unavailable(f"the database has not answered for {_ANSWER:g} seconds", "Ask again.")
        away = self._look.result()
        if away is not None:
            raise Unavailable(away.detail, away.remedy)

    async def _look_at_store(self) -> Unavailable | None:
        """What is wrong with it; returned, as all who asked may have gone meanwhile."""
        try:
            await self.store.read(lambda tx: tx.now)
        except Unavailable as exc:
            return exc
        return None

    def release_waiters(self) -> None:
        """Answer every held request at once; nothing is held from now on."""
        self.ready = False
        self.hub.stop()

    async def stop(self) -> None:
        """Finish what is under way and close the store."""
        self.release_waiters()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._write_heartbeats()
            await self.identities.write_uses()
            await self.refusals.write(all_of_them=True)
        except Refused as exc:
            log.warning("heartbeats were not written", reason=exc.detail)
        await self.store.close()

    async def _forever(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        """Repeat one step of a loop; a store that is away is waited for, anything else is a bug."""
        try:
            while True:
                try:
                    await body()
                except Unavailable as exc:
                    log.warning("the store cannot be used now", loop=name, reason=exc.detail)
                    self._hearing_since = asyncio.get_running_loop().time()
                    await asyncio.sleep(_PAUSE)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            # Not exc_info: a log that shows the variables of each frame would show secrets.
            log.error("a loop of the server died", loop=name, exception=traceback.format_exc())
            if not self.failure.done():
                self.failure.set_exception(exc)

    # ---- sync

    async def sync(self, name: str, request: SyncRequest, gone: Coroutine[Any, Any, None]) -> SyncAnswer:
        """Answer an agent: at once if anything should be different, else when it should.

        Args:
            name: of the agent.
            request: what it holds and could take.
            gone: done when the agent has hung up.

        Raises:
            ProtocolMismatch, NotFound, NameInUse: see :func:`~shunter_work_pools.queue.sync.register`.
        """
        try:
            if request.protocol not in SERVED_PROTOCOLS:
                served = " and ".join(map(str, SERVED_PROTOCOLS))
                raise ProtocolMismatch(
                    f"agent {name!r} speaks protocol {request.protocol}, this server {served}",
                    "Install the agent's and the server's versions of Shunter alike.",
                )
            agent = await self._register(name, request)
            self._hear(agent.id)
        except BaseException:
            gone.close()
            raise
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.hold_for
        hang_up = asyncio.create_task(gone)
        held = frozenset(hold.run for hold in request.holds)
        try:
            while True:
                with self.hub.waiting(agent, held) as waiting:
                    if not request.taking or deadline <= loop.time():
                        # What it hears may be the last thing before it ends: not that nothing is its own while
                        # a grant to an older sync of it is on its way into the books.
                        await self._claims_under_way()
                    diff, due = await self._compare(agent.id, request.holds)
                    if diff.notes:
                        await self.store.write(partial(take_notes, agent_id=agent.id, holds=diff.notes))
                    left = deadline - loop.time()
                    drain = diff.drains == agent.session
                    if diff or left <= 0 or self.hub.stopping or (drain and not request.draining):
                        assignments = await self._with_output(diff.assignments)
                        return self._answer(assignments, diff.cancel, diff.forget, diff.let_go, drain=drain)
                    if not waiting.answer.done():
                        # A draining or unhealthy agent takes nothing, whatever ends.
                        waiting.ended |= diff.finished
                        waiting.offered = request.free if request.taking else None
                        waiting.offered_capacity = request.free_capacity
                        if waiting.free > 0 and (due or waiting.stirred):
                            self.hub.has_room(agent.id)
                        done, _ = await asyncio.wait(
                            cast("list[asyncio.Future[Any]]", [waiting.answer, hang_up]),
                            timeout=left,
                            return_when=asyncio.FIRST_COMPLETED,
                        )
                        if not done:
                            await self._claims_under_way()
                            if not waiting.answer.done():
                                # The time is over, and nobody said that anything changed.
                                return self._answer(drain=drain)
                    if hang_up.done():
                        return self._answer(drain=drain)
                    granted = waiting.answer.result() if waiting.answer.done() else []
                    if granted:
                        return self._answer(granted)
                    if self.hub.agents.get(agent.id) is not waiting:
                        return self._answer(drain=drain)  # a newer sync of this agent took over
        finally:
            hang_up.cancel()

    async def _claims_under_way(self) -> None:
        """Wait until those are told to whom the claim that is under way grants something, if one is."""
        async with self._claiming:
            pass

    async def _compare(self, agent_id: int, holds: list[Held]) -> tuple[Difference, bool]:
        """What should be different on an agent, and whether any run waits that is due."""
        if not holds:
            seen = await self._glances.look(agent_id)
            if agent_id not in seen.concerned:
                return Difference(), seen.due
        return await self.store.read(lambda tx: (difference(tx, agent_id, holds), is_due(tx)))

    async def _with_output(self, assignments: Sequence[Assignment]) -> list[Assignment]:
        """Say how much of their output is here, of those that somebody else had; without those of which that cannot
        be read now: their new agent gets them by a later sync."""
        known = []
        for one in assignments:
            if one.handed_over is not None:
                try:
                    size, tail = await asyncio.to_thread(_telling_tail, self.logs, one)
                except OSError as exc:
                    log.error("the output of a run cannot be read", run=str(one.run), reason=str(exc))
                    continue
                one.handed_over.size, one.handed_over.tail = size, b64encode(tail).decode()
            known.append(one)
        return known

    async def _register(self, name: str, request: SyncRequest) -> Registered:
        known = self._registered.get(name)
        if known is not None and _same_agent(known[0], request) and not self._long_silent(known[1].id):
            return known[1]
        agent = await self.store.write(
            partial(register, name=name, request=request, lost_after=self.settings.lost_after)
        )
        if known is None or known[0].session != request.session:
            log.info(
                "agent here",
                agent=name,
                session=request.session,
                pools=request.pools,
                host=request.host,
                version=request.version,
            )
        self._registered[name] = (request, agent)
        return agent

    def _long_silent(self, agent_id: int) -> bool:
        """Whether an agent, or a pool it serves, may have been deleted since it was last heard of."""
        silent_since = asyncio.get_running_loop().time() - self.settings.lost_after * 0.8
        return self._heard.get(agent_id, -math.inf) < silent_since

    def _hear(self, agent_id: int) -> None:
        self._seen[agent_id] = self._heard[agent_id] = asyncio.get_running_loop().time()

    async def drain(self, name: str) -> None:
        """Tell an agent to take nothing new; see :func:`shunter_work_pools.queue.drain.drain`.

        Raises:
            NotFound, Conflict: it is unknown, or lost.
        """
        known = self._registered.get(name)
        waiting = self.hub.agents.get(known[1].id) if known is not None else None
        if waiting is not None:
            waiting.offered = None  # not between this commit and the answer that tells it
        try:
            await self.store.write(lambda tx: drain(tx, name, self.silence(tx.now).alive_after))
        except BaseException:
            if waiting is not None:
                waiting.wake()
            raise
        log.info("agent is to drain", agent=name)

    async def pausing(self, work: Work[T], patch: PausePatch, **what: str) -> T:
        """Run a unit of work that may pause something; once this returns, nothing more of that is handed out here.

        Args:
            patch: what is asked for.
            what: of whom, for the log.

        Raises:
            Refused: as the work does.
        """
        result = await self.store.write(work)
        if patch.paused is not None:
            log.info("paused" if patch.paused else "resumed", **what, by=patch.by, reason=patch.reason)
        # What was looked at before the pause may be granted still.
        await self._claims_under_way()
        return result

    async def metrics_page(self, accept: str) -> tuple[bytes, str]:
        """The page of metrics and its content type; see :meth:`Metrics.page`."""

        async def look() -> list[Metric]:
            found = await self.store.read(
                lambda tx: census(
                    tx, server_info(tx, self.store.kind, self.started_at), self.settings.lost_after
                )
            )
            return gauges(found, len(self.hub.agents), self.store.pending_writes())

        return await self.metrics.page(look, accept)

    def forget_agent(self, name: str) -> None:
        """An agent was deleted: it is registered anew should it come back."""
        known = self._registered.pop(name, None)
        if known is not None:
            self._heard.pop(known[1].id, None)
            self._seen.pop(known[1].id, None)
        log.info("agent removed", agent=name)

    def agent(self, name: str, session: UUID) -> int:
        """The id of an agent that has synced with this server in this session.

        Raises:
            NotFound: it has not; it has to sync first.
        """
        known = self._registered.get(name)
        if known is None or known[1].session != session:
            raise NotFound(f"agent {name!r} has not synced in this session", "Sync first.")
        self._hear(known[1].id)
        return known[1].id

    def _answer(
        self,
        assignments: Sequence[Assignment] = (),
        cancel: Sequence[Held] = (),
        forget: Sequence[Held] = (),
        let_go: Sequence[Held] = (),
        *,
        drain: bool = False,
    ) -> SyncAnswer:
        return SyncAnswer.model_construct(
            protocol=PROTOCOL,
            assignments=list(assignments),
            cancel=list(cancel),
            forget=list(forget),
            let_go=list(let_go),
            drain=drain,
            server_time=datetime.now(UTC),
            lost_after=self.settings.lost_after,
            give_up_after=self.settings.give_up_after,
            lease_for=self.settings.lease_for,
        )

    # ---- loops

    async def _dispatch(self) -> None:
        hub = self.hub
        loop = asyncio.get_running_loop()
        timeout = None if hub.next_due == math.inf else max(0.0, hub.next_due - loop.time())
        try:
            await asyncio.wait_for(hub.claimable.wait(), timeout)
        except TimeoutError:
            hub.stir()
            await self._look_ahead()
        async with self._claiming:
            await self._claim()

    async def _claim(self) -> None:
        """Claim once for all agents that wait, and tell those that were granted something."""
        hub = self.hub
        if hub.limits:
            hub.limits = False
            try:
                self._limits_act = await self.store.read(any_acts)
            except Unavailable:
                hub.limits = True
                hub.claimable.set()
                raise
        waiting = hub.takers()
        if not waiting:
            await self._act_when_full()
            return
        offers = [_offer(entry) for entry in waiting]
        try:
            granted = await self.store.write(lambda tx: claim(tx, offers))
        except Unavailable:
            hub.stir()  # it is still to be claimed
            raise
        if granted >= MOST:
            hub.stir()  # there may be more for those that got nothing
        self._tell(waiting, offers)
        await self._act_when_full()

    def _tell(self, waiting: list[Waiting], offers: list[Offer]) -> None:
        """Answer those to whom a claim that is committed has granted something."""
        if any(offer.granted for offer in offers):
            killpoints.reached("after-claim-committed")
            _tell_grants(waiting, offers)
        for entry, offer in zip(waiting, offers, strict=True):
            if offer.granted:
                entry.wake(offer.granted)
                current = self.hub.agents.get(entry.agent.id)
                if current is not None and current is not entry:
                    current.wake()  # a newer sync of the agent: it has to find what was granted to the older

    async def attempt_secrets(self, name: str, request: SecretsRequest) -> AttemptSecrets:
        """See :func:`shunter_work_pools.queue.secrets.attempt_secrets`.

        Raises:
            NotFound: the agent has not synced in this session.
            StaleEpoch: it does not hold the attempt under this epoch.
        """
        agent_id = self.agent(name, request.session)

        def output_known() -> int:
            return self.logs.tail(request.run, request.attempt, 0)[0]

        return await self.store.read(
            lambda tx: secrets.attempt_secrets(
                tx, self.sealer, agent_id, name, request, output_known, self.identities.attempt_tokens
            )
        )

    async def report(self, name: str, batch: ReportBatch) -> list[ReportAck]:
        """Take reports. A place that becomes free by them is filled in the same transaction, if one that could
        do so waits here: it is not empty for a moment, and one commit does for both.

        Raises:
            NotFound: the agent has not synced in this session.
        """
        agent_id = self.agent(name, batch.session)
        pools = frozenset(self._registered[name][1].pools)

        def taken(tx: Tx) -> list[ReportAck]:
            return report(tx, agent_id, batch.reports, self.settings.lost_after)

        if self._claiming.locked() or not any(one.state in ATTEMPT_ENDS for one in batch.reports):
            return await self.store.write(taken)
        async with self._claiming:
            waiting, all_of_them = self.hub.who_could_take(agent_id, pools)
            offers = [_offer(entry) for entry in waiting]
            freed: dict[UUID, Mapping[str, float]] = {}

            def refilled(tx: Tx) -> list[ReportAck]:
                acks = taken(tx)
                freed.update(tx.changes.freed.pop(agent_id, {}))
                for entry, offer in zip(waiting, offers, strict=True):
                    if offer.agent_id == agent_id:
                        offer.give_back(need for run, need in freed.items() if run in entry.held)
                if claim(tx, offers) < MOST and all_of_them:
                    tx.changes.pools -= pools  # nobody else needs to look there
                return acks

            acks = await self.store.write(refilled if offers else taken)
            self.hub.note_freed(agent_id, freed)
            if all_of_them and self.hub.others_wait(waiting, pools):
                self.hub.stir(pools)  # they came to wait meanwhile, and may not have seen what was committed
            self._tell(waiting, offers)
        if self._limits_act:
            self.hub.claimable.set()  # the place is taken again: what else is due for it is acted on
        return acks

    async def _act_when_full(self) -> None:
        """End or stop runs where a limit is full that does not let them wait."""
        while self._limits_act and await self.store.write(act_when_full):
            pass

    async def _look_ahead(self) -> None:
        """Find out when the next waiting run becomes due; from then on commits tell of earlier ones."""
        self.hub.next_due = math.inf
        try:
            seconds = await self.store.read(due_in)
        except Unavailable:
            self.hub.next_due = asyncio.get_running_loop().time()  # look again
            raise
        if seconds is not None:
            self.hub.next_due = min(self.hub.next_due, asyncio.get_running_loop().time() + seconds)

    @property
    def late_after(self) -> Micros:
        """Microseconds after which a run that still waits is late."""
        return round(self.settings.late_after * _SECOND)

    def fires_since(self, now: Micros) -> Micros:
        """The moment from which slots have been fired without a break.

        Args:
            now: by the store's clock.
        """
        # The machine slept, the clock was set, the store was away: what passed meanwhile was missed.
        return now if now - self._next_look > _BREAK * _SECOND else self.firing_since

    def times(self, now: Micros) -> Times:
        """What a deploy at a moment needs to know.

        Args:
            now: by the store's clock.
        """
        return Times(
            self.late_after,
            self.fires_since(now),
            lost_after=self.settings.lost_after,
            lease_for=self.settings.lease_for,
        )

    def alive_after(self, now: Micros) -> Micros:
        """Agents heard of since this moment count as alive."""
        return now - round(self.settings.lost_after * _SECOND)

    def silence(self, now: Micros) -> remove.Silence:
        """What is to be known before an agent is taken for gone.

        Args:
            now: by the store's clock.
        """
        hearing = self._clock() - self._hearing_since
        return remove.Silence(
            alive_after=self.alive_after(now) if hearing > self.settings.lost_after else -1,
            lease_for=round(self.settings.lease_for * _SECOND),
            hearing_since=now - round(hearing * _SECOND),
        )

    async def _schedule(self) -> None:
        """Make runs of what is due, a batch at a time; nothing is due: sleep until something is."""
        hub = self.hub
        hub.schedules.clear()
        now, upcoming = await self.store.read(lambda tx: (tx.now, fire.next_slot_in(tx)))
        self.firing_since = self.fires_since(now)
        self._next_look = now
        if upcoming is not None and upcoming <= 0:
            served = await self.store.write(lambda tx: fire.fire(tx, self.late_after, self.firing_since))
            if not served:
                await asyncio.sleep(_HELD)
            return
        # A clock that was set forward is noticed within a minute.
        pause = _LONGEST_SLEEP if upcoming is None else min(_LONGEST_SLEEP, upcoming)
        self._next_look = now + round(pause * _SECOND)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hub.schedules.wait(), pause)

    async def _reap(self) -> None:
        self.moved_at = time.monotonic()
        await asyncio.sleep(self.settings.reap_every)
        settings = self.settings
        # Another server may have made a limit that acts, and what it was to act on may have been locked.
        now, self._limits_act, late, silent, left = await self.store.read(
            lambda tx: (
                tx.now,
                any_acts(tx),
                reap.late_waits(tx, tx.now - self.late_after),
                reap.silent_holds(tx, tx.now - round(settings.lost_after * _SECOND)),
                left_waits(tx),
            )
        )
        await self._mind_the_clock(now)
        await self._act_when_full()
        if late:
            await self.store.write(lambda tx: reap.mark_late(tx, tx.now - self.late_after))
        # Time in which no heartbeat could be heard is not an agent's silence. It is measured up to the moment
        # that was looked at: the clock may be set between that look and what is done.
        hearing = asyncio.get_running_loop().time() - self._hearing_since
        lost_before = now - round(settings.lost_after * _SECOND)
        judged = silent and hearing > settings.lost_after
        if judged:
            await self.store.write(lambda tx: reap.mark_lost(tx, lost_before))
        if judged or left:
            seen_before = lost_before if judged else 0
            moved = await self.store.write(lambda tx: hand_over(tx, seen_before, settings.lost_after))
            if moved:
                killpoints.reached("after-handover-committed")
                log.info("runs whose agents are silent or gone were handed over to others", runs=moved)
        if judged and hearing > settings.give_up_after:
            given_up_before = now - round(settings.give_up_after * _SECOND)
            await self.store.write(lambda tx: reap.give_up(tx, given_up_before))

    async def _mind_the_clock(self, now: Micros) -> None:
        """Notice that the store's clock was set, or that this machine slept: then silence starts anew.

        And when agents were last heard of is written by the new clock.
        """
        monotonic = asyncio.get_running_loop().time()
        last, self._last_look = self._last_look, (now, monotonic)
        if last is None or abs((now - last[0]) / _SECOND - (monotonic - last[1])) <= _CLOCK_STEP:
            return
        log.warning("the clock was set, or this machine slept; agents have time to speak up")
        self._hearing_since = monotonic
        ago = {agent_id: monotonic - at for agent_id, at in self._heard.items()}

        def correct(tx: Tx) -> None:
            note_seen(tx, ago)
            reap.from_the_future(tx)

        await self.store.write(correct)

    async def _heartbeat(self) -> None:
        await asyncio.sleep(self.settings.heartbeat_every)
        await self._write_heartbeats()
        await self.identities.write_uses()
        await self.refusals.write()

    async def _write_heartbeats(self) -> None:
        if self._seen:
            seen, self._seen = self._seen, {}

            def write(tx: Tx) -> None:
                # Reckoned here: it may have waited in the store's line.
                now = time.monotonic()
                heartbeat(tx, {agent_id: now - at for agent_id, at in seen.items()})

            try:
                await self.store.write(write)
            except Unavailable:
                self._seen = seen | self._seen
                raise

    def retain_soon(self) -> None:
        """Something was deleted: what belongs to it may go at once."""
        self._retain_now.set()

    async def _retain(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._retain_now.wait(), self.settings.retain_every)
        self._retain_now.clear()
        try:
            await self.retention.sweep()
            await self._forget_audit()
        except Unavailable as exc:  # of logs, too: agents are heard all the same
            log.warning("not all that may go could be deleted", reason=exc.detail)

    async def _forget_audit(self) -> None:
        if self.settings.audit_for is not None:
            kept = round(self.settings.audit_for * _SECOND)
            while await self.store.write(lambda tx: audit.forget(tx, tx.now - kept)):
                pass

    async def _maintain(self) -> None:
        await asyncio.sleep(3600)
        await self.store.write(make_partitions)
        await self.store.write(secrets.forget_replaced)
        if self.settings.audit_for is not None:
            kept = round(self.settings.audit_for * _SECOND)
            await self.store.write(lambda tx: keys.forget_ended(tx, tx.now - kept))

    async def _revocations(self) -> None:
        await asyncio.sleep(LOOK_EVERY)
        await self.identities.look()

    async def _pulse(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + _PULSE
        await asyncio.sleep(_PULSE)
        self.metrics.loop_delay.observe(max(0.0, loop.time() - due))


def _telling_tail(logs: LogStore, one: Assignment) -> tuple[int, bytes]:
    """How much of its output is known, and its end: more of it where that may be mostly masked secrets."""
    size, tail = logs.tail(one.run, one.attempt, OUTPUT_TAIL)
    if tail.count(b"*") > OUTPUT_TAIL // 2:
        size, tail = logs.tail(one.run, one.attempt, MASKED_TAIL)
    return size, tail


def _tell_grants(waiting: Sequence[Waiting], offers: Sequence[Offer]) -> None:
    """The log's lines of what was granted; the event of it does not name the agent."""
    if not log.is_enabled_for(logging.DEBUG):
        return
    for entry, offer in zip(waiting, offers, strict=True):
        for one in offer.granted:
            log.debug(
                "run granted",
                run=one.run,
                attempt=one.attempt,
                epoch=one.epoch,
                agent=entry.agent.name,
                deployment=one.deployment,
                pool=one.pool,
                queue=one.queue,
            )


def _offer(entry: Waiting) -> Offer:
    return Offer(
        agent_id=entry.agent.id,
        session=entry.agent.session,
        pools=frozenset(entry.agent.pools),
        queues=entry.agent.queues,
        tags=entry.agent.tags,
        free=entry.free,
        limit=entry.agent.limit,
        capacity=entry.agent.capacity,
        free_capacity=entry.free_capacity,
    )


def _same_agent(known: SyncRequest, request: SyncRequest) -> bool:
    return (
        known.session == request.session
        and known.draining == request.draining
        and known.troubles == request.troubles
        and known.reaches == request.reaches
        and known.identity == request.identity
        and known.pools == request.pools
        and known.queues == request.queues
        and known.tags == request.tags
        and known.found_tags == request.found_tags
        and known.capacity == request.capacity
        and known.limit == request.limit
    )
