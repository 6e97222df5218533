"""Engines from Debian's packages, where installing is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def install_debian(package: str) -> None:
    """Install a package, without starting a service that comes with it.

    Raises:
        RuntimeError: not root, or not Debian or Ubuntu.
        subprocess.CalledProcessError: apt-get failed.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RuntimeError(f"installing {package} needs root on Debian or Ubuntu")
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        for words in (["update"], ["install", "-y", "--no-install-recommends", package]):
            subprocess.run(["apt-get", "-q", *words], check=True, env=env, stdin=subprocess.DEVNULL)
    finally:
        if ours:
            policy.unlink()
