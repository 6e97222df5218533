"""A real server and a real agent for a benchmark, in a home of their own, as a person would start them."""

from __future__ import annotations

import atexit
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SHUNTER = [sys.executable, "-m", "shunter_cli.main"]


def new_home() -> Path:
    """A folder on the disk of this repository; removed when the benchmarks end.

    Not in /tmp, and not removed at once: on ext4 making a file takes many times as long for minutes after
    many were removed nearby, and what is measured next would pay for it.
    """
    homes = Path(__file__).parent.parent / ".bench"
    homes.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="home-", dir=homes))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Tls:
    """A certificate for 127.0.0.1, its key, and the authority that is to be believed; files."""

    cert: Path
    key: Path
    ca: Path


@dataclass
class System:
    """What a benchmark measures: its processes, and a plain HTTP way in that costs next to nothing."""

    home: Path
    port: int
    env: dict[str, str]
    server: subprocess.Popen[bytes]
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    tls: Tls | None = None

    def cli(self, *arguments: str) -> str:
        """Run the command line; its standard output."""
        done = subprocess.run(
            [*SHUNTER, *arguments], env=self.env, capture_output=True, text=True, cwd=self.home, check=False
        )
        if done.returncode:
            raise RuntimeError(f"shunter {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    @property
    def token(self) -> str:
        """What the server wants to see."""
        return (self.home / "token").read_text().strip()

    def connect(self) -> Connection:
        """A keep-alive connection."""
        return Connection(self.port, self.token, self.tls)

    def start_agent(self, name: str, limit: int, pool: str = "default") -> psutil.Process:
        """Start an agent of a pool and wait until the server knows it."""
        with open(self.home / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [*SHUNTER, "agent", "start", "--pool", pool, "--name", name, "--limit", str(limit)],
                env=self.env,
                stderr=log,
                cwd=self.home,
            )
        self.agents.append(process)
        way = self.connect()
        deadline = time.monotonic() + 30
        while not any(agent["name"] == name for agent in way.get("/agents")["agents"]):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError((self.home / f"{name}.log").read_text())
            time.sleep(0.05)
        return psutil.Process(process.pid)


class Connection:
    """Requests over one keep-alive connection by the standard library alone."""

    def __init__(self, port: int, token: str, tls: Tls | None = None) -> None:
        self._http = _http(port, tls, 60)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        """The body of an answer below 400."""
        payload = None if body is None else json.dumps(body)
        self._http.request(method, f"/api/v1{path}", payload, self._headers)
        answer = self._http.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {data.decode()}")
        return data

    def get(self, path: str) -> Any:
        """A JSON answer."""
        return json.loads(self.request("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """A JSON answer to a JSON body."""
        return json.loads(self.request("POST", path, body))


def _http(port: int, tls: Tls | None, timeout: float) -> http.client.HTTPConnection:
    if tls is None:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    trust = ssl.create_default_context(cafile=str(tls.ca))
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=trust)


@contextmanager
def running(
    *,
    database_url: str | None = None,
    home: Path | None = None,
    settings: Mapping[str, str] | None = None,
    tls: Tls | None = None,
) -> Iterator[System]:
    """A server on a free port, stopped at the end with every agent that was started.

    Args:
        settings: flags of the server -> values.
        tls: the server speaks it.
    """
    folder = home or new_home()
    port = free_port()
    # Modules are compiled once, as in any installation.
    left_out = ("SHUNTER_", "PYTHONDONTWRITEBYTECODE")
    env = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    env |= {
        "SHUNTER_HOME": str(folder),
        "SHUNTER_API_URL": f"{'https' if tls else 'http'}://127.0.0.1:{port}/api",
    }
    command = [*SHUNTER, "server", "start", "--port", str(port)]
    if tls is not None:
        env["SHUNTER_TLS_CA"] = str(tls.ca)
        command += ["--tls-cert", str(tls.cert), "--tls-key", str(tls.key)]
    for flag, value in (settings or {}).items():
        command += [flag, value]
    if database_url:
        command += ["--database-url", database_url]
    with open(folder / "server.log", "ab") as log:
        server = subprocess.Popen(command, env=env, stderr=log, cwd=folder)
    system = System(folder, port, env, server, tls=tls)
    try:
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError):
                probe = _http(port, tls, 5)
                probe.request("GET", "/readyz")
                if probe.getresponse().status == 200:
                    break
            if time.monotonic() > deadline or server.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text())
            time.sleep(0.05)
        with suppress(RuntimeError):
            system.cli("pool", "create", "default", "--type", "process")
        yield system
    finally:
        for process in [*system.agents, server]:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
