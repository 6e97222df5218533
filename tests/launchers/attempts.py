"""Attempts for the tests of launchers: assignments, folders, and engines that speak of the same work."""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.launcher import NOTHING, Exit, Handle, Launcher, Lease, Prepared
from shunter_infrastructure.process import procfs, record
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import Work
from tests.engines.docker import IMAGE
from tests.patience import SOON

AGENT = "a1"


def assignment(
    command: list[str] | None = None,
    *,
    run: UUID | None = None,
    attempt: int = 1,
    parameters: dict[str, Any] | None = None,
    tags: list[str] | None = None,
    template: dict[str, Any] | None = None,
    **work: Any,
) -> Assignment:
    """An assignment of ``command`` (or, in ``work``, an entrypoint)."""
    return Assignment(
        run=run or uuid4(),
        attempt=attempt,
        epoch=1,
        session=uuid4(),
        deployment="hello",
        revision=3,
        pool="default",
        queue="urgent",
        tags=tags or [],
        parameters=parameters or {},
        scheduled_at=datetime.datetime(2026, 11, 22, 6, 0, tzinfo=datetime.UTC),
        work=Work(command=command, **work),
        template=template or {},
    )


def shell(script: str, *arguments: str) -> list[str]:
    """A command that runs a shell script."""
    return ["/bin/sh", "-c", script, "sh", *arguments]


class Attempt:
    """One attempt and its folder, to be started by any launcher."""

    def __init__(self, work: Assignment, root: Path) -> None:
        self.assignment = work
        self.folder = root / f"{work.run}-{work.attempt}"
        self.folder.mkdir(mode=0o700)

    async def start(
        self, launcher: Launcher, lease: Lease | None = None, prepared: Prepared = NOTHING
    ) -> Handle:
        return await launcher.start(self.assignment, self.folder, AGENT, lease, prepared=prepared)

    async def recover(self, launcher: Launcher) -> Handle | None:
        return await launcher.recover(self.assignment, self.folder)

    async def run(self, launcher: Launcher) -> Exit:
        """Start it and wait for its end."""
        return await ended(launcher, await self.start(launcher))

    @property
    def record(self) -> record.Record:
        found = record.read(self.folder)
        assert found is not None
        return found


async def ended(launcher: Launcher, handle: Handle) -> Exit:
    """Its end, which must be near."""
    return await asyncio.wait_for(launcher.wait(handle), SOON)


async def output(launcher: Launcher, handle: Handle) -> bytes:
    """All output so far."""
    parts = b""
    while chunk := await launcher.read_output(handle, len(parts), 1 << 16):
        parts += chunk
    return parts


async def written(launcher: Launcher, handle: Handle, text: bytes) -> bytes:
    """All output, once ``text`` is in it."""
    await until(lambda: _has(launcher, handle, text), f"{text!r} in the output")
    return await output(launcher, handle)


async def _has(launcher: Launcher, handle: Handle, text: bytes) -> bool:
    return text in await output(launcher, handle)


async def until(true: Callable[[], Any], what: str) -> None:
    """Return when ``true()`` (awaited if need be) is; fail when it takes too long."""
    end = time.monotonic() + SOON
    while time.monotonic() < end:
        value = true()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"not seen within {SOON} s: {what}")


def is_gone(pid: int) -> bool:
    """Whether no process of this id runs (a zombie does not)."""
    found = procfs.look_up(pid)
    return found is None or found.state in "ZX"


def processes_in(folder: Path) -> list[int]:
    """Processes that have their working folder in ``folder``: whatever else they hide."""
    found = []
    for pid, process in procfs.table().items():
        try:
            where = Path(f"/proc/{pid}/cwd").readlink()
        except OSError:
            continue
        if where.is_relative_to(folder) and process.state not in "ZX":
            found.append(pid)
    return found


def lease(ask_in: float, kill_in: float) -> Lease:
    """A lease whose ends are so many seconds away."""
    now = Stamp.now().ticks
    return Lease(now + ask_in, now + kill_in)


class ProcessEngine:
    """Real processes.

    Attributes:
        many: attempts that are started at once.
        pids: handles have the pid of the user's process.
        least_grace: seconds between asking and killing, however short the grace.
        tick: seconds to which starts and ends are known.
    """

    name = "process"
    merged = True
    many = 40
    pids = True
    least_grace = 0.0
    tick = 0.0
    template: dict[str, Any] = {}

    def launcher(self) -> Launcher:
        return ProcessLauncher()

    def command(
        self,
        *,
        output: str = "",
        sleep: float = 0,
        hang: bool = False,
        exit: int = 0,
        signal: str | None = None,
        result: Any = None,
        ignore_term: bool = False,
    ) -> list[str]:
        lines = ["trap '' TERM"] if ignore_term else []
        if result is not None:
            lines.append('printf %s "$2" > "$SHUNTER_RESULT"')
        lines.append('printf %s "$1"')
        if hang and ignore_term:
            lines.append("while :; do sleep 1000; done")
        elif hang:
            lines.append("exec sleep 1000")
        else:
            lines.append(f"sleep {sleep}")
        lines.append(f"kill -{signal.removeprefix('SIG')} $$" if signal else f"exit {exit}")
        return shell("\n".join(lines), output, json.dumps(result))

    def broken_command(self) -> list[str]:
        return ["/no/such/program"]


class FakeEngine:
    """The scriptable fake."""

    name = "fake"
    merged = True
    many = 40
    pids = True
    least_grace = 0.0
    tick = 0.0
    template: dict[str, Any] = {}

    def launcher(self) -> Launcher:
        return FakeLauncher()

    def command(self, **script: Any) -> list[str]:
        words = ["fake"]
        for name, value in script.items():
            if name == "result":
                words.append(f"result={json.dumps(value)}")
            elif value is True:
                words.append(name)
            elif value is not False:
                words.append(f"{name}={value}")
        return words

    def broken_command(self) -> list[str]:
        return ["fake", "start_error=/no/such/program does not exist"]


class SharedFakeEngine(FakeEngine):
    """The same with an engine that several agents reach, as they reach a cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def launcher(self) -> Launcher:
        return FakeLauncher(engine=self.folder)


class DockerEngine(ProcessEngine):
    """Real containers, of an image with a shell."""

    name = "docker"
    merged = False
    many = 6  # each costs this machine the better part of a second
    template = {"image": IMAGE, "networks": ["none"]}
    url_fixture = "docker_url"

    def __init__(self, url: str) -> None:
        self.url = url

    def launcher(self) -> Launcher:
        from shunter_infrastructure.docker.launcher import DockerLauncher

        return DockerLauncher(environ={"DOCKER_HOST": self.url})


class KubernetesEngine(ProcessEngine):
    """Real Jobs, in a namespace of the tests' own."""

    name = "kubernetes"
    many = 10
    pids = False
    merged = False
    least_grace = 1.0
    tick = 1.0

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.kubeconfig = kubeconfig
        self.template = {"namespace": namespace, "image": IMAGE}

    def launcher(self) -> Launcher:
        from shunter_infrastructure.kubernetes.launcher import KubernetesLauncher

        return KubernetesLauncher(environ={"KUBECONFIG": str(self.kubeconfig)})


class PodmanEngine(DockerEngine):
    """Podman's Docker-compatible service."""

    url_fixture = "podman_url"


Engine = ProcessEngine | FakeEngine
