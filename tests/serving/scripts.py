"""Scripts that serve, as processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.patience import SOON


@contextmanager
def script(one: Site, path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A script that serves, as soon as it says so; killed at the end with all that it has begun."""
    log = path.with_suffix(".log")
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, str(path), *words], env=one.env, cwd=path.parent,
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, text=True,
        )  # fmt: skip
    try:
        begun = log.read_text().count("Ctrl-C ends it")
        until(lambda: process.poll() is not None or log.read_text().count("Ctrl-C ends it") > begun)
        yield process
    finally:
        process.kill()
        process.wait()


def until(there: Callable[[], Any], seconds: float = SOON) -> Any:
    """What is found once there is something."""
    deadline = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def written(folder: Path, text: str, name: str = "script.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def started(one: Site, deployment: str, **parameters: Any) -> str:
    return str(one.client.create_run(RunRequest(deployment=deployment, parameters=parameters)).id)


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    return process.wait(30)
