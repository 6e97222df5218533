"""A real Docker engine for tests, and a small image with a shell and Python made of Debian's packages.

Used is the engine that DOCKER_HOST or the usual socket leads to. Where there is none, root can have one of the
tests' own: a ``dockerd`` with its own folders and socket, no bridge and no rule of iptables, stopped by its pid.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
import psutil

from tests.engines.debian import unpack
from tests.engines.packages import install_debian
from tests.patience import SOON

IMAGE = "localhost/python:3.11"
#: The same without anything but one program.
BARE_IMAGE = "localhost/bare:1"
_PACKAGES = ["python3", "busybox-static"]
_LEFT_OUT = {"dpkg", "tar", "perl-base"}  # dependencies that nothing here uses
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "shunter-tests"


def found() -> str | None:
    """URL of an engine that runs already."""
    url = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        client = docker.APIClient(url, timeout=5)
        client.ping()
        client.close()
    except (docker.errors.DockerException, OSError):
        return None
    return url


def can_start() -> bool:
    """Whether one of the tests' own can be started."""
    return os.geteuid() == 0 and shutil.which("dockerd") is not None


def install() -> None:
    """Install Debian's Docker, without starting the service that comes with it.

    Raises:
        RuntimeError: not root, or not Debian or Ubuntu.
        subprocess.CalledProcessError: apt-get failed.
    """
    install_debian("docker.io")


class Daemon:
    """A Docker engine of the tests' own; its URL stays the same over restarts.

    Args:
        data: where its images are, and stay; for one engine at a time. None: they go with it.

    Attributes:
        live_restore: whether containers outlive it; read at each start.
    """

    def __init__(self, data: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="shunter-docker-"))
        self._data = data or self.folder / "data"
        self.url = f"unix://{self.folder}/docker.sock"
        self.live_restore = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it does not; the message has its log.
        """
        config = self.folder / "daemon.json"
        # What a registry breaks off is tried again by whoever asks for it, as far as the tests are concerned.
        config.write_text(json.dumps({"live-restore": self.live_restore, "max-download-attempts": 1}))
        words = [
            *("--data-root", str(self._data), "--exec-root", str(self.folder / "exec")),
            *("--pidfile", str(self.folder / "pid"), "--config-file", str(config), "-H", self.url),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--bridge=none"),
            *("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + SOON
        while self._process.poll() is None and time.monotonic() < deadline:
            if self.answers():
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"dockerd does not start: {(self.folder / 'log').read_text()[-4000:]}")

    def answers(self) -> bool:
        """Whether it can be talked to."""
        try:
            client = docker.APIClient(self.url, timeout=5)
            client.ping()
            client.close()
        except (docker.errors.DockerException, OSError):
            return False
        return True

    def end(self, how: signal.Signals) -> None:
        """End it by a signal, and wait until it has."""
        assert self._process is not None
        beneath = int((self.folder / "exec/containerd/containerd.pid").read_text())
        self._process.send_signal(how)
        self._process.wait(SOON)
        # The kernel kills it after its parent; a new one that finds it dying would wait for it in vain.
        while psutil.pid_exists(beneath):
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None and self._process.poll() is None:
            self.end(signal.SIGTERM)

    def remove(self) -> None:
        """End it with all its containers, and remove what it kept."""
        if self._process is not None and self._process.poll() is not None:
            self.start()  # what a killed one left running
        client = docker.APIClient(self.url, timeout=60)
        for one in client.containers(all=True, quiet=True):
            client.remove_container(one["Id"], force=True, v=True)
        client.close()
        self.stop()
        self._end_forgotten()
        for target in self._mounts():  # one that was killed leaves them
            subprocess.run(["umount", target], check=True)
        shutil.rmtree(self.folder)

    def _end_forgotten(self) -> None:
        """End containers that the engine does not know any more: it was killed while it began them."""
        for shim in psutil.process_iter(["name", "cmdline"]):
            words = shim.info["cmdline"] or []
            if words and "containerd-shim" in words[0] and any(f"{self.folder}/" in word for word in words):
                for process in [*shim.children(recursive=True), shim]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                        process.wait(SOON)

    def _mounts(self) -> list[str]:
        """What is mounted below its folder, the innermost first."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        targets = [line.split()[4] for line in lines]
        return sorted((one for one in targets if one.startswith(f"{self.folder}/")), key=len, reverse=True)


def load_images(url: str) -> None:
    """Have :data:`IMAGE` and :data:`BARE_IMAGE` on an engine.

    Raises:
        subprocess.CalledProcessError: Debian's packages cannot be had.
    """
    client = docker.APIClient(url, timeout=120)
    try:
        there = {tag for image in client.images() for tag in image.get("RepoTags") or []}
        if IMAGE not in there:
            _import(client, _cached("python", _python_tree), IMAGE, ["ENV PATH=/usr/local/bin:/usr/bin:/bin"])
        if BARE_IMAGE not in there:
            _import(client, _cached("bare", _bare_tree), BARE_IMAGE, [])
    finally:
        client.close()


def make_image(client: docker.APIClient, image: str, says: str, size: int = 0) -> str:
    """Have an image that nobody else has: ``/busybox cat /says`` prints ``says``; ``size`` bytes of noise make it large.

    Returns:
        Its name.
    """
    with tempfile.TemporaryDirectory(prefix="shunter-image-") as folder:
        archive = Path(folder) / "image.tar"
        shutil.copy(_cached("bare", _bare_tree), archive)
        with tarfile.open(archive, "a") as packed:
            for name, data in (("says", says.encode()), ("noise", os.urandom(size))):
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(data)
                packed.addfile(entry, io.BytesIO(data))
        _import(client, archive, image, [])
    return image


def _import(client: Any, archive: Path, image: str, changes: Sequence[str]) -> None:
    repository, tag = image.rsplit(":", 1)
    said = client.import_image_from_file(str(archive), repository=repository, tag=tag, changes=list(changes))
    client.tag(json.loads(said.splitlines()[-1])["status"], repository, tag)  # Podman calls it latest


def _cached(name: str, make: Any) -> Path:
    kept = _CACHE / f"{name}-2.tar"
    if not kept.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="shunter-image-") as folder:
            make(Path(folder))
            draft = kept.with_name(f"{kept.name}.{os.getpid()}")
            with tarfile.open(draft, "w") as archive:
                archive.add(Path(folder) / "root", arcname=".", filter=_as_root)
            os.replace(draft, kept)
    return kept


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _python_tree(folder: Path) -> None:
    """Debian's Python with what it depends on, unpacked; a shell and the usual programs by busybox."""
    root = folder / "root"
    unpack(root, _PACKAGES, without=_LEFT_OUT)
    for name in ("bin", "tmp", "etc", "root", "proc", "sys", "dev"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    busybox = next(root.glob("**/bin/busybox"))
    names = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in set(names) - {"busybox"}:
        link = root / "bin" / name
        if not link.is_symlink() and not link.exists():
            link.symlink_to("/" + str(busybox.relative_to(root)))
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    shutil.rmtree(root / "usr/share", ignore_errors=True)


def _bare_tree(folder: Path) -> None:
    """One program, ``/busybox``: no shell, no folders."""
    unpack(folder / "all", _PACKAGES, without=_LEFT_OUT)
    root = folder / "root"
    root.mkdir()
    shutil.copy(next((folder / "all").glob("**/bin/busybox")), root / "busybox")
    (root / "wrong-machine").write_bytes(_foreign_program())
    (root / "wrong-machine").chmod(0o755)
    (root / "no-program").write_text("text\n")


def _foreign_program() -> bytes:
    """The head of a program for another kind of machine."""
    head = bytearray(64)
    head[:8] = b"\x7fELF\x02\x01\x01\x00"
    head[16:20] = (2).to_bytes(2, "little") + (0xF3).to_bytes(2, "little")  # RISC-V
    return bytes(head)
