"""A process that stands for the agent: it starts one attempt, and is killed with SIGKILL by the test.

``python agent_host.py FOLDER ASSIGNMENT_FILE CRASH_AT``: with CRASH_AT it kills itself at that instruction
of starting: ``prepared`` (nothing written yet), ``written`` (launch.json is there), ``sent`` (the order is
in the socket) or ``answered`` (the keeper has answered, nobody knows). With ``never`` it prints the pid of
the run and the pid of its forker, and waits. ``TEST_LEASE`` in its environment is the lease: seconds from
then to both of its ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shunter_infrastructure.launcher import Lease
from shunter_infrastructure.process import launcher as launcher_module
from shunter_infrastructure.process.forker_client import ForkerClient
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.agents import Assignment


def die(*_: Any) -> None:
    """Die as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, after which this process is dead."""

    def patched(*args: Any) -> Any:
        function(*args)
        die()

    return patched


CRASHES: dict[str, Callable[[], None]] = {
    "prepared": lambda: setattr(launcher_module, "_write_inputs", die),
    "written": lambda: setattr(launcher_module, "_write_inputs", then_die(launcher_module._write_inputs)),
    "sent": lambda: setattr(ForkerClient, "_send", then_die(ForkerClient._send)),
    "answered": lambda: setattr(ForkerClient, "_take", die),
    "never": lambda: None,
}


async def main(folder: Path, assignment: Assignment, crash_at: str) -> None:
    """Start the attempt, tell, and wait for the end of this process."""
    launcher = ProcessLauncher()
    await launcher.check()
    CRASHES[crash_at]()
    seconds = os.environ.get("TEST_LEASE")
    lease = Lease(*(Stamp.now().ticks + float(each) for each in seconds.split())) if seconds else None
    handle = await launcher.start(assignment, folder, "a1", lease)
    print(handle.pid, launcher.forker_pid, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    work = Assignment.model_validate_json(Path(sys.argv[2]).read_bytes())
    asyncio.run(main(Path(sys.argv[1]), work, sys.argv[3]))
