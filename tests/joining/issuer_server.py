"""An issuer's web server, in this process over real HTTPS: its discovery document, its keys, its API server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
import uvicorn


@dataclass
class IssuerServer:
    """What it answers, and what it was asked.

    Attributes:
        answers: path -> JSON; a number is a status, bytes are what they are.
        asked: method, path, bearer and body of each request.
        delay: seconds before each answer.
    """

    port: int
    ca_file: str
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, str, str, Any]] = field(default_factory=list)
    delay: float = 0.0

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def paths(self) -> list[str]:
        return [path for _, path, _, _ in self.asked]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        bearer = dict(scope["headers"]).get(b"authorization", b"").decode()
        self.asked.append((scope["method"], scope["path"], bearer, json.loads(body) if body else None))
        await asyncio.sleep(self.delay)
        found = self.answers.get(scope["path"], 404)
        status, data = (found, b"") if isinstance(found, int) else (200, found)
        headers = []
        if isinstance(data, str):  # another address
            status, headers, data = 302, [(b"location", data.encode())], b""
        if not isinstance(data, bytes):
            data = json.dumps(data).encode()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})


@asynccontextmanager
async def issuer_server(folder: Path) -> AsyncIterator[IssuerServer]:
    """One on a free port, until the block ends."""
    authority = trustme.CA()
    ca, chain = folder / "ca.crt", folder / "server.pem"
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(chain)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    one = IssuerServer(listening.getsockname()[1], str(ca))
    config = uvicorn.Config(one, lifespan="off", log_level="error", ssl_certfile=chain, ssl_keyfile=chain)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listening])
    try:
        yield one
    finally:
        for each in server.servers:
            each.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        listening.close()
