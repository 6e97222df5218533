"""A Kubernetes cluster for tests: one of our own with its controls, or the one that KUBECONFIG names."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.cluster import building, cache, credentials, fake_nodes, images, services
from tests.cluster.machine import Machine
from tests.cluster.packages import CannotHaveCluster, find, provide
from tests.cluster.programs import API_SERVICE, NODE, Program, programs

#: Seconds in which a program of a cluster is well after its start, on a busy machine.
START_LIMIT = 90.0


#: The store listens where only the cluster is. https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/
_COMPACT = """
import json, urllib.request
def ask(what, **body):
    url = f"http://127.0.0.1:2379/v3/kv/{what}"
    return json.load(urllib.request.urlopen(url, json.dumps(body).encode()))
revision = ask("range", key="AA==", limit=1)["header"]["revision"]
ask("compaction", revision=revision, physical=True)
"""


class Cluster:
    """A cluster that exists.

    Args:
        config: the kubeconfig.

    Attributes:
        kubeconfig: its path, for KUBECONFIG.
    """

    def __init__(self, config: Path) -> None:
        self.kubeconfig = config

    def kubectl(self, *words: str, text: str | None = None) -> str:
        """Run kubectl to its end; what it prints.

        Args:
            text: its standard input.

        Raises:
            RuntimeError: it ended otherwise than with 0; the message has what it said.
        """
        done = subprocess.run(
            [*self._kubectl(), f"--kubeconfig={self.kubeconfig}", *words],
            input=text if text is not None else "",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *documents: dict[str, Any]) -> None:
        """Create or change objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", "-f", "-", text=json.dumps(listed))

    def get(self, *words: str) -> dict[str, Any]:
        """An object, or a list of them, as ``kubectl get`` names them."""
        found: dict[str, Any] = json.loads(self.kubectl("get", "-o", "json", *words))
        return found

    def account(
        self,
        path: Path,
        name: str,
        rules: list[dict[str, list[str]]],
        *,
        namespace: str = "default",
        seconds: int = 3600,
    ) -> None:
        """Make a service account with exactly these rights in its namespace, and write its kubeconfig, 0600.

        Args:
            path: of the kubeconfig.
            rules: those of a Role: apiGroups, resources, verbs.
            seconds: how long its token is good; the API server takes no fewer than 600.
        """
        group = "rbac.authorization.k8s.io"
        metadata = {"name": name, "namespace": namespace}
        self.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
            {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
            {
                "apiVersion": f"{group}/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
                "subjects": [{"kind": "ServiceAccount", **metadata}],
            },
        )
        token = self.kubectl("create", "token", name, "-n", namespace, f"--duration={seconds}s").strip()
        seen = json.loads(self.kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json"))
        seen["users"] = [{"name": seen["contexts"][0]["context"]["user"], "user": {"token": token}}]
        seen["contexts"][0]["context"]["namespace"] = namespace
        path.touch(0o600)
        path.write_text(json.dumps(seen, indent=1))

    def _kubectl(self) -> list[str]:
        on_path = find("kubectl")
        return [on_path] if on_path else [str(building.kubernetes()), "kubectl"]


class OwnCluster(Cluster):
    """The cluster of a name, on this machine, up or down.

    Args:
        name: clusters of different names do not meet. ``SHUNTER_TEST_CLUSTER``, or ``default``.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or os.environ.get("SHUNTER_TEST_CLUSTER") or "default"
        if not re.fullmatch(r"[a-z0-9-]{1,30}", self.name):
            raise CannotHaveCluster(f"a cluster's name is 1 to 30 of a-z, 0-9 and -, not {self.name!r}")
        self.folder = cache.folder() / "clusters" / self.name
        self.machine = Machine(self.folder)
        super().__init__(self.folder / "credentials" / "admin.kubeconfig")

    @property
    def is_up(self) -> bool:
        """Whether it was brought up to the end, and still runs (though a program of it may be stopped)."""
        return (self.folder / "up").exists() and self.machine.running()

    def up(self, *, install: bool = False) -> None:
        """Bring it up, or see that it is: every program well, the node ready. What was stopped is started.

        Args:
            install: what is missing of Debian's packages may be installed.

        Raises:
            CannotHaveCluster: this machine cannot have it; the message says what to do.
            RuntimeError: a program does not become well; the message has the end of its log.
        """
        provide(install=install)
        with cache.locked("clusters"):
            if not self.is_up:
                self._rise(building.kubernetes())
            self.start(*self._programs())
            self._wait_for_node()

    def down(self) -> None:
        """End everything and remove what it left. Twice is harmless."""
        with cache.locked("clusters"):
            self.machine.end()

    def start(self, *names: str) -> None:
        """Start programs, where they do not run, and wait until they are well."""
        starting = {name: self._program(name) for name in names}
        for name, program in starting.items():
            self.machine.ask("start", name, program.argv)
        self.wait_until_well(*names)

    def wait_until_well(self, *names: str) -> None:
        """Wait until programs say that they are well, whoever started them.

        Raises:
            RuntimeError: one does not, in START_LIMIT; the message has the end of its log.
        """
        for name in names:
            self._wait_until_well(name, self._program(name))

    def stop(self, name: str) -> None:
        """Kill a program; it stays away until it is started. What it started goes on."""
        self._program(name)
        self.machine.ask("stop", name)

    def kill(self, name: str) -> None:
        """Kill a program; it is started again at once, and this does not wait for it."""
        self._program(name)
        self.machine.ask("kill", name)

    def status(self) -> dict[str, dict[str, Any]]:
        """What runs: ``pid`` (as the cluster counts), ``wanted``, ``starts`` of each program."""
        return self.machine.ask("list")

    def load_image(self, archive: Path) -> None:
        """Give the node the images of a ``docker save`` or OCI archive; pods can use them at once."""
        engine = str(self.folder / "containerd.socket")
        into = ["ctr", f"--address={engine}", "--namespace=k8s.io", "images", "import"]
        for name in re.findall(r"^unpacking (\S+)", self.machine.command(*into, str(archive)), re.MULTILINE):
            self.machine.command(self._kubernetes(), "image", engine, name)

    def add_fake_nodes(self, count: int) -> None:
        """Have at least so many nodes that are not there, see ``fake_nodes.py``; the pods on them run until told to end.

        Raises:
            CannotHaveCluster: kwok cannot be built.
        """
        self._run_kwok(ending=False)
        self.apply(*(fake_nodes.node(number) for number in range(count)))
        names = [f"node/fake-{number}" for number in range(count)]
        self.kubectl("wait", "--for=condition=Ready", *names, f"--timeout={START_LIMIT:.0f}s")

    def end_fake_pods(self) -> None:
        """Let all pods on fake nodes end, and all that come, until :meth:`add_fake_nodes` is called again."""
        self._run_kwok(ending=True)

    def remove_fake_nodes(self) -> None:
        """Have none any more; the pods that were on them go, too."""
        self.kubectl(
            "delete", "pods", "-A", "--field-selector=spec.nodeName!=" + NODE, "--force", "--grace-period=0"
        )
        self.kubectl("delete", "nodes", "-l", fake_nodes.FAKE)
        kept = self._programs()
        self.stop("kwok")
        self._keep({name: one for name, one in kept.items() if name != "kwok"})

    def _run_kwok(self, *, ending: bool) -> None:
        kwok = fake_nodes.program(self.folder, building.kwok(), self.machine.address, ending=ending)
        known = self._programs()
        self._keep({**known, "kwok": kwok})
        if "kwok" in known:
            self.stop("kwok")
        self.start("kwok")

    def compact(self) -> None:
        """Let the cluster's store forget all that was before: whoever wants to go on from there is told so (410)."""
        self.machine.command(sys.executable, "-c", _COMPACT)

    def log(self, name: str) -> str:
        """What a program has said since the cluster came up."""
        return (self.folder / "logs" / name).read_text(errors="replace")

    def _rise(self, binary: Path) -> None:
        ready_images = [images.pause(), images.python()]
        self.machine.end()
        try:
            self.machine.start()
            address = self.machine.address
            credentials.write(self.folder / "credentials", address, API_SERVICE, NODE)
            found = programs(self.folder, binary, address, self.machine.cgroup)
            self._keep(found)
            self.start("containerd")
            with ThreadPoolExecutor() as beside:
                loading = [beside.submit(self.load_image, archive) for archive in ready_images]
                self.start("etcd", "apiserver")
                self.apply(*services.documents(address))
                for one in loading:
                    one.result()
            self.start(*found)
            self._wait_for_node()
        except BaseException:
            self._keep_logs()
            self.machine.end()
            raise
        (self.folder / "up").touch()

    def _keep(self, found: dict[str, Program]) -> None:
        kept = {name: {"argv": one.argv, "health": one.health} for name, one in found.items()}
        (self.folder / "programs.json").write_text(json.dumps(kept, indent=1))

    def _programs(self) -> dict[str, Program]:
        kept = json.loads((self.folder / "programs.json").read_text())
        return {name: Program(**one) for name, one in kept.items()}

    def _program(self, name: str) -> Program:
        known = self._programs()
        if name not in known:
            raise ValueError(f"no program {name!r} in a cluster: there are {', '.join(known)}")
        return known[name]

    def _wait_until_well(self, name: str, program: Program) -> None:
        """Ask until it says so; how long to pause between is no matter of truth here."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            said = self._ask_health(name, program)
            if not said:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{name} is not well {START_LIMIT:.0f} s after its start: {said}\n{self.log(name)[-3000:]}"
                )
            time.sleep(0.05)

    def _ask_health(self, name: str, program: Program) -> str:
        """What speaks against it; nothing, if it is well."""
        if self.status()[name]["pid"] == 0:
            return "it does not run"
        try:
            if program.health.startswith("https:"):
                # No secret is sent, and some make a certificate of their own at each start.
                context = ssl._create_unverified_context()
                urllib.request.urlopen(program.health, timeout=5, context=context).close()
            elif program.health.startswith("http:"):
                urllib.request.urlopen(program.health, timeout=5).close()
            elif program.health:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(program.health)
        except urllib.error.HTTPError as error:
            with error:
                return f"{error}: {error.read().decode(errors='replace')}"
        except OSError as error:
            return str(error)
        return ""

    def _wait_for_node(self) -> None:
        limit = f"--timeout={START_LIMIT:.0f}s"
        self.kubectl("wait", "--for=create", f"node/{NODE}", limit)
        self.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", limit)
        self.kubectl("wait", "--for=create", "serviceaccount/default", limit)

    def _kubectl(self) -> list[str]:
        return [self._kubernetes(), "kubectl"]

    def _kubernetes(self) -> str:
        return self._programs()["apiserver"].argv[0]

    def _keep_logs(self) -> None:
        """Of a cluster that did not come up, which is removed."""
        logs = self.folder / "logs"
        if logs.exists():
            kept = cache.folder() / f"failed-{self.name}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(logs, kept)
            print(f"the cluster did not come up; its logs are in {kept}", flush=True)


def named_by_environment() -> Cluster | None:
    """The cluster of ``KUBECONFIG``, if that is set."""
    config = os.environ.get("KUBECONFIG")
    return Cluster(Path(config).resolve()) if config else None
