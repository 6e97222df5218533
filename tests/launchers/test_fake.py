"""What only the fake launcher does: follow a script."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.launcher import LauncherUnavailable, LaunchFailed
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import Attempt

Attempts = Callable[..., Attempt]


async def test_ends_that_are_not_its_own(attempts: Attempts) -> None:
    launcher = FakeLauncher()
    lost = await attempts(["fake", "error=keeper_lost", "message=gone"]).run(launcher)
    assert (lost.error, lost.message, lost.exit_code) == (Cause.KEEPER_LOST, "gone", None)
    oom = await attempts(["fake", "signal=SIGKILL", "oom", "max_rss=5", "cpu=0.5"]).run(launcher)
    assert (oom.oom, oom.signal, oom.max_rss_bytes, oom.cpu_seconds) == (True, "SIGKILL", 5, 0.5)
    raised = await attempts(["fake", "exception=ValueError: no"]).run(launcher)
    assert (raised.exception, raised.exit_code, raised.message) == (True, 1, "ValueError: no")


async def test_starts_that_fail(attempts: Attempts) -> None:
    launcher = FakeLauncher()
    with pytest.raises(LaunchFailed, match="no code") as caught:
        await attempts(["fake", "start_error=no code", "start_cause=source"]).start(launcher)
    assert caught.value.cause is Cause.SOURCE
    attempt = attempts(["fake", "unavailable=2", "exit=3"])
    for _ in range(2):
        with pytest.raises(LauncherUnavailable):
            await attempt.start(launcher)
    assert (await attempt.run(launcher)).exit_code == 3
    launcher.away = "no engine"
    with pytest.raises(LauncherUnavailable, match="no engine"):
        await launcher.check()


async def test_a_word_that_is_not_known(attempts: Attempts) -> None:
    for word in ("exit", "nonsense", "oom=1", "sleep=long"):
        with pytest.raises(LaunchFailed):
            await attempts(["fake", word]).start(FakeLauncher())


async def test_scripts_by_deployment(attempts: Attempts) -> None:
    launcher = FakeLauncher(scripts={"hello": ["exit=9"]})
    assert (await attempts(["sh", "-c", "anything"]).run(launcher)).exit_code == 9
    assert [method for method, _ in launcher.calls] == ["start", "wait"]
