"""The clock of an agent's machine and those of the cluster need not be the same."""

from __future__ import annotations

import time

import pytest

from tests.launchers.attempts import ended, shell, written
from tests.launchers.test_kubernetes_launcher import World, world

__all__ = ["world"]


async def test_a_clock_that_is_ahead_makes_no_node_silent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + 300)
    launcher = world.launcher()
    attempt = world.attempt(shell("trap '' TERM; echo up; while :; do sleep 0.1; done"), grace=60)
    handle = await attempt.start(launcher)
    await written(launcher, handle, b"up")
    await launcher.stop(handle, 3)
    end = await ended(launcher, handle)
    assert (end.exit_code, end.signal) == (137, "SIGKILL")
