"""``shunter up``: server and agent in one, and nothing left of either."""

from __future__ import annotations

import signal
import subprocess

import psutil
import pytest

from tests.cli.console import Console, processes_of, stop, until
from tests.patience import SOON


def _up(alone: Console) -> subprocess.Popen[str]:
    process = alone.spawn("up", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if "Ctrl-C" in line:
            assert alone.env["SHUNTER_API_URL"] in shown  # the port is taken from there
            return process
    raise AssertionError(shown)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_it_runs_and_leaves_nothing(alone: Console, number: signal.Signals, code: int) -> None:
    process = _up(alone)
    try:
        alone.ok("deploy", "--name", "hello", "--", "echo", "hello")
        alone.ok("deploy", "--name", "hello", "--pool", "default", "--", "echo", "hello")
        assert alone("run", "start", "hello", "--watch").code == 0
        process.send_signal(number)
        assert process.wait(SOON) == code
        home = alone.folder.parent / "home"
        until(lambda: not processes_of(home), 20)
    finally:
        stop(process)


@pytest.mark.parametrize("which", ["server", "agent"])
def test_if_one_dies_the_other_is_stopped(alone: Console, which: str) -> None:
    process = _up(alone)
    try:
        children = psutil.Process(process.pid).children()
        (victim,) = [child for child in children if which in " ".join(child.cmdline()[1:])]
        victim.kill()
        out, _ = process.communicate(timeout=40)
        assert process.returncode == 1
        assert f"the {which} ended by itself (killed by SIGKILL)" in out
        until(lambda: not processes_of(alone.folder.parent / "home"), 20)
    finally:
        stop(process)
