"""What a storm blows over: where runs become what, what of it can be killed, and how ends are told there."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from shunter_infrastructure.docker.output import CUT
from shunter_infrastructure.process import record
from shunter_work_pools.contracts.pools import PoolSpec
from tests.chaos.deeds import End
from tests.cluster.cluster import OwnCluster
from tests.engines.docker import IMAGE, Daemon

#: A run, and the number of its attempt.
Key = tuple[str, int]


@dataclass(frozen=True)
class Live:
    """A run that is alive.

    Attributes:
        keeper: pid of its keeper, where there is one.
    """

    run: str
    attempt: int
    keeper: int = 0


class Processes:
    """Processes, each below a keeper: a keeper that is killed takes what it knew of the end with it."""

    name = "process"
    #: What is killed beside agents and servers.
    victim = "keeper"
    agents: tuple[str, ...] = ("storm-1", "storm-2", "storm-3")
    #: Runs that an agent has at once.
    limit = 8
    #: Live runs at which a kill counts as one in a crowd.
    crowd = 8
    #: Waiting runs that there should be at any time, and how many are made at once.
    backlog, batch = 20, 20
    #: Seconds for which a killed agent is away.
    absences = (0.0, 0.0, 0.2, 1.0)
    #: Settings of the server.
    flags: dict[str, str] = {}

    def __init__(self) -> None:
        self.env: dict[str, str] = {}

    def pool(self, home: Path) -> PoolSpec | None:
        """The pool that is to be made; None if there is one."""
        return None

    @property
    def pool_name(self) -> str:
        return "default"

    def live(self, home: Path) -> list[Live]:
        """Runs that are alive at this moment: their keeper runs and has not written an end."""
        found = []
        for name in self.agents:
            for folder in (home / "agents" / name / "attempts").glob("*"):
                with contextlib.suppress(OSError):
                    known = record.read(folder)
                    if known and known.keeper and not known.is_final and known.keeper_runs():
                        run, _, attempt = folder.name.rpartition(".")
                        found.append(Live(run, int(attempt), known.keeper))
        return sorted(found, key=lambda one: one.run)

    def strike(self, dice: random.Random, alive: list[Live]) -> set[Key] | None:
        """Kill one of the victims; the attempts that may end otherwise by that. None: there was nothing to kill."""
        if not alive:
            return None
        one = dice.choice(alive)
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.keeper, signal.SIGKILL)
        return {(one.run, one.attempt)}

    def told(self, end: End) -> End:
        """How an end is told here."""
        return end

    def is_excused(self, cause: str | None) -> bool:
        """Whether an attempt that was hit may end so."""
        return cause == "keeper_lost"

    def whole(self, data: bytes, *, hit: bool) -> bytes | None:
        """The output of the command in what was shown; None if some of it is missing and may be."""
        return data

    def left(self) -> list[str]:
        """What is there yet after the storm, agents and server gone."""
        return []


class Containers(Processes):
    """Containers of an engine that is killed, and ended in order, again and again; they live on meanwhile.

    What it was just starting when it was killed it has forgotten (``keeper_lost``).
    """

    name = "docker"
    victim = "engine"
    agents = ("storm-1", "storm-2")
    limit = 4
    crowd = 3
    backlog, batch = 8, 6

    def __init__(self, daemon: Daemon) -> None:
        super().__init__()
        self.env = {"DOCKER_HOST": daemon.url}
        self._daemon = daemon
        self._seen: tuple[float, list[Live]] = (0.0, [])

    def pool(self, home: Path) -> PoolSpec:
        shared = {"type": "bind", "source": str(home / "shared"), "target": str(home / "shared")}
        template = {"image": IMAGE, "networks": ["none"], "mounts": [shared]}
        return PoolSpec(name=self.pool_name, type="docker", template=template)

    @property
    def pool_name(self) -> str:
        return "boxes"

    def live(self, home: Path) -> list[Live]:
        when, seen = self._seen
        if time.monotonic() - when > 0.2:
            running = [one["Labels"] for one in self._containers() if one["State"] == "running"]
            seen = [Live(one["shunter.run"], int(one["shunter.attempt"])) for one in running]
            self._seen = (time.monotonic(), sorted(seen, key=lambda one: one.run))
        return self._seen[1]

    def _containers(self) -> list[dict[str, Any]]:
        """None while the engine is away."""
        client = docker.APIClient(self._daemon.url, version="1.41", timeout=60)
        try:
            found: list[dict[str, Any]] = client.containers(all=True, filters={"label": "shunter.run"})
            return found
        except (docker.errors.DockerException, OSError):
            return []
        finally:
            client.close()

    def strike(self, dice: random.Random, alive: list[Live]) -> set[Key]:
        there = self._keys()
        self._daemon.end(dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        time.sleep(dice.choice([0.0, 0.0, 0.5, 1.5]))
        self._daemon.start()
        return there | self._keys()

    def _keys(self) -> set[Key]:
        return {
            (one["Labels"]["shunter.run"], int(one["Labels"]["shunter.attempt"]))
            for one in self._containers()
        }

    def told(self, end: End) -> End:
        state, cause, code, name = end
        return (state, cause, code if name is None else 128 + signal.Signals[name], name)

    def whole(self, data: bytes, *, hit: bool) -> bytes | None:
        return None if hit and data.endswith(CUT) else data

    def left(self) -> list[str]:
        return [str(one["Names"]) for one in self._containers()]


class Jobs(Processes):
    """Jobs of a cluster of which a program or a pod is killed now and then, and whose agents take over from each other.

    What a pod writes while containerd is away is lost without a word if it ends meanwhile.
    """

    name = "kubernetes"
    victim = "cluster"
    agents = ("storm-1", "storm-2", "storm-3")
    limit = 3
    crowd = 2
    backlog, batch = 6, 6
    absences = (0.0, 0.5, 18.0)
    flags = {"server.lost_after": "15"}

    def __init__(self, cluster: OwnCluster, namespace: str) -> None:
        super().__init__()
        self.env = {"KUBECONFIG": str(cluster.kubeconfig)}
        self._cluster = cluster
        self._namespace = namespace
        self._seen: tuple[float, list[Live]] = (0.0, [])

    def pool(self, home: Path) -> PoolSpec:
        (home / "shared").chmod(0o777)
        (home / "shared" / "effects").chmod(0o666)
        shared = {"type": "host_path", "source": str(home / "shared"), "target": str(home / "shared")}
        template = {"namespace": self._namespace, "image": IMAGE, "mounts": [shared]}
        return PoolSpec(name=self.pool_name, type="kubernetes", template=template)

    @property
    def pool_name(self) -> str:
        return "cluster"

    def live(self, home: Path) -> list[Live]:
        when, seen = self._seen
        if time.monotonic() - when > 1.0:
            running = [
                pod["metadata"]["labels"] for pod in self._pods() if pod["status"]["phase"] == "Running"
            ]
            seen = [Live(*_key(one)) for one in running]
            self._seen = (time.monotonic(), sorted(seen, key=lambda one: one.run))
        return self._seen[1]

    def _pods(self) -> list[dict[str, Any]]:
        """None while the API server is away."""
        try:
            found: list[dict[str, Any]] = self._cluster.get(
                "pods", "-n", self._namespace, "-l", "shunter.dev/run"
            )["items"]
            return found
        except (subprocess.CalledProcessError, RuntimeError):
            return []

    def strike(self, dice: random.Random, alive: list[Live]) -> set[Key] | None:
        what = dice.choice(["apiserver", "kubelet", "containerd", "pod"])
        if what == "pod":
            return self._delete_one(dice)
        there = self._keys()
        self._cluster.stop(what)
        time.sleep(dice.choice([0.0, 1.0, 4.0]))
        self._cluster.start(what)
        return there | self._keys() if what == "containerd" else set()

    def _delete_one(self, dice: random.Random) -> set[Key] | None:
        pods = [pod for pod in self._pods() if pod["status"]["phase"] == "Running"]
        if not pods:
            return None
        one = dice.choice(pods)["metadata"]
        with contextlib.suppress(subprocess.CalledProcessError, RuntimeError):
            self._cluster.kubectl(
                "delete", "pod", "-n", self._namespace, one["name"], "--now", "--wait=false"
            )
        return {_key(one["labels"])}

    def _keys(self) -> set[Key]:
        return {_key(pod["metadata"]["labels"]) for pod in self._pods()}

    def told(self, end: End) -> End:
        state, cause, code, name = end
        return (state, cause, code if name is None else 128 + signal.Signals[name], name)

    def is_excused(self, cause: str | None) -> bool:
        return cause in ("deleted", "node_lost")

    def whole(self, data: bytes, *, hit: bool) -> bytes | None:
        return None if hit else data

    def left(self) -> list[str]:
        deadline = time.monotonic() + 60
        words = ("get", "jobs,pods,secrets", "-n", self._namespace, "-l", "shunter.dev/run", "-o", "name")
        while (found := self._cluster.kubectl(*words).split()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found


def _key(labels: dict[str, str]) -> Key:
    return labels["shunter.dev/run"], int(labels["shunter.dev/attempt"])


Ground = Processes
