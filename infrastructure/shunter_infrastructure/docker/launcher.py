"""The docker launcher: one container per attempt, named after run and attempt, removed once its end was told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import docker
from docker.errors import APIError, ImageNotFound, NotFound

from shunter_infrastructure.copied_output import OUTPUT
from shunter_infrastructure.docker import container, ending, engine, events, images, rest_of_journal
from shunter_infrastructure.docker.engine import Engine, explanation
from shunter_infrastructure.docker.events import Events
from shunter_infrastructure.docker.images import Images
from shunter_infrastructure.docker.leftovers import GRACE, Leftovers
from shunter_infrastructure.docker.output import Outputs
from shunter_infrastructure.launcher import (
    NO_DEVICES,
    NOTHING,
    Capabilities,
    Devices,
    Exit,
    Handle,
    LauncherUnavailable,
    LaunchFailed,
    Lease,
    OwnWork,
    Prepared,
    leased,
    number_of,
)
from shunter_infrastructure.run_environment import read_authorities, told_more
from shunter_infrastructure.stamp import Stamp
from shunter_infrastructure.task_files import FOLDER as TASKS
from shunter_infrastructure.task_files import JOURNAL, TaskFiles
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.docker_template import DockerTemplate
from shunter_work_pools.contracts.states import Cause

HANDLE_VERSION = 1
#: Files in the attempt's folder: what was asked for, that the engine was told to begin, which container began when,
#: and how it ended.
MANIFEST, ORDERED, STARTED, ENDED = "manifest.json", "ordered", "container.json", "ended.json"
#: Launches may take each other back when two agents start the same attempt at once.
_START_TRIES = 20
_RUNNING, _NO_SUCH = 409, 404


class DockerLauncher(OwnWork):
    """Runs attempts as containers.

    Args:
        environ: the agent's environment: where the engine is, and what ``pass_env`` takes; default: ``os.environ``.
        leftover_grace: seconds from telling of a container that nobody owns to its removal.
        pull_grace: seconds for which a registry that is away is tried again.
    """

    name = "docker"
    capabilities = Capabilities(
        exact_signal=False, shared_handles=False, merged_output=False, limits_memory="cgroup"
    )

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        leftover_grace: float = GRACE,
        pull_grace: float = images.GRACE,
    ) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self._engine = Engine(self._environ)
        self._events = Events(self._engine)
        self._outputs = Outputs(self._engine)
        self._images = Images(self._engine, self._environ, pull_grace)
        self._notes: dict[tuple[UUID, int], str] = {}  # what launches wait for, as it was told last
        self._kills: dict[str, asyncio.TimerHandle] = {}
        self._endings: dict[Path, asyncio.Lock] = {}
        self._seen: dict[
            str, object | None
        ] = {}  # container -> the engine's life in which it was seen to run last
        self._tasks: set[asyncio.Task[None]] = set()
        self._leftover_grace = leftover_grace
        self._sweeps = False

    async def check(self) -> None:
        """See :meth:`Launcher.check`."""
        if self.attempts is not None and not self._sweeps:
            self._sweeps = True
            self._spawn(Leftovers(self._engine, self.attempts, self._leftover_grace).run())
        await self._engine.call(lambda client: client.ping())

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
        """See :meth:`Launcher.start`."""
        leased(assignment, lease)
        template = container.read_template(assignment)
        note = ""
        try:
            return await self._start(assignment, template, folder, agent, devices, prepared)
        except LauncherUnavailable as exc:
            note = exc.detail
            raise
        finally:
            self._note(assignment, note)

    def _note(self, assignment: Assignment, note: str) -> None:
        """Tell what a launch waits for, if that is new."""
        key = (assignment.run, assignment.attempt)
        if note != self._notes.get(key, ""):
            self._notes[key] = note
            self.on_note(assignment.run, assignment.attempt, note, None)
        if not note:
            self._notes.pop(key, None)

    async def _start(
        self,
        assignment: Assignment,
        template: DockerTemplate,
        folder: Path,
        agent: str,
        devices: Devices,
        prepared: Prepared,
    ) -> Handle:
        fresh = not (folder / STARTED).exists()
        for _ in range(_START_TRIES):
            if not fresh and (found := await self.recover(assignment, folder)) is not None:
                return found
            try:
                return await self._launch(assignment, template, folder, agent, devices, prepared)
            except _Withdrawn:
                fresh = False
                await asyncio.sleep(random.uniform(0, 0.5))  # nosec B311 # spreads load over time, hides nothing
        raise LauncherUnavailable(
            f"the launch of {container.name_of(assignment.run, number_of(assignment, folder))} was withdrawn "
            f"{_START_TRIES} times",
            "See whether two agents use the same state folder.",
        )

    async def _launch(
        self,
        assignment: Assignment,
        template: DockerTemplate,
        folder: Path,
        agent: str,
        devices: Devices,
        prepared: Prepared,
    ) -> Handle:
        """Make a container and start it, in three calls that each find out if another life was there."""
        if prepared.source is not None and not self._engine.is_here:
            raise LaunchFailed(
                Cause.SOURCE,
                f"its code was fetched to the agent's machine, and the engine at {self._engine.address} is on another",
                "Start the agent on the engine's machine, or put the code into the image.",
            )
        before = Stamp.now()
        made = await self._create(assignment, template, folder, agent, devices, prepared)
        where, archive = container.files(assignment, template, read_authorities(prepared))
        networks = template.networks[1:]

        def begin(client: docker.APIClient) -> dict[str, Any]:
            client.put_archive(made, where, archive)
            for network in networks:
                client.connect_container_to_network(made, network)
            (folder / ORDERED).touch()
            client.start(made)
            found: dict[str, Any] = client.inspect_container(made)
            return found

        try:
            found = await self._engine.call(begin)
        except APIError as exc:
            said = explanation(exc)
            if any(words.format(made) in said for words in _GONE):
                raise _Withdrawn from exc
            with contextlib.suppress(APIError):
                await self._engine.call(lambda client: client.remove_container(made, v=True))
            command = (assignment.work.command or [assignment.work.python or template.python])[0]
            raise engine.start_fault(said, command, template.image) from exc
        return self._noted(assignment, folder, found, before)

    async def _create(
        self,
        assignment: Assignment,
        template: DockerTemplate,
        folder: Path,
        agent: str,
        devices: Devices,
        prepared: Prepared,
    ) -> str:
        """Id of a new container.

        Raises:
            _Withdrawn: there is one of this name.
        """
        name = container.name_of(assignment.run, number_of(assignment, folder))
        pulled = template.pull_policy == "always"
        if pulled:
            await self._pull(assignment, template)

        def create(client: docker.APIClient) -> str:
            wanted = container.configuration(
                assignment,
                template,
                folder,
                agent,
                self._environ,
                devices,
                secrets=prepared.secrets,
                told=told_more(prepared, container.AUTHORITIES),
                source=prepared.source,
                log_driver="k8s-file" if self._engine.is_podman else "local",
            )
            _keep(folder, MANIFEST, {"name": name} | container.redacted(wanted, assignment))
            return str(client.create_container_from_config(wanted, name, template.platform)["Id"])

        while True:
            try:
                return await self._engine.call(create)
            except ImageNotFound as exc:
                if template.pull_policy == "never":
                    raise images.missing(template.image) from exc
                if pulled:
                    raise LaunchFailed(
                        Cause.IMAGE_PULL, f"the image {template.image} is not there: {explanation(exc)}"
                    ) from exc
                await self._pull(assignment, template)
                pulled = True
            except APIError as exc:
                said = explanation(exc)
                if "name" in said and "already in use" in said:  # 409; of Podman 500
                    raise _Withdrawn from exc
                command = (assignment.work.command or [template.python])[0]
                raise engine.start_fault(said, command, template.image) from exc

    async def _pull(self, assignment: Assignment, template: DockerTemplate) -> None:
        try:
            await self._images.pull(template.image, template.platform, partial(self._note, assignment))
        finally:
            self._note(assignment, "")

    async def recover(
        self, assignment: Assignment, folder: Path, *, agent: str = "", withdraw: bool = False
    ) -> Handle | None:
        """See :meth:`Launcher.recover`.

        A container that was made and not started is removed before the answer is None, whether it is to start or not:
        an order to start it that is still on its way then finds nothing. One that is being started meanwhile cannot
        be removed. An engine that died while it started one does not know of it afterwards: whether anything ran
        cannot be known then, and nothing is started again.
        """
        if (folder / STARTED).exists():
            return self._noted(assignment, folder, None, None)
        name = container.name_of(assignment.run, number_of(assignment, folder))
        while True:
            found = await self._inspect(name)
            if found is None or found["Config"]["Labels"].get(container.FOLDER) != str(folder):
                return None
            if ending.was_started(found["State"]):
                return self._noted(assignment, folder, found, None)
            if (folder / ORDERED).exists() and not await self._events.remembers(found["Id"], events.MADE):
                return self._noted(assignment, folder, found, None)
            try:
                await self._engine.call(partial(_remove_unstarted, one=found["Id"]))
            except NotFound:
                return None
            except APIError as exc:
                if exc.status_code != _RUNNING:
                    raise LauncherUnavailable(
                        f"container {name} cannot be removed: {explanation(exc)}"
                    ) from exc
                await asyncio.sleep(0.05)  # it is being started, or removed

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        """What the engine says of a container; None if there is none."""

        def ask(client: docker.APIClient) -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = client.inspect_container(name)
            except NotFound:
                return None
            return found

        try:
            return await self._engine.call(ask)
        except APIError as exc:
            raise LauncherUnavailable(f"the engine says nothing of {name}: {explanation(exc)}") from exc

    def _noted(
        self, assignment: Assignment, folder: Path, found: dict[str, Any] | None, before: Stamp | None
    ) -> Handle:
        """The handle; what it says is written down the first time, so that it is the same in every life."""
        path = folder / STARTED
        if found is not None and not path.exists():
            state = found["State"]
            begun = ending.was_started(state)
            note = {
                "id": found["Id"],
                "pid": state.get("Pid") or None,
                "started": _moment(state["StartedAt"], before).to_json() if begun else None,
            }
            draft = folder / f"{STARTED}.{os.getpid()}.{id(self)}"
            draft.write_text(json.dumps(note))
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
            draft.unlink()
        note = json.loads(path.read_text())
        return Handle(
            launcher=self.name,
            version=HANDLE_VERSION,
            folder=folder,
            started=Stamp.from_json(note["started"]) if note["started"] else None,
            pid=note["pid"],
            data={
                "container": note["id"],
                "name": container.name_of(assignment.run, number_of(assignment, folder)),
                "entrypoint": assignment.work.entrypoint is not None,
                "journal": assignment.wants_token,
            },
        )

    async def hold(self, handle: Handle, lease: Lease) -> None:
        """See :meth:`Launcher.hold`: nobody would keep a lease while the agent is away."""
        raise ValueError(f"the attempt in {handle.folder} was started without a lease")

    # -- end

    async def wait(self, handle: Handle) -> Exit:
        """See :meth:`Launcher.wait`."""
        one = str(handle.data["container"])
        if handle.started is None:
            return ending.unknown(handle)
        with self._events.bell(one) as bell:
            while True:
                bell.clear()
                if self._events.closed:
                    raise LauncherUnavailable("the launcher was closed")
                inspected = _kept(handle.folder, ENDED) or await self._look(one)
                if inspected is None:
                    self._seen.pop(one, None)
                    await self._outputs.forget(handle.folder)
                    return ending.deleted(handle)
                if ending.has_ended(inspected["State"]):
                    break
                self._outputs.follow(one, handle.folder)
                await bell.wait()
        async with self._endings.setdefault(handle.folder, asyncio.Lock()):
            if _kept(handle.folder, ENDED) is None:
                await self._bring_home(handle, one, inspected)
        return ending.exit_of(handle, _kept(handle.folder, ENDED) or inspected)

    async def _look(self, one: str) -> dict[str, Any] | None:
        """What the engine says of a container that is waited for."""
        life = self._events.life
        found = await self._inspect(one)
        if found is None or not ending.has_ended(found["State"]):
            self._seen[one] = life if life is self._events.life else None
        return found

    async def _saw_end(self, one: str) -> bool:
        """Whether the engine was surely there when a container ended: it did not go away since that was seen to run."""
        life = self._seen.pop(one, None)
        if life is not None and life is self._events.life:
            return True
        return await self._events.remembers(one, events.STARTED, events.DEAD)

    async def _bring_home(self, handle: Handle, one: str, inspected: dict[str, Any]) -> None:
        """All that is left of it, so that its end can be told again when the container is gone."""
        self._disarm(one)
        seen = await self._saw_end(one)
        await self._outputs.complete(one, handle.folder, unseen=not seen)
        entrypoint, journal = bool(handle.data["entrypoint"]), bool(handle.data["journal"])

        def fetch(client: docker.APIClient) -> None:
            ending.fetch(client, one, handle.folder, entrypoint=entrypoint)
            if journal:
                rest_of_journal.fetch(client, one, handle.folder)

        try:
            await self._engine.call(fetch)
        except APIError as exc:
            raise LauncherUnavailable(
                f"the result of {handle.data['name']} cannot be had: {explanation(exc)}"
            ) from exc
        kept = {
            "Seen": seen,
            "State": inspected["State"],
            "Config": {key: inspected["Config"].get(key) for key in ("Image", "Entrypoint", "Cmd")},
            "HostConfig": {"Memory": inspected["HostConfig"].get("Memory")},
        }
        _keep(handle.folder, ENDED, kept)

    async def stop(self, handle: Handle, grace: float) -> None:
        """See :meth:`Launcher.stop`. It is asked once by the signal that its image names, and killed by a clock here:
        the agent's next life asks again."""
        one = str(handle.data["container"])
        if handle.started is None or (handle.folder / ENDED).exists():
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + grace
        armed = self._kills.get(one)
        if armed is not None and armed.when() <= due:
            return
        if armed is not None:
            armed.cancel()
        self._kills[one] = loop.call_at(due, self._kill, one)
        if armed is None and grace > 0:
            await self._ask(one)

    async def _ask(self, one: str) -> None:
        def ask(client: docker.APIClient) -> None:
            try:
                found = client.inspect_container(one)
                if found["State"].get("Paused"):
                    client.unpause(one)
                client.kill(one, found["Config"].get("StopSignal") or "SIGTERM")
            except (NotFound, APIError) as exc:
                if exc.status_code not in (_NO_SUCH, 409, 500):  # gone, or not running any more
                    raise

        try:
            await self._engine.call(ask)
        except APIError as exc:
            self._disarm(one)
            raise LauncherUnavailable(f"the engine does not stop {one[:12]}: {explanation(exc)}") from exc
        except LauncherUnavailable:
            self._disarm(one)
            raise

    def _kill(self, one: str) -> None:
        self._spawn(self._kill_surely(one))

    async def _kill_surely(self, one: str) -> None:
        while True:
            try:
                await self._engine.call(lambda client: client.kill(one, "SIGKILL"))
                return
            except APIError:
                return  # gone, or not running any more
            except LauncherUnavailable:
                await asyncio.sleep(0.5)

    def _disarm(self, one: str) -> None:
        armed = self._kills.pop(one, None)
        if armed is not None:
            armed.cancel()

    # -- output, remains

    async def read_output(self, handle: Handle, offset: int, limit: int) -> bytes:
        """See :meth:`Launcher.read_output`."""
        if handle.started is not None and not (handle.folder / ENDED).exists():
            self._outputs.follow(str(handle.data["container"]), handle.folder)
        try:
            fd = os.open(handle.folder / OUTPUT, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(fd, limit, offset)
        finally:
            os.close(fd)

    def output_file(self, handle: Handle) -> Path | None:
        """See :meth:`Launcher.output_file`."""
        return handle.folder / OUTPUT

    async def cleanup(self, handle: Handle) -> None:
        """See :meth:`Launcher.cleanup`."""
        one = str(handle.data["container"])
        self._disarm(one)
        self._endings.pop(handle.folder, None)
        await self._outputs.forget(handle.folder)
        try:
            await self._engine.call(lambda client: client.remove_container(one, v=True, force=True))
        except NotFound:
            pass
        except APIError as exc:
            if exc.status_code != 409:  # it is being removed already
                raise LauncherUnavailable(
                    f"container {handle.data['name']} cannot be removed: {explanation(exc)}"
                ) from exc

    def task_files(self, folder: Path) -> TaskFiles | None:
        """See :meth:`Launcher.task_files`: what the run has not brought is fetched at its end."""
        return TaskFiles(folder) if (folder / TASKS / JOURNAL).exists() else None

    def recycle(self, folder: Path) -> bool:
        """See :meth:`Launcher.recycle`: a folder is the least of what a container costs."""
        return False

    def manifest(self, folder: Path) -> Any:
        """See :meth:`Launcher.manifest`: the body of the call that made the container, and its name."""
        return _kept(folder, MANIFEST)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """See :meth:`Launcher.close`."""
        for one in list(self._kills):
            self._disarm(one)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._images.close()
        await self._events.close()
        await self._outputs.close()
        await self._engine.close()


#: What the engine says of a container that another life took for one of its own that never began: it is gone, or about
#: to be, its files before itself.
_GONE = ("No such container: {}", "marked for removal", "Could not find the file / in container {}")


class _Withdrawn(Exception):
    """There is a container of this name, or somebody removed the one that was made."""


def _moment(started_at: str, before: Stamp | None) -> Stamp:
    """When it began: by the engine's clock, as far as that can be true here."""
    now = Stamp.now()
    ago = max(0.0, now.wall - ending.seconds(started_at))
    if before is not None:
        ago = min(ago, now.ticks - before.ticks)
    return Stamp(now.boot, now.ticks - ago, now.wall - ago)


def _remove_unstarted(client: docker.APIClient, *, one: str) -> None:
    client.remove_container(one, v=True)  # without force: refused once it runs


def _keep(folder: Path, name: str, document: dict[str, Any]) -> None:
    draft = folder / f"{name}.{os.getpid()}.{threading.get_ident()}"
    draft.write_text(json.dumps(document))
    os.replace(draft, folder / name)


def _kept(folder: Path, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / name).read_text())
    except FileNotFoundError:
        return None
    return found
