"""Real file systems that are small, full or read-only: root mounts them for a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int, kind: str = "tmpfs") -> Iterator[Path]:
    """A file system in memory of so many MiB (where its kind knows a size), mounted at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", kind, "-o", f"size={megabytes}m", kind, str(folder)]
    mounted = subprocess.run(words, check=False, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a file system here (root is needed): {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """What is opened below the folder meanwhile is on a read-only file system."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill the disk; the file to remove to make room again.

    Args:
        leave: bytes that stay free.
    """
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 65_536
        while size:
            found = os.statvfs(disk)
            if found.f_bavail * found.f_frsize <= leave:
                break
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    return ballast
