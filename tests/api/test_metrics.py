"""The page of metrics: what Prometheus thinks of it, and whether it tells the truth."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from shunter_work_pools import engine as engine_module
from shunter_work_pools.contracts.limits import LimitSpec
from shunter_work_pools.queue import census as counting
from shunter_work_pools.queue import control, limits, reap
from shunter_work_pools.storage.schema import agents
from tests.api.serving import SOON, Served, until
from tests.engines.promtool import check

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"

Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def page(server: Served, accept: str = "*/*", path: str = "/metrics") -> tuple[str, str]:
    """The page and its content type."""
    answer = await server.http.get(f"http://127.0.0.1:{server.port}{path}", headers={"accept": accept})
    assert answer.status_code == 200, answer.text
    return answer.text, answer.headers["content-type"]


async def scraped(server: Served) -> Scrape:
    """What a scrape finds."""
    text, content_type = await page(server)
    assert content_type == PLAIN
    return Scrape(text)


class Scrape:
    """Samples by name and labels."""

    def __init__(self, text: str) -> None:
        self.samples: Found = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """One value; 0 for a counter that has not counted that yet."""
        return self.samples.get((f"shunter_{name}", frozenset(labels.items())), 0.0)

    def of(self, name: str) -> dict[str, float]:
        """All values of a metric with one label, by that."""
        return {
            next(iter(labels))[1]: value
            for (found, labels), value in self.samples.items()
            if found == f"shunter_{name}"
        }


async def history(server: Served) -> list[Any]:
    """A little of everything: what waits, runs, has ended, is paused or fits nowhere."""
    await server.pool("main", limit=3)
    await server.pool("side")
    await server.post("/pools/main/queues", {"name": "fast"}, 201)
    await server.deploy("job", pool="main", tags=["a", "b"], retries={"count": 1}, need={"gpu": 1})
    await server.deploy("quick", pool="main", queue="fast", tags=["b"])
    await server.deploy("held", pool="side")
    await server.deploy("nowhere", tags=["x"])
    await server.ask("PATCH", "/deployments/held", json={"paused": True})
    for _ in range(3):
        await server.submit("job")
    await server.submit("quick", scheduled_at="2099-01-01T00:00:00Z")
    await server.submit("held")
    await server.submit("nowhere")
    cancelled = await server.submit("held")
    await server.post(f"/runs/{cancelled}/cancel")
    granted = await server.take(limit=4, free=2, capacity={"gpu": 4}, free_capacity={"gpu": 4})
    assert len(granted) == 2
    await server.report(granted[0], "Starting", "Running")
    await server.upload(granted[0], 0, b"twelve bytes")
    await server.report(granted[0], "Completed", exit_code=0, log_size=12)
    return granted


async def test_what_prometheus_thinks_of_it(server: Served, promtool: Path) -> None:
    await history(server)
    text, _ = await page(server)
    assert check(promtool, text.encode()) == ""
    assert check(promtool, b"# TYPE shunter_x counter\nshunter_x 1\n") != "", "it would say something"


async def test_it_tells_what_the_store_has(server: Served) -> None:
    granted = await history(server)
    seen = await scraped(server)
    assert seen("waiting_runs", pool="main", queue="default", due="true") == 1
    assert seen("waiting_runs", pool="main", queue="fast", due="false") == 1
    assert seen("waiting_runs", pool="side", queue="default", due="true") == 1
    assert seen("waiting_runs", pool="main", queue="fast", due="true") == 0
    assert seen.of("waiting_runs_by_tag") == {"a": 1, "b": 2, "x": 1}
    assert (seen("unplaced_runs"), seen("held_runs"), seen("late_runs")) == (1, 1, 0)
    assert 0 < seen("oldest_unplaced_seconds") < 60
    assert 0 < seen("oldest_due_seconds", pool="main", queue="default") < 60
    assert seen("oldest_due_seconds", pool="main", queue="fast") == 0
    assert seen.of("active_leases") == {"main": 1, "side": 0}
    assert seen("lost_leases") == 0
    assert (seen("pool_slots", pool="main"), seen("pool_slots_used", pool="main")) == (4, 1)
    assert seen("pool_slots", pool="side") == 0
    assert seen("pool_capacity", pool="main", resource="gpu") == 4
    assert seen("pool_capacity_used", pool="main", resource="gpu") == 1
    assert seen.of("agents") == {"ready": 1, "unwell": 0, "paused": 0, "draining": 0, "stopped": 0, "lost": 0}
    assert seen("maintenance") == 0
    assert seen("store_bytes") == pytest.approx((await server.get("/server"))["database_bytes"], rel=0.5)
    kind = server.engine.store.kind
    info = await server.get("/server")
    assert seen("server_info", version=info["version"], store=kind, schema=info["schema_version"]) == 1
    assert (("shunter_store_pending_writes", frozenset()) in seen.samples) == (kind == "sqlite")

    # What was counted as it went.
    assert seen("run_ends_total", state="Completed", cause="") == 1
    assert seen("run_ends_total", state="Cancelled", cause="cancelled") == 1
    assert seen("start_latency_seconds_count", until="claimed") == 2
    assert seen("start_latency_seconds_count", until="running") == 1
    assert 0 < seen("start_latency_seconds_sum", until="running") < 60
    assert seen("agent_requests_total", kind="reports") == 2
    assert seen("agent_requests_total", kind="logs") == 1
    assert seen("agent_requests_total", kind="sync") == 1
    assert (seen("reports_total"), seen("log_bytes_total")) == (3, 12)
    assert seen("store_transaction_seconds_count", kind="write") > 10
    assert seen("store_transaction_seconds_count", kind="read") > 5

    await server.ask("PATCH", "/server", json={"paused": True})
    await server.ask("PATCH", "/agents/a1", json={"paused": True})
    seen = await scraped(server)
    assert (seen("maintenance"), seen("held_runs")) == (1, 4)
    assert seen.of("agents")["paused"] == 1
    await server.ask("PATCH", "/server", json={"paused": False})

    # A run that is tried again has not ended, and its second start is not one of the first attempts.
    await server.ask("PATCH", "/agents/a1", json={"paused": False})
    await server.report(
        granted[1], "Starting", "Running", "Failed", cause="exit_code", exit_code=1, log_size=0
    )
    assert (await scraped(server))("run_ends_total", state="Failed", cause="exit_code") == 0
    again = await server.take(free=2, limit=4, capacity={"gpu": 4}, free_capacity={"gpu": 4})
    (second,) = [one for one in again if one["attempt"] == 2]
    before = (await scraped(server))("start_latency_seconds_count", until="claimed")
    assert before == 3, "of three first attempts"
    await server.report(second, "Starting", "Running", "Failed", cause="exit_code", exit_code=1, log_size=0)
    seen = await scraped(server)
    assert seen("run_ends_total", state="Failed", cause="exit_code") == 1
    assert seen("start_latency_seconds_count", until="running") == 2


async def test_what_a_pool_would_run_had_it_agents_enough(server: Served) -> None:
    """What is wanted of agents to come: not what a pause or a limit holds back."""
    await server.pool("main")
    await server.pool("idle")
    await server.post("/pools/main/queues", {"name": "fast"}, 201)

    async def wanted() -> dict[str, float]:
        return (await scraped(server)).of("pool_wanted_slots")

    assert await wanted() == {"main": 0, "idle": 0}
    await server.deploy("job", pool="main")
    for _ in range(5):
        await server.submit("job")
    await server.submit("job", scheduled_at="2099-01-01T00:00:00Z")
    assert await wanted() == {"main": 5, "idle": 0}
    granted = await server.take(limit=2, free=2)
    assert len(granted) == 2
    assert await wanted() == {"main": 5, "idle": 0}, "what runs is not to be left without an agent"
    await server.deploy("other", pool="main", queue="fast", max_active=2)
    for _ in range(4):
        await server.submit("other")
    assert (await wanted())["main"] == 7

    async def with_(path: str, value: Any, field: str = "paused") -> float:
        """What is wanted while something is so."""
        await server.ask("PATCH", path, json={field: value})
        found = (await wanted())["main"]
        await server.ask("PATCH", path, json={field: None if field == "limit" else False})
        return found

    assert await with_("/deployments/job", True) == 4
    assert await with_("/pools/main/queues/fast", True) == 5
    assert await with_("/pools/main", True) == 2
    assert await with_("/server", True) == 2
    assert await with_("/pools/main", 4, "limit") == 4
    assert await with_("/pools/main", 1, "limit") == 2, "there are more than may be; none is to be added"
    assert await with_("/pools/main/queues/default", 3, "limit") == 5
    assert (await wanted())["main"] == 7
    await limit(server, "shared", 3)
    for name, queue in (("left", "default"), ("right", "fast")):
        await server.deploy(name, pool="main", queue=queue, limits=["shared"])
        for _ in range(3):
            await server.submit(name)
    assert (await wanted())["main"] == 10, "three of both together"
    await server.post("/limits", {"name": "slow", "rate": {"count": 1, "seconds": 3600}}, 201)
    await server.deploy("rare", pool="idle", limits=["slow"])
    for _ in range(3):
        await server.submit("rare")
    assert (await wanted())["idle"] == 1
    await server.take("a2", pools=["idle"], session=str(UUID(int=2)))
    assert (await wanted())["idle"] == 1, "it runs, and the next may start in an hour"


async def limit(server: Served, name: str, most: int) -> None:
    spec = LimitSpec(name=name, max=most)
    await server.engine.store.write(lambda tx: limits.create_limit(tx, spec))


async def test_limits_held_requests_and_lost_agents(plain: Served) -> None:
    await plain.pool()
    await limit(plain, "few", 2)
    await plain.deploy(pool="main", limits=["few"])
    await plain.submit()
    await plain.take()
    waits = asyncio.create_task(plain.sync("a2", identity=await plain.submit(), hold_for=SOON, taking=False))
    await until(lambda: len(plain.engine.hub.agents) == 1)
    seen = await scraped(plain)
    assert (seen("limit_active", limit="few"), seen("limit_max", limit="few")) == (1, 2)
    assert (seen("held_syncs"), seen("lost_leases"), seen.of("agents")["lost"]) == (1, 0, 0)
    waits.cancel()

    await plain.without("heartbeat")
    await plain.engine.store.write(lambda tx: tx.conn.execute(update(agents).values(last_seen_at=0)))
    await plain.engine.store.write(lambda tx: reap.mark_lost(tx, 1))
    seen = await scraped(plain)
    assert (seen("lost_leases"), seen.of("agents")["lost"], seen.of("agents")["ready"]) == (1, 2, 0)
    assert (seen("active_leases", pool="main"), seen("pool_slots", pool="main")) == (1, 0)


async def test_what_was_rolled_back_is_not_counted(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.pool()
    await server.deploy(pool="main")
    run = await server.submit()
    await server.without("dispatch")

    def cancel_and_fail(tx: Any) -> None:
        control.cancel(tx, UUID(run))
        raise KeyError("in the middle of it")

    with pytest.raises(KeyError):
        await server.engine.store.write(cancel_and_fail)
    assert (await scraped(server))("run_ends_total", state="Cancelled", cause="cancelled") == 0
    await server.post(f"/runs/{run}/cancel")
    assert (await scraped(server))("run_ends_total", state="Cancelled", cause="cancelled") == 1


async def test_the_event_loops_delay_is_seen(plain: Served) -> None:
    def above() -> float:
        delay = plain.engine.metrics.loop_delay
        counts = {s.labels["le"]: s.value for s in delay.collect()[0].samples if s.name.endswith("bucket")}
        return float(counts["+Inf"] - counts["0.5"])

    assert above() == 0
    time.sleep(1.2)  # noqa: ASYNC251 - the loop is to stand still
    await until(lambda: above() == 1)


async def test_openmetrics_is_given_to_those_who_ask_for_it(plain: Served) -> None:
    text, content_type = await page(
        plain, accept="application/openmetrics-text; version=1.0.0,text/plain;q=0.5"
    )
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in openmetrics_families(text)}
    assert {"shunter_run_ends", "shunter_waiting_runs", "process_resident_memory_bytes"} <= names
    assert (await page(plain, path="/api/metrics"))[1] == PLAIN


async def test_it_wants_the_token(plain: Served) -> None:
    for path in ("/metrics", "/api/metrics"):
        url = f"http://127.0.0.1:{plain.port}{path}"
        answer = await plain.http.get(url, headers={"authorization": ""})
        assert answer.status_code == 401


async def test_scrapes_at_once_share_a_look_and_nobody_waits_for_it(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.pool()
    await server.deploy(pool="main")
    go_on, looks = threading.Event(), []

    def slow(*arguments: Any) -> counting.Census:
        looks.append(1)
        if server.engine.store.kind == "sqlite":  # in its reader's thread; Postgres' is the loop's own
            assert go_on.wait(SOON)
        return counting.census(*arguments)

    monkeypatch.setattr(engine_module, "census", slow)
    scrapes = [asyncio.create_task(page(server)) for _ in range(3)]
    await until(lambda: looks)
    run = await server.submit()
    assert [one["run"] for one in await server.take()] == [run], "claims do not wait for it"
    go_on.set()
    pages = await asyncio.gather(*scrapes)
    assert len(looks) == 1
    assert all("shunter_waiting_runs" in text for text, _ in pages)


async def test_names_are_bounded(plain: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "NAMED", 3)
    monkeypatch.setattr(counting, "TAGS", 2)
    for at in range(5):
        await plain.pool(f"p{at}")
        await plain.deploy(f"d{at}", pool=f"p{at}", tags=[f"t{at}", "all"])
        for _ in range(at + 1):
            await plain.submit(f"d{at}")
        await limit(plain, f"l{at}", at + 1)
    await plain.sync(
        pools=[f"p{at}" for at in range(5)],
        free=0,
        capacity=dict.fromkeys("abcde", 1),
    )
    seen = await scraped(plain)
    queues = {
        dict(labels)["pool"]: value
        for (name, labels), value in seen.samples.items()
        if name == "shunter_waiting_runs" and dict(labels)["due"] == "true"
    }
    assert queues == {"p0": 1, "p1": 2, "p2": 3, "(other)": 9}
    assert seen.of("waiting_runs_by_tag") == {"all": 15, "t4": 5, "(other)": 10}
    assert seen.of("pool_slots") == {"p0": 10, "p1": 10, "p2": 10, "(other)": 10}, "one agent, once"
    assert seen("pool_capacity", pool="p0", resource="(other)") == 2
    assert seen.of("limit_max") == {"l0": 1, "l1": 2, "l2": 3, "(other)": 9}
    assert not any(math.isnan(value) for value in seen.samples.values())


async def test_every_metric_is_on_its_page_in_the_docs(server: Served) -> None:
    await history(server)
    await limit(server, "few", 2)
    documented = {
        match[1]: frozenset(re.findall(r"`(\w+)`", match[2]))
        for match in re.finditer(r"^\| `(shunter_\w+)` \|([^|]*)\|", DOCS.read_text(), re.MULTILINE)
    }
    text, _ = await page(server)
    told: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("shunter_") and not family.name.endswith("_created"):
            labels = {label for sample in family.samples for label in sample.labels}
            told[f"{family.name}_total" if family.type == "counter" else family.name] = frozenset(
                labels - {"le"}
            )
    if server.engine.store.kind == "postgres":
        del documented["shunter_store_pending_writes"]
    assert told == documented


async def test_an_agent_that_drained_and_ended_is_not_lost(plain: Served) -> None:
    """It is in no alarm, and its room is none: it said last that it drains, with nothing left."""
    await plain.pool()
    await plain.sync(capacity={"cpu": 4})
    await plain.sync(capacity={"cpu": 4}, draining=True, taking=False, free=0)
    await plain.without("heartbeat")
    await plain.engine.store.write(lambda tx: tx.conn.execute(update(agents).values(last_seen_at=0)))
    seen = await scraped(plain)
    assert seen("agents", status="stopped") == 1
    assert seen("agents", status="lost") == 0
    assert seen("pool_capacity", pool="main", resource="cpu") == 0
    (agent,) = (await plain.get("/agents"))["agents"]
    assert (agent["stopped"], agent["lost"]) == (True, False)
