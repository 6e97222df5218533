"""A server that is away, in every ugly way: no run is killed, all arrives once and in order, no agent exits."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from shunter_agents.link import QUICK_FOR
from tests.chaos.outages import ENDS, Outages, lived_through

#: Seconds that the server is away: past the point where agents begin to ask more rarely.
AWAY = float(os.environ.get("SHUNTER_CHAOS_AWAY", QUICK_FOR + 5))
SEED = int(os.environ.get("SHUNTER_CHAOS_SEED") or "5")

pytestmark = pytest.mark.timeout(AWAY + 300)

NAMES = [
    "refused",
    "reset",
    "500",
    "429",
    "503",
    "half-open",
    "swallowed",
    "truncated",
    "dripping",
    "delayed",
    "duplicated",
    "expired",
    "untrusted",
    "misnamed",
    "no name",
]
#: Where nothing comes as far as a request.
NOT_SPOKEN = {"refused", "expired", "untrusted", "misnamed", "no name"}


@pytest.fixture(scope="module")
def outages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outages]:
    """All outages side by side, over."""
    with lived_through(tmp_path_factory.mktemp("outages"), SEED, AWAY) as lived:
        assert list(lived.all) == NAMES
        yield lived


@pytest.mark.parametrize("name", NAMES)
def test_a_server_away(outages: Outages, name: str) -> None:
    outage = outages.all[name]
    print(f"{name}: {outage.treated} exchanges met it, all known {outage.recovered:.1f} s after it")
    logs = [outages.here.log(agent) for agent in outage.agents]
    assert outage.gone == [], logs
    assert outage.killed == []
    if not outage.away:
        assert '"level": "error"' not in "".join(logs)
    assert (outage.treated > 5) != (name in NOT_SPOKEN)
    assert outage.ended.keys() == outage.runs.keys(), logs
    for run, how in outage.runs.items():
        ended = outage.ended[run]
        last = ended.attempts[-1]
        assert (ended.state, ended.cause, last.exit_code, last.signal) == ENDS[how]
        assert ended.attempt_count == 1
        kinds = [event.kind for event in outages.here.client.list_events(run).events]
        steps = [kind for kind in kinds if kind not in ("late", "lost", "found")]
        assert steps == ["Scheduled", "Claimed", "Starting", "Running", ended.state]
        count = int(re.findall(rb"end (\d+)", outage.outputs[run])[-1])
        lines = [f"line {number}\n" for number in range(1, count + 1)]
        assert outage.outputs[run].decode() == "".join([*lines, f"end {count}\n"])


def test_each_run_did_its_work_once(outages: Outages) -> None:
    did = Counter(line.split()[0] for line in outages.effects.read_text().splitlines())
    assert did == Counter(run for outage in outages.all.values() for run in outage.runs)


def test_what_was_made_meanwhile_waited(outages: Outages) -> None:
    for name, outage in outages.all.items():
        assert len(outage.born) == 2 * len(ENDS)
        for run in outage.born if outage.away else ():
            ended = outage.ended[run]
            assert ended.started_at is not None
            assert outage.back is not None
            assert ended.started_at > outage.back, name


def test_nothing_is_left(outages: Outages) -> None:
    assert outages.here.left_over() == []
    for outage in outages.all.values():
        for agent in outage.agents:
            assert outages.here.attempts(agent) == []
