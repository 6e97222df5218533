"""Networks of a test's own: hosts are network namespaces, joined by bridges, inside namespaces that end with the test.

Everything lives below one process, the first of a process namespace with mounts of its own. The kernel ends it with
the test, however that ends, and with it every process, interface and namespace that was made.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_PR_SET_PDEATHSIG, _CLONE_NEWNET = 1, 0x40000000
#: The first process: those whose parents are gone are its children, and the kernel takes them away when they end.
_FIRST = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True: signal.pause()"


def can_make() -> bool:
    """Whether this user may make them here."""
    words = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "ip",
        "link",
        "add",
        "name",
        "b",
        "type",
        "bridge",
    ]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Networks:
    """Some hosts and what joins them.

    Args:
        hosts: what /etc/hosts says on all of them.
    """

    def __init__(self, folder: Path, hosts: str) -> None:
        prctl = ctypes.CDLL(None).prctl
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            [*words, sys.executable, "-c", _FIRST],
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self._first = child_of(self._holder.pid)
        file = folder / "hosts"
        file.write_text(f"127.0.0.1 localhost\n{hosts}")
        self._do("mount", "-t", "tmpfs", "tmpfs", "/run")
        self._do("mount", "--bind", str(file), "/etc/hosts")

    def bridge(self, name: str) -> None:
        """A network."""
        self._do("ip", "link", "add", "name", name, "type", "bridge")
        self._do("ip", "link", "set", "dev", name, "up")

    def host(self, name: str, **addresses: str) -> None:
        """A host with an address in each of the named networks; its interfaces are called as they are."""
        self._do("ip", "netns", "add", name)
        self._do("ip", "-n", name, "link", "set", "dev", "lo", "up")
        for network, address in addresses.items():
            port = f"{name}-{network}"
            self._do(
                "ip", "link", "add", "name", port, "type", "veth", "peer", "name", network, "netns", name
            )
            self._do("ip", "link", "set", "dev", port, "master", network, "up")
            self._do("ip", "-n", name, "addr", "add", f"{address}/24", "dev", network)
            self._do("ip", "-n", name, "link", "set", "dev", network, "up")

    def unplug(self, name: str, network: str, *, plugged: bool = False) -> None:
        """Pull the cable at the network's side, or put it back."""
        self._do("ip", "link", "set", "dev", f"{name}-{network}", "up" if plugged else "down")

    def move(self, name: str, network: str, old: str, new: str) -> None:
        """Change a host's address."""
        # Not the other way round: a second address of the same network goes with the first.
        self._do("ip", "-n", name, "addr", "del", f"{old}/24", "dev", network)
        self._do("ip", "-n", name, "addr", "add", f"{new}/24", "dev", network)

    def on(self, name: str) -> list[str]:
        """Words before a command that is to run on a host."""
        return [*self._inside(), f"--net={self._namespace(name)}", "--"]

    @contextlib.contextmanager
    def seen_from(self, name: str) -> Iterator[Callable[..., Any]]:
        """A function that calls another one in a thread whose sockets are a host's."""

        def enter() -> None:
            with open(self._namespace(name), "rb") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                assert libc.setns(namespace.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

        with ThreadPoolExecutor(1, initializer=enter) as thread:
            yield lambda call, *args, **more: thread.submit(call, *args, **more).result(60)

    def close(self) -> None:
        """End it all."""
        os.kill(self._first, signal.SIGKILL)
        self._holder.wait(10)

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._first}", "--mount", "--pid"]

    def _namespace(self, name: str) -> str:
        return f"/proc/{self._first}/root/run/netns/{name}"

    def _do(self, *words: str) -> None:
        done = subprocess.run(
            [*self._inside(), "--net", "--", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"


def child_of(pid: int) -> int:
    """The child that a process soon has."""
    deadline = time.monotonic() + 10
    while True:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def networks(folder: Path, hosts: str) -> Iterator[Networks]:
    """Networks that are gone afterwards."""
    one = Networks(folder, hosts)
    try:
        yield one
    finally:
        one.close()
