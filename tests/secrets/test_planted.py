"""Values planted wherever one can be given are searched for wherever one could be found, while a run runs and after
its end, with real servers, agents and engines."""

from __future__ import annotations

import base64
import json
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.contracts.secrets import EnvValue, FromAgent, FromSecret, SecretValue
from tests.agents.real_server import Site, site
from tests.cluster.cluster import Cluster
from tests.engines.docker import IMAGE
from tests.patience import SOON

pytestmark = pytest.mark.timeout(240)

#: Prints the values in several forms, leaves them as its result and waits until it is asked to end.
SCRIPT = """
trap 'exit 3' TERM
for one in "$TOKEN" "$KEY" "$OF_POOL" "$OF_JOB" "$MINE"; do
  printf '%s\\n' "$one"
  printf '%s' "$one" | base64
done
printf '["%s"]' "$TOKEN" > "$SHUNTER_RESULT"
echo ready >&2
while :; do sleep 0.1; done
"""


@dataclass
class Planted:
    """What is to be found nowhere.

    Attributes:
        given: values by where they were given.
        needles: what is searched for: each line of each value, plain and encoded.
    """

    given: dict[str, str] = field(default_factory=dict)

    def value(self, where: str, *, lines: int = 1) -> str:
        made = "\n".join(f"{secrets.token_urlsafe(9)}/+{secrets.token_hex(6)}" for _ in range(lines))
        self.given[where] = made
        return made

    @property
    def needles(self) -> list[bytes]:
        found: set[bytes] = set()
        for value in self.given.values():
            for line in value.splitlines():
                found |= {line.encode(), quote(line, safe="").encode(), base64.b64encode(line.encode())[:16]}
        return sorted(found)

    def within(self, data: bytes) -> list[str]:
        """Where the values were given that are in some data."""
        if not any(needle in data for needle in self.needles):
            return []
        return [
            where for where in self.given if any(part.encode() in data for part in self.given[where].split())
        ] or ["?"]


def files(home: Path, planted: Planted) -> dict[str, list[str]]:
    """Files of a home with something planted in them, runs and attempts without their ids."""
    found = {}
    for path in home.rglob("*"):
        try:
            if path.is_file() and (within := planted.within(path.read_bytes())):
                found[re.sub(r"[0-9a-f-]{36}\.\d+", "ATTEMPT", str(path.relative_to(home)))] = within
        except FileNotFoundError:
            continue
    return found


def processes(planted: Planted, run: str) -> tuple[list[str], set[bool]]:
    """Command lines with something planted in them; and of environments that have it, whether they are the run's."""
    lines, owners = [], set()
    for process in psutil.process_iter():
        try:
            folder = Path("/proc", str(process.pid))
            line, environ = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if planted.within(line):
            lines.append(line.decode(errors="replace"))
        if planted.within(environ):
            owners.add(f"SHUNTER_RUN_ID={run}".encode() in environ)
    return lines, owners


def answers(where: Site, run: str) -> Iterator[tuple[str, bytes]]:
    """The answer of every GET route there is."""
    values = {"run": run, "schedule": "default"}
    names = {"agents": "a1", "pools": "planted", "deployments": "job", "secrets": "token", "limits": "none"}
    headers = {"authorization": "Bearer a-token-of-the-tests"}
    asked, base_url = 0, f"http://127.0.0.1:{where.port}"
    with httpx.Client(base_url=base_url, headers=headers, trust_env=False, timeout=SOON) as http:
        for path, ways in http.get("/api/v1/openapi.json").json()["paths"].items():
            if "get" not in ways:
                continue
            kind = path.removeprefix("/api/v1/").split("/")[0]
            filled = path.format_map({**values, "name": names.get(kind, "none"), **_others(path, values)})
            response = http.get(filled)
            asked += response.status_code == 200
            yield f"GET {path}", response.content + str(response.headers).encode()
    assert asked > 20, "they are asked as they should be"


def _others(path: str, known: dict[str, str]) -> dict[str, str]:
    names = re.findall(r"{(\w+)}", path)
    return {name: "none" for name in names if name not in known and name != "name"}


def search(where: Site, planted: Planted, run: str) -> list[str]:
    """All places of server and agent where something is that must not be there; while it runs or later."""
    found = [f"{path}: {within}" for path, data in answers(where, run) if (within := planted.within(data))]
    lines, _ = processes(planted, run)
    return found + lines


def deploy(where: Site, planted: Planted, variables: dict[str, Any], **env: EnvValue) -> str:
    """A run in the pool ``planted`` that has all that is planted, once it has said all of it."""
    where.client.set_secret("token", SecretValue(value=planted.value("token")))
    where.client.set_secret("key", SecretValue(value=planted.value("key", lines=3)))
    work = Work(
        command=["sh", "-c", SCRIPT],
        env={"TOKEN": FromSecret(secret="token"), "KEY": FromSecret(secret="key"), "OPEN": "said", **env},
    )
    where.client.deploy("job", DeploymentSpec(work=work, pool="planted", variables=variables))
    run = str(where.client.create_run(RunRequest(deployment="job")).id)
    _until(lambda: b"ready" in where.client.read_log(run).data, "it has said all")
    return run


def _until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def end(where: Site, planted: Planted, run: str) -> None:
    """End it, and look for what is left."""
    where.client.cancel_run(run)
    ended = where.ended(run)
    assert ended.state == "Cancelled"
    log = where.output(run)
    assert b"***" in log
    assert not planted.within(log)
    _until(lambda: not where.attempts("a1"), "nothing of it is left with the agent")
    assert search(where, planted, run) == []


def test_process(tmp_path: Path) -> None:
    planted = Planted()
    home = tmp_path / "home"
    (tmp_path / "mine").write_text(planted.value("of the agent"))
    (tmp_path / "agent.toml").write_text(f'[secrets]\nmine = {{file = "{tmp_path}/mine"}}\n')
    (tmp_path / "agent.toml").chmod(0o600)
    policy = {"SHUNTER_AGENT_POLICY": str(tmp_path / "agent.toml")}
    with site(home) as where:
        where.client.create_pool(PoolSpec(name="planted"))
        with where.agent("a1", pool="planted", env=policy):
            run = deploy(where, planted, {}, MINE=FromAgent(agent_secret="mine"))
            assert search(where, planted, run) == []
            _, owners = processes(planted, run)
            assert owners == {True}, "its own processes have them in their environment, and nobody else's"
            # What a run itself writes is there as it wrote it, for the agent alone, until the server has it.
            own = {"agents/a1/attempts/ATTEMPT/output", "agents/a1/attempts/ATTEMPT/result.json"}
            assert files(home, planted).keys() == own
            assert "of the agent" in files(home, planted)["agents/a1/attempts/ATTEMPT/output"]
            end(where, planted, run)
    assert files(home, planted) == {}


def test_docker(tmp_path: Path, docker_url: str) -> None:
    import docker

    planted = Planted()
    with site(tmp_path) as where:
        where.env["DOCKER_HOST"] = docker_url
        template = {"image": IMAGE, "networks": ["none"]}
        where.client.create_pool(PoolSpec(name="planted", type="docker", template=template))
        with where.agent("a1", pool="planted"):
            run = deploy(where, planted, {})
            assert search(where, planted, run) == []
            assert json.dumps(where.client.get_manifest(run).manifest).count("***") == 2
            assert files(tmp_path, planted).keys() == {"agents/a1/attempts/ATTEMPT/output"}
            client = docker.APIClient(docker_url)
            (one,) = client.containers(filters={"label": f"shunter.run={run}"})
            found = client.inspect_container(one["Id"])
            # Whoever may speak to the engine is root there: what it was told of the environment it tells them.
            shown = [text for text in found["Config"].pop("Env") if planted.within(text.encode())]
            assert sorted(text.partition("=")[0] for text in shown) == ["KEY", "TOKEN"]
            assert not planted.within(json.dumps(found).encode())
            end(where, planted, run)
            assert client.containers(all=True, filters={"label": f"shunter.run={run}"}) == []
            client.close()
    assert files(tmp_path, planted) == {}


def test_kubernetes(tmp_path: Path, jobs_of_tests: tuple[Cluster, str]) -> None:
    planted = Planted()
    cluster, namespace = jobs_of_tests
    with site(tmp_path) as where:
        where.env["KUBECONFIG"] = str(cluster.kubeconfig)
        # Of secret_env the deployment's goes over the pool's as a whole: both are planted, one is given.
        template = {
            "namespace": namespace,
            "image": IMAGE,
            "secret_env": {"OF_POOL": planted.value("of pool")},
        }
        variables = {"secret_env": {"OF_JOB": planted.value("of job")}}
        where.client.create_pool(PoolSpec(name="planted", type="kubernetes", template=template))
        with where.agent("a1", pool="planted"):
            run = deploy(where, planted, variables)
            assert search(where, planted, run) == []
            assert files(tmp_path, planted).keys() == {"agents/a1/attempts/ATTEMPT/output"}
            selector = f"shunter.dev/run={run}"
            shown = cluster.kubectl("-n", namespace, "get", "jobs,pods", "-l", selector, "-o", "yaml")
            assert "secretKeyRef" in shown
            assert not planted.within(shown.encode())
            made = json.loads(
                cluster.kubectl("-n", namespace, "get", "secrets", "-l", selector, "-o", "json")
            )
            (secret,) = made["items"]
            assert sorted(secret["data"]) == ["KEY", "OF_JOB", "TOKEN"]
            end(where, planted, run)
            left = ("-n", namespace, "get", "jobs,pods,secrets", "-l", selector, "-o", "name")
            _until(lambda: not cluster.kubectl(*left), "nothing of it is left in the cluster")
    assert files(tmp_path, planted) == {}


def test_what_is_planted_would_be_found(tmp_path: Path) -> None:
    """The search itself can fail."""
    planted = Planted()
    value = planted.value("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"\0" + base64.b64encode(value.encode()))
    assert files(tmp_path, planted) == {"sub/file": ["?"]}
    with subprocess.Popen(["sleep", "30"], env={"SHUNTER_RUN_ID": "other", "V": value}) as process:
        lines, owners = processes(planted, "mine")
        process.kill()
    assert (lines, owners) == ([], {False})
