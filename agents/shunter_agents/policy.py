"""The agent's own policy: what it runs, whatever its server says. A file of its machine, ``agent.toml``.

A section or key that is not there restricts nothing; a list that is there is all that is allowed. What the file means
for an attempt is in ``admission``.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from shunter_agents.own_secrets import OwnSecret
from shunter_work_pools.contracts.capacity import MEMORY, ResourceName
from shunter_work_pools.contracts.deployments import UserName
from shunter_work_pools.contracts.durations import LOOKS as DURATION_LOOKS
from shunter_work_pools.contracts.durations import parsed as seconds
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.sizes import LOOKS as SIZE_LOOKS
from shunter_work_pools.contracts.sizes import parsed as bytes_of

FILE = "agent.toml"
#: Bytes of the file.
LIMIT = 1024 * 1024

_EXAMPLES = "docs/agent-policy.md has examples."


def _absolute(pattern: str) -> str:
    if not pattern.startswith("/") or os.path.normpath(pattern) != pattern:
        raise ValueError("it must be an absolute path, without `..`, `//` and a slash at its end")
    return pattern


def _program(pattern: str) -> str:
    return pattern if pattern == "python" else _absolute(pattern)


def _address(pattern: str) -> str:
    if not re.match(r"[a-z][a-z0-9+.-]*://", pattern):
        raise ValueError("it must begin with a scheme, as in https://git.example.com/team/*")
    return pattern


def _size(value: Any) -> Any:
    found = bytes_of(value) if isinstance(value, str) else value
    if found is None:
        raise ValueError(f"{value!r} is not a size. {SIZE_LOOKS}")
    return found


def _duration(value: Any) -> Any:
    found = seconds(value) if isinstance(value, str) else value
    if found is None:
        raise ValueError(f"{value!r} is not a duration. {DURATION_LOOKS}")
    return found


def _umask(text: Any) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError('write it as three octal digits in quotes, as in "027"')
    return int(text, 8)


def _amounts(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get(MEMORY), str):
        return value | {MEMORY: _size(value[MEMORY])}
    return value


Text = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$")]
PathPattern = Annotated[Text, AfterValidator(_absolute)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0, le=2**50)]
Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Launchers(_Section):
    """``[launchers]``"""

    allow: list[Text] | None = None
    """Types of pools: process, docker, kubernetes. A server can give any pool another type."""


class Programs(_Section):
    """``[programs]``, of processes."""

    allow: list[Annotated[Text, AfterValidator(_program)]] | None = None
    """What is executed, commands and interpreters of entrypoints: absolute paths. `python` is the agent's own
    interpreter, and those of environments that it builds."""


class Entrypoints(_Section):
    """``[entrypoints]``"""

    allow: list[Text] | None = None
    """Python entrypoints, as deployments name them."""


class Folders(_Section):
    """``[folders]``, of processes."""

    allow: list[PathPattern] | None = None
    """Where code is taken from and commands are begun, with all that is below: source and working_dir."""


class Repositories(_Section):
    """``[repositories]``"""

    allow: list[Annotated[Text, AfterValidator(_address)]] | None = None
    """URLs of git repositories and archives that code is fetched from."""


class Images(_Section):
    """``[images]``"""

    allow: list[Text] | None = None
    """Images of containers, those beside the run's own included."""


class Users(_Section):
    """``[users]``, of processes."""

    allow: list[UserName] | None = None
    """Names or numbers of users as whom runs may run. The agent's own is one of them only if it is here."""
    folder: PathPattern | None = None
    """Where the folders of runs of other users are."""


class Environment(_Section):
    """``[environment]``"""

    allow: list[Text] | None = None
    """Variables that deployments and templates may set, secret ones included."""
    deny: list[Text] | None = None
    """Variables that they may not set."""
    pass_: list[Text] | None = Field(default=None, alias="pass")
    """Variables of the agent's own environment that they may ask for (pass_env)."""


class Maximum(_Section):
    """``[maximum]``: a run that asks for more, or has no limit of its own, is refused."""

    memory_limit: Size | None = None
    """Bytes."""
    timeout: Duration | None = None
    """Seconds."""
    need: Annotated[
        dict[ResourceName, Annotated[float, Field(ge=0, strict=False)]], BeforeValidator(_amounts)
    ] = {}
    """What a run may need of the agent's capacity, by name."""


class Docker(_Section):
    """``[docker]``: what templates of docker pools, and variables of deployments, may ask for."""

    mounts: list[PathPattern] | None = None
    """Folders of the engine's machine that may be mounted, with all that is below."""
    networks: list[Text] | None = None
    """Names of networks; `host` and `none` are such names, `bridge` is the engine's own."""
    devices: list[PathPattern] | None = None
    """Devices of the engine's machine."""
    cap_add: list[Text] | None = None
    """Capabilities."""


class Kubernetes(_Section):
    """``[kubernetes]``: what templates of kubernetes pools, and variables of deployments, may ask for."""

    namespaces: list[Text] | None = None
    """Where the Jobs may be."""
    service_accounts: list[Text] | None = None
    """Whom pods may act for; `default` is the namespace's own."""
    secrets: list[Text] | None = None
    """Secrets of the namespace whose values pods may have."""
    claims: list[Text] | None = None
    """Claims of volumes that may be mounted."""
    host_paths: list[PathPattern] | None = None
    """Folders of nodes that may be mounted, with all that is below."""
    cap_add: list[Text] | None = None
    """Capabilities."""
    patch: bool | None = None
    """Whether a template may have a patch, which can change all of the above. By default not if there are rules here
    or in [images]."""


class Limits(_Section):
    """``[limits]``: of each process (getrlimit(2)), not asked for but set."""

    core: Size | None = None
    """Bytes of a core dump."""
    nofile: Annotated[int, Field(ge=8)] | None = None
    """Open files."""
    nproc: Annotated[int, Field(ge=1)] | None = None
    """Processes of the run's user."""
    fsize: Size | None = None
    """Bytes of a file that it writes, its output included."""
    umask: Annotated[int, BeforeValidator(_umask)] | None = None
    """Rights that files it makes do not have."""
    new_privileges: bool | None = None
    """Whether programs may give it more rights (sudo). By default not to runs of other users."""


class Policy(_Section):
    """The whole file. Sections that are left out restrict nothing."""

    launchers: Launchers = Launchers()
    programs: Programs = Programs()
    entrypoints: Entrypoints = Entrypoints()
    folders: Folders = Folders()
    repositories: Repositories = Repositories()
    images: Images = Images()
    users: Users = Users()
    environment: Environment = Environment()
    maximum: Maximum = Maximum()
    docker: Docker = Docker()
    kubernetes: Kubernetes = Kubernetes()
    limits: Limits = Limits()
    secrets: dict[str, OwnSecret] = {}
    """``[secrets]``: the agent's own, that deployments may name."""

    def rules(self) -> list[tuple[str, str, Any]]:
        """Section, key and value of all that is restricted."""
        found = []
        for section in type(self).model_fields:
            inner = getattr(self, section)
            if isinstance(inner, _Section):
                for key in type(inner).model_fields:
                    value = getattr(inner, key)
                    if value is not None and value != {}:
                        found.append((section, key.removesuffix("_"), value))
        return found


def read(path: Path, *, must: bool = True) -> Policy:
    """The policy of a file.

    Args:
        must: it has to be there; else one that is not there restricts nothing.

    Raises:
        InvalidInput: it is not there, cannot be read or understood, or others could change it.
    """
    try:
        # Not blocking: a named pipe is refused, not waited for.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            _demand_guarded(path, os.fstat(file.fileno()))
            raw = file.read(LIMIT + 1)
    except FileNotFoundError:
        if not must:
            return Policy()
        raise InvalidInput(
            f"the agent's policy {path} does not exist", "Write it, or correct --policy (agent.policy)."
        ) from None
    except OSError as exc:
        raise InvalidInput(
            f"the agent's policy {path} cannot be read: {exc.strerror}", "Let the agent's user read it."
        ) from exc
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> Policy:
    """The policy of a text.

    Raises:
        InvalidInput: it is none.
    """
    if len(raw) > LIMIT:
        raise InvalidInput(f"the agent's policy {path} has more than {LIMIT} bytes", _EXAMPLES)
    try:
        text = raw.decode()
        return Policy.model_validate(tomllib.loads(text))
    except UnicodeDecodeError as exc:
        line = raw[: exc.start].count(b"\n") + 1
        raise InvalidInput(f"{path}:{line}: this is not UTF-8", "Write the file in UTF-8.") from exc
    except tomllib.TOMLDecodeError as exc:
        raise InvalidInput(f"the agent's policy {path} is not TOML: {exc}", _EXAMPLES) from exc
    except ValidationError as exc:
        wrong = [_wrong(path, text, error["loc"], error["type"], error["msg"]) for error in exc.errors()]
        raise InvalidInput("\n".join(wrong), _EXAMPLES) from exc


def _wrong(path: Path, text: str, place: tuple[int | str, ...], kind: str, message: str) -> str:
    section, *keys = [str(part) for part in place]
    where = f"[{section}]" + (f" {'.'.join(keys)}" if keys else "")
    if kind == "extra_forbidden":
        known = Policy.model_fields if not keys else Policy.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        names = ", ".join(sorted(field.alias or name for name, field in known.items()))
        message = f"there is no such {'section' if not keys else 'key'}; there are {names}"
    return f"{path}:{line_of(text, section, keys[0] if keys else None)}: {where}: {message.removeprefix('Value error, ')}"


def line_of(text: str, section: str, key: str | None) -> int:
    """Number of the line in which a section or a key of it begins; that of the section where the key is not found."""
    wanted = key or section
    found, inside = 1, key is None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*\"?([A-Za-z0-9_-]+)", line)
        if header is not None and header[1] == section:
            if key is None:
                return number
            found, inside = number, True
        elif header is not None:
            inside = False
        elif inside and re.match(rf"\s*\"?{re.escape(wanted)}\"?\s*[.=]", line):
            return number
    return found


def _demand_guarded(path: Path, found: os.stat_result) -> None:
    """Refuse a file that somebody else could change: they would be the ones to make the rules."""
    mine = (0, os.geteuid())
    loose = found.st_mode & stat.S_IWOTH or (
        found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid())
    )
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInput(f"the agent's policy {path} is not a regular file", "Name a file.")
    if loose or found.st_uid not in mine:
        raise InvalidInput(
            f"the agent's policy {path} can be changed by others than the agent's user and root "
            f"(owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o})",
            f"Make it theirs: chown {os.geteuid()} {path}; chmod go-w {path}",
        )
    folder = os.stat(path.resolve().parent)
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        raise InvalidInput(
            f"the folder of the agent's policy {path} can be written by everybody, who could put another file there",
            f"chmod o-w {path.resolve().parent}",
        )
