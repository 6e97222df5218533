"""What an agent finds out about its machine by itself, and about the cloud that it runs in."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shunter_agents import cloud, machine
from shunter_agents.cloud import cloud_tags
from shunter_work_pools.contracts.agents import Agent
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.pools import PoolSpec
from tests.agents.real_server import Site

HAS = {"cpu": 7.5, "memory": 15.6 * 2**30}


def test_this_machine() -> None:
    has = machine.capacity()
    assert 0 < has["cpu"] <= len(os.sched_getaffinity(0))
    assert 2**20 < has["memory"] <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _proc(folder: Path, version: int, limits: Mapping[str, str]) -> str:
    """A process in the cgroup /box/agent, with files below the mount."""
    proc, mount = folder / "proc", folder / "cgroup"
    proc.mkdir()
    both = "4:memory:/box/agent\n3:cpu,cpuacct:/box/agent\n" if version == 1 else ""
    (proc / "cgroup").write_text(f"{both}0::/box/agent\n")
    lines = [f"30 24 0:26 / {mount} rw - cgroup2 cgroup rw"]
    if version == 1:
        lines = [f"31 24 0:27 / {mount} rw - cgroup cgroup rw,{name}" for name in ("memory", "cpu,cpuacct")]
    (proc / "mountinfo").write_text("".join(f"{line}\n" for line in lines))
    (mount / "box/agent").mkdir(parents=True)
    for path, text in limits.items():
        (mount / path).write_text(text)
    return str(proc)


@pytest.mark.parametrize(
    ("version", "limits", "cores", "memory"),
    [
        (2, {}, None, None),
        (2, {"box/agent/cpu.max": "max 100000\n", "box/agent/memory.max": "max\n"}, None, None),
        (2, {"box/agent/cpu.max": "50000 100000\n", "box/memory.max": "67108864\n"}, 0.5, 2**26),
        (2, {"box/agent/cpu.max": "90000 100000\n", "box/cpu.max": "10000 20000\n"}, 0.5, None),
        (1, {"box/agent/cpu.cfs_quota_us": "-1\n", "box/agent/cpu.cfs_period_us": "100000\n"}, None, None),
        (1, {"box/cpu.cfs_quota_us": "25000\n", "box/cpu.cfs_period_us": "100000\n"}, 0.25, None),
        (1, {"box/agent/memory.limit_in_bytes": "9223372036854771712\n"}, None, None),
        (1, {"box/agent/memory.limit_in_bytes": "33554432\n"}, None, 2**25),
    ],
)
def test_what_a_cgroup_allows(
    tmp_path: Path, version: int, limits: Mapping[str, str], cores: float | None, memory: int | None
) -> None:
    plain = machine.capacity("/nowhere")
    has = machine.capacity(_proc(tmp_path, version, limits))
    assert has == {"cpu": cores or plain["cpu"], "memory": memory or plain["memory"]}


def test_tags_of_a_machine(tmp_path: Path) -> None:
    plain = machine.found_tags(HAS, tmp_path)
    assert plain == [
        f"os={os.uname().sysname.lower()}",
        f"arch={os.uname().machine.lower()}",
        "cpus=7",
        "memory=15GiB",
    ]
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert machine.found_tags(HAS, tmp_path) == [*plain, "gpu", "gpu=2"]
    assert machine.found_tags(HAS, tmp_path / "gone") == plain


def test_what_a_person_said_wins_and_what_is_no_tag_is_left_out() -> None:
    found = ["gpu", "gpu=2", "region=eu-west-1", "zone=a b", "instance-type=", "x" * 200, "cpus=8"]
    assert machine.beside(["region=home", "ssd"], found) == ["gpu", "gpu=2", "cpus=8"]
    assert machine.beside(["gpu=old"], found) == ["region=eu-west-1", "cpus=8"]


def test_more_gpus_than_the_agent_sees_are_refused() -> None:
    machine.check_devices({"gpu": 2.0}, {})
    machine.check_devices({"gpu": 2.0}, {"CUDA_VISIBLE_DEVICES": "4, GPU-8932f937"})
    machine.check_devices({"cpu": 2.0}, {"CUDA_VISIBLE_DEVICES": ""})
    for seen in ("", "4"):
        with pytest.raises(InvalidInput, match="CUDA_VISIBLE_DEVICES"):
            machine.check_devices({"gpu": 2.0}, {"CUDA_VISIBLE_DEVICES": seen})


# -- the cloud

Answer = Callable[[str, str, Mapping[str, str]], tuple[int, str]]


@contextmanager
def metadata(answer: Answer, **headers: str) -> Iterator[str]:
    """A metadata service; its address.

    Args:
        answer: method, path and headers (their names in lower case) -> status and body.
        headers: of every answer.
    """

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            asked = {name.lower(): value for name, value in self.headers.items()}
            status, body = answer(self.command, self.path, asked)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def aws(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
    if (method, path) == ("PUT", "/latest/api/token"):
        return (200, "a-token") if "x-aws-ec2-metadata-token-ttl-seconds" in headers else (400, "")
    if path == "/latest/dynamic/instance-identity/document":
        if headers.get("x-aws-ec2-metadata-token") != "a-token":
            return 401, ""
        return 200, json.dumps(
            {"region": "eu-west-1", "availabilityZone": "eu-west-1b", "instanceType": "g5.xlarge"}
        )
    return 404, ""


def gcp(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
    if headers.get("metadata-flavor") != "Google":
        return 403, ""
    pages = {
        "zone": "projects/12/zones/europe-west1-b",
        "machine-type": "projects/12/machineTypes/n1-standard-4",
    }
    page = pages.get(path.removeprefix("/computeMetadata/v1/instance/"))
    return (200, page) if page and method == "GET" else (404, "")


def azure(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
    if path != "/metadata/instance/compute?api-version=2021-02-01&format=json":
        return 404, ""
    if headers.get("metadata") != "true" or "x-forwarded-for" in headers:
        return 400, ""
    return 200, json.dumps({"location": "westeurope", "zone": "", "vmSize": "Standard_NC6s_v3", "name": "x"})


@pytest.mark.parametrize(
    ("answer", "headers", "tags"),
    [
        (aws, {}, ["cloud=aws", "region=eu-west-1", "zone=eu-west-1b", "instance-type=g5.xlarge"]),
        (
            gcp,
            {"Metadata_Flavor": "Google"},
            ["cloud=gcp", "region=europe-west1", "zone=europe-west1-b", "instance-type=n1-standard-4"],
        ),
        (azure, {}, ["cloud=azure", "region=westeurope", "instance-type=Standard_NC6s_v3"]),
        (lambda *asked: (200, "welcome to the portal"), {}, []),
        (lambda *asked: (200, "[1]"), {}, []),
        (lambda *asked: (500, ""), {}, []),
    ],
    ids=["aws", "gcp", "azure", "portal", "list", "broken"],
)
async def test_tags_of_a_cloud(
    answer: Answer, headers: dict[str, str], tags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with metadata(answer, **headers) as address:
        assert await cloud_tags(address) == tags


@pytest.mark.parametrize("slow", [10.0, 0.7], ids=["silent", "each answer in time, both together not"])
async def test_a_cloud_that_does_not_answer_is_waited_for_a_second(slow: float) -> None:
    over = threading.Event()

    def answer(*asked: Any) -> tuple[int, str]:
        over.wait(slow)
        return aws(*asked)

    with metadata(answer) as address:
        began = time.monotonic()
        assert await cloud_tags(address) == []
        took = time.monotonic() - began
        over.set()
    assert cloud.LIMIT <= took < cloud.LIMIT + 1


async def test_no_cloud_at_all() -> None:
    assert await cloud_tags("http://127.0.0.1:1") == []


def test_an_agent_tells_what_it_found(here: Site) -> None:
    here.client.create_pool(PoolSpec(name="found"))
    with metadata(aws) as address:
        env = {"SHUNTER_TEST_METADATA": address}
        words = ("--cloud-tags", "--tag", "region=home")
        with here.agent("found", *words, pool="found", env=env):
            agent = _known(here, "found")
    assert agent.tags == ["region=home"]
    assert agent.found_tags[:2] == [f"os={os.uname().sysname.lower()}", f"arch={os.uname().machine.lower()}"]
    assert agent.found_tags[-3:] == ["cloud=aws", "zone=eu-west-1b", "instance-type=g5.xlarge"]
    assert agent.capacity == agent.free_capacity == machine.capacity()
    with here.agent("blank", "--no-find-tags", pool="found"):
        assert _known(here, "blank").found_tags == []


def _known(here: Site, name: str) -> Agent:
    """An agent that has just started, once the server knows it."""
    while not (found := [one for one in here.client.list_agents().agents if one.name == name]):
        time.sleep(0.02)
    return found[0]
