"""Builds ``tools/``: Kubernetes in one binary, kept in the cache under what it was made of; and kwok."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import time
from pathlib import Path

from tests.cluster import cache
from tests.cluster.packages import CannotHaveCluster, find, search_path

TOOLS = Path(__file__).with_name("tools")
VERSION = re.findall(r"k8s\.io/kubernetes (v[\d.]+)", (TOOLS / "go.mod").read_text())[0]
KWOK = "v0.8.0"
#: Debug symbols would take a third of the binary and some of the time, and nobody debugs it.
_FLAGS = ["-trimpath", "-gcflags=all=-dwarf=false"]


def kubernetes() -> Path:
    """The binary, built if the cache has none of these sources: six minutes on two cores with nothing cached.

    Raises:
        CannotHaveCluster: the build failed; the message has the end of what it said.
    """
    binary = cache.folder() / f"kubernetes-{key(TOOLS, _version())}"
    with cache.locked("build"):
        if not binary.exists():
            _build(binary)
    return binary


def kwok() -> Path:
    """The binary, built if the cache has none of this version: two minutes of processor time with nothing cached.

    Raises:
        CannotHaveCluster: the build failed; the message has the end of what it said.
    """
    binary = cache.folder() / f"kwok-{KWOK}" / "kwok"
    with cache.locked("build"):
        if not binary.exists():
            print("building kwok: a minute or two on two cores, once", flush=True)
            go(TOOLS, "install", *flags(), f"sigs.k8s.io/kwok/cmd/kwok@{KWOK}", target=binary.parent)
    return binary


def key(sources: Path, *told: str) -> str:
    """What a program is known by in the cache: 16 hex digits of the folder of its sources, and of what else makes it.

    Args:
        told: what else.
    """
    digest = hashlib.sha256(" ".join([platform.machine(), *_FLAGS, *told]).encode())
    for path in sorted(sources.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def flags(linked: str = "") -> list[str]:
    """How programs are built.

    Args:
        linked: what the linker writes into them, ``-X NAME=VALUE`` each.
    """
    return [*_FLAGS, f"-ldflags=-s -w {linked}"]


def _version() -> str:
    """What it is told to say of itself: Kubernetes' own build writes it in."""
    major, minor, _ = VERSION.removeprefix("v").split(".")
    told = {"gitVersion": VERSION, "gitMajor": major, "gitMinor": minor}
    return " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in told.items())


def _build(binary: Path) -> None:
    draft, started = binary.with_suffix(".new"), time.monotonic()
    print("building Kubernetes: about six minutes on two cores, once", flush=True)
    go(TOOLS, "build", *flags(_version()), "-o", str(draft), ".")
    draft.rename(binary)
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)


def go(sources: Path, *words: str, target: Path | None = None) -> str:
    """Run go to its end in a folder; what it prints.

    Args:
        target: where ``go install`` puts programs.

    Raises:
        CannotHaveCluster: it failed; the message has the end of what it said.
    """
    done = subprocess.run(
        [find("go") or "go", *words],
        cwd=sources,
        env=os.environ
        | {"CGO_ENABLED": "0", "PATH": search_path()}
        | ({"GOBIN": str(target)} if target else {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotHaveCluster(f"go {words[0]} failed in {sources}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout
