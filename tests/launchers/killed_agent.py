"""An agent that dies by SIGKILL at a call to the Docker engine: before it is sent, while it is on its way, or after.

``python killed_agent.py before:create|during:create|after:create|... [arguments of shunter_agents]``
"""

from __future__ import annotations

import functools
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import docker

#: The calls that begin and end a container, in order, by the names of ``docker.APIClient``.
CALLS = {
    "create": "create_container_from_config",
    "put": "put_archive",
    "connect": "connect_container_to_network",
    "start": "start",
    "inspect": "inspect_container",
    "fetch": "get_archive",
    "remove": "remove_container",
}
POINTS = [f"{when}:{call}" for call in CALLS for when in ("before", "during", "after")]


def die() -> None:
    """Die as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying(when: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, at which this process dies."""

    @functools.wraps(method)
    def patched(*args: Any, **options: Any) -> Any:
        if when == "before":
            die()
        if when == "during":
            threading.Timer(0.01, die).start()  # the request is with the engine, its answer not here
        try:
            return method(*args, **options)
        finally:
            die()

    return patched


if __name__ == "__main__":
    when, _, call = sys.argv.pop(1).partition(":")
    name = CALLS[call]
    setattr(docker.APIClient, name, dying(when, getattr(docker.APIClient, name)))
    runpy.run_module("shunter_agents", run_name="__main__", alter_sys=True)
