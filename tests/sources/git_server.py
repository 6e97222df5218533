"""A git server over http on loopback: git's own http-backend, with a password where a test wants one."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

AUTHOR = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.invalid",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.invalid",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


def git(folder: Path, *argv: str, stdin: str = "") -> str:
    """Run git in a folder; its output."""
    env = os.environ | AUTHOR
    done = subprocess.run(
        ["git", "-C", str(folder), *argv], env=env, input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Repository:
    """A repository to commit to, which is served as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet", "--initial-branch=main", ".")
        git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")

    def commit(self, files: dict[str, str], *flags: str) -> str:
        """Write files and commit them; the commit."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git(self.folder, "add", "--all")
        git(self.folder, "commit", "--quiet", "--allow-empty", "-m", "x", *flags)
        return git(self.folder, "rev-parse", "HEAD")


@dataclass
class GitServer:
    """
    Attributes:
        password: user and password that it wants; None: it wants none.
        requests: lines of the requests that it had.
        tokens: what it was given to authorize them.
        answer: status that it gives to everything; None: it serves.
        redirect: where it sends everybody instead.
        hold: until this is set, who knows already which commits there are is given none.
        held: somebody waits for that.
    """

    url: str
    root: Path
    password: tuple[str, str] | None = None
    requests: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    answer: int | None = None
    redirect: str | None = None
    hold: threading.Event | None = None
    held: threading.Event = field(default_factory=threading.Event)

    def fetches(self) -> int:
        """How often something was fetched."""
        return sum("git-upload-pack" in line and line.startswith("POST") for line in self.requests)


@contextlib.contextmanager
def git_server(root: Path) -> Iterator[GitServer]:
    """Serve the repositories below a folder."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(body)

        def _answer(self, body: bytes) -> None:
            served.requests.append(self.requestline)
            if served.hold is not None and b"command=fetch" in body:
                served.held.set()
                served.hold.wait(20)
            if served.redirect is not None:
                self.send_response(302)
                self.send_header("Location", served.redirect + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            given = self.headers.get("Authorization", "")
            if given:
                served.tokens.append(base64.b64decode(given.split()[1]).decode())
            if served.answer is not None:
                self.send_error(served.answer)
                return
            if served.password is not None and (not given or served.tokens[-1] != ":".join(served.password)):
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            done = subprocess.run(
                ["git", "http-backend"],
                input=body,
                capture_output=True,
                check=False,
                env=os.environ
                | AUTHOR
                | {
                    "GIT_PROJECT_ROOT": str(root),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "PATH_INFO": path,
                    "QUERY_STRING": query,
                    "REQUEST_METHOD": self.command,
                    "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                    "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                },
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            lines = [line.split(": ", 1) for line in head.decode().splitlines()]
            status = next((int(value.split()[0]) for name, value in lines if name == "Status"), 200)
            self.send_response(status)
            for name, value in lines:
                if name != "Status":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = GitServer(f"http://127.0.0.1:{server.server_port}", root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
