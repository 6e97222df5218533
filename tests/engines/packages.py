"""Engines from Debian's packages, where installing is allowed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLICY = Path("/usr/sbin/policy-rc.d")


@contextmanager
def alone() -> Iterator[None]:
    """While no other test run of this machine uses apt-get: it does not wait for another, it fails."""
    with (Path(tempfile.gettempdir()) / f"shunter-tests-apt-{os.geteuid()}.lock").open("w") as line:
        fcntl.flock(line, fcntl.LOCK_EX)
        yield


@contextmanager
def no_service_starts() -> Iterator[None]:
    """Debian's own switch against services that start when they are installed."""
    if _POLICY.exists():  # somebody decides already
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def install_debian(*packages: str) -> None:
    """Install packages, without starting the services that come with them.

    Raises:
        RuntimeError: not root, or not Debian or Ubuntu.
        subprocess.CalledProcessError: apt-get failed.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RuntimeError(f"installing {', '.join(packages)} needs root on Debian or Ubuntu")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    keep = ["-o", "Dpkg::Options::=--force-confold"]
    with alone(), no_service_starts():
        for words in (["update"], ["install", "-y", "--no-install-recommends", *keep, *packages]):
            # To stderr: what a command of ours prints on stdout may be read by a program.
            subprocess.run(["apt-get", "-q", *words], check=True, env=env, stdin=subprocess.DEVNULL, stdout=2)
