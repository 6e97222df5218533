"""What an agent was started with: whom it serves, how it looks after itself, when it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter_agents.admission import PolicyFile
from shunter_agents.own_pools import OwnPools
from shunter_agents.own_secrets import OwnSecrets
from shunter_work_pools.contracts.durations import LONGEST, parsed
from shunter_work_pools.contracts.errors import InvalidInput


@dataclass(frozen=True)
class Options:
    """See ``shunter agent start --help`` and the settings ``agent.*``.

    Attributes:
        name: of the agent.
        pools, queues, limit, tags: what it serves, see ``SyncRequest``.
        capacity: what it has, as far as that was said; the rest is what the machine has.
        find_tags: whether it finds tags by itself.
        cloud_tags: whether it asks the cloud that it runs in for some.
        metrics_port: where it serves its metrics; None: nowhere.
        metrics_host: the address of that port.
        drain_grace: seconds that it waits for its runs when it was told to stop; None: until they have ended.
        drain_end: what becomes of them then: ``leave`` or ``stop``.
        min_disk, min_memory: bytes that must be free.
        health_check: a shell command that must succeed.
        health_every: seconds between two looks at its health.
        spool_limit: bytes of output that may wait for the server.
        cache: folder of the code and environments of runs; None: beside the folder of all agents.
        cache_keep: seconds that code and environments are kept after their last use.
        cache_limit: bytes that each of both may take.
        once: take one run, then drain.
        until_idle: drain when it holds nothing and there is nothing for it.
        max_lifetime: drain after so many seconds.
        policy: what it runs, whatever its server says; None: anything.
        own_secrets: what deployments may name of the agent's own side.
        authorities: the file by which it believes its server; None: the system's alone.
        own_pools: as what it makes its pools; None: they are there.
    """

    name: str
    pools: list[str]
    queues: list[str]
    limit: int
    tags: list[str]
    capacity: Mapping[str, float] = field(default_factory=dict)
    find_tags: bool = True
    cloud_tags: bool = False
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    drain_grace: float | None = None
    drain_end: str = "leave"
    min_disk: int = 0
    min_memory: int = 0
    health_check: str | None = None
    health_every: float = 15.0
    spool_limit: int = 10 * 2**30
    cache: Path | None = None
    cache_keep: float = 14 * 86_400.0
    cache_limit: int = 20 * 2**30
    once: bool = False
    until_idle: bool = False
    max_lifetime: float | None = None
    policy: PolicyFile | None = None
    own_secrets: OwnSecrets = field(default_factory=dict)
    authorities: Path | None = None
    own_pools: OwnPools | None = None


def of_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of :class:`Options` that are settings."""
    return {name.removeprefix("agent."): value for name, value in values.items() if name.startswith("agent.")}


def lifetime(text: str) -> float:
    """Seconds of ``--max-lifetime``.

    Raises:
        ValueError: it is no duration, or none that a life can have.
    """
    seconds = parsed(text)
    if not seconds or seconds > LONGEST:
        raise ValueError(text)
    return seconds


def own_pools_of(kind: str, template_file: str | None, match: list[str] | None) -> OwnPools:
    """Of ``--create-pool``, ``--template-file`` and ``--match`` or ``--no-match``.

    Raises:
        InvalidInput: the file is no file with a JSON object.
    """
    return OwnPools(kind, None if template_file is None else template_of(template_file), match)


def template_of(path: str) -> dict[str, Any]:
    """The template of ``--template-file``.

    Raises:
        InvalidInput: it is no file with a JSON object.
    """
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise InvalidInput(f"the template file {path} cannot be read: {exc}", "Write a JSON object.") from exc
    if not isinstance(found, dict):
        raise InvalidInput(f"the template file {path} holds no JSON object")
    return found
