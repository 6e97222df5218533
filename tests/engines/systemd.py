"""systemd's own judgement of unit files, without a systemd that runs: ``systemd-analyze verify``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.engines.packages import install_debian


def find_analyze() -> str | None:
    """The program ``systemd-analyze``, or None."""
    return shutil.which("systemd-analyze")


def install() -> None:
    """Install Debian's package systemd; nothing of it is started.

    Raises:
        RuntimeError: not root, or not Debian or Ubuntu.
        subprocess.CalledProcessError: apt-get failed.
    """
    install_debian("systemd")


class Analyze:
    """``systemd-analyze``.

    Args:
        folder: an empty one of its own, in which units are written and what a user's systemd needs.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.folder = folder
        folder.chmod(0o700)  # as XDG_RUNTIME_DIR has to be
        first = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = int(first.split()[1])

    def complaints(self, name: str, text: str, *, user: bool = False) -> str:
        """What it says against a unit: nothing, if it is as it should be."""
        unit = self.folder / name
        unit.write_text(text, "utf-8")
        try:
            done = subprocess.run(
                [self.program, *(["--user"] if user else []), "verify", "--man=no", str(unit)],
                env=os.environ | {"XDG_RUNTIME_DIR": str(self.folder), "SYSTEMD_LOG_LEVEL": "notice"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            unit.unlink()
        told = done.stdout + done.stderr
        return told or f"exit code {done.returncode}" if done.returncode else told
