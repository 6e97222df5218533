"""What a real agent and a real server tell the service manager, and when they fall silent."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.service_manager import INTERVAL, Condition, ServiceManager
from tests.agents.real_server import Site
from tests.cli.console import free_port
from tests.patience import SOON
from tests.services.notifying import WATCHDOG, Listener, Message, daemon, ends

pytestmark = pytest.mark.timeout(120)

#: So long a loop may not come around in ``HANGING_AGENT`` and ``HANGING_SERVER``, seconds.
PATIENCE = 1.5
#: SIGUSR1: the main loop hangs while the event loop lives on; SIGUSR2: the event loop is blocked for 3 s.
_HANGING = f"""
import asyncio, signal, sys, time
from shunter_work_pools import service_manager
service_manager.PATIENCE = {PATIENCE}
hangs = []
signal.signal(signal.SIGUSR1, lambda *_: hangs.append(True))
signal.signal(signal.SIGUSR2, lambda *_: time.sleep(3))
"""
HANGING_AGENT = f"""{_HANGING}
from shunter_agents import daemon
from shunter_work_pools.contracts.configuration import load
daemon.HOLD_LIMIT = 0.3
sync = daemon.Agent._sync
async def _sync(self):
    if hangs:
        await asyncio.Event().wait()
    return await sync(self)
daemon.Agent._sync = _sync
sys.exit(daemon.run_agent(["default"], settings=load({{"agent.limit": 1}}), queues=[], tags=[], name=sys.argv[1]))
"""
HANGING_SERVER = f"""{_HANGING}
from shunter_work_pools import server
from shunter_work_pools.engine import Engine
reap = Engine._reap
async def _reap(self):
    if hangs:
        await asyncio.Event().wait()
    await reap(self)
Engine._reap = _reap
server.serve({{"server.port": sys.argv[1]}})
"""


def ready(message: Message) -> bool:
    return message.lines.get("READY") == "1"


def stopping(message: Message) -> bool:
    return message.lines.get("STOPPING") == "1"


@contextlib.contextmanager
def agent(here: Site, ear: Listener, name: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent as its unit starts it."""
    words = ["-m", "shunter_cli.main", "agent", "start", "--pool", "default", "--name", name]
    with daemon(words, here.env | ear.environment() | env, here.home / f"{name}.log") as process:
        yield process


@contextlib.contextmanager
def server(ear: Listener, home: Path, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server as its unit starts it, and its port."""
    port = free_port()
    words = ["-m", "shunter_cli.main", "server", "start", "--port", str(port)]
    env = _clean() | ear.environment() | {"SHUNTER_HOME": str(home)} | more
    with daemon(words, env, home.parent / "server.log") as process:
        yield process, port


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SHUNTER_")}


def started(here: Site, name: str, script: str, **work: Any) -> str:
    work["command"] = ["sh", "-c", script]
    here.client.deploy(name, DeploymentSpec(work=Work(**work), pool="default"))
    return str(here.client.create_run(RunRequest(deployment=name)).id)


def waiting(folder: Path) -> str:
    """A script that makes the file ``begun`` there and waits for ``go``; not for ever, should its test fail."""
    return f"cd {folder}; touch begun; for i in $(seq 1200); do [ -e go ] && exit; sleep 0.05; done; exit 1"


def appears(path: Path, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def test_an_agent_is_ready_gives_signs_of_life_and_drains(
    here: Site, listener: Listener, tmp_path: Path
) -> None:
    name = f"whole-{'path' if listener.address[0] == '/' else 'abstract'}"
    with agent(here, listener, name) as process:
        first = listener.until(ready)
        assert not any(map(ready, listener.heard[:-1]))
        assert first["STATUS"] == "serving default: 0 of 8 runs"
        beats = listener.listen(2.0)
        assert all(ready(one) and one.lines["WATCHDOG"] == "1" for one in beats)
        gaps = [later.at - one.at for one, later in itertools.pairwise(beats)]
        print(f"a sign of life every {sorted(gaps)[len(gaps) // 2]:.3f} s, at most {max(gaps):.3f} s")
        assert WATCHDOG / 2 * 0.8 < sorted(gaps)[len(gaps) // 2] < WATCHDOG / 2 * 1.5
        run = started(here, name, waiting(tmp_path))
        appears(tmp_path / "begun")
        process.terminate()
        told = listener.until(stopping)
        assert "READY" not in told
        assert told["STATUS"] == "draining: 1 of 8 runs"
        draining = listener.listen(2.0)
        assert process.poll() is None
        assert all(map(stopping, draining))
        extensions = [int(one["EXTEND_TIMEOUT_USEC"]) / 1e6 for one in [told, *draining]]
        gaps = [later.at - one.at for one, later in zip([told, *draining], draining, strict=False)]
        assert min(extensions) > max(gaps) * 1.5, "the limit would be over before it is put off again"
        (tmp_path / "go").touch()
        assert process.wait(SOON) == 0
    assert here.ended(run).state == "Completed"


def test_what_changes_is_told_at_once(here: Site, ear: Listener, tmp_path: Path) -> None:
    """Not when the next sign of life is due, which is in a minute here."""
    script = waiting(tmp_path)
    with agent(here, ear, "prompt", WATCHDOG_USEC="120000000") as process:
        ear.until(ready)
        started(here, "prompt", script)
        appears(tmp_path / "begun")
        process.terminate()
        assert "EXTEND_TIMEOUT_USEC" in ear.until(stopping, 10)
        (tmp_path / "go").touch()
        assert process.wait(SOON) == 0


def test_an_agent_is_ready_though_the_server_is_away(here: Site, ear: Listener) -> None:
    with agent(here, ear, "alone", SHUNTER_API_URL=f"http://127.0.0.1:{free_port()}/api") as process:
        told = ear.until(ready)
        assert told["STATUS"].startswith("the server is away; serving default")
        assert ends(process) == 0
        assert stopping(ear.until(stopping))


def test_an_agent_that_the_server_refuses_is_never_ready(here: Site, ear: Listener) -> None:
    with agent(here, ear, "refused", SHUNTER_TOKEN="wrong") as process:
        assert process.wait(SOON) == 2
    assert not any(map(ready, ear.listen(0.1)))


def test_an_agent_whose_main_loop_hangs_gives_no_sign_of_life_though_its_event_loop_lives(
    here: Site, ear: Listener
) -> None:
    with daemon(["-c", HANGING_AGENT, "hangs"], here.env | ear.environment(), here.home / "hangs.log") as one:
        _falls_silent(ear, one)


def test_a_server_whose_loop_hangs_gives_no_sign_of_life_though_its_event_loop_lives(
    ear: Listener, tmp_path: Path
) -> None:
    env = _clean() | ear.environment() | {"SHUNTER_HOME": str(tmp_path / "home")}
    words = ["-c", HANGING_SERVER, str(free_port())]
    with daemon(words, env, tmp_path / "server.log") as one:
        _falls_silent(ear, one)


def _falls_silent(ear: Listener, process: subprocess.Popen[bytes]) -> None:
    ear.until(ready)
    lively = ear.listen(2 * PATIENCE)
    assert all("WATCHDOG" in one for one in lively), "the loop comes around, and this is not seen"
    process.send_signal(signal.SIGUSR1)
    ear.until(lambda one: "WATCHDOG" not in one, PATIENCE + 3)
    after = ear.listen(1.5)
    assert len(after) >= 3, "the event loop lives on: it goes on to say how it is"
    assert not any("WATCHDOG" in one for one in after)


@pytest.mark.parametrize("which", ["agent", "server"])
def test_a_blocked_event_loop_gives_no_sign_of_life(
    here: Site, ear: Listener, tmp_path: Path, which: str
) -> None:
    if which == "agent":
        words, env = ["-c", HANGING_AGENT, "blocked"], here.env
    else:
        words, env = (
            ["-c", HANGING_SERVER, str(free_port())],
            _clean() | {"SHUNTER_HOME": str(tmp_path / "h")},
        )
    with daemon(words, env | ear.environment(), tmp_path / "log") as process:
        ear.until(ready)
        process.send_signal(signal.SIGUSR2)
        ear.listen(0.5)
        assert ear.listen(2.0) == []
        ear.until(lambda one: "WATCHDOG" in one)  # it is itself again


def test_a_watchdog_s_signal_shows_where_it_hung_and_the_next_life_finds_the_run(
    here: Site, ear: Listener, tmp_path: Path
) -> None:
    script = waiting(tmp_path)
    with agent(here, ear, "aborted") as process:
        ear.until(ready)
        run = started(here, "aborted", script)
        appears(tmp_path / "begun")
        assert ends(process, signal.SIGABRT) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in here.log("aborted")
    with agent(here, ear, "aborted") as process:
        ear.until(lambda one: one["STATUS"] == "serving default: 1 of 8 runs")
        (tmp_path / "go").touch()
        ended = here.ended(run)
        assert (ended.state, ended.attempt_count) == ("Completed", 1)
        assert ends(process) == 0


def test_a_server_is_ready_gives_signs_of_life_and_stops(listener: Listener, tmp_path: Path) -> None:
    with server(listener, tmp_path / "home") as (process, port):
        first = listener.until(ready)
        assert first["STATUS"] == f"serving http://127.0.0.1:{port}/api: 0 agents connected"
        with socket.create_connection(("127.0.0.1", port), 1):
            pass  # it does serve
        beats = listener.listen(2.0)
        assert all("WATCHDOG" in one for one in beats)
        assert max(later.at - one.at for one, later in itertools.pairwise(beats)) < WATCHDOG
        assert ends(process) == 0
        told = listener.until(stopping)
        assert "READY" not in told
        assert int(told["EXTEND_TIMEOUT_USEC"]) > 0


def test_a_server_tells_at_once_that_it_stops(ear: Listener, tmp_path: Path) -> None:
    with server(ear, tmp_path / "home", WATCHDOG_USEC="120000000") as (process, _):
        ear.until(ready)
        assert ends(process) == 0
    assert stopping(ear.until(lambda one: True, 1))


def test_runs_are_not_told_of_the_service_manager(here: Site, ear: Listener) -> None:
    """Not even those that ask for its variables."""
    asked = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]
    with agent(here, ear, "hidden") as process:
        ear.until(ready)
        run = started(here, "hidden", "env", pass_env=asked)
        assert here.ended(run).state == "Completed"
        names = {line.split("=")[0] for line in here.output(run).decode().splitlines()}
        assert "PATH" in names
        assert not names & set(asked)
        assert ends(process) == 0


@pytest.mark.parametrize("address", ["/nowhere/at/all", "relative", "vsock:2:1234", "@", "/" + "x" * 200])
def test_a_socket_that_is_wrong_does_no_harm(here: Site, address: str, tmp_path: Path) -> None:
    name = "deaf"
    words = ["-m", "shunter_agents", "--pool", "default", "--name", name]
    with daemon(
        words, here.env | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "nonsense"}, tmp_path / "log"
    ) as one:
        assert here.ended(started(here, name, "true")).state == "Completed"
        assert ends(one) == 0


def test_a_socket_that_goes_away_does_no_harm_and_is_found_again(here: Site, tmp_path: Path) -> None:
    first = Listener(str(tmp_path / "notify"))
    with agent(here, first, "reached") as process:
        first.until(ready)
        with first:
            os.unlink(first.address)
        assert here.ended(started(here, "reached", "sleep 1")).state == "Completed"
        with Listener(first.address) as again:
            again.until(ready)
        assert ends(process) == 0


def test_a_socket_that_nobody_reads_blocks_nothing(ear: Listener) -> None:
    manager = ServiceManager(ear.address, 1.0)
    for _ in range(5000):
        manager.tell(Condition("x" * 100, ready=True, stopping=False, moved_at=time.monotonic()))
    assert 0 < len(ear.listen(0.2)) < 5000


def test_who_is_watched_at_long_intervals_is_told_of_no_less_often(ear: Listener) -> None:
    """Or a drain would ask for more time only after ``TimeoutStopSec``."""
    manager = ServiceManager(ear.address, 240.0)
    manager.tell(Condition("x", ready=True, stopping=True, moved_at=time.monotonic()))
    (told,) = ear.listen(0.05)
    assert int(told["EXTEND_TIMEOUT_USEC"]) == INTERVAL * 4e6 == 60e6


@pytest.mark.parametrize(
    ("environ", "watched"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "30000000"}, True),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "0"}, False),
        ({"WATCHDOG_USEC": "-5"}, False),
        ({}, False),
    ],
)
def test_signs_of_life_are_given_to_whom_wants_them(
    ear: Listener, environ: dict[str, str], watched: bool
) -> None:
    environ |= {"NOTIFY_SOCKET": ear.address, "OTHER": "1"}
    manager = ServiceManager.of(environ)
    assert environ == {"OTHER": "1"}
    manager.tell(Condition("one\nREADY=1", ready=False, stopping=False, moved_at=time.monotonic()))
    (told,) = ear.listen(0.05)
    assert told.lines == {"STATUS": "one READY=1"} | ({"WATCHDOG": "1"} if watched else {})
