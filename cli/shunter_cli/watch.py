"""``--watch``: states and output of a run as they come."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from shunter_cli import output
from shunter_cli.durations import in_words
from shunter_cli.faults import tell
from shunter_cli.waiting import AGAIN, HOLD, exit_code, has_ended, waits
from shunter_work_pools.contracts.errors import Refused, ServerUnreachable, Unavailable
from shunter_work_pools.contracts.plain_text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shunter_work_pools.client import AsyncClient, LogPart
    from shunter_work_pools.contracts.runs import Run

#: Seconds that the last bytes of an ended run may take to arrive before the view goes without them.
TAIL_LIMIT = 30.0


def watch(run: UUID, *, to_stderr: bool = False) -> int:
    """Follow a run to its end.

    Args:
        to_stderr: keep stdout free for what was printed there before.

    Returns:
        0 if Completed, 1 at any other end.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    view: View = _Live(to_stderr) if stream.isatty() else _Lines(to_stderr)
    with view:
        return asyncio.run(_follow(run, view))


class View(Protocol):
    """Where the follower puts what it sees."""

    def state(self, run: Run, why: str = "") -> None:
        """The run came into another state or attempt, or waits for another reason."""

    def line(self, attempt: int, text: str) -> None:
        """The run wrote a line."""

    def __enter__(self) -> object: ...
    def __exit__(self, *exc: object) -> None: ...


class _Lines:
    """One line per change, for files and pipes."""

    def __init__(self, to_stderr: bool) -> None:
        self._stream = sys.stderr if to_stderr else sys.stdout

    def state(self, run: Run, why: str = "") -> None:
        self._put(f"--- {_headline(run, why)}")

    def line(self, attempt: int, text: str) -> None:
        self._put(text)

    def _put(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def __enter__(self) -> object:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class _Live:
    """The run's lines scroll; below them stays what it does now, and for how long."""

    def __init__(self, to_stderr: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._run: Run | None = None
        self._why = ""
        self._console = Console(stderr=to_stderr, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=8, redirect_stdout=False
        )

    def state(self, run: Run, why: str = "") -> None:
        self._run, self._why = run, why
        if has_ended(run):
            self._live.update(self._render())
        self._live.refresh()

    def line(self, attempt: int, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(plain(text)), soft_wrap=True)

    def _render(self) -> RenderableType:
        from rich.spinner import Spinner
        from rich.text import Text

        if self._run is None:
            return Text("")
        head = _headline(self._run, self._why)
        text = Text(head, style=output.STYLES.get(self._run.state, "bold"), no_wrap=True, overflow="ellipsis")
        if has_ended(self._run):
            return text
        if self._run.started_at is not None:
            text.append(f"  {in_words(max(0.0, time.time() - self._run.started_at.timestamp()))}")
        return Spinner("dots", text)

    def __enter__(self) -> object:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()


def _headline(run: Run, why: str) -> str:
    parts = [f"{output.short(run.id)} {run.deployment}: {run.state}"]
    if run.cause:
        parts.append(f"({run.cause.value})")
    if run.attempts and not waits(run):
        last = run.attempts[-1]
        where = f"attempt {last.number} on {last.agent}" + (f", pid {last.pid}" if last.pid else "")
        parts.append(where)
    if why or run.message:
        parts.append(why or run.message or "")
    return plain(" ".join(parts))


async def _follow(run: UUID, view: View) -> int:
    from shunter_work_pools.client import AsyncClient

    async with AsyncClient() as client:
        ended = asyncio.Event()
        logs = asyncio.create_task(_logs(client, run, view, ended), name="watch-logs")
        try:
            found = await _states(client, run, view, logs, ended)
        finally:
            logs.cancel()
            with suppress(asyncio.CancelledError):
                await logs
        return exit_code(found)


async def _states(
    client: AsyncClient, run: UUID, view: View, logs: asyncio.Task[None], ended: asyncio.Event
) -> Run:
    """Show each new state; the last one after the run's last line."""
    found = await _patiently(client, run, None)
    while not has_ended(found):
        code, why = await _why(client, found)
        view.state(found, why)
        before = (found.state, found.attempt_count)
        while (found.state, found.attempt_count) == before:
            found = await _patiently(client, run, before)
            if logs.done():
                logs.result()
            if (found.state, found.attempt_count) == before and (await _why(client, found))[0] != code:
                break  # it waits for something else now
    ended.set()
    try:
        await asyncio.wait_for(asyncio.shield(logs), TAIL_LIMIT)
    except TimeoutError:
        tell(f"the last output of the run has not arrived; see `shunter run logs {run}`")
    view.state(found)
    return found


async def _why(client: AsyncClient, run: Run) -> tuple[str, str]:
    """Code and sentence of why a run waits; empty if it does not, or nothing holds it back.

    Of one that is being launched: what its engine says that this waits for.
    """
    if run.attempts and run.attempts[-1].note:
        return run.attempts[-1].note, run.attempts[-1].note
    if waits(run):
        with suppress(ServerUnreachable, Refused):  # the next state tells more
            found = await client.explain_run(run.id)
            if found.state == run.state and found.code != "about_to_start":
                return found.code, found.sentence
    return "", ""


async def _patiently(client: AsyncClient, run: UUID, seen: tuple[str, int] | None) -> Run:
    while True:
        try:
            return await client.get_run(run, wait=HOLD if seen else None, seen=seen)
        except (ServerUnreachable, Unavailable):
            await asyncio.sleep(AGAIN)


async def _logs(client: AsyncClient, run: UUID, view: View, ended: asyncio.Event) -> None:
    """Show the lines of every attempt, in order, until the run has ended and all are shown."""
    number = 1
    while True:
        found = await _patiently(client, run, None)
        if number <= found.attempt_count:
            await _attempt(client, run, number, view)
            number += 1
        elif has_ended(found):
            return
        else:
            await _patiently(client, run, (found.state, found.attempt_count))


async def _attempt(client: AsyncClient, run: UUID, number: int, view: View) -> None:
    at, rest = 0, b""
    while True:
        part = await _read(client, run, number, at)
        at = part.end
        *lines, rest = (rest + part.data).split(b"\n")
        for line in lines:
            view.line(number, line.decode("utf-8", "replace").removesuffix("\r"))
        if part.complete and at >= part.size:
            break
        if not part.data and not await _more_to_come(client, run, number):
            break
    if rest:
        view.line(number, rest.decode("utf-8", "replace"))


async def _read(client: AsyncClient, run: UUID, number: int, at: int) -> LogPart:
    while True:
        try:
            return await client.read_log(run, attempt=number, start=at, wait=HOLD)
        except (ServerUnreachable, Unavailable):
            await asyncio.sleep(AGAIN)


async def _more_to_come(client: AsyncClient, run: UUID, number: int) -> bool:
    """Whether the attempt still runs, or has ended and told how much it wrote."""
    found = await _patiently(client, run, None)
    one = next((attempt for attempt in found.attempts if attempt.number == number), None)
    return one is None or one.ended_at is None or one.log_size is not None
