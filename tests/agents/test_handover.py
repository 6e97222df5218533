"""Two agents that reach the same work: one is killed or frozen at any step, the other goes on with what it had.

One start, one end, every byte of output once; and the old one, when it is back, leaves the work alone.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shunter_agents.killpoints import POINTS
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site
from tests.patience import SOON

pytestmark = pytest.mark.timeout(240)

#: As little patience as a server may have.
SOON_LOST = {"server.lost_after": "15s", "server.lease_for": "20s", "server.give_up_after": "150s"}
LINES = 400
OUTPUT = "".join(f"line {number}\n" for number in range(1, LINES + 1)).encode()
#: Points that an agent passes while it has something that could be handed over.
BEFORE_THE_END = POINTS[: POINTS.index("after-end-journaled") + 1]
AT_ITS_END = ("after-exit", "after-end-journaled")


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that finds agents lost as soon as it may."""
    with site(tmp_path_factory.mktemp("handover"), SOON_LOST) as one:
        yield one


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Where the work is."""
    folder = tmp_path / "engine"
    folder.mkdir()
    return folder


def deploy(here: Site, name: str, *script: str) -> UUID:
    """A pool of that name, a deployment in it, and a run."""
    here.client.create_pool(PoolSpec(name=name))
    here.client.deploy(
        name, DeploymentSpec(work=Work(command=["fake", f"lines={LINES}", *script]), pool=name)
    )
    return here.client.create_run(RunRequest(deployment=name)).id


def until(true: Callable[[], object], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def holder(here: Site, run: UUID) -> tuple[str, int]:
    attempts = here.client.get_run(str(run)).attempts
    return (attempts[-1].agent, attempts[-1].epoch) if attempts else ("", 0)


def kill(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def check(here: Site, engine: Path, run: UUID, by: str, epoch: int = 2) -> None:
    """It was started once, and what is known of it is the whole truth."""
    ended = here.ended(run, 60)
    assert (ended.state, [(one.agent, one.epoch) for one in ended.attempts]) == ("Completed", [(by, epoch)])
    assert here.output(run) == OUTPUT
    assert (engine / "starts").read_text().split().count(str(run)) == 1
    kinds = [event.kind for event in here.client.list_events(str(run)).events]
    assert [kind for kind in kinds if kind not in ("found", "lost")].count("Running") == 1
    assert (kinds.count("Completed"), kinds.count("handed_over")) == (1, epoch - 1)
    assert here.client.get_manifest(str(run)).manifest == {"words": _words(here, ended.deployment)}


def _words(here: Site, deployment: str) -> list[str]:
    return (here.client.get_deployment(deployment).spec.work.command or [])[1:]


def test_an_agent_is_killed_at_any_step_or_frozen(impatient: Site, engine: Path) -> None:
    here = impatient
    runs: dict[str, UUID] = {}
    old: dict[str, subprocess.Popen[bytes]] = {}
    other = None
    try:
        for point in (*BEFORE_THE_END, "frozen"):
            runs[point] = deploy(here, point, "sleep=1" if point in AT_ITS_END else "sleep=28")
            # The first answer brings nothing.
            at = {"frozen": None, "after-sync-answer": "after-sync-answer#2"}.get(point, point)
            old[point] = here.start_agent(f"old-{point}", kill_at=at, pool=point, engine=engine)
        pools = [word for point in runs for word in ("--pool", point)]
        for point, process in old.items():
            if point != "frozen":
                assert process.wait(SOON) == -signal.SIGKILL, here.log(f"old-{point}")
        until(lambda: here.client.get_run(str(runs["frozen"])).state == "Running")
        old["frozen"].send_signal(signal.SIGSTOP)
        other = here.start_agent("other", *pools, limit=100, engine=engine, pool="default")
        for point, run in runs.items():
            until(lambda run=run: holder(here, run) == ("other", 2))  # type: ignore[misc]
            assert "is silent" not in here.client.explain_run(str(run)).sentence, point
        # The old ones are back while it goes on: they leave it alone, and have nothing left.
        old["frozen"].send_signal(signal.SIGCONT)
        for point in set(old) - {"frozen"}:
            old[point] = here.start_agent(f"old-{point}", pool=point, engine=engine)
        for point in old:
            name = f"old-{point}"
            until(lambda name=name: not here.attempts(name))  # type: ignore[misc]
        for run in runs.values():
            check(here, engine, run, "other")
        assert "a run is another agent's now; its work is left alone" in here.log("old-frozen")
        assert old["frozen"].poll() is None
        until(lambda: not here.attempts("other"))
        assert [path.name for path in engine.iterdir()] == ["starts"]
        # And the old ones are as good as new.
        again = here.client.create_run(RunRequest(deployment="after-exit")).id
        kill(other)
        assert here.ended(again).attempts[0].agent == "old-after-exit"
    finally:
        old["frozen"].send_signal(signal.SIGCONT)
        kill(*old.values(), *([other] if other else []))


#: What an agent passes that finds work; those that it passes when there is none yet.
WHERE_IT_IS_BEGUN = ("after-starting-journaled", "after-launch-requested", "after-started")
TAKING_OVER = tuple(point for point in POINTS if point != "before-journal-cleared")


def test_the_one_that_takes_over_is_killed_at_any_step(impatient: Site, engine: Path) -> None:
    """And so is the server, when it has written who takes over: the next lives go on with that."""
    here = impatient
    runs: dict[str, UUID] = {}
    new: dict[str, subprocess.Popen[bytes]] = {}
    old = None
    try:
        for point in sorted(TAKING_OVER, key=WHERE_IT_IS_BEGUN.__contains__):
            # One is to run still when it is told that it does.
            lasts = "sleep=60" if point == "after-running-reported" else "sleep=25"
            begins = ("start_delay=8", "sleep=1") if point in WHERE_IT_IS_BEGUN else (lasts,)
            runs[point] = deploy(here, f"to-{point}", *begins)
        pools = [word for point in runs for word in ("--pool", f"to-{point}")]
        old = here.start_agent("first", *pools, limit=100, engine=engine, pool="default")
        for point, run in runs.items():
            state = "Starting" if point in WHERE_IT_IS_BEGUN else "Running"
            until(lambda run=run, state=state: here.client.get_run(str(run)).state == state)  # type: ignore[misc]
        kill(old, here.server)
        here.start_server(kill_at="after-handover-committed")
        for point in TAKING_OVER:
            at = f"{point}#2" if point == "after-sync-answer" else point
            new[point] = here.start_agent(f"new-{point}", kill_at=at, pool=f"to-{point}", engine=engine)
        # It is written, and nobody was told.
        assert here.server.wait(SOON) == -signal.SIGKILL
        here.start_server()
        for point in TAKING_OVER:
            assert new[point].wait(SOON) == -signal.SIGKILL, here.log(f"new-{point}")
            new[point] = here.start_agent(f"new-{point}", pool=f"to-{point}", engine=engine)
        for point, run in runs.items():
            check(here, engine, run, f"new-{point}")
            until(lambda point=point: not here.attempts(f"new-{point}"))  # type: ignore[misc]
        until(lambda: [path.name for path in engine.iterdir()] == ["starts"])
    finally:
        kill(*new.values(), *([old] if old else []))
