"""A server and agents as processes, on this machine or, with a prefix, on one of a test's own network."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.networks.own_networks import child_of

TOKEN = "a-token-of-the-tests"
_SERVE = "import json, sys; from shunter_work_pools.server import serve; serve(json.loads(sys.argv[1]))"


@dataclass
class Machine:
    """Something that runs.

    Attributes:
        log: the file of what it says.
        since: bytes that others had written there before.
        elsewhere: it was started by a program that went to another namespace for it.
    """

    process: subprocess.Popen[bytes]
    log: Path
    since: int = 0
    elsewhere: bool = False

    def said(self) -> str:
        """All that it said."""
        return self.log.read_bytes()[self.since :].decode("utf-8", "replace")

    def waits_for(self, text: str, count: int = 1, seconds: float = 30.0) -> str:
        """Until it has said this so often; all that it said."""
        deadline = time.monotonic() + seconds
        while (said := self.said()).count(text) < count:
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, f"it does not say {text!r}: {said}"
            time.sleep(0.02)
        return said

    def stop(self, seconds: float = 20.0) -> int:
        """Ask it to end; its exit code."""
        if self.process.poll() is None:
            os.kill(child_of(self.process.pid) if self.elsewhere else self.process.pid, signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self.process.wait()


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a process: nothing of ours but its home, token, and ``more``."""
    ours = ("SHUNTER_", "HTTP_", "HTTPS_", "NO_PROXY", "ALL_PROXY", "SSL_CERT")
    env = {name: value for name, value in os.environ.items() if not name.upper().startswith(ours)}
    home.mkdir(parents=True, exist_ok=True)
    return env | {"SHUNTER_HOME": str(home), "SHUNTER_TOKEN": TOKEN} | dict(more or {})


def start(prefix: Sequence[str], words: Sequence[str], env: Mapping[str, str], log: Path) -> Machine:
    """A process that says what it says into a file."""
    with log.open("ab") as file:
        since = file.tell()
        process = subprocess.Popen(
            [*prefix, *words], env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    return Machine(process, log, since, elsewhere=bool(prefix))


@contextlib.contextmanager
def server(
    home: Path,
    flags: Mapping[str, object],
    *,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[tuple[Machine, str]]:
    """A server that serves, and its URL as it says it.

    Args:
        flags: settings; without a port it takes a free one.
        prefix: words before its command.
    """
    given = json.dumps({"server.port": "0", **flags})
    one = start(
        prefix,
        [sys.executable, "-c", _SERVE, given],
        environment(home, env),
        home.parent / f"{home.name}.log",
    )
    try:
        said = one.waits_for('"event": "serving"')
        line = next(line for line in said.splitlines() if '"event": "serving"' in line)
        yield one, json.loads(line)["url"]
    finally:
        one.stop()


@contextlib.contextmanager
def agent(
    home: Path, pool: str, name: str, *, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Iterator[Machine]:
    """An agent, drained at the end."""
    words = [sys.executable, "-m", "shunter_agents", "--pool", pool, "--name", name]
    one = start(prefix, words, environment(home, env), home / f"{name}.log")
    try:
        yield one
    finally:
        one.stop()
