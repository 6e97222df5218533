"""The daemon: one main loop that keeps the agent and the server of one mind, and what runs beside it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shunter_agents import machine
from shunter_agents.admission import PolicyFile, admitted
from shunter_agents.attempt import Attempt, Key
from shunter_agents.attempt_secrets import Secrets
from shunter_agents.checkup import Checkup
from shunter_agents.credential import OwnCredential, chosen, stored_in
from shunter_agents.health import Health, Kind
from shunter_agents.heartbeat import Heartbeat
from shunter_agents.holdings import Holdings
from shunter_agents.janitor import Janitor
from shunter_agents.journal import Damaged, Journal, Record
from shunter_agents.killpoints import reached
from shunter_agents.link import Backoff, Link, Server, Trouble, judge, told, whole
from shunter_agents.log_shipper import LogShipper
from shunter_agents.options import Options, of_settings, own_pools_of
from shunter_agents.own_pools import served
from shunter_agents.policy import FILE
from shunter_agents.renewal import renew
from shunter_agents.reporter import Reporter
from shunter_agents.sources.code import Code
from shunter_agents.spool import Spool
from shunter_agents.state_folder import StateFolder, check_name, default_name
from shunter_agents.supervisor import Supervisor
from shunter_agents.tally import Tally
from shunter_agents.task_shipper import TaskShipper
from shunter_agents.verdict import Stop
from shunter_infrastructure.launcher import Launcher, LauncherUnavailable, Prepared
from shunter_infrastructure.stamp import Stamp, boot_id
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import (
    HOLD_LIMIT,
    REPORT_LIMIT,
    Assignment,
    Held,
    ReleaseRequest,
    SyncAnswer,
    SyncRequest,
)
from shunter_work_pools.contracts.configuration import DEFAULT, load
from shunter_work_pools.contracts.errors import BadRequest, InvalidInput, NotFound, ShunterError
from shunter_work_pools.contracts.home import home_from_env
from shunter_work_pools.contracts.plain_text import plain
from shunter_work_pools.contracts.pools import Pool
from shunter_work_pools.contracts.states import Cause
from shunter_work_pools.daemon_log import configure, get_logger
from shunter_work_pools.service_manager import PATIENCE, Condition, ServiceManager

if TYPE_CHECKING:
    from shunter_agents.metrics import MetricsPort, Sources

log = get_logger()
T = TypeVar("T")

#: Seconds to the next sync after an answer that came at once and said nothing new.
NOTHING_NEW = 0.1
#: Seconds that the queue must have had nothing for an agent that ends when it is idle.
IDLE = 1.0
#: When the garbage collector looks at young, middle and old objects. Thousands of runs are old ones that stay: each look
#: at them, in vain, stops the agent for tenths of a second.
COLLECT = (20_000, 20, 20)
#: Seconds in which an agent that was told not to wait longer still delivers what it owes.
LAST_WORDS = 30.0
#: Times that the server may refuse to hear which runs are left to others, until nothing more is said of it.
SAID_IN_VAIN = 3
#: Least seconds between two syncs that are sent for what launches wait for.
NOTES_EVERY = 1.0
#: Seconds that the first sync waits for where the work of a pool is.
REACH_PATIENCE = 5.0
#: Attempts that ended here and are remembered, so that nothing starts them again.
REMEMBERED = 10_000
#: Seconds without any answer after which a sync is given up: half-open connections never answer.
SYNC_LIMIT = HOLD_LIMIT + 20.0

#: Seconds until an answer that is not held on purpose is given up.
ANSWER_LIMIT = 15.0

OK, BROKEN, REFUSED = 0, 1, 2

Launchers = Callable[[str], Launcher]


class Fatal(Exception):
    """The agent cannot begin; the text is for the person who started it."""


class Agent:
    """One life of an agent.

    Args:
        server: the client.
        launchers: makes the launcher of a pool type.
        folder: its state folder, open.
        options: what it was started with.
        stand_in: sends a sync while the agent is held up, see ``heartbeat``; None: nobody does.
        manager: is told how it is.
        found_tags: what it found out about its machine.
        own: its credential, to be renewed; None: it shows a token that is not its own to renew.

    Attributes:
        capacity: what it has that runs may need.
    """

    def __init__(
        self,
        server: Server,
        launchers: Launchers,
        folder: StateFolder,
        options: Options,
        stand_in: Callable[[SyncRequest], object] | None = None,
        manager: ServiceManager | None = None,
        found_tags: list[str] | None = None,
        own: OwnCredential | None = None,
    ) -> None:
        name = options.name
        self._own = own
        self.capacity = machine.capacity() | dict(options.capacity)
        self._server = server
        self._manager = manager or ServiceManager()
        self._turns = 0  # of the main loop, and when the last one began
        self._turned_at = time.monotonic()
        self._make_launcher = launchers
        self._folder = folder
        self._name = name
        self._options = options
        self._about: dict[str, Any] = {
            "protocol": PROTOCOL,
            "session": folder.session,
            "identity": folder.identity,
            "pools": options.pools,
            "queues": options.queues,
            "tags": options.tags,
            "found_tags": found_tags or [],
            "capacity": self.capacity,
            "limit": options.limit,
            "reaches": {},
            "host": socket.gethostname()[:255],
            "version": _version(),
        }
        self._pools = options.pools
        self._types: dict[str, str] = {}
        self._knows_pools = False  # all of them are there, and their types are known
        self._launchers: dict[str, Launcher] = {}
        self._link = Link()
        self._health = Health(folder.path)
        self._health.on_change = self._speak_up
        self._checkup = Checkup(self._health, folder, options)
        self._heartbeat = None if stand_in is None else Heartbeat(stand_in)
        self._tally = Tally()
        self._holdings = Holdings(folder, options.limit, self.capacity)
        self._holdings.on_left = self._speak_up
        self._reporter = Reporter(server, name, folder.session, self._link, self._holdings)
        self._shipper = LogShipper(server, name, self._link)
        self._task_shipper = TaskShipper(server, name, self._link)
        self._spool = Spool(self._holdings, self._health, options.spool_limit, options.min_disk)
        self._shipper.on_output = self._spool.wake
        self._janitor = Janitor(self._holdings)
        self._janitor.on_removed = self._removed
        self._supervisor = Supervisor(
            name,
            self._holdings,
            self._health,
            self._reporter,
            self._shipper,
            self._task_shipper,
            self._janitor,
            self._tally,
            Secrets(server, name, folder.session, options.own_secrets, options.authorities),
        )
        self._code = self._make_code()
        self._supervisor.preparing = (
            self._admit,
            *self._supervisor.preparing,
            self._code.fetch,
            self._code.build,
        )
        self._supervisor.on_lease_wanted = self._speak_up
        self._supervisor.on_noted = self._tell_notes
        self._notes_at = 0.0  # when notes were told last, or will be (loop time)
        self._gone: dict[Key, int] = {}
        self._asking: asyncio.Future[Any] | None = None
        self._draining = False
        self._cancelling = False
        self._told = False  # to stop, by a signal
        self._has_grace = False  # and how long its runs have is counted
        self._leaving = False  # that is over, and what runs is left to other agents, or to the next life
        self._refusals = 0  # of what it says of that
        self._patience: float | None = (
            None  # until when (loop time) what is owed is delivered; None: for ever
        )
        self._met = False  # the server has answered a sync of this life
        self._drained_at = 0.0
        self._unheard = ""  # why the last sync, or what comes before the first, had no answer; empty: it had
        self._denied = ""  # why the server refuses it; empty: it does not
        self._answered_at = time.monotonic()  # when one had; until then, the beginning
        self._maybe_granted = False  # the server may have granted something that this life does not know of
        self._dead: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _make_code(self) -> Code:
        options = self._options
        cache = options.cache or self._folder.path.parent.parent / "cache"
        code = Code(cache, os.environ, options.cache_keep, options.cache_limit)
        code.on_commit = self._supervisor.fetched
        code.on_note = lambda attempt, note: self._supervisor.noted(*attempt.key, note)
        code.untimed = self._supervisor.untimed
        return code

    def measured(self) -> Sources:
        """What its metrics tell of."""
        from shunter_agents.metrics import Sources

        return Sources(
            holdings=self._holdings,
            tally=self._tally,
            output_waiting=self._spool.waiting,
            sync_age=lambda: time.monotonic() - self._answered_at,
            well=lambda: time.monotonic() - self._turned_at < PATIENCE,
            troubles=lambda: self._health.troubles,
            unready=self._unready,
        )

    def _unready(self) -> str:
        """Why it would take no run now, for people; empty: it would."""
        why = f": {self._unheard}" if self._unheard else ""
        if not self._met:
            return f"its server has not accepted it yet{why}"
        if self._supervisor.may_be_lost():
            return f"its server does not answer{why}"
        if self._draining:
            return "it drains: it takes nothing new, and ends"
        return "\n".join(self._health.troubles)

    async def run(self) -> int:
        """Live; the exit code.

        Raises:
            Fatal: it cannot begin.
        """
        self._adopt()
        self._checkup.first_look()
        self._spawn_background()
        if self._options.once and self._holdings.attempts:
            self.drain()  # the one run is here already
        try:
            return await self._main_loop()
        finally:
            if self._heartbeat is not None:
                self._heartbeat.stop()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._supervisor.close()
            for launcher in self._launchers.values():
                await launcher.close()

    async def _admit(self, attempt: Attempt, prepared: Prepared) -> Prepared:
        """Whether the agent's own policy allows it; asked anew before each try, and before anything is fetched."""
        file = self._options.policy
        if file is None:
            return prepared
        file.refresh()
        self._checkup.judge_policy()
        return replace(prepared, rules=admitted(file, attempt.assignment, attempt.launcher.name))

    def drain(self) -> None:
        """Take nothing new, end when nothing is owed."""
        if self._draining:
            return
        log.info(
            "draining: nothing new is taken",
            working=len(self._holdings.working),
            grace=self._options.drain_grace,
        )
        self._draining = True
        self._drained_at = asyncio.get_running_loop().time()
        if not self._options.once:  # that is there for the one run which it has taken
            self._give_grace()
        self._manager.tell(self._condition())
        self._speak_up()

    def _give_grace(self) -> None:
        if self._options.drain_grace is not None and not self._has_grace:
            self._has_grace = True
            asyncio.get_running_loop().call_later(self._options.drain_grace, self._grace_over)

    def told_to_stop(self) -> None:
        """Drain; told a second time: cancel all that runs."""
        if not self._told:
            self._told = True
            self.drain()
            self._give_grace()
        elif not self._cancelling:
            log.warning("cancelling all runs", working=len(self._holdings.working))
            self._cancelling = True
            self._stop_all(Stop.CANCEL)

    def _grace_over(self) -> None:
        if self._cancelling:
            return
        stop = self._options.drain_end == "stop"
        log.warning(
            "the grace is over: "
            + ("stopping all runs" if stop else "runs are left to others, or the next start"),
            working=len(self._holdings.working),
        )
        if stop:
            self._stop_all(Stop.EVICT)
        else:
            self._leaving = True
            self._patience = asyncio.get_running_loop().time() + LAST_WORDS
            self._speak_up()

    def _stop_all(self, why: Stop) -> None:
        working = list(self._holdings.working.values())
        longest = max((attempt.assignment.work.grace for attempt in working), default=0.0)
        self._patience = asyncio.get_running_loop().time() + longest + LAST_WORDS
        for attempt in working:
            self._supervisor.stop(attempt, why)
        self._speak_up()

    # Exit conditions of the main loop:
    #   1. the server refuses this agent at its first contact (token, protocol, name, pool): Fatal;
    #   2. a background task has died: BROKEN, with its error in the log; runs go on without us;
    #   3. draining, and nothing is owned or owed: OK;
    #   4. all runs were told to stop, none runs any more, and the server is away, or LAST_WORDS were not
    #      enough for what is owed: OK, it is on disk;
    #   5. draining, nothing is held, and a server that is away did not come back within LAST_WORDS: OK;
    #   6. the grace of draining is over, and runs are left to the next life; what other agents reach as well is
    #      left to these, and LAST_WORDS are there to say so and to deliver what has ended: OK.
    async def _main_loop(self) -> int:
        backoff = Backoff()
        while True:
            self._turn()
            if self._dead is not None:
                return BROKEN
            if self._leaving:
                await self._leave_to_others()
            if self._draining and self._finished():
                if not self._health.has(Kind.DISK):
                    await asyncio.to_thread(self._folder.empty_trash)
                log.info("drained", running=len(self._holdings.working), owed=len(self._holdings.owed))
                return OK
            try:
                if not await self._meet():
                    continue
                asked = Stamp.now()
                answer = await self._sync()
            except Fatal:
                raise
            except Exception as exc:
                self._unheard = told(exc)
                self._denied = told(exc) if judge(exc) is Trouble.DENIED else ""
                if not self._met and _is_refusal(exc):
                    raise Fatal(told(exc)) from exc
                if isinstance(exc, NotFound) and self._options.own_pools is not None:
                    self._knows_pools = False  # one is gone, or the server is a new one: it is made again
                if judge(exc) in (Trouble.BAD, Trouble.UNKNOWN):
                    log.error("the server refuses to sync; trying again", reason=told(exc))
                    await self._pause(backoff.next() + NOTHING_NEW)
                else:
                    await self._ask(self._link.trouble(exc, backoff, "to sync"))
                continue
            if answer is None:
                continue
            self._unheard = self._denied = ""
            self._answered_at = time.monotonic()
            backoff.reset()
            self._link.up()
            self._supervisor.leased(asked, answer.lease_for, answer.lost_after)
            news = await self._apply(answer)
            if self._is_idle(news, asked):
                log.info("idle: there is nothing to do")
                self.drain()
            elif not news and asked.age() < NOTHING_NEW:
                await self._pause(NOTHING_NEW)

    def _spawn_background(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.start()
        if self._options.max_lifetime is not None:
            asyncio.get_running_loop().call_later(self._options.max_lifetime, self._lived_enough)
        parts = [
            ("reporter", self._reporter.run()),
            ("log shipper", self._shipper.run()),
            ("task shipper", self._task_shipper.run()),
            ("spool", self._spool.run()),
            ("janitor", self._janitor.run()),
            ("service manager", self._manager.keep_told(self._condition)),
            ("checkup", self._checkup.watch_machine()),
            ("code collector", self._code.collect()),
        ]
        if self._own is not None:
            parts.append(("credential", renew(self._server, self._own, self._link)))
        if self._options.health_check is not None:
            parts.append(("health check", self._checkup.watch_check()))
        if self._options.metrics_port is not None:
            parts.append(("loop delay", self._tally.watch_loop()))
        for name, work in parts:
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(self._background_ended)
            self._tasks.append(task)

    def _lived_enough(self) -> None:
        log.info("the agent has lived as long as it should", seconds=self._options.max_lifetime)
        self.drain()

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        self._dead = task.exception() or RuntimeError("it returned")
        log.critical(
            "a part of the agent has died; the agent stops, its runs go on",
            part=task.get_name(),
            exc_info=self._dead,
        )
        self._speak_up()

    def _turn(self) -> None:
        """The main loop comes around. By the second time the server has not refused this agent: it has answered,
        or it is away, which an agent bears."""
        self._turns += 1
        self._turned_at = time.monotonic()
        if self._turns == 2:
            self._manager.tell(self._condition())

    def _condition(self) -> Condition:
        runs = len(self._holdings.working)
        doing = "draining" if self._draining else f"serving {', '.join(self._pools)}"
        away = "the server is away; " if self._link.away else ""
        if self._denied:
            away = f"the server refuses it: {self._denied.splitlines()[0]} "
        return Condition(
            f"{away}{doing}: {runs} of {self._about['limit']} runs",
            ready=self._turns > 1,
            stopping=self._draining,
            moved_at=self._turned_at,
        )

    # -- beginning

    def _adopt(self) -> None:
        """Take up every attempt that a former life left behind."""
        for path in sorted(self._folder.attempts.iterdir()):
            journal = Journal(path)
            try:
                record, lines = journal.read()
                if record is None:
                    self._folder.discard(path)  # never owned: nothing was done with it
                    continue
                attempt = Attempt(record, journal, self._launcher(record.launcher), lines)
            except Damaged as exc:
                run, _, number = path.name.partition(".")
                log.error(
                    "the journal of a run cannot be read; it is set aside",
                    folder=str(path),
                    reason=str(exc),
                    run=run,
                    attempt=int(number) if number.isdecimal() else number,
                )
                self._folder.set_aside(path)
                continue
            self._holdings.add(attempt)
            self._supervisor.begin(attempt)
        if self._holdings.attempts:
            log.info("took up runs of a former life", runs=len(self._holdings.attempts))

    async def _meet(self) -> bool:
        """Learn the types of the pools, once (what it makes itself, whenever it is missing); False if that was no use yet."""
        if self._knows_pools:
            return True
        for name in self._pools:
            pool = await self._ask(self._pool(name), SYNC_LIMIT)
            if pool is None:
                return False
            self._types[name] = pool.type
            unknown = sorted(set(self._options.queues) - {queue.name for queue in pool.queues})
            if unknown:
                log.warning(
                    "a pool has no such queue; it is served once it is made", pool=name, queues=unknown
                )
            launcher = self._launcher(pool.type)
            if launcher.capabilities.shared_handles:
                await self._find_reach(pool, launcher)
            try:
                await launcher.check()
            except LauncherUnavailable as exc:
                if not self._holdings.attempts:
                    raise Fatal(told(exc)) from exc
                log.error("a launcher cannot be used now", pool=name, reason=told(exc))
        if not any(self._launcher(kind).capabilities.own_machine for kind in self._types.values()):
            self._forget_machine()
        self._knows_pools = True
        return True

    async def _pool(self, name: str) -> Pool:
        """A pool that is served, made if that was asked for."""
        try:
            return await served(self._server, name, self._options.own_pools)
        except InvalidInput as exc:
            raise Fatal(told(exc)) from exc

    def _forget_machine(self) -> None:
        """Nothing runs on this machine: what it has and what can be told of it says nothing about runs."""
        self.capacity = self._holdings.capacity = dict(self._options.capacity)
        self._about |= {"capacity": self.capacity, "found_tags": []}

    def _launcher(self, kind: str) -> Launcher:
        if kind not in self._launchers:
            try:
                launcher = self._make_launcher(kind)
            except ShunterError as exc:
                raise Fatal(told(exc)) from exc
            launcher.attempts = self._folder.attempts
            launcher.identity = self._folder.identity
            launcher.on_note = self._supervisor.noted
            self._launchers[kind] = launcher
        return self._launchers[kind]

    async def _find_reach(self, pool: Pool, launcher: Launcher) -> None:
        """Find out where the work of a pool is: an engine that is away is asked on while syncs go on without."""

        async def ask() -> None:
            backoff = Backoff()
            while True:
                try:
                    reach = await launcher.reach(pool.template)
                    break
                except LauncherUnavailable as exc:
                    log.warning("where its runs are cannot be known yet", pool=pool.name, reason=told(exc))
                    await asyncio.sleep(backoff.next())
            if reach:
                self._about["reaches"] = {**self._about["reaches"], pool.name: reach}
                self._speak_up()

        task = asyncio.create_task(ask(), name=f"reach of {pool.name}")
        task.add_done_callback(self._reach_found)
        self._tasks.append(task)
        await asyncio.wait({task}, timeout=REACH_PATIENCE)

    def _reach_found(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        if not task.cancelled() and task.exception() is not None:
            self._background_ended(task)

    # -- sync

    async def _sync(self) -> SyncAnswer | None:
        """One sync; None if it was interrupted, because there is something new to say."""
        room = self._room()
        if not self._met or self._leaving or (self._draining and not self._holdings.owed):
            hold_for = 0.0  # what follows from the answer should not wait
        else:
            hold_for = min(
                HOLD_LIMIT,
                self._health.next_change() or HOLD_LIMIT,
                self._supervisor.answer_within(),
                IDLE if self._options.until_idle else HOLD_LIMIT,
            )
        request = SyncRequest.model_construct(
            **self._about,
            taking=room != 0,
            draining=self._draining,
            troubles=self._health.troubles,
            free=self._holdings.free() if room is None else min(room, self._holdings.free()),
            free_capacity=self._holdings.free_capacity(),
            holds=self._holdings.held(),
            hold_for=hold_for,
        )
        if self._heartbeat is not None:
            self._heartbeat.last = request
        self._maybe_granted |= request.taking
        answer = await self._ask(self._server.sync(self._name, request), SYNC_LIMIT)
        if answer is not None:
            self._maybe_granted = request.taking or bool(answer.assignments)
        return answer

    def _room(self) -> int | None:
        """How many runs it takes at this moment; None: as many as there is room for."""
        if self._draining:
            return 0
        allowed = self._health.allows(self._holdings.launching)
        return 1 if self._options.once and allowed is None else allowed

    def _is_idle(self, news: bool, asked: Stamp) -> bool:
        """There was nothing for an agent that has nothing, and ends then."""
        return (
            self._options.until_idle
            and not news
            and not self._draining
            and not self._holdings.attempts
            and not self._health.troubles
            and asked.age() >= IDLE * 0.9  # a server that stops answers at once
        )

    async def _ask(self, work: Coroutine[Any, Any, T], limit: float | None = None) -> T | None:
        """The result of something that :meth:`_speak_up` may interrupt; None then."""
        task = self._asking = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=limit)
        finally:
            self._asking = None
            if (
                not task.done()
            ):  # time is up, or the agent ends: whatever still comes of it, nobody wants to know
                task.add_done_callback(_disregard)
                task.cancel()
        if not task.done():
            raise TimeoutError(f"no answer within {limit:g} seconds")
        return None if task.cancelled() else task.result()

    def _speak_up(self) -> None:
        """End a held sync, or a pause: there is something new to say."""
        if self._asking is not None:
            self._asking.cancel()

    def _tell_notes(self) -> None:
        """Say what launches wait for: at once, but an engine that goes to and fro is not followed each time."""
        loop = asyncio.get_running_loop()
        if self._notes_at > loop.time():
            return  # it will be said then
        self._notes_at = max(loop.time(), self._notes_at + NOTES_EVERY)
        loop.call_at(self._notes_at, self._speak_up)

    async def _pause(self, seconds: float) -> None:
        await self._ask(asyncio.sleep(seconds))

    # -- the answer

    async def _apply(self, answer: SyncAnswer) -> bool:
        """Make it so; whether it said anything new."""
        reached("after-sync-answer")
        if not self._met:
            self._met = True
            self._reporter.met.set()
        if answer.drain and not self._draining:
            self.drain()
        refused: list[Assignment] = []
        news = False
        for assignment in answer.assignments:
            news |= self._take(assignment, refused)
        for held in answer.cancel:
            attempt = self._meant(held)
            if attempt is not None and attempt.stopped is None and not attempt.ended:
                self._supervisor.stop(attempt, Stop.CANCEL)
                news = True
        for held in answer.forget:
            attempt = self._meant(held)
            if attempt is not None and not attempt.ended:  # of an end the report's answer decides
                self._supervisor.drop(attempt, "the server says so")
                news = True
        for held in answer.let_go:
            attempt = self._meant(held)
            if attempt is not None:
                self._supervisor.let_go(attempt)
                news = True
        self._supervisor.confirmed.set()
        await self._supervisor.hold_all()
        if refused:
            await self._give_back(refused)
        return news

    def _meant(self, held: Held) -> Attempt | None:
        attempt = self._holdings.owed.get((held.run, held.attempt))
        return attempt if attempt is not None and attempt.assignment.epoch <= held.epoch else None

    def _take(self, granted: Assignment, refused: list[Assignment]) -> bool:
        """Own an assignment; True if it is new."""
        key, names = (granted.run, granted.attempt), _names(granted)
        known = self._holdings.attempts.get(key)
        if known is not None:
            return self._take_again(known, granted)
        if self._gone.get(key, 0) >= granted.epoch:
            log.error("the server grants an attempt anew that ended here; it is not started", **names)
            return False
        kind = self._types.get(granted.pool)
        if kind is None:
            log.error("an assignment of a pool that is not served here", pool=granted.pool, **names)
            refused.append(granted)
            return False
        unknowable = self._unknowable(granted, kind)
        # To give back says that it was not begun.
        must = unknowable is not None or granted.handed_over is not None
        if self._room() == 0 and not must:
            refused.append(granted)
            return False
        if self._holdings.is_full() and not must:
            log.warning("a run is given back: as many as may run here already", **names)
            refused.append(granted)
            return False
        devices = self._holdings.allot(granted.need)
        if devices is None and not must:
            log.warning(
                "a run that needs more than is free is given back",
                need=granted.need,
                capacity=self.capacity,
                **names,
            )
            refused.append(granted)
            return False
        record = Record(granted, kind, Stamp.now(), {} if devices is None or unknowable else devices)
        journal = Journal(self._folder.attempts / f"{granted.run}.{granted.attempt}")
        try:
            with self._health.writing(**names):
                self._folder.make(journal.folder)
                reached("after-folder-made")
                journal.write_record(record)
        except OSError:
            if unknowable is None:
                if granted.handed_over is None:
                    refused.append(granted)
                self._discard_draft(journal, names)
                return False
        reached("after-assignment-written")
        attempt = Attempt(record, journal, self._launcher(kind))
        self._holdings.add(attempt)
        if unknowable is not None:
            self._supervisor.declare_lost(attempt, *unknowable)
            return True
        self._supervisor.begin(attempt)
        if self._options.once:
            self.drain()
        return True

    def _unknowable(self, granted: Assignment, kind: str) -> tuple[Cause, str] | None:
        """Why it cannot be known whether an assignment of which nothing is written down was begun.

        Granted to this session: it is new. Granted to a former session of this folder within this boot:
        its answer was lost, for an assignment is written down before anything else is done with it.
        But what was written in a former boot may have gone with it (nothing is fsynced per run); and
        a session that this folder does not know belongs to another one that had the agent's name
        (removed, restored from a copy, on another machine): what that one began is not known here. Nor is
        what an attempt did whose journal was set aside.
        What an engine runs that others reach as well is found there, whatever is written down here.
        Nothing is guessed: such an attempt ends as Crashed, and a retry policy decides.
        """
        if granted.session == self._folder.session or self._launcher(kind).capabilities.shared_handles:
            return None
        boot = self._folder.sessions.get(granted.session)
        if boot is None:
            return Cause.AGENT_LOST, (
                "it was granted to an earlier agent of this name, whose state folder is not here; "
                "whether it began cannot be known"
            )
        if boot != boot_id():
            return Cause.NODE_LOST, (
                "the machine was restarted, or is another one now; whether it began cannot be known"
            )
        if self._folder.was_set_aside(f"{granted.run}.{granted.attempt}"):
            return Cause.AGENT_LOST, (
                "what the agent had written down about it cannot be read (it is kept in the folder damaged); "
                "whether it began, and whether it still runs, cannot be known"
            )
        return None

    def _take_again(self, known: Attempt, granted: Assignment) -> bool:
        """An assignment of something that is here already."""
        if granted.epoch <= known.assignment.epoch:
            return False
        if granted.handed_over is not None and not known.dropped:
            self._supervisor.let_go(
                known
            )  # another agent had it meanwhile: it is found anew, as that one's is
        if known.dropped:
            news = known.successor is None or known.successor.epoch < granted.epoch
            known.successor = granted
            self._holdings.owed[known.key] = known
            return news
        try:
            with self._health.writing(**known.names):
                known.grant_again(Record(granted, known.kind, known.received, known.devices))
        except OSError:
            return False
        log.info("a run is held under a new epoch", epoch=granted.epoch, **known.names)
        self._holdings.owed[known.key] = known
        self._reporter.add(known)
        return True

    def _removed(self, attempt: Attempt) -> None:
        """Its folder is gone."""
        self._gone[attempt.key] = attempt.assignment.epoch
        if len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]
        if attempt.successor is not None:
            refused: list[Assignment] = []
            self._take(attempt.successor, refused)  # what is refused here comes again by the next sync
        if self._draining:
            self._speak_up()

    def _discard_draft(self, journal: Journal, names: dict[str, Any]) -> None:
        try:
            self._janitor.throw_away(self._folder.discard(journal.folder))
        except OSError as exc:
            log.warning(
                "a folder that was not used stays behind",
                folder=str(journal.folder),
                reason=str(exc),
                **names,
            )

    async def _give_back(self, refused: list[Assignment]) -> None:
        """Let others have what was not begun here. If that fails, the next sync brings it again."""
        attempts = [Held(run=one.run, attempt=one.attempt, epoch=one.epoch) for one in refused]
        request = ReleaseRequest(session=self._folder.session, attempts=attempts)
        try:
            await whole(self._server.release(self._name, request))
            for one in refused:
                log.info("gave a run back that was not begun", **_names(one))
        except Exception as exc:
            for one in refused:
                log.warning("a run could not be given back yet", reason=told(exc), **_names(one))
            await self._pause(NOTHING_NEW)

    async def _leave_to_others(self) -> None:
        """Follow no more what other agents reach as well, then tell the server; the main loop comes again until it has
        heard. A server that does not know of that (of an older version) finds out by itself that this agent is gone."""
        left = [attempt for attempt in self._holdings.owed.values() if attempt.left]
        left += [attempt for attempt in self._holdings.working.values() if self._is_shared(attempt)]
        if not left or self._refusals > SAID_IN_VAIN:
            return
        assert self._patience is not None
        try:
            async with asyncio.timeout_at(self._patience):
                await asyncio.gather(*(self._supervisor.leave(attempt) for attempt in left))
                reached("after-work-left")
                for at in range(0, len(left), REPORT_LIMIT):
                    part = left[at : at + REPORT_LIMIT]
                    attempts = [one.held() for one in part]
                    request = ReleaseRequest(session=self._folder.session, attempts=attempts)
                    await self._server.leave(self._name, request)
                    reached("after-leave-answered")
                    for one in part:
                        self._holdings.settle(one)
        except Exception as exc:
            self._refusals += judge(exc) is not Trouble.AWAY
            log.warning("the server could not be told yet which runs are left to others", reason=told(exc))

    @staticmethod
    def _is_shared(attempt: Attempt) -> bool:
        return attempt.launcher.capabilities.shared_handles and not attempt.dropped

    def _has_left(self) -> bool:
        """What is to be left to others is, and what of it had ended is delivered and cleared away."""
        assert self._patience is not None
        if asyncio.get_running_loop().time() > self._patience:
            return True
        if not any(launcher.capabilities.shared_handles for launcher in self._launchers.values()):
            return True
        in_vain = self._refusals > SAID_IN_VAIN
        return not self._maybe_granted and all(
            (attempt.left and (in_vain or attempt.key not in self._holdings.owed))
            or not attempt.launcher.capabilities.shared_handles
            for attempt in self._holdings.attempts.values()
        )

    def _finished(self) -> bool:
        """Draining has come to its end."""
        if self._leaving:
            return self._has_left()
        if self._holdings.working:
            return False
        now, unheard = asyncio.get_running_loop().time(), bool(self._unheard) or self._link.away
        if self._patience is not None and (unheard or now > self._patience):
            return True
        # While the disk cannot be written, the folders of what is settled stay: that keeps nobody.
        stuck = self._health.has(Kind.DISK)
        if any(not (stuck and attempt.dropped) for attempt in self._holdings.attempts.values()):
            return False
        return not self._maybe_granted or (unheard and now > self._drained_at + LAST_WORDS)


def _names(granted: Assignment) -> dict[str, Any]:
    """What a log line about it carries."""
    return {"run": str(granted.run), "attempt": granted.attempt}


def _disregard(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _is_refusal(exc: Exception) -> bool:
    """Whether an error at the first contact will not pass by itself."""
    return judge(exc) is Trouble.DENIED or isinstance(exc, NotFound | BadRequest)


def _version() -> str:
    try:
        return version("shunter")
    except PackageNotFoundError:
        return ""


def run_agent(
    pools: list[str],
    *,
    settings: Mapping[str, object],
    queues: list[str],
    tags: list[str],
    name: str | None,
    once: bool = False,
    until_idle: bool = False,
    max_lifetime: float | None = None,
    take_over: bool = False,
    create_pool: str | None = None,
    template_file: str | None = None,
    match: list[str] | None = None,
) -> int:
    """Run an agent until it is drained; blocks.

    Args:
        pools: names of the pools it serves, in order of preference; none: those that it joined for.
        settings: name of a setting -> what was given for it; None: not given.
        queues: only these of their queues; empty: all.
        tags: what runs may demand of it.
        name: default: that of the one agent of this home that joined, or HOST-POOL.
        once, until_idle, max_lifetime: when it drains by itself, see ``Options``.
        take_over: its state folder may be that of another machine, which is gone for good.
        create_pool, template_file, match: what becomes of its pools, see ``OwnPools``.

    Returns:
        0 when drained; 1 if a part of it died; 2 if it could not begin (the reason is on stderr).
    """
    manager = ServiceManager.of(os.environ)  # before anything is started that would inherit it
    try:
        values = load(settings)
        configure(values)
        agents = home_from_env().agents
        stored = chosen(agents, name and check_name(name), pools)
        pools = pools or (stored.pools if stored is not None else [])
        name = check_name(name or (stored.agent if stored is not None else default_name(pools[0])))
        named = values["agent.policy"]
        policy = PolicyFile(Path(named) if named else agents / name / FILE, must=named is not None)
        options = Options(
            name=name,
            pools=pools,
            queues=queues,
            tags=tags,
            once=once,
            until_idle=until_idle,
            max_lifetime=max_lifetime,
            own_pools=None if create_pool is None else own_pools_of(create_pool, template_file, match),
            own_secrets=policy.secrets,
            authorities=Path(values["tls_ca"]) if values["tls_ca"] else None,
            **of_settings(values) | {"policy": policy, "cache": _cache(values)},
        )
        machine.check_devices(options.capacity, os.environ)
        folder = StateFolder(agents, name, take_over=take_over)
        stored = stored_in(folder.path)  # again, for nobody else changes it from now on
        own = None if stored is None else OwnCredential(folder.path, stored)
        if stored is not None and values.origin("api_url") != DEFAULT and values["api_url"] != stored.url:
            log.warning(
                "api_url is not heeded: the credential is for the server it came from", url=stored.url
            )
    except ShunterError as exc:
        return _complain(told(exc))
    try:
        with _metrics_port(options) as port:
            return asyncio.run(_live(folder, options, manager, port, own))
    except Fatal as exc:
        return _complain(str(exc))
    except ShunterError as exc:
        return _complain(told(exc))
    finally:
        folder.close()


def _cache(values: Mapping[str, Any]) -> Path:
    """The folder of what is fetched and built for runs."""
    given = values["agent.cache"]
    return home_from_env().cache if given is None else Path(given).expanduser().absolute()


@contextlib.contextmanager
def _metrics_port(options: Options) -> Iterator[MetricsPort | None]:
    if options.metrics_port is None:
        yield None
        return
    from shunter_agents.metrics import MetricsPort

    try:
        port = MetricsPort(options.metrics_host, options.metrics_port)
    except OSError as exc:
        raise Fatal(
            f"its metrics cannot be served at {options.metrics_host}:{options.metrics_port}: {exc.strerror or exc}. "
            "Choose another port with --metrics-port (agent.metrics_port), or another address with --metrics-host."
        ) from exc
    with contextlib.closing(port):
        yield port


async def _found_tags(options: Options) -> list[str]:
    found = machine.found_tags(machine.capacity()) if options.find_tags else []
    if options.cloud_tags:
        from shunter_agents.cloud import ADDRESS, cloud_tags

        found += await cloud_tags(os.environ.get("SHUNTER_TEST_METADATA", ADDRESS))
    return machine.beside(options.tags, found)


async def _live(
    folder: StateFolder,
    options: Options,
    manager: ServiceManager,
    port: MetricsPort | None = None,
    own: OwnCredential | None = None,
) -> int:
    from shunter_infrastructure.registry import launcher_for
    from shunter_work_pools.client import AsyncClient, Client

    url = None if own is None else own.stored.url
    async with AsyncClient(url, own, answer_timeout=ANSWER_LIMIT) as client:
        # Made now: when it is needed, the disk with the settings and the token may hang.
        other = Client(url, own, answer_timeout=ANSWER_LIMIT)

        def stand_in(request: SyncRequest) -> None:
            other.sync(options.name, request)

        tags = await _found_tags(options)
        agent = Agent(client, launcher_for, folder, options, stand_in, manager, tags, own)
        if port is not None:
            port.serve(agent.measured())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.told_to_stop)
        # The kernel's word for a lease on a file (``recycle`` of the process launcher) that another thread breaks.
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        log.info(
            "agent starts",
            name=options.name,
            pools=options.pools,
            limit=options.limit,
            capacity=agent.capacity,
            found_tags=tags,
            folder=str(folder.path),
        )
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again
        gc.set_threshold(*COLLECT)
        return await agent.run()


def _complain(message: str) -> int:
    sys.stderr.write(f"shunter agent: {plain(message, lines=True)}\n")
    return REFUSED
