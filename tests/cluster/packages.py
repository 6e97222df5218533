"""What a cluster of our own needs of the machine, and how it comes there.

Go is not installed: Debian 12's is too old for this Kubernetes.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from tests.engines.packages import install_debian

CNI = Path("/usr/lib/cni")
#: A program, and the Debian package that has it.
PROGRAMS = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    str(CNI / "bridge"): "containernetworking-plugins",
    "catatonit": "catatonit",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "tar": "tar",
    "iptables": "iptables",
    "ip": "iproute2",
    "mount": "mount",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
_PATH = f"{os.environ.get('PATH', '')}:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin"


class CannotHaveCluster(RuntimeError):
    """This machine cannot have a cluster of its own as it is; the message says what to do."""


def find(program: str) -> str | None:
    """The path of a program: on PATH, or where Go and the programs of root usually are."""
    return shutil.which(program, path=_PATH)


def search_path() -> str:
    """The PATH that the cluster's programs get."""
    return _PATH


def missing_packages() -> list[str]:
    """The Debian packages whose programs are not there."""
    return sorted({package for program, package in PROGRAMS.items() if find(program) is None})


def provide(*, install: bool) -> None:
    """See that everything is there, or install what Debian has of it.

    Args:
        install: packages may be installed. No service of theirs is started.

    Raises:
        CannotHaveCluster: not Linux, not root, no Go, or packages are missing.
        subprocess.CalledProcessError: apt-get failed.
    """
    if platform.system() != "Linux":
        raise CannotHaveCluster("a cluster of our own needs Linux; name one that exists by KUBECONFIG")
    if os.geteuid() != 0:
        raise CannotHaveCluster("a cluster of our own needs root; name one that exists by KUBECONFIG")
    if find("go") is None:
        raise CannotHaveCluster(
            "no Go: install Go 1.26 or newer (on PATH or in /usr/local/go), of which the cluster is built"
        )
    missing = missing_packages()
    if missing and install and find("apt-get"):
        install_debian(*missing)
        missing = missing_packages()
    if missing:
        raise CannotHaveCluster(
            f"missing on this machine (Debian 12 is what it is made for): "
            f"apt-get install --no-install-recommends {' '.join(missing)} "
            "(SHUNTER_TEST_INSTALL=1 does it, without starting their services)"
        )
