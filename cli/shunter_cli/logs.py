"""``run logs``: an attempt's output from the server to stdout (see :mod:`~shunter_cli.run_output`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shunter_cli import run_output
from shunter_cli.faults import tell
from shunter_cli.waiting import AGAIN, HOLD, has_ended, next_state
from shunter_work_pools.contracts.errors import NotFound, ServerUnreachable, Unavailable

if TYPE_CHECKING:
    from shunter_cli.run_output import Sink
    from shunter_work_pools.client import Client, LogPart
    from shunter_work_pools.contracts.runs import Attempt, Run


def copy(client: Client, run: str, *, attempt: int | None, follow: bool) -> None:
    """Write the output of one attempt, or of all in order, to stdout.

    Args:
        follow: go on until the run has ended.

    Raises:
        ShunterError: there is no such run or attempt, or no server.
    """
    found = client.get_run(run)
    if attempt is not None:
        if attempt > found.attempt_count and not (follow and not has_ended(found)):
            raise NotFound(
                f"run {found.id} has no attempt {attempt}", f"It has had {found.attempt_count} so far."
            )
        with run_output.stdout() as out:
            _copy_one(client, _having(client, found, attempt), attempt, follow, out)
        return
    if found.attempt_count == 0 and not follow:
        tell(f"run {found.id} is {found.state}: it has had no attempt yet")
    with run_output.stdout() as out:
        number = 1
        while True:
            if number > found.attempt_count:
                if not follow:
                    return
                found = _having(client, found, number)
                if number > found.attempt_count:
                    return
            found = _copy_one(client, found, number, follow, out)
            number += 1


def _having(client: Client, run: Run, number: int) -> Run:
    """The run once it has attempt ``number``, or has ended without."""
    while run.attempt_count < number and not has_ended(run):
        run = next_state(client, run, HOLD)
    return run


def _copy_one(client: Client, run: Run, number: int, follow: bool, out: Sink) -> Run:
    """Write one attempt's output; the run as it was seen last."""
    at, told = 0, False
    while True:
        part = _read(client, run, number, at, wait=0.0)
        out.write(part.data)
        at = part.end
        if part.complete and at >= part.size:
            return run
        if at < part.size:
            continue
        run = client.get_run(run.id)
        attempt = _attempt(run, number)
        ended = attempt is not None and attempt.ended_at is not None
        if not ended and not follow:
            return run
        if ended and attempt is not None:
            if attempt.log_size is None:  # nobody will ever tell how much there was
                if not part.complete:
                    tell(f"attempt {number} was lost with its agent: output may be missing here")
                return run
            if not told and part.reached < attempt.log_size:
                told = True
                tell(f"waiting for {attempt.log_size - part.reached} more bytes from agent {attempt.agent}")
        part = _read(client, run, number, at, wait=HOLD)
        out.write(part.data)
        at = part.end


def _read(client: Client, run: Run, number: int, start: int, wait: float) -> LogPart:
    told = False
    while True:
        try:
            return client.read_log(run.id, attempt=number, start=start, wait=wait or None)
        except (ServerUnreachable, Unavailable) as exc:
            if not told:
                tell(f"{exc.detail}; waiting for it to come back")
                told = True
            time.sleep(AGAIN)


def _attempt(run: Run, number: int) -> Attempt | None:
    return next((one for one in run.attempts if one.number == number), None)
