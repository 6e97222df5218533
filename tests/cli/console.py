"""The ``shunter`` command as a subprocess, in a home and with a server of the test's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.patience import SOON

#: The installed command, as people call it.
SHUNTER = str(Path(sys.executable).with_name("shunter"))


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Console:
    """A terminal with its environment and folder."""

    env: dict[str, str]
    folder: Path

    def __call__(self, *words: str, input: bytes | None = None, timeout: float = 60) -> Done:
        """Run ``shunter WORDS``."""
        return self.execute([SHUNTER, *words], input=input, timeout=timeout)

    def shell(self, line: str, timeout: float = 60) -> Done:
        """Run a line as a person types it."""
        return self.execute(["sh", "-c", line], timeout=timeout)

    def execute(self, words: list[str], *, input: bytes | None = None, timeout: float = 60) -> Done:
        done = subprocess.run(
            words,
            env=self.env,
            cwd=self.folder,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))

    def ok(self, *words: str, timeout: float = 60) -> Done:
        """Run ``shunter WORDS``, which must succeed."""
        done = self(*words, timeout=timeout)
        assert done.code == 0, f"shunter {' '.join(words)} -> {done.code}\n{done.err}\n{done.text}"
        return done

    def spawn(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start ``shunter WORDS`` and leave it running."""
        return subprocess.Popen(
            [SHUNTER, *words], env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, **more
        )

    def having(self, **env: str) -> Console:
        """The same terminal with other variables; an empty one is unset."""
        merged = {key: value for key, value in {**self.env, **env}.items() if value}
        return Console(merged, self.folder)


def console(
    home: Path, folder: Path, port: int, cache: Path, more: Mapping[str, str] | None = None
) -> Console:
    """A terminal whose server is to be found at ``port``.

    Args:
        cache: where compiled modules are kept, so that each call does not compile them again.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith("SHUNTER_")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env |= {
        "SHUNTER_HOME": str(home),
        "SHUNTER_API_URL": f"http://127.0.0.1:{port}/api",
        "PYTHONPYCACHEPREFIX": str(cache),
        "PATH": f"{Path(SHUNTER).parent}:{env.get('PATH', '/usr/bin:/bin')}",
        "TZ": "UTC",
    }
    folder.mkdir(parents=True, exist_ok=True)
    return Console(env | dict(more or {}), folder)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process that was started with this home, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SHUNTER_HOME") == str(home) or str(home) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def until(condition: Any, seconds: float = SOON) -> Any:
    """What ``condition`` returns once it is true.

    Raises:
        TimeoutError: it did not become so.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} was not true within {seconds} seconds")
        time.sleep(0.05)


@dataclass
class Live:
    """A server with a pool ``default`` and an agent that serves it."""

    shunter: Console
    home: Path
    port: int
    server: subprocess.Popen[bytes]
    agent: subprocess.Popen[bytes] | None = None
    told: list[Path] = field(default_factory=list)


@contextmanager
def live_server(base: Path, cache: Path, *, agent: bool = True) -> Iterator[Live]:
    """Start a server and an agent; stop both at the end, and see that nothing of theirs is left.

    Raises:
        AssertionError: something is left.
    """
    home, port = base / "home", free_port()
    shunter = console(home, base / "folder", port, cache)
    logs = [base / "server.log", base / "agent.log"]
    with logs[0].open("wb") as out:
        server = shunter.spawn("server", "start", "--port", str(port), stdout=out, stderr=out)
    live = Live(shunter, home, port, server, told=logs)
    try:
        try:
            until(lambda: server.poll() is not None or shunter("pool", "list").code == 0)
            assert server.poll() is None, logs[0].read_text()
            shunter.ok("pool", "create", "default", "--type", "process")
            if agent:
                with logs[1].open("wb") as out:
                    words = ("agent", "start", "--pool", "default", "--name", "a1", "--limit", "8")
                    live.agent = shunter.spawn(*words, stdout=out, stderr=out)
                until(lambda: live.agent.poll() is not None or shunter("agent", "list", "-q").out)  # type: ignore[union-attr]
                assert live.agent.poll() is None, logs[1].read_text()
            yield live
        except BaseException:
            for log in logs:
                if log.exists():
                    print(f"--- {log.name}", log.read_text("utf-8", "replace")[-20_000:], sep="\n")
            raise
    finally:
        stop(live.agent)
        stop(live.server)
        left = _left(home)
        for process in left:
            process.kill()
        assert not left, f"left behind: {left}"


def stop(process: subprocess.Popen[bytes] | None, seconds: float = 30.0) -> None:
    """SIGTERM, and SIGKILL if that is not enough."""
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _left(home: Path) -> list[psutil.Process]:
    try:
        until(lambda: not processes_of(home), 10)
    except TimeoutError:
        return processes_of(home)
    return []
