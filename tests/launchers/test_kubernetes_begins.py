"""Launches of the kubernetes launcher that go wrong: nothing is left of them, and what may have run is not begun anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shunter_infrastructure.kubernetes import causes
from shunter_infrastructure.launcher import LauncherUnavailable, LaunchFailed, LaunchRefused
from shunter_work_pools.contracts.states import Cause
from tests.cluster.cluster import OwnCluster
from tests.launchers.attempts import Attempt, ended, shell, until
from tests.launchers.test_kubernetes_launcher import UP, World, world

__all__ = ["world"]
pytestmark = pytest.mark.timeout(180)


def _job_of(attempt: Attempt) -> str:
    return f"shunter-{attempt.assignment.run}-{attempt.assignment.attempt}"


async def _made(attempt: Attempt) -> None:
    await until(lambda: (attempt.folder / "made.json").exists(), "its Job was made")


async def test_a_job_whose_secret_cannot_be_made_does_not_stay(world: World) -> None:
    attempt = world.attempt(UP, {"secret_env": {"A": None}})
    with pytest.raises(LaunchFailed, match=r"secret_env\.A .* has no value"):
        await attempt.start(world.launcher())
    assert (await world.get("jobs", "-l", f"shunter.dev/run={attempt.assignment.run}"))["items"] == []


async def test_what_ran_while_nobody_looked_and_whose_pod_is_gone_has_run(world: World) -> None:
    """As after a long absence, when the pod's node was given up meanwhile."""
    attempt, first = world.attempt(shell("sleep 1; exit 3")), world.launcher()
    launch = asyncio.create_task(attempt.start(first))
    await _made(attempt)
    launch.cancel()
    await asyncio.gather(launch, return_exceptions=True)
    await first.close()
    (attempt.folder / "pod.json").unlink(missing_ok=True)
    await world.kubectl("wait", "--for=condition=Failed", f"job/{_job_of(attempt)}", "--timeout=30s")
    await world.kubectl("delete", "pods", "-l", f"shunter.dev/run={attempt.assignment.run}")
    for withdraw in (False, True):
        found = await world.launcher().recover(attempt.assignment, attempt.folder, withdraw=withdraw)
        assert found is not None
    second = world.launcher()
    end = await ended(second, await attempt.start(second))
    assert (end.exit_code, end.error) == (3, None)


async def test_a_launch_fails_without_touching_what_another_agent_has_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causes, "PULL_GRACE", 3.0)
    attempt = world.attempt(UP, {"image": "nowhere.invalid/x:1"})
    launch = asyncio.create_task(attempt.start(world.launcher()))
    await _made(attempt)
    await world.kubectl("annotate", "job", _job_of(attempt), "shunter.dev/epoch=2", "--overwrite")
    with pytest.raises(LauncherUnavailable, match="later lease"):
        await launch
    assert "deletionTimestamp" not in (await world.get("job", _job_of(attempt)))["metadata"]


async def test_a_namespace_that_a_deployment_chose_is_that_runs_matter(world: World, tmp_path: Path) -> None:
    """The agent may not use it: other runs go on, and this one can be ended without the cluster."""
    rules = [
        {"apiGroups": ["batch", ""], "resources": ["jobs", "pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
    ]
    path = tmp_path / "kubeconfig"
    await asyncio.to_thread(world.cluster.account, path, "narrow", rules, namespace=world.namespace)
    launcher = world.launcher(path)
    assert await launcher.reach({"namespace": world.namespace})
    attempt = world.attempt(UP, {"namespace": "kube-system"})
    with pytest.raises(LaunchRefused, match="may not use namespace kube-system"):
        await attempt.start(launcher)
    ((note, cause),) = world.notes[attempt.assignment.run]
    assert "may not use namespace kube-system" in note
    assert cause is Cause.REJECTED
    assert await launcher.recover(attempt.assignment, attempt.folder, withdraw=True) is None


async def test_a_node_that_falls_silent_keeps_no_launch_for_ever(
    world: World, own_cluster: OwnCluster
) -> None:
    launcher = world.launcher()
    await world.attempt(["true"]).run(launcher)
    attempt = world.attempt(UP, grace=1)
    await asyncio.to_thread(own_cluster.stop, "kubelet")
    launch = asyncio.create_task(attempt.start(launcher))
    await _made(attempt)

    async def is_scheduled() -> bool:
        (pod,) = (await world.get("pods", "-l", f"shunter.dev/run={attempt.assignment.run}"))["items"] or [{}]
        return bool(pod.get("spec", {}).get("nodeName"))

    await until(is_scheduled, "its pod has a node")
    launch.cancel()
    await asyncio.gather(launch, return_exceptions=True)
    async with asyncio.timeout(100):
        handle = await launcher.recover(attempt.assignment, attempt.folder, withdraw=True)
        assert handle is not None
        end = await launcher.wait(handle)
    assert end.error is Cause.NODE_LOST
    assert "does not answer" in (end.message or "")
