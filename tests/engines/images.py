"""The images of agent and server, built by ``images/Containerfile`` once, and kept as archives.

An archive is what ``docker save`` writes. It is kept under a hash of what it is made of: who wants it again, a test
run or ``make images`` (``python -m tests.engines.images``), has it at once.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import cache
from tests.cluster.cluster import OwnCluster
from tests.cluster.images import python, write
from tests.engines import builder
from tests.engines.debian import unpack

ROOT = Path(__file__).parents[2]
TARGETS = ("agent", "server")
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
#: What they are built on unless BASE names another: Debian's packages, since no image registry may be in reach.
_BASE = "localhost/shunter-base:2"
_PACKAGES = (
    *("python3", "python3-venv", "ca-certificates", "tini", "git", "openssh-client"),
    *(
        "libstdc++6",
        "base-files",
        "base-passwd",
        "coreutils",
        "dash",
        "debianutils",
        "findutils",
        "grep",
        "sed",
    ),
)
#: What Git, openssl and some others name as needed, and nothing here uses.
_WITHOUT = (
    "perl",
    "perl-base",
    "perl-modules-5.36",
    "libperl5.36",
    "liberror-perl",
    "git-man",
    "dpkg",
    "tar",
)
#: Raised when what this file makes changes, so that a cache does not keep what it made before.
_EDITION = 2
#: How many trees' images are kept.
_KEPT = 6
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def name(target: str) -> str:
    """The name of an image with its tag, ``localhost/shunter-agent:VERSION``."""
    return f"localhost/shunter-{target}:{VERSION}"


def archives(*, install: bool = False) -> dict[str, Path]:
    """Target -> the archive of its image, built if that was not done before.

    Args:
        install: an engine may be installed for that.

    Raises:
        builder.CannotBuild: there is no engine; the message says what to do.
        subprocess.CalledProcessError: an image cannot be built; what was said is on stderr.
    """
    base = os.environ.get("BASE", "")
    folder = cache.folder() / f"images-{_made_of(base)}"
    with cache.locked("shunter-images"):
        if not folder.exists():
            draft = folder.with_suffix(".new")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            _build(draft, base, install=install)
            draft.rename(folder)
            for old in sorted(cache.folder().glob("images-*"), key=_last_used)[:-_KEPT]:
                shutil.rmtree(old)
        folder.touch()
    return {target: folder / f"{target}.tar" for target in TARGETS}


def _last_used(folder: Path) -> float:
    return folder.stat().st_mtime


def _build(into: Path, base: str, *, install: bool) -> None:
    with (
        builder.one(cache.folder() / "builder", install=install) as engine,
        tempfile.TemporaryDirectory() as made,
    ):
        if not base:
            engine.load(_base())
        folder = Path(made)
        for path in _files():
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        _write_index(folder / "images/index")
        arguments = {"BASE": base or _BASE, "VERSION": VERSION, "REVISION": _revision()}
        for target in TARGETS:
            engine.build(folder, target, name(target), arguments)
            engine.save(name(target), into / f"{target}.tar")


def _files() -> Iterator[Path]:
    """What images are made of: what ``.dockerignore`` lets through."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    for part in (ROOT / line[1:] for line in lines if line.startswith("!")):
        for path in sorted(part.rglob("*")) if part.is_dir() else [part]:
            if path.is_file() and "__pycache__" not in path.parts and path.parent.name != "index":
                yield path


def _made_of(base: str) -> str:
    digest = hashlib.sha256(repr((_EDITION, _PACKAGES, _WITHOUT, base)).encode())
    for path in _files():
        digest.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()[:16]


def _base() -> Path:
    archive = cache.folder() / f"shunter-base-{_EDITION}.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            unpack(root, _PACKAGES, without=_WITHOUT)
            write(archive, _BASE, root, {"Env": [f"PATH={_PATH}", "LANG=C.UTF-8"], "Cmd": ["python3"]})
    return archive


def _revision() -> str:
    """The last commit that changed what images are made of."""
    words = ["git", "-C", str(ROOT), "log", "-1", "--format=%H", "--", *{str(path) for path in _files()}]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _write_index(folder: Path) -> None:
    """What this machine's pip goes by, for the stage that builds: settings, and the files that they name."""
    folder.mkdir()
    words = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():  # variables come last, and count
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = shlex.split(value)[0]
    for key in ("cert", "client-cert"):
        if key in settings:
            shutil.copy(settings[key], folder / key)
            settings[key] = f"/build/index/{key}"
    known = (
        "index-url",
        "extra-index-url",
        "trusted-host",
        "cert",
        "client-cert",
        "proxy",
        "timeout",
        "retries",
    )
    kept = "".join(f"{key} = {settings[key]}\n" for key in known if key in settings)
    (folder / "pip.conf").write_text(f"[global]\n{kept}")


def main() -> None:
    """Build what is missing, and give it to the engine and to the cluster that are there."""
    try:
        made = archives(install=os.environ.get("SHUNTER_TEST_INSTALL") == "1")
        if engine := builder.found():
            for archive in made.values():
                engine.load(archive)
            print(f"{engine.program} has {' and '.join(map(name, TARGETS))}")
        cluster = OwnCluster()
        if cluster.is_up:
            for archive in (*made.values(), python()):
                cluster.load_image(archive)
            print(f"the cluster {cluster.name} has them, too")
    except (builder.CannotBuild, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"make images: {error}")


if __name__ == "__main__":
    main()
