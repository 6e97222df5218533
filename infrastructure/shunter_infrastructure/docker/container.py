"""The container of an attempt, as the engine's API takes it. Pure: `pool template preview` prints the same."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from shunter_infrastructure.launcher import HOOKS, NO_DEVICES, Devices
from shunter_infrastructure.run_environment import (
    GPU,
    RESERVED_PREFIX,
    command_from,
    described,
    folder_from,
    journal_brought_from,
    runner_path,
)
from shunter_infrastructure.wrong_template import wrong_template
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.docker_template import RUN_FOLDER, DockerTemplate, Mount, bytes_of

FILES = f"{RUN_FOLDER}/run"
PARAMETERS = f"{FILES}/parameters.json"
AUTHORITIES = f"{FILES}/ca.pem"
RESULT = f"{FILES}/result.json"
FAILURE = f"{FILES}/failure.json"
RUNNER = f"{FILES}/runner.py"
#: Code that the agent has fetched.
SOURCE = f"{RUN_FOLDER}/source"

#: Labels by which a container is found again, by people too.
RUN, ATTEMPT, FOLDER, ROOT = "shunter.run", "shunter.attempt", "shunter.folder", "shunter.root"

NONE: Mapping[str, str] = {}
#: Instead of a secret.
HIDDEN = "***"
_SECRET = re.compile(r"PASSW|SECRET|TOKEN|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)

#: Of the two files of the engine's log one may be full when the other begins.
_LOG_FILES = 2


def name_of(run: UUID, attempt: int | str) -> str:
    """The container's name; see :func:`~shunter_infrastructure.launcher.number_of`."""
    return f"shunter-{run}-{attempt}"


def read_template(assignment: Assignment) -> DockerTemplate:
    """The template of an attempt, with its deployment's variables.

    Raises:
        LaunchFailed: it is none.
    """
    try:
        return DockerTemplate.model_validate(assignment.template)
    except ValidationError as exc:
        raise wrong_template(assignment, exc, "container") from exc


def configuration(
    assignment: Assignment,
    template: DockerTemplate,
    folder: Path,
    agent: str,
    own: Mapping[str, str],
    devices: Devices = NO_DEVICES,
    *,
    secrets: Mapping[str, str] = NONE,
    told: Mapping[str, str] = NONE,
    source: Path | None = None,
    log_driver: str = "local",
) -> dict[str, Any]:
    """The body of ``POST /containers/create`` (https://docs.docker.com/reference/api/engine/).

    Args:
        folder: the attempt's folder.
        agent: name of the agent.
        own: the agent's environment, for ``pass_env``.
        devices: those that it may use, see :meth:`Launcher.start`.
        secrets: variables whose values are secret.
        told: variables that say more of the run to itself.
        source: folder of the code that was fetched.
        log_driver: whose log can be read back: ``local``, where the engine has it.
    """
    work = assignment.work
    code = None if source is None else SOURCE
    command = (
        command_from(work.command, code)
        if work.command is not None
        else [work.python or template.python, RUNNER]
    )
    command = template.command_prefix + command
    made: dict[str, Any] = {
        "Image": template.image,
        "Entrypoint": None if template.image_entrypoint else command,
        "Cmd": command if template.image_entrypoint else [],
        "Env": [
            f"{name}={value}"
            for name, value in {
                **_env(assignment, template, agent, own, devices, secrets),
                **told,
                **({} if code is None else {"SHUNTER_SOURCE": code}),
            }.items()
        ],
        "Labels": template.labels
        | {
            RUN: str(assignment.run),
            ATTEMPT: str(assignment.attempt),
            "shunter.deployment": assignment.deployment,
            "shunter.pool": assignment.pool,
            "shunter.agent": agent,
            ROOT: str(folder.parents[1] if folder.name.endswith(HOOKS) else folder.parent),
            FOLDER: str(folder),
        },
        "WorkingDir": folder_from(work.working_dir, code, template.workdir),
        "User": template.user or "",
        "HostConfig": _host_config(assignment, template, devices, log_driver, source),
    }
    return {key: value for key, value in made.items() if value not in (None, "")}


def _env(
    assignment: Assignment,
    template: DockerTemplate,
    agent: str,
    own: Mapping[str, str],
    devices: Devices,
    secrets: Mapping[str, str],
) -> dict[str, str]:
    work = assignment.work
    env = dict(template.env)
    env |= {name: own[name] for name in work.pass_env if name in own and not name.startswith(RESERVED_PREFIX)}
    env |= work.plain_env
    env |= secrets
    if work.entrypoint is not None:
        env.setdefault("PYTHONUNBUFFERED", "1")
    env |= described(assignment, agent, devices, PARAMETERS, RESULT)
    env |= journal_brought_from(FILES, assignment)
    if work.entrypoint is not None:
        env |= {"SHUNTER_ENTRYPOINT": work.entrypoint, "SHUNTER_FAILURE": FAILURE}
    return env


def _host_config(
    assignment: Assignment,
    template: DockerTemplate,
    devices: Devices,
    log_driver: str,
    source: Path | None,
) -> dict[str, Any]:
    memory = assignment.work.memory_limit or (bytes_of(template.memory) if template.memory else None)
    mounts = [_mount(mount) for mount in template.mounts]
    if source is not None:
        mounts.append({"Type": "bind", "Source": str(source), "Target": SOURCE, "ReadOnly": True})
    if template.read_only:  # files can be put only where it can be written
        mounts.append({"Type": "volume", "Target": RUN_FOLDER})
    log: dict[str, Any] = {"Type": log_driver}
    if log_driver == "local":
        each = str(max(1, bytes_of(template.log_size) // _LOG_FILES))
        log["Config"] = {"max-size": each, "max-file": str(_LOG_FILES)}
    made: dict[str, Any] = {
        "NetworkMode": template.networks[0] if template.networks else None,
        "Mounts": mounts,
        "NanoCpus": round(template.cpu * 1e9) if template.cpu else None,
        "Memory": memory,
        "MemorySwap": memory,
        "PidsLimit": template.pids,
        "ShmSize": bytes_of(template.shm_size) if template.shm_size else None,
        "Devices": [_device(text) for text in template.devices],
        "DeviceRequests": _gpus(template, devices),
        "CapDrop": template.cap_drop,
        "CapAdd": template.cap_add,
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": template.read_only or None,
        "ExtraHosts": [f"{name}:{address}" for name, address in template.extra_hosts.items()],
        "Dns": template.dns,
        "Init": template.init,
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "LogConfig": log,
    }
    return {key: value for key, value in made.items() if value is not None and value != []}


def _mount(mount: Mount) -> dict[str, Any]:
    made: dict[str, Any] = {"Type": mount.type, "Target": mount.target, "ReadOnly": mount.read_only}
    if mount.source is not None:
        made["Source"] = mount.source
    if mount.size is not None:
        made["TmpfsOptions"] = {"SizeBytes": bytes_of(mount.size)}
    return made


def _device(text: str) -> dict[str, str]:
    parts = text.split(":")
    rights = parts.pop() if len(parts) > 1 and not parts[-1].startswith("/") else "rwm"
    return {"PathOnHost": parts[0], "PathInContainer": parts[-1], "CgroupPermissions": rights}


def _gpus(template: DockerTemplate, devices: Devices) -> list[dict[str, Any]]:
    """Those that the agent chose; any, if it has none to choose from."""
    chosen = devices.get(GPU)
    if chosen:
        return [{"DeviceIDs": [str(number) for number in chosen], "Capabilities": [["gpu"]]}]
    if template.gpus is None or chosen is not None:
        return []
    return [{"Count": -1 if template.gpus == "all" else template.gpus, "Capabilities": [["gpu"]]}]


def redacted(made: dict[str, Any], assignment: Assignment) -> dict[str, Any]:
    """A configuration that may be shown: without secrets, without what only the agent's environment knows
    (``pass_env``), and without values of variables that are secrets by their names."""
    own = {name for name in assignment.work.pass_env if name not in assignment.work.plain_env}
    own |= assignment.work.env.keys() - assignment.work.plain_env.keys()

    def shown(entry: str) -> str:
        name, _, value = entry.partition("=")
        return f"{name}={HIDDEN}" if value and (name in own or _SECRET.search(name)) else entry

    return made | {"Env": [shown(entry) for entry in made["Env"]]}


def files(
    assignment: Assignment, template: DockerTemplate, authorities: bytes | None = None
) -> tuple[str, bytes]:
    """What is put into the container before it starts: where, and a tar archive.

    The folder is open to everybody: the user that the image names is not known here.
    """
    contents = {"parameters.json": json.dumps(assignment.parameters, ensure_ascii=False).encode()}
    if assignment.work.entrypoint is not None:
        contents["runner.py"] = Path(runner_path()).read_bytes()
    if authorities is not None:
        contents["ca.pem"] = authorities
    # A read-only root can be written to only where a volume is, and that is there already.
    where, folders = (RUN_FOLDER, ["run"]) if template.read_only else ("/", ["shunter", "shunter/run"])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for folder in folders:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            archive.addfile(entry)
        for name, data in contents.items():
            entry = tarfile.TarInfo(f"{folders[-1]}/{name}")
            entry.size, entry.mode = len(data), 0o444
            archive.addfile(entry, io.BytesIO(data))
    # Without the padding that tarfile adds: Podman stops to read at the archive's end.
    return where, packed.getvalue()[: archive.offset]
