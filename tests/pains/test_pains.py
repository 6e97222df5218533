"""The pains that people of this field know from other systems, one test each: here they do not happen.

Each has a real server and real agents. What takes long is waiting for silence to be long enough; the tests
that need it share one silence (:func:`silence`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from shunter_infrastructure.process import record
from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy, Work
from shunter_work_pools.contracts.errors import NotFound
from shunter_work_pools.contracts.pools import PoolPatch, PoolSpec
from shunter_work_pools.contracts.runs import Run, RunRequest
from tests.agents.real_server import Site, site
from tests.chaos.faults import Refuse, Status
from tests.chaos.proxy import Fault, proxy
from tests.patience import SOON

pytestmark = pytest.mark.timeout(120)

#: As short as the settings allow.
LOST_AFTER, LEASE_FOR, GIVE_UP_AFTER = 15, 16, 17


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that loses patience soon."""
    flags = {
        "server.lost_after": f"{LOST_AFTER}s",
        "server.lease_for": f"{LEASE_FOR}s",
        "server.give_up_after": f"{GIVE_UP_AFTER}s",
    }
    with site(tmp_path_factory.mktemp("pains"), flags) as one:
        yield one


def start(here: Site, name: str, script: str, *, pool: str = "default", **spec: object) -> str:
    """Deploy a shell script and make one run of it; its id."""
    work = {key: spec.pop(key) for key in ("grace", "timeout") if key in spec}
    command = Work(command=["sh", "-c", script, name], **work)  # type: ignore[arg-type]
    here.client.deploy(name, DeploymentSpec(work=command, pool=pool, **spec))  # type: ignore[arg-type]
    return str(here.client.create_run(RunRequest(deployment=name)).id)


def until(done: Callable[[], object], what: str, seconds: float = SOON) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def running(here: Site, *runs: str) -> None:
    """Wait until all of them run."""
    for run in runs:
        until(lambda run=run: here.client.get_run(run).state == "Running", f"{run} does not run")  # type: ignore[misc]


def ran(path: Path) -> list[str]:
    """The lines that runs have appended to a file."""
    return path.read_text().splitlines() if path.exists() else []


def keeper_of(here: Site, agent: str, run: str) -> int:
    """The process id of the keeper of a run."""
    found = record.read(here.home / "agents" / agent / "attempts" / f"{run}.1")
    assert found is not None
    assert found.keeper is not None
    return found.keeper


def end_of(run: Run) -> tuple[str, str | None]:
    return run.state, run.cause


# -- one silence for all that need it


@dataclass
class Silence:
    """An agent that was cut off for longer than the server waits, and one that died for good.

    Attributes:
        seen: what the server said of the runs while the first was away; under ``back``: of the run whose
            end it reported when its run was another's.
        pids: of the runs of the agent that was cut off.
    """

    here: Site
    effects: Path
    runs: dict[str, str]
    seen: dict[str, Run]
    pids: dict[str, int]
    logs: Callable[[str], str]
    alive: bool


@pytest.fixture(scope="module")
def silence(here: Site) -> Iterator[Silence]:
    """Live through it; the agent that was cut off is back, and still runs."""
    effects, gate = here.home / "silence", here.home / "silence-gate"
    script = (
        f'echo "$0 $SHUNTER_ATTEMPT $SHUNTER_AGENT $$" >> {effects}; echo begun; '
        f"while [ ! -e {gate} ] && [ ! -e {gate}-$0-$SHUNTER_ATTEMPT ]; do sleep 0.1; done; "
        f"echo done; echo $0 done $SHUNTER_ATTEMPT >> {effects}"
    )
    for pool in ("cut", "dead"):
        here.client.create_pool(PoolSpec(name=pool))
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(proxy(here.port, 1))
        cut = stack.enter_context(here.agent("cut", pool="cut", env={"SHUNTER_API_URL": between.url}))
        dead = here.start_agent("dead", pool="dead")
        stack.callback(dead.wait)
        stack.callback(dead.kill)
        runs = {
            name: start(here, f"silence-{name}", script, pool="cut", on_lost=name.split("-")[0])
            for name in ("wait", "crash", "crash-deleted", "retry", "retry-ended")
        }
        runs["dead"] = start(here, "silence-dead", script, pool="dead")
        running(here, *runs.values())
        pids = {line.split()[0].removeprefix("silence-"): int(line.split()[3]) for line in ran(effects)}

        between.begin(Refuse())
        Path(f"{gate}-silence-retry-ended-1").touch()  # its end is owed when its run is another's
        _kill_all_of(here, dead)
        # Only now: it shall take what the first one cannot be asked about any more.
        stack.enter_context(here.agent("other", pool="cut"))
        until(
            lambda: (
                all(here.client.get_run(runs[name]).ended_at for name in ("crash", "crash-deleted", "dead"))
                and here.client.get_run(runs["retry"]).attempt_count == 2
            ),
            "the server does not lose patience",
            60,
        )
        seen = {name: here.client.get_run(run) for name, run in runs.items()}
        here.client.delete_run(runs["crash-deleted"])
        running(here, runs["retry"], runs["retry-ended"])

        between.begin(Fault())
        ours = [name for name in ("crash", "crash-deleted", "retry") if pids.get(name)]
        until(lambda: not any(psutil.pid_exists(pids[name]) for name in ours), "old work goes on")
        until(lambda: len(here.attempts("cut")) == 1, "the agent does not let go of what is another's")
        seen["back"] = here.client.get_run(runs["retry-ended"])
        gate.touch()
        for name in ("wait", "retry", "retry-ended"):
            here.ended(runs[name])
        until(lambda: here.attempts("cut") == [], "the agent does not let go")
        yield Silence(here, effects, runs, seen, pids, here.log, cut.poll() is None)


def _kill_all_of(here: Site, agent: subprocess.Popen[bytes]) -> None:
    """The agent, its keepers and its runs, as if the machine had gone."""
    agent.kill()
    agent.wait()
    for process in here.processes():
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            if environ.get("SHUNTER_AGENT") == "dead" or "/agents/dead/" in environ.get("SHUNTER_RESULT", ""):
                process.kill()


# -- the pains


@pytest.mark.parametrize("point", ["after-sync-answer", "after-assignment-written", "after-launch-requested"])
def test_pending_for_ever_because_the_worker_died_between_claim_and_launch(
    here: Site, tmp_path: Path, point: str
) -> None:
    here.client.create_pool(PoolSpec(name=point))
    run = start(here, point, f"echo $SHUNTER_RUN_ID >> {tmp_path / 'effects'}", pool=point)
    # The first answer of a life grants nothing: it says what a former one left.
    step = f"{point}#2" if point == "after-sync-answer" else point
    first = here.start_agent("pending", kill_at=step, pool=point)
    try:
        assert first.wait(SOON) == -signal.SIGKILL
    finally:
        first.kill()
        first.wait()
    assert here.client.get_run(run).state in ("Claimed", "Starting")
    with here.agent("pending", pool=point):
        assert end_of(here.ended(run)) == ("Completed", None)
    assert ran(tmp_path / "effects") == [run]


def test_running_for_ever_because_it_was_killed(here: Site) -> None:
    """Whatever of it is killed: the process, its keeper, or both with the agent (see the next test)."""
    with here.agent("killed"):
        process = start(here, "killed-process", "kill -KILL $$")
        assert end_of(here.ended(process)) == ("Crashed", "signal")
        keeper = start(here, "killed-keeper", "trap '' TERM; setsid -f sleep 600; sleep 600")
        running(here, keeper)
        os.kill(keeper_of(here, "killed", keeper), signal.SIGKILL)
        assert end_of(here.ended(keeper)) == ("Crashed", "keeper_lost")
        assert not [one for one in here.processes() if one.environ().get("SHUNTER_RUN_ID") == keeper]


def test_running_for_ever_because_all_of_it_was_killed(silence: Silence) -> None:
    dead = silence.seen["dead"]
    assert end_of(dead) == ("Crashed", "agent_lost")
    assert "cannot be known" in (dead.message or "")


def test_alive_and_marked_crashed_and_then_complete(silence: Silence) -> None:
    """One that is waited for is lost, not Crashed, and completes; one that was given up stays what it is."""
    here, runs = silence.here, silence.runs
    assert (silence.seen["wait"].state, silence.seen["wait"].lost) == ("Running", True)
    waited = here.client.get_run(runs["wait"])
    assert (end_of(waited), waited.attempt_count) == (("Completed", None), 1)
    assert here.output(runs["wait"]) == b"begun\ndone\n"
    kinds = [event.kind for event in here.client.list_events(runs["wait"]).events]
    assert [kind for kind in kinds if kind != "found"] == [
        *("Scheduled", "Claimed", "Starting", "Running", "lost", "Completed"),
    ]

    assert end_of(silence.seen["crash"]) == ("Crashed", "agent_lost")
    assert end_of(here.client.get_run(runs["crash"])) == ("Crashed", "agent_lost")
    assert "silence-crash done 1" not in ran(silence.effects)  # it was stopped: it is nobody's any more


def test_two_workers_with_one_run(silence: Silence) -> None:
    """After a retry the first one's work is stopped, and only what the second says counts."""
    for name in ("retry", "retry-ended"):
        run = silence.here.client.get_run(silence.runs[name])
        assert end_of(run) == ("Completed", None)
        assert [(one.agent, one.state, one.cause) for one in run.attempts] == [
            ("cut", "Crashed", "agent_lost"),
            ("other", "Completed", None),
        ]
        assert run.attempts[0].epoch < run.attempts[1].epoch
        assert silence.here.output(run.id) == b"begun\ndone\n"
    assert (silence.seen["back"].state, silence.seen["back"].attempt_count) == ("Running", 2)
    did = [line.split()[:3] for line in ran(silence.effects)]
    assert [line[1] for line in did if line[0] == "silence-retry"] == ["1", "2", "done"]
    assert [line for line in did if line[:2] == ["silence-retry-ended", "done"]] == [
        ["silence-retry-ended", "done", "1"],
        ["silence-retry-ended", "done", "2"],
    ]


def test_logs_dropped_while_the_server_was_away(here: Site) -> None:
    script = (
        "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; [ $((i % 100)) = 0 ] && sleep 0.1; done"
    )
    with here.agent("logs"):
        run = start(here, "logs", f"{script}; echo end")
        running(here, run)
        until(lambda: here.client.read_log(run).size > 0, "no output")
        here.server.send_signal(signal.SIGKILL)
        here.server.wait()
        until(lambda: '"a run has ended"' in here.log("logs"), "it does not end")
        here.start_server()
        assert end_of(here.ended(run)) == ("Completed", None)
        assert here.output(run).decode() == "".join(f"line {n + 1}\n" for n in range(3000)) + "end\n"


def test_slots_leaked_until_a_restart(here: Site, tmp_path: Path) -> None:
    """Whatever became of the runs on them, all slots of agent and pool can be used again, by the same agent."""
    here.client.create_pool(PoolSpec(name="slots"))
    here.client.update_pool("slots", PoolPatch(limit=2))
    gate = tmp_path / "gate"
    with here.agent("slots", pool="slots", limit=2) as agent:
        for round_ in range(2):
            lost = start(here, "slots-keeper", "sleep 600", pool="slots")
            cancelled = start(here, "slots-cancelled", "trap '' TERM; sleep 600", pool="slots", grace=0.1)
            running(here, lost, cancelled)
            waiting = start(here, f"slots-after-{round_}", "true", pool="slots")
            os.kill(keeper_of(here, "slots", lost), signal.SIGKILL)
            here.client.cancel_run(cancelled)
            assert end_of(here.ended(lost)) == ("Crashed", "keeper_lost")
            assert end_of(here.ended(cancelled)) == ("Cancelled", "cancelled")
            assert end_of(here.ended(waiting)) == ("Completed", None)
            for name, script in (("killed", "kill -KILL $$"), ("failed", "exit 1"), ("left", "sleep 600 &")):
                here.ended(start(here, f"slots-{name}", script, pool="slots"))
        command = DeploymentSpec(work=Work(command=["no-such-command"]), pool="slots")
        here.client.deploy("slots-missing", command)
        here.ended(here.client.create_run(RunRequest(deployment="slots-missing")).id)
        script = f"while [ ! -e {gate} ]; do sleep 0.05; done"
        both = [start(here, f"slots-full-{number}", script, pool="slots") for number in range(2)]
        running(here, *both)
        assert agent.poll() is None
        gate.touch()
        for run in both:
            assert end_of(here.ended(run)) == ("Completed", None)


def test_sigterm_that_kills_work_instead_of_draining(here: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    here.client.create_pool(PoolSpec(name="term"))
    agent = here.start_agent("term", pool="term")
    try:
        script = f"echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo done"
        run = start(here, "term", script, pool="term")
        running(here, run)
        agent.send_signal(signal.SIGTERM)
        until(lambda: "draining" in here.log("term"), "it does not drain")
        later = start(here, "term-later", "true", pool="term")
        gate.touch()
        assert agent.wait(SOON) == 0
        assert end_of(here.client.get_run(run)) == ("Completed", None)
        assert here.output(run) == b"begun\ndone\n"
        assert here.client.get_run(later).state == "Scheduled"
    finally:
        agent.kill()
        agent.wait()
    here.client.cancel_run(later)


@pytest.mark.parametrize(
    "hung",
    [
        pytest.param("trap '' TERM INT HUP", id="ignores signals"),
        pytest.param("kill -STOP $$", id="stopped"),
        pytest.param("setsid -f sh -c 'trap \"\" TERM; sleep 600'", id="left its session"),
    ],
)
def test_cancellation_that_never_reaches_a_hung_process(here: Site, tmp_path: Path, hung: str) -> None:
    pids = tmp_path / "pids"
    with here.agent("hung"):
        run = start(here, f"hung-{len(hung)}", f"echo $$ > {pids}; {hung}; sleep 600; sleep 600", grace=0.3)
        until(lambda: ran(pids), "it does not begin")
        running(here, run)
        asked = time.monotonic()
        here.client.cancel_run(run)
        assert end_of(here.ended(run)) == ("Cancelled", "cancelled")
        took = time.monotonic() - asked
        print(f"cancelled and gone after {took:.2f} s, of them 0.3 s grace")
        assert not psutil.pid_exists(int(ran(pids)[0]))
        assert not [one for one in here.processes() if one.environ().get("SHUNTER_RUN_ID") == run]


def test_a_429_that_kills_the_worker(here: Site) -> None:
    """While it works, and also when it has just been started."""
    here.client.create_pool(PoolSpec(name="busy"))
    with proxy(here.port, 2) as between:
        env = {"SHUNTER_API_URL": between.url}
        between.begin(Status("429 Too Many Requests", "Retry-After: 1\r\n"))
        with contextlib.ExitStack() as stack:
            agent = stack.enter_context(here.agent("busy", pool="busy", env=env))
            until(lambda: between.counts["429"] >= 2, "it asks only once")
            between.begin(Fault())
            run = start(here, "busy", "sleep 1; echo done", pool="busy")
            running(here, run)
            met = between.counts["429"]
            between.begin(Status("429 Too Many Requests", "Retry-After: 1\r\n"))
            until(lambda: between.counts["429"] >= met + 4, "it does not ask again")
            between.begin(Fault())
            assert end_of(here.ended(run)) == ("Completed", None)
            assert here.output(run) == b"done\n"
            assert agent.poll() is None


def test_a_deleted_run_that_kills_the_worker(silence: Silence) -> None:
    """It was deleted while its agent still worked on it; the agent works on."""
    here = silence.here
    assert silence.alive
    with pytest.raises(NotFound):
        here.client.get_run(silence.runs["crash-deleted"])
    assert "Traceback" not in silence.logs("cut")
    assert not re.search(r'"level": "(error|critical)"', silence.logs("cut")), silence.logs("cut")


def test_a_broken_host_that_fails_everything_fast_and_so_eats_the_queue(here: Site) -> None:
    """It starts nothing, at once, again and again; the queue is for those that can."""
    here.client.create_pool(PoolSpec(name="eaten"))
    spec = DeploymentSpec(
        work=Work(command=["sh", "-c", "sleep 0.3"]), pool="eaten", retries=RetryPolicy(count=3)
    )
    here.client.deploy("eaten", spec)
    with here.agent("broken", pool="eaten", env={"PATH": "/nowhere"}), here.agent("sound", pool="eaten"):
        runs = [str(here.client.create_run(RunRequest(deployment="eaten")).id) for _ in range(60)]
        ended = [here.ended(run, 60) for run in runs]
        by = [one.agent for run in ended for one in run.attempts]
        print(f"{by.count('broken')} attempts on the broken host, {by.count('sound')} on the sound one")
        assert [run.state for run in ended] == ["Completed"] * 60
        assert 5 <= by.count("broken") <= 15
        (broken,) = [agent for agent in here.client.list_agents().agents if agent.name == "broken"]
        assert broken.troubles
