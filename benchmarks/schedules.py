"""How soon slots become runs: ten thousand schedules that are due together, and a hundred.

A slot counts as made when another process can read its run, so the commit is in it. There is no agent: the
runs wait, and the server also marks them late.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import psutil

from benchmarks.report import Table, percentile
from benchmarks.system import Connection, System, running

#: How often to look, seconds.
_LOOK = 0.01


def _deploy(way: Connection, count: int, cron: str) -> None:
    """So many deployments with one schedule each."""
    for first in range(0, count, 500):
        batch = [
            {
                "name": f"job-{number}",
                "spec": {
                    "work": {"command": ["/bin/true"]},
                    "pool": "default",
                    "schedules": [{"when": {"kind": "cron", "cron": cron, "timezone": "Europe/Berlin"}}],
                },
            }
            for number in range(first, min(first + 500, count))
        ]
        way.post("/deployments", {"deployments": batch})


class _Waiting:
    """Counts the runs that wait, from outside."""

    def __init__(self, home: Path) -> None:
        self._database = sqlite3.connect(f"file:{home / 'shunter.db'}?mode=ro", uri=True)

    def count(self) -> int:
        (found,) = self._database.execute("SELECT count(*) FROM ready").fetchone()
        return int(found)

    def seen(self, slot: float, wanted: int) -> list[tuple[float, int]]:
        """Seconds after ``slot`` at which more runs were seen, and how many more, until there are ``wanted``."""
        before, found = self.count(), []
        while before < wanted:
            count, now = self.count(), time.time()
            if count > before:
                found.append((now - slot, count - before))
            elif now - slot > 30:
                raise RuntimeError(f"{wanted - count} of {wanted} runs are missing")
            before = count
            time.sleep(_LOOK)
        return found


class _Probe:
    """Writes again and again, as agents and people do, and notes how long each write takes."""

    def __init__(self, system: System) -> None:
        self.taken: list[float] = []
        self._system, self._stop = system, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        way = self._system.connect()
        while not self._stop.wait(0.02):
            start = time.perf_counter()
            way.request("PATCH", "/pools/default/queues/default", {"paused": False})
            self.taken.append((time.perf_counter() - start) * 1000)

    def __enter__(self) -> _Probe:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def _minute(after: float) -> float:
    """The first full minute after a moment."""
    return after - after % 60 + 60


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def schedules(table: Table, many: int = 10_000, few: int = 100, minutes: int = 3) -> None:
    """All at each full minute; then fewer, every five seconds."""
    _many(table, many, minutes)
    _few(table, few)


def _many(table: Table, count: int, minutes: int) -> None:
    with running() as system:
        server = psutil.Process(system.server.pid)
        _deploy(system.connect(), count, "* * * * *")
        waiting = _Waiting(system.home)
        slot = _minute(time.time() + 5)
        _sleep_until(slot - 2)
        made = waiting.count()
        whole, probes, cpu = [], [], []
        for _ in range(minutes):
            _sleep_until(slot - 1)
            spent = _cpu(server)
            with _Probe(system) as probe:
                made += count
                whole.append(waiting.seen(slot, made)[-1][0])
            cpu.append(_cpu(server) - spent)
            probes += probe.taken
            slot += 60
        rest = _cpu(server)
        _sleep_until(slot - 1)
        rest = _cpu(server) - rest
    table.row(f"{count} slots of a minute made into runs, slowest of {minutes} minutes", max(whole), "s", 5)
    table.row("server CPU for it, median", sorted(cpu)[len(cpu) // 2], "s")
    table.row("other writes meanwhile, p99", percentile(probes, 99), "ms")
    table.note(
        f"By minute: {', '.join(f'{one:.1f} s' for one in whole)}; in the first one each deployment is read for the "
        f"first time. For the rest of a minute, in which the server marks {count} runs late, it used {rest:.1f} s of "
        f"CPU. The longest of {len(probes)} other writes took {max(probes):.0f} ms."
    )


def _few(table: Table, count: int, rounds: int = 12) -> None:
    with running() as system:
        _deploy(system.connect(), count, "*/5 * * * * *")
        waiting = _Waiting(system.home)
        slot = time.time() // 5 * 5 + 10
        _sleep_until(slot - 1)
        made, taken = waiting.count(), []
        for _ in range(rounds):
            made += count
            _sleep_until(slot - 0.05)
            for seconds, more in waiting.seen(slot, made):
                taken += [seconds * 1000] * more
            slot += 5
    table.row(f"slot to run, {count} schedules at once, p99", percentile(taken, 99), "ms", 200)
    table.row("slot to run, median", percentile(taken, 50), "ms")
