"""People copy Jobs and pods to look into them, with the labels of a run: they are not the run's."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.launchers.attempts import ended, until
from tests.launchers.test_kubernetes_launcher import UP, World, world

__all__ = ["world"]


def _shunters(labels: dict[str, str]) -> dict[str, str]:
    return {
        key: value for key, value in labels.items() if "job-name" not in key and "controller-uid" not in key
    }


def _copy(namespace: str, of: dict[str, Any], kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        "name": "copy",
        "namespace": namespace,
        "labels": _shunters(of["metadata"]["labels"]),
        "annotations": of["metadata"]["annotations"],
    }
    return {
        "apiVersion": "batch/v1" if kind == "Job" else "v1",
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
    }


async def test_a_copy_of_a_pod_that_ends_is_not_the_end_of_the_run(world: World) -> None:
    launcher, attempt = world.launcher(), world.attempt(UP)
    handle = await attempt.start(launcher)
    (job,) = (await world.get("jobs"))["items"]
    (pod,) = (await world.get("pods"))["items"]
    spec = job["spec"]["template"]["spec"]
    spec["containers"][0]["command"] = ["true"]
    await asyncio.to_thread(world.cluster.apply, _copy(world.namespace, pod, "Pod", spec))
    await world.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/copy", "--timeout=60s")
    later = world.launcher()
    found = await attempt.recover(later)
    assert found == handle
    await later.stop(found, 0)
    end = await ended(launcher, handle)
    assert end.exit_code == 143  # of the run itself, which was asked to end
    await world.kubectl("delete", "pod", "copy", "--wait=false")


async def test_a_copy_of_a_job_is_not_taken_for_it(world: World) -> None:
    launcher, attempt = world.launcher(), world.attempt(UP)
    handle = await attempt.start(launcher)
    (job,) = (await world.get("jobs"))["items"]
    spec = {key: value for key, value in job["spec"].items() if key != "selector"}
    spec["template"]["metadata"]["labels"] = {}
    spec["suspend"] = True
    await asyncio.to_thread(world.cluster.apply, _copy(world.namespace, job, "Job", spec))
    later = world.launcher()
    found = await attempt.recover(later)
    assert found == handle
    await later.cleanup(found)

    async def names() -> set[str]:
        found = (await world.get("jobs"))["items"]
        return {one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"]}

    async def is_alone() -> bool:
        return await names() == {"copy"}

    await until(is_alone, "the run's Job is removed, and the copy is not")
