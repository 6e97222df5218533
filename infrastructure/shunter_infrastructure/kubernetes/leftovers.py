"""Jobs of this agent whose attempts it does not have: nobody will ever ask for them. Told first, removed a while later."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from shunter_infrastructure.kubernetes import manifest
from shunter_infrastructure.kubernetes.client import Client, Refused
from shunter_infrastructure.kubernetes.watch import Watch
from shunter_infrastructure.launcher import LauncherUnavailable
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Seconds between two looks; what is found in one is removed in the next.
GRACE = 60.0


class Leftovers:
    """Looks after what this agent's former lives left in a namespace.

    What the launcher was asked for in this life is the agent's: it asks for all that it has before anything new.

    Args:
        identity: the agent's. Its name is not enough: another server may have an agent of the same name here.
        grace: seconds that something is left alone after it was told of.
    """

    def __init__(self, client: Client, watch: Watch, identity: UUID, grace: float = GRACE) -> None:
        self._client = client
        self._watch = watch
        self._identity = str(identity)
        self._grace = grace
        self._told: set[str] = set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except (LauncherUnavailable, Refused) as exc:
                log.debug("the cluster's Jobs cannot be looked through now", reason=str(exc))
            await asyncio.sleep(self._grace)

    async def look(self) -> None:
        """Tell of leftovers, and remove those that were told of before.

        Raises:
            LauncherUnavailable: the cluster is away.
            Refused: it says no.
        """
        await self._watch.ready()
        left = {job["metadata"]["uid"]: job for job in self._watch.jobs() if self._is_left(job)}
        for uid in left.keys() & self._told:
            await self._remove(left[uid])
        self._told = left.keys() - self._told
        for uid in self._told:
            log.warning(
                "a Job of a former life of this agent is owned by nobody; it will be removed",
                job=left[uid]["metadata"]["name"],
                after=self._grace,
            )

    def _is_left(self, job: dict[str, Any]) -> bool:
        annotations, name = job["metadata"].get("annotations") or {}, job["metadata"]["name"]
        if annotations.get(manifest.IDENTITY) != self._identity or job.get("gone"):
            return False
        return not (job["metadata"].get("deletionTimestamp") or self._watch.is_wanted(name))

    async def _remove(self, job: dict[str, Any]) -> None:
        """Unless it changed since it was looked at: somebody may have taken it."""
        metadata = job["metadata"]
        body = {
            "propagationPolicy": "Background",
            "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
        }
        path = f"/apis/batch/v1/namespaces/{self._watch.namespace}/jobs/{metadata['name']}"
        try:
            await self._client.call("DELETE", path, body=body)
        except Refused as exc:
            if exc.status in (404, 409):
                return
            raise
        log.warning("a Job that nobody owns was removed", job=metadata["name"])
