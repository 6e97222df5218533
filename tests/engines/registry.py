"""A real image registry for tests, on loopback, and a slow way to it.

The program is the reference implementation of the registry's protocol, built once by Go (two minutes with nothing
cached) and kept. An engine speaks plain http to registries on localhost without being told to.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx

from tests.cluster import cache
from tests.cluster.packages import find, search_path
from tests.patience import SOON

VERSION = "v3.0.0"
_MODULE = "github.com/distribution/distribution/v3/cmd/registry"
#: Who may use a registry that asks for a login. The hash is bcrypt's, of the password.
USER, PASSWORD = "wagon", "open sesame"
_HTPASSWD = f"{USER}:$2b$05$7SffQWxZJdg08y57J6Y8W.Uby785MsNdc.LsBL3SyKKMHa5KY70UC\n"


def can_build() -> bool:
    """Whether the program is there, or can be made."""
    return _kept().exists() or find("go") is not None


def _kept() -> Path:
    return cache.folder() / f"registry-{VERSION}-{platform.machine()}"


def _program() -> Path:
    """The registry's program, built if the cache has none.

    Raises:
        subprocess.CalledProcessError: the build failed.
    """
    kept = _kept()
    with cache.locked("build-registry"):
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                env = os.environ | {"CGO_ENABLED": "0", "GOBIN": folder, "PATH": search_path()}
                words = [find("go") or "go", "install", "-trimpath", "-ldflags=-s -w", f"{_MODULE}@{VERSION}"]
                subprocess.run(words, env=env, cwd=folder, stdin=subprocess.DEVNULL, check=True)
                os.replace(Path(folder) / "registry", kept)
    return kept


class Registry:
    """A registry that can be ended and started again on the same port with what it holds.

    Args:
        login: it wants :data:`USER` and :data:`PASSWORD`.
    """

    def __init__(self, *, login: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="shunter-registry-"))
        self.port = _free_port()
        self.login = login
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it does not; the message has its log.
        """
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"accesslog": {"disabled": False}, "level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "data")}},
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": "of the tests"},
        }
        if self.login:
            (self.folder / "htpasswd").write_text(_HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(self.folder / "htpasswd")}}
        (self.folder / "config.yml").write_text(json.dumps(config))  # which is YAML as well
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_program(), "serve", self.folder / "config.yml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"OTEL_TRACES_EXPORTER": "none"},
            )
        deadline = time.monotonic() + SOON
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{self.port}/v2/", timeout=5)
                return
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the registry does not start: {self.log()[-4000:]}")

    @property
    def running(self) -> bool:
        """Whether it has not been ended."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it as by kill -9; what was pushed stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def remove(self) -> None:
        """End it, with all that it holds."""
        self.kill()
        shutil.rmtree(self.folder)

    def log(self) -> str:
        """What it said; one line for each request."""
        return (self.folder / "log").read_text()

    def fetched(self, name: str) -> int:
        """How often the manifest of an image was given to an engine."""
        return sum(
            f"GET /v2/{name}/manifests/" in line and '" 200 ' in line for line in self.log().splitlines()
        )

    def push(self, client: docker.APIClient, source: str, name: str, tag: str = "1") -> str:
        """Push an image of an engine; its name here. The engine forgets it by that name."""
        repository = f"127.0.0.1:{self.port}/{name}"
        client.tag(source, repository, tag)
        login = {"username": USER, "password": PASSWORD} if self.login else {}
        for word in client.push(repository, tag, stream=True, decode=True, auth_config=login or None):
            if "error" in word:
                raise RuntimeError(word["error"])
        client.remove_image(f"{repository}:{tag}")
        return f"{repository}:{tag}"

    def move(self, name: str, tag: str, goal: str) -> None:
        """Let another tag mean what this one means; no engine knows of it. (Not where a login is wanted.)"""
        manifests = f"http://127.0.0.1:{self.port}/v2/{name}/manifests"
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        found = httpx.get(f"{manifests}/{tag}", headers={"Accept": kind}, timeout=SOON).raise_for_status()
        headers = {"Content-Type": kind}
        put = httpx.put(f"{manifests}/{goal}", content=found.content, headers=headers, timeout=SOON)
        put.raise_for_status()

    def config(self, folder: Path, password: str = PASSWORD, port: int | None = None) -> str:
        """A Docker configuration with a login for it, in a folder: what DOCKER_CONFIG names."""
        folder.mkdir(exist_ok=True)
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        host = f"127.0.0.1:{port or self.port}"
        (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        return str(folder)


@contextlib.contextmanager
def running(*, login: bool = False) -> Iterator[Registry]:
    """A registry that is gone afterwards."""
    one = Registry(login=login)
    try:
        one.start()
        yield one
    finally:
        one.remove()


class SlowWay:
    """A way to a port of this machine on which bytes come slowly; as many as they like go there.

    Attributes:
        rate: bytes a second, of all connections together.
    """

    def __init__(self, port: int, rate: float) -> None:
        self.rate = rate
        self._goal = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._turn = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        self._open.add(near)
        try:
            with near, socket.create_connection(("127.0.0.1", self._goal)) as far:
                while True:
                    for ready in select.select([near, far], [], [])[0]:
                        data = ready.recv(1 << 14)
                        if not data:
                            return
                        (far if ready is near else near).sendall(data)
                        if ready is far:
                            with self._turn:
                                time.sleep(len(data) / self.rate)
        except OSError:
            pass  # one of both has gone
        finally:
            self._open.discard(near)

    def break_off(self) -> None:
        """End all connections, and what is on its way with them: the kernel keeps megabytes of what a dead one sent."""
        for near in list(self._open):
            with contextlib.suppress(OSError):  # it has ended just now
                near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let nobody new through."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
