"""The other ways in, and what else agents may be: a Secret of yours, invitations, pools of processes, one run each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.identities import InvitationRequest, KeyRequest, Role
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.cli.console import until
from tests.engines.docker import IMAGE
from tests.helm.conftest import NewPlace
from tests.helm.releases import AGENT, SERVER, Place, Reached
from tests.helm.runs import ended, output

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def place(new_place: NewPlace, prefix: str) -> Iterator[Place]:
    """A namespace with a server that trusts the agents of ``processes`` and ``once``."""
    trust = [
        {"serviceAccount": f"{name}-shunter-agent", "pools": [name], "managePools": True}
        for name in ("processes", "once")
    ]
    with new_place(f"{prefix}-ways-in", helm=3) as one:
        one.install("server", SERVER, {"trust": trust, "persistence": {"enabled": False}})
        yield one
        one.helm("uninstall", "server")


def test_ways_in(place: Place) -> None:
    """All at the same time: each serves its pool."""
    ways = (_by_a_secret, _by_an_invitation, _with_processes, _one_run_each)
    with place.reached() as server, ThreadPoolExecutor(len(ways)) as beside:
        for done in [beside.submit(way, place, server) for way in ways]:
            done.result()


def _by_a_secret(place: Place, server: Reached) -> None:
    """A key that somebody put there."""
    server.client.create_pool(_jobs("secret", place))
    key = server.client.create_key(KeyRequest(name="agents", role=Role.ADMIN)).token
    place.kubectl("create", "secret", "generic", "mine", f"--from-literal=token={key}")
    auth = {"mode": "existingSecret", "existingSecret": {"name": "mine"}}
    _serves(place, server, "secret", {"auth": auth, "createPools": False})


def _by_an_invitation(place: Place, server: Reached) -> None:
    """Each pod joins, and has a credential of its own; one that is killed in its pod does not join again."""
    server.client.create_pool(_jobs("invited", place))
    token = server.client.invite(InvitationRequest(pool="invited", uses=2)).token
    place.kubectl("create", "secret", "generic", "invitation", f"--from-literal=token={token}")
    auth = {"mode": "enrolment", "enrolment": {"name": "invitation"}}
    _serves(place, server, "invited", {"auth": auth, "createPools": False, "replicas": 2})
    assert len([one for one in server.client.list_agents().agents if one.pools == ["invited"]]) == 2


def _with_processes(place: Place, server: Reached) -> None:
    """Runs are in the agent's own pod, which waits for them when it is to go."""
    _install(place, server, "processes", {"poolType": "process", "drainGrace": "60s"})
    (pod,) = place.pods("processes")
    script = "uname -n; for n in $(seq 1 40); do sleep 0.2; done; echo done"
    server.client.deploy(
        "processes", DeploymentSpec(work=Work(command=["sh", "-c", script]), pool="processes")
    )
    run = str(server.client.create_run(RunRequest(deployment="processes")).id)
    until(lambda: server.client.get_run(run).state == "Running", 60)
    place.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    found = ended(server, run)
    assert (found.state, [one.exit_code for one in found.attempts]) == ("Completed", [0])
    assert output(server, run).decode() == f"{pod['metadata']['name']}\ndone\n"
    place.helm("uninstall", "processes")


def _one_run_each(place: Place, server: Reached) -> None:
    """What KEDA makes of the ScaledJob, made by hand: a Job that takes one run and ends well."""
    scaling = {"scaledJob": {"enabled": True}, "metrics": {"secret": {"name": "for-keda"}}}
    values = {"poolType": "process", "once": True, "autoscaling": scaling, **_common(server, "once")}
    rendered = place.rendered("once", AGENT, values)
    (scaled,) = [one for one in rendered if one["kind"] == "ScaledJob"]
    others = [one for one in rendered if "keda" not in one["apiVersion"]]
    place.terminal.cluster.apply(*others)
    server.client.create_pool(PoolSpec(name="once", type="process"))
    server.client.deploy("once", DeploymentSpec(work=Work(command=["echo", "hi"]), pool="once"))
    runs = [str(server.client.create_run(RunRequest(deployment="once")).id) for _ in range(2)]
    metadata = {"name": "once-by-hand", "namespace": place.namespace}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": scaled["spec"]["jobTargetRef"],
    }
    place.terminal.cluster.apply(job)
    place.kubectl("wait", "--for=condition=Complete", "job/once-by-hand", "--timeout=120s")
    states = sorted(str(server.client.get_run(run).state) for run in runs)
    assert states == ["Completed", "Scheduled"]


def _serves(place: Place, server: Reached, name: str, values: dict[str, Any]) -> None:
    """A release whose agents have a run of the pool to its end."""
    _install(place, server, name, values)
    server.client.deploy(name, DeploymentSpec(work=Work(command=["echo", "hi"]), pool=name))
    run = str(server.client.create_run(RunRequest(deployment=name)).id)
    assert ended(server, run).state == "Completed"
    assert output(server, run) == b"hi\n"
    place.helm("uninstall", name)


def _install(place: Place, server: Reached, name: str, values: dict[str, Any]) -> None:
    place.install(name, AGENT, {**_common(server, name), **values})


def _common(server: Reached, name: str) -> dict[str, Any]:
    return {"api": {"url": server.inside}, "pools": [name]}


def _jobs(name: str, place: Place) -> PoolSpec:
    return PoolSpec(name=name, type="kubernetes", template={"namespace": place.namespace, "image": IMAGE})
