"""``on_crashed`` of a flow: called in a fresh process of the same launcher, since its own died.

The process is given what the attempt was given, in a folder of its own inside the attempt's, and what it says is added to
the attempt's output. The end is told after it. Launching twice finds the first, so an agent that dies meanwhile goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from shunter_agents.attempt import Attempt
from shunter_agents.killpoints import reached
from shunter_agents.verdict import Verdict
from shunter_infrastructure.launcher import Exit, Handle, LauncherUnavailable, LaunchFailed
from shunter_work_pools.contracts.states import AttemptState, Cause
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Seconds that the hooks of one attempt have, and then to end.
LIMIT, GRACE = 60.0, 5.0
#: Ends in which the flow's process is gone, and its machine is here.
CAUSES = frozenset({Cause.SIGNAL, Cause.OOM, Cause.KEEPER_LOST, Cause.NODE_LOST, Cause.EVICTED})
#: Variable that tells a flow why the process before crashed, see ``shunter/crashed.py``.
CRASHED = "SHUNTER_CRASHED"
#: Bytes of a journal in which its head is looked for.
_HEAD = 64 * 1024
_PIECE = 1024 * 1024

Start = Callable[[Attempt, Path, Mapping[str, str]], Awaitable[Handle]]


def wanted(attempt: Attempt, judged: Verdict) -> bool:
    """Whether its flow has hooks for this end: its journal says so."""
    state, cause, _ = judged
    if state is not AttemptState.CRASHED or cause not in CAUSES or attempt.dropped:
        return False
    files = attempt.launcher.task_files(attempt.journal.folder)
    if files is None or not files.journal_size():
        return False
    try:
        head = json.loads(files.read_journal(0, _HEAD).partition(b"\n")[0])
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(head, dict) and head.get("h") is True


async def call(attempt: Attempt, handle: Handle, end: Exit, judged: Verdict, start: Start) -> Exit:
    """Have them called; the end of the attempt, with what they said in its output.

    Args:
        start: launches what the attempt is in another folder, with some more variables.
    """
    folder = attempt.journal.folder / f"{attempt.journal.folder.name}.crashed"
    folder.mkdir(mode=0o700, exist_ok=True)
    _, cause, message = judged
    why = {CRASHED: json.dumps({"cause": cause, "message": message})}
    log.info("the hooks of a run that crashed are called", **attempt.names)
    try:
        async with asyncio.timeout(LIMIT):
            found = await start(attempt, folder, why)
    except (LaunchFailed, LauncherUnavailable, TimeoutError) as exc:
        told = str(exc) or f"their process could not be started within {LIMIT:g} seconds"
        log.error("the hooks of a run that crashed cannot be called", reason=told, **attempt.names)
        return end
    reached("after-hooks-started")
    try:
        async with asyncio.timeout(LIMIT):
            await attempt.launcher.wait(found)
    except TimeoutError:
        log.error("the hooks of a run that crashed take too long", seconds=LIMIT, **attempt.names)
        await attempt.launcher.stop(found, GRACE)
        await attempt.launcher.wait(found)
    said = await _add_output(attempt, handle, found, end.log_size)
    reached("after-hooks-told")
    await attempt.launcher.cleanup(found)
    return replace(end, log_size=said)


async def _add_output(attempt: Attempt, handle: Handle, hooks: Handle, size: int) -> int:
    """Put what the hooks said behind the output, which had ``size`` bytes before; its size now.

    Written at their offset, so that a next life which does it again changes nothing.
    """
    path = attempt.launcher.output_file(handle)
    if path is None:
        return size
    begin = attempt.crashed_at(size)
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        at = 0
        while data := await attempt.launcher.read_output(hooks, at, _PIECE):
            os.pwrite(fd, data, begin + at)
            at += len(data)
    finally:
        os.close(fd)
    return begin + at
