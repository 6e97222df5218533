"""The kubernetes launcher: one Job per attempt, named after run and attempt, removed once its end was told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from shunter_infrastructure.copied_output import OUTPUT
from shunter_infrastructure.kubernetes import causes, ending, manifest, source_files
from shunter_infrastructure.kubernetes.client import CALLS, Client, Refused
from shunter_infrastructure.kubernetes.leftovers import GRACE, Leftovers
from shunter_infrastructure.kubernetes.output import Outputs, Pod
from shunter_infrastructure.kubernetes.rights import missing_rights
from shunter_infrastructure.kubernetes.watch import Watch
from shunter_infrastructure.launcher import (
    NO_DEVICES,
    NOTHING,
    Capabilities,
    Devices,
    Exit,
    Handle,
    LauncherUnavailable,
    LaunchFailed,
    LaunchRefused,
    Lease,
    Prepared,
    leased,
    number_of,
)
from shunter_infrastructure.run_environment import told_more
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.agents import Assignment, Output
from shunter_work_pools.contracts.kubernetes_template import KubernetesTemplate
from shunter_work_pools.contracts.states import Cause
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

HANDLE_VERSION = 1
#: Files in the attempt's folder: the Job that was made, which pod began when, how it ended, what was asked for.
MADE, STARTED, ENDED, MANIFEST = "made.json", "pod.json", "ended.json", "manifest.json"
#: Where the Job is of an attempt that was handed over, if its template says another namespace by now.
PLACE = "namespace.json"
#: Seconds without news of a launch after which the cluster is asked for its events, and between two such questions.
ASK_AFTER, ASK_EVERY = 2.0, 10.0
#: Seconds between two such questions, whichever launches they are about: a cluster that is slow is not asked more.
ASK_APART = 5.0
#: Seconds before anything is told of a launch that goes its way.
TELL_AFTER = 1.0
_FORBIDDEN, _NOT_FOUND, _CONFLICT, _INVALID = 403, 404, 409, (400, 413, 422)
_MERGE = "application/merge-patch+json"

Document = dict[str, Any]


class KubernetesLauncher:
    """Runs attempts as Jobs.

    Args:
        environ: the agent's environment: where the cluster is, and what ``pass_env`` takes; default: ``os.environ``.
        leftover_grace: seconds from telling of a Job that nobody owns to its removal.
    """

    name = "kubernetes"
    attempts: Path | None = None
    identity: UUID | None = None
    capabilities = Capabilities(
        exact_signal=False,
        shared_handles=True,
        merged_output=False,
        own_machine=False,
        limits_memory="cgroup",
    )

    def __init__(self, *, environ: Mapping[str, str] | None = None, leftover_grace: float = GRACE) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self.client = Client(self._environ)
        self._outputs = Outputs(self.client)
        self._watches: dict[str, Watch] = {}
        self._making = asyncio.Semaphore(CALLS)  # thousands may wait with their Jobs not yet written
        self._posts: dict[str, asyncio.Task[Document]] = {}
        self._runners: dict[str, asyncio.Task[None]] = {}
        self._endings: dict[Path, asyncio.Lock] = {}
        self._ours: set[str] = set()  # names of the Jobs of attempts that this agent has
        self._namespaces: set[str] = set()  # of pools, not those that a deployment chose for itself
        self._notes: dict[str, str] = {}  # what was told of a launch at last
        self._leftovers: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._leftover_grace = leftover_grace
        self._questions = _Questions()
        self._closed = False

    @staticmethod
    def on_note(run: UUID, attempt: int, note: str, cause: Cause | None) -> None:
        """See :class:`Launcher`; the agent puts its own in place of this."""

    async def check(self) -> None:
        """See :meth:`Launcher.check`."""
        try:
            await self.client.call("GET", "/version")
        except Refused as exc:
            raise LauncherUnavailable(
                f"the server at {self.client.address} is no API server: {exc.detail}",
                "See that the kubeconfig's server leads to the cluster.",
            ) from exc

    async def reach(self, template: Mapping[str, Any]) -> str:
        """See :meth:`Launcher.reach`: the uid of the namespace, which no other of any cluster has."""
        namespace = template.get("namespace") or "default"
        self._namespaces.add(namespace)
        try:
            found = await self.client.call("GET", f"/api/v1/namespaces/{namespace}")
        except Refused as exc:
            log.warning(
                "runs of a pool cannot be handed over: the agent needs the right to get its namespace",
                namespace=namespace,
                reason=exc.detail,
            )
            return ""
        return str(found["metadata"]["uid"])

    # -- beginning

    async def start(
        self,
        assignment: Assignment,
        folder: Path,
        agent: str,
        lease: Lease | None = None,
        devices: Devices = NO_DEVICES,
        prepared: Prepared = NOTHING,
    ) -> Handle:
        """See :meth:`Launcher.start`. Returns when the user's container runs, or has run."""
        leased(assignment, lease)
        name = _name_of(assignment, folder)
        self._ours.add(name)
        if (folder / STARTED).exists():
            return _noted(assignment, folder)
        template = _template(assignment, folder)
        launch = _Launch(assignment, template, folder, agent, self._watching(template.namespace), prepared)
        await self._ready(launch)
        watch = launch.watch
        self._look_after(watch, agent)
        before = None
        job = watch.job(launch.name)
        try:
            if job is None or job.get("gone"):
                if _has_begun_before(assignment, folder):
                    return _noted(assignment, folder)  # somebody deleted it: its end tells so
                before = Stamp.now()
                job = await self._create(launch)
            elif not (folder / MADE).exists():
                await self._go_with(launch, job)
        except LaunchFailed as exc:  # perhaps of what goes with a Job that is there
            await self._fail(launch, exc.cause, exc.detail, exc.remedy)
        assert job is not None
        await self._hold(launch, job)
        del job  # thousands may wait here
        pod = await self._begun(launch)
        self._note(launch, "")
        if pod is None:
            return _noted(assignment, folder)
        _note_start(launch, pod, before)
        self._outputs.follow(Pod(template.namespace, pod["metadata"]["name"]), folder, assignment.handed_over)
        return _noted(assignment, folder)

    async def _watch(self, namespace: str) -> Watch:
        """All that is known of a namespace, once that is all there is."""
        watch = self._watching(namespace)
        await watch.ready()
        return watch

    def _watching(self, namespace: str) -> Watch:
        if self._closed:
            raise LauncherUnavailable("the launcher was closed")
        if namespace not in self._watches:
            self._watches[namespace] = Watch(self.client, namespace, self._ours)
        return self._watches[namespace]

    async def _ready(self, launch: _Launch) -> None:
        """Know all that is there, or say why this launch waits."""
        try:
            await launch.watch.ready()
        except LaunchRefused as exc:
            self._note(launch, exc.detail, Cause.REJECTED)
            if launch.template.namespace in self._namespaces:
                raise LauncherUnavailable(exc.detail, exc.remedy) from exc  # it is the pool's: none can start
            raise

    async def _create(self, launch: _Launch) -> Document:
        """The Job; it is made, unless it is there. Who is interrupted leaves the request to end by itself."""
        post = self._posts.get(launch.name)
        if post is None:
            post = self._posts[launch.name] = asyncio.create_task(self._post(launch), name=launch.name)
            post.add_done_callback(lambda done: self._posts.pop(launch.name, None))
            post.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(post)

    async def _post(self, launch: _Launch) -> Document:
        async with self._making:
            return await self._make(launch)

    async def _make(self, launch: _Launch) -> Document:
        template, assignment = launch.template, launch.assignment
        if assignment.work.entrypoint is not None:
            try:
                await self._provide_runner(template.namespace)
            except Refused as exc:
                raise await self._creation_fault(launch, exc) from exc
        document = manifest.job(
            assignment,
            template,
            launch.agent,
            self._environ,
            launch.source,
            number=launch.number,
            told=told_more(launch.prepared, manifest.AUTHORITIES),
        )
        holder = manifest.held_by(launch.agent, assignment.epoch, self.identity)
        document["metadata"]["annotations"] |= holder["annotations"]
        _write(launch.folder / MANIFEST, document)
        try:
            job = await self.client.call("POST", launch.jobs, body=document)
        except Refused as exc:
            if exc.status != _CONFLICT:
                raise await self._creation_fault(launch, exc) from exc
            job = await self._get(launch)
            _demand_ours(launch, job)
        launch.watch.take(job)
        await self._go_with(launch, job)
        return job

    async def _go_with(self, launch: _Launch, job: Document) -> None:
        """Make what a Job needs beside it, unless it is there; then it is written down that all of it was made."""
        uid, namespace = job["metadata"]["uid"], launch.template.namespace
        secret = manifest.secret(
            launch.assignment,
            launch.template,
            self._environ,
            uid,
            launch.prepared,
            launch.source,
            number=launch.number,
        )
        if secret is not None:
            try:
                await self.client.call("POST", f"/api/v1/namespaces/{namespace}/secrets", body=secret)
            except Refused as exc:
                if exc.status != _CONFLICT:
                    raise await self._creation_fault(launch, exc) from exc
        _write(launch.folder / MADE, {"uid": uid})

    async def _get(self, launch: _Launch) -> Document:
        try:
            return await self.client.call("GET", f"{launch.jobs}/{launch.name}")
        except Refused as exc:
            raise LauncherUnavailable(f"Job {launch.name} cannot be read: {exc.detail}") from exc

    async def _provide_runner(self, namespace: str) -> None:
        """The runner of Python entrypoints, for all runs of a namespace; asked for once."""
        making = self._runners.get(namespace)
        if making is None or (making.done() and (making.cancelled() or making.exception())):
            making = self._runners[namespace] = asyncio.create_task(self._make_runner(namespace))
        await asyncio.shield(making)

    async def _make_runner(self, namespace: str) -> None:
        try:
            await self.client.call(
                "POST", f"/api/v1/namespaces/{namespace}/configmaps", body=manifest.runner(namespace)
            )
        except Refused as exc:
            if exc.status == _FORBIDDEN:
                raise
            if exc.status != _CONFLICT:
                raise LaunchFailed(Cause.START_FAILED, f"the runner of entrypoints: {exc.detail}") from exc

    async def _creation_fault(self, launch: _Launch, exc: Refused) -> LauncherUnavailable | LaunchFailed:
        """What a refusal to make a Job means."""
        said = exc.detail
        if exc.status == _NOT_FOUND:
            return LaunchFailed(
                Cause.REJECTED,
                f"the cluster has no namespace {launch.template.namespace}: {said}",
                "Make it, or correct the variable namespace.",
            )
        if exc.status in _INVALID or "denied the request" in said or "being terminated" in said:
            return LaunchFailed(
                Cause.REJECTED, f"the cluster does not admit the Job: {said}", causes.rejection_remedy(said)
            )
        if "exceeded quota" in said:
            self._note(launch, f"its Job cannot be made: {said}", Cause.REJECTED)
            return LaunchRefused(f"the cluster does not admit the Job: {said}", causes.rejection_remedy(said))
        if exc.status == _FORBIDDEN:
            trouble = await missing_rights(self.client, launch.template.namespace, exc)
            self._note(launch, trouble.detail, Cause.REJECTED)
            return LaunchRefused(trouble.detail, trouble.remedy)
        return LaunchRefused(f"the cluster does not make the Job: {said}", "It is tried again.")

    async def _hold(self, launch: _Launch, job: Document) -> None:
        """Write down whose the Job is, if another agent had it: never over a higher epoch."""
        epoch = launch.assignment.epoch
        while _epoch(job) != epoch:
            if _epoch(job) > epoch:
                raise LauncherUnavailable(f"Job {launch.name} is held by another agent, by a later lease")
            metadata = manifest.held_by(launch.agent, epoch, self.identity)
            metadata["resourceVersion"] = job["metadata"]["resourceVersion"]
            try:
                job = await self.client.call(
                    "PATCH", f"{launch.jobs}/{launch.name}", body={"metadata": metadata}, content_type=_MERGE
                )
            except Refused as exc:
                if exc.status == _NOT_FOUND:
                    return  # it was deleted; its end tells
                if exc.status != _CONFLICT:
                    raise LauncherUnavailable(
                        f"Job {launch.name} cannot be taken over: {exc.detail}"
                    ) from exc
                job = await self._get(launch)
        launch.watch.take(job)

    async def _begun(self, launch: _Launch) -> Document | None:
        """Its pod, once the command runs or ran; None if it is over and its pod is gone: it may have run.

        Raises:
            LaunchFailed: it never will; the Job is gone.
        """
        watch, patience = launch.watch, _Patience()
        with watch.bell(launch.name) as bell:
            while True:
                bell.clear()
                watch.demand()
                job, pod = watch.job(launch.name), watch.pod(launch.name)
                if pod is not None and causes.has_begun(pod):
                    return pod
                if pod is not None and (causes.is_over(pod) or pod.get("gone")):
                    await self._fail(launch, *ending.without_end(pod))
                if pod is None and (job is None or job.get("gone")):
                    await self._fail(launch, Cause.DELETED, f"Job {launch.name} was deleted by somebody.")
                if pod is None and await self._is_over_without_pod(launch):
                    return None
                events = await self._events(launch, job, pod, patience)
                fault = causes.fault_of_pod(pod) if pod is not None else causes.fault_of_job(events)
                if fault is not None or patience.is_long:
                    self._note(launch, *causes.note(pod, events))
                left = patience.left(fault)
                if fault is not None and left <= 0:
                    await self._fail(launch, fault.cause, fault.detail, fault.remedy)
                del job, pod, events  # thousands may wait here
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience.until_next(left)):
                        await bell.wait()

    async def _is_over_without_pod(self, launch: _Launch) -> bool:
        job = launch.watch.job(launch.name)
        if job is None or job.get("gone") or not ending.job_is_over(job):
            return False
        # Two watches: that of the Jobs may be ahead.
        selector = f"{manifest.RUN}={launch.assignment.run},{manifest.ATTEMPT}={launch.number}"
        path = f"/api/v1/namespaces/{launch.template.namespace}/pods"
        try:
            found = await self.client.call("GET", path, {"labelSelector": selector})
        except Refused as exc:
            raise LauncherUnavailable(f"pods cannot be looked for: {exc.detail}") from exc
        for pod in found["items"]:
            launch.watch.take_pod(pod)
        return launch.watch.pod(launch.name) is None

    def _note(self, launch: _Launch, note: str, cause: Cause | None = None) -> None:
        if note != self._notes.get(launch.name, ""):
            self._notes[launch.name] = note
            self.on_note(launch.assignment.run, launch.assignment.attempt, note, cause)
        if not note:
            self._notes.pop(launch.name, None)

    async def _events(
        self, launch: _Launch, job: Document | None, pod: Document | None, patience: _Patience
    ) -> list[Document]:
        """What the cluster said of a launch that makes no progress; not asked for before it takes long."""
        about = pod or job
        if pod is not None and (causes.fault_of_pod(pod) or not pod["spec"].get("nodeName")):
            about = None  # what there is to say, the pod says itself
        uid = None if about is None else str(about["metadata"]["uid"])
        if not patience.asks(uid, self._questions):
            return patience.events
        query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": "100"}
        try:
            found = await self.client.call(
                "GET", f"/api/v1/namespaces/{launch.template.namespace}/events", query
            )
        except (Refused, LauncherUnavailable):
            return patience.events
        patience.events = sorted(found["items"], key=_moment_of_event)
        return patience.events

    async def _fail(self, launch: _Launch, cause: Cause, detail: str, remedy: str = "") -> None:
        """Remove what was made, then say why it cannot be started."""
        if _epoch(launch.watch.job(launch.name)) > launch.assignment.epoch:
            raise LauncherUnavailable(f"Job {launch.name} is held by another agent, by a later lease")
        self._notes.pop(launch.name, None)
        await self._withdraw(launch.watch, launch.name)
        with contextlib.suppress(FileNotFoundError):
            (launch.folder / MADE).unlink()
        self._forget(launch.watch, launch.name)
        raise LaunchFailed(cause, detail, remedy)

    async def _withdraw(self, watch: Watch, name: str) -> bool:
        """Delete a Job, and return when neither it nor its pod is there any more; False if a node that is silent
        keeps the pod."""
        with watch.bell(name) as bell:
            asked = False
            while True:
                bell.clear()
                watch.demand()
                job = watch.job(name)
                if job is None or job.get("gone"):
                    return True
                pod = watch.pod(name)
                if pod is not None and not pod.get("gone") and ending.is_lost(pod, time.time()):
                    return False
                if not asked:
                    # In the foreground: the Job is there as long as its pod, and makes no other.
                    asked = await self._delete_job(
                        watch.namespace, name, job["metadata"]["uid"], "Foreground"
                    )
                    if not asked:
                        return True
                await _rung(bell, pod)

    async def _delete_job(self, namespace: str, name: str, uid: str, how: str) -> bool:
        """Ask for it; whether it was there."""
        body = {"propagationPolicy": how, "preconditions": {"uid": uid}}
        try:
            await self.client.call("DELETE", f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}", body=body)
        except Refused as exc:
            if exc.status in (_NOT_FOUND, _CONFLICT):  # a conflict: there is another of this name
                return False
            raise LauncherUnavailable(f"Job {name} cannot be deleted: {exc.detail}") from exc
        return True

    async def recover(
        self, assignment: Assignment, folder: Path, *, agent: str = "", withdraw: bool = False
    ) -> Handle | None:
        """See :meth:`Launcher.recover`."""
        name = _name_of(assignment, folder)
        self._ours.add(name)
        if (folder / STARTED).exists():
            return _noted(assignment, folder)
        post = self._posts.get(name)
        if post is not None:
            await asyncio.wait({post})
        if assignment.handed_over is None and not (folder / MANIFEST).exists():
            return None  # it was never asked for: not even the cluster is needed to know that
        if assignment.handed_over is not None:
            await self._find_place(assignment, folder)
        template = _template(assignment, folder)
        watch = await self._watch(template.namespace)
        job, pod = watch.job(name), watch.pod(name)
        there = job is not None and not job.get("gone")
        launch = _Launch(assignment, template, folder, agent, watch)
        if job is not None and there:
            if _epoch(job) > assignment.epoch:
                return None
            if assignment.handed_over is not None:
                await self._hold(launch, job)
        if pod is not None and causes.has_begun(pod):
            _note_start(launch, pod, None)
            return _noted(assignment, folder)
        if not there and _has_begun_before(assignment, folder):
            return _noted(assignment, folder)
        if pod is None and await self._is_over_without_pod(launch):
            return _noted(assignment, folder)
        if withdraw:
            self._notes.pop(name, None)
            if not await self._withdraw(watch, name):
                return _noted(assignment, folder)  # it cannot be known whether it runs there
            with contextlib.suppress(FileNotFoundError):
                (folder / MADE).unlink()
            self._forget(watch, name)
        return None

    async def _find_place(self, assignment: Assignment, folder: Path) -> None:
        """Write down where the Job of an attempt is that another agent had, if not where its template says: that is the
        pool's as it is now. In another namespace the work would seem to be gone, or be begun a second time."""
        said = _template(assignment, folder).namespace
        name = _name_of(assignment, folder)
        if (await self._watch(said)).job(name) is not None:
            return
        for namespace in sorted(self._namespaces - {said}):
            # Not by a watch: that may be behind, and the same name in two namespaces is no conflict.
            try:
                job = await self.client.call("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}")
            except Refused as exc:
                if exc.status == _NOT_FOUND:
                    continue
                raise LauncherUnavailable(f"Job {name} cannot be looked for: {exc.detail}") from exc
            (await self._watch(namespace)).take(job)
            _write(folder / PLACE, namespace)
            return

    async def hold(self, handle: Handle, lease: Lease) -> None:
        """See :meth:`Launcher.hold`: nobody would keep a lease while the agent is away."""
        raise ValueError(f"the attempt in {handle.folder} was started without a lease")

    # -- end

    async def wait(self, handle: Handle) -> Exit:
        """See :meth:`Launcher.wait`."""
        if (handle.folder / ENDED).exists():
            return _read_end(handle)
        name = str(handle.data["name"])
        watch = await self._watch(str(handle.data["namespace"]))
        with watch.bell(name) as bell:
            while True:
                bell.clear()
                if (handle.folder / ENDED).exists():
                    return _read_end(handle)
                watch.demand()
                if (left := self._seconds_left(handle, watch)) is None:
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left if left < math.inf else None):
                        await bell.wait()
            job, pod = watch.job(name), watch.pod(name)
        async with self._endings.setdefault(handle.folder, asyncio.Lock()):
            if not (handle.folder / ENDED).exists():
                await self._bring_home(handle, job, pod)
        return _read_end(handle)

    def _seconds_left(self, handle: Handle, watch: Watch) -> float | None:
        """After how long to look again at what runs, though nothing is heard of it; None: it has ended.

        Apart from :meth:`wait`, of which thousands wait: none keeps a Job and a pod meanwhile.
        """
        name = str(handle.data["name"])
        job, pod = watch.job(name), watch.pod(name)
        if _has_ended(job, pod):
            return None
        if pod is None:
            return math.inf
        at = Pod(watch.namespace, pod["metadata"]["name"])
        self._outputs.follow(at, handle.folder, _handed_over(handle))
        deadline = ending.gone_by(pod)
        return math.inf if deadline is None else max(0.0, deadline - time.time())

    async def _bring_home(self, handle: Handle, job: Document | None, pod: Document | None) -> None:
        """All that is left of it, so that its end can be told again when Job and pod are gone."""
        ended = Stamp.now()
        known = pod["metadata"]["name"] if pod is not None else handle.data["pod"]
        if known:
            at = Pod(str(handle.data["namespace"]), str(known))
            await self._outputs.complete(at, handle.folder, _handed_over(handle))
        _write(handle.folder / ENDED, {"job": job, "pod": pod, "seen": ended.to_json()})

    async def stop(self, handle: Handle, grace: float) -> None:
        """See :meth:`Launcher.stop`. The kubelet gives whole seconds, at least one.

        With the deployment's own grace the pod gets a deadline that is over: it ends, and stays with its log and its
        exit code, whoever is there to read them. A shorter grace is only to be had by deleting it.
        """
        if (handle.folder / ENDED).exists():
            return
        name = str(handle.data["name"])
        watch = await self._watch(str(handle.data["namespace"]))
        job, pod = watch.job(name), watch.pod(name)
        if pod is None or pod.get("gone") or causes.is_over(pod) or _epoch(job) > int(handle.data["epoch"]):
            return
        path = f"/api/v1/namespaces/{watch.namespace}/pods/{pod['metadata']['name']}"
        uid = pod["metadata"]["uid"]
        try:
            if grace >= float(handle.data["grace"]):
                body = {"metadata": {"uid": uid}, "spec": {"activeDeadlineSeconds": 1}}
                await self.client.call("PATCH", path, body=body, content_type=_MERGE)
            else:
                seconds = max(1, math.ceil(grace))
                options = {"gracePeriodSeconds": seconds, "preconditions": {"uid": uid}}
                await self.client.call("DELETE", path, body=options)
        except Refused as exc:
            if exc.status not in (_NOT_FOUND, _CONFLICT):
                raise LauncherUnavailable(
                    f"pod {pod['metadata']['name']} is not stopped: {exc.detail}"
                ) from exc

    # -- output, remains

    async def read_output(self, handle: Handle, offset: int, limit: int) -> bytes:
        """See :meth:`Launcher.read_output`."""
        # Asked of thousands, several times a second.
        copied = self._outputs.copies(handle.folder) or not handle.data["pod"]
        if not copied and not (handle.folder / ENDED).exists():
            at = Pod(str(handle.data["namespace"]), str(handle.data["pod"]))
            self._outputs.follow(at, handle.folder, _handed_over(handle))
        path = f"{handle.folder}/{OUTPUT}"
        try:
            if os.stat(path).st_size <= offset:
                return b""
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(fd, limit, offset)
        finally:
            os.close(fd)

    def output_file(self, handle: Handle) -> Path | None:
        """See :meth:`Launcher.output_file`."""
        return handle.folder / OUTPUT

    def task_files(self, folder: Path) -> None:
        """See :meth:`Launcher.task_files`: they are in the pod."""
        return

    def manifest(self, folder: Path) -> Any:
        """See :meth:`Launcher.manifest`."""
        try:
            return json.loads((folder / MANIFEST).read_text())
        except FileNotFoundError:
            return None

    async def cleanup(self, handle: Handle) -> None:
        """See :meth:`Launcher.cleanup`."""
        name = str(handle.data["name"])
        watch = await self._watch(str(handle.data["namespace"]))
        job = watch.job(name)
        await self._outputs.forget(handle.folder)
        if job is not None and _epoch(job) <= int(handle.data["epoch"]) and not job.get("gone"):
            async with self._outputs.in_turn():
                await self._delete_job(watch.namespace, name, job["metadata"]["uid"], "Background")
        self._forget(watch, name)
        self._endings.pop(handle.folder, None)

    def _forget(self, watch: Watch, name: str) -> None:
        self._ours.discard(name)
        watch.forget(name)

    def recycle(self, folder: Path) -> bool:
        """See :meth:`Launcher.recycle`: a folder is the least of what a Job costs."""
        return False

    async def let_go(self, assignment: Assignment, folder: Path) -> None:
        """See :meth:`Launcher.let_go`."""
        post = self._posts.get(_name_of(assignment, folder))
        if post is not None:
            await asyncio.wait({post})
        # It stays among ours: until the other agent has written down that it is its own, it would be a leftover of ours.
        await self._outputs.forget(folder)
        self._endings.pop(folder, None)

    def _look_after(self, watch: Watch, agent: str) -> None:
        """Look for Jobs of former lives, once the server has given this one something: it may be given them anew."""
        key = (watch.namespace, agent)
        if key not in self._leftovers and self.identity is not None:
            leftovers = Leftovers(self.client, watch, self.identity, self._leftover_grace)
            self._leftovers[key] = asyncio.create_task(
                leftovers.run(), name=f"leftovers in {watch.namespace}"
            )

    async def close(self) -> None:
        """See :meth:`Launcher.close`."""
        self._closed = True
        tasks = [*self._leftovers.values(), *self._posts.values(), *self._runners.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for watch in self._watches.values():
            await watch.close()
        await self._outputs.close()
        await self.client.close()


class _Launch:
    """An attempt that is being started."""

    def __init__(
        self,
        assignment: Assignment,
        template: KubernetesTemplate,
        folder: Path,
        agent: str,
        watch: Watch,
        prepared: Prepared = NOTHING,
    ) -> None:
        self.assignment = assignment
        self.template = template
        self.folder = folder
        self.agent = agent
        self.watch = watch
        self.prepared = prepared
        self.source = source_files.read(prepared.source)
        self.number = number_of(assignment, folder)
        self.name = _name_of(assignment, folder)
        self.jobs = f"/apis/batch/v1/namespaces/{template.namespace}/jobs"


class _Questions:
    """All that is asked for events.

    Attributes:
        next: when the next may be, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.next = -math.inf


class _Patience:
    """How long a launch has been without progress, and what was said of it.

    Attributes:
        events: those of the last question.
    """

    def __init__(self) -> None:
        self.events: list[Document] = []
        self._began = time.monotonic()
        self._stuck: str | None = None
        self._next = math.inf
        self._fault: tuple[Cause, float] | None = None

    def asks(self, stuck: str | None, questions: _Questions) -> bool:
        """Whether it is time to ask for the events of the object whose uid is given; None: all goes its way."""
        now = time.monotonic()
        if stuck != self._stuck:
            self._stuck, self.events = stuck, []
            self._next = math.inf if stuck is None else now + ASK_AFTER
        if now < self._next:
            return False
        if now < questions.next:
            self._next = now + random.uniform(ASK_AFTER, ASK_EVERY)  # nosec B311 # spreads load over time, hides nothing
            return False
        questions.next = now + ASK_APART
        self._next = now + ASK_EVERY
        return True

    def left(self, fault: causes.Fault | None) -> float:
        """Seconds that a fault may go on; without a limit if there is none."""
        if fault is None:
            self._fault = None
            return math.inf
        if self._fault is None or self._fault[0] is not fault.cause:
            self._fault = (fault.cause, time.monotonic())
        return self._fault[1] + fault.grace - time.monotonic()

    @property
    def is_long(self) -> bool:
        """Whether it takes longer than launches do."""
        return time.monotonic() - self._began >= TELL_AFTER

    def until_next(self, left: float) -> float | None:
        """Seconds after which there is something to do though nothing happens; None: nothing."""
        now = time.monotonic()
        tell = math.inf if self.is_long else self._began + TELL_AFTER
        next_at = min(now + left, self._next, tell)
        return None if next_at == math.inf else max(0.0, next_at - now)


def _name_of(assignment: Assignment, folder: Path) -> str:
    return manifest.name_of(assignment.run, number_of(assignment, folder))


def _demand_ours(launch: _Launch, job: Document) -> None:
    labels = job["metadata"].get("labels") or {}
    ours = (str(launch.assignment.run), launch.number)
    if (labels.get(manifest.RUN), labels.get(manifest.ATTEMPT)) != ours:
        raise LaunchFailed(
            Cause.START_FAILED,
            f"there is a Job {launch.name} in namespace {launch.template.namespace} that is not this run's",
            "Delete it, or give the pool another namespace.",
        )


def _epoch(job: Document | None) -> int:
    """Of the lease by which a Job is held."""
    annotations = {} if job is None else job["metadata"].get("annotations") or {}
    try:
        return int(annotations.get(manifest.EPOCH) or 0)
    except ValueError:
        return 0


def _moment_of_event(event: Document) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"]["creationTimestamp"]
    )


async def _rung(bell: asyncio.Event, pod: Document | None) -> None:
    """Return when the bell rings, or when the pod counts as lost."""
    deadline = None if pod is None or pod.get("gone") or causes.is_over(pod) else ending.gone_by(pod)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if deadline is None else max(0.1, deadline - time.time())):
            await bell.wait()


def _has_ended(job: Document | None, pod: Document | None) -> bool:
    if pod is None:
        return job is None or bool(job.get("gone")) or ending.job_is_over(job)
    return bool(causes.is_over(pod) or pod.get("gone") or ending.is_lost(pod, time.time()))


# -- what is kept in the folder


def _write(path: Path, what: Any) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.{id(what)}")
    draft.write_text(json.dumps(what))
    os.replace(draft, path)


def _template(assignment: Assignment, folder: Path) -> KubernetesTemplate:
    """The template of an attempt, see :func:`~shunter_infrastructure.kubernetes.manifest.read_template`."""
    template = manifest.read_template(assignment)
    try:
        place = json.loads((folder / PLACE).read_text())
    except FileNotFoundError:
        return template
    return template.model_copy(update={"namespace": place})


def _has_begun_before(assignment: Assignment, folder: Path) -> bool:
    """Whether its Job was there once: if it is not any more, it must not be made again."""
    before = assignment.handed_over
    return (folder / MADE).exists() or (before is not None and before.started)


def _note_start(launch: _Launch, pod: Document, before: Stamp | None) -> None:
    """Write down what began when; the first time, so that it is the same in every life."""
    path = launch.folder / STARTED
    began = ending.began(pod, before) or Stamp.now()
    note = {"pod": pod["metadata"]["name"], "started": began.to_json()}
    draft = launch.folder / f"{STARTED}.{os.getpid()}.{id(note)}"
    draft.write_text(json.dumps(note))
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()


def _noted(assignment: Assignment, folder: Path) -> Handle:
    """The handle of what began, or of a Job that was made and is not there any more."""
    try:
        note = json.loads((folder / STARTED).read_text())
    except FileNotFoundError:
        note = {"pod": "", "started": None}
    template = _template(assignment, folder)
    handed_over = assignment.handed_over
    return Handle(
        launcher="kubernetes",
        version=HANDLE_VERSION,
        folder=folder,
        started=Stamp.from_json(note["started"]) if note["started"] else None,
        data={
            "name": _name_of(assignment, folder),
            "namespace": template.namespace,
            "pod": note["pod"],
            "epoch": assignment.epoch,
            "grace": assignment.work.grace,
            "entrypoint": assignment.work.entrypoint is not None,
            "result_limit": manifest.result_limit_of(assignment, template),
            "handed_over": None if handed_over is None else handed_over.model_dump(),
        },
    )


def _handed_over(handle: Handle) -> Output | None:
    told = handle.data["handed_over"]
    return None if told is None else Output.model_validate(told)


def _read_end(handle: Handle) -> Exit:
    kept = json.loads((handle.folder / ENDED).read_text())
    return ending.exit_of(handle, kept["job"], kept["pod"], Stamp.from_json(kept["seen"]))
