"""Flows as runs: with a real server, a real agent, real processes, and what is killed of them.

What a task does beside its value (a line in FOLDER/ran) is counted: what completed is never done again.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import Run, RunRequest
from tests.agents.real_server import Site, site
from tests.networks.certificates import Authority
from tests.patience import SOON

pytestmark = pytest.mark.timeout(180)

SCRIPT = Path(__file__).with_name("a_flow.py")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with a pool named default."""
    with site(tmp_path_factory.mktemp("flows")) as one:
        yield one


def deploy(here: Site, name: str, flow: str, folder: Path, **work: object) -> None:
    """One of the flows of ``a_flow.py``, which leaves its traces in a folder."""
    command = Work(
        command=[sys.executable, str(SCRIPT), flow, str(folder)],
        env={"PYTHONPATH": str(SCRIPT.parents[2])},
        **work,
    )
    here.client.deploy(name, DeploymentSpec(work=command, pool="default"))


def begun(here: Site, name: str) -> UUID:
    return here.client.create_run(RunRequest(deployment=name)).id


def again(here: Site, run: UUID, name: str, folder: Path) -> Run:
    """The run, retried, once it has ended."""
    (folder / "good").touch()
    here.client.retry_run(str(run))
    ended = here.ended(run, 60)
    assert ended.state == "Completed", (here.output(run), here.log(name))
    return ended


def ran(folder: Path) -> Counter[str]:
    return Counter((folder / "ran").read_text().split("\n")[:-1])


def until(folder: Path, name: str) -> None:
    deadline = time.monotonic() + 60
    while not (folder / name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def completed(here: Site, run: UUID) -> list[str]:
    return [task.name for task in here.client.each_task(str(run), states=["Completed"])]


def test_a_retried_run_executes_what_failed_and_nothing_else(here: Site, tmp_path: Path) -> None:
    deploy(here, "hundred", "hundred", tmp_path)
    with here.agent("hundred"):
        run = begun(here, "hundred")
        assert here.ended(run).state == "Failed", here.output(run)
        # The server has all of it when it has the end.
        states = Counter(task.state for task in here.client.each_task(str(run)) if not task.flow)
        assert states == {"Completed": 99, "Failed": 1}
        assert ran(tmp_path) == Counter(map(str, range(100)))
        again(here, run, "hundred", tmp_path)
        assert ran(tmp_path) == Counter(map(str, range(100))) + Counter(["99"])
        assert f"value: {sum(n * n for n in range(100))}".encode() in here.output(run)
    assert here.attempts("hundred") == []
    assert '"error"' not in here.log("hundred")


#: Writes into its journal a line of nine million bytes, and a good one after it.
_TOO_LONG = """
import json, os
line = {"k": "a", "t": "long", "s": "C", "n": 1, "at": 1, "u": ["x" * 64] * 140_000}
path = os.environ["SHUNTER_JOURNAL"]
os.makedirs(os.path.dirname(path))
with open(path, "w") as journal:
    for one in (line, line | {"k": "b", "t": "short", "u": []}):
        journal.write(json.dumps(one, separators=(",", ":")) + "\\n")
"""


def test_what_follows_a_line_that_is_too_long_reaches_the_server(here: Site) -> None:
    work = Work(command=[sys.executable, "-c", _TOO_LONG])
    here.client.deploy("long", DeploymentSpec(work=work, pool="default"))
    with here.agent("long"):
        run = begun(here, "long")
        assert here.ended(run).state == "Completed", here.output(run)
        assert completed(here, run) == ["short"], here.log("long")
    assert here.attempts("long") == []


#: What ``mixed`` has done when it waits, and what it does when it goes on from there.
BEFORE = Counter(["large1", "large2", "size", "size", "below", "3", "3", "4", "wait"])


def running(here: Site, name: str, folder: Path) -> tuple[UUID, int]:
    """A run of ``mixed`` that waits for the test, and the id of its process."""
    run = begun(here, name)
    until(folder, "waiting")
    deadline = time.monotonic() + SOON
    while not (pid := here.client.get_run(run).attempts[-1].pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return run, pid


def test_a_killed_flow_goes_on_at_another_agent(here: Site, tmp_path: Path) -> None:
    deploy(here, "killed", "mixed", tmp_path)
    with here.agent("killed"):
        run, pid = running(here, "killed", tmp_path)
        deadline = time.monotonic() + SOON
        while "wait_for_ever" not in {task.name for task in here.client.each_task(str(run))}:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        ended = here.ended(run)
        assert (ended.state, ended.cause) == ("Crashed", "signal")
        assert Counter(completed(here, run)) == Counter(
            ["large", "large", "size", "size", "square", "square", "below", "square"]
        )
        left = {task.name: task.error for task in here.client.each_task(str(run), states=["Cancelled"])}
        assert set(left) == {"mixed", "wait_for_ever"}
        assert all(why and why.message.startswith("Crashed (signal): attempt 1") for why in left.values())
    # Nothing of the first attempt's folder is left, and the second one is another agent's.
    assert here.attempts("killed") == []
    with here.agent("killed-too"):
        ended = again(here, run, "killed-too", tmp_path)
        assert [one.agent for one in ended.attempts] == ["killed", "killed-too"]
    assert ran(tmp_path) == BEFORE + Counter(["wait"]), (here.output(run), here.log("killed"))
    assert b"value: [[100000, 100000], 18, 16, 'waited']" in here.output(run)


@pytest.mark.parametrize(
    "point",
    [
        "after-results-taken",
        "after-journal-taken",
        "after-journal-brought",
        "after-end-journaled",
        "after-end-reported",
    ],
)
def test_the_agent_is_killed_while_it_brings_a_journal(here: Site, tmp_path: Path, point: str) -> None:
    deploy(here, point, "mixed", tmp_path)
    first = here.start_agent(point, kill_at=point)
    run = begun(here, point)
    until(tmp_path, "waiting")
    if point in ("after-results-taken", "after-journal-taken"):
        assert first.wait(SOON) == -signal.SIGKILL, here.log(point)
        with here.agent(point):
            _fails_and_goes_on(here, tmp_path, run, point)
        return
    os.kill(here.client.get_run(run).attempts[-1].pid or 0, signal.SIGKILL)
    assert first.wait(SOON) == -signal.SIGKILL, here.log(point)
    with here.agent(point):
        assert here.ended(run).state == "Crashed"
        again(here, run, point, tmp_path)
    assert ran(tmp_path) == BEFORE + Counter(["wait"])


def _fails_and_goes_on(here: Site, folder: Path, run: UUID, agent: str) -> None:
    deadline = time.monotonic() + SOON
    while not (pid := here.client.get_run(run).attempts[-1].pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    assert here.ended(run).state == "Crashed"
    again(here, run, agent, folder)
    assert ran(folder) == BEFORE + Counter(["wait"])


def test_the_agent_is_away_while_a_flow_runs_and_is_killed(here: Site, tmp_path: Path) -> None:
    deploy(here, "away", "mixed", tmp_path)
    first = here.start_agent("away")
    run, pid = running(here, "away", tmp_path)
    first.kill()
    first.wait()
    os.kill(pid, signal.SIGKILL)
    with here.agent("away"):
        assert here.ended(run).state == "Crashed"
        assert len(completed(here, run)) == 8
        again(here, run, "away", tmp_path)
    assert ran(tmp_path) == BEFORE + Counter(["wait"])


def test_the_server_is_killed_again_and_again_while_a_flow_runs(here: Site, tmp_path: Path) -> None:
    deploy(here, "storm", "slow", tmp_path)
    with here.agent("storm"):
        run = begun(here, "storm")
        until(tmp_path, "ran")
        for _ in range(3):
            here.server.send_signal(signal.SIGKILL)
            here.server.wait()
            here.start_server()
            time.sleep(0.2)  # so that some of it is taken by each life
        assert here.ended(run, 60).state == "Failed"
        assert Counter(completed(here, run)) == Counter({"square_slowly": 40})
        again(here, run, "storm", tmp_path)
    assert ran(tmp_path) == Counter(map(str, range(40))) + Counter(["wait", "wait"])


def test_the_server_is_away_for_the_whole_flow(here: Site, tmp_path: Path) -> None:
    deploy(here, "alone", "mixed_late", tmp_path)
    with here.agent("alone"):
        run = begun(here, "alone")
        until(tmp_path, "begun")
        here.server.send_signal(signal.SIGKILL)
        here.server.wait()
        (tmp_path / "go").touch()
        until(tmp_path, "waiting")
        (tmp_path / "fail").touch()
        until(tmp_path, "failed")
        here.start_server()
        ended = here.ended(run, 60)
        assert (ended.state, ended.cause) == ("Failed", "exit_code")
        # With the end there is all that the flow did.
        assert len(completed(here, run)) == 8
        again(here, run, "alone", tmp_path)
    assert ran(tmp_path) == BEFORE + Counter(["wait"])


def test_a_cancelled_run_interrupts_its_tasks_and_calls_its_hooks(here: Site, tmp_path: Path) -> None:
    deploy(here, "stopped", "stopped", tmp_path)
    with here.agent("stopped"):
        run = begun(here, "stopped")
        until(tmp_path, "waiting")
        here.client.cancel_run(str(run))
        ended = here.ended(run)
        assert (ended.state, ended.cause) == ("Cancelled", "cancelled"), here.output(run)
        left = ran(tmp_path)
        assert left["hook stopped Cancelled"] == 1
        assert left["hook sleeps Cancelled"] == 2
        assert left["wrong stopped Cancelled"] == 0
        states = Counter((task.name, task.state) for task in here.client.each_task(str(run)))
        assert states["sleeps", "Cancelled"] == 2
        assert states["stopped", "Cancelled"] == 1


def test_a_flow_is_an_entrypoint(here: Site, tmp_path: Path) -> None:
    work = Work(
        entrypoint="a_flow.py:inside", source=str(SCRIPT.parent), env={"PYTHONPATH": str(SCRIPT.parents[2])}
    )
    spec = DeploymentSpec(work=work, pool="default", parameters={"n": 4}, tags=["demo"])
    here.client.deploy("inside", spec)
    with here.agent("inside"):
        run = begun(here, "inside")
        ended = here.ended(run)
        assert ended.state == "Completed", here.output(run)
        found = ended.result
        assert found["squares"] == 14
        assert found["run_id"] == str(run)
        assert (found["attempt"], found["tags"], found["deployment"]) == (1, ["demo"], "inside")
        assert (found["parameters"], found["flow"], found["task"]) == ({"n": 4}, "inside", "looks")
        output = here.output(run).decode()
        assert "| WARNING | shunter.inside | from the flow" in output
        assert "| INFO    | shunter.looks | from the task" in output
        assert "| INFO    | some.library | two\nlines" in output
        assert "printed False" in output
        assert [one.key for one in here.client.list_artifacts(str(run)).artifacts] == ["page", "prices"]
        assert here.client.get_artifact(str(run), "prices").data == [{"a": 1}, {"a": 2}]
        assert ended.attempts[-1].progress is not None
        assert ended.attempts[-1].progress.percent == 100


def test_a_flow_that_raises_tells_the_users_frames_only(here: Site, tmp_path: Path) -> None:
    work = Work(
        entrypoint="a_flow.py:raises", source=str(SCRIPT.parent), env={"PYTHONPATH": str(SCRIPT.parents[2])}
    )
    here.client.deploy("raises", DeploymentSpec(work=work, pool="default"))
    with here.agent("raises"):
        run = begun(here, "raises")
        ended = here.ended(run)
        assert (ended.state, ended.cause, ended.message) == (
            "Failed",
            "exception",
            "ValueError: no such thing",
        )
        output = here.output(run).decode()
        assert "in raises" in output
        assert "in a_task_that_raises" in output
        assert "flow_engine.py" not in output
        assert "runner.py" not in output
        assert "engine.py" not in output


def test_a_run_without_an_agent_that_reads_brings_its_journal_itself(here: Site, tmp_path: Path) -> None:
    """As in a pod."""
    own = f"SHUNTER_BRING_JOURNAL=1 SHUNTER_JOURNAL={tmp_path}/own/journal"
    command = f"{own}$SHUNTER_ATTEMPT exec {sys.executable} {SCRIPT} mixed {tmp_path}"
    work = Work(command=["sh", "-c", command], env={"PYTHONPATH": str(SCRIPT.parents[2])}, token=True)
    here.client.deploy("pod", DeploymentSpec(work=work, pool="default"))
    with here.agent("pod"):
        run, pid = running(here, "pod", tmp_path)
        deadline = time.monotonic() + SOON
        while len(completed(here, run)) < 8:
            assert time.monotonic() < deadline, here.output(run)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        assert here.ended(run).state == "Crashed"
        again(here, run, "pod", tmp_path)
        # The last line is there when the run has ended.
        assert {task.state for task in here.client.each_task(str(run))} == {"Completed"}
    assert ran(tmp_path) == BEFORE + Counter(["wait"])


def test_the_server_is_believed_as_the_agent_does(tmp_path: Path) -> None:
    """Its certificate is of an authority that nobody but the agent is told of."""
    with site(tmp_path / "home", authority=Authority(tmp_path, "own")) as one:
        deploy(one, "hundred", "hundred", tmp_path)
        with one.agent("believes"):
            run = begun(one, "hundred")
            assert one.ended(run).state == "Failed", one.output(run)
            again(one, run, "believes", tmp_path)
    assert ran(tmp_path) == Counter(map(str, range(100))) + Counter(["99"])


def test_the_hooks_of_a_flow_that_crashed_are_called_in_another_process(here: Site, tmp_path: Path) -> None:
    deploy(here, "crashes", "crashes", tmp_path)
    with here.agent("crashes"):
        run, pid = running(here, "crashes", tmp_path)
        os.kill(pid, signal.SIGKILL)
        ended = here.ended(run)
        assert (ended.state, ended.cause) == ("Crashed", "signal")
        assert here.output(run) == b"begun\ncrashed: crashes Crashed {'n': 7} ended by SIGKILL 1\n"
        again(here, run, "crashes", tmp_path)
    assert ran(tmp_path) == Counter(["wait", f"crashed {run}", "wait"])
    assert here.attempts("crashes") == []


@pytest.mark.parametrize("point", ["after-hooks-started", "after-hooks-told"])
def test_the_agent_is_killed_while_hooks_are_called(here: Site, tmp_path: Path, point: str) -> None:
    deploy(here, point, "crashes", tmp_path)
    first = here.start_agent(point, kill_at=point)
    run, pid = running(here, point, tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert first.wait(SOON) == -signal.SIGKILL, here.log(point)
    with here.agent(point):
        assert here.ended(run).state == "Crashed"
        assert here.output(run) == b"begun\ncrashed: crashes Crashed {'n': 7} ended by SIGKILL 1\n"
    assert ran(tmp_path) == Counter(["wait", f"crashed {run}"])


@pytest.mark.parametrize(("name", "state"), [("SIGKILL", "Crashed"), ("SIGSEGV", "Failed")])
def test_hooks_of_a_crash_are_called_for_entrypoints_too(
    here: Site, tmp_path: Path, name: str, state: str
) -> None:
    script = tmp_path / "flows.py"
    script.write_text(
        "import os, signal\n"
        "from shunter import flow\n"
        "async def hook(flow, run, state):\n"
        "    print('hook of', flow.name, run.parameters, state.name)\n"
        "@flow(on_crashed=[hook])\n"
        "async def dies(n: int):\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
    )
    work = Work(entrypoint="flows.py:dies", source=str(tmp_path))
    here.client.deploy("dies", DeploymentSpec(work=work, pool="default", parameters={"n": 5}))
    with here.agent("dies"):
        run = begun(here, "dies")
        assert here.ended(run).state == state
        assert here.output(run) == b"hook of dies {'n': 5} Crashed\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start runs as other users")
def test_a_flow_of_another_user_goes_on(here: Site, tmp_path: Path) -> None:
    """That user's interpreter may not be ours, so it is a script that writes what a flow would."""
    line = '{"k": "a", "t": "one", "s": "C", "n": 1, "at": 1, "r": {"i": 1}}'
    first = f'mkdir -p "${{SHUNTER_JOURNAL%/*}}"; echo \'{line}\' > "$SHUNTER_JOURNAL"; kill -9 $$'
    script = f'if [ $SHUNTER_ATTEMPT = 1 ]; then {first}; fi; id -u; [ -n "$SHUNTER_RUN_TOKEN" ]'
    work = Work(command=["sh", "-c", script], run_as="61234")
    here.client.deploy("theirs", DeploymentSpec(work=work, pool="default"))
    with tempfile.TemporaryDirectory(prefix="shunter-runs-") as runs:
        os.chmod(runs, 0o711)
        policy = here.home / "agents" / "theirs" / "agent.toml"
        policy.parent.mkdir(parents=True)
        policy.write_text(f'[users]\nallow = ["61234"]\nfolder = "{runs}"\n')
        with here.agent("theirs"):
            run = begun(here, "theirs")
            ended = here.ended(run)
            assert (ended.state, ended.cause) == ("Crashed", "signal"), ended
            assert completed(here, run) == ["one"]
            again(here, run, "theirs", tmp_path)
            assert here.output(run) == b"61234\n"


def test_no_hooks_of_a_flow_that_had_ended_are_called_for_another_one(here: Site, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "import os, signal, time\n"
        "from shunter import flow\n"
        "def hook(flow, run, state):\n"
        "    print('hook of', flow.name)\n"
        "@flow(on_crashed=[hook])\n"
        "def first(): pass\n"
        "@flow(on_crashed=[hook])\n"
        "def second():\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(600)\n"
        "first(); second()\n"
    )
    work = Work(command=[sys.executable, str(script)], env={"PYTHONPATH": str(SCRIPT.parents[2])})
    here.client.deploy("two", DeploymentSpec(work=work, pool="default"))
    with here.agent("two"):
        run = begun(here, "two")
        deadline = time.monotonic() + SOON
        while [task.name for task in here.client.each_task(str(run), states=["Running"])] != ["second"]:
            assert time.monotonic() < deadline, here.output(run)
            time.sleep(0.05)
        os.kill(here.client.get_run(run).attempts[-1].pid or 0, signal.SIGKILL)
        assert here.ended(run).state == "Crashed"
        assert here.output(run) == b"begun\n"
