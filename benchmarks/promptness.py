"""How promptly an agent follows: a cancelled run is gone, a freed slot is filled, a dead agent is noticed."""

from __future__ import annotations

import os
import random
import select
import time
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import psutil

from benchmarks.report import Table, percentile
from benchmarks.system import Connection, running

#: Seconds that a run which ignores SIGTERM is given.
SHORT_GRACE = 0.5
#: The least that a server may be told, seconds.
LOST_AFTER = 15
#: Its first instruction and its last but the exit, by the system's clock, 50 to 149 ms apart. bash tells the time
#: without a further process.
STAMPED = (
    "echo $EPOCHREALTIME; printf -v span 0.%03d $((RANDOM % 100 + 50)); sleep $span; echo $EPOCHREALTIME"
)


def _running(way: Connection, deployment: str) -> tuple[str, int]:
    """A new run of a deployment that runs, and its process."""
    run_id, seen = way.post("/runs", {"deployment": deployment})["id"], "none"
    while True:
        run: dict[str, Any] = way.get(f"/runs/{run_id}?wait=10&seen={seen}")
        if run["ended_at"]:
            raise RuntimeError(f"a run of {deployment} ended {run['state']}: {run['message']}")
        if run["state"] == "Running" and run["attempts"][-1]["pid"]:
            return run_id, run["attempts"][-1]["pid"]
        seen = f"{run['state']}:{run['attempt_count']}"


def _tree(pid: int, size: int) -> list[int]:
    """A process with its children, once there are so many."""
    while True:
        process = psutil.Process(pid)
        found = [pid, *(child.pid for child in process.children(recursive=True))]
        if len(found) == size:
            return found
        time.sleep(0.002)


def _gone(way: Connection, run_id: str, pids: list[int]) -> float:
    """Milliseconds from the request to cancel a run until the last of its processes is gone."""
    with ExitStack() as stack:
        left = set()
        for pid in pids:
            handle = os.pidfd_open(pid)
            stack.callback(os.close, handle)
            left.add(handle)
        poll = select.poll()
        for handle in left:
            poll.register(handle, select.POLLIN)
        before = time.perf_counter()
        way.post(f"/runs/{run_id}/cancel", None)
        while left:
            dead = poll.poll(30_000)
            if not dead:
                raise RuntimeError(f"processes of cancelled run {run_id} live on")
            for handle, _ in dead:
                poll.unregister(handle)
                left.remove(handle)
        return (time.perf_counter() - before) * 1000


def cancellation(table: Table, count: int = 200) -> None:
    """From the request to cancel to the death of the last process; every fourth run ignores SIGTERM."""
    kinds = {
        "polite": (["sleep", "1000"], 1),
        "stubborn": (["sh", "-c", "trap '' TERM; sleep 1000; true"], 2),
    }
    taken: dict[str, list[float]] = {"polite": [], "stubborn": []}
    with running() as system:
        system.start_agent("bench", 4)
        way = system.connect()
        for name, (command, _) in kinds.items():
            work = {"command": command, "grace": SHORT_GRACE}
            way.request("PUT", f"/deployments/{name}", {"work": work, "pool": "default"})
        for index in range(count):
            kind = "stubborn" if index % 4 == 3 else "polite"
            run_id, pid = _running(way, kind)
            taken[kind].append(_gone(way, run_id, _tree(pid, kinds[kind][1])))
    polite, stubborn = taken["polite"], taken["stubborn"]
    table.row("cancelled to process gone, p99 of all", percentile(polite + stubborn, 99), "ms", 1000)
    table.row("cancelled to process gone, p50 of those that heed SIGTERM", percentile(polite, 50), "ms")
    beyond = percentile(stubborn, 50) - SHORT_GRACE * 1000
    table.row(f"the same beyond a grace of {SHORT_GRACE:g} s, p50 of those that do not", beyond, "ms")


def refill(table: Table, count: int = 250) -> None:
    """From the last instruction of a run to the first of the next in its place, while many wait."""
    gaps = []
    for limit in (1, 2, 4):
        with running() as system:
            system.start_agent("bench", limit)
            way = system.connect()
            work = {"command": ["bash", "-c", STAMPED]}
            way.request("PUT", "/deployments/stamped", {"work": work, "pool": "default"})
            made = way.post("/runs/batch", {"runs": [{"deployment": "stamped"}] * count})["runs"]
            while (pool := way.get("/pools/default"))["waiting"] or pool["active"]:
                time.sleep(0.1)
            stamps = [way.request("GET", f"/runs/{run['id']}/logs").split() for run in made]
        starts, ends = (sorted(float(stamp[index]) for stamp in stamps) for index in (0, 1))
        # Each end makes room for the next start in line; the first ``limit`` found room of their own.
        found = [(start - end) * 1000 for end, start in zip(ends, starts[limit:], strict=False)]
        gaps += found
        table.row(
            f"slot freed to next run's first instruction, limit {limit}, p50", percentile(found, 50), "ms"
        )
    table.row("slot freed to next run's first instruction, p99 of all", percentile(gaps, 99), "ms", 50)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _marked_lost(way: Connection, run_id: str) -> float | None:
    events = way.get(f"/runs/{run_id}/events")["events"]
    return next((_moment(event["at"]) for event in events if event["kind"] == "lost"), None)


def lost(table: Table, count: int = 12) -> None:
    """From the last contact of an agent that is killed to the mark on its run."""
    chance, killed = random.Random(11), {}
    with running(settings={"--lost-after": f"{LOST_AFTER}s"}) as system:
        way = system.connect()
        work = {"command": ["sleep", "60"]}
        way.request("PUT", "/deployments/long", {"work": work, "pool": "default"})
        runs = {}
        for number in range(count):
            system.start_agent(f"bench-{number}", 1)
            run_id, _ = _running(way, "long")
            runs[run_id] = way.get(f"/runs/{run_id}")["attempts"][-1]["agent"]
        time.sleep(10)  # each has been held once, and comes back at a time of its own
        for agent in system.agents:
            time.sleep(chance.uniform(0, 2))
            agent.kill()
        for number, agent in enumerate(system.agents):
            agent.wait()
            killed[f"bench-{number}"] = time.time()
        marks: dict[str, float] = {}
        while len(marks) < count:
            time.sleep(0.5)
            for run_id in runs.keys() - marks.keys():
                if (at := _marked_lost(way, run_id)) is not None:
                    marks[run_id] = at
        last = {agent["name"]: _moment(agent["last_seen_at"]) for agent in way.get("/agents")["agents"]}
        for run_id in runs:
            way.post(f"/runs/{run_id}/cancel", None)
    over = [marks[run_id] - last[agent] - LOST_AFTER for run_id, agent in runs.items()]
    if min(over) < 0 or any(last[agent] > killed[agent] for agent in last):
        raise RuntimeError(f"an agent was taken for lost too early, or heard of after its death: {over}")
    table.row(f"lost agent's run marked, beyond lost_after, max of {count}", max(over), "s", 1)
    table.row("the same, median", percentile(over, 50), "s")


def promptness(table: Table) -> None:
    """All three."""
    refill(table)
    cancellation(table)
    lost(table)
