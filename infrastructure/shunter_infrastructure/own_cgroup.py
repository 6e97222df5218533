"""Where the cgroup of a process lies, as the kernel tells it (cgroups(7))."""

from __future__ import annotations

import os
from pathlib import Path


class NotMounted(Exception):
    """The controller has no cgroup that can be seen from here."""


def own_cgroup(controller: str, proc: str = "/proc/self") -> tuple[int, str]:
    """Version (1 or 2) and folder of the cgroup of a process that a controller is in.

    Args:
        proc: where the process is described.

    Raises:
        NotMounted: there is none, or it cannot be seen from here.
        OSError: ``proc`` cannot be read.
    """
    paths: dict[int, str] = {}
    for line in Path(proc, "cgroup").read_text(errors="surrogateescape").splitlines():
        number, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            paths[1] = path
        elif number == "0" and not controllers:
            paths[2] = path
    version = min(paths, default=0)
    for line in Path(proc, "mountinfo").read_text(errors="surrogateescape").splitlines():
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        if (version == 1 and kind == "cgroup" and controller in options.rsplit(" ", 1)[-1].split(",")) or (
            version == 2 and kind == "cgroup2"
        ):
            root, where = mount.split(" ")[3:5]
            path = paths[version]
            if root != "/" and (path + "/").startswith(root + "/"):
                path = path[len(root) :]
            return version, os.path.normpath(f"{where}/{path}")
    raise NotMounted(f"no {controller} cgroup is mounted here")
