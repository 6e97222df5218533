"""What a run's process is given: program, arguments, folders and environment. Pure but for file checks."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter_infrastructure.launcher import NO_DEVICES, NOTHING, Devices, LaunchFailed, Prepared
from shunter_infrastructure.process import apart, users
from shunter_infrastructure.process.lean import LAUNCH_VERSION
from shunter_infrastructure.process.users import User
from shunter_infrastructure.run_environment import (
    GPU,
    RESERVED_PREFIX,
    described,
    journal_in,
    runner_path,
    told_more,
)
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.states import Cause
from shunter_work_pools.proxies import API_PROXY, proxy_for

#: Variables taken from the agent's own environment; everything else must be asked for by ``pass_env``.
PASSED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR")
PASSED_PREFIX = "LC_"
#: How CUDA is told of its devices.
CUDA = "CUDA_VISIBLE_DEVICES"

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Launch:
    """What the keeper executes; the content of ``launch.json``.

    Attributes:
        program: absolute path of the executable.
        argv: arguments, the program's name as first.
        env: the whole environment, but for ``secrets``.
        cwd: working folder.
        grace: seconds between SIGTERM and SIGKILL when no request says otherwise.
        lease: it may run only until its lease ends, which is in the file ``lease``.
        memory: how its memory is limited (``MemoryLimits.order``); None: not at all.
        secrets: the rest of the environment, over the other; in no file.
        user: as whom it runs; None: as the agent's own.
        source: folder of its code, which another user must be able to read.
        apart: the folder of a run of another user, for its own files; None: the attempt's folder is.
        limits, umask: see ``Rules``.
        closed: no program gives it more rights than it has.
    """

    program: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    grace: float
    lease: bool = False
    memory: dict[str, Any] | None = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    user: User | None = None
    source: str | None = None
    apart: Path | None = None
    limits: Mapping[str, int] | None = None
    umask: int | None = None
    closed: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "version": LAUNCH_VERSION,
            "program": self.program,
            "argv": self.argv,
            "env": self.env,
            "cwd": self.cwd,
            "grace": self.grace,
            "lease": self.lease,
            "memory": self.memory,
            "secrets": bool(self.secrets),
            "user": self.user and self.user.to_json(),
            "source": self.user and self.source,
            "limits": self.limits and dict(self.limits),
            "umask": self.umask,
            "closed": self.closed,
        }


def prepare(
    assignment: Assignment,
    folder: Path,
    agent: str,
    own: Mapping[str, str],
    devices: Devices = NO_DEVICES,
    prepared: Prepared = NOTHING,
    identity: str = "agent",
) -> Launch:
    """Work out what to execute.

    Args:
        own: the agent's environment.
        devices: those that it may use, see :meth:`Launcher.start`.
        prepared: what was made ready for it.
        identity: of the agent, for the names of folders that are not in its own.

    Raises:
        LaunchFailed: it cannot be executed; found before anything was done.
    """
    work, rules = assignment.work, prepared.rules
    user = users.other(work.run_as)
    place = None if user is None else apart.path(rules.runs or apart.RUNS, identity, folder)
    source = _source(assignment, prepared)
    cwd = _working_folder(work, source, place or folder, prepared)
    env = chosen(assignment, own, devices, user)
    if prepared.python is not None:
        env["PATH"] = f"{os.path.dirname(prepared.python)}{os.pathsep}{env['PATH']}"
    told = told_variables(assignment, place or folder, agent, own, devices)
    told |= told_more(prepared, str(prepared.authorities))
    if place is not None:
        told["SHUNTER_PARAMETERS"] = str(place / apart.PARAMETERS)
    if source is not None:
        told["SHUNTER_SOURCE"] = source
    if work.command is not None:
        argv = list(work.command)
        program = rules.program(find_program(argv[0], env["PATH"], source, cwd))
    else:
        assert work.entrypoint is not None  # the contract wants exactly one of the two
        file = check_entrypoint(work.entrypoint, source or cwd)
        if file is not None and not _is_in(file, source or cwd):
            rules.folder(os.path.dirname(os.path.realpath(file)))
        env.setdefault("PYTHONUNBUFFERED", "1")
        told["SHUNTER_ENTRYPOINT"] = work.entrypoint
        told["SHUNTER_FAILURE"] = str((place or folder) / "failure.json")
        own_python = prepared.python or (None if work.python else sys.executable)
        argv = [own_python or str(work.python), runner_path()]
        found = find_program(argv[0], env["PATH"], source, cwd)
        program = rules.interpreter(found) if own_python else rules.program(found)
    given = {**prepared.template_secrets, **prepared.secrets, **_way_to_server(prepared, own)}
    secrets = {name: value for name, value in given.items() if name not in told}
    return Launch(
        program,
        argv,
        env | told,
        cwd,
        work.grace,
        secrets=secrets,
        user=user,
        source=source,
        apart=place,
        limits=rules.limits or None,
        umask=rules.umask,
        closed=user is not None if rules.new_privileges is None else not rules.new_privileges,
    )


def _source(assignment: Assignment, prepared: Prepared) -> str | None:
    """The folder that the work's paths are meant from."""
    source = source_of(assignment, prepared)
    if source is None:
        return None
    if prepared.source is None:
        source = prepared.rules.folder(source)
    if not os.path.isdir(source):
        raise LaunchFailed(
            Cause.SOURCE,
            f"the source folder {source} does not exist on the agent's machine",
            "Deploy from a folder that the agent can see, or correct the deployment's source.",
        )
    return source


def _working_folder(work: Work, source: str | None, place: Path, prepared: Prepared) -> str:
    if work.working_dir is None:
        return str(place / "work")
    cwd = os.path.abspath(os.path.join(source or "", work.working_dir))
    if prepared.source is None or not _is_in(cwd, str(prepared.source)):
        cwd = prepared.rules.folder(cwd)
    if not os.path.isdir(cwd):
        raise LaunchFailed(
            Cause.START_FAILED,
            f"the working folder {cwd} does not exist or is not a folder",
            "Create it on the agent's machine, or correct the deployment's working_dir.",
        )
    return cwd


def _is_in(path: str, folder: str) -> bool:
    """Whether a path is in a folder, wherever links lead."""
    real = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), real]) == real


def source_of(assignment: Assignment, prepared: Prepared = NOTHING) -> str | None:
    """Absolute path of the folder that the work's paths are meant from, if it has one."""
    if prepared.source is not None:
        return os.path.abspath(prepared.source)
    local = assignment.work.local_source
    return None if local is None else os.path.abspath(local)


#: What ``SHUNTER_PARAMETERS`` names for a run without any: making a file is among the dearest things that
#: happen at a start.
NO_PARAMETERS = str(Path(__file__).with_name("no_parameters.json"))


def chosen(
    assignment: Assignment,
    own: Mapping[str, str],
    devices: Devices = NO_DEVICES,
    user: User | None = None,
) -> dict[str, str]:
    """What a run has of its agent's environment, and what its deployment sets.

    Args:
        user: whose it is, if not the agent's own.
    """
    work = assignment.work
    env = {name: own[name] for name in PASSED if name in own}
    if user is not None:
        env |= user.variables
        env.pop("TMPDIR", None)  # it may be the agent's alone
    env |= {name: value for name, value in own.items() if name.startswith(PASSED_PREFIX)}
    env |= {name: own[name] for name in work.pass_env if name in own and not name.startswith(RESERVED_PREFIX)}
    env |= work.plain_env
    env.setdefault("PATH", DEFAULT_PATH)
    if GPU in devices and not devices[GPU] and CUDA not in work.env:
        env[CUDA] = ""  # what needs none uses none by accident
    return env


def _way_to_server(prepared: Prepared, own: Mapping[str, str]) -> dict[str, str]:
    """The agent's proxy, for a run that may speak to the server: its own environment has none. (It may have a password.)"""
    url = prepared.secrets.get("SHUNTER_API_URL")
    proxy = None if url is None else proxy_for(url, own)
    return {} if proxy is None else {API_PROXY: proxy.url}


def told_variables(
    assignment: Assignment,
    folder: Path,
    agent: str,
    own: Mapping[str, str],
    devices: Devices = NO_DEVICES,
) -> dict[str, str]:
    """What the agent tells a run, whatever its deployment sets."""
    parameters = str(folder / "parameters.json") if assignment.parameters else NO_PARAMETERS
    env = described(assignment, agent, devices, parameters, str(folder / "result.json"))
    env |= journal_in(str(folder))
    if devices.get(GPU):
        env[CUDA] = cuda_devices(devices[GPU], own)
    return env


def cuda_devices(numbers: Sequence[int], own: Mapping[str, str]) -> str:
    """What CUDA calls these devices: of an agent that sees only some of the machine's, number N is the N-th of those.

    https://docs.nvidia.com/deploy/topics/topic_5_2_1.html

    Raises:
        LaunchFailed: the agent does not see as many (any more).
    """
    seen = visible_to_cuda(own)
    if seen is None:
        return ",".join(map(str, numbers))
    if max(numbers) >= len(seen):
        raise LaunchFailed(
            Cause.START_FAILED,
            f"it was given {GPU} {max(numbers)}, and {CUDA} of the agent names {len(seen)} only",
            "Start the agent with the devices that it had before.",
        )
    return ",".join(seen[number] for number in numbers)


def visible_to_cuda(own: Mapping[str, str]) -> list[str] | None:
    """What CUDA calls the devices that an agent with this environment sees; None: all there are, by their numbers."""
    seen = own.get(CUDA)
    return None if seen is None else [name.strip() for name in seen.split(",") if name.strip()]


def find_program(name: str, path: str, source: str | None, cwd: str) -> str:
    """Absolute path of the program: relative ones are meant from ``source``, bare ones from PATH.

    Raises:
        LaunchFailed: there is none, or it cannot be executed.
    """
    if not name:
        raise LaunchFailed(
            Cause.START_FAILED,
            "the command is an empty string",
            "Name a program in the deployment's command.",
        )
    if "/" in name:
        found = os.path.join(cwd, source or "", name)
        wrong = _not_executable(found)
        if wrong is None:
            return found
        raise LaunchFailed(Cause.START_FAILED, f"the command {found} {wrong[0]}", wrong[1])
    refused: LaunchFailed | None = None
    for folder in path.split(os.pathsep):
        found = os.path.join(cwd, folder, name)
        wrong = _not_executable(found)
        if wrong is None:
            return found
        if refused is None and os.path.isfile(found):
            refused = LaunchFailed(Cause.START_FAILED, f"the command {found} {wrong[0]}", wrong[1])
    raise refused or LaunchFailed(
        Cause.START_FAILED,
        f"the command {name!r} was not found in PATH ({path})",
        "Install it on the agent's machine, give its full path, or set PATH in the deployment's env.",
    )


def _not_executable(path: str) -> tuple[str, str] | None:
    """What is wrong with the file as a program, and what to do; None if nothing is."""
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return "does not exist on the agent's machine", "Correct the path, or install the program there."
        return f"cannot be reached: {exc.strerror}", "Let the agent's user read the folders that lead to it."
    if stat.S_ISDIR(mode):
        return "is a directory", "Name a program in it."
    if not stat.S_ISREG(mode):
        return "is not a regular file", "Name a program."
    if not os.access(path, os.X_OK):
        return "is not executable", f"Run chmod +x {path}, or name its interpreter first in the command."
    return None


def exec_failure(step: str, code: int, text: str, launch: Mapping[str, Any]) -> LaunchFailed:
    """The failure that the keeper met with, told with its reason as far as it can be seen from here.

    Args:
        step: ``launch``, ``output``, ``chdir``, ``limit``, ``limits``, ``user``, ``source`` or ``exec``.
        code, text: errno and its words.
        launch: content of ``launch.json``; empty if it cannot be read any more.
    """
    program = str(launch.get("program", "the command"))
    user = (launch.get("user") or {}).get("name")
    if step == "chdir":
        by = f" by user {user}" if user else ""
        return LaunchFailed(
            Cause.START_FAILED,
            f"the working folder {launch.get('cwd', '')} could not be entered{by}: {text}",
            "Correct the deployment's working_dir, or the permissions of the folder and those above it.",
        )
    if step == "source":
        return LaunchFailed(
            Cause.SOURCE,
            f"user {user} cannot read {launch.get('source', '')}, where its code is: {text}",
            "Let that user read it, and enter all folders on the way to it. (What an agent fetches is in its cache, "
            "below SHUNTER_HOME.)",
        )
    if step in ("user", "limits"):
        what = (
            f"the rights of user {user} could not be taken on"
            if step == "user"
            else "its limits could not be set"
        )
        return LaunchFailed(Cause.START_FAILED, f"{what}: {text}", "See what the agent's own user may do.")
    if step == "limit":
        return LaunchFailed(
            Cause.START_FAILED,
            f"the command {program} does not even begin within its memory limit, "
            "which is one of address space on this machine",
            "Raise the deployment's memory_limit, or let the agent use a memory cgroup.",
        )
    if step != "exec":
        return LaunchFailed(Cause.START_FAILED, f"the attempt could not be prepared ({step}): {text}")
    if code == errno.ENOEXEC:
        return LaunchFailed(
            Cause.START_FAILED,
            f"the command {program} is not a program: it has no '#!' line and no executable format known here",
            "Put an interpreter in its first line, for example #!/bin/sh.",
        )
    if code == errno.E2BIG:
        return LaunchFailed(
            Cause.START_FAILED,
            "the command's arguments and environment together are too long for the system",
            "Pass large values by a file or as parameters; they are in $SHUNTER_PARAMETERS.",
        )
    interpreter = _interpreter(program)
    if interpreter and code in (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP):
        return LaunchFailed(
            Cause.START_FAILED,
            f"the interpreter {interpreter} named in the first line of {program} cannot be executed: {text}",
            "Correct the '#!' line (also its line end), or install that interpreter on the agent's machine.",
        )
    if user and code == errno.EACCES:
        return LaunchFailed(
            Cause.START_FAILED,
            f"the command {program} could not be executed by user {user}: {text}",
            "Let that user execute it, and enter all folders on the way to it.",
        )
    return LaunchFailed(Cause.START_FAILED, f"the command {program} could not be executed: {text}")


def _interpreter(program: str) -> str | None:
    try:
        with open(program, "rb") as file:
            first = file.readline(1024)
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    # As the kernel splits it: by blanks and tabs alone, so that the \r of a foreign line end is part of it.
    words = first[2:].replace(b"\t", b" ").strip(b" \n").split(b" ")
    return repr(words[0].decode(errors="replace")) if words[0] else None


def check_entrypoint(entrypoint: str, source: str) -> str | None:
    """Refuse an entrypoint whose file is not there. Modules are left to the run's own interpreter.

    Returns:
        Path of the file, if it is one.

    Raises:
        LaunchFailed: the file does not exist.
    """
    file = entrypoint.rpartition(":")[0] or entrypoint
    if not file.endswith(".py"):
        file = entrypoint
    if not file.endswith(".py"):
        return None
    path = os.path.join(source, file)
    if not os.path.isfile(path):
        raise LaunchFailed(
            Cause.SOURCE,
            f"the file {path} of the entrypoint {entrypoint!r} does not exist",
            "Correct the entrypoint, or deploy again from the folder that holds it.",
        )
    return path
