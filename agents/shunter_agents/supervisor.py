"""One attempt from its assignment to its end: launched once, watched, stopped when it must be.

The order in which things are written down and done is what makes a SIGKILL of the agent harmless:
assignment, Starting, launch (idempotent), Running, end. What a former life left is found by
``Launcher.recover``; what that life certainly never launched is launched now, but not before the server
has said once that it is still ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from shunter_agents import crash_hooks
from shunter_agents.attempt import Attempt
from shunter_agents.attempt_secrets import Secrets
from shunter_agents.breaker import PROVEN
from shunter_agents.health import Health
from shunter_agents.holdings import Holdings
from shunter_agents.janitor import Janitor
from shunter_agents.journal import END_SEQ
from shunter_agents.killpoints import reached, requested
from shunter_agents.link import Backoff
from shunter_agents.log_shipper import PARKED, LogShipper
from shunter_agents.reporter import Reporter
from shunter_agents.tally import Tally
from shunter_agents.task_shipper import TaskShipper
from shunter_agents.verdict import Stop, Verdict, never_started, verdict
from shunter_infrastructure.launcher import (
    NOTHING,
    Exit,
    Handle,
    LauncherUnavailable,
    LaunchFailed,
    LaunchRefused,
    Lease,
    NotReady,
    Prepared,
)
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.agents import (
    HOLD_LIMIT,
    LEASE_FOR,
    LEASE_MARGIN,
    MANIFEST_LIMIT,
    NOTE_LIMIT,
    Assignment,
    ReportAck,
)
from shunter_work_pools.contracts.deployments import RESULT_LIMIT
from shunter_work_pools.contracts.states import LAUNCH_FAILURES, AttemptState, Cause
from shunter_work_pools.daemon_log import get_logger

log = get_logger()
T = TypeVar("T")

#: Seconds that a launch under way is given to come back by itself when the attempt is cancelled.
LAUNCH_PATIENCE = 2.0
#: Longest sleep of a timer, seconds: it counts no suspended time, the stamp that it looks at does.
TIMER_STEP = 60.0
#: Longest wait, seconds, between two tries while a launcher's engine is away.
ENGINE_LIMIT = 5.0

#: One step of what is made ready for an attempt before its launch: it is given what the steps before made, and
#: returns that with its own. It raises ``LaunchFailed`` (the attempt ends) or ``NotReady`` (all steps are taken
#: again in a while), and may be cancelled at any moment; it is taken again by a later life of the agent.
Preparing = Callable[[Attempt, Prepared], Awaitable[Prepared]]


class Supervisor:
    """Sees every attempt of this agent through; one task each.

    Attributes:
        preparing: what is done before each try of a launch, in this order.
        secrets: the source of what is to be masked.
        confirmed: set once the server has answered a sync that named what was found at start.
        on_noted: called when a launch waits for something else than before.
        on_lease_wanted: called when an exclusive attempt waits for the server's next answer.
    """

    def __init__(
        self,
        agent: str,
        holdings: Holdings,
        health: Health,
        reporter: Reporter,
        shipper: LogShipper,
        tasks: TaskShipper,
        janitor: Janitor,
        tally: Tally,
        secrets: Secrets,
    ) -> None:
        self._agent = agent
        self._tally = tally
        self._holdings = holdings
        self._health = health
        self._lease_for = LEASE_FOR
        self._leased_until: float | None = None
        self._heard: Stamp | None = None  # when the request was sent that the server answered last
        self._lost_after = 0.0
        self._lease_came = asyncio.Event()
        self._reporter = reporter
        self._shipper = shipper
        self._task_shipper = tasks
        self._janitor = janitor
        self._closing = False
        self._tasks: dict[asyncio.Task[None], Attempt] = {}
        self.secrets = secrets
        self.preparing: Sequence[Preparing] = (secrets.prepare,)
        self.confirmed = asyncio.Event()
        self.on_lease_wanted: Callable[[], None] = lambda: None
        self.on_noted: Callable[[], None] = lambda: None
        reporter.on_acked = self._acked
        reporter.on_stale = self._stale
        shipper.on_done = self._settle
        tasks.on_done = self._journal_brought
        tasks.on_stuck = self._journal_stuck

    def begin(self, attempt: Attempt) -> None:
        """See it through from where it is."""
        if attempt.ended:
            self._hold_end(attempt)
        self._reporter.add(attempt)
        attempt.task = self._spawn(attempt, self._guarded(attempt), "see through")

    def stop(self, attempt: Attempt, why: Stop) -> None:
        """Stop it with its grace, unless it is being stopped already: the first reason counts."""
        if attempt.stopped is not None or attempt.ended or attempt.dropped:
            return
        attempt.stopped, attempt.stopped_at = why, Stamp.now()
        log.info("stopping a run", why=why.value, **attempt.names)
        self._write(attempt, {"stop": why.value, "at": attempt.stopped_at.to_json()})
        self._make_stop(attempt, attempt.assignment.work.grace)

    def drop(self, attempt: Attempt, why: str) -> None:
        """It is not ours any more: stop it at once, report nothing."""
        if attempt.dropped:
            return
        attempt.dropped = True
        attempt.log_done = True
        log.warning("a run is not this agent's any more; it is stopped", reason=why, **attempt.names)
        self._holdings.disown(attempt)
        self._reporter.forget(attempt)
        self._shipper.forget(attempt)
        if attempt.ended and (attempt.task is None or attempt.task.done()):
            self._part_from(attempt)
        else:
            self._make_stop(attempt, 0.0)

    def let_go(self, attempt: Attempt) -> None:
        """Another agent has it now: follow it no more, report nothing, and leave its work alone."""
        if not attempt.launcher.capabilities.shared_handles:
            self.drop(attempt, "the server says that another agent has it")
            return
        if attempt.dropped:
            return
        attempt.dropped = attempt.let_go = True
        log.warning("a run is another agent's now; its work is left alone", **attempt.names)
        self._holdings.settle(attempt)
        self._forget(attempt)
        self._over(attempt)
        if attempt.task is not None:
            attempt.task.cancel()
        self._spawn(attempt, self._part_with(attempt), "part with")

    def _forget(self, attempt: Attempt) -> None:
        """Nothing of it is to be told any more."""
        self._reporter.forget(attempt)
        self._shipper.forget(attempt)
        self._task_shipper.forget(attempt)

    async def _part_with(self, attempt: Attempt) -> None:
        if attempt.task is not None:
            await asyncio.wait({attempt.task})
        attempt.handle = None  # what the engine has of it is not ours to clean up
        await attempt.launcher.let_go(attempt.assignment, self._folder(attempt))
        self._janitor.take(attempt)

    async def leave(self, attempt: Attempt) -> None:
        """Follow it no more, so that another agent can be told to: nothing that this one has asked for is under way
        when this returns. It is not written down: a next life of this agent finds it as after a SIGKILL."""
        if not attempt.left:
            log.info("a run is left to other agents", **attempt.names)
            attempt.dropped = attempt.let_go = attempt.left = True
            self._forget(attempt)
            self._over(attempt)
        mine = [task for task, whose in self._tasks.items() if whose is attempt]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        await attempt.launcher.let_go(attempt.assignment, self._folder(attempt))

    def noted(self, run: UUID, number: int, note: str, cause: Cause | None = None) -> None:
        """A launch waits for something, in its engine's words; see ``Launcher.on_note``."""
        attempt = self._holdings.working.get((run, number))
        # What cannot be said in UTF-8 cannot travel.
        words = " ".join(note.encode("utf-8", "replace").decode("utf-8").split())[:NOTE_LIMIT]
        if attempt is not None:
            words = _shown(attempt, words)
        if attempt is None or (attempt.note, attempt.note_cause) == (words, cause):
            return
        attempt.note, attempt.note_cause = words, cause
        log.info("a launch waits" if words else "a launch waits no more", reason=words, **attempt.names)
        self.on_noted()

    def declare_lost(self, attempt: Attempt, cause: Cause, message: str) -> None:
        """End an attempt of which it cannot be known whether it was begun; nothing is launched."""
        log.warning("a run is lost", reason=message, **attempt.names)
        self._end_error(attempt, cause, message)

    def leased(self, asked: Stamp, lease_for: float, lost_after: float) -> None:
        """The server has answered: exclusive attempts may go on, and what others reach may be begun.

        Args:
            asked: when the request that was answered was sent.
            lease_for: seconds from then on to the end of the lease.
            lost_after: seconds from then on until the server may hand over what is here.
        """
        self._heard, self._lost_after = asked, lost_after
        self._lease_for, self._leased_until = lease_for, asked.ticks + lease_for
        came, self._lease_came = self._lease_came, asyncio.Event()
        came.set()

    def answer_within(self) -> float:
        """Seconds after which exclusive attempts need another answer, or sooner: so that one may be lost."""
        room = [
            self._lease_for - attempt.assignment.work.grace - LEASE_MARGIN
            for attempt in self._holdings.working.values()
            if attempt.assignment.exclusive
        ]
        return min(room) / 3 if room and min(room) > 0 else HOLD_LIMIT

    async def hold_all(self) -> None:
        """Tell the launchers of exclusive attempts until when these may go on."""
        for attempt in list(self._holdings.working.values()):
            if attempt.assignment.exclusive and attempt.handle is not None and not attempt.ended:
                await self._hold(attempt, attempt.handle)

    async def _hold(self, attempt: Attempt, handle: Handle) -> None:
        if attempt.dropped or attempt.stopped is not None:
            return  # it ends by itself; what was noted before still holds
        try:
            await attempt.launcher.hold(handle, self._lease_of(attempt))
        except (LauncherUnavailable, OSError, ValueError) as exc:
            # The lease that was noted before holds. The next answer of the server tries again.
            log.warning("the lease of a run cannot be made longer now", reason=str(exc), **attempt.names)

    def _lease_of(self, attempt: Attempt) -> Lease:
        assert self._leased_until is not None
        kill_at = self._leased_until - LEASE_MARGIN
        return Lease(kill_at - attempt.assignment.work.grace, kill_at)

    async def close(self) -> None:
        """Watch no more. What runs goes on, and is found by the next life."""
        self._closing = True
        for attempt in self._holdings.attempts.values():
            if attempt.timer is not None:
                attempt.timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- the way of one attempt

    async def _guarded(self, attempt: Attempt) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._see_through(attempt)
                return
            except Exception:
                log.exception("a run's supervision failed; it is taken up again", **attempt.names)
                attempt.adopted = True
                await asyncio.sleep(backoff.next())

    async def _see_through(self, attempt: Attempt) -> None:
        if attempt.ended:
            await self._recall_output(attempt)
            return
        if attempt.handle is None:
            attempt.handle = await self._find_or_launch(attempt)
        if attempt.handle is None:
            return
        self._running(attempt, attempt.handle)
        end = await self._wait(attempt, attempt.handle)
        reached("after-exit")
        if attempt.recalled is not None:
            await attempt.recalled.wait()
        judged = self._judge(attempt, end)
        if await crash_hooks.wanted(attempt, judged, self._task_shipper.has_crash_hooks):
            end, judged = await crash_hooks.call(
                attempt, attempt.handle, end, judged, self._start_hooks, self._until_available
            )
        self._end(attempt, judged, end)

    async def _find_or_launch(self, attempt: Attempt) -> Handle | None:
        """Its handle; None if it has ended without anything of it having run."""
        try:
            attempt.launching = True
            return await self._launch(attempt)
        except asyncio.CancelledError:
            task = attempt.task
            if self._closing or task is None or attempt.let_go or not attempt.given_up:
                raise
            task.uncancel()
        finally:
            attempt.launching = attempt.in_start = False
        # Interrupted while it was launched: whether anything runs, only the launcher can tell.
        return await self._withdraw(attempt)

    async def _withdraw(self, attempt: Attempt) -> Handle | None:
        """The handle of an attempt that is not to start any more, if it has begun; else nothing is left of it."""
        handle = await self._recover(attempt, withdraw=True)
        if handle is None:
            self._never_started(attempt)
        return handle

    async def _launch(self, attempt: Attempt) -> Handle | None:
        before = attempt.assignment.handed_over
        if attempt.adopted or before is not None:
            handle = await self._recover(attempt)
            if handle is not None:
                return handle
            if before is not None and before.started and not attempt.given_up:
                self._end_error(
                    attempt,
                    Cause.DELETED,
                    "nothing of it is left where it ran: its agent is lost, and somebody removed its work",
                )
                return None
            if attempt.adopted and not attempt.given_up:
                await self.confirmed.wait()
                if attempt.timer is None:  # else its time runs already: an earlier try of this life failed
                    attempt.received = Stamp.now()  # a server that was away costs no run its time to start
            if attempt.given_up:
                return await self._withdraw(attempt)
        if attempt.given_up:
            self._never_started(attempt)
            return None
        if attempt.state is AttemptState.CLAIMED:
            self._report(attempt, AttemptState.STARTING, Stamp.now(), {})
            reached("after-starting-journaled")
        self._watch_start(attempt)
        try:
            handle = await self._start(attempt)
        except LaunchFailed as exc:
            told = _shown(attempt, exc.told)
            log.warning("a run cannot be started", reason=told, **attempt.names)
            self._end_error(attempt, exc.cause, told)
            return None
        finally:
            self._health.engine_back(attempt.key)
        reached("after-started")
        return handle

    async def _start(self, attempt: Attempt) -> Handle:
        if attempt.assignment.exclusive and not attempt.launcher.capabilities.keeps_lease:
            raise LaunchFailed(
                Cause.REJECTED,
                f"the {attempt.launcher.name} launcher cannot end exclusive runs in time",
                "Deploy it without exclusive, or to another pool.",
            )
        if attempt.assignment.work.run_as is not None and not attempt.launcher.capabilities.runs_as:
            raise LaunchFailed(
                Cause.REJECTED,
                f"the {attempt.launcher.name} launcher cannot run anything as user {attempt.assignment.work.run_as} of "
                "the agent's machine",
                "Deploy it without run_as (a template may name a user of the image), or to a pool of type process.",
            )
        backoff = Backoff(ENGINE_LIMIT)
        awaited = False
        while True:
            try:
                prepared = await self._prepare(attempt)
                if awaited:
                    awaited = False
                    self.noted(*attempt.key, "")
                lease = await self._lease_to_start(attempt) if attempt.assignment.exclusive else None
                if attempt.launcher.capabilities.shared_handles:
                    await self._still_ours(attempt)
                attempt.in_start = True
                launch = attempt.launcher.start(
                    attempt.assignment,
                    self._folder(attempt),
                    self._agent,
                    lease,
                    self._holdings.visible(attempt),
                    prepared,
                )
                return await requested("after-launch-requested", launch)
            except LauncherUnavailable as exc:
                attempt.in_start = False
                detail = _shown(attempt, exc.detail)
                if isinstance(exc, LaunchRefused):
                    self._health.engine_back(attempt.key)
                    log.warning("a run cannot be started yet", reason=detail, **attempt.names)
                    if isinstance(exc, NotReady):
                        awaited = True
                        self.noted(*attempt.key, detail, exc.cause)
                else:
                    self._health.engine_away(attempt.key, detail)
                await asyncio.sleep(backoff.next())

    async def _start_hooks(
        self, attempt: Attempt, assignment: Assignment, folder: Path, told: Mapping[str, str]
    ) -> Handle:
        """Start what the attempt is in another folder; see ``crash_hooks``."""
        backoff = Backoff(ENGINE_LIMIT)
        while True:
            try:
                prepared = await self._prepare(attempt)
                prepared = replace(prepared, told={**prepared.told, **told})
                lease = await self._lease_to_start(attempt) if assignment.exclusive else None
                return await attempt.launcher.start(
                    assignment, folder, self._agent, lease, self._holdings.visible(attempt), prepared
                )
            except LauncherUnavailable as exc:
                log.debug("the hooks of a run that crashed wait", reason=exc.detail, **attempt.names)
                await asyncio.sleep(backoff.next())

    async def _prepare(self, attempt: Attempt) -> Prepared:
        """What it needs before its launch.

        Raises:
            LaunchFailed: it cannot be had.
            NotReady: it cannot be had now.
        """
        prepared = NOTHING
        for step in self.preparing:
            prepared = await step(attempt, prepared)
        return prepared

    @contextlib.contextmanager
    def untimed(self, attempt: Attempt) -> Iterator[None]:
        """What is done meanwhile takes nothing of its time to start: it has a limit of its own, and is told."""
        if attempt.timer is not None:
            attempt.timer.cancel()
            attempt.timer = None
        since = Stamp.now()
        try:
            yield
        finally:
            attempt.received = attempt.received.later(since.age())
            if attempt.launching and not attempt.given_up:
                self._watch_start(attempt)

    async def _still_ours(self, attempt: Attempt) -> None:
        """Wait until the server cannot have handed it over: another may have begun, ended and removed it by now,
        so that it would be begun a second time. (This agent was frozen, or the server is away.)"""
        waited = False
        while self.may_be_lost() or (waited and attempt.given_up):  # what is given up is interrupted
            waited = True
            if attempt.timer is not None:
                attempt.timer.cancel()
                attempt.timer = None
            await self._lease_came.wait()
        if waited:
            attempt.received = Stamp.now()  # a server that was away costs no run its time to start
            self._watch_start(attempt)

    def may_be_lost(self) -> bool:
        """Whether the server may count this agent as lost: it has not answered for so long."""
        return self._heard is not None and self._heard.age() >= self._lost_after

    def _demand_room(self, attempt: Attempt) -> None:
        """A lease that leaves no time beside the grace would be waited for in vain."""
        grace = attempt.assignment.work.grace
        if self._lease_for - LEASE_MARGIN <= grace:
            raise LaunchFailed(
                Cause.REJECTED,
                f"the server gives leases of {self._lease_for:g} seconds (server.lease_for): {LEASE_MARGIN:g} of "
                f"them are margin, and its grace of {grace:g} seconds leaves no time to run",
                "Make the server's lease_for longer, or the deployment's grace shorter.",
            )

    async def _lease_to_start(self, attempt: Attempt) -> Lease:
        """A lease that has not run out: when none is at hand, that of the next answer of the server."""
        while self._leased_until is None or self._lease_of(attempt).ask_at <= Stamp.now().ticks:
            if self._leased_until is not None:
                self._demand_room(attempt)
            self.on_lease_wanted()
            await self._lease_came.wait()
        return self._lease_of(attempt)

    def _running(self, attempt: Attempt, handle: Handle) -> None:
        if attempt.dropped:
            self._make_stop(attempt, 0.0)
            return
        if attempt.timer is not None:
            attempt.timer.cancel()
            attempt.timer = None
        if attempt.state in (AttemptState.CLAIMED, AttemptState.STARTING):
            attempt.started = handle.started or Stamp.now()
            if attempt.state is AttemptState.CLAIMED:  # another agent began it
                self._report(attempt, AttemptState.STARTING, attempt.started, {})
            self._tally.started(None if attempt.adopted else attempt.started.ticks - attempt.received.ticks)
            facts = {"pid": handle.pid} | self._told_once(attempt)
            attempt.note, attempt.note_cause = "", None
            self._report(attempt, AttemptState.RUNNING, attempt.started, facts)
            reached("after-running-journaled")
        elif handle.started is not None:
            attempt.started = handle.started
        log.info(
            "a run has started" if not attempt.adopted else "a run goes on", pid=handle.pid, **attempt.names
        )
        self._ship(attempt)
        if attempt.assignment.exclusive and self._leased_until is not None:
            self._spawn(attempt, self._hold(attempt, handle), "hold")
        if self._health.doubts and not attempt.adopted:
            asyncio.get_running_loop().call_later(PROVEN, self._proven, attempt)
        if attempt.stopped is not None:
            self._make_stop(attempt, attempt.assignment.work.grace)
        else:
            self._watch_time(attempt)

    def _proven(self, attempt: Attempt) -> None:
        """It has run for a while: its launch has succeeded."""
        if not attempt.ended and attempt.started is not None:
            self._health.launched(attempt.started)

    def _judge_launch(self, attempt: Attempt, judged: Verdict) -> None:
        """What the end of an attempt says about launches on this machine."""
        _, cause, message = judged
        if cause in LAUNCH_FAILURES:
            self._health.launch_failed(message or cause.value)
        elif self._health.doubts and attempt.started is not None:
            self._health.launched(attempt.started)

    async def _wait(self, attempt: Attempt, handle: Handle) -> Exit:
        return await self._until_available(attempt, attempt.launcher.wait, handle)

    async def _recover(self, attempt: Attempt, *, withdraw: bool = False) -> Handle | None:
        return await self._until_available(
            attempt,
            partial(attempt.launcher.recover, agent=self._agent, withdraw=withdraw),
            attempt.assignment,
            self._folder(attempt),
        )

    def _judge(self, attempt: Attempt, end: Exit) -> Verdict:
        stopped, asked = attempt.stopped, attempt.stopped_at
        if asked is not None and asked.boot == end.ended.boot and end.ended.ticks < asked.ticks:
            stopped = None  # it had ended by itself before it was asked to
        return verdict(end, stopped)

    def _never_started(self, attempt: Attempt) -> None:
        if attempt.dropped or attempt.stopped is None:
            self._over(attempt)
            return
        judged = never_started(attempt.stopped, attempt.note, attempt.note_cause)
        self._end(attempt, judged, Exit(Stamp.now()))

    def _end_error(self, attempt: Attempt, cause: Cause, message: str) -> None:
        """It ends without anything of it having run here."""
        end = Exit(Stamp.now(), error=cause, message=message)
        self._end(attempt, verdict(end, None), end)

    def _end(self, attempt: Attempt, judged: Verdict, end: Exit) -> None:
        state, cause, message = judged
        attempt.log_final = end.log_size
        if end.log_size == 0:
            attempt.log_done = True
        if not attempt.dropped:
            message, result = _told(attempt, message, end.result)
            result, remark = _fitting("result", result, RESULT_LIMIT)
            facts = {
                "cause": cause,
                "message": "; ".join(filter(None, (message, remark))) or None,
                "pid": attempt.handle.pid if attempt.handle else None,
                "exit_code": end.exit_code,
                "signal": end.signal,
                "max_rss_bytes": end.max_rss_bytes,
                "cpu_seconds": end.cpu_seconds,
                "result": result,
            }
            fields = {name: value for name, value in facts.items() if value is not None}
            if attempt.state in (AttemptState.CLAIMED, AttemptState.STARTING):
                fields = self._told_once(attempt) | fields  # it was not told with Running
            attempt.ended = True
            self._hold_end(attempt)
            self._tally.ended(state, cause)
            self._judge_launch(attempt, judged)
            self._report(attempt, state, end.ended, fields | {"log_size": end.log_size})
            reached("after-end-journaled")
            log.info("a run has ended", state=state.value, cause=cause and cause.value, **attempt.names)
        self._over(attempt)

    def fetched(self, attempt: Attempt, commit: str) -> None:
        """Its code is of that commit, in whatever life of the agent it is launched."""
        if attempt.commit != commit:
            attempt.commit = commit
            self._write(attempt, {"commit": commit})

    def _told_once(self, attempt: Attempt) -> dict[str, Any]:
        """What a report tells of its launch."""
        commit = {} if attempt.commit is None else {"commit": attempt.commit}
        return commit | self._manifest(attempt)

    def _manifest(self, attempt: Attempt) -> dict[str, Any]:
        """What its engine was asked for, as a report tells it: once."""
        try:
            asked = attempt.launcher.manifest(self._folder(attempt))
        except OSError as exc:
            asked = None
            log.warning("what an engine was asked for cannot be read", reason=str(exc), **attempt.names)
        shown = asked if attempt.mask is None else attempt.mask.document(asked)
        manifest, remark = _fitting("manifest", shown, MANIFEST_LIMIT)
        return {name: value for name, value in (("manifest", manifest), ("message", remark)) if value}

    def _over(self, attempt: Attempt) -> None:
        """Nothing of it runs any more, or it is not for this agent to see to."""
        if attempt.timer is not None:
            attempt.timer.cancel()
            attempt.timer = None
        attempt.ended = True
        self._holdings.stop_working(attempt)
        if attempt.let_go:
            return
        if attempt.dropped:
            self._part_from(attempt)
        else:
            self._ship(attempt)

    def _part_from(self, attempt: Attempt) -> None:
        """It is not ours any more, and nothing of it runs. What its flow completed still counts: whoever goes on from there
        is to know of it, as far as the server takes it at once."""
        attempt.tasks_owed = attempt.mask is not None and self._task_shipper.owes(attempt)
        if attempt.tasks_owed:
            self._task_shipper.finish(attempt)
        else:
            self._remove(attempt)

    def _remove(self, attempt: Attempt) -> None:
        self._task_shipper.forget(attempt)
        self._janitor.take(attempt)

    def _ship(self, attempt: Attempt) -> None:
        """Bring output and journal to the server, once it is known what is to be masked of them."""
        if attempt.mask is None and (attempt.tasks_owed or not attempt.log_done):
            if attempt.recalled is None:
                attempt.recalled = asyncio.Event()
                self._spawn(attempt, self._recall(attempt, attempt.recalled), "recall")
        elif attempt.ended:
            self._shipper.finish(attempt)
            self._task_shipper.finish(attempt)
        else:
            self._shipper.watch(attempt)
            self._task_shipper.watch(attempt)

    def _hold_end(self, attempt: Attempt) -> None:
        """Whoever goes on from its end finds all that its flow did: it is not told before that is with the server."""
        attempt.tasks_owed = self._task_shipper.owes(attempt)
        in_vain = attempt.mask is None and attempt.recalled is not None and attempt.recalled.is_set()
        attempt.end_held = attempt.tasks_owed and not (attempt.end_acked or in_vain)

    def _release_end(self, attempt: Attempt) -> None:
        if attempt.end_held:
            attempt.end_held = False
            self._reporter.add(attempt)

    def _journal_brought(self, attempt: Attempt) -> None:
        if attempt.dropped:
            self._remove(attempt)
            return
        self._release_end(attempt)
        self._settle(attempt)

    def _journal_stuck(self, attempt: Attempt) -> None:
        if not attempt.dropped:
            self._release_end(attempt)
        elif attempt.ended and not attempt.let_go:
            self._remove(attempt)

    async def _recall(self, attempt: Attempt, recalled: asyncio.Event) -> None:
        """Learn anew what is to be masked of it: it was found, and its secrets were in the memory of another life."""
        await self.confirmed.wait()
        backoff = Backoff(ENGINE_LIMIT)
        while attempt.mask is None and not attempt.dropped:
            try:
                await self.secrets.recall(attempt)
            except NotReady as exc:
                if exc.cause is None:
                    await asyncio.sleep(backoff.next())
                    continue
                log.error(
                    "output of a run is held back: it cannot be masked", reason=exc.told, **attempt.names
                )
                recalled.set()
                self._release_end(attempt)
                await asyncio.sleep(PARKED)
        recalled.set()
        if not attempt.dropped:
            self._ship(attempt)

    async def _recall_output(self, attempt: Attempt) -> None:
        """It ended in a former life: find the rest of its output, and the engine's remains."""
        self._holdings.stop_working(attempt)
        if attempt.tasks_owed:
            self._ship(attempt)  # its end waits for that, and needs no engine
        attempt.handle = await self._recover(attempt)
        if attempt.dropped:
            self._part_from(attempt)
            return
        if attempt.handle is None:
            attempt.log_done = True
            attempt.adopted = False
        self._ship(attempt)
        self._settle(attempt)

    # -- what the server says of it

    def _acked(self, attempt: Attempt) -> None:
        if not attempt.end_acked:
            return
        self._holdings.settle(attempt)
        if attempt.tasks_owed or not attempt.log_done:
            # The folder stays for its output; a next life need not tell its end again.
            self._write(attempt, {"acked": END_SEQ, "epoch": attempt.assignment.epoch})
        self._settle(attempt)

    def _stale(self, attempt: Attempt, ack: ReportAck) -> None:
        if ack.handed_over:
            self.let_go(attempt)
            return
        self.drop(attempt, ack.detail or "the server has it no longer under this epoch")

    def _settle(self, attempt: Attempt) -> None:
        """Its folder can go once its end, all its output and its journal are with the server."""
        if attempt.adopted and attempt.handle is None and attempt.task and not attempt.task.done():
            return  # what the engine keeps of it is still being found
        if attempt.end_acked and attempt.log_done and not (attempt.tasks_owed or attempt.dropped):
            attempt.dropped = True  # nothing will be said of it any more
            self._janitor.take(attempt)

    # -- stopping and watching the clock

    def _make_stop(self, attempt: Attempt, grace: float) -> None:
        if attempt.handle is not None:
            self._spawn(attempt, self._stop(attempt, attempt.handle, grace), "stop")
        elif attempt.launching:
            quick = not attempt.in_start or attempt.stopped is Stop.START_TIMEOUT
            asyncio.get_running_loop().call_later(0 if quick else LAUNCH_PATIENCE, self._interrupt, attempt)

    def _interrupt(self, attempt: Attempt) -> None:
        if attempt.launching and attempt.task is not None:
            attempt.task.cancel()

    async def _stop(self, attempt: Attempt, handle: Handle, grace: float) -> None:
        backoff = Backoff(ENGINE_LIMIT)
        while not attempt.ended:
            try:
                await attempt.launcher.stop(handle, grace)
                return
            except Exception as exc:
                log.warning("a run cannot be stopped yet", reason=str(exc), **attempt.names)
                await asyncio.sleep(backoff.next())

    def _watch_start(self, attempt: Attempt) -> None:
        self._watch(attempt, attempt.received, attempt.assignment.work.start_timeout, Stop.START_TIMEOUT)

    def _watch_time(self, attempt: Attempt) -> None:
        if attempt.assignment.work.timeout is not None and attempt.started is not None:
            self._watch(attempt, attempt.started, attempt.assignment.work.timeout, Stop.TIMEOUT)

    def _watch(self, attempt: Attempt, since: Stamp, limit: float, why: Stop) -> None:
        if attempt.timer is not None:
            attempt.timer.cancel()
        left = limit - since.age()
        if left <= 0:
            attempt.timer = None
            self.stop(attempt, why)
        else:
            attempt.timer = asyncio.get_running_loop().call_later(
                min(left, TIMER_STEP), self._watch, attempt, since, limit, why
            )

    # -- small things

    def _report(self, attempt: Attempt, state: AttemptState, at: Stamp, fields: dict[str, Any]) -> None:
        try:
            # What cannot be written down is owed and sent all the same; a next life would make it again,
            # under the same number.
            with contextlib.suppress(OSError), self._health.writing(**attempt.names):
                attempt.step(state, at, fields)
        finally:
            self._reporter.add(attempt)

    def _write(self, attempt: Attempt, line: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), self._health.writing(**attempt.names):
            attempt.journal.append(line)

    async def _until_available(self, attempt: Attempt, ask: Callable[..., Awaitable[T]], *args: Any) -> T:
        backoff = Backoff(ENGINE_LIMIT)
        try:
            while True:
                try:
                    return await ask(*args)
                except LauncherUnavailable as exc:
                    self._health.engine_away(attempt.key, exc.detail)
                    await asyncio.sleep(backoff.next())
        finally:
            self._health.engine_back(attempt.key)

    def _folder(self, attempt: Attempt) -> Any:
        return attempt.journal.folder

    def _spawn(self, attempt: Attempt, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        name = f"{what} {attempt.key[0]}.{attempt.key[1]}"
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks[task] = attempt
        task.add_done_callback(self._tasks.pop)
        return task


def _shown(attempt: Attempt, text: str) -> str:
    """Without its secrets, as far as any are known yet."""
    return text if attempt.mask is None else attempt.mask.text(text)


def _told(attempt: Attempt, message: str | None, result: Any) -> tuple[str | None, Any]:
    """What may be told of the message and the result that it left."""
    if attempt.mask is not None:
        return message and attempt.mask.text(message), attempt.mask.document(result)
    if attempt.handle is None:
        return message, result  # nothing of it has run here
    return "what it left is not told: the server has no key for its secrets, so they cannot be masked", None


def _fitting(what: str, value: Any, limit: int) -> tuple[Any, str | None]:
    """A document that is to be reported; or None, and why not."""
    if value is None:
        return None, None
    try:
        size = len(json.dumps(value).encode())
    except (TypeError, ValueError) as exc:
        return None, f"its {what} is not JSON: {exc}"
    if size > limit:
        return None, f"its {what} of {size} bytes is over the limit of {limit}"
    return value, None
