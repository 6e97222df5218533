"""Containers of a real Docker engine, by its command line: what people type."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from tests.cli.console import until

#: How strictly a container can be held. The network is the host's: the tests' engine has no other.
STRICT = (
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp"),
    *("--network=host", "--health-interval=1s"),
)


@dataclass
class Engine:
    """An engine; what is begun by it is gone after the tests.

    Attributes:
        url: where it listens.
        env: what its command line is to have, beside the usual.
    """

    url: str
    containers: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {"DOCKER_HOST": self.url}

    def attempt(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``docker WORDS`` to its end."""
        return subprocess.run(
            ["docker", *words],
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def __call__(self, *words: str, **env: str) -> str:
        """The same, which must succeed; what it printed on stdout."""
        done = self.attempt(*words, **env)
        assert done.returncode == 0, (
            f"docker {' '.join(words)} -> {done.returncode}\n{done.stderr}{done.stdout}"
        )
        return done.stdout.strip()

    def run(self, *words: str, **env: str) -> str:
        """``docker run --detach WORDS``; its id."""
        variables = [f"--env={name}={value}" for name, value in env.items()]
        made = self("run", "--detach", *variables, *words)
        self.containers.append(made)
        return made

    def volume(self) -> str:
        """The name of a new volume."""
        self.volumes.append(self("volume", "create", f"shunter-test-{uuid4().hex[:8]}"))
        return self.volumes[-1]

    def inside(self, container: str, *words: str) -> str:
        """What a command prints in a container that runs, as its user."""
        return self("exec", container, *words)

    def inspect(self, what: str) -> dict[str, Any]:
        """A container, an image, a volume."""
        found: list[dict[str, Any]] = json.loads(self("inspect", what))
        return found[0]

    def wait(self, container: str) -> int:
        """The exit code of a container that ends, or has."""
        return int(self("wait", container))

    def until_healthy(self, container: str) -> None:
        """Wait until the engine says so.

        Raises:
            AssertionError: it ended, or is not; the message has what it said.
        """
        try:
            until(lambda: self.inspect(container)["State"]["Health"]["Status"] == "healthy", 60)
        except TimeoutError:
            done = self.attempt("logs", container)
            raise AssertionError(f"{self.inspect(container)['State']}\n{done.stdout}{done.stderr}") from None

    def clear(self) -> None:
        """Remove what was begun."""
        for container in self.containers:
            self.attempt("rm", "--force", "--volumes", container)
        for volume in self.volumes:
            self("volume", "rm", "--force", volume)
