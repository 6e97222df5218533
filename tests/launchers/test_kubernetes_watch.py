"""What is known of Jobs and pods when watches break, expire and lie about nothing: against an API server of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest

from shunter_infrastructure.kubernetes import watch as module
from shunter_infrastructure.kubernetes.client import Refused
from shunter_infrastructure.kubernetes.watch import Watch
from shunter_infrastructure.launcher import LauncherUnavailable
from tests.launchers.attempts import until

Document = dict[str, Any]


class Answer:
    """A watch, as far as it is written."""

    def __init__(self, events: asyncio.Queue[Document | Exception | None]) -> None:
        self._events = events

    async def demand(self) -> None:
        pass

    async def lines(self) -> AsyncIterator[bytes]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield json.dumps(event).encode()


class Server:
    """Lists and watches of Jobs and pods.

    Attributes:
        objects: what is there, by the end of its path (``jobs``, ``pods``) and its name.
        version: of all of it.
        away: while set, nothing is answered.
        expired: watches from before this version are refused.
        lists, watches: what was asked for.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Document]] = {"jobs": {}, "pods": {}}
        self.version = 1
        self.away = False
        self.expired = 0
        self.lists: list[Mapping[str, str]] = []
        self.watches: list[tuple[str, Mapping[str, str]]] = []
        self._open: dict[str, list[asyncio.Queue[Document | Exception | None]]] = {"jobs": [], "pods": []}

    async def call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, **more: Any
    ) -> Document:
        await asyncio.sleep(0)
        if self.away:
            raise LauncherUnavailable("the API server is away")
        assert query is not None
        self.lists.append(query)
        items = list(self.objects[path.rsplit("/", 1)[1]].values())
        begin, limit = int(query.get("continue", 0)), int(query["limit"])
        more_of_it = {"continue": str(begin + limit)} if begin + limit < len(items) else {}
        return {
            "items": items[begin : begin + limit],
            "metadata": {"resourceVersion": str(self.version), **more_of_it},
        }

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], silence: float | None = None
    ) -> AsyncIterator[Answer]:
        if self.away:
            raise LauncherUnavailable("the API server is away")
        kind = path.rsplit("/", 1)[1]
        self.watches.append((kind, query))
        if int(query["resourceVersion"]) < self.expired:
            raise Refused(410, "Expired", "too old resource version")
        events: asyncio.Queue[Document | Exception | None] = asyncio.Queue()
        self._open[kind].append(events)
        try:
            yield Answer(events)
        finally:
            self._open[kind].remove(events)

    def put(self, kind: str, one: Document, *, told: bool = True) -> None:
        self.version += 1
        name = one["metadata"]["name"]
        verb = "MODIFIED" if name in self.objects[kind] else "ADDED"
        one["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind][name] = json.loads(json.dumps(one))
        if told:
            self._tell(kind, {"type": verb, "object": one})

    def remove(self, kind: str, name: str, *, told: bool = True) -> None:
        self.version += 1
        one = self.objects[kind].pop(name)
        one["metadata"]["resourceVersion"] = str(self.version)
        if told:
            self._tell(kind, {"type": "DELETED", "object": one})

    def say(self, kind: str, event: Document | Exception | None) -> None:
        self._tell(kind, event)

    def _tell(self, kind: str, event: Document | Exception | None) -> None:
        for events in self._open[kind]:
            events.put_nowait(json.loads(json.dumps(event)) if isinstance(event, dict) else event)

    def end_watches(self, how: Exception | None = None) -> None:
        for kind in self._open:
            self._tell(kind, how)


def pod(run: UUID, phase: str = "Pending", **more: Any) -> Document:
    """A pod of a run, with all that a real one has beside."""
    labels = {"shunter.dev/run": str(run), "shunter.dev/attempt": "1", "shunter.dev/pool": "cluster"}
    fields = [
        {"manager": f"m{n}", "fieldsV1": {f"f:{word}": {} for word in "abcdefgh" * 8}} for n in range(9)
    ]
    return {
        "metadata": {
            "name": f"shunter-{run}-1-abcde",
            "uid": str(run),
            "creationTimestamp": "2026-11-26T10:00:00Z",
            "labels": labels,
            "managedFields": fields,
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [
                {
                    "name": "run",
                    "image": "localhost/python:3.11",
                    "command": ["sh", "-c", "x" * 3000],
                    "resources": {"limits": {"memory": "64Mi"}},
                    "env": [{"name": f"N{n}", "value": "v" * 50} for n in range(20)],
                }
            ],
            "volumes": [{"name": f"v{n}", "emptyDir": {}} for n in range(5)],
        },
        "status": {
            "phase": phase,
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": "2026-11-26T10:00:00Z"}
                for kind in (
                    "PodReadyToStartContainers",
                    "Initialized",
                    "Ready",
                    "ContainersReady",
                    "PodScheduled",
                )
            ],
            "containerStatuses": [
                {
                    "name": "run",
                    "imageID": "sha256:" + "0" * 64,
                    "containerID": "containerd://" + "0" * 64,
                    "state": {"running": {"startedAt": "2026-11-26T10:00:00Z"}},
                }
            ],
            **more,
        },
    }


def job(run: UUID) -> Document:
    labels = {"shunter.dev/run": str(run), "shunter.dev/attempt": "1", "shunter.dev/agent": "a1"}
    return {
        "metadata": {
            "name": f"shunter-{run}-1",
            "uid": f"job-{run}",
            "labels": labels,
            "annotations": {"shunter.dev/epoch": "1"},
        },
        "spec": {},
        "status": {},
    }


def name_of(run: UUID) -> str:
    return f"shunter-{run}-1"


@pytest.fixture
def server() -> Server:
    return Server()


@contextlib.asynccontextmanager
async def watching(server: Server, *wanted: UUID) -> AsyncIterator[Watch]:
    watch = Watch(server, "here", {name_of(run) for run in wanted})  # type: ignore[arg-type]
    try:
        await watch.ready()
        await until(lambda: len(server.watches) >= 2, "both watches")
        yield watch
    finally:
        await watch.close()


def phase(watch: Watch, run: UUID) -> str | None:
    found = watch.pod(name_of(run))
    return None if found is None else found["status"]["phase"]


async def test_what_was_there_is_listed_in_pages_and_what_comes_is_heard(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    runs = [uuid4() for _ in range(8)]
    for run in runs:
        server.put("pods", pod(run))
    async with watching(server) as watch:
        assert [phase(watch, run) for run in runs] == ["Pending"] * 8
        assert len([query for query in server.lists if query.get("continue")]) == 2
        with watch.bell(name_of(runs[0])) as bell, watch.bell(name_of(runs[1])) as other:
            server.put("pods", pod(runs[0], "Running"))
            await asyncio.wait_for(bell.wait(), 5)
            assert phase(watch, runs[0]) == "Running"
            assert not other.is_set()


async def test_a_watch_that_ends_goes_on_where_it_was(server: Server) -> None:
    run = uuid4()
    server.put("pods", pod(run))
    async with watching(server) as watch:
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "77"}}}
        server.version = 77
        server.say("pods", bookmark)
        listed = len(server.lists)
        server.end_watches()
        await until(lambda: ("pods", "77") in [(k, q["resourceVersion"]) for k, q in server.watches], "77")
        assert len(server.lists) == listed
        server.put("pods", pod(run, "Succeeded"))
        await until(lambda: phase(watch, run) == "Succeeded", "the end")


@pytest.mark.parametrize("told", ["at once", "as an event"])
async def test_a_watch_that_expired_begins_with_a_list(server: Server, told: str) -> None:
    """What happened in between is known: changes, and what is gone."""
    changed, gone, wanted = uuid4(), uuid4(), uuid4()
    for run in (changed, gone, wanted):
        server.put("pods", pod(run))
    async with watching(server, wanted) as watch:
        server.put("pods", pod(changed, "Succeeded"), told=False)
        for run in (gone, wanted):
            server.remove("pods", pod(run)["metadata"]["name"], told=False)
        with watch.bell(name_of(wanted)) as bell:
            if told == "at once":
                server.expired = server.version
                server.end_watches()
            else:
                server.say("pods", {"type": "ERROR", "object": {"kind": "Status", "code": 410}})
            await asyncio.wait_for(bell.wait(), 5)
        assert phase(watch, changed) == "Succeeded"
        assert watch.pod(name_of(gone)) is None
        last = watch.pod(name_of(wanted))
        assert last is not None
        assert last["gone"] is True
        assert watch.trouble is None


async def test_a_server_that_is_away_is_told_and_found_again(server: Server) -> None:
    run = uuid4()
    server.put("pods", pod(run))
    async with watching(server, run) as watch:
        with watch.bell(name_of(run)) as bell:
            server.away = True
            server.end_watches(LauncherUnavailable("broken off"))
            await asyncio.wait_for(bell.wait(), 5)
            with pytest.raises(LauncherUnavailable, match="away"):
                watch.demand()
            bell.clear()
            server.put("pods", pod(run, "Failed"), told=False)
            server.expired = server.version
            server.away = False
            await until(lambda: watch.trouble is None, "it is back")
            assert bell.is_set()
            assert phase(watch, run) == "Failed"


async def test_a_connection_that_breaks_is_no_trouble(server: Server) -> None:
    async with watching(server) as watch:
        before = len(server.watches)
        server.end_watches(LauncherUnavailable("broken off"))
        await until(lambda: len(server.watches) == before + 2, "new watches")
        assert watch.trouble is None


@pytest.mark.parametrize("how", [None, LauncherUnavailable("broken off")])
async def test_watches_that_end_at_once_are_not_asked_for_without_a_pause(
    server: Server, monkeypatch: pytest.MonkeyPatch, how: Exception | None
) -> None:
    """As a balancer does whose servers are about to end."""

    async def lines(answer: Answer) -> AsyncIterator[bytes]:
        await asyncio.sleep(0)
        if how is not None:
            raise how
        return
        yield b""

    monkeypatch.setattr(Answer, "lines", lines)
    async with watching(server) as watch:
        await asyncio.sleep(2)
        assert watch.trouble is None
        assert len(server.watches) < 30


async def test_there_is_trouble_as_long_as_one_of_the_two_is_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs may be watched again while pods may not."""
    monkeypatch.setattr(module, "_FIRST_PAUSE", 2.0)
    async with watching(server) as watch:
        stream = server.stream

        def broken(path: str, *words: Any, **more: Any) -> Any:
            if path.endswith("pods"):
                raise LauncherUnavailable("no pods")
            return stream(path, *words, **more)

        server.stream = broken  # type: ignore[method-assign]
        server.end_watches(LauncherUnavailable("broken off"))
        await until(lambda: watch.trouble is not None, "trouble")
        before = len(server.watches)
        server.say("jobs", None)
        await until(lambda: len(server.watches) > before, "the Jobs are watched")
        await asyncio.sleep(0.1)
        assert watch.trouble is not None
        server.stream = stream  # type: ignore[method-assign]
        await until(lambda: watch.trouble is None, "no trouble")


async def test_a_job_that_was_made_while_the_list_was_on_its_way_is_not_lost(server: Server) -> None:
    run = uuid4()
    async with watching(server, run) as watch:
        made = job(run)
        made["metadata"]["resourceVersion"] = str(server.version + 5)
        watch.take(made)
        listed = len(server.lists)
        server.say("jobs", {"type": "ERROR", "object": {"kind": "Status", "code": 410}})
        await until(lambda: len(server.lists) > listed, "a list")
        await asyncio.sleep(0.05)
        found = watch.job(name_of(run))
        assert found is not None
        assert not found.get("gone")


async def test_what_is_gone_is_forgotten_unless_it_is_wanted(server: Server) -> None:
    run, other = uuid4(), uuid4()
    for one in (run, other):
        server.put("pods", pod(one))
    async with watching(server, run) as watch:
        for one in (run, other):
            server.remove("pods", pod(one)["metadata"]["name"])
        await until(lambda: watch.pod(name_of(other)) is None, "gone")
        last = watch.pod(name_of(run))
        assert last is not None
        assert last["gone"] is True
        watch.forget(name_of(run))
        assert watch.pod(name_of(run)) is None


async def test_a_pod_takes_about_a_kilobyte(server: Server) -> None:
    for _ in range(300):
        run = uuid4()
        server.put("pods", pod(run))
        server.put("jobs", job(run))
    watch = Watch(server, "here", set())  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        await watch.ready()
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    kept = sum(stat.size_diff for stat in after.compare_to(before, "filename") if "watch" in str(stat))
    await watch.close()
    assert sys.getsizeof(json.dumps(pod(uuid4()))) > 7000
    assert kept / 300 < 2000, f"{kept / 300:.0f} bytes for a pod with its Job"
