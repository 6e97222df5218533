"""promtool, which says what is wrong with a page of metrics: the one on PATH, or Debian's.

Debian has it in the package of the whole server. That is not installed, for it would be started: only the one
program is taken out of the package, into a folder of the test run.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.engines.packages import alone


def find() -> Path | None:
    """Where it is, or None."""
    found = shutil.which("promtool")
    return Path(found) if found else None


def fetch(folder: Path) -> Path:
    """Take it out of Debian's package; nothing outside the folder is changed but the lists of packages.

    Raises:
        RuntimeError: not Debian or Ubuntu.
        subprocess.CalledProcessError: apt-get or dpkg failed.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise RuntimeError("fetching promtool needs Debian or Ubuntu")
    download = ["apt-get", "-q", "download", "prometheus"]
    with alone():
        if subprocess.run(download, cwd=folder, check=False, stdin=subprocess.DEVNULL).returncode != 0:
            subprocess.run(["apt-get", "-q", "update"], check=True, stdin=subprocess.DEVNULL)
            subprocess.run(download, cwd=folder, check=True, stdin=subprocess.DEVNULL)
    (package,) = folder.glob("prometheus_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked"], check=True)
    package.unlink()
    return folder / "unpacked" / "usr" / "bin" / "promtool"


def check(promtool: Path, page: bytes) -> str:
    """What it has to say of a page of metrics; nothing if that is as it should be."""
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False
    )
    return (done.stdout + done.stderr).decode() + (f"exit code {done.returncode}" if done.returncode else "")
