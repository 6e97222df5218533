"""A machine of the cluster's own, within this one: namespaces of processes, mounts and network.

A kubelet, a kube-proxy and a container engine change a machine in a hundred places. Here they change one
that ends with its first process: firewall rules, bridges, routes, mounts and kernel settings of the network
are its own, folders that are the same on every machine are its own too, and it takes no address and no port
of this machine but one end of a cable. Two clusters do not meet.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster.packages import CannotHaveCluster, find, search_path
from tests.patience import SOON

#: What a kubelet would set for the whole machine. It finds these instead, and sets nothing.
_KERNEL = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
#: Folders that programs write to wherever their own folder is: what is written there stays the cluster's.
_OWN_FOLDERS = ("/var/lib", "/var/log", "/run")
_CGROUPS = Path("/sys/fs/cgroup")
_ROOT = Path(__file__).parents[2]
_MOST_CLUSTERS = 200


class Machine:
    """The machine of one cluster, running or not.

    Args:
        folder: the cluster's; all that the cluster writes lies below it.

    Attributes:
        cgroup: the name of the cgroup (in each hierarchy) that pods live below.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cgroup = f"shunter-cluster-{folder.name}"

    def start(self) -> None:
        """Start its first process, with a network that reaches this machine.

        Raises:
            CannotHaveCluster: this machine gives no namespaces or no network, or the folder lies badly.
        """
        if any(self.folder.is_relative_to(path) for path in _OWN_FOLDERS):
            raise CannotHaveCluster(
                f"the cluster's folder {self.folder} is below one of {', '.join(_OWN_FOLDERS)}: "
                "set XDG_CACHE_HOME to a folder elsewhere"
            )
        (self.folder / "logs").mkdir(parents=True)
        for path in _cgroup_roots():
            _make_cgroup(path / self.cgroup)
        words = ["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
        inside = [sys.executable, "-c", _ENTER, str(self.folder), str(_ROOT)]
        with (self.folder / "logs" / "supervisor").open("ab") as log:
            child = subprocess.Popen(
                ["unshare", *words, *inside],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=os.environ | {"PATH": search_path()},
                start_new_session=True,
            )
        while not self.running():
            if child.poll() is not None:
                said = (self.folder / "logs" / "supervisor").read_text()
                raise CannotHaveCluster(f"no namespaces for a cluster on this machine: {said}")
            time.sleep(0.01)
        self._plug_in()

    def running(self) -> bool:
        """Whether its first process answers."""
        try:
            self._connect().close()
        except OSError:
            return False
        return True

    @property
    def pid(self) -> int:
        """Its first process, by the number that this machine knows it by.

        Raises:
            OSError: it does not run.
        """
        with self._connect() as connection:
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", peer)[0])

    @property
    def number(self) -> int:
        """Which of this machine's clusters it is."""
        return int((self.folder / "number").read_text())

    @property
    def outside(self) -> str:
        """The address of this machine, as the cluster's node and pods reach it."""
        return f"198.18.{self.number}.1"

    @property
    def address(self) -> str:
        """The address of the cluster's node, as this machine and the pods reach it."""
        return f"198.18.{self.number}.2"

    def ask(self, do: str, name: str = "", argv: list[str] | None = None) -> dict[str, Any]:
        """Ask the first process, see ``supervisor.py``; what runs.

        Raises:
            OSError: it does not run.
            ValueError: it refuses; the message says why.
        """
        with self._connect() as connection, connection.makefile("rw") as stream:
            stream.write(json.dumps({"do": do, "name": name, "argv": argv}) + "\n")
            stream.flush()
            answer: dict[str, Any] = json.loads(stream.readline())
        if "error" in answer:
            raise ValueError(str(answer["error"]))
        return answer

    def command(self, *words: str, text: str | None = None) -> str:
        """Run a command on it to its end; its output.

        Raises:
            RuntimeError: it ended otherwise than with 0; the message has its output.
        """
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid"]
        return _run(*enter, find(words[0]) or words[0], *words[1:], text=text)

    def end(self) -> None:
        """Kill it with all that runs on it, and remove what it leaves here. Twice is harmless."""
        with contextlib.suppress(OSError):
            first = self.pid
            # Before its process: the kernel frees the name with it, and it may be another's at once.
            with contextlib.suppress(OSError, RuntimeError):
                _run("ip", "link", "delete", _link(self.number))
            parent = _parent(first)
            with _watched(first) as dead, _watched(parent) as parent_dead:
                signal.pidfd_send_signal(dead, signal.SIGKILL)
                _wait_readable(dead)
                _wait_readable(parent_dead)
        for path in _cgroup_roots():
            _remove_cgroup(path / self.cgroup)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(30)
            connection.connect(str(self.folder / "supervisor"))
        except BaseException:
            connection.close()
            raise
        return connection

    def _plug_in(self) -> None:
        """Lay the cable. The kernel refuses a name that is taken, which makes the number this cluster's."""
        pid = str(self.pid)
        for number in range(1, _MOST_CLUSTERS):
            link = _link(number)
            if Path(f"/sys/class/net/{link}").exists():
                continue
            laid = ["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", pid]
            try:
                _run(*laid)
            except RuntimeError as error:
                if "File exists" in str(error):
                    continue
                raise CannotHaveCluster(f"no network for a cluster on this machine: {error}") from error
            (self.folder / "number").write_text(str(number))
            break
        else:
            raise CannotHaveCluster(f"{_MOST_CLUSTERS} clusters run on this machine already")
        _run("ip", "address", "add", f"{self.outside}/30", "dev", link)
        _run("ip", "link", "set", link, "up")
        self.command("ip", "link", "set", "lo", "up")
        self.command("ip", "address", "add", f"{self.address}/30", "dev", "eth0")
        self.command("ip", "link", "set", "eth0", "up")
        self.command("ip", "route", "add", "default", "via", self.outside)
        for setting in ("ipv4/ip_forward", "bridge/bridge-nf-call-iptables"):  # of its own network alone
            self.command("sh", "-c", f"[ ! -e /proc/sys/net/{setting} ] || echo 1 >/proc/sys/net/{setting}")


#: Run in the new namespaces by the first process, which then becomes the supervisor.
_ENTER = f"""
import os, subprocess, sys
folder, root = sys.argv[1:]
def mount(*words): subprocess.run(["mount", *words], check=True)
for path in {_OWN_FOLDERS!r}:
    own = folder + "/machine/" + path.replace("/", ".")
    for name in "/upper", "/work": os.makedirs(own + name)
    layers = f"lowerdir={{path}},upperdir={{own}}/upper,workdir={{own}}/work"
    mount("-t", "overlay", "overlay", "-o", layers, path)
for name, value in {_KERNEL!r}.items():
    own = folder + "/machine/" + name.replace("/", ".")
    with open(own, "w") as file: file.write(str(value))
    mount("--bind", own, "/proc/sys/" + name)
mount("--make-rshared", "/")
os.execv(sys.executable, [sys.executable, root + "/tests/cluster/supervisor.py", folder])
"""


def _link(number: int) -> str:
    return f"shunter{number}"


def _run(*words: str, text: str | None = None) -> str:
    done = subprocess.run(
        [find(words[0]) or words[0], *words[1:]],
        input=text if text is not None else "",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


def _parent(pid: int) -> int:
    return int(re.findall(r"^PPid:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0])


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _wait_readable(fd: int) -> None:
    if not select.select([fd], [], [], 60)[0]:
        raise RuntimeError("a process of the cluster does not end, though it was killed")


def _cgroup_roots() -> list[Path]:
    """The root of every hierarchy: one of version 2, or several of version 1 and one beside them."""
    if (_CGROUPS / "cgroup.procs").exists():
        return [_CGROUPS]
    return [path for path in _CGROUPS.iterdir() if (path / "cgroup.procs").exists() and not path.is_symlink()]


def _make_cgroup(path: Path) -> None:
    path.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):  # version 1: empty, and then nothing can run in it
        if (path / name).exists() and not (path / name).read_text().strip():
            (path / name).write_text((path.parent / name).read_text())
    controllers = path / "cgroup.subtree_control"
    if controllers.exists():
        for name in (path / "cgroup.controllers").read_text().split():
            controllers.write_text(f"+{name}")


def _remove_cgroup(path: Path) -> None:
    """A cgroup, and those below it; the kernel may need a moment after its last process ended."""
    if not path.exists():
        return
    for below in path.iterdir():
        if below.is_dir():
            _remove_cgroup(below)
    deadline = time.monotonic() + SOON
    while True:
        try:
            path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
