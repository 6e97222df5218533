"""How a container ended: from what the engine says of it to an :class:`Exit`."""

from __future__ import annotations

import datetime
import io
import re
import tarfile
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound

from shunter_infrastructure import exit_codes, outcome
from shunter_infrastructure.copied_output import OUTPUT
from shunter_infrastructure.docker.container import FAILURE, RESULT
from shunter_infrastructure.launcher import Exit, Handle
from shunter_infrastructure.stamp import Stamp, boot_id
from shunter_work_pools.contracts.deployments import RESULT_LIMIT
from shunter_work_pools.contracts.states import Cause

_NEVER = "0001-01-01"
#: What containerd says of what ended while it was away, if nobody could tell it.
_NOT_KNOWN = 255
#: Podman takes a container that has just ended out of its mount while it is read, and sends nothing then.
FETCHES = 5


def has_ended(state: dict[str, Any]) -> bool:
    """Whether nothing of a container that was started runs any more, by its ``State``."""
    return state.get("Status") in ("exited", "dead", "stopped") and was_started(state)


def was_started(state: dict[str, Any]) -> bool:
    """Whether anything of it ever ran."""
    return not str(state.get("StartedAt") or _NEVER).startswith(_NEVER)


def seconds(moment: str) -> float:
    """Seconds since the epoch of a time as the engine writes it, which has nanoseconds."""
    return datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", moment)).timestamp()


def exit_of(handle: Handle, inspected: dict[str, Any]) -> Exit:
    """The end of a container whose output and result are in the attempt's folder.

    Args:
        inspected: what the engine says, and ``Seen``: whether it was surely there at the end.
    """
    state, folder = inspected["State"], handle.folder
    code = int(state["ExitCode"])
    result, complaint = outcome.read_result(folder)
    failure = outcome.read_failure(folder) if code else None
    told = [failure.text] if failure is not None else []
    if complaint:
        told.append(complaint)
    name, error = exit_codes.inferred(code), None
    if failure is not None and failure.kind == "source":
        error = Cause.SOURCE
    oom = bool(state.get("OOMKilled")) and code != 0
    if oom:
        limit = inspected.get("HostConfig", {}).get("Memory")
        of = f" of {limit} bytes" if limit else ""
        told.append(f"The kernel killed it, or a process of it, at its limit{of} of memory.")
    said = exit_codes.not_executed(folder / OUTPUT) if code else None
    if said is not None:
        error, name = Cause.START_FAILED, None
        config = inspected["Config"]
        command = (config.get("Entrypoint") or config.get("Cmd") or [""])[0]
        told.append(f"The command {command} cannot be executed in image {config['Image']}: {said}.")
        if "format error" in said.lower():
            told.append(
                "Use an image for the engine's architecture, or begin a script with #! and its interpreter."
            )
    elif code == 255 and _rebooted(handle):
        return Exit(
            Stamp.now(),
            error=Cause.NODE_LOST,
            message="The engine's machine was restarted while it ran; how far it came is not known.",
            log_size=size(folder / OUTPUT),
        )
    elif code == _NOT_KNOWN and not inspected.get("Seen", True):
        return Exit(
            Stamp.now(),
            error=Cause.KEEPER_LOST,
            message="It ended while the engine was away, which does not know how: it says 255 then.",
            log_size=size(folder / OUTPUT),
        )
    elif name is not None:
        told.append(exit_codes.told(code, name))
    if state.get("Error"):
        told.append(str(state["Error"]))
    return Exit(
        ended=_ended(handle, state),
        exit_code=code,
        signal=name,
        oom=oom,
        error=error,
        message=" ".join(told) or None,
        exception=failure is not None and failure.kind == "exception",
        result=result,
        log_size=size(folder / OUTPUT),
    )


def deleted(handle: Handle) -> Exit:
    """The end of a container that is not there any more."""
    return Exit(
        Stamp.now(),
        error=Cause.DELETED,
        message=f"Its container {handle.data['name']} was removed by somebody; how it ended cannot be known.",
        log_size=size(handle.folder / OUTPUT),
    )


def unknown(handle: Handle) -> Exit:
    """The end of a container of which the engine does not know whether it began."""
    return Exit(
        Stamp.now(),
        error=Cause.KEEPER_LOST,
        message=f"The engine died while it started container {handle.data['name']}, and does not know of it any more: "
        "whether anything of it ran cannot be known.",
    )


def size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def fetch(client: docker.APIClient, container: str, folder: Path, *, entrypoint: bool) -> None:
    """Bring what a run left in its container into the attempt's folder: as it is, for :mod:`outcome` to judge."""
    wanted = [(RESULT, outcome.RESULT)] + ([(FAILURE, outcome.FAILURE)] if entrypoint else [])
    for source, name in wanted:
        for left in reversed(range(FETCHES)):
            try:
                _fetch(client, container, source, folder / name)
                break
            except _BrokenOff:
                if not left:
                    raise


class _BrokenOff(OSError):
    """An archive ended too early."""


def is_file(stat: dict[str, Any]) -> bool:
    """Whether something in a container is a regular file, by what the engine says of it."""
    return not int(stat.get("mode", 0)) >> 16 & 0x8FFF


def _fetch(client: docker.APIClient, container: str, source: str, target: Path) -> None:
    try:
        chunks, stat = client.get_archive(container, source)
    except NotFound:
        return
    except APIError as exc:
        if "no such file" in str(exc).lower():
            return
        raise
    if not stat or int(stat.get("size", 0)) > RESULT_LIMIT or not is_file(stat):
        _stand_in(target, stat or {})
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            entry = archive.next()
            file = None if entry is None else archive.extractfile(entry)
            target.write_bytes(b"" if file is None else file.read())
    except tarfile.ReadError as exc:
        raise _BrokenOff(f"what the engine sent of {source} is not whole") from exc


def _stand_in(target: Path, stat: dict[str, Any]) -> None:
    """What cannot be a result is not fetched: something of the same size or kind tells so as well."""
    if int(stat.get("size", 0)) > RESULT_LIMIT and is_file(stat):
        with target.open("wb") as file:
            file.truncate(int(stat["size"]))
    elif not target.exists():
        target.mkdir()


def _rebooted(handle: Handle) -> bool:
    started = handle.started
    return started is not None and bool(started.boot) and started.boot != boot_id()


def _ended(handle: Handle, state: dict[str, Any]) -> Stamp:
    """By the engine's clock so long after its start: its clock may differ from this machine's."""
    ran = max(0.0, seconds(state["FinishedAt"]) - seconds(state["StartedAt"]))
    began = handle.started
    if began is None:
        return Stamp.now()
    return Stamp(began.boot, began.ticks + ran, began.wall + ran)
