"""The storm: runs with real effects, while agents, server and what runs are below are killed and the network is cut.

What is killed when comes from one seed. The kills of each kind are made by a thread of its own, so they also
fall together; every second one waits until a crowd of runs is alive.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from shunter_agents.killpoints import POINTS
from shunter_work_pools.contracts.errors import Conflict, ServerUnreachable, Unavailable
from shunter_work_pools.contracts.runs import RunBatch, RunRequest
from shunter_work_pools.killpoints import POINTS as SERVER_POINTS
from tests.agents.real_server import Site, site
from tests.chaos.deeds import DEEDS
from tests.chaos.faults import Delay, Duplicate, Mixture, Reset, Truncate
from tests.chaos.grounds import Ground, Key, Live
from tests.chaos.proxy import Fault, proxy

T = TypeVar("T")

#: Where the server may be told to die: between a commit and its answer. (Nobody is told to drain here.)
STEPS = [
    point for point in SERVER_POINTS if point not in ("after-drain-committed", "after-handover-committed")
]


@dataclass(frozen=True)
class Kill:
    """One kill: what, how (at which point, or just then), and how many runs were alive."""

    what: str
    how: str
    live: int


@dataclass
class Story:
    """What was done to the system.

    Attributes:
        runs: run id -> name of its deed.
        cancelled: runs that were asked to be cancelled, successfully or too late.
        hit: attempts that a kill of what they run below may have hit.
        cuts: how often all connections were cut.
        exits: agents or servers that ended in any other way than by a kill.
    """

    seed: int
    ground: str
    store: str
    runs: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    hit: set[Key] = field(default_factory=set)
    kills: list[Kill] = field(default_factory=list)
    cuts: int = 0
    exits: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def count(self, what: str, crowd: int = 0) -> int:
        """Kills of a kind with at least so many live runs."""
        return sum(kill.what == what and kill.live >= crowd for kill in self.kills)


class Storm:
    """One storm on one site.

    Args:
        runs: it goes on until there were so many, and so many kills of each kind.
        kills: what is killed how often.
        say: told now and then how far it is.
    """

    def __init__(
        self,
        here: Site,
        ground: Ground,
        story: Story,
        runs: int,
        kills: Mapping[str, int],
        say: Callable[[str], None],
    ) -> None:
        self.here = here
        self.ground = ground
        self.story = story
        self.shared = here.home / "shared"
        self.shared.mkdir()
        self.effects = self.shared / "effects"
        self.effects.touch()
        self._runs = runs
        self._kills = kills
        self._say = say
        self._over = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._agent_env = dict(ground.env)
        self._to_cancel: set[str] = set()

    def blow(self) -> None:
        """All of it; afterwards the server and every agent run, and nothing disturbs them any more."""
        began = time.monotonic()
        pool = self.ground.pool(self.here.home)
        if pool is not None:
            self.here.client.create_pool(pool)
        for name, deed in DEEDS.items():
            self.here.client.deploy(name, deed.spec(self.effects, self.ground.pool_name))
        with proxy(self.here.port, self.story.seed) as between:
            self._agent_env = self.ground.env | {"SHUNTER_API_URL": between.url}
            between.begin(
                Mixture((86, Fault()), (3, Reset()), (3, Truncate()), (4, Delay(0.4)), (4, Duplicate()))
            )
            for name in self.ground.agents:
                self._start_agent(name)
            parts: list[Callable[[random.Random], None]] = [
                self._submit,
                self._cancel,
                self._kill_servers,
                self._kill_victims,
                self._tell,
                lambda dice: self._cut(dice, between.cut),
                *(lambda dice, name=name: self._kill_agents(dice, name) for name in self.ground.agents),  # type: ignore[misc]
            ]
            with ThreadPoolExecutor(len(parts)) as threads:
                jobs = [
                    threads.submit(self._guarded, part, random.Random(f"{self.story.seed} {number}"))
                    for number, part in enumerate(parts)
                ]
                try:
                    for job in jobs:
                        job.result()
                finally:
                    self._over.set()
            between.begin(Fault())
            self.story.faults = between.counts
            self._calm_down()
            self.story.seconds = time.monotonic() - began

    def _calm_down(self) -> None:
        """Every agent lives on, in a life that nobody cuts short, directly at the server."""
        self._agent_env = dict(self.ground.env)
        for name, process in self._agents.items():
            process.kill()
            process.wait()
            self._start_agent(name)
        deadline = time.monotonic() + 120
        while waiting := [run for run in self.story.runs if self._ask(self._ended, run) is None]:
            assert time.monotonic() < deadline, (
                f"{len(waiting)} runs do not end: {self.here.client.get_run(waiting[0])}"
            )
            self._make_cancellations()
            time.sleep(0.1)

    def _ended(self, run: str) -> object:
        return self.here.client.get_run(run).ended_at

    def agents(self) -> dict[str, subprocess.Popen[bytes]]:
        """The agents as they run now."""
        return self._agents

    def live(self) -> list[Live]:
        """Runs that are alive at this moment."""
        return self.ground.live(self.here.home)

    # -- what happens at once

    def _guarded(self, part: Callable[[random.Random], None], dice: random.Random) -> None:
        try:
            part(dice)
        except BaseException:
            self._over.set()
            raise

    def _is_due(self, what: str, dead: Callable[[], bool] = lambda: False) -> bool:
        """Wait until another kill of this kind is due, so that they are spread over all runs; False: no more.

        Args:
            dead: it has died of itself, and is to be started again.
        """
        while self._going_on():
            share = min(1.0, len(self.story.runs) / self._runs + 0.1)
            if self.story.count(what) < self._kills[what] * share or dead():
                return True
            time.sleep(0.05)
        return False

    def _going_on(self) -> bool:
        done = all(self.story.count(what) >= kills for what, kills in self._kills.items())
        if done and len(self.story.runs) >= self._runs:
            self._over.set()
        return not self._over.is_set()

    def _ask(self, ask: Callable[..., T], *args: object) -> T:
        """An answer of the server, which may be away: then the same again."""
        while True:
            try:
                return ask(*args)
            except (ServerUnreachable, Unavailable):
                time.sleep(0.05)

    def _submit(self, dice: random.Random) -> None:
        """Make runs, by keys: whether one whose answer was lost was made is not known, and need not be."""
        names, weights = list(DEEDS), [deed.weight for deed in DEEDS.values()]
        made = 0
        while self._going_on():
            if (
                len(self._ask(lambda: self.here.client.list_runs(states=["Scheduled"], limit=50)).runs)
                >= self.ground.backlog
            ):
                self._over.wait(0.2)
                continue
            chosen = dice.choices(names, weights, k=self.ground.batch)
            batch = RunBatch(
                runs=[
                    RunRequest(deployment=name, idempotency_key=f"storm-{made + number}")
                    for number, name in enumerate(chosen)
                ]
            )
            made += self.ground.batch
            answer = self._ask(self.here.client.create_runs, batch)
            for name, run in zip(chosen, answer.runs, strict=True):
                self.story.runs[str(run.id)] = name
                if DEEDS[name].cancelled:
                    self._to_cancel.add(str(run.id))

    def _cancel(self, dice: random.Random) -> None:
        """Cancel in mid-flight what is there to be cancelled, some of it at once."""
        while self._going_on():
            self._over.wait(dice.uniform(0.1, 0.8))
            self._make_cancellations()

    def _make_cancellations(self) -> None:
        alive = {one.run for one in self.live()}
        for run in sorted(self._to_cancel & alive):
            self._to_cancel.discard(run)
            self.story.cancelled.add(run)
            with contextlib.suppress(
                Conflict
            ):  # it has ended: by itself, or by a request whose answer was lost
                self._ask(self.here.client.cancel_run, run)

    @contextlib.contextmanager
    def _moment(
        self, dice: random.Random, number: int, dead: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """The moment of the next kill: any, or, every second time, one with many live runs.

        Args:
            dead: what is to be killed has died of itself: there is nothing to wait for.
        """
        self._over.wait(dice.uniform(0.0, 1.0))
        while number % 2 and self._going_on() and not dead():
            with self._one_at_a_time:  # or a crowd would meet all killers at once, and be gone
                if len(self.live()) >= self.ground.crowd:
                    yield
                    return
            time.sleep(0.05)
        yield

    def _kill_servers(self, dice: random.Random) -> None:
        number = 0
        while self._is_due("server", lambda: self.here.server.poll() is not None):
            number += 1
            process = self.here.server
            with self._moment(dice, number, lambda process=process: process.poll() is not None):  # type: ignore[misc]
                self._note("server", "just then" if process.poll() is None else "at a step")
                process.kill()
                code = process.wait()
            if code != -signal.SIGKILL:
                self.story.exits.append(f"the server exited with {code}")
            self._over.wait(dice.choice([0.0, 0.0, 0.3, 1.5]))
            self.here.start_server(kill_at=dice.choice(STEPS) if number % 2 else None)
        # A life that nobody cuts short: the others may be waiting for an answer.
        self.here.server.kill()
        self.here.server.wait()
        self.here.start_server()

    def _kill_victims(self, dice: random.Random) -> None:
        number = 0
        while self._is_due(self.ground.victim):
            number += 1
            with self._moment(dice, number):
                alive = self.live()
                hit = self.ground.strike(dice, alive)
                if hit is not None:
                    self.story.hit |= hit
                    self._note(self.ground.victim, "just then", len(alive))

    def _kill_agents(self, dice: random.Random, name: str) -> None:
        """Kill one agent again and again: every second life at a named step, every other just so."""
        number = 0
        while self._is_due("agent", lambda: self._agents[name].poll() is not None):
            number += 1
            process = self._agents[name]
            self._until_it_lives(name, number)
            with self._moment(dice, number, lambda process=process: process.poll() is not None):  # type: ignore[misc]
                code = process.poll()
                how = "at a step" if code == -signal.SIGKILL else "just then"
                if code not in (None, -signal.SIGKILL):
                    self.story.exits.append(f"agent {name} exited with {code}: {self.here.log(name)[-500:]}")
                self._note("agent", how)
                process.kill()
                process.wait()
            self._over.wait(dice.choice(self.ground.absences))
            step = f"{dice.choice(POINTS)}#{dice.randint(1, 6)}"
            self._start_agent(name, step if number % 2 else None)

    def _until_it_lives(self, name: str, lives: int) -> None:
        """Wait until a life of an agent is past loading its modules, in which there is nothing to break."""
        while self._going_on() and self._agents[name].poll() is None:
            if self.here.log(name).count("agent starts") >= lives:
                return
            time.sleep(0.05)

    def _cut(self, dice: random.Random, cut: Callable[[], None]) -> None:
        while self._going_on():
            self._over.wait(dice.uniform(0.5, 3.0))
            cut()
            self.story.cuts += 1

    def _tell(self, dice: random.Random) -> None:
        """Say how far it is, now and then."""
        began = time.monotonic()
        while self._going_on():
            self._over.wait(15)
            kills = ", ".join(f"{self.story.count(what)} {what}" for what in self._kills)
            self._say(
                f"  {time.monotonic() - began:.0f} s: {len(self.story.runs)} runs made, "
                f"{len(self.live())} alive, killed {kills}"
            )

    def _note(self, what: str, how: str, live: int | None = None) -> None:
        self.story.kills.append(Kill(what, how, len(self.live()) if live is None else live))

    def _start_agent(self, name: str, kill_at: str | None = None) -> None:
        env = self._agent_env
        self._agents[name] = self.here.start_agent(
            name, kill_at=kill_at, limit=self.ground.limit, pool=self.ground.pool_name, env=env
        )


@contextlib.contextmanager
def weathered(
    home: Path,
    seed: int,
    ground: Ground,
    *,
    runs: int,
    kills: Mapping[str, int],
    say: Callable[[str], None],
    database_url: str | None = None,
) -> Iterator[Storm]:
    """A storm that is over, its server and agents still running."""
    flags = ground.flags | ({"server.database_url": database_url} if database_url else {})
    with site(home, flags) as here:
        story = Story(seed, ground.name, "postgres" if database_url else "sqlite")
        storm = Storm(here, ground, story, runs, kills, say)
        storm.blow()
        yield storm
