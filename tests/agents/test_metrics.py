"""What a real agent says of itself on its port: to Prometheus, and to whoever asks whether it is well."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shunter_agents.metrics import MetricsPort, Sources
from shunter_agents.tally import Distribution, Tally
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site
from tests.engines.promtool import check
from tests.patience import SOON

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scraped(page: str) -> Figures:
    return {
        (sample.name.removeprefix("shunter_agent_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_a_real_agent_is_scraped(here: Site, tmp_path: Path) -> None:
    port, go = free_port(), tmp_path / "go"
    url = f"http://127.0.0.1:{port}"
    here.client.create_pool(PoolSpec(name="measured"))
    waiting = ["sh", "-c", f"while [ ! -e {go} ]; do sleep 0.02; done"]
    need = {"gpu": 1.0, "cpu": 0.5}
    here.client.deploy("waits", DeploymentSpec(work=Work(command=waiting), pool="measured", need=need))
    here.client.deploy("fails", DeploymentSpec(work=Work(command=["false"]), pool="measured"))
    flags = ("--metrics-port", str(port), "--capacity", "gpu=2", "--capacity", "cpu=2")
    with here.agent("measured", *flags, pool="measured"):
        run = here.client.create_run(RunRequest(deployment="waits")).id
        for _ in range(2):
            here.ended(here.client.create_run(RunRequest(deployment="fails")).id)
        while here.client.get_run(str(run)).state != "Running":
            here.client.get_run(str(run), wait=1.0)

        def now() -> Figures:
            response = httpx.get(f"{url}/metrics")
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/plain; version=")
            return scraped(response.text)

        while (found := now())["attempts", (("state", "Failed"),)] > 0:
            pass  # their output is on its way
        gpu, cpu, running = (("resource", "gpu"),), (("resource", "cpu"),), (("state", "Running"),)
        expected = {
            ("slots", ()): 8,
            ("slots_in_use", ()): 1,
            ("capacity", gpu): 2,
            ("capacity_free", gpu): 1,
            ("capacity_free", cpu): 1.5,
            ("devices_in_use", gpu): 1,
            ("attempts", running): 1,
            ("reports_pending", ()): 0,
            ("output_waiting_bytes", ()): 0,
            ("troubles", ()): 0,
            ("starts_total", ()): 3,
            ("ends_total", (("cause", "exit_code"), ("state", "Failed"))): 2,
            ("launch_seconds_count", ()): 3,
        }
        assert {key: found.get(key) for key in expected} == expected
        assert 0 < found["launch_seconds_sum", ()] < 30
        assert found["sync_age_seconds", ()] < 15
        while not now()["loop_delay_seconds_count", ()]:
            pass  # it is looked at twice a second
        assert found["process_resident_memory_bytes", ()] > 2**20
        assert len(found) < 100, "bounded, whatever runs"
        assert not any(str(run) in str(key) for key in found)

        for page in ("healthz", "readyz"):
            well = httpx.get(f"{url}/{page}")
            assert (well.status_code, well.text) == (200, "ok\n")
        assert httpx.get(f"{url}/").status_code == 404
        assert httpx.get(f"{url}/metrics/more").status_code == 404
        for method in ("POST", "PUT", "DELETE", "HEAD", "BREW"):
            refused = httpx.request(method, f"{url}/metrics")
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET"), method
        assert httpx.get(f"{url}/metrics", headers={"Host": "elsewhere.example"}).status_code == 403
        assert httpx.get(f"{url}/metrics", headers={"Host": f"localhost:{port}"}).status_code == 200
        with socket.socket() as other:
            try:
                other.connect((_address(), port))
            except OSError:
                pass
            else:
                pytest.fail("it listens on more than 127.0.0.1")

        second = here.start_agent("second", *flags, pool="measured")
        assert second.wait(SOON) == 2
        assert f"127.0.0.1:{port}: Address already in use. Choose another port" in here.log("second")
        go.touch()
        assert here.ended(run).state == "Completed"
        while (found := now())["slots_in_use", ()] > 0:
            pass
        assert found["devices_in_use", gpu] == 0
        assert found["capacity_free", gpu] == 2
        assert found["ends_total", (("cause", ""), ("state", "Completed"))] == 1


def _address() -> str:
    """One of this machine's that is not its loopback's first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.2"


def until(url: str, page: str, status: int, seconds: float = SOON) -> str:
    """What a page says, once it has a status."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = httpx.get(f"{url}/{page}")
            if found.status_code == status:
                return found.text
        except httpx.TransportError:
            found = None  # type: ignore[assignment]
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_ready_is_an_agent_that_would_take_a_run(tmp_path: Path) -> None:
    """Accepted by its server not longer ago than it may be lost, and without trouble; healthy it is all the while."""
    port, fails = free_port(), tmp_path / "fails"
    url = f"http://127.0.0.1:{port}"
    check_ = f"if [ -e {fails} ]; then echo the gpu is hot; exit 1; fi"
    flags = ("--metrics-port", str(port), "--health-check", check_, "--health-every", "1s")
    with site(tmp_path / "home", {"server.lost_after": "15s", "server.lease_for": "60s"}) as here:
        agent = here.start_agent("ready", *flags, pool="later")
        try:
            # No such pool: that is settled, and said.
            assert agent.wait(SOON) == 2
            here.client.create_pool(PoolSpec(name="later"))
            here.server.kill()
            here.server.wait()
            agent = here.start_agent("ready", *flags, pool="later")
            assert until(url, "readyz", 503).startswith("its server has not accepted it yet")
            until(url, "healthz", 200)
            here.start_server()
            assert until(url, "readyz", 200) == "ok\n"
            fails.touch()
            assert "the gpu is hot" in until(url, "readyz", 503)
            assert "the gpu is hot" in until(url, "healthz", 200)
            fails.unlink()
            until(url, "readyz", 200)
            here.server.kill()
            here.server.wait()
            assert httpx.get(f"{url}/readyz").status_code == 200, "a moment's absence is none"
            assert until(url, "readyz", 503, 30).startswith("its server does not answer: ")
            assert httpx.get(f"{url}/healthz").status_code == 200
            here.start_server()
            until(url, "readyz", 200)
        finally:
            agent.kill()
            agent.wait()


def test_beyond_the_loopback_it_is_asked_for_by_addresses_alone(here: Site) -> None:
    """As the kubelet and Prometheus do; a page of elsewhere that was led to it by its name is not answered."""
    port = free_port()
    with here.agent("open", "--metrics-port", str(port), "--metrics-host", "::"):
        for address in ("127.0.0.1", _address(), "[::1]"):
            url = f"http://{address}:{port}"
            until(url, "readyz", 200)
            for page in ("metrics", "healthz", "readyz"):
                assert httpx.get(f"{url}/{page}").status_code == 200, url
                for name in ("10.1.2.3:9400", "[fd00::1]:9400", "10.1.2.3"):
                    assert httpx.get(f"{url}/{page}", headers={"Host": name}).status_code == 200, name
                for name in ("agent.example", "agent.example:80", "10.1.2.3.example", "[agent]:80", ""):
                    assert httpx.get(f"{url}/{page}", headers={"Host": name}).status_code == 403, name
    wrong = here.start_agent("wrong", "--metrics-port", str(port), "--metrics-host", "192.0.2.7")
    assert wrong.wait(SOON) == 2
    assert f"192.0.2.7:{port}: Cannot assign" in here.log("wrong")
    assert "--metrics-host" in here.log("wrong")


def test_promtool_has_nothing_to_say_against_it(here: Site, promtool: Path) -> None:
    here.client.create_pool(PoolSpec(name="linted"))
    here.client.deploy("linted", DeploymentSpec(work=Work(command=["false"]), pool="linted"))
    port = free_port()
    with here.agent("linted", "--metrics-port", str(port), "--capacity", "gpu=1", pool="linted"):
        here.ended(here.client.create_run(RunRequest(deployment="linted")).id)
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert "shunter_agent_ends_total{" in page
    assert check(promtool, page.encode()) == ""


async def test_a_loop_that_is_held_up_and_one_that_does_not_come_around(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shunter_agents.metrics.PATIENCE", 0.2)
    port, well = free_port(), True
    sources = Sources(
        holdings=None,  # type: ignore[arg-type]
        tally=Tally(),
        output_waiting=lambda: 0,
        sync_age=lambda: 0.0,
        well=lambda: well,
        troubles=lambda: ["its disk is full"],
        unready=lambda: "its disk is full",
    )
    listening = MetricsPort("127.0.0.1", port)
    listening.serve(sources)

    def ask() -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{port}/healthz")

    try:
        healthy = await asyncio.to_thread(ask)
        assert (healthy.status_code, healthy.text) == (200, "ok\nits disk is full\n")
        well = False
        assert (await asyncio.to_thread(ask)).status_code == 503
        well = True
        asked = asyncio.create_task(asyncio.to_thread(ask))
        await asyncio.sleep(0)
        time.sleep(1.0)  # noqa: ASYNC251 - this is what holds it up
        held_up = await asked
        assert (held_up.status_code, "does not come to itself" in held_up.text) == (503, True)
    finally:
        await asyncio.to_thread(listening.close)


def test_buckets_count_what_is_not_over_their_bound() -> None:
    measured = Distribution(0.1, 1.0)
    for seconds in (0.05, 0.1, 0.5, 7.0):
        measured.add(seconds)
    assert measured.buckets() == [("0.1", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert measured.total == pytest.approx(7.65)


async def test_the_loop_s_delay_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shunter_agents.tally.LOOK", 0.01)
    tally = Tally()
    task = asyncio.create_task(tally.watch_loop())
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - this is what holds it up
    while not tally.loop_delay.total:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.001)
    task.cancel()
    assert 0.25 < tally.loop_delay.total < 5


def test_what_is_not_measured_loads_no_library_for_it() -> None:
    script = (
        "import sys, shunter_agents.__main__; from shunter_infrastructure.registry import launcher_for; "
        "import shunter_work_pools.client; launcher_for('process'); sys.exit('prometheus_client' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
