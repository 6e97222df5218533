"""Chaos: whatever is killed at whatever moment, every run ends exactly once, with the truth about what happened.

The seed is printed; ``SHUNTER_CHAOS_SEED`` repeats one. ``make chaos`` does the same with 10,000 runs.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.chaos.audit import Audit
from tests.chaos.storm import CROWD, weathered
from tests.storage.stores import KINDS

RUNS = int(os.environ.get("SHUNTER_CHAOS_RUNS", "300"))
#: Of each kind: as many as the runs bear without all of them being hit.
KILLS = max(30, RUNS // 20)

pytestmark = pytest.mark.timeout(300 + RUNS)


@pytest.mark.parametrize("store", KINDS)
def test_every_run_ends_once_with_the_truth(
    tmp_path: Path, store: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("SHUNTER_CHAOS_SEED") or random.SystemRandom().randrange(10**6))

    def say(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    say(f"\nSHUNTER_CHAOS_SEED={seed}")
    url = str(request.getfixturevalue("postgres_database")) if store == "postgres" else None
    began = time.monotonic()
    with weathered(tmp_path / "home", seed, runs=RUNS, kills=KILLS, say=say, database_url=url) as storm:
        audit = Audit(storm)
        audit.run()
    say(f"{audit.report()}\n  {time.monotonic() - began:.0f} s in all")
    assert audit.faults == []
    assert len(storm.story.runs) >= RUNS
    for what in ("agent", "keeper", "server"):
        assert storm.story.count(what) >= KILLS
        assert storm.story.count(what, CROWD) >= KILLS / 2
