"""Hundreds of Jobs of one launcher, of which fewer are followed: every end is told, all output is there, and
the API server is not asked much. The pods are fake ones, see ``tests/cluster/fake_nodes.py``."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shunter_infrastructure.kubernetes.launcher import KubernetesLauncher
from shunter_infrastructure.kubernetes.output import Outputs
from shunter_infrastructure.kubernetes.rights import NEEDED
from tests.cluster.cluster import OwnCluster
from tests.cluster.fake_nodes import FAKE, SAID
from tests.cluster.programs import COUNTED
from tests.launchers.attempts import Attempt, assignment

JOBS = 300


@pytest.fixture
def fake_nodes(own_cluster: OwnCluster) -> Iterator[OwnCluster]:
    own_cluster.add_fake_nodes(2)
    own_cluster.kubectl("create", "namespace", COUNTED)
    own_cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", COUNTED, "--timeout=60s")
    yield own_cluster
    own_cluster.kubectl("delete", "namespace", COUNTED)
    own_cluster.remove_fake_nodes()


def asked(cluster: OwnCluster) -> list[dict[str, Any]]:
    path = cluster.folder / "logs" / "audit"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [one for one in found if one["userAgent"] == "shunter"]


@pytest.mark.timeout(600)
async def test_hundreds_of_jobs_end_at_once(fake_nodes: OwnCluster, tmp_path: Path) -> None:
    rules = [{"apiGroups": [group], "resources": [one], "verbs": list(verbs)} for group, one, verbs in NEEDED]
    fake_nodes.account(tmp_path / "kubeconfig", "agent", rules, namespace=COUNTED)
    template = {
        "namespace": COUNTED,
        "image": "none",
        "node_selector": {FAKE: "true"},
        "tolerations": [{"key": FAKE, "operator": "Exists"}],
    }
    before = len(asked(fake_nodes))
    attempts = [Attempt(assignment(["true"], template=template), tmp_path) for _ in range(JOBS)]
    launcher = KubernetesLauncher(environ={"KUBECONFIG": str(tmp_path / "kubeconfig")})
    launcher._outputs = Outputs(launcher.client, most_open=20)
    try:

        async def live(one: Attempt) -> None:
            handle = await launcher.start(one.assignment, one.folder, "a1")
            running.add(one.folder)
            if len(running) == JOBS:
                await asyncio.to_thread(fake_nodes.end_fake_pods)
            found = await launcher.wait(handle)
            assert found.exit_code == 0
            assert (one.folder / "output").read_bytes() == SAID
            await launcher.cleanup(handle)

        running: set[Path] = set()
        await asyncio.gather(*map(live, attempts))
    finally:
        await launcher.close()
    requests = [one for one in asked(fake_nodes)[before:] if one["objectRef"]["resource"] != "events"]
    by_run = Counter(
        (one["objectRef"].get("name") or one["requestURI"]).rpartition("-1")[0].rpartition("/")[2]
        for one in requests
        if one["verb"] != "create"
    )
    of_runs = [count for name, count in by_run.items() if name.startswith("shunter-")]
    assert len(of_runs) == JOBS
    assert sum(one["verb"] == "create" for one in requests) == JOBS
    # Two for the log and one to delete it, also of those that waited and were looked at in their turn. The streams of
    # those that are followed break when the fake kubelet is begun anew to let them end.
    assert sum(of_runs) <= 3.1 * JOBS
    # The fake kubelet is begun anew to let them end: a log that is read in its turn at that moment is not given.
    codes = {
        (one["objectRef"].get("subresource") == "log", one["responseStatus"]["code"]) for one in requests
    }
    assert codes <= {(False, 200), (False, 201), (True, 200), (True, 500)}
