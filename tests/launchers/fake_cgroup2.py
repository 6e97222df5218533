"""A cgroup v2 tree of plain files that follows the kernel's rules (Documentation/admin-guide/cgroup-v2.rst).

For kernels whose memory controller is not in cgroup v2. What it follows: which files a new cgroup has, the rule of no
internal processes, that a controller is there only if the parent hands it on, that a process is in one cgroup, that
who is in use cannot be removed. What it does not: a fork does not appear by itself in its parent's cgroup, and nobody
is killed; a test plays the OOM killer by :meth:`Tree.oom`.

As a program (``python -I -S fake_cgroup2.py ROOT TREE FD``) it is a forker whose keepers meet this tree.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MEMORY = {
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.oom.group": "0",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
}


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class Tree:
    """The tree below ``root``, once :meth:`install` has put it between the program and the system."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._mkdir = os.mkdir
        self._rmdir = os.rmdir

    def install(self, patch: Any = setattr) -> None:
        """Take the place of what would reach the kernel."""
        from shunter_infrastructure.process import cgroup

        patch(os, "mkdir", self.mkdir)
        patch(os, "rmdir", self.rmdir)
        patch(cgroup, "write", self.write)

    def grow(self, path: str) -> str:
        """A cgroup with the memory controller, as a service manager delegates it; its folder."""
        where = self.root
        if not os.path.isdir(where):
            self._mkdir(where)
            self._fill(where, "memory")
        for name in path.strip("/").split("/"):
            self._put(where, "cgroup.subtree_control", "memory")
            where = f"{where}/{name}"
            self.mkdir(where)
        return where

    def oom(self, path: str, pids: list[int]) -> None:
        """Kill these as the kernel does when the memory of ``path`` runs out: it counts first (mm/oom_kill.c)."""
        self._put(
            path, "memory.events", _MEMORY["memory.events"].replace("oom_kill 0", f"oom_kill {len(pids)}")
        )
        for pid in pids:
            os.kill(pid, 9)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        """mkdir(2)."""
        self._mkdir(path, mode)
        path = os.fspath(path)
        if self._has(path):
            self._fill(path, self._get(os.path.dirname(path), "cgroup.subtree_control"))

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        path = os.fspath(path)
        if self._has(path) and os.path.isdir(path):
            if self._pids(path) or any(entry.is_dir() for entry in os.scandir(path)):
                raise _error(errno.EBUSY, path)
            for entry in os.scandir(path):
                os.unlink(entry.path)
        self._rmdir(path)

    def write(self, path: str, value: str) -> None:
        """open(2) and write(2)."""
        folder, name = os.path.split(path)
        if not os.path.exists(path):
            raise _error(errno.ENOENT, path)
        if name == "cgroup.procs":
            self._move(folder, int(value) or os.getpid())
        elif name == "cgroup.subtree_control":
            self._enable(folder, value)
        elif name == "memory.events":
            raise _error(errno.EACCES, path)
        elif value != "max" and not value.isdigit():
            raise _error(errno.EINVAL, path)
        else:
            self._put(folder, name, value)

    def _move(self, folder: str, pid: int) -> None:
        if folder != self.root and self._get(folder, "cgroup.subtree_control"):
            raise _error(errno.EBUSY, folder)
        for where, _, _ in os.walk(self.root):
            if pid in self._pids(where):
                self._put(where, "cgroup.procs", _lines(each for each in self._pids(where) if each != pid))
        self._put(folder, "cgroup.procs", _lines([*self._pids(folder), pid]))

    def _enable(self, folder: str, value: str) -> None:
        if value != "+memory":
            raise _error(errno.EINVAL, folder)
        if "memory" not in self._get(folder, "cgroup.controllers").split():
            raise _error(errno.ENOENT, folder)
        if folder != self.root and self._pids(folder):
            raise _error(errno.EBUSY, folder)
        self._put(folder, "cgroup.subtree_control", "memory")
        for entry in os.scandir(folder):
            if entry.is_dir():
                self._put(entry.path, "cgroup.controllers", "memory")
                self._add_memory(entry.path)

    def _fill(self, path: str, controllers: str) -> None:
        for name, value in {"procs": "", "controllers": controllers, "subtree_control": ""}.items():
            self._put(path, f"cgroup.{name}", value)
        if "memory" in controllers and path != self.root:
            self._add_memory(path)

    def _add_memory(self, path: str) -> None:
        for name, value in _MEMORY.items():
            self._put(path, name, value)

    def _pids(self, path: str) -> list[int]:
        """Of processes that live: the kernel lists no others."""
        return [pid for pid in map(int, self._get(path, "cgroup.procs").split()) if _lives(pid)]

    def _has(self, path: str) -> bool:
        return path.startswith(self.root + "/")

    def _get(self, path: str, name: str) -> str:
        with open(f"{path}/{name}") as file:
            return file.read()

    def _put(self, path: str, name: str, value: str) -> None:
        with open(f"{path}/{name}", "w") as file:
            file.write(value)


def _lines(pids: Any) -> str:
    return "".join(f"{pid}\n" for pid in pids)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


if __name__ == "__main__":
    sys.path.append(sys.argv[1])
    from shunter_infrastructure.process import forker

    Tree(sys.argv[2]).install()
    os.set_inheritable(int(sys.argv[3]), False)
    forker.serve(int(sys.argv[3]))
