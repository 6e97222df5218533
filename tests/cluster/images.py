"""Images for pods, made here, since no image registry can be reached: archives as ``docker save`` writes them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.cluster import cache
from tests.cluster.packages import find
from tests.cluster.programs import PAUSE
from tests.engines.packages import alone

PYTHON = "localhost/python:3.11"
#: Debian's names; what they need comes along.
_PACKAGES = ["python3", "bash", "coreutils", "dash", "base-files", "base-passwd"]
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
#: Raised when what this file makes changes, so that a cache does not keep what it made before.
_EDITION = 1


def pause() -> Path:
    """The image of what holds a pod's namespaces: one static program."""
    archive = cache.folder() / f"pause-{_EDITION}.tar"
    with cache.locked("images"):
        if not archive.exists():
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(find("catatonit") or "", Path(folder) / "catatonit")
                write(archive, PAUSE, Path(folder), {"Entrypoint": ["/catatonit", "-P"]})
    return archive


def python() -> Path:
    """``localhost/python:3.11``: Debian 12's Python with a shell and the usual small programs.

    Its packages are unpacked, not installed: nothing of them runs, and the image is there in seconds.

    Raises:
        subprocess.CalledProcessError: apt-get cannot have them.
    """
    archive = cache.folder() / f"python-{_EDITION}.tar"
    with cache.locked("images"):
        if not archive.exists():
            with tempfile.TemporaryDirectory() as folder:
                _unpack(Path(folder), _PACKAGES)
                path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
                write(archive, PYTHON, Path(folder) / "root", {"Env": [f"PATH={path}"], "Cmd": ["python3"]})
    return archive


def write(archive: Path, name: str, root: Path, config: dict[str, Any]) -> None:
    """Write the archive of an image with one layer.

    Args:
        name: with its tag.
        root: what the layer holds; everything in it will belong to root.
        config: the ``config`` of an image: Cmd, Entrypoint, Env, User, WorkingDir.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(root, arcname=".", filter=_owned_by_root)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    image = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "tests/cluster/images.py"}],
    }
    described = json.dumps(image).encode()
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    draft = archive.with_suffix(".new")
    with tarfile.open(draft, "w") as tar:
        for path, content in (
            ("layer.tar", layer.getvalue()),
            ("config.json", described),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    draft.rename(archive)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _unpack(folder: Path, packages: list[str]) -> None:
    """Get packages with all they need, and unpack them below ``folder/root``."""
    root, archives = folder / "root", folder / "archives"
    (archives / "partial").mkdir(parents=True)
    options = {
        "Dir::State::status": "/dev/null",  # as if nothing were installed: they come with all they need
        "Dir::Cache::archives": str(archives),
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "root",
    }
    words = [word for option in options.items() for word in ("-o", "=".join(option))]
    fetch = ["apt-get", "-qq", "-y", "--no-install-recommends", "--download-only", *words, "install"]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with alone():
        subprocess.run([*fetch, *packages], check=True, env=env, stdin=subprocess.DEVNULL, stdout=2)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for archive in sorted(archives.glob("*.deb")):
        content = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
        unpack = ["tar", "--extract", "--keep-directory-symlink", f"--directory={root}"]
        subprocess.run(unpack, stdin=content.stdout, check=True)
        if content.wait() != 0:
            raise RuntimeError(f"dpkg-deb cannot read {archive}")
    for name in ("passwd", "group"):  # what base-passwd would do when it is installed
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", root / "etc" / name)
    for name in ("doc", "man", "locale"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    for path in ("proc", "sys", "dev", "tmp"):
        (root / path).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
