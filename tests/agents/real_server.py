"""A real server and real agents as subprocesses, in a home of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from shunter_work_pools.client import Client
from shunter_work_pools.contracts.errors import ServerUnreachable
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import Run
from tests.networks.certificates import Authority
from tests.patience import SOON

_SHARED = Path(__file__).with_name("shared_agent.py")
_SERVE = "from shunter_work_pools.server import serve; serve({flags!r})"


@dataclass
class Site:
    """A home, and the server in it.

    Attributes:
        env: environment of everything that belongs to it.
        client: speaks to its server.
        flags: settings of its server, beside the port.
    """

    home: Path
    env: dict[str, str]
    port: int
    client: Client
    server: subprocess.Popen[bytes]
    flags: dict[str, str] = field(default_factory=dict)

    def start_server(self, *, kill_at: str | None = None) -> None:
        """Start the server (again), and wait until it answers; one with ``kill_at`` may die before it does."""
        flags = {"server.port": str(self.port), **self.flags}
        env = self.env | ({"SHUNTER_TEST_KILL_SERVER_AT": kill_at} if kill_at else {})
        self.server = _spawn(
            [sys.executable, "-c", _SERVE.format(flags=flags)], env, self.home / "server.log"
        )
        deadline = time.monotonic() + SOON
        while True:
            try:
                self.client.ready()
                return
            except ServerUnreachable:
                if kill_at and self.server.poll() == -signal.SIGKILL:
                    return
                assert self.server.poll() is None, (self.home / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def start_agent(
        self,
        name: str,
        *flags: str,
        kill_at: str | None = None,
        limit: int = 8,
        pool: str = "default",
        env: Mapping[str, str] | None = None,
        engine: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start an agent; one with ``kill_at`` dies by SIGKILL at that point.

        Args:
            engine: where its work is, for all agents that are given the same folder.
        """
        all_of_it = self.env | ({"SHUNTER_TEST_KILL_AT": kill_at} if kill_at else {}) | dict(env or {})
        program = ["-m", "shunter_agents"] if engine is None else [str(_SHARED), str(engine)]
        words = [sys.executable, *program, "--pool", pool, "--name", name]
        return _spawn([*words, "--limit", str(limit), *flags], all_of_it, self.home / f"{name}.log")

    @contextlib.contextmanager
    def agent(self, name: str, *flags: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
        """An agent that is drained at the end; arguments as of :meth:`start_agent`."""
        log = self.home / f"{name}.log"
        lives = self.log(name).count("agent starts") if log.exists() else 0
        process = self.start_agent(name, *flags, **more)
        try:
            while process.poll() is None and self.log(name).count("agent starts") == lives:
                time.sleep(0.02)  # it hears no signals before
            yield process
            if process.poll() is None:
                process.terminate()
                assert process.wait(SOON) == 0, self.log(name)
        finally:
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        """What an agent said."""
        return (self.home / f"{name}.log").read_text()

    def attempts(self, name: str) -> list[str]:
        """Folders of attempts that an agent has."""
        folder = self.home / "agents" / name / "attempts"
        return [path.name for path in folder.iterdir()] if folder.exists() else []

    def ended(self, run: object, seconds: float = SOON) -> Run:
        """The run, once it has ended."""
        deadline = time.monotonic() + seconds
        found = self.client.get_run(str(run))
        while found.ended_at is None:
            assert time.monotonic() < deadline, found
            found = self.client.get_run(str(run), wait=2.0, seen=(found.state, found.attempt_count))
        return found

    def output(self, run: object, seconds: float = SOON) -> bytes:
        """All output of its last attempt."""
        deadline = time.monotonic() + seconds
        while True:
            part = self.client.read_log(str(run), wait=1.0)
            if part.complete:
                return part.data
            assert time.monotonic() < deadline, part
            time.sleep(0.02)

    def processes(self) -> list[psutil.Process]:
        """Everything of this home that runs beside the server."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != self.server.pid and self._owns(process.environ()):
                    found.append(process)
        return found

    def _owns(self, environ: Mapping[str, str]) -> bool:
        # Agents, forkers and keepers have the home in their environment, runs a path in it.
        result = environ.get("SHUNTER_RESULT", "")
        return environ.get("SHUNTER_HOME") == str(self.home) or result.startswith(f"{self.home}/")

    def left_over(self, seconds: float = SOON) -> list[str]:
        """What still runs of this home after a while."""
        deadline = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [" ".join(process.cmdline()) for process in found]


@contextlib.contextmanager
def site(
    home: Path,
    flags: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    authority: Authority | None = None,
) -> Iterator[Site]:
    """A server with a pool named default; nothing of it runs afterwards.

    Args:
        flags: settings of the server.
        host: the address of this machine where it listens.
        authority: of its certificate, which nobody knows by themselves; None: it has none.
    """
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    own = {"server.host": host}
    if authority is not None:
        pair = authority.pair(host)
        own |= {"server.tls_cert": str(pair.cert), "server.tls_key": str(pair.key)}
    url = f"http{'' if authority is None else 's'}://{host}:{port}/api"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SHUNTER_", "PYTHON"))}
    env |= {
        "SHUNTER_HOME": str(home),
        "SHUNTER_API_URL": url,
        "SHUNTER_TOKEN": "a-token-of-the-tests",
    }
    home.mkdir(parents=True, exist_ok=True)
    if authority is not None:
        env["SHUNTER_TLS_CA"] = str(authority.file)
    with _believing(authority), Client(url, "a-token-of-the-tests") as client:
        one = Site(home, env, port, client, None, {**own, **(flags or {})})  # type: ignore[arg-type]
        try:
            one.start_server()
            client.create_pool(PoolSpec(name="default"))
            yield one
        finally:
            while left := one.processes():  # one that is just forking may get away once
                for process in left:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                psutil.wait_procs(left, 5)
            if one.server is not None:
                one.server.send_signal(signal.SIGTERM)
                one.server.wait(SOON)


@contextlib.contextmanager
def _believing(authority: Authority | None) -> Iterator[None]:
    """Clients of this process believe it, too."""
    with pytest.MonkeyPatch.context() as patch:
        if authority is not None:
            patch.setenv("SHUNTER_TLS_CA", str(authority.file))
        yield


def _spawn(words: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
