"""Images for pods, made here, since no image registry can be reached: archives as ``docker save`` writes them."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster import cache
from tests.cluster.packages import find
from tests.cluster.programs import PAUSE
from tests.engines.debian import unpack

PYTHON = "localhost/python:3.11"
#: Debian's names; what they need comes along.
_PACKAGES = ["python3", "bash", "coreutils", "dash", "base-files", "base-passwd"]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
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
                unpack(Path(folder) / "root", _PACKAGES)
                write(archive, PYTHON, Path(folder) / "root", {"Env": [f"PATH={_PATH}"], "Cmd": ["python3"]})
    return archive


def python_with(archive: Path, name: str, folders: Mapping[str, Path]) -> None:
    """Write the archive of an image: Python's, and some folders in it.

    Args:
        name: with its tag.
        folders: path in the image, to what is there.
    """
    with tempfile.TemporaryDirectory() as root:
        for path, folder in folders.items():
            shutil.copytree(folder, f"{root}/{path}", ignore=shutil.ignore_patterns("__pycache__"))
        write(archive, name, Path(root), {"Env": [f"PATH={_PATH}"], "Cmd": ["python3"]}, python())


def write(archive: Path, name: str, root: Path, config: dict[str, Any], base: Path | None = None) -> None:
    """Write the archive of an image with one layer, or with one more than another one has.

    Args:
        name: with its tag.
        root: what the layer holds; everything in it will belong to root.
        config: the ``config`` of an image: Cmd, Entrypoint, Env, User, WorkingDir.
        base: the archive of an image that it begins with, written by this function, too.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(root, arcname=".", filter=_owned_by_root)
    layers = [*(_layers(base) if base else []), layer.getvalue()]
    image = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": config,
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers],
        },
        "history": [{"created_by": "tests/cluster/images.py"}] * len(layers),
    }
    names = [f"layer-{number}.tar" for number in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": names}]
    draft = archive.with_suffix(".new")
    with tarfile.open(draft, "w") as tar:
        for path, content in (
            *zip(names, layers, strict=True),
            ("config.json", json.dumps(image).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    draft.rename(archive)


def _layers(archive: Path) -> list[bytes]:
    with tarfile.open(archive) as tar:

        def content(path: str) -> bytes:
            file = tar.extractfile(path)
            assert file is not None
            return file.read()

        return [content(path) for path in json.loads(content("manifest.json"))[0]["Layers"]]


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
