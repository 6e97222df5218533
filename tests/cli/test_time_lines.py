"""The lines about time that people were promised, as they stand, on a real server with a real agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.console import Console, Live, live_server

FILE = """\
deployments:
  - name: nightly
    pool: default
    command: sh -c 'echo nightly'
    schedules:
      - cron: "30 2 * * *"
        timezone: Europe/Berlin
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, module_cache: Path) -> Iterator[Live]:
    """A server of these lines' own: they count on what hello is."""
    with live_server(tmp_path_factory.mktemp("time"), module_cache) as started:
        yield started


@pytest.fixture(scope="module")
def shunter(live: Live) -> Console:
    """A terminal in a folder with a deployment file; hello has two revisions."""
    console = live.shunter
    (console.folder / "shunter.yaml").write_text(FILE)
    for words in ("echo hello", "echo hello again"):
        done = console.shell(
            f"shunter deploy --name hello --pool default --interval 1h -- sh -c '{words}; exit 0'"
        )
        assert done.code == 0, done.err
    return console


def test_preview_of_an_expression_that_is_not_deployed(shunter: Console, tmp_path: Path) -> None:
    line = (
        'shunter schedule preview --cron "30 2 * * *" --timezone Europe/Berlin'
        " --from 2027-03-26T00:00:00Z --count 4 --output json"
    )
    # No server is needed for it, and none is asked.
    done = shunter.having(SHUNTER_API_URL="http://127.0.0.1:9/api", SHUNTER_HOME=str(tmp_path)).shell(line)
    assert done.code == 0, done.err
    slots = done.json
    assert [slot["utc"] for slot in slots] == [
        "2027-03-26T01:30:00Z",
        "2027-03-27T01:30:00Z",
        "2027-03-28T01:00:00Z",
        "2027-03-29T00:30:00Z",
    ]
    assert [slot["local"] for slot in slots] == [
        "2027-03-26T02:30:00+01:00",
        "2027-03-27T02:30:00+01:00",
        "2027-03-28T03:00:00+02:00",
        "2027-03-29T02:30:00+02:00",
    ]
    assert [bool(slot["remark"]) for slot in slots] == [False, False, True, False]
    assert set(slots[0]) == {"utc", "local", "remark"}


def test_dry_run_of_the_file_in_this_folder(shunter: Console) -> None:
    done = shunter.shell("shunter deploy --dry-run")
    assert done.code == 0, done.err
    assert "nightly" in done.text
    assert "nightly" not in shunter.ok("deployment", "list", "-q").text

    done = shunter.shell("shunter deploy")
    assert done.code == 0, done.err
    assert "nightly" in shunter.ok("deployment", "list", "-q").text.split()


def test_history_and_rollback(shunter: Console) -> None:
    done = shunter.shell("shunter deployment history hello && shunter deployment rollback hello --to 1")
    assert done.code == 0, done.err
    found = shunter.ok("deployment", "inspect", "hello", "--output", "json").json
    assert found["revision"] == 3
    assert found["spec"]["work"]["command"] == ["sh", "-c", "echo hello; exit 0"]


def test_backfill_of_a_week(shunter: Console) -> None:
    line = "shunter deployment backfill hello --from 2026-11-01 --to 2026-11-08 --concurrency 4"
    done = shunter.shell(line)
    assert done.code == 0, done.err
    week = ("--deployment", "hello", "--scheduled-after", "2026-11-01T00:00:00Z")
    week += ("--scheduled-before", "2026-11-08T00:00:00Z", "--limit", "1000")
    runs = shunter.ok("run", "list", *week, "--output", "json").json
    assert len({run["slot"] for run in runs}) == len(runs) == 7 * 24
    assert not any(run["late"] for run in runs)

    again = shunter.shell(line)
    assert again.code == 0, again.err
    assert len(shunter.ok("run", "list", *week, "-q").text.split()) == 7 * 24


def test_late_runs_and_status(shunter: Console) -> None:
    done = shunter.shell("shunter run list -q --late && shunter status")
    assert done.code == 0, done.err
    assert "a1" in done.text or "agent" in done.text.lower()
