"""The server's image: healthy as strictly as a container can be held, and ended in order."""

from __future__ import annotations

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


def test_a_server_that_does_not_answer_is_unhealthy(engine: Engine) -> None:
    """What is asked is the port; here somebody else says no."""
    port = free_port()
    container = engine.run(
        *(*STRICT, "--health-retries=1", "--entrypoint=python3", name("server")),
        *(
            "-c",
            f"import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.BaseHTTPRequestHandler).serve_forever()",
        ),
        SHUNTER_SERVER_PORT=str(port),
    )
    words = ("exec", container, "python3", "-ISs", "/opt/shunter/healthy.py", "SHUNTER_SERVER_PORT", "4400")
    assert engine.attempt(*words).returncode == 1
    engine("rm", "--force", container)


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
