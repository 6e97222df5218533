"""Behind a real nginx: it speaks TLS, takes a prefix off or leaves it, buffers, hangs up, and answers itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shunter_work_pools.client import Client
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import ServerUnreachable
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.engines.nginx import Nginx, free_port, nginx
from tests.networks.certificates import Authority
from tests.networks.machines import TOKEN, agent, environment, server

pytestmark = [pytest.mark.usefixtures("has_nginx"), pytest.mark.timeout(180)]

#: Connections that are idle for a second are cut, also those to the server; an answer must begin within 12 seconds.
SITE = """
    upstream shunter {{ server 127.0.0.1:{server}; keepalive 4; keepalive_timeout 1s; }}
    server {{
        listen 127.0.0.1:{tls} ssl;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        keepalive_timeout 1s;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_read_timeout 12s;
        proxy_buffering on;
        location /taken/off/ {{ proxy_pass http://shunter/; }}
        location /left/on/ {{ proxy_pass http://shunter; }}
        location /alone/ {{ return 504; }}
        location /moved/ {{ return 301 https://elsewhere.test$request_uri; }}
    }}
    server {{
        listen 127.0.0.1:{mutual} ssl;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_client_certificate {ca};
        ssl_verify_client on;
        location / {{ proxy_pass http://shunter; proxy_set_header Host $host; }}
    }}
"""


@dataclass
class Place:
    """A server, a way to it of its own, and an nginx in front of it."""

    home: Path
    port: int
    nginx: Nginx
    front: str
    mutual: str
    env: dict[str, str]

    @property
    def direct(self) -> str:
        """The server's own address."""
        return f"http://127.0.0.1:{self.port}/api"


FLAGS = {
    "server.path_prefix": "/left/on",
    "server.trusted_proxies": "127.0.0.1",
    "server.allowed_hosts": "shunter.test",
}


@pytest.fixture(scope="module")
def place(has_nginx: None, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("nginx")
    port, tls, mutual = free_port(), free_port(), free_port()
    pair = authority.pair()
    inside = SITE.format(server=port, tls=tls, mutual=mutual, cert=pair.cert, key=pair.key, ca=authority.file)
    env = {"SHUNTER_TLS_CA": str(authority.file)}
    with nginx(folder / "nginx", inside, [("127.0.0.1", tls)]) as front:
        yield Place(
            folder / "home", port, front, f"https://127.0.0.1:{tls}", f"https://127.0.0.1:{mutual}", env
        )


@pytest.fixture(autouse=True)
def _trusting(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)


def ended(client: Client, run: object, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while True:
        found = client.get_run(str(run))
        if found.ended_at is not None:
            return str(found.state)
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def output(client: Client, run: object) -> bytes:
    data = b""
    while not (part := client.read_log(str(run), start=len(data), wait=1.0)).complete or part.data:
        data += part.data
    return data


@pytest.mark.parametrize("prefix", ["/taken/off", "/left/on"])
def test_a_prefix(place: Place, prefix: str) -> None:
    """Through the client and the command line; the address that is told has the prefix."""
    with server(place.home, FLAGS | {"server.port": str(place.port)}):
        url = f"{place.front}{prefix}/api"
        with Client(url, TOKEN) as client:
            assert client.ready()
            assert client.server().store == "sqlite"
        done = subprocess.run(
            [sys.executable, "-m", "shunter_cli.main", "server", "status", "-o", "json"],
            env=environment(place.home.parent / "someone", place.env | {"SHUNTER_API_URL": url}),
            capture_output=True,
            check=True,
            timeout=30,
        )
        assert json.loads(done.stdout)["api_url"] == url


def test_an_agent_goes_on_when_the_server_behind_it_is_away(place: Place) -> None:
    """nginx says 502 meanwhile. Nothing is lost or done twice, and nobody hammers at it."""
    env = place.env | {"SHUNTER_API_URL": f"{place.front}/left/on/api"}
    effects = place.home.parent / "effects"
    words = f'echo $SHUNTER_RUN_ID >> {effects}; for i in $(seq 1 90); do echo "line $i"; sleep 0.1; done'
    with (
        server(place.home, FLAGS | {"server.port": str(place.port)}) as (machine, _),
        Client(place.direct, TOKEN) as client,
    ):
        client.create_pool(PoolSpec(name="behind"))
        client.deploy("counts", DeploymentSpec(work=Work(command=["sh", "-c", words]), pool="behind"))
        with agent(place.home.parent / "agent", "behind", "a1", env=env) as one:
            run = client.create_run(RunRequest(deployment="counts")).id
            while client.get_run(str(run)).state != "Running":
                time.sleep(0.05)
            machine.stop()
            before, away = len(place.nginx.answered()), 6.0
            time.sleep(away)
            asked = place.nginx.answered()[before:]
            assert {line.split()[0] for line in asked} == {"502"}
            # Every tenth of a second at first, then a second and a half at most; three kinds of requests.
            assert 3 <= len(asked) <= 60, asked
            with server(place.home, FLAGS | {"server.port": str(place.port)}):
                assert ended(client, run) == "Completed"
                assert output(client, run) == b"".join(b"line %d\n" % number for number in range(1, 91))
                assert one.stop() == 0
                said = one.said()
    assert "a proxy there says 502 Bad Gateway" in said
    assert "the server is back" in said
    assert effects.read_text().split() == [str(run)]


def test_idle_connections_that_are_cut_and_answers_that_are_held(place: Place) -> None:
    """An agent with nothing to do for longer than nginx lets connections be idle: it is there at once when there is."""
    env = place.env | {"SHUNTER_API_URL": f"{place.front}/taken/off/api"}
    with (
        server(place.home, FLAGS | {"server.port": str(place.port)}) as (machine, _),
        Client(place.direct, TOKEN) as client,
    ):
        client.create_pool(PoolSpec(name="idle"))
        client.deploy(
            "echo", DeploymentSpec(work=Work(command=["sh", "-c", "yes | head -c 3000000"]), pool="idle")
        )
        with agent(place.home.parent / "idle", "idle", "a2", env=env) as one:
            one.waits_for("agent starts")
            time.sleep(12)  # a sync is held for ten seconds, and answered with nothing
            begun = time.monotonic()
            run = client.create_run(RunRequest(deployment="echo")).id
            assert ended(client, run) == "Completed"
            assert time.monotonic() - begun < 5
            assert output(client, run) == b"y\n" * 1_500_000  # more than nginx buffers
            assert "the server is away" not in one.said()
        assert "Traceback" not in machine.said()


def test_the_address_of_the_client_is_known_behind_it(place: Place) -> None:
    """The server's log has no access lines; what it knows is asked of the application, see test_requests.py."""
    with (
        server(place.home, FLAGS | {"server.port": str(place.port)}),
        Client(f"{place.front}/left/on/api", TOKEN) as client,
    ):
        client.server()
    assert any(re.match(r"200 GET /left/on/api/v1/server 200", line) for line in place.nginx.answered())


def test_what_it_answers_itself_is_told_apart(
    place: Place, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerUnreachable, match="a proxy there says 504 Gateway Time-out"):
        Client(f"{place.front}/alone/api", TOKEN).server()
    with pytest.raises(Exception, match=r"this is elsewhere, at https://elsewhere\.test/moved/api/v1/server"):
        Client(f"{place.front}/moved/api", TOKEN).server()
    with pytest.raises(
        ServerUnreachable, match="does not let this client in without a right certificate"
    ) as refused:
        Client(f"{place.mutual}/api", TOKEN).server()
    assert "SHUNTER_TLS_CERT" in refused.value.remedy
    for name, value in authority.pair("me").settings().items():
        monkeypatch.setenv(name, value)
    with (
        server(place.home, FLAGS | {"server.port": str(place.port)}),
        Client(f"{place.mutual}/api", TOKEN) as client,
    ):
        assert client.ready()
