"""Thousands of runs that end at once: how their logs are read, by an API server that does what a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from shunter_infrastructure.copied_output import OUTPUT
from shunter_infrastructure.kubernetes import output
from shunter_infrastructure.kubernetes.output import Outputs, Pod
from tests.patience import SOON

LINE = b"2026-11-26T07:00:00.000000000Z hello\n"


class _Answer:
    """A log of one line; one that is followed has no end."""

    status = 200

    def __init__(self, begin: asyncio.Event, taken: asyncio.Event, *, follows: bool) -> None:
        self._begin = begin
        self._taken = taken
        self._follows = follows

    async def pieces(self) -> AsyncIterator[bytes]:
        await self._begin.wait()
        yield LINE
        self._taken.set()
        if self._follows:
            await asyncio.Event().wait()


class Scripted:
    """Logs of one line each.

    Attributes:
        asked: pod and query of each request.
        silent: names of pods whose nodes say nothing until ``speak`` is set.
        came: set with the first request.
        taken: set once a line was read.
        reading: requests under way, beside streams.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.silent: set[str] = set()
        self.speak, self.came, self.taken = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._at_once = asyncio.Event()
        self._at_once.set()
        self.reading = self.most_reading = 0

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str]) -> AsyncIterator[_Answer]:
        name = path.split("/")[-2]
        self.asked.append((name, dict(query)))
        self.came.set()
        begin = self.speak if name in self.silent else self._at_once
        if "follow" in query:
            yield _Answer(begin, self.taken, follows=True)
            return
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        try:
            await asyncio.sleep(0)  # others come meanwhile
            yield _Answer(begin, self.taken, follows=False)
        finally:
            self.reading -= 1


def _pods(tmp_path: Path, count: int) -> dict[Pod, Path]:
    found = {Pod("default", f"pod-{number}"): tmp_path / str(number) for number in range(count)}
    for folder in found.values():
        folder.mkdir()
    return found


async def test_a_followed_log_whose_last_line_has_just_come_is_not_read_again(tmp_path: Path) -> None:
    """Its line and its end come within a second, before it is noted by the clock how far the copy came."""
    api = Scripted()
    outputs = Outputs(api)
    outputs.follow(Pod("default", "pod"), tmp_path)
    await api.taken.wait()
    await outputs.complete(Pod("default", "pod"), tmp_path)
    assert [query.get("follow", query.get("tailLines")) for _, query in api.asked] == ["true", "1"]
    assert (tmp_path / OUTPUT).read_bytes() == b"hello\n"
    await outputs.close()


async def test_what_is_completed_is_followed_by_nobody(tmp_path: Path) -> None:
    """The agent looks at the output of what it takes for running: two that copy at once would double it."""
    api, pod = Scripted(), Pod("default", "pod")
    api.silent.add(pod.name)
    outputs = Outputs(api)
    completing = asyncio.create_task(outputs.complete(pod, tmp_path))
    await api.came.wait()
    assert outputs.copies(tmp_path)
    outputs.follow(pod, tmp_path)
    api.speak.set()
    await completing
    assert not any("follow" in query for _, query in api.asked)
    assert (tmp_path / OUTPUT).read_bytes() == b"hello\n"
    assert not outputs.copies(tmp_path)
    await outputs.close()


async def test_many_that_end_at_once_are_read_by_few_connections(tmp_path: Path) -> None:
    """Two requests each; and what is less urgent comes behind those that waited before it."""
    api, order = Scripted(), list[str]()
    outputs = Outputs(api)

    async def end(pod: Pod, folder: Path) -> None:
        await outputs.complete(pod, folder)
        order.append(pod.name)

    async def delete() -> None:
        async with outputs.in_turn():
            order.append("delete")

    pods = _pods(tmp_path, 200)
    ends = [asyncio.create_task(end(pod, folder)) for pod, folder in pods.items()]
    await asyncio.sleep(0)
    await asyncio.gather(*ends, asyncio.create_task(delete()))
    assert api.most_reading <= output._MOST_READ
    assert len(api.asked) == 400
    assert order.index("delete") > 150
    assert all((folder / OUTPUT).read_bytes() == b"hello\n" for folder in pods.values())
    await outputs.close()


async def test_nodes_that_are_silent_hold_up_no_other_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shunter_infrastructure.kubernetes.output._QUICK", 0.05)
    api = Scripted()
    outputs = Outputs(api)
    pods = _pods(tmp_path, 3 * output._MOST_READ + 1)
    *lost, (pod, folder) = pods.items()
    api.silent |= {one.name for one, _ in lost}
    stuck = [asyncio.create_task(outputs.complete(*one)) for one in lost]
    await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        await outputs.complete(pod, folder)
    assert (folder / OUTPUT).read_bytes() == b"hello\n"
    assert not any(one.done() for one in stuck)
    api.speak.set()
    await asyncio.gather(*stuck)
    await outputs.close()


async def test_while_many_end_none_begins_to_be_followed(tmp_path: Path) -> None:
    """It may be the next to end. Once there is time, as many are followed as may be."""
    api = Scripted()
    outputs = Outputs(api, most_open=1)
    pods = _pods(tmp_path, 100)
    for pod, folder in pods.items():
        outputs.follow(pod, folder)
    await api.taken.wait()
    *ending, (last, _) = pods.items()
    await asyncio.gather(*(outputs.complete(pod, folder) for pod, folder in ending))
    await asyncio.sleep(0)
    assert [pod for pod, query in api.asked if "follow" in query] == ["pod-0", last.name]
    assert all((folder / OUTPUT).read_bytes() == b"hello\n" for _, folder in ending)
    await outputs.close()
