"""A server that is started by its command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shunter_work_pools.client import Client
from tests.cli.console import Console, free_port, stop, until


@contextmanager
def serving(
    shunter: Console, home: Path, *words: str, first: tuple[str, ...] = (), token: str | None = None
) -> Iterator[Client]:
    """A server on a port of its own, and a client that has its token (default: that of the token file)."""
    port = free_port()
    with (home / "server.log").open("wb") as log:
        server = shunter.spawn(*first, "server", "start", "--port", str(port), *words, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/api"
        asking = shunter.having(SHUNTER_API_URL=url)
        until(lambda: server.poll() is not None or asking("server", "status").code == 0)
        assert server.poll() is None, (home / "server.log").read_text()
        with Client(url, token or (home / "token").read_text().strip()) as client:
            yield client
    finally:
        stop(server)
