"""Which way of limiting a run's memory can be used here: found out by trying, once, before anything runs.

Best is a memory cgroup: all processes of a run together, swap included, and the kernel counts whom it kills. The
agent may make cgroups below its own one, if that is writable (it runs as root, or the service manager delegated it).

* **v1**: a folder beside the agent's processes will do.
* **v2**: a cgroup either holds processes or hands controllers on to those below, never both (the rule of no internal
  processes). So the agent has to be in a leaf of its own, ``shunter-agent``. It is put there by systemd 254 to 256
  (``DelegateSubgroup=shunter-agent``), or goes there itself if nobody else is in its cgroup. It does not in a
  ``.service``: systemd could not start the service again while runs of a former life keep that cgroup in use.

Where there is none, each process' address space is limited (``RLIMIT_AS``).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter_infrastructure.own_cgroup import NotMounted, own_cgroup
from shunter_infrastructure.process import cgroup, procfs

#: The cgroup of the agent and its keepers below the one that was delegated to it, on v2.
LEAF = "shunter-agent"
#: In a setting's value: the limit in bytes.
_LIMIT = "LIMIT"


class _Unusable(Exception):
    """No memory cgroup can be used; the text says why."""


@dataclass(frozen=True)
class MemoryLimits:
    """How the memory of runs is limited on this machine.

    Attributes:
        parent: cgroup below which those of runs are made; None: there is none that can be used.
        settings: what is written into a new one: names and values.
        events: name of its file that counts OOM kills.
        reason: why there is none.
    """

    parent: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    events: str = ""
    reason: str = ""

    @property
    def kind(self) -> str:
        """As ``Capabilities.limits_memory``."""
        return "address_space" if self.parent is None else "cgroup"

    def order(self, limit: int | None) -> dict[str, Any] | None:
        """What the keeper is told in ``launch.json``; None for a run without a limit."""
        if limit is None:
            return None
        if self.parent is None:
            return {"limit": limit, "reason": self.reason}
        settings = [[name, value.replace(_LIMIT, str(limit))] for name, value in self.settings]
        return {"limit": limit, "parent": self.parent, "settings": settings, "events": self.events}


def find(proc: str = "/proc/self") -> MemoryLimits:
    """Find out, and on v2 go into the leaf. Cgroups that keepers left when they were killed are removed.

    Args:
        proc: where this process is described; tests describe others.
    """
    try:
        found = _find(proc)
    except (_Unusable, NotMounted) as exc:
        return MemoryLimits(reason=str(exc))
    except OSError as exc:
        return MemoryLimits(reason=f"{exc.filename or proc}: {exc.strerror}")
    assert found.parent is not None
    _reap(found.parent)
    return found


def _find(proc: str) -> MemoryLimits:
    version, own = own_cgroup("memory", proc)
    if version == 1:
        return _probe(
            own,
            limit=(("memory.limit_in_bytes", _LIMIT),),
            # Both together: swap is not to be what a limit is evaded by.
            optional=(("memory.memsw.limit_in_bytes", _LIMIT),),
            events="memory.oom_control",
        )
    return _probe(
        _delegated(own),
        limit=(("memory.max", _LIMIT),),
        optional=(("memory.swap.max", "0"), ("memory.oom.group", "1")),
        events="memory.events",
    )


def _delegated(own: str) -> str:
    """The v2 cgroup below which runs get theirs, with the memory controller handed on."""
    service = _service(own)
    if os.path.basename(own) == LEAF and service in (None, os.path.dirname(own)):
        parent = os.path.dirname(own)
    elif service is not None:
        raise _Unusable(
            f"the unit of {service} needs Delegate=yes and DelegateSubgroup={LEAF} (systemd 254 to 256)"
        )
    else:
        parent = own
    if "memory" not in Path(parent, "cgroup.controllers").read_text().split():
        raise _Unusable(f"{parent} has no memory controller: it was not delegated")
    if "memory" in Path(parent, "cgroup.subtree_control").read_text().split():
        return parent
    if parent != own:
        cgroup.write(f"{parent}/cgroup.subtree_control", "+memory")
        return parent
    _go_into_leaf(parent)
    return parent


def _service(own: str) -> str | None:
    """The cgroup of the systemd service that a cgroup belongs to; None: it belongs to none."""
    while own != os.path.dirname(own):
        if own.endswith(".service"):
            return own
        if own.endswith((".scope", ".slice")):
            return None
        own = os.path.dirname(own)
    return None


def _go_into_leaf(parent: str) -> None:
    others = set(Path(parent, "cgroup.procs").read_text().split()) - {str(os.getpid())}
    if others:
        raise _Unusable(f"{parent} holds other processes, too: {', '.join(sorted(others)[:5])}")
    leaf = f"{parent}/{LEAF}"
    if not os.path.isdir(leaf):
        os.mkdir(leaf)
    cgroup.enter(leaf, os.getpid())
    try:
        cgroup.write(f"{parent}/cgroup.subtree_control", "+memory")
    except OSError:
        cgroup.enter(parent, os.getpid())
        cgroup.remove(leaf)
        raise


def _probe(
    parent: str, limit: tuple[tuple[str, str], ...], optional: tuple[tuple[str, str], ...], events: str
) -> MemoryLimits:
    """What a cgroup below ``parent`` can do, by one that is made and removed again."""
    path = f"{parent}/shunter-probe-{os.getpid()}"
    with contextlib.suppress(OSError):
        os.rmdir(path)  # of one with the same id that was killed
    os.mkdir(path)
    try:
        known = Path(path, events).read_text()
        if "\noom_kill " not in f"\n{known}":
            raise _Unusable("this kernel does not count OOM kills (it is older than 4.13)")
        settings = limit + tuple(each for each in optional if os.path.exists(f"{path}/{each[0]}"))
        if "oom_kill_disable 1" in known:  # inherited: a run at its limit would stand still for ever
            settings += ((events, "0"),)
        for name, value in settings:
            cgroup.write(f"{path}/{name}", value.replace(_LIMIT, str(1 << 30)))
    finally:
        os.rmdir(path)
    return MemoryLimits(parent, settings, events)


def _reap(parent: str) -> None:
    """Remove what keepers that were killed left behind, unless something still runs in it."""
    for name in os.listdir(parent):
        pid, _, start = name.removeprefix(cgroup.PREFIX).partition("-")
        if name.startswith(cgroup.PREFIX) and pid.isdigit() and start.isdigit():
            if procfs.is_running(int(pid), int(start)):
                continue
            cgroup.remove(f"{parent}/{name}")
