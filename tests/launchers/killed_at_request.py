"""An agent that dies by SIGKILL at a request to the API server: before it is sent, while it is on its way, or after.

``python killed_at_request.py before:create|during:create|after:create|... [arguments of shunter_agents]``
"""

from __future__ import annotations

import asyncio
import os
import runpy
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from shunter_infrastructure.kubernetes.client import Answer, Client

#: The requests that begin and end a Job, in order: method and what its path has.
REQUESTS = {
    "list": ("GET", "/jobs"),
    "create": ("POST", "/jobs"),
    "log": ("GET", "/log"),
    "delete": ("DELETE", "/jobs"),
}
TIMES = ("before", "during", "after")


def die() -> None:
    """Die as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def is_meant(wanted: tuple[str, str], method: str, path: str) -> bool:
    """Whether a request is the one to die at."""
    return method == wanted[0] and wanted[1] in path


def dying_call(when: str, wanted: tuple[str, str], call: Callable[..., Any]) -> Callable[..., Any]:
    """:meth:`Client.call`, at which this process dies."""

    async def patched(self: Client, method: str, path: str, *args: Any, **more: Any) -> Any:
        if not is_meant(wanted, method, path):
            return await call(self, method, path, *args, **more)
        if when == "before":
            die()
        task = asyncio.ensure_future(call(self, method, path, *args, **more))
        await asyncio.wait({task}, timeout=0.003 if when == "during" else None)
        return die()

    return patched


def dying_stream(when: str, wanted: tuple[str, str], stream: Callable[..., Any]) -> Callable[..., Any]:
    """:meth:`Client.stream`, at which this process dies; during: with the first piece."""

    @asynccontextmanager
    async def patched(self: Client, path: str, *args: Any, **more: Any) -> AsyncIterator[Answer]:
        meant = is_meant(wanted, "GET", path)
        if meant and when == "before":
            die()
        async with stream(self, path, *args, **more) as answer:
            if meant and when == "during":
                async for _ in answer.pieces():
                    die()
            yield answer
        if meant:
            die()

    return patched


if __name__ == "__main__":
    point, _, request = sys.argv.pop(1).partition(":")
    which: Mapping[str, tuple[str, str]] = REQUESTS
    setattr(Client, "call", dying_call(point, which[request], Client.call))  # noqa: B010
    setattr(Client, "stream", dying_stream(point, which[request], Client.stream))  # noqa: B010
    runpy.run_module("shunter_agents", run_name="__main__", alter_sys=True)
