"""The server's image: healthy as strictly as a container can be held, and ended in order."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.cli.console import free_port
from tests.engines.images import name
from tests.images.conftest import Served
from tests.images.containers import STRICT, Engine

pytestmark = pytest.mark.timeout(240)


def test_the_server_is_healthy_and_serves(served: Served) -> None:
    assert served.shunter.ok("server", "status").code == 0
    assert served.engine.inside(served.container, "id", "-u") == "65532"


def test_without_tls_it_listens_for_nobody(engine: Engine) -> None:
    """A container's port is there for others, so the image's address is 0.0.0.0; the server wants TLS then, or a word."""
    done = engine.attempt("run", "--rm", *STRICT, "--tmpfs=/var/lib/shunter:uid=65532", name("server"))
    assert done.returncode == 2
    assert "--allow-plaintext" in done.stderr


@pytest.mark.parametrize("status", [200, 503])
def test_health_is_what_the_port_answers(engine: Engine, status: int) -> None:
    """Here somebody else answers at that port."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asks = ("-ISs", "/opt/shunter/healthy.py", "SHUNTER_SERVER_PORT", str(server.server_port))
        done = engine.attempt("run", "--rm", *STRICT, "--entrypoint=python3", name("server"), *asks)
        server.shutdown()
    assert done.returncode == (status != 200), done.stderr
    assert (
        engine.attempt("run", "--rm", *STRICT, "--entrypoint=python3", name("server"), *asks).returncode == 1
    )


def test_a_stopped_server_ends_in_order_and_its_volume_goes_on(engine: Engine) -> None:
    volume, port = engine.volume(), free_port()
    words = (*STRICT, f"--volume={volume}:/var/lib/shunter", name("server"))
    tokens = []
    for _ in range(2):
        container = engine.run(*words, SHUNTER_SERVER_HOST="127.0.0.1", SHUNTER_SERVER_PORT=str(port))
        engine.until_healthy(container)
        tokens.append(engine.inside(container, "cat", "/var/lib/shunter/token"))
        engine("stop", "--time=30", container)
        assert engine.wait(container) == 0
    assert tokens[0] == tokens[1]
