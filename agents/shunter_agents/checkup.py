"""Looks after the machine: its disk, its memory, and what a command of the user's says of it.

Looking must not hold up the agent. The disk is tried in a thread of its own, that nobody waits for at
the end: on a disk that hangs it may never come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shunter_agents.health import SLOW, Health, Kind
from shunter_agents.options import Options
from shunter_agents.state_folder import StateFolder
from shunter_work_pools.contracts.sizes import size

T = TypeVar("T")

#: Seconds between two looks while something is wrong.
AGAIN = 2.0
#: Seconds that the user's command may take.
CHECK_LIMIT = 30.0
#: Bytes of its output that are kept, from the end.
OUTPUT_KEPT = 4096

_MEMORY = Path("/proc/meminfo")


class Checkup:
    """Finds troubles of the machine and tells :class:`Health`."""

    def __init__(self, health: Health, folder: StateFolder, options: Options) -> None:
        self._health = health
        self._folder = folder
        self._options = options
        self._soon = asyncio.Event()
        health.on_writing = self._soon.set

    def first_look(self) -> None:
        """Before anything is taken. The state folder was written a moment ago: this does not hang."""
        self._look_at_memory()
        self._judge_disk(self._try_disk)
        if self._options.health_check is not None:
            self._health.trouble(Kind.CHECK, "its health check (agent.health_check) has not been run yet")

    async def watch_machine(self) -> None:
        """Look at disk and memory, for ever."""
        while True:
            self._soon.clear()
            self._look_at_memory()
            await self._look_at_disk()
            if self._options.policy is not None:
                await asyncio.wait({_apart(self._options.policy.refresh)})
                self.judge_policy()
            wrong = any(map(self._health.has, (Kind.DISK, Kind.MEMORY, Kind.POLICY)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    min(AGAIN, self._options.health_every) if wrong else self._options.health_every
                ):
                    await self._soon.wait()

    async def watch_check(self) -> None:
        """Run the user's command, for ever, one at a time."""
        assert self._options.health_check is not None
        while True:
            wrong = await _complaint(self._options.health_check)
            if wrong is None:
                self._health.well(Kind.CHECK)
            else:
                self._health.trouble(Kind.CHECK, f"its health check fails: {wrong}")
            await asyncio.sleep(self._options.health_every)

    def judge_policy(self) -> None:
        """Whether the file of the policy, as it was read last, is in force."""
        policy = self._options.policy
        if policy is not None and policy.trouble is not None:
            self._health.trouble(Kind.POLICY, policy.trouble)
        else:
            self._health.well(Kind.POLICY)

    async def _look_at_disk(self) -> None:
        look = _apart(self._try_disk)
        done, _ = await asyncio.wait({look}, timeout=SLOW)
        if not done:
            self._health.slow()
        await asyncio.wait({look})
        if (
            not self._soon.is_set()
        ):  # else a write failed meanwhile: this look is too old to say that it is over
            self._judge_disk(look.result)

    def _judge_disk(self, found: Callable[[], tuple[int, float]]) -> None:
        try:
            free, took = found()
        except OSError as exc:
            self._health.unwritable(exc)
            return
        if took > SLOW:
            self._health.slow()
        elif free < self._options.min_disk:
            self._health.trouble(
                Kind.DISK,
                f"less than {size(self._options.min_disk)} (agent.min_disk) is free on the disk of the "
                f"state folder {self._folder.path}",
            )
        else:
            self._health.well(Kind.DISK)

    def _try_disk(self) -> tuple[int, float]:
        """Bytes that are free, and the seconds that a small write took."""
        began = time.monotonic()
        self._folder.try_writing()
        took = time.monotonic() - began
        found = os.statvfs(self._folder.path)
        return found.f_bavail * found.f_frsize, took

    def _look_at_memory(self) -> None:
        available = available_memory()
        if available is not None and available < self._options.min_memory:
            self._health.trouble(
                Kind.MEMORY,
                f"less than {size(self._options.min_memory)} (agent.min_memory) of memory is available",
            )
        else:
            self._health.well(Kind.MEMORY)


def available_memory(path: Path = _MEMORY) -> int | None:
    """Bytes that could be used without swapping (MemAvailable of proc(5)); None where that is not told."""
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _apart(work: Callable[[], T]) -> asyncio.Future[T]:
    """The result of something that may hang, from a thread that holds up nobody, not even the end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="checkup", daemon=True).start()
    return future


async def _complaint(command: str) -> str | None:
    """Run the command; what is wrong by it, None if nothing is. Nothing of its process group runs on afterwards.

    Its own end counts, not that of its output, which a daemon that it started may keep open.
    """
    output, its_end = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 - it begins at once, and is waited for in a thread
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=its_end,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as exc:
        os.close(output)
        return f"it cannot be started: {exc}"
    finally:
        os.close(its_end)
    said = bytearray()
    os.set_blocking(output, False)
    loop = asyncio.get_running_loop()
    loop.add_reader(output, _keep_the_end, output, said)
    ended = _apart(process.wait)
    try:
        done, _ = await asyncio.wait({ended}, timeout=CHECK_LIMIT)
        _kill_group(process.pid)
        code = await ended
        _keep_the_end(output, said)
    finally:
        _kill_group(process.pid)
        loop.remove_reader(output)
        os.close(output)
    if not done:
        return f"it took more than {CHECK_LIMIT:g} s and was ended"
    if code == 0:
        return None
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip()[:500] if lines else f"exit code {code}" if code > 0 else f"signal {-code}"


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _keep_the_end(output: int, said: bytearray) -> None:
    """Take in all that is in the pipe now."""
    try:
        data = os.read(output, 1 << 20)  # more than a pipe holds
    except BlockingIOError:
        return
    if not data:
        asyncio.get_running_loop().remove_reader(output)  # nobody can write any more
    said += data
    del said[:-OUTPUT_KEPT]
