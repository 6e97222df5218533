"""What every launcher tells a run about itself, and the runner that Python entrypoints go by."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence

from shunter_infrastructure.launcher import Devices, LaunchFailed, Prepared
from shunter_infrastructure.task_files import FOLDER, JOURNAL
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.states import Cause

#: The agent's own settings (server, token, home) are never passed on, whatever ``pass_env`` says.
RESERVED_PREFIX = "SHUNTER_"
#: Bytes that result and failure may have, where that is less than elsewhere.
RESULT_LIMIT = "SHUNTER_RESULT_LIMIT"
#: The file with the authorities of the server's certificate.
TLS_CA = "SHUNTER_TLS_CA"
#: The device that engines and CUDA are told of.
GPU = "gpu"


def described(
    assignment: Assignment, agent: str, devices: Devices, parameters: str, result: str
) -> dict[str, str]:
    """The variables that describe a run to itself.

    Args:
        agent: name of the agent.
        devices: those that it may use, see :meth:`Launcher.start`.
        parameters, result: paths of these files as the run sees them.
    """
    env = {
        "SHUNTER_RUN_ID": str(assignment.run),
        "SHUNTER_ATTEMPT": str(assignment.attempt),
        "SHUNTER_DEPLOYMENT": assignment.deployment,
        "SHUNTER_REVISION": str(assignment.revision),
        "SHUNTER_POOL": assignment.pool,
        "SHUNTER_QUEUE": assignment.queue,
        "SHUNTER_AGENT": agent,
        "SHUNTER_SCHEDULED_AT": assignment.scheduled_at.isoformat().replace("+00:00", "Z"),
        "SHUNTER_TAGS": json.dumps(assignment.tags),
        "SHUNTER_PARAMETERS": parameters,
        "SHUNTER_RESULT": result,
    }
    if devices:
        env["SHUNTER_DEVICES"] = json.dumps({name: list(numbers) for name, numbers in devices.items()})
    return env


def journal_in(folder: str) -> dict[str, str]:
    """Has a flow write its journal into a folder as the run sees it, see ``task_files``."""
    return {"SHUNTER_JOURNAL": f"{folder}/{FOLDER}/{JOURNAL}"}


def journal_brought_from(folder: str, assignment: Assignment) -> dict[str, str]:
    """The same where nobody but the run can read that folder: it brings its journal to the server, by its token. Without one
    it keeps none."""
    return journal_in(folder) | {"SHUNTER_BRING_JOURNAL": "1"} if assignment.wants_token else {}


def told_more(prepared: Prepared, authorities: str) -> dict[str, str]:
    """What else a run is told.

    Args:
        authorities: path of ``prepared.authorities`` as the run sees it.
    """
    return {**prepared.told, **({TLS_CA: authorities} if prepared.authorities else {})}


def read_authorities(prepared: Prepared) -> bytes | None:
    """What is to be in that file, where the run has a copy; None: it has none.

    Raises:
        LaunchFailed: it cannot be read.
    """
    if prepared.authorities is None:
        return None
    try:
        return prepared.authorities.read_bytes()
    except OSError as exc:
        raise LaunchFailed(
            Cause.START_FAILED,
            f"{prepared.authorities}, by which the run is to believe the server, cannot be read: {exc.strerror}",
            f"{TLS_CA} of the agent names it.",
        ) from exc


def command_from(command: Sequence[str], source: str | None) -> list[str]:
    """A command as a container is given it: a relative program is meant from the source, if there is one."""
    program, *rest = command
    if source is not None and "/" in program and not program.startswith("/"):
        program = f"{source}/{program.removeprefix('./')}"
    return [program, *rest]


def folder_from(wanted: str | None, source: str | None, base: str | None) -> str | None:
    """The working folder of a container: a relative one is meant from the source, else from the template's."""
    if wanted is None or wanted.startswith("/"):
        return wanted or base
    return f"{(source or base or '').rstrip('/')}/{wanted}"


def runner_path() -> str:
    """Path of ``shunter/runner.py``, found without importing it.

    Raises:
        LaunchFailed: the package is not installed beside the agent.
    """
    spec = importlib.util.find_spec("shunter")
    if spec is None or spec.origin is None:
        raise LaunchFailed(
            Cause.START_FAILED, "the package shunter is not installed for the agent", "Install it again."
        )
    return os.path.join(os.path.dirname(spec.origin), "runner.py")
