"""What the machine has: usable cores and memory, and the tags that an agent finds by itself.

In a container, or under a service manager that sets limits, these are what its cgroups allow.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from shunter_infrastructure.own_cgroup import NotMounted, own_cgroup
from shunter_infrastructure.process.environment import CUDA, visible_to_cuda
from shunter_infrastructure.run_environment import GPU
from shunter_work_pools.contracts.base import Tag
from shunter_work_pools.contracts.capacity import CPU, MEMORY
from shunter_work_pools.contracts.errors import InvalidInput

_TAG: TypeAdapter[str] = TypeAdapter(Tag)
_GIB = 2**30


def capacity(proc: str = "/proc/self") -> dict[str, float]:
    """Usable cores and bytes of memory.

    Args:
        proc: where the cgroups of this process are described.
    """
    return {CPU: _cores(proc), MEMORY: float(_memory(proc))}


def found_tags(has: Mapping[str, float], devices: Path = Path("/dev")) -> list[str]:
    """What can be told of this machine without asking anybody.

    Args:
        has: its :func:`capacity`.
        devices: where device files are.
    """
    tags = [
        f"os={platform.system().lower()}",
        f"arch={platform.machine().lower()}",
        f"cpus={max(1, int(has[CPU]))}",
        f"memory={int(has[MEMORY]) // _GIB}GiB",
    ]
    with contextlib.suppress(OSError):
        gpus = sum(re.fullmatch(r"nvidia\d+", name) is not None for name in os.listdir(devices))
        if gpus:
            tags += ["gpu", f"gpu={gpus}"]
    return tags


def check_devices(has: Mapping[str, float], environ: Mapping[str, str]) -> None:
    """Refuse GPUs that the agent does not see itself.

    Raises:
        InvalidInput: there are more than ``CUDA_VISIBLE_DEVICES`` names.
    """
    seen = visible_to_cuda(environ)
    wanted = int(has.get(GPU, 0))
    if seen is not None and wanted > len(seen):
        raise InvalidInput(
            f"--capacity {GPU}={wanted}: {CUDA} of the agent names {len(seen)} ({environ[CUDA]!r})",
            f"Say {GPU}={len(seen)}, or name as many there.",
        )


def beside(given: Iterable[str], found: Iterable[str]) -> list[str]:
    """What was found without what was said already, under the same key, by a person, and what can be no tag."""
    said = {_key(tag) for tag in given}
    return [tag for tag in found if _key(tag) not in said and _is_tag(tag)]


def _key(tag: str) -> str:
    return tag.partition("=")[0]


def _is_tag(text: str) -> bool:
    try:
        _TAG.validate_python(text)
    except ValidationError:
        return False
    return not text.endswith("=")


def _cores(proc: str) -> float:
    """Those that this process may run on, or the part of them that it may use (``cpu.max``)."""
    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        cores = float(os.cpu_count() or 1)
    allowed = []
    for folder in _above("cpu", proc):
        with contextlib.suppress(OSError, ValueError):
            quota, period = Path(folder, "cpu.max").read_text().split()
            allowed.append(float(quota) / float(period))  # a ValueError: "max"
        with contextlib.suppress(OSError, ValueError):
            quota, period = (Path(folder, f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            allowed.append(float(quota) / float(period))
    return min([cores, *(round(part, 2) for part in allowed if part > 0)])


def _memory(proc: str) -> int:
    """Bytes of the machine, or of those that a cgroup allows."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = []
    for folder in _above("memory", proc):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                allowed.append(int(Path(folder, name).read_text()))
    return min([total, *(part for part in allowed if part > 0)])


def _above(controller: str, proc: str) -> list[str]:
    """The cgroup of this process and those above it: each of them limits it."""
    try:
        _, folder = own_cgroup(controller, proc)
    except (NotMounted, OSError):
        return []
    found = [folder]
    while folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
        found.append(folder)
    return found
