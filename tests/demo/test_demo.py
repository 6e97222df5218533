"""The demonstration, played for real: what it prints, what it leaves, and that it leaves no process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.co2 import demo

pytest.importorskip("matplotlib", reason="the demo group is not installed: make install")
pytest.importorskip("statsmodels", reason="the demo group is not installed: make install")

SCRIPT = [sys.executable, str(demo.ROOT / "examples" / "co2" / "demo.py")]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    yield folder
    for pid in demo.processes_of(folder):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(180)
def test_the_demonstration_ends_by_itself_with_a_report(home: Path) -> None:
    with socket.socket() as taken:  # the port it likes best is in use
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 4400))
            taken.listen()
        except OSError:
            pass  # by somebody else: as good
        begun = time.monotonic()
        done = subprocess.run(
            [*SCRIPT, str(home)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=150
        )
        took = time.monotonic() - begun
    assert done.returncode == 0, done.stdout + done.stderr
    assert took < 120
    told = done.stdout
    # The table has both deployments; the run that failed at first shows its attempts.
    assert re.search(r"co2-report +Completed", told)
    assert re.search(r"co2-publish +Completed", told)
    assert re.search(r"attempt 1 +Failed \(exception\)", told)
    assert re.search(r"attempt \d+ +Completed", told)
    assert "report.html is not there yet" in told
    assert "is of the slot" in told
    # The graph of a run: steps beside each other have lines of their own. And its artifact.
    (graph,) = re.findall(r"run graph .*\n((?:.*\n)+?)\$ shunter run artifacts", told)
    assert re.match(r"co2-report +Completed +\d", graph), graph
    drawn = [line.split() for line in graph.splitlines()[1:] if "Completed" in line]
    steps = [next(word for word in words if word.isalpha()) for words in drawn]
    assert sorted(steps) == ["backtest", "clean", "decompose", "draw", "forecast", "load", "report"], graph
    assert (steps[0], steps[1], steps[-1]) == ("load", "clean", "report"), graph
    assert max(map(len, graph.splitlines())) <= 80, graph
    assert re.search(r"^1960s +0\.\d+ +10$", told, re.MULTILINE), told
    # The log of a run, the report and how to go on.
    assert "load: 2284 weeks, 1958-03-29 to 2001-12-29, 59 missing" in told
    report = home / "co2" / "report.html"
    assert str(report) in told
    assert "data:image/png;base64," in report.read_text()
    assert (home / "site" / "index.html").exists()
    assert f"SHUNTER_HOME={home}" in told
    assert demo.processes_of(home) == []


@pytest.mark.timeout(120)
def test_ctrl_c_leaves_nothing_running_and_the_next_one_starts_afresh(home: Path) -> None:
    process = subprocess.Popen(
        [*SCRIPT, str(home)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watchdog = threading.Timer(90, process.kill)  # it hangs
    watchdog.start()
    try:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "run wait" in line:  # both runs are under way
                process.send_signal(signal.SIGINT)
                break
        seen += process.stdout.readlines()
        assert process.wait() == 130, "".join(seen)
    finally:
        watchdog.cancel()
    assert demo.processes_of(home) == []
    (home / "left-from-before").touch()
    demo.fresh(home)
    assert [entry.name for entry in home.iterdir()] == [demo.MARK]


def test_a_folder_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(demo.Told, match="was not made by this demonstration"):
        demo.fresh(tmp_path)
    assert (tmp_path / "precious").exists()
