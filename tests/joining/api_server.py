"""A stand-in for a cluster's API server, over real HTTPS, that knows Secrets and has the faults one asks for."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

from tests.patience import SOON

NAMESPACE, TOKEN = "there", "of-the-service-account"


@dataclass
class ApiServer:
    """One.

    Attributes:
        environ, own: by which a pod knows it.
        secrets: name -> Secret.
        forbidden: verbs that the service account has not.
        faults: how the next requests are answered instead: a status, or ``lost``: it is done, and no answer comes.
        asked: verbs, in turn.
        together: so many looks are answered when all of them have come.
    """

    environ: dict[str, str]
    own: Path
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    faults: list[int | str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    together: threading.Barrier | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, bearer: str, body: Any) -> tuple[int, Any]:
        """What it says to a request."""
        assert bearer == f"Bearer {TOKEN}"
        place = f"/api/v1/namespaces/{NAMESPACE}/secrets"
        verb = {"GET": "get", "POST": "create"}[method]
        self.asked.append(verb)
        if verb in self.forbidden:
            return 403, _status(403, f'secrets is forbidden: User "agents" cannot {verb} resource "secrets"')
        if not path.startswith(place):
            return 404, _status(404, "namespaces not found")
        if verb == "get":
            found = self.secrets.get(path.removeprefix(f"{place}/"))
            if self.together is not None:
                self.together.wait(SOON)
            return (200, found) if found else (404, _status(404, "secrets not found"))
        name = body["metadata"]["name"]
        with self.lock:
            if name in self.secrets:
                return 409, _status(409, f'secrets "{name}" already exists')
            self.secrets[name] = body
        self.together = None
        return 201, body


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message}


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """One on a free port, until the block ends."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "namespace").write_text(NAMESPACE)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            fault = one.faults.pop(0) if one.faults else None
            if isinstance(fault, int):
                status, found = fault, _status(fault, "not now")
            else:
                status, found = one.answer(
                    self.command, self.path, self.headers.get("Authorization", ""), body
                )
            if fault == "lost":
                self.close_connection = True
                return
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.server_port)}
    one = ApiServer(environ, folder)
    serving = threading.Thread(target=server.serve_forever, args=[0.05])
    serving.start()
    try:
        yield one
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
