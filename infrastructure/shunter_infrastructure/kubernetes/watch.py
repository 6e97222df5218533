"""All Jobs and pods of runs in a namespace, known by one list and one watch each; who waits for one hears its bell.

Kept is what is read of them, as JSON: a pod takes about a kilobyte, not fifty. A watch that breaks goes on where it
was; one that was away for too long begins anew with a list (https://kubernetes.io/docs/reference/using-api/api-concepts/).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Container, Iterator
from typing import Any

from shunter_infrastructure.kubernetes import manifest
from shunter_infrastructure.kubernetes.client import Client, Refused
from shunter_infrastructure.kubernetes.rights import missing_rights
from shunter_infrastructure.launcher import LauncherUnavailable, LaunchRefused
from shunter_work_pools.contracts.kubernetes_reserved import RUN_CONTAINER
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Objects in a page of a list.
PAGE = 500
#: Seconds after which the server ends a watch, and without a word after which it counts as broken: bookmarks come
#: every minute.
_LASTS, _SILENCE = 300, 100.0
#: Seconds between two tries to reach a server that is away: the first, and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0
#: Seconds: a watch that the server ends sooner is asked for again with a pause, as if it had failed.
_BRIEF = 1.0
_GONE = 410

Document = dict[str, Any]


class Watch:
    """One namespace.

    Args:
        wanted: names of the Jobs that somebody asks for: what was last known of them is kept when they are gone.

    Attributes:
        trouble: why nothing is known of it at the moment; None while all is well.
    """

    def __init__(self, client: Client, namespace: str, wanted: Container[str]) -> None:
        self.namespace = namespace
        self.trouble: LauncherUnavailable | None = None
        self._bells: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._wanted = wanted
        self._changed = asyncio.Event()
        self._known = False
        self._jobs = _Kind(client, self, f"/apis/batch/v1/namespaces/{namespace}/jobs", slim_job, _own_name)
        self._pods = _Kind(client, self, f"/api/v1/namespaces/{namespace}/pods", slim_pod, _job_of)
        self._tasks = [
            asyncio.create_task(kind.follow(), name=f"watch {kind.path}") for kind in (self._jobs, self._pods)
        ]

    async def ready(self) -> None:
        """Return once all that is there is known.

        Raises:
            LauncherUnavailable: it cannot be known now.
        """
        while not (self._jobs.listed and self._pods.listed):
            self.demand()
            self._changed.clear()
            await self._changed.wait()
        self.demand()

    def demand(self) -> None:
        """Make sure that what is known is of this moment.

        Raises:
            LauncherUnavailable: it is not.
        """
        if self.trouble is not None:
            # It is raised for many, again and again: none may have the frames of the others.
            raise self.trouble.with_traceback(None)

    def job(self, name: str) -> Document | None:
        """The Job of a name; None if there is none."""
        return self._jobs.get(name)

    def pod(self, job: str) -> Document | None:
        """The pod of a Job; None if none was ever seen. What is gone has ``"gone": true``, as long as it is wanted."""
        return self._pods.get(job)

    def jobs(self) -> Iterator[Document]:
        """All Jobs."""
        return self._jobs.all()

    def take(self, job: Document) -> None:
        """A Job as the server just said it is."""
        self._jobs.take(job)

    def take_pod(self, pod: Document) -> None:
        """A pod as the server just said it is."""
        self._pods.take(pod)

    def forget(self, job: str) -> None:
        """What is gone of it is not wanted any more."""
        self._jobs.drop_gone(job)
        self._pods.drop_gone(job)

    def is_wanted(self, job: str) -> bool:
        """Whether somebody asks for it."""
        return job in self._wanted

    @contextlib.contextmanager
    def bell(self, job: str) -> Iterator[asyncio.Event]:
        """Set when a Job or its pod changed, and when there is trouble."""
        bell = asyncio.Event()
        self._bells[job].add(bell)
        try:
            yield bell
        finally:
            self._bells[job].discard(bell)
            if not self._bells[job]:
                del self._bells[job]

    def ring(self, job: str) -> None:
        """Wake who waits for it."""
        for bell in self._bells.get(job, ()):
            bell.set()

    def tell(self, trouble: LauncherUnavailable) -> None:
        """Nothing is known at the moment: wake everybody."""
        self.trouble = trouble
        self._wake()

    def is_well(self) -> None:
        """Wake everybody if there was trouble, and there is none any more: neither with Jobs nor with pods."""
        if not (self._jobs.well and self._pods.well):
            return
        if self.trouble is not None:
            self.trouble = None
            self._wake()
        elif not self._known:
            self._changed.set()
        self._known = self._jobs.listed and self._pods.listed

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for job in list(self._bells):
            self.ring(job)

    async def close(self) -> None:
        """Watch no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.tell(LauncherUnavailable("the launcher was closed"))


class _Expired(Exception):
    """What came after the version that is known is not kept any more."""


class _Kind:
    """All Jobs, or all pods, of a namespace, by the names of the Jobs."""

    def __init__(self, client: Client, watch: Watch, path: str, slim: Any, name_of: Any) -> None:
        self.path = path
        self.listed = False
        self.well = True
        self._client = client
        self._watch = watch
        self._slim = slim
        self._name_of = name_of
        self._known: dict[str, bytes] = {}
        self._version = ""

    def get(self, name: str) -> Document | None:
        known = self._known.get(name)
        return None if known is None else json.loads(known)

    def all(self) -> Iterator[Document]:
        for known in list(self._known.values()):
            yield json.loads(known)

    def take(self, found: Document) -> None:
        """Something that is there, unless newer is known of it."""
        name = self._name_of(found)
        if name is None:
            return
        slim = self._slim(found)
        before = self.get(name)
        if before is not None and not _replaces(slim, before):
            return
        deadline = slim["metadata"].get("deletionTimestamp")
        if deadline is not None:
            is_known = before is not None and before["metadata"].get("deletionTimestamp") == deadline
            slim["doomed"] = before["doomed"] if before is not None and is_known else time.time()
        self._known[name] = json.dumps(slim, separators=(",", ":")).encode()
        self._watch.ring(name)

    def drop(self, found: Document) -> None:
        """Something that is not there any more; as it was at last."""
        name = self._name_of(found)
        before = None if name is None else self.get(name)
        if name is None or before is None or before["metadata"]["uid"] != found["metadata"]["uid"]:
            return
        self._gone(name, self._slim(found))

    def _gone(self, name: str, last: Document) -> None:
        if self._watch.is_wanted(name):
            self._known[name] = json.dumps({**last, "gone": True}, separators=(",", ":")).encode()
        else:
            del self._known[name]
        self._watch.ring(name)

    def drop_gone(self, name: str) -> None:
        known = self.get(name)
        if known is not None and known.get("gone"):
            del self._known[name]

    # -- list and watch

    async def follow(self) -> None:
        """Know all of them from now on."""
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                if not self._version:
                    await self._list()
                began = time.monotonic()
                await self._see()
            except _Expired:
                self._version = ""
                continue
            except (LauncherUnavailable, Refused) as exc:
                # A connection may break: there is trouble if the next one does not come.
                is_trouble = not (self.well and self.listed and isinstance(exc, LauncherUnavailable))
                self.well = False
                if is_trouble:
                    self._watch.tell(await self._told(exc))
            except Exception as exc:
                is_trouble = True
                log.exception("a watch of the cluster failed; it is taken up again", path=self.path)
                self._watch.tell(LauncherUnavailable(f"the watch of {self.path} failed: {exc}"))
                self._version = ""
            else:
                is_trouble = False
            if not is_trouble and time.monotonic() - began >= _BRIEF:
                pause = _FIRST_PAUSE
                continue
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # nosec B311 # spreads load over time, hides nothing
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _told(self, exc: LauncherUnavailable | Refused) -> LauncherUnavailable:
        if isinstance(exc, LauncherUnavailable):
            return exc
        trouble = await missing_rights(self._client, self._watch.namespace, exc)
        return LaunchRefused(trouble.detail, trouble.remedy)

    def _is_well(self) -> None:
        self.well = True
        self._watch.is_well()

    async def _list(self) -> None:
        query = {"labelSelector": manifest.SELECTOR, "limit": str(PAGE)}
        found: set[str] = set()
        more = ""
        while True:
            try:
                page = await self._client.call("GET", self.path, query | ({"continue": more} if more else {}))
            except Refused as exc:
                if exc.status == _GONE and more:
                    raise _Expired from exc
                raise
            for one in page["items"]:
                self.take(one)
                found.add(one["metadata"]["uid"])
            more = page["metadata"].get("continue", "")
            if not more:
                break
        self._version = page["metadata"]["resourceVersion"]
        for name, known in list(self._known.items()):
            last = json.loads(known)
            # What was made while the list was on its way is newer than it.
            is_older = _version_of(last) <= int(self._version)
            if last["metadata"]["uid"] not in found and is_older and not last.get("gone"):
                self._gone(name, last)
        self.listed = True
        self._is_well()

    async def _see(self) -> None:
        query = {
            "labelSelector": manifest.SELECTOR,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(_LASTS),
        }
        try:
            async with self._client.stream(self.path, query, _SILENCE) as answer:
                await answer.demand()
                self._is_well()
                async for line in answer.lines():
                    if line:
                        self._hear(json.loads(line))
        except Refused as exc:
            if exc.status == _GONE:
                raise _Expired from exc
            raise

    def _hear(self, event: Document) -> None:
        kind, found = event["type"], event["object"]
        if kind == "ERROR":
            if found.get("code") == _GONE:
                raise _Expired
            raise LauncherUnavailable(f"the watch of {self.path} was ended: {found.get('message')}")
        if kind == "DELETED":
            self.drop(found)
        elif kind != "BOOKMARK":
            self.take(found)
        self._version = found["metadata"]["resourceVersion"]


def _job_of(found: Document) -> str | None:
    """The name of the Job that something belongs to."""
    labels = found["metadata"].get("labels") or {}
    run, attempt = labels.get(manifest.RUN), labels.get(manifest.ATTEMPT)
    return f"shunter-{run}-{attempt}" if run and attempt else None


def _own_name(job: Document) -> str | None:
    """The name of a Job; None if it is a copy that somebody made of one, with its labels."""
    name = _job_of(job)
    return name if name == job["metadata"]["name"] else None


def _version_of(slim: Document) -> int:
    return int(slim["metadata"].get("resourceVersion") or 0)


def _replaces(new: Document, old: Document) -> bool:
    """Whether it is the same in a later version, or a later one of the same name."""
    if new["metadata"]["uid"] == old["metadata"]["uid"]:
        return _version_of(new) >= _version_of(old) and not old.get("gone")
    if bool(new.get("stray")) != bool(old.get("stray")):
        return not new.get("stray")
    return bool(old.get("gone")) or _version_of(new) > _version_of(old)


# -- what is kept


def slim_job(job: Document) -> Document:
    """What is read of a Job."""
    return {
        "metadata": _slim_metadata(
            job, {manifest.RUN, manifest.ATTEMPT}, {manifest.EPOCH, manifest.IDENTITY}
        ),
        "status": _picked(job.get("status", {}), "conditions", "startTime"),
    }


def slim_pod(pod: Document) -> Document:
    """What is read of a pod. ``stray``: no Job of the name has it; it is a copy, or it was orphaned."""
    spec, status = pod["spec"], pod.get("status", {})
    run = [
        {
            **_picked(one, "name", "image"),
            "command": (one.get("command") or one.get("args") or [])[:1],
            "resources": {"limits": _picked(one.get("resources", {}).get("limits", {}), "memory")},
        }
        for one in spec["containers"]
        if one["name"] == RUN_CONTAINER
    ]
    kept = _picked(status, "phase", "reason", "message")
    for which in ("containerStatuses", "initContainerStatuses"):
        kept[which] = [_picked(one, "name", "state", "lastState") for one in status.get(which, [])]
    kept["conditions"] = [
        _picked(one, "type", "status", "reason", "message")
        for one in status.get("conditions", [])
        if one["type"] in ("PodScheduled", "DisruptionTarget", "Ready")
    ]
    owners = [one["name"] for one in pod["metadata"].get("ownerReferences") or [] if one.get("controller")]
    return {
        **({} if _job_of(pod) in owners else {"stray": True}),
        "metadata": _slim_metadata(pod, set(), set()),
        "spec": {**_picked(spec, "nodeName"), "containers": run},
        "status": kept,
    }


def _slim_metadata(found: Document, labels: set[str], annotations: set[str]) -> Document:
    metadata = found["metadata"]
    kept = _picked(
        metadata,
        "name",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    )
    if labels:
        kept["labels"] = _picked(metadata.get("labels") or {}, *labels)
    if annotations:
        kept["annotations"] = _picked(metadata.get("annotations") or {}, *annotations)
    return kept


def _picked(found: Document, *names: str) -> Document:
    return {name: found[name] for name in names if found.get(name) not in (None, {}, [])}
