"""A real nginx, in a folder of its own, as a process of the tests."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.patience import SOON

_AROUND = """
user root;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    log_format answered '$status $request_method $uri $upstream_status';
    access_log {folder}/access.log answered;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 32m;
{inside}
}}
"""


def program() -> str | None:
    """The program, if it is there."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@dataclass
class Nginx:
    """One that runs."""

    folder: Path
    process: subprocess.Popen[bytes]

    def answered(self) -> list[str]:
        """A line for each answer: status, method, path, what the server behind it said."""
        return (self.folder / "access.log").read_text().splitlines()

    def errors(self) -> str:
        """What it complained of."""
        return (self.folder / "error.log").read_text()


@contextlib.contextmanager
def nginx(
    folder: Path, inside: str, ports: Sequence[tuple[str, int]], prefix: Sequence[str] = ()
) -> Iterator[Nginx]:
    """One that listens, ended with the block.

    Args:
        inside: what is in its ``http`` block.
        ports: addresses at which it listens, to be reached from here; none: it is not waited for.
        prefix: words before its command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    conf = folder / "nginx.conf"
    conf.write_text(_AROUND.format(folder=folder, inside=inside))
    found = program()
    assert found is not None
    words = [*prefix, found, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(conf)]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    one = Nginx(folder, process)
    try:
        for address in ports:
            _until_it_listens(address, one)
        yield one
    finally:
        process.terminate()
        process.wait(SOON)


def _until_it_listens(address: tuple[str, int], one: Nginx) -> None:
    deadline = time.monotonic() + SOON
    while True:
        try:
            socket.create_connection(address, 1).close()
            return
        except OSError:
            assert one.process.poll() is None, one.errors()
            assert time.monotonic() < deadline
            time.sleep(0.02)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
