"""Podman's Docker-compatible service for tests, with folders and a socket of its own; ended by its pid."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import psutil

from tests.engines.docker import load_images
from tests.engines.packages import install_debian
from tests.patience import SOON

#: Limits that every machine grants: by itself it raises them, for which some do not let even root.
_SETTINGS = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'


def can_start() -> bool:
    """Whether it can be started."""
    return os.geteuid() == 0 and shutil.which("podman") is not None


def install() -> None:
    """Install Debian's Podman, without starting a service.

    Raises:
        RuntimeError: not root, or not Debian or Ubuntu.
        subprocess.CalledProcessError: apt-get failed.
    """
    install_debian("podman")


@contextmanager
def service() -> Iterator[str]:
    """URL of a service that has the tests' images; it and its containers are gone afterwards.

    Raises:
        RuntimeError: it does not start; the message has its log.
    """
    folder = Path(tempfile.mkdtemp(prefix="shunter-podman-"))
    url = f"unix://{folder}/podman.sock"
    words = [
        *("podman", "--root", str(folder / "root"), "--runroot", str(folder / "run")),
        *("--tmpdir", str(folder / "tmp"), "--cgroup-manager=cgroupfs", "--events-backend=file"),
    ]
    (folder / "containers.conf").write_text(_SETTINGS)
    env = os.environ | {"CONTAINERS_CONF": str(folder / "containers.conf")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*words, "system", "service", "--time=0", url],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
        )
    try:
        _wait_for(process, url, folder / "log")
        load_images(url)
        yield url
    finally:
        subprocess.run([*words, "rm", "--all", "--force", "--volumes", "--time=0"], check=True)
        process.terminate()
        process.wait(SOON)
        for one in psutil.process_iter(["cmdline"]):  # conmon and the like, on their way out
            if any(str(folder) in word for word in one.info["cmdline"] or ()):
                psutil.wait_procs([one], 10)
        subprocess.run([*words, "system", "reset", "--force"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder)


def _wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + SOON
    while process.poll() is None and time.monotonic() < deadline:
        try:
            client = docker.APIClient(url, timeout=5)
            client.ping()
            client.close()
            return
        except (docker.errors.DockerException, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"podman's service does not start: {log.read_text()[-4000:]}")
