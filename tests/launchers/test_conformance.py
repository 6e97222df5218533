"""What every launcher must do, run against each: the words of the contract, one test per promise."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from shunter_infrastructure.launcher import Launcher, LauncherUnavailable, LaunchFailed
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import Attempt, Engine, ended, output, written
from tests.patience import SOON

Attempts = Callable[..., Attempt]
NewLauncher = Callable[[], Launcher]


def test_it_is_a_launcher(engine: Engine) -> None:
    launcher = engine.launcher()
    assert isinstance(launcher, Launcher)
    assert launcher.name == engine.name
    assert launcher.capabilities.merged_output is engine.merged


async def test_check_finds_an_engine_that_works(launcher: Launcher) -> None:
    await launcher.check()


@pytest.mark.parametrize("code", [0, 1, 3, 137, 255])
async def test_exit_codes_are_exact(
    launcher: Launcher, engine: Engine, attempts: Attempts, code: int
) -> None:
    found = await attempts(engine.command(exit=code)).run(launcher)
    signal = "SIGKILL" if code == 137 and not launcher.capabilities.exact_signal else None
    assert (found.exit_code, found.signal, found.error, found.oom) == (code, signal, None, False)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
async def test_signals_are_named(launcher: Launcher, engine: Engine, attempts: Attempts, name: str) -> None:
    """From an exit code it can only be inferred: then that is there as well, and the message says so."""
    found = await attempts(engine.command(signal=name)).run(launcher)
    assert found.signal == name
    if launcher.capabilities.exact_signal:
        assert found.exit_code is None
    else:
        assert found.exit_code == 128 + signal.Signals[name]
        assert f"is taken for {name}" in (found.message or "")


async def test_the_moments_of_start_and_end(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    handle = await attempts(engine.command(sleep=0.2)).start(launcher)
    found = await ended(launcher, handle)
    assert handle.started is not None
    assert 0.19 - engine.tick < found.ended.ticks - handle.started.ticks < 5
    assert bool(handle.pid) is engine.pids


async def test_output_is_read_in_pieces(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    text = "first line\nzweite Zeile: ä€\n" + "x" * 1000
    handle = await attempts(engine.command(output=text)).start(launcher)
    found = await ended(launcher, handle)
    data = text.encode()
    assert await output(launcher, handle) == data
    assert found.log_size == len(data)
    assert await launcher.read_output(handle, 6, 4) == data[6:10]
    assert await launcher.read_output(handle, len(data), 10) == b""
    assert await launcher.read_output(handle, len(data) + 5, 10) == b""


async def test_the_file_of_output_is_below_its_folder_or_there_is_none(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    """The agent makes holes in it: it must be this attempt's, and hold its output at the same offsets."""
    handle = await attempts(engine.command(output="first line\n")).start(launcher)
    await ended(launcher, handle)
    file = launcher.output_file(handle)
    if file is not None:
        assert file.is_relative_to(handle.folder)
        assert file.read_bytes() == b"first line\n"


async def test_output_is_there_while_it_runs(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    handle = await attempts(engine.command(output="alive\n", hang=True)).start(launcher)
    assert await written(launcher, handle, b"alive") == b"alive\n"
    await launcher.stop(handle, 0)
    await ended(launcher, handle)


@pytest.mark.parametrize("value", [{"rows": [1, 2.5, None]}, "text", 0, False, []])
async def test_the_result(launcher: Launcher, engine: Engine, attempts: Attempts, value: Any) -> None:
    found = await attempts(engine.command(result=value)).run(launcher)
    assert found.result == value
    assert found.message is None


async def test_no_result(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    found = await attempts(engine.command()).run(launcher)
    assert found.result is None
    assert found.message is None


async def test_starting_twice_finds_the_first(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    attempt = attempts(engine.command(hang=True))
    first = await attempt.start(launcher)
    assert await attempt.start(launcher) == first
    await launcher.stop(first, 0)
    await ended(launcher, first)
    assert await attempt.start(launcher) == first


async def test_starting_at_the_same_time_starts_once(
    new_launcher: NewLauncher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command(hang=True))
    one, other = new_launcher(), new_launcher()
    handles = await asyncio.gather(*(attempt.start(each) for each in (one, other, one, other)))
    assert all(handle == handles[0] for handle in handles)
    await other.stop(handles[0], 0)
    await ended(one, handles[0])


async def test_recover_before_any_start(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    attempt = attempts(engine.command(exit=4))
    assert await attempt.recover(launcher) is None
    assert (await attempt.run(launcher)).exit_code == 4


async def test_another_launcher_recovers_it(
    new_launcher: NewLauncher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command(output="whole", sleep=0.3, exit=7))
    first = new_launcher()
    handle = await attempt.start(first)
    await first.close()
    second = new_launcher()
    found = await attempt.recover(second)
    assert found == handle
    assert (await ended(second, handle)).exit_code == 7
    assert await output(second, handle) == b"whole"


async def test_it_is_recovered_after_its_end(
    new_launcher: NewLauncher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command(output="whole", exit=5, result={"a": 1}))
    first = new_launcher()
    end = await attempt.run(first)
    await first.close()
    second = new_launcher()
    handle = await attempt.recover(second)
    assert handle is not None
    assert await ended(second, handle) == end


async def test_the_end_can_be_had_again_and_by_many(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    handle = await attempts(engine.command(sleep=0.1, exit=3)).start(launcher)
    ends = await asyncio.gather(*(ended(launcher, handle) for _ in range(5)))
    ends.append(await ended(launcher, handle))
    assert all(end == ends[0] for end in ends)
    assert ends[0].exit_code == 3


async def test_a_waiter_that_is_cancelled_disturbs_no_other(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    handle = await attempts(engine.command(sleep=0.3, exit=3)).start(launcher)
    impatient = asyncio.create_task(launcher.wait(handle))
    patient = asyncio.create_task(ended(launcher, handle))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert (await patient).exit_code == 3


async def test_stop_asks_first(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    handle = await attempts(engine.command(output="up\n", hang=True)).start(launcher)
    await written(launcher, handle, b"up")
    began = time.monotonic()
    await launcher.stop(handle, 60)
    assert (await ended(launcher, handle)).signal == "SIGTERM"
    assert time.monotonic() - began < 10


async def test_stop_makes_it_end_after_the_grace(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    handle = await attempts(engine.command(output="up\n", hang=True, ignore_term=True)).start(launcher)
    await written(launcher, handle, b"up")
    began = time.monotonic()
    await launcher.stop(handle, 0.4)
    assert (await ended(launcher, handle)).signal == "SIGKILL"
    assert 0.4 <= time.monotonic() - began < 10


async def test_no_grace_is_no_grace(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    handle = await attempts(engine.command(output="up\n", hang=True)).start(launcher)
    await written(launcher, handle, b"up")
    await launcher.stop(handle, 0)
    ends = {"SIGKILL"} if not engine.least_grace else {"SIGTERM", "SIGKILL"}
    assert (await ended(launcher, handle)).signal in ends


@pytest.mark.parametrize("graces", [(60, 0), (60, 0.2), (0.2, 60), (60, 0.2, 60)])
async def test_the_shortest_grace_counts(
    launcher: Launcher, engine: Engine, attempts: Attempts, graces: tuple[float, ...]
) -> None:
    handle = await attempts(engine.command(output="up\n", hang=True, ignore_term=True)).start(launcher)
    await written(launcher, handle, b"up")
    for grace in graces:
        await launcher.stop(handle, grace)
    assert (await ended(launcher, handle)).signal == "SIGKILL"


async def test_another_launcher_stops_it(
    new_launcher: NewLauncher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command(output="up\n", hang=True))
    one, other = new_launcher(), new_launcher()
    handle = await attempt.start(one)
    await written(one, handle, b"up")
    waiting = asyncio.create_task(ended(one, handle))
    await asyncio.sleep(0)
    found = await attempt.recover(other)
    assert found is not None
    await other.stop(found, 60)
    assert (await waiting).signal == "SIGTERM"


async def test_stop_after_the_end_changes_nothing(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    handle = await attempts(engine.command(exit=3)).start(launcher)
    end = await ended(launcher, handle)
    await launcher.stop(handle, 0)
    assert await ended(launcher, handle) == end


async def test_what_cannot_be_started_says_so_each_time(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    """At the start, or, where only the engine finds it out, as the end."""
    attempt = attempts(engine.broken_command())
    for _ in range(2):
        try:
            found = await attempt.run(launcher)
            cause, text = found.error, found.message or ""
        except LaunchFailed as exc:
            cause, text = exc.cause, exc.detail
        assert cause is Cause.START_FAILED
        assert "/no/such/program" in text


async def test_many_at_once(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    made = [attempts(engine.command(output=f"{n}", exit=n)) for n in range(engine.many)]
    ends = await asyncio.gather(*(attempt.run(launcher) for attempt in made))
    assert [end.exit_code for end in ends] == list(range(engine.many))


async def test_close_lets_the_work_go_on_and_tells_who_waits(
    new_launcher: NewLauncher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command(output="up\n", hang=True))
    first = new_launcher()
    handle = await attempt.start(first)
    waiting = asyncio.create_task(first.wait(handle))
    await written(first, handle, b"up")
    await first.close()
    with pytest.raises(LauncherUnavailable):
        await asyncio.wait_for(waiting, SOON)
    second = new_launcher()
    await second.stop(handle, 60)
    assert (await ended(second, handle)).signal == "SIGTERM"


async def test_cleanup_after_the_end(launcher: Launcher, engine: Engine, attempts: Attempts) -> None:
    handle = await attempts(engine.command()).start(launcher)
    await ended(launcher, handle)
    await launcher.cleanup(handle)
    await launcher.cleanup(handle)


async def test_an_exclusive_attempt_without_a_lease_is_not_started(
    launcher: Launcher, engine: Engine, attempts: Attempts
) -> None:
    attempt = attempts(engine.command())
    attempt.assignment = attempt.assignment.model_copy(update={"exclusive": True})
    with pytest.raises(ValueError, match="lease"):
        await attempt.start(launcher)
    assert await attempt.recover(launcher) is None
