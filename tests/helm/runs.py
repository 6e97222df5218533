"""Many runs that live while something happens to agents and server, and what must be true of each of them afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import Run, RunRequest
from tests.helm.effects import OUTPUT, Effects
from tests.helm.pods_seen import PodsSeen
from tests.helm.releases import Reached

POOL = "cluster"


@contextmanager
def living(server: Reached, effects: Effects, count: int) -> Iterator[list[str]]:
    """So many runs, each in the midst of its work; they stay there until the end."""
    effects.hold()
    work = Work(command=["python3", "-c", effects.program])
    server.client.deploy("effects", DeploymentSpec(work=work, pool=POOL))
    before = len(effects.began)
    made = [str(server.client.create_run(RunRequest(deployment="effects")).id) for _ in range(count)]
    try:
        effects.wait_for(before + count)
        yield made
    finally:
        effects.go_on()


def check_each_ended_once(
    server: Reached, effects: Effects, pods: PodsSeen, runs: Sequence[str]
) -> dict[str, Run]:
    """One attempt, one pod, each effect once, every byte of output and the result; the runs as they ended."""
    with ThreadPoolExecutor(len(runs)) as asking:
        found = dict(zip(runs, asking.map(lambda run: ended(server, run), runs), strict=True))
        outputs = list(asking.map(lambda run: output(server, run), runs))
    told = {
        run: (one.state, one.message, [each.exit_code for each in one.attempts]) for run, one in found.items()
    }
    assert told == dict.fromkeys(runs, ("Completed", None, [0]))
    assert {run: one.result for run, one in found.items()} == {run: {"run": run} for run in runs}
    assert [run for run, each in zip(runs, outputs, strict=True) if each != OUTPUT] == []
    times = {run: (effects.began[run], effects.ended[run], len(pods.of(run))) for run in runs}
    assert times == dict.fromkeys(runs, (1, 1, 1))
    assert not pods.restarted & set(runs)
    return found


def ended(server: Reached, run: str, seconds: int = 90) -> Run:
    """The run, once it has ended."""
    found = server.client.get_run(run)
    for _ in range(seconds):
        if found.ended_at is not None:
            return found
        found = server.client.get_run(run, wait=1.0, seen=(found.state, found.attempt_count))
    raise TimeoutError(f"the run has not ended: {found}\n{server.client.explain_run(run)}")


def output(server: Reached, run: str, seconds: int = 90) -> bytes:
    """All that its last attempt wrote."""
    for _ in range(seconds):
        part = server.client.read_log(run, wait=1.0)
        if part.complete:
            return part.data
    raise TimeoutError(f"not all output of the run has come: {part}")
