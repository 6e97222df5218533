"""A server and agents on machines of their own: by TLS, by a forward and a reverse proxy; the cable is pulled for a minute.

One agent is in the server's network and speaks to it directly. The other is in another network, from which only a
forward proxy is reached, and by it an nginx below a prefix. Both lose their network for a minute while runs run, end
and are made; one comes back with another address, the other one changes it a little later.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from shunter_work_pools.client import Client
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import ServerUnreachable
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.chaos.outages import ENDS, SCRIPT
from tests.engines.nginx import Nginx, nginx
from tests.engines.tinyproxy import Tinyproxy, tinyproxy
from tests.networks.certificates import Authority
from tests.networks.machines import TOKEN, agent, server
from tests.networks.own_networks import Networks, can_make, networks
from tests.patience import SOON

#: Seconds without a network.
AWAY = 60.0
SERVER, FRONT, GATE, NEAR = "10.77.1.1", "10.77.1.2", "10.77.1.3", "10.77.1.11"
GATE_OUTSIDE, FAR = "10.77.2.3", "10.77.2.12"
HOSTS = f"{SERVER} server.test\n{FRONT} front.test\n"
PASSWORD = "geheim"
FAR_URL = "https://front.test/below/api"
ROOT = Path(__file__).resolve().parents[2]

SITE = """
    server {{
        listen {front}:443 ssl;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        keepalive_timeout 2s;
        location /below/ {{
            proxy_pass https://server.test:4400/;
            proxy_ssl_verify on;
            proxy_ssl_name server.test;
            proxy_ssl_trusted_certificate {ca};
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
"""

pytestmark = pytest.mark.timeout(300)


class Story:
    """The runs of both pools, and how each is to end."""

    def __init__(self, client: Client, at_server: Callable[..., Any], folder: Path) -> None:
        self._client = client
        self._at_server = at_server
        self.effects = folder / "effects"
        self.effects.touch()
        self.gates = {name: folder / f"gate-{name}" for name in ("early", "late")}
        self.runs: dict[str, str] = {}

    def ask(self, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Of the server, as somebody on its own machine."""
        return self._at_server(call, *args, **more)

    def make(self, pool: str, gate: str) -> list[str]:
        """A run for each way to end, once the gate is open."""
        made = []
        for number, how in enumerate(ENDS):
            name = f"{pool}-{gate}-{number}"
            command = ["sh", "-c", SCRIPT, "sh", str(self.effects), str(self.gates[gate]), how]
            self.ask(self._client.deploy, name, DeploymentSpec(work=Work(command=command), pool=pool))
            made.append(str(self.ask(self._client.create_run, RunRequest(deployment=name)).id))
            self.runs[made[-1]] = how
        return made

    def until(self, runs: list[str], holds: Callable[[Any], bool], seconds: float = SOON) -> None:
        """Until something is so of all of them."""
        deadline = time.monotonic() + seconds
        for run in runs:
            while not holds(found := self.ask(self._client.get_run, run)):
                assert time.monotonic() < deadline, found
                time.sleep(0.1)

    def check(self) -> None:
        """Each ended as it should, once, with every line."""
        for run, how in self.runs.items():
            found = self.ask(self._client.get_run, run)
            last = found.attempts[-1]
            assert (found.state, found.cause, last.exit_code, last.signal) == ENDS[how]
            assert found.attempt_count == 1
            events = self.ask(self._client.list_events, run).events
            steps = [event.kind for event in events if event.kind not in ("late", "lost", "found")]
            assert steps == ["Scheduled", "Claimed", "Starting", "Running", found.state]
            part = self.ask(self._client.read_log, run, wait=8.0)
            while not part.complete:
                part = self.ask(self._client.read_log, run, wait=8.0)
            count = int(re.findall(rb"end (\d+)", part.data)[-1])
            lines = [f"line {number}\n" for number in range(1, count + 1)]
            assert part.data.decode() == "".join([*lines, f"end {count}\n"])
        did = Counter(line.split()[0] for line in self.effects.read_text().splitlines())
        assert did == Counter(list(self.runs))


@dataclass
class Place:
    """Where it all happens.

    Attributes:
        env: of an agent on each host.
        at_server: calls something in a thread on the server's machine.
        client: speaks to the server from there.
    """

    land: Networks
    folder: Path
    env: dict[str, dict[str, str]]
    reverse: Nginx
    forward: Tinyproxy
    at_server: Callable[..., Any]
    client: Client


@pytest.fixture(scope="module")
def place(
    has_nginx: None, has_tinyproxy: None, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Five hosts in two networks, and what serves on three of them."""
    if not can_make():
        pytest.skip("no networks of the tests' own: root with CAP_SYS_ADMIN, and iproute2, are needed")
    folder = tmp_path_factory.mktemp("remote")
    own, front = authority.pair("server.test", SERVER), authority.pair("front.test")
    trust = {"SHUNTER_TLS_CA": str(authority.file)}
    env = {
        "near": trust | {"SHUNTER_API_URL": "https://server.test:4400/api"},
        "far": trust
        | {"SHUNTER_API_URL": FAR_URL, "HTTPS_PROXY": f"http://me:{PASSWORD}@{GATE_OUTSIDE}:8888"},
    }
    flags = {
        "server.host": SERVER,
        "server.port": "4400",
        "server.tls_cert": str(own.cert),
        "server.tls_key": str(own.key),
        "server.allowed_hosts": "server.test,front.test",
        "server.trusted_proxies": FRONT,
    }
    site = SITE.format(front=FRONT, cert=front.cert, key=front.key, ca=authority.file)
    gate = f"BasicAuth me {PASSWORD}\nConnectPort 443\nConnectPort 444\n"
    with networks(folder, HOSTS) as land, pytest.MonkeyPatch.context() as patched:
        for network in ("inside", "outside"):
            land.bridge(network)
        land.host("server", inside=SERVER)
        land.host("front", inside=FRONT)
        land.host("gate", inside=GATE, outside=GATE_OUTSIDE)
        land.host("near", inside=NEAR)
        land.host("far", outside=FAR)
        patched.setenv("SHUNTER_TLS_CA", str(authority.file))
        with (
            server(folder / "server", flags, prefix=land.on("server")),
            nginx(folder / "nginx", site, [], land.on("front")) as reverse,
            tinyproxy(folder / "tinyproxy", GATE_OUTSIDE, 8888, gate, land.on("gate")) as forward,
            land.seen_from("server") as at_server,
            Client(f"https://{SERVER}:4400/api", TOKEN) as client,
        ):
            yield Place(land, folder, env, reverse, forward, at_server, client)


def test_what_goes_wrong_on_the_way_is_told_apart(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy, what it says, the proxy behind it, and no way at all; never with the password."""
    right = f"http://me:{PASSWORD}@{GATE_OUTSIDE}:8888"

    def asked(url: str, **environ: str) -> str:
        with monkeypatch.context() as patched:
            for name, value in environ.items():
                patched.setenv(name, value)
            with Client(url, TOKEN, connect_timeout=2) as client:
                try:
                    at_far(client.server)
                except ServerUnreachable as exc:
                    return exc.told.replace(PASSWORD, "THE PASSWORD")
        return "it answered"

    with place.land.seen_from("far") as at_far:
        assert asked(FAR_URL, HTTPS_PROXY=right) == "it answered"
        assert asked(FAR_URL, https_proxy=right, HTTPS_PROXY="http://elsewhere.test:1") == "it answered"
        told = asked(FAR_URL, HTTPS_PROXY=f"http://me:wrong@{GATE_OUTSIDE}:8888")
        assert "says: 40" in told
        assert "Write user and password into HTTPS_PROXY" in told
        told = asked(FAR_URL.replace("front.test", "front.test:8443"), HTTPS_PROXY=right)
        assert f"the proxy http://***@{GATE_OUTSIDE}:8888 (HTTPS_PROXY) on the way to" in told
        assert "says: 403" in told
        assert "It must allow this address" in told
        told = asked(FAR_URL.replace("front.test", "front.test:444"), HTTPS_PROXY=right)
        assert "says: 5" in told
        assert "It does not reach the server" in told
        assert "THE PASSWORD" not in told
        told = asked(FAR_URL, HTTPS_PROXY=f"http://me:{PASSWORD}@{GATE_OUTSIDE}:9")
        assert "THE PASSWORD" not in told
        assert "cannot be reached itself" in told
        assert "Correct HTTPS_PROXY" in told
        told = asked(FAR_URL, HTTPS_PROXY=right, NO_PROXY="front.test")
        assert told.startswith(f"no server answers at {FAR_URL}: ")
        plain = "http://front.test/below/api"
        assert "says: 407" in asked(plain, HTTP_PROXY=f"http://{GATE_OUTSIDE}:8888")
        assert "says: 5" in asked(plain, HTTP_PROXY=right)  # nobody is at that port


def test_a_minute_without_a_network(place: Place) -> None:
    land, client = place.land, place.client
    story = Story(client, place.at_server, place.folder)
    for pool in ("near", "far"):
        story.ask(client.create_pool, PoolSpec(name=pool))
    with (
        agent(place.folder / "near", "near", "near", prefix=land.on("near"), env=place.env["near"]) as near,
        agent(place.folder / "far", "far", "far", prefix=land.on("far"), env=place.env["far"]) as far,
    ):
        before = [run for pool in ("near", "far") for gate in story.gates for run in story.make(pool, gate)]
        story.until(before, lambda run: run.state == "Running")

        land.unplug("near", "inside")
        land.unplug("far", "outside")
        cut = time.monotonic()
        born = [run for pool in ("near", "far") for run in story.make(pool, "late")]
        time.sleep(AWAY / 3)
        story.gates["early"].touch()  # half of them end while nobody hears of it
        time.sleep(AWAY / 3 + 5)
        assert {agent.lost for agent in story.ask(client.list_agents).agents} == {True}
        assert [run for run in before if story.ask(client.get_run, run).ended_at is not None] == []
        time.sleep(max(0.0, cut + AWAY - time.monotonic()))
        # Granted at the most, in an answer that never arrived.
        assert {story.ask(client.get_run, run).state for run in born} <= {"Scheduled", "Claimed"}
        assert set(born).isdisjoint(line.split()[0] for line in story.effects.read_text().splitlines())
        land.move("far", "outside", FAR, "10.77.2.99")
        land.unplug("near", "inside", plugged=True)
        land.unplug("far", "outside", plugged=True)
        back = time.monotonic()
        story.until([*before, *born], lambda run: bool(run.attempts) and not run.attempts[-1].lost)
        print(f"all heard of {time.monotonic() - back:.1f} s after {back - cut:.1f} s without a network")
        land.move("near", "inside", NEAR, "10.77.1.99")

        story.gates["late"].touch()
        story.until([*before, *born], lambda run: run.ended_at is not None)
        print(f"all over {time.monotonic() - back:.1f} s after it")
        story.check()
        for one in (near, far):
            assert one.stop() == 0
            assert "the server is away" in one.said()
            assert PASSWORD not in one.said()
            assert "Traceback" not in one.said()
    assert "CONNECT front.test:443" in place.forward.said()
    assert any("POST /below/api/v1/agents/far/sync" in line for line in place.reverse.answered())


def test_nothing_of_it_outlives_who_made_it(tmp_path: Path) -> None:
    """Also not if that one is killed: with it go all processes, and so all networks."""
    if not can_make():
        pytest.skip("no networks of the tests' own: root with CAP_SYS_ADMIN, and iproute2, are needed")
    script = (
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from tests.networks.own_networks import Networks\n"
        "land = Networks(Path(sys.argv[1]), '')\n"
        "land.bridge('inside'); land.host('one', inside='10.77.1.1')\n"
        "subprocess.Popen([*land.on('one'), 'sleep', '987654'])\n"
        "time.sleep(0.5); print(land._holder.pid, flush=True); time.sleep(60)\n"
    )
    maker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert maker.stdout is not None
    holder = psutil.Process(int(maker.stdout.readline()))
    below = holder.children(recursive=True)
    assert below
    maker.kill()
    maker.wait()
    _, alive = psutil.wait_procs([holder, *below], 10)
    assert alive == []
    assert "987654" not in " ".join(
        " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])
    )
    assert not Path("/run/netns/one").exists()
