"""A server for tests: in this process over real HTTP, or as a process of its own."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import uvicorn

from shunter_work_pools.api.app import build_app
from shunter_work_pools.api.boundary import LOCAL_HOSTS, Boundary
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import HOLD_LIMIT
from shunter_work_pools.engine import Engine
from shunter_work_pools.secret_keys import SecretKeys
from shunter_work_pools.settings import Settings
from shunter_work_pools.storage.logs import FileLogStore
from shunter_work_pools.storage.results import FileResultStore
from shunter_work_pools.storage.store import Store
from tests import patience

TOKEN = "t" * 43
#: Loading the certificate authorities for each client would take longer than most tests.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
IDENTITY = UUID(int=7)
#: So long a test waits for what should happen at once, seconds.
SOON = 5.0


@dataclass
class Served:
    """A server in this process, and a client that has its token.

    Attributes:
        engine: its inside; None if it runs elsewhere.
    """

    http: httpx.AsyncClient
    port: int
    engine: Engine
    server: uvicorn.Server
    seqs: dict[Any, int] = field(default_factory=dict)

    # ---- asking

    async def ask(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        """The JSON of an answer that has this status."""
        response = await self.http.request(method, path, **more)
        assert response.status_code == status, f"{response.status_code}: {response.text}"
        return response.json()

    async def get(self, path: str, status: int = 200, **params: Any) -> Any:
        return await self.ask("GET", path, status, params=params)

    async def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        return await self.ask("POST", path, status, **({} if body is None else {"json": body}))

    async def pool(self, name: str = "main", **spec: Any) -> None:
        await self.post("/pools", {"name": name, **spec}, 201)

    async def deploy(self, name: str = "job", **spec: Any) -> Any:
        spec.setdefault("work", {"command": ["/bin/true"]})
        return await self.ask("PUT", f"/deployments/{name}", json=spec)

    async def submit(self, deployment: str = "job", **request: Any) -> str:
        made = await self.post("/runs", {"deployment": deployment, **request}, 201)
        return str(made["id"])

    async def run(self, run_id: str) -> Any:
        return await self.get(f"/runs/{run_id}")

    # ---- an agent

    def sync_body(self, **more: Any) -> dict[str, Any]:
        body: dict[str, Any] = {
            "protocol": PROTOCOL,
            "session": str(UUID(int=100)),
            "identity": str(IDENTITY),
            "pools": ["main"],
            "limit": 10,
            "free": 10,
            "hold_for": 0,
        }
        return body | more

    async def sync(self, name: str = "a1", status: int = 200, **more: Any) -> Any:
        return await self.post(f"/agents/{name}/sync", self.sync_body(**more), status)

    async def take(self, name: str = "a1", **more: Any) -> list[Any]:
        """What a sync that may be held is granted."""
        answer = await asyncio.wait_for(self.sync(name, hold_for=HOLD_LIMIT, **more), patience.SOON)
        return list(answer["assignments"])

    async def report(self, granted: Any, *states: str, name: str = "a1", **more: Any) -> Any:
        """Report states; ``more`` belongs to the last."""
        key = (granted["run"], granted["attempt"], granted["epoch"])
        reports = []
        for at, state in enumerate(states):
            self.seqs[key] = self.seqs.get(key, 0) + 1
            reports.append(
                {"run": key[0], "attempt": key[1], "epoch": key[2], "seq": self.seqs[key], "age": 0}
                | {"state": state}
                | (more if at == len(states) - 1 else {})
            )
        return await self.post(f"/agents/{name}/reports", {"session": str(UUID(int=100)), "reports": reports})

    async def upload(self, granted: Any, offset: int, data: bytes, name: str = "a1", **header: Any) -> Any:
        """Send output of an attempt."""
        import json

        frame = {
            "run": granted["run"],
            "attempt": granted["attempt"],
            "epoch": granted["epoch"],
            "offset": offset,
            "length": len(data),
        } | header
        return await self.ask(
            "POST",
            f"/agents/{name}/logs",
            content=json.dumps(frame).encode() + b"\n" + data,
            headers={"content-type": "application/vnd.shunter.log-frames"},
        )

    async def waits(self, count: int = 1) -> None:
        """Until so many agents' syncs are held and ready to be given work."""
        agents = self.engine.hub.agents
        await until(lambda: sum(entry.offered is not None for entry in agents.values()) == count)

    async def without(self, loop: str) -> None:
        """End one of the server's loops, and what it had under way in the store."""
        (task,) = (task for task in self.engine._tasks if task.get_name() == loop)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.engine.store.write(lambda tx: None)  # SQLite does one thing after the other

    async def watched(self, count: int = 1) -> None:
        """Until so many looks at runs are held."""
        watchers = self.engine.hub._runs
        await until(lambda: sum(len(events) for events in watchers.values()) == count)
        await asyncio.sleep(0.02)  # and have looked once


async def until(holds: Callable[[], Any], seconds: float = patience.SOON) -> None:
    """Look again and again, for what sends no word when it happens."""
    async with asyncio.timeout(seconds):
        while True:
            found = holds()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.002)


def held(granted: Any, stopping: bool = False) -> dict[str, Any]:
    """An assignment as the agent says that it holds it."""
    return {
        "run": granted["run"],
        "attempt": granted["attempt"],
        "epoch": granted["epoch"],
        "stopping": stopping,
        "note": "",
    }


@asynccontextmanager
async def served(
    store: Store, logs: Path, settings: Settings | None = None, secret_keys: SecretKeys | None = None
) -> AsyncIterator[Served]:
    """A server on a free port of the loopback, until the block ends."""
    results = FileResultStore(logs.with_name("results"))
    engine = Engine(store, FileLogStore(logs), results, settings, secret_keys)
    engine.identities.admit_local(TOKEN)
    await engine.start()
    # With its protocol named, as only then asyncio turns off Nagle's algorithm, 40 ms for each answer.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(100)
    port = listening.getsockname()[1]
    config = uvicorn.Config(
        Boundary(build_app(engine), engine.identities, LOCAL_HOSTS),
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listening])  # without its main loop, which looks up ten times a second
    client = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}/api/v1",
        headers={"authorization": f"Bearer {TOKEN}"},
        timeout=30,
        trust_env=False,
        verify=NO_TLS,
    )
    try:
        yield Served(client, port, engine, server)
        assert not engine.failure.done(), "a loop of the server died"
    finally:
        engine.release_waiters()
        await client.aclose()
        # As uvicorn's own shutdown, which sleeps a while in any case.
        for one in server.servers:
            one.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        await until(lambda: not server.server_state.connections)
        listening.close()
        await engine.stop()


# ---- a process

_PROGRAM = """
import sys
from shunter_work_pools.server import serve
serve({"server.port": sys.argv[1], "server.database_url": sys.argv[2] or None})
"""


class ServerProcess:
    """A server as a process of its own; ``env``: variables beside its home."""

    def __init__(
        self, home: Path, database_url: str = "", port: int = 0, env: dict[str, str] | None = None
    ) -> None:
        self.home = home
        variables = {key: value for key, value in os.environ.items() if not key.startswith("SHUNTER_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(port), database_url],
            env=variables | {"SHUNTER_HOME": str(home), "NO_COLOR": "1"} | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.output = ""
        self.port = 0
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line.decode()
            if match := re.search(rb"http://127\.0\.0\.1:(\d+)/api", line):
                self.port = int(match[1])
                break
        assert self.port, f"the server did not start: {self.output}"

    def client(self) -> httpx.AsyncClient:
        """A client with the token that the server made."""
        token = (self.home / "token").read_text().strip()
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}/api/v1",
            headers={"authorization": f"Bearer {token}"},
            timeout=30,
            trust_env=False,
            verify=NO_TLS,
        )

    async def stop(self, how: int = signal.SIGTERM, within: float = patience.SOON) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(how)
        return await self.end(within)

    async def end(self, within: float = patience.SOON) -> int:
        """Its exit code, once it has ended."""
        rest, _ = await asyncio.to_thread(self.process.communicate, None, within)
        self.output += rest.decode()
        return self.process.returncode


@contextmanager
def server_process(home: Path, database_url: str = "", port: int = 0) -> Iterator[ServerProcess]:
    """A server process that is gone when the block ends."""
    started = ServerProcess(home, database_url, port)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.communicate()


__all__ = [
    "IDENTITY",
    "SOON",
    "TOKEN",
    "Served",
    "ServerProcess",
    "held",
    "served",
    "server_process",
    "until",
]
