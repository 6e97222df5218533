"""Chaos: whatever is killed at whatever moment, every run ends exactly once, with the truth about what happened.

The seed is printed; ``SHUNTER_CHAOS_SEED`` repeats one. ``make chaos`` does the same with 10,000 runs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from tests.chaos.audit import Audit
from tests.chaos.grounds import Containers, Ground, Jobs, Processes
from tests.chaos.storm import Story, weathered
from tests.cluster.cluster import OwnCluster
from tests.engines.docker import Daemon
from tests.storage.stores import KINDS

RUNS = int(os.environ.get("SHUNTER_CHAOS_RUNS", "300"))
#: Of each kind: as many as the runs bear without all of them being hit.
KILLS = max(30, RUNS // 20)
#: On engines, where a run costs a hundred times as much: runs, kills of agents and servers, kills of the engine.
ENGINE_RUNS = int(os.environ.get("SHUNTER_CHAOS_ENGINE_RUNS", "36"))
ENGINE_KILLS, OUTAGES = max(5, ENGINE_RUNS // 6), max(3, ENGINE_RUNS // 15)

pytestmark = pytest.mark.timeout(300 + RUNS + 10 * ENGINE_RUNS)
Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Tells how far it is while it goes on."""

    def tell(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    return tell


def storm_over(
    ground: Ground, home: Path, say: Say, runs: int, kills: Mapping[str, int], url: str | None = None
) -> Story:
    """A storm in which nothing went wrong."""
    seed = int(os.environ.get("SHUNTER_CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    say(f"\nSHUNTER_CHAOS_SEED={seed}")
    began = time.monotonic()
    with weathered(home, seed, ground, runs=runs, kills=kills, say=say, database_url=url) as storm:
        audit = Audit(storm)
        audit.run()
    say(f"{audit.report()}\n  {time.monotonic() - began:.0f} s in all")
    assert audit.faults == []
    assert len(storm.story.runs) >= runs
    for what, count in kills.items():
        assert storm.story.count(what) >= count
        assert storm.story.count(what, ground.crowd) >= count // 2
    return storm.story


@pytest.mark.parametrize("store", KINDS)
def test_every_run_ends_once_with_the_truth(
    tmp_path: Path, store: str, request: pytest.FixtureRequest, say: Say
) -> None:
    url = str(request.getfixturevalue("postgres_database")) if store == "postgres" else None
    kills = dict.fromkeys(("agent", "keeper", "server"), KILLS)
    storm_over(Processes(), tmp_path / "home", say, RUNS, kills, url)


def test_engine_docker(tmp_path: Path, docker_daemon: Daemon, say: Say) -> None:
    """The engine is killed as well, and lets containers live on (live-restore)."""
    docker_daemon.stop()
    docker_daemon.live_restore = True
    docker_daemon.start()
    kills = {"agent": ENGINE_KILLS, "server": ENGINE_KILLS, "engine": OUTAGES}
    storm_over(Containers(docker_daemon), tmp_path / "home", say, ENGINE_RUNS, kills)


def test_engine_kubernetes(tmp_path: Path, own_cluster: OwnCluster, say: Say) -> None:
    """Programs of the cluster are killed as well, and pods deleted; agents that stay away are relieved by others."""
    namespace = f"storm-{uuid4().hex[:8]}"
    own_cluster.kubectl("create", "namespace", namespace)
    kills = {"agent": ENGINE_KILLS * 2 // 3, "server": ENGINE_KILLS * 2 // 3, "cluster": OUTAGES}
    storm_over(Jobs(own_cluster, namespace), tmp_path / "home", say, ENGINE_RUNS * 2 // 3, kills)
    own_cluster.kubectl("delete", "namespace", namespace, "--wait=false")
