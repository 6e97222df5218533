"""``on_crashed`` of a flow: called in a fresh process, container or Job of the same launcher, since its own is dead.

That is given what the attempt was given, in a folder of its own inside the attempt's, and what it says is added to
the attempt's output. The end is told after it. Launching twice finds the first, so an agent that dies meanwhile goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from shunter_agents.attempt import Attempt
from shunter_agents.killpoints import reached
from shunter_agents.verdict import Verdict, short
from shunter_infrastructure.launcher import HOOKS, Exit, Handle, LaunchFailed
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.states import Cause
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Seconds that the hooks of one attempt have once they are started, and then to end.
LIMIT, GRACE = 60.0, 5.0
#: Causes of ends in which the flow's process is gone (by a fault of its own, too), and another one can be had.
CAUSES = frozenset(
    {
        Cause.SIGNAL,
        Cause.OOM,
        Cause.KEEPER_LOST,
        Cause.NODE_LOST,
        Cause.EVICTED,
        Cause.PREEMPTED,
        Cause.DELETED,
    }
)
#: Variable that tells a flow why the process before crashed, see ``shunter/crashed.py``.
CRASHED = "SHUNTER_CRASHED"
#: Bytes of a journal in which its head is looked for.
_HEAD = 64 * 1024
_PIECE = 1024 * 1024

#: Asks the server whether the flow of an attempt has hooks.
Ask = Callable[[Attempt], Awaitable[bool]]
#: Launches what an attempt is in another folder, with some more variables; while the engine is away it waits.
Start = Callable[[Attempt, Assignment, Path, Mapping[str, str]], Awaitable[Handle]]
#: Asks a launcher something about an attempt, again while its engine is away.
Patiently = Callable[..., Awaitable[Any]]


async def wanted(attempt: Attempt, judged: Verdict, ask: Ask) -> bool:
    """Whether its flow has hooks for this end: its journal says so, here or on the server. (Of several flows one after the
    other the first one's would be called, so it must be that one which was at work.)"""
    if judged[1] not in CAUSES or attempt.dropped:
        return False
    files = attempt.launcher.task_files(attempt.journal.folder)
    if files is None:
        return attempt.assignment.wants_token and await ask(attempt)
    if not files.journal_size():
        return False
    try:
        head = json.loads(files.read_journal(0, _HEAD).partition(b"\n")[0])
        return (
            isinstance(head, dict)
            and head.get("h") is True
            and not await asyncio.to_thread(files.a_flow_has_ended)
        )
    except (OSError, ValueError, RecursionError):
        return False


async def call(
    attempt: Attempt, handle: Handle, end: Exit, judged: Verdict, start: Start, patiently: Patiently
) -> tuple[Exit, Verdict]:
    """Have them called; the end of the attempt, with what they said in its output, and what it means, with a word of what
    went wrong with them."""
    folder = attempt.journal.folder / f"{attempt.journal.folder.name}{HOOKS}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state, cause, message = judged
    why = {CRASHED: json.dumps({"cause": cause, "message": message})}
    log.info("the hooks of a run that crashed are called", **attempt.names)
    found = await _started(attempt, folder, why, start, patiently)
    if isinstance(found, str):
        log.error("the hooks of a run that crashed cannot be called", reason=found, **attempt.names)
        return end, (state, cause, short(f"{message}; its on_crashed hooks could not be called: {found}"))
    reached("after-hooks-started")
    launcher = attempt.launcher
    try:
        async with asyncio.timeout(LIMIT):
            await patiently(attempt, launcher.wait, found)
    except TimeoutError:
        log.error("the hooks of a run that crashed take too long", seconds=LIMIT, **attempt.names)
        message = short(f"{message}; its on_crashed hooks took longer than {LIMIT:g} seconds")
        await patiently(attempt, launcher.stop, found, GRACE)
        await patiently(attempt, launcher.wait, found)
    said = await _add_output(attempt, handle, found, end.log_size)
    reached("after-hooks-told")
    await patiently(attempt, launcher.cleanup, found)
    return replace(end, log_size=said), (state, cause, message)


async def _started(
    attempt: Attempt, folder: Path, why: Mapping[str, str], start: Start, patiently: Patiently
) -> Handle | str:
    """Where they are called; a text: why they cannot be, and nothing of them is left."""
    # What was handed over is the attempt's own work.
    assignment = attempt.assignment.model_copy(update={"handed_over": None})
    limit = assignment.work.start_timeout
    try:
        async with asyncio.timeout(limit):
            return await start(attempt, assignment, folder, why)
    except LaunchFailed as exc:
        return exc.told
    except TimeoutError:
        withdraw = partial(attempt.launcher.recover, withdraw=True)
        found: Handle | None = await patiently(attempt, withdraw, assignment, folder)
        return found or f"they could not be started within {limit:g} seconds"


async def _add_output(attempt: Attempt, handle: Handle, hooks: Handle, size: int) -> int:
    """Put what the hooks said behind the output, which had ``size`` bytes before, or what the server has of it from another
    agent; its size now.

    Written at their offset, so that a next life which does it again changes nothing.
    """
    path = attempt.launcher.output_file(handle)
    if path is None:
        return size
    before = attempt.assignment.handed_over
    begin = attempt.crashed_at(max(size, before.size if before is not None else 0))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        at = 0
        while data := await attempt.launcher.read_output(hooks, at, _PIECE):
            os.pwrite(fd, data, begin + at)
            at += len(data)
    finally:
        os.close(fd)
    return begin + at
