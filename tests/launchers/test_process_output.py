"""Output, results and memory of the process launcher."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_work_pools.contracts.deployments import RESULT_LIMIT
from tests.launchers.attempts import Attempt, ended, output, shell

Attempts = Callable[..., Attempt]
MEGABYTE = 1 << 20


async def test_both_streams_are_in_their_true_order(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(shell("for n in 1 2 3 4 5 6 7 8 9; do echo out $n; echo err $n >&2; done"))
    handle = await attempt.start(processes)
    await ended(processes, handle)
    wanted = "".join(f"out {n}\nerr {n}\n" for n in range(1, 10))
    assert await output(processes, handle) == wanted.encode()


async def test_every_byte_there_is(attempts: Attempts, processes: ProcessLauncher) -> None:
    attempt = attempts(
        [sys.executable, "-c", "import os; [os.write(1, bytes(range(256))) for _ in range(100)]"]
    )
    handle = await attempt.start(processes)
    assert (await ended(processes, handle)).log_size == 25_600
    assert await output(processes, handle) == bytes(range(256)) * 100


async def test_much_output_costs_no_memory_and_blocks_nobody(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    total = 300 * MEGABYTE
    script = f"""
import os
block = b"0123456789abcdef" * 65536
for _ in range({total // MEGABYTE}): os.write(1, block)
print(flush=True)
import time; time.sleep(1000)
"""
    attempt = attempts([sys.executable, "-c", script])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handle = await attempt.start(processes)
    read = 0
    while read < total + 1:  # nobody reads ahead of it, and it waits for nobody
        read += len(await processes.read_output(handle, read, MEGABYTE))
    keeper = Path(f"/proc/{attempt.record.keeper}/status").read_text()
    assert _kilobytes(keeper, "VmHWM") < 12 * 1024
    await processes.stop(handle, 5)
    end = await ended(processes, handle)
    assert end.log_size == total + 1
    assert end.max_rss_bytes is not None
    assert end.max_rss_bytes < 40 * MEGABYTE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
    os.unlink(attempt.folder / "output")


def _kilobytes(status: str, name: str) -> int:
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name + ":"))


async def test_a_forker_is_small_and_a_keeper_shares_its_memory(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    await processes.check()
    forker = Path(f"/proc/{processes.forker_pid}/status").read_text()
    assert _kilobytes(forker, "VmRSS") <= 12 * 1024
    attempt = attempts(shell("exec sleep 1000"))
    handle = await attempt.start(processes)
    keeper = Path(f"/proc/{attempt.record.keeper}/smaps_rollup").read_text()
    assert _kilobytes(keeper, "Rss") <= 12 * 1024
    assert _kilobytes(keeper, "Private_Dirty") <= 2.5 * 1024
    await processes.stop(handle, 0)
    await ended(processes, handle)


async def test_a_burst_holds_no_descriptors(attempts: Attempts, processes: ProcessLauncher) -> None:
    await attempts(["/bin/true"]).run(processes)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await attempts(["/bin/true"]).run(processes)
    assert len(os.listdir("/proc/self/fd")) == before
    forker = os.listdir(f"/proc/{processes.forker_pid}/fd")
    assert len(forker) == 4  # three standard streams and the socket


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b"{", "not JSON"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[1, -Infinity]", "-Infinity is not a JSON number"),
        (b"1e999", "too large"),
        (b"9" * 5000, "not JSON"),
        ('"ä"'.encode("latin-1"), "not UTF-8"),
        (b'"\\ud800"', "not UTF-8"),
        (b"[" * 200 + b"]" * 200, "nested deeper"),
        (b"[" * 30_000 + b"]" * 30_000, "nested deeper"),
        (b'"' + b"x" * RESULT_LIMIT + b'"', f"more than the {RESULT_LIMIT}"),
    ],
)
async def test_a_result_that_cannot_be_kept(
    attempts: Attempts, processes: ProcessLauncher, tmp_path: Path, content: bytes, text: str
) -> None:
    (tmp_path / "result").write_bytes(content)
    end = await attempts(shell('cp "$1" "$SHUNTER_RESULT"', str(tmp_path / "result"))).run(processes)
    assert end.exit_code == 0
    assert end.error is None
    assert end.result is None
    assert end.message is not None
    assert text in end.message


async def test_the_largest_result(attempts: Attempts, processes: ProcessLauncher, tmp_path: Path) -> None:
    (tmp_path / "result").write_bytes(b'"' + b"x" * (RESULT_LIMIT - 2) + b'"')
    end = await attempts(shell('cp "$1" "$SHUNTER_RESULT"', str(tmp_path / "result"))).run(processes)
    assert end.result == "x" * (RESULT_LIMIT - 2)
    assert end.message is None


async def test_a_pipe_in_the_place_of_the_result(attempts: Attempts, processes: ProcessLauncher) -> None:
    end = await attempts(shell('mkfifo "$SHUNTER_RESULT"')).run(processes)
    assert end.exit_code == 0
    assert end.message is not None
    assert "not a regular file" in end.message


async def test_a_fault_of_its_own_and_a_kill_from_outside(
    attempts: Attempts, processes: ProcessLauncher
) -> None:
    import signal

    crashed = await attempts([sys.executable, "-c", "import ctypes; ctypes.string_at(0)"]).run(processes)
    assert (crashed.exit_code, crashed.signal) == (None, "SIGSEGV")
    handle = await attempts(shell("exec sleep 1000")).start(processes)
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGKILL)
    killed = await ended(processes, handle)
    assert (killed.exit_code, killed.signal, killed.oom) == (None, "SIGKILL", False)
    handle = await attempts(shell("exec sleep 1000")).start(processes)
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGRTMIN + 3)
    assert (await ended(processes, handle)).signal == "SIGRTMIN+3"
