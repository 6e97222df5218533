"""A year of scheduling, with a server that comes and goes, against a model that shares no code with it.

The model knows the slots of each schedule from looking at the wall clock every ten minutes, and keeps a list
of those that passed and were not decided on. Everything that happens to a schedule is one of three things:
time passes, its policy decides about what was missed, what is left becomes runs.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select

from shunter_work_pools.contracts.base import Micros, micros, moment
from shunter_work_pools.contracts.deployments import BackfillRequest
from shunter_work_pools.queue import backfill, fire, timetable
from shunter_work_pools.storage.schema import events, ready, runs, schedules
from tests.queue.world import World
from tests.storage.stores import NOON

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
DAYS = {"sqlite": 365, "postgres": 40}
#: Runs of a transaction, far fewer than in earnest: a server then often dies in the middle.
MOST = 15


# ---- when slots are, by looking at the clock


@lru_cache
def _walls(zone: str) -> list[tuple[Micros, datetime]]:
    """Every ten minutes of the year, and what the wall clock shows then: no slot here is between them."""
    start, local = NOON - timedelta(days=3), ZoneInfo(zone)
    moments = (start + timedelta(minutes=at) for at in range(0, 375 * 1440, 10))
    return [(micros(at), at.astimezone(local)) for at in moments]


def _rhythm(zone: str, shows: Callable[[datetime], bool]) -> list[Micros]:
    """Each instant at which the wall clock shows it."""
    return [at for at, wall in _walls(zone) if shows(wall)]


def _once_a_day(zone: str, hour: int, minute: int, day: Callable[[datetime], bool]) -> list[Micros]:
    """The first moment of each such local day at which the wall clock shows the time, or one after it."""
    found: dict[Any, Micros] = {}
    for at, wall in _walls(zone):
        if (wall.hour, wall.minute) >= (hour, minute) and day(wall):
            found.setdefault(wall.date(), at)
    first = min(found)  # the list may begin in the middle of it
    return sorted(at for date, at in found.items() if date != first)


def _cron(text: str, zone: str) -> dict[str, Any]:
    return {"kind": "cron", "cron": text, "timezone": zone}


def _interval(minutes: int) -> dict[str, Any]:
    return {"kind": "interval", "seconds": minutes * 60}


#: What a schedule may say, and its slots; those of an interval depend on when it was deployed.
WHENS: dict[str, tuple[dict[str, Any], Callable[[Micros], list[Micros]]]] = {
    "nightly in Berlin": (
        _cron("30 2 * * *", "Europe/Berlin"),
        lambda anchor: _once_a_day("Europe/Berlin", 2, 30, lambda wall: True),
    ),
    "half-hourly at night on Lord Howe": (
        _cron("*/30 0-4 * * *", "Australia/Lord_Howe"),
        lambda anchor: _rhythm("Australia/Lord_Howe", lambda wall: wall.minute % 30 == 0 and wall.hour < 5),
    ),
    "workdays in New York": (
        _cron("0 9 * * 1-5", "America/New_York"),
        lambda anchor: _once_a_day("America/New_York", 9, 0, lambda wall: wall.weekday() < 5),
    ),
    "Mondays and Thursdays in Santiago": (
        {
            "kind": "rrule",
            "rrule": "DTSTART:20261101T003000\nRRULE:FREQ=WEEKLY;BYDAY=MO,TH\nEXDATE:20261203T003000",
            "timezone": "America/Santiago",
        },
        lambda anchor: _once_a_day(
            "America/Santiago",
            0,
            30,
            lambda wall: wall.weekday() in {0, 3} and wall.date() != datetime(2026, 12, 3).date(),
        ),
    ),
    "every 97 minutes": (
        _interval(97),
        lambda anchor: [anchor + number * 97 * MINUTE for number in range(1, 366 * 1440 // 97)],
    ),
    "every 7 hours": (
        _interval(420),
        lambda anchor: [anchor + number * 420 * MINUTE for number in range(1, 366 * 24 // 7)],
    ),
}


# ---- the model


@dataclass
class Model:
    """One schedule: what it says, what passed and was not decided on, what became runs, what did not."""

    name: str
    when: str
    slots: list[Micros]
    policy: str
    age: Micros
    limit: int
    jitter: int = 0
    paused: bool = False
    there: bool = True
    seen: Micros = 0
    deployed: Micros = 0
    pending: list[Micros] = field(default_factory=list)
    made: set[Micros] = field(default_factory=set)
    dropped: int = 0

    def pass_time(self, now: Micros) -> None:
        """Slots up to now have passed."""
        if self.there:
            self.pending += self.slots[bisect_right(self.slots, self.seen) : bisect_right(self.slots, now)]
        self.seen = now

    def decide(self, until: Micros) -> None:
        """What passed up to this moment was missed."""
        missed = [at for at in self.pending if at <= until]
        young = [at for at in missed if at >= until - self.age]
        kept = {"all": young[-self.limit :], "latest": young[-1:], "none": []}[self.policy]
        self.dropped += len(missed) - len(kept)
        self.pending = kept + self.pending[len(missed) :]

    def make(self, until: Micros) -> None:
        """What is pending up to this moment becomes runs, if a backfill did not make them."""
        self.made |= {at for at in self.pending if at <= until}
        self.pending = [at for at in self.pending if at > until]

    def fill(self, start: Micros, end: Micros) -> None:
        """What was not made of a stretch of time becomes runs."""
        self.made |= {at for at in self.slots if start <= at < end}

    def drop(self) -> None:
        """What is pending never becomes runs."""
        self.dropped += len(self.pending)
        self.pending = []

    def document(self) -> dict[str, Any]:
        """As it is deployed."""
        return {
            "name": self.name,
            "when": WHENS[self.when][0],
            "catch_up": self.policy,
            "catch_up_age": self.age / 1e6,
            "catch_up_slots": self.limit,
            "jitter": self.jitter,
        }


class Year:
    """Drives a world and the models through the same story."""

    def __init__(self, world: World, seed: int, days: int) -> None:
        self.world, self.chance = world, random.Random(seed)
        self.end = world.clock.now + days * DAY
        self.since: Micros = 0  # the server fires since then
        self.up = True
        self.deployment_paused = {"a": False, "b": False}
        self.of: dict[str, list[Model]] = {"a": [], "b": []}
        self.revision = 0
        self.story: list[str] = []

    @property
    def now(self) -> Micros:
        return self.world.clock.now

    def models(self) -> list[tuple[str, Model]]:
        return [(name, model) for name, models in self.of.items() for model in models]

    def going(self) -> list[Model]:
        """Those that make slots."""
        return [
            model
            for name, model in self.models()
            if model.there and not model.paused and not self.deployment_paused[name]
        ]

    # ---- what happens

    async def begin(self) -> None:
        self.since = self.now
        whens = list(WHENS)
        for at, (policy, limit, age) in enumerate(
            [("all", 10_000, 3650 * DAY), ("latest", 100, DAY), ("none", 100, DAY)] * 2
            + [("all", 3, 3650 * DAY), ("all", 100, 9 * HOUR), ("latest", 100, 2 * HOUR)]
        ):
            jitter = self.chance.choice([0, 600])
            deployment = "ab"[at % 2]
            model = Model(f"s{at}", whens[at % len(whens)], [], policy, age, limit, jitter)
            self.of[deployment].append(model)
            self.anew(model)
        for name in self.of:
            await self.deploy(name)

    def anew(self, model: Model) -> None:
        model.slots = WHENS[model.when][1](self.now)
        model.seen = model.deployed = self.now

    async def deploy(self, name: str) -> None:
        self.revision += 1
        await self.world.deploy(
            name,
            since=(self.since - self.now) / 1e6,
            description=f"revision {self.revision}",
            schedules=[model.document() for model in self.of[name] if model.there],
        )

    def pass_time(self, most: Micros) -> None:
        """Some time, or exactly up to a slot."""
        until = self.now + self.chance.randrange(1, most)
        if self.chance.random() < 0.3:
            coming = [
                model.slots[at]
                for _, model in self.models()
                if (at := bisect_right(model.slots, self.now)) < len(model.slots)
            ]
            until = min([until, *coming])
        self.world.clock.now = min(until, self.end)
        for _, model in self.models():
            model.pass_time(self.now)

    async def fire_all(self) -> None:
        """The server does all that there is to do."""
        while await self.world.fire(since=(self.since - self.now) / 1e6):
            pass
        self.decided_and_made(self.going())

    def decided_and_made(self, models: list[Model]) -> None:
        for model in models:
            model.decide(self.since)
            model.make(self.now)

    async def fire_some(self, transactions: int) -> None:
        """The server dies after so many transactions: how far it came is looked up, what it did is not."""
        before = await self._come()
        for _ in range(transactions):
            await self.world.fire(since=(self.since - self.now) / 1e6)
        after = await self._come()
        for model in self.going():
            if after[model.name] != before[model.name]:
                model.decide(self.since)
                model.make(after[model.name])

    async def _come(self) -> dict[str, Micros]:
        statement = select(schedules.c.name, schedules.c.done_until)
        rows = await self.world.store.read(lambda tx: tx.conn.execute(statement).all())
        return {row.name: row.done_until for row in rows}

    async def stop(self) -> None:
        self.up = False

    async def start(self) -> None:
        self.up, self.since = True, self.now
        await self.world.store.write(timetable.reckon_anew)
        if self.chance.random() < 0.4:
            await self.fire_some(self.chance.randrange(4))
            self.up = False
        elif self.chance.random() < 0.8:  # else the next request comes before it has fired
            await self.fire_all()

    async def pause_schedule(self) -> None:
        there = [pair for pair in self.models() if pair[1].there]
        waiting = [pair for pair in there if pair[1].paused]
        name, model = self.chance.choice(waiting if waiting and self.chance.random() < 0.7 else there)
        paused = not model.paused
        since = (self.since - self.now) / 1e6
        await self.world.pause_schedule(model.name, name, paused, since)
        if paused:
            # All of the deployment's are fired: they are locked together.
            self.decided_and_made([model for model in self.of[name] if model in self.going()])
        elif not self.deployment_paused[name]:
            model.decide(self.now)
        model.paused = paused

    async def pause_deployment(self) -> None:
        waiting = [name for name, paused in self.deployment_paused.items() if paused]
        name = self.chance.choice(waiting or list(self.of))
        paused = not self.deployment_paused[name]
        going = self.going()
        await self.world.pause_deployment(name, paused, (self.since - self.now) / 1e6)
        if paused:
            self.decided_and_made([model for model in self.of[name] if model in going])
        self.deployment_paused[name] = paused
        if not paused:
            for model in self.of[name]:
                if model in self.going():
                    model.decide(self.now)

    async def edit(self) -> None:
        """Other times, another policy, taken away or back again; the deploy fires what was due before it."""
        away = [pair for pair in self.models() if not pair[1].there]
        name, model = self.chance.choice(away or self.models())
        self.decided_and_made([other for other in self.of[name] if other in self.going()])
        what = self.chance.random()
        if not model.there:
            model.there, model.paused = True, False
            self.anew(model)
        elif what < 0.4:
            model.drop()
            model.when = self.chance.choice([when for when in WHENS if when != model.when])
            self.anew(model)
        elif what < 0.7:
            model.policy = self.chance.choice(["all", "latest", "none"]) if model.limit < 10_000 else "all"
        else:
            model.drop()
            model.there = False
        await self.deploy(name)

    async def backfill(self) -> None:
        """Some days of one schedule, since it was deployed with these times."""
        name, model = self.chance.choice([pair for pair in self.models() if pair[1].there])
        start = max(model.deployed + 1, self.now - self.chance.randrange(1, 5 * DAY))
        end = min(start + self.chance.randrange(1, 4 * DAY), self.now)
        if start < end:
            stretch = BackfillRequest(start=moment(start), end=moment(end), schedule=model.name, limit=1000)
            await self.world.store.write(lambda tx: backfill.backfill(tx, name, stretch))
            model.fill(start, end)

    async def go_on(self) -> None:
        """One step of the story."""
        if not self.up:
            self.pass_time(self.chance.choice([HOUR, 10 * HOUR, DAY, 6 * DAY]))
            await self.start()
            return
        self.pass_time(self.chance.choice([MINUTE, 3 * HOUR, DAY]))
        if self.chance.random() < 0.8:
            await self.fire_all()
        what = self.chance.choices(
            [None, self.stop, self.pause_schedule, self.pause_deployment, self.edit, self.backfill],
            [60, 4, 12, 6, 8, 3],
        )[0]
        if what is not None:
            self.story.append(f"{moment(self.now)} {what.__name__}")
            await what()

    # ---- what came of it

    async def compare(self) -> None:
        def look(tx: Any) -> tuple[dict[str, list[Micros]], dict[str, int], list[Any]]:
            made: dict[str, list[Micros]] = {}
            statement = select(schedules.c.name, runs.c.slot_at).join(
                schedules, schedules.c.id == runs.c.schedule_id
            )
            for name, slot in tx.conn.execute(statement):
                made.setdefault(name, []).append(slot)
            told: dict[str, int] = {}
            for data in tx.conn.scalars(select(events.c.data).where(events.c.kind == "catch_up_skipped")):
                told[data["schedule"]] = told.get(data["schedule"], 0) + data["slots"]
            waits = (
                select(ready.c.due_at - runs.c.scheduled_at)
                .join(runs, runs.c.id == ready.c.run_id)
                .where(runs.c.backfill_id.is_(None))
            )
            return made, told, list(tx.conn.scalars(waits))

        made, told, waits = await self.world.store.read(look)
        for _, model in self.models():
            found = made.get(model.name, [])
            assert len(found) == len(set(found)), f"{model.name} was doubled"
            extra, missing = set(found) - model.made, model.made - set(found)
            wrong = [
                f"{kind} {moment(at)}" for kind, ats in (("+", extra), ("-", missing)) for at in sorted(ats)
            ]
            assert not wrong, f"{model.name} ({model.policy}): {wrong[:10]}; {self.story[-30:]}"
            assert told.get(model.name, 0) == model.dropped
        assert all(0 <= wait < 600_000_000 for wait in waits)
        assert any(waits)


@pytest.mark.parametrize("seed", range(2))
async def test_a_year_with_a_server_that_comes_and_goes(
    world: World, kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fire, "MOST", MOST)
    year = Year(world, seed, DAYS[kind])
    await year.begin()
    while year.now < year.end:
        await year.go_on()
    if not year.up:
        year.up, year.since = True, year.now
    await year.fire_all()
    await year.compare()
    # The story was one: each policy made, and passed over, what it should; and some were always made.
    models = [model for _, model in year.models()]
    assert sum(len(model.made) for model in models) > 5 * DAYS[kind]
    assert sum(model.dropped for model in models) > DAYS[kind]
    assert next(model for model in models if model.limit == 10_000).made
