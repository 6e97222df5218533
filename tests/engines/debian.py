"""Debian's packages unpacked into a folder, for images of tests: there in seconds, without anything of them run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from tests.engines.packages import alone


def unpack(root: Path, packages: Collection[str], *, without: Collection[str] = ()) -> None:
    """Get packages with all they need, and unpack them below ``root``, which is made.

    Args:
        without: names of packages that are left out, though others say that they need them.

    Raises:
        subprocess.CalledProcessError: apt-get cannot have them.
        RuntimeError: one cannot be read.
    """
    archives = root.with_name(f"{root.name}-archives")
    (archives / "partial").mkdir(parents=True)
    _fetch(archives, packages)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for archive in sorted(archives.glob("*.deb")):
        if archive.name.partition("_")[0] not in without:
            _unpack(archive, root)
    for name in ("passwd", "group"):  # what base-passwd would do when it is installed
        if (master := root / f"usr/share/base-passwd/{name}.master").exists():
            shutil.copy(master, root / "etc" / name)
    for name in ("doc", "man", "locale", "info", "lintian"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    for path in ("proc", "sys", "dev", "tmp"):
        (root / path).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    shutil.rmtree(archives)


def _fetch(archives: Path, packages: Collection[str]) -> None:
    options = {
        "Dir::State::status": "/dev/null",  # as if nothing were installed: they come with all they need
        "Dir::Cache::archives": str(archives),
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "root",
    }
    words = [word for option in options.items() for word in ("-o", "=".join(option))]
    get = ["apt-get", "-qq", "-y", "--no-install-recommends", "--download-only", *words, "install", *packages]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with alone():
        # To stderr: what a command of ours prints on stdout may be read by a program.
        if subprocess.run(
            get, check=False, env=env, stdin=subprocess.DEVNULL, capture_output=True
        ).returncode:
            subprocess.run(["apt-get", "-q", "update"], check=True, stdin=subprocess.DEVNULL, stdout=2)
            subprocess.run(get, check=True, env=env, stdin=subprocess.DEVNULL, stdout=2)


def _unpack(archive: Path, root: Path) -> None:
    content = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
    unpack = ["tar", "--extract", "--keep-directory-symlink", f"--directory={root}"]
    subprocess.run(unpack, stdin=content.stdout, check=True)
    if content.wait() != 0:
        raise RuntimeError(f"dpkg-deb cannot read {archive}")
