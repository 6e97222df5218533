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
    binary = cache.folder() / f"kubernetes-{_key()}"
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
            _go(
                "install",
                *_FLAGS,
                "-ldflags=-s -w",
                f"sigs.k8s.io/kwok/cmd/kwok@{KWOK}",
                target=binary.parent,
            )
    return binary


def _key() -> str:
    digest = hashlib.sha256(" ".join([platform.machine(), *_FLAGS, _version()]).encode())
    for path in sorted(TOOLS.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _version() -> str:
    """What it is told to say of itself: Kubernetes' own build writes it in."""
    major, minor, _ = VERSION.removeprefix("v").split(".")
    told = {"gitVersion": VERSION, "gitMajor": major, "gitMinor": minor}
    return " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in told.items())


def _build(binary: Path) -> None:
    draft, started = binary.with_suffix(".new"), time.monotonic()
    print("building Kubernetes: about six minutes on two cores, once", flush=True)
    _go("build", *_FLAGS, f"-ldflags=-s -w {_version()}", "-o", str(draft), ".")
    draft.rename(binary)
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)


def _go(*words: str, target: Path | None = None) -> None:
    done = subprocess.run(
        [find("go") or "go", *words],
        cwd=TOOLS,
        env=os.environ
        | {"CGO_ENABLED": "0", "PATH": search_path()}
        | ({"GOBIN": str(target)} if target else {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotHaveCluster(f"go {words[0]} failed in {TOOLS}:\n{done.stdout[-4000:]}")
