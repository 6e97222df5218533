"""What every command that reads prints, at 80 and 140 columns, and the help of all, word for word.

``make golden`` writes the files in ``golden/`` anew; what changed in them is for a person to judge.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.console import Console
from tests.cli.fixed_world import World, fixed_world

GOLDEN = Path(__file__).parent / "golden"

#: File -> the lines in it. ``{name}`` is a run.
LINES = {
    "run": [
        "run list",
        "run list --state failed --state crashed",
        "run list --deployment hel --no-late",
        "run list --pool default --queue default --since 1d",
        "run list --late -q",
        "run list --tag nobody-has-it",
        "run list --limit 2",
        "run inspect {done}",
        "run inspect {failed}",
        "run inspect {late}",
        "run inspect {running}",
        "run explain {done}",
        "run explain {failed}",
        "run explain {late}",
        "run explain {running}",
        "run explain {upcoming}",
        "run events {failed}",
        "run logs {done}",
        "run tasks {failed}",
        "run tasks {failed} --state failed --state skipped",
        "run tasks {failed} --name render -q",
        "run tasks {done}",
        "run graph {failed}",
        "run graph {failed} --each",
        "run graph {done}",
        "run artifacts {failed}",
        "run artifacts {failed} prices",
        "run artifacts {failed} report",
    ],
    "deployment": [
        "deployment list",
        "deployment list -q",
        "deployment inspect nightly-report",
        "deployment inspect paused",
        "deployment inspect train",
        "deployment history nightly-report",
        "deployment history hello",
        "deployment events hello",
    ],
    "schedule": [
        "schedule list",
        "schedule list -q",
        "schedule list nightly-report",
        "schedule preview nightly-report nightly --count 3",
        "schedule preview train --from 2027-03-27 --count 3",
        'schedule preview --cron "30 2 * * *" --timezone Europe/Berlin --from 2027-03-26T00:00:00Z --count 4',
        "schedule preview --interval 90m --timezone Asia/Kolkata --from 2027-01-01 --count 2",
        "schedule preview --rrule 'DTSTART:20270101T060000\\nRRULE:FREQ=MONTHLY;COUNT=2' --from 2027-01-01",
    ],
    "pool": ["pool list", "pool list -q", "pool inspect default", "pool inspect gpu"],
    "route": ["route explain hello", "route explain train", "route explain hello --tag gpu"],
    "queue": ["queue list", "queue list default", "queue list -q", "queue inspect default fast"],
    "limit": ["limit list", "limit list -q", "limit inspect warehouse", "limit inspect mail"],
    "secret": ["secret list", "secret list -q"],
    "agent": ["agent list", "agent list -q", "agent inspect a1", "agent inspect full3"],
    "status": ["status", "status --since 1h"],
}
PROGRAMS = [
    "run list --limit 1 --state completed",
    "run inspect {failed}",
    "run events {done}",
    "run tasks {failed} --name fetch --limit 2",
    "run graph {failed}",
    "run artifacts {failed} prices",
    "deployment inspect train",
    "deployment history hello",
    "schedule list train",
    'schedule preview --cron "30 2 * * *" --timezone Europe/Berlin --from 2027-03-26T00:00:00Z --count 4',
    "run explain {failed}",
    "route explain train",
    "pool inspect gpu",
    "queue list gpu",
    "limit inspect warehouse",
    "secret list",
    "agent list",
]
GROUPS = (
    *("", "server", "agent", "pool", "queue", "limit", "secret"),
    *("deployment", "schedule", "run", "route", "config", "key", "audit"),
)
#: Commands that are no groups.
SINGLE = ("up", "init", "deploy", "status", "login", "whoami", "completion")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_cache: Path) -> Iterator[World]:
    with fixed_world(tmp_path_factory.mktemp("fixed"), module_cache) as made:
        yield made


def check(name: str, found: str) -> None:
    """Compare with what is kept; or keep it, if SHUNTER_GOLDEN=write."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SHUNTER_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
        return
    kept = path.read_text() if path.exists() else ""
    changes = difflib.unified_diff(
        kept.splitlines(), found.splitlines(), f"golden/{path.name}", "now", lineterm=""
    )
    assert found == kept, "\n".join(["`make golden` keeps it as it is now.", *changes])


def _session(world: World, lines: list[str], columns: int, *more: str) -> str:
    """The lines and what they print, as on a terminal."""
    text = ""
    for line in lines:
        done = world(*shlex.split(line), *more, columns=columns)
        shown = world.steady(done.text + done.err)
        assert done.code == 0, f"{line}: {shown}"
        if not more:
            assert max(map(len, shown.splitlines()), default=0) <= columns, shown
        text += f"$ shunter {' '.join([line, *more])}\n{shown}\n"
    return text


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("name", LINES)
def test_tables(world: World, name: str, columns: int) -> None:
    check(f"{name}.{columns}", _session(world, LINES[name], columns))


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_programs(world: World, form: str) -> None:
    check(form, _session(world, PROGRAMS, 80, "-o", form))


@pytest.mark.parametrize("group", GROUPS)
def test_help(alone: Console, group: str) -> None:
    """The help of a group and of all its commands."""
    words = group.split()
    top = alone(*words, "--help")
    assert top.code == 0
    text = top.text
    below = [line.split()[0] for line in top.text.split("Commands:\n")[1].splitlines() if line[:3].strip()]
    for name in below if group else SINGLE:
        done = alone(*words, name, "--help")
        assert done.code == 0, done.err
        text += f"\n{done.text}"
    assert max(map(len, text.splitlines())) <= 80
    check(f"help{'.' + group if group else ''}", text)


def test_status_fits_a_screen_of_24_lines(world: World) -> None:
    done = world("status")
    assert len(done.text.splitlines()) <= 23
