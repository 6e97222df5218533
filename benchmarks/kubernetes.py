"""How soon the Job of a kubernetes pool begins, beside a bare Job; and one agent with thousands of Jobs by kwok.

Both on the cluster of the tests: one that is up is used, else one is brought up and down.
"""

from __future__ import annotations

import json
import re
import sqlite3
import ssl
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.report import Table, percentile
from benchmarks.system import Connection, System, running
from shunter_infrastructure.kubernetes.rights import NEEDED
from tests.cluster import images
from tests.cluster.cluster import OwnCluster
from tests.cluster.fake_nodes import FAKE
from tests.cluster.programs import COUNTED

_CLOCK = ["python3", "-c", "import time; print(time.time_ns())"]
_IDLE = 10.0
_LIMIT = "--timeout=60s"
JOBS, NODES = 5000, 10


def kubernetes(table: Table, count: int = 15) -> None:
    """Creation to the first instruction in the container, in turn with a bare Job by kubectl; and what it costs to
    wait for work."""
    name = f"bench-{uuid.uuid4().hex[:6]}"
    with _cluster() as cluster, _namespace(cluster, name) as namespace, running() as system:
        agent = _agent(system, cluster, namespace, {"image": images.PYTHON}, 8)
        system.cli("deploy", "--name", "clock", "--pool", "cluster", "--", *_CLOCK)
        time.sleep(_IDLE)
        table.row("idle agent of a kubernetes pool, RSS", agent.memory_info().rss / 1e6, "MB", 80)
        way = system.connect()
        ours, bare = [], []
        for index in range(count + 2):
            found = _run(way), _bare_job(cluster, namespace)
            if index >= 2:  # the first ones warm what is lazy
                ours.append(found[0])
                bare.append(found[1])
        # A pod and a list of Jobs is what an agent knows by now.
        table.row("agent after some Jobs, RSS", agent.memory_info().rss / 1e6, "MB", 80)
    table.row("start of a Job, p50", statistics.median(ours), "ms")
    table.row("bare Job by `kubectl create` of the same image, p50", statistics.median(bare), "ms")
    table.row("ratio", statistics.median(ours) / statistics.median(bare), "x", 1.2)
    table.note(_load())


def _run(way: Connection) -> float:
    """Milliseconds from the request that makes a run to the clock that its container reads."""
    before = time.time_ns()
    run = way.post("/runs", {"deployment": "clock"})["id"]
    seen = "none"
    while not (found := way.get(f"/runs/{run}?wait=10&seen={seen}"))["ended_at"]:
        seen = f"{found['state']}:{found['attempt_count']}"
    if found["state"] != "Completed":
        raise RuntimeError(f"a Job ended {found['state']}: {found['message']}")
    return (int(way.request("GET", f"/runs/{run}/logs?wait=10")) - before) / 1e6


def _bare_job(cluster: OwnCluster, namespace: str) -> float:
    """Milliseconds from the command to the clock that the container reads."""
    container = {"name": "run", "image": images.PYTHON, "command": _CLOCK}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "bare"},
        "spec": {
            "backoffLimit": 0,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }
    before = time.time_ns()
    cluster.kubectl("create", "-n", namespace, "-f", "-", text=json.dumps(job))
    cluster.kubectl("wait", "--for=condition=Complete", "job/bare", "-n", namespace, _LIMIT)
    started = int(cluster.kubectl("logs", "job/bare", "-n", namespace))
    cluster.kubectl("delete", "job", "bare", "-n", namespace, "--wait=true")
    return (started - before) / 1e6


def kwok(table: Table, count: int = JOBS) -> None:
    """One agent and thousands of Jobs of fake pods, which then all end at once."""
    with (
        _cluster() as cluster,
        _namespace(cluster, COUNTED) as namespace,
        _fake_nodes(cluster),
        running() as system,
    ):
        template = {
            "image": "none",
            "node_selector": {FAKE: "true"},
            "tolerations": [{"key": FAKE, "operator": "Exists"}],
        }
        agent = _agent(system, cluster, namespace, template, count)
        system.cli("deploy", "--name", "nothing", "--pool", "cluster", "--", "true")
        asked = len(_requests(cluster))
        ends, records = _Ends(cluster, namespace), _Records(system)
        begun = time.monotonic()
        _make_runs(system.connect(), count)
        _wait(lambda: _running(system) >= count, 1800)
        took = time.monotonic() - begun
        table.row(f"{count} Jobs made and running: Jobs a minute", count / took * 60, "", 500, at_least=True)
        time.sleep(_IDLE)
        table.row(f"agent with {count} live Jobs, RSS", agent.memory_info().rss / 1e6, "MB", 200)
        cluster.end_fake_pods()
        most = _highest(agent, lambda: _ended(system) >= count)
        table.row("agent while all end, highest RSS", most / 1e6, "MB", 200)
        _wait(lambda: not cluster.kubectl("get", "jobs", "-n", namespace, "-o", "name").strip(), 1800)
        shown, had = ends.close(), records.close()
        delays = [had[run] - shown[run] for run in shown.keys() & had.keys()]
        if len(delays) < count:
            raise RuntimeError(f"of {count} ends {len(shown)} were shown and {len(had)} recorded")
        late = [delay for delay in delays if delay > 2]
        table.row("shown by the API to recorded by the server, p50", percentile(delays, 50), "s")
        table.row("the same, p99", percentile(delays, 99), "s", 2)
        requests = _requests(cluster)[asked:]
        own = [one for one in requests if one["verb"] not in ("list", "watch")]
        table.row("requests to the API server for each run", len(own) / count, "", 4)
        refused = Counter(one["responseStatus"]["code"] for one in requests)
        table.row("of them put off (429)", refused[429], "", 0)
        by_kind = Counter(f"{one['verb']} {_resource(one)}" for one in requests)
    table.note(f"{len(late)} of {len(delays)} ends later than 2 s. Requests: {dict(by_kind)}. {_load()}")


def _resource(request: dict[str, Any]) -> str:
    about = request.get("objectRef", {})
    return f"{about.get('resource', request['requestURI'])}{'/' + about['subresource'] if 'subresource' in about else ''}"


def _make_runs(way: Connection, count: int) -> None:
    for begin in range(0, count, 500):
        way.post("/runs/batch", {"runs": [{"deployment": "nothing"}] * min(500, count - begin)})


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:.0f} s")
        time.sleep(1)


def _highest(process: psutil.Process, condition: Callable[[], bool]) -> int:
    """Bytes of memory that a process has at most, until something is so."""
    most, deadline = 0, time.monotonic() + 1800
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the runs do not end")
        most = max(most, process.memory_info().rss)
        time.sleep(0.5)
    return most


def _query(system: System, statement: str) -> list[tuple[Any, ...]]:
    (path,) = system.home.glob("*.db")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(statement).fetchall()


def _running(system: System) -> int:
    return int(_query(system, "SELECT count(*) FROM leases WHERE state = 'Running'")[0][0])


def _ended(system: System) -> int:
    return int(_query(system, "SELECT count(*) FROM attempts")[0][0])


class _Records:
    """When the server had the end of each run, to a twentieth of a second: looked up in its database."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._had: dict[str, float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        seen = 0
        while not self._closing.wait(0.05):
            rows = _query(self._system, f"SELECT rowid, run_id FROM attempts WHERE rowid > {seen}")
            now = time.time()
            self._had |= {str(uuid.UUID(run)): now for _, run in rows}
            seen = rows[-1][0] if rows else seen

    def close(self) -> dict[str, float]:
        """Run -> time, seconds of Unix."""
        self._closing.set()
        self._thread.join()
        return self._had


def _requests(cluster: OwnCluster) -> list[dict[str, Any]]:
    """What the agent asked, as the API server tells it: streams once they have ended."""
    path = cluster.folder / "logs" / "audit"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [one for one in found if one["userAgent"].startswith("shunter")]


class _Ends:
    """When the API showed that the container of each run has ended."""

    def __init__(self, cluster: OwnCluster, namespace: str) -> None:
        self._shown: dict[str, float] = {}
        given = json.loads(cluster.kubeconfig.read_text())
        server, user = given["clusters"][0]["cluster"], given["users"][0]["user"]
        trust = ssl.create_default_context(cafile=server["certificate-authority"])
        trust.load_cert_chain(user["client-certificate"], user["client-key"])
        self._way = HTTPSConnection(urlsplit(server["server"]).netloc, context=trust)
        self._path = f"/api/v1/namespaces/{namespace}/pods?watch=1&resourceVersion="
        self._ask("0")
        self._closing = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _ask(self, since: str) -> None:
        self._way.close()
        self._way.request("GET", self._path + since)
        self._answer = self._way.getresponse()

    def _watch(self) -> None:
        rest, last = b"", "0"
        while not self._closing:
            try:
                piece = self._answer.read1(1 << 16)
                if not piece:  # a watch lasts some minutes, and goes on from where it was
                    rest = b""
                    self._ask(last)
            except (OSError, ValueError, HTTPException):  # it is closed
                if self._closing:
                    return
                raise
            now = time.time()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                version = re.search(rb'"resourceVersion":"(\d+)"', line)
                last = version[1].decode() if version else last
                if b'"terminated"' in line:
                    pod = json.loads(line)["object"]
                    self._shown.setdefault(pod["metadata"]["labels"]["shunter.dev/run"], now)

    def close(self) -> dict[str, float]:
        """Run -> time, seconds of Unix."""
        self._closing = True
        if self._way.sock is not None:
            self._way.sock.close()
        return self._shown


def _agent(
    system: System, cluster: OwnCluster, namespace: str, template: dict[str, Any], limit: int
) -> psutil.Process:
    """A pool, and an agent that serves it with no more rights than it needs."""
    rules = [{"apiGroups": [group], "resources": [one], "verbs": list(verbs)} for group, one, verbs in NEEDED]
    kubeconfig = system.home / "kubeconfig"
    cluster.account(kubeconfig, "agent", rules, namespace=namespace, seconds=4 * 3600)
    system.env["KUBECONFIG"] = str(kubeconfig)
    variables = {"namespace": namespace, **template}
    words = [word for name, value in variables.items() for word in ("--template", f"{name}={_word(value)}")]
    system.cli("pool", "create", "cluster", "--type", "kubernetes", *words)
    return system.start_agent("bench", limit, pool="cluster")


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def _cluster() -> Iterator[OwnCluster]:
    cluster = OwnCluster()
    was_up = cluster.is_up
    cluster.up()
    try:
        yield cluster
    finally:
        if not was_up:
            cluster.down()


@contextmanager
def _namespace(cluster: OwnCluster, name: str) -> Iterator[str]:
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, _LIMIT)
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=true")


@contextmanager
def _fake_nodes(cluster: OwnCluster) -> Iterator[None]:
    cluster.add_fake_nodes(NODES)
    try:
        yield
    finally:
        cluster.remove_fake_nodes()


def _load() -> str:
    return f"Load of the machine at the end: {psutil.getloadavg()[0]:.1f}."
