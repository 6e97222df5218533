"""Helm on a cluster: releases of the charts, the terminal that people have there, and a server that is reached by port-forward."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from shunter_work_pools.client import Client
from tests.cli.console import SHUNTER, Console
from tests.cluster.cluster import Cluster

ROOT = Path(__file__).parents[2]
#: What people say, from nothing to a run; the page has them, too.
AGENT, SERVER = "helm/shunter-agent", "helm/shunter-server"
IMAGES = {AGENT: "localhost/shunter-agent", SERVER: "localhost/shunter-server"}
#: Of the charts' pods and of Helm, where nothing else is said: machines of tests are busy.
PATIENCE = "180s"


@dataclass
class Terminal:
    """A shell of somebody who has a cluster, in the repository's folder.

    Args:
        bin: its folder of programs: helm, kubectl.
    """

    cluster: Cluster
    bin: Path
    env: dict[str, str]

    def __call__(self, line: str, timeout: float = 300) -> str:
        """Run shell lines as they stand; what they print.

        Raises:
            RuntimeError: one ended otherwise than with 0; the message has what was said.
        """
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{line}\nexit code {done.returncode}\n{done.stderr}{done.stdout}")
        return done.stdout


def terminal(cluster: Cluster, helm: Path, folder: Path) -> Terminal:
    """A terminal whose ``helm`` is this one."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "helm").symlink_to(helm)
    kubectl = programs / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {shlex.join(cluster._kubectl())} "$@"\n')
    kubectl.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SHUNTER_", "HELM_"))}
    if name := os.environ.get("SHUNTER_TEST_CLUSTER"):
        env["SHUNTER_TEST_CLUSTER"] = name
    env |= {
        "PATH": f"{programs}:{Path(SHUNTER).parent}:{env['PATH']}",
        "KUBECONFIG": str(cluster.kubeconfig),
        "SHUNTER_HOME": str(folder / "home"),
        **{f"HELM_{kind}_HOME": str(folder / f"helm-{kind.lower()}") for kind in ("CACHE", "CONFIG", "DATA")},
        "MAKEFLAGS": "",
    }
    return Terminal(cluster, programs, env)


@dataclass
class Place:
    """A namespace of the cluster, and who installs there."""

    terminal: Terminal
    namespace: str

    def kubectl(self, *words: str, text: str | None = None) -> str:
        return self.terminal.cluster.kubectl("-n", self.namespace, *words, text=text)

    def get(self, *words: str) -> dict[str, Any]:
        return self.terminal.cluster.get("-n", self.namespace, *words)

    def helm(self, *words: str) -> str:
        return self.terminal(shlex.join(["helm", *words, "--namespace", self.namespace]))

    def install(
        self, release: str, chart: str, values: dict[str, Any], *more: str, wait: bool = True
    ) -> None:
        """Install a release, and wait until it is well."""
        self._set("install", release, chart, values, *more, *(["--wait"] if wait else []))

    def upgrade(self, release: str, chart: str, values: dict[str, Any], *more: str) -> None:
        """Change a release, and wait until it is well."""
        self._set("upgrade", release, chart, values, *more, "--wait")

    def _set(self, how: str, release: str, chart: str, values: dict[str, Any], *more: str) -> None:
        values = {"image": {"repository": IMAGES[chart]}} | values
        words = ["helm", how, release, chart, "--namespace", self.namespace, "--timeout", PATIENCE]
        line = shlex.join([*words, "--values", "/dev/stdin", *more])
        try:
            self.terminal(f"{line} <<'VALUES'\n{json.dumps(values)}\nVALUES")
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.told(release)}") from error

    def rendered(self, release: str, chart: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        """What a release would be, without hooks."""
        values = {"image": {"repository": IMAGES[chart]}} | values
        words = ["helm", "template", release, chart, "--namespace", self.namespace, "--no-hooks"]
        line = shlex.join([*words, "--values", "/dev/stdin"])
        text = self.terminal(f"{line} <<'VALUES'\n{json.dumps(values)}\nVALUES")
        return [dict(one) for one in YAML(typ="safe").load_all(text) if one]

    def told(self, release: str) -> str:
        """What is known of the pods of a release, for whoever has to find out why it is not well."""
        label = f"--selector=app.kubernetes.io/instance={release}"
        said = []
        for words in (
            ("get", "pods,jobs", "-o", "wide", label),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", label, "--all-containers", "--tail=60", "--prefix", "--ignore-errors"),
        ):
            with contextlib.suppress(RuntimeError):
                said.append(self.kubectl(*words))
        return "\n".join(said)

    def secret(self, name: str) -> dict[str, str]:
        """What a Secret has."""
        found = self.get("secret", name)["data"]
        return {key: base64.b64decode(value).decode() for key, value in found.items()}

    def pods(self, release: str) -> list[dict[str, Any]]:
        """Of a release; not those of its hooks, nor those that go already."""
        found = self.get("pods", "-l", f"app.kubernetes.io/instance={release}")["items"]
        return [one for one in found if "deletionTimestamp" not in one["metadata"]]

    @contextlib.contextmanager
    def port(self, service: str, port: int) -> Iterator[int]:
        """A port of this machine that leads to a service, by ``kubectl port-forward``."""
        words = [
            str(self.terminal.bin / "kubectl"),
            "-n",
            self.namespace,
            "port-forward",
            service,
            f":{port}",
        ]
        process = subprocess.Popen(
            words, env=self.terminal.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+) ->", line)
            assert found, f"port-forward says: {line}"
            yield int(found[1])
        finally:
            process.kill()
            process.communicate()

    @contextlib.contextmanager
    def reached(self, release: str = "server") -> Iterator[Reached]:
        """The server of a release, by port-forward and with its admin's token."""
        service = f"{release}-shunter-server"
        token = self.secret(service)["token"]
        with self.port(f"service/{service}", 4400) as port:
            url = f"http://127.0.0.1:{port}/api"
            env = self.terminal.env | {"SHUNTER_API_URL": url, "SHUNTER_TOKEN": token}
            with Client(url, token) as client:
                yield Reached(client, Console(env, ROOT), f"http://{service}.{self.namespace}:4400/api")


@dataclass
class Reached:
    """A server, for programs and for people.

    Attributes:
        inside: its address, as pods reach it.
    """

    client: Client
    shunter: Console
    inside: str
