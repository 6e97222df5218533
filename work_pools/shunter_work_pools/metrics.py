"""Metrics: what the server counts as it goes, and what it counts anew when it is asked, for Prometheus.

As it goes: latencies, ends, requests, transactions; each server its own. Anew: what waits and runs, from the store,
which says the same whichever of its servers is asked. Those who ask at once share one look at it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from shunter_work_pools.queue.census import Census
from shunter_work_pools.storage.store import Changes

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
#: What agents send.
REQUESTS = ("sync", "reports", "release", "secrets", "logs", "journals")


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        mine = self.registry
        ProcessCollector(registry=mine)
        latency = Histogram(
            "shunter_start_latency_seconds",
            "From when a run was due until its first attempt was granted to an agent, and until it ran.",
            ["until"],
            buckets=_LATENCY,
            registry=mine,
        )
        self._claimed = latency.labels("claimed")
        self._running = latency.labels("running")
        self._ends = Counter("shunter_run_ends", "Runs that ended.", ["state", "cause"], registry=mine)
        requests = Counter(
            "shunter_agent_requests", "Requests of agents that were taken.", ["kind"], registry=mine
        )
        self.requests = {kind: requests.labels(kind) for kind in REQUESTS}
        self.reports = Counter("shunter_reports", "Steps of attempts that agents reported.", registry=mine)
        self.log_bytes = Counter(
            "shunter_log_bytes", "Output of attempts that agents sent, in bytes.", registry=mine
        )
        self.loop_delay = Histogram(
            "shunter_event_loop_delay_seconds",
            "How much later than asked for the server's event loop came back.",
            buckets=_SHORT,
            registry=mine,
        )
        transactions = Histogram(
            "shunter_store_transaction_seconds",
            "Transactions; on SQLite those that write are of many requests together.",
            ["kind"],
            buckets=_SHORT,
            registry=mine,
        )
        self._transactions = {kind: transactions.labels(kind) for kind in ("read", "write")}
        self._look: asyncio.Task[list[Metric]] | None = None

    def committed(self, changes: Changes) -> None:
        """Count what was committed."""
        for seconds in changes.claimed_after:
            self._claimed.observe(seconds)
        for seconds in changes.running_after:
            self._running.observe(seconds)
        for (state, cause), count in changes.ended.items():
            self._ends.labels(state, cause).inc(count)

    def transaction(self, kind: str, seconds: float) -> None:
        """A transaction is over, see :class:`~shunter_work_pools.storage.store.Store`."""
        self._transactions[kind].observe(seconds)

    async def page(self, look: Callable[[], Awaitable[list[Metric]]], accept: str) -> tuple[bytes, str]:
        """The page of all metrics, and its content type.

        Args:
            look: counts anew; not called while a look of somebody else is under way.
            accept: the forms that the asker understands, as HTTP has it.
        """
        if self._look is None or self._look.done():
            self._look = asyncio.ensure_future(look())
        page = CollectorRegistry()
        page.register(_Counted(await asyncio.shield(self._look)))
        page.register(self.registry)
        encode, content_type = choose_encoder(accept)
        return await asyncio.to_thread(encode, page), content_type


class _Counted(Collector):
    """What was counted already."""

    def __init__(self, found: list[Metric]) -> None:
        self.found = found

    def collect(self) -> list[Metric]:
        return self.found

    def describe(self) -> list[Metric]:
        return self.found


def gauges(census: Census, held_syncs: int, pending_writes: int | None) -> list[Metric]:
    """What was counted in a census, and what this server has on its hands at this moment."""
    return list(_gauges(census, held_syncs, pending_writes))


def _gauges(census: Census, held_syncs: int, pending_writes: int | None) -> Iterator[Metric]:
    server = census.server
    info = GaugeMetricFamily(
        "shunter_server_info", "What this server is; always 1.", labels=["version", "store", "schema"]
    )
    info.add_metric([server.version, server.store, server.schema_version], 1)
    yield info
    yield _one("shunter_maintenance", "Whether nothing is handed out to agents.", server.pause is not None)
    yield from _of_waiting(census)
    yield from _of_room(census)
    yield _by("shunter_agents", "Agents that are known.", "status", census.agents)
    active = {name: limit.active for name, limit in census.limits.items()}
    most = {name: limit.most for name, limit in census.limits.items() if limit.most is not None}
    yield _by("shunter_limit_active", "Live attempts that count under a limit.", "limit", active)
    yield _by("shunter_limit_max", "Live attempts that a limit allows.", "limit", most)
    yield _one("shunter_held_syncs", "Requests of agents that wait for something to say.", held_syncs)
    if server.database_bytes is not None:
        yield _one("shunter_store_bytes", "Size of the database.", server.database_bytes)
    if pending_writes is not None:
        yield _one("shunter_store_pending_writes", "Units of work that wait to be written.", pending_writes)


def _of_waiting(census: Census) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "shunter_waiting_runs", "Runs that wait in a queue.", labels=["pool", "queue", "due"]
    )
    oldest = GaugeMetricFamily(
        "shunter_oldest_due_seconds",
        "How long the run waits that is due longest in a queue and is not held; 0: none is.",
        labels=["pool", "queue"],
    )
    for (pool, queue), line in census.waiting.items():
        waiting.add_metric([pool, queue, "true"], line.due)
        waiting.add_metric([pool, queue, "false"], line.upcoming)
        oldest.add_metric([pool, queue], line.oldest)
    yield waiting
    yield oldest
    yield _by("shunter_waiting_runs_by_tag", "Waiting runs that carry a tag.", "tag", census.tags)
    yield _one("shunter_unplaced_runs", "Waiting runs that no pool matches.", census.unplaced)
    yield _one(
        "shunter_oldest_unplaced_seconds",
        "How long the one of them waits that is due longest and is not held; 0: none is.",
        census.oldest_unplaced,
    )
    yield _one("shunter_held_runs", "Waiting runs of something that is paused.", census.held)
    yield _one("shunter_late_runs", "Waiting runs that are late.", census.late)


def _of_room(census: Census) -> Iterator[Metric]:
    yield _by("shunter_active_leases", "Live attempts.", "pool", census.active)
    yield _by(
        "shunter_pool_wanted_slots",
        "Attempts that a pool would hold, had it agents without end: live ones, and runs that could start now.",
        "pool",
        census.wanted,
    )
    yield _one("shunter_lost_leases", "Live attempts of agents that are silent for too long.", census.lost)
    rooms = census.rooms
    slots = {pool: room.slots for pool, room in rooms.items()}
    used = {pool: room.slots_used for pool, room in rooms.items()}
    yield _by("shunter_pool_slots", "Attempts that a pool's live agents may hold.", "pool", slots)
    yield _by("shunter_pool_slots_used", "Attempts that a pool's live agents hold.", "pool", used)
    capacity = GaugeMetricFamily(
        "shunter_pool_capacity",
        "What a pool's live agents have: cores, bytes of memory, devices.",
        labels=["pool", "resource"],
    )
    taken = GaugeMetricFamily(
        "shunter_pool_capacity_used", "What of it attempts were promised.", labels=["pool", "resource"]
    )
    for pool, room in rooms.items():
        for name, amount in sorted(room.capacity.items()):
            capacity.add_metric([pool, name], amount)
            taken.add_metric([pool, name], room.capacity_used.get(name, 0))
    yield capacity
    yield taken


def _one(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _by(name: str, about: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
