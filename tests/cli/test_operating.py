"""Operating from the terminal: what changes, what is destroyed, what is made up for, and names on the way."""

from __future__ import annotations

import getpass
import json
import os
import pty
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools.contracts.agents import Agent
from shunter_work_pools.contracts.deployments import Deployment, Revision, ScheduleView
from shunter_work_pools.contracts.pools import Pool, Queue
from shunter_work_pools.contracts.runs import Event, ExportedRun, Run
from shunter_work_pools.contracts.status import Status
from tests.cli.console import SHUNTER, Console, Done, Live, until


@pytest.fixture(scope="module")
def shunter(live: Live) -> Console:
    """A terminal, with a pool that nobody serves and a deployment in it."""
    live.shunter.ok("pool", "create", "idle")
    deploy(live.shunter, "op-waits", "--pool", "idle", "--tag", "op")
    return live.shunter


def deploy(shunter: Console, name: str, *options: str, script: str = "true") -> None:
    shunter.ok("deploy", "--name", name, *options, "--", "sh", "-c", script)


def started(shunter: Console, name: str, *options: str) -> str:
    return shunter.ok("run", "start", name, "-q", *options).text.strip()


def said(shunter: Console, *words: str, answer: str) -> Done:
    """Run the command at a terminal and answer its question."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [SHUNTER, *words],
        env=shunter.env,
        cwd=shunter.folder,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    os.write(ours, answer.encode() + b"\n")
    out, err = running.communicate(timeout=30)
    os.close(ours)
    return Done(running.returncode, out, err.decode())


# -- names


def test_names_may_be_shortened_where_that_is_unique(shunter: Console) -> None:
    deploy(shunter, "short-one", "--pool", "idle", "--cron", "0 6 * * *")
    deploy(shunter, "short-two", "--pool", "idle")
    assert shunter.ok("deployment", "inspect", "short-o", "-o", "json").json["name"] == "short-one"
    assert shunter.ok("pool", "inspect", "id", "-o", "json").json["name"] == "idle"
    assert shunter.ok("queue", "inspect", "id", "def", "-o", "json").json["pool"] == "idle"
    assert shunter.ok("agent", "inspect", "a", "-o", "json").json["name"] == "a1"
    assert shunter.ok("schedule", "pause", "short-o", "def", "-o", "json").json["paused"]
    run = started(shunter, "short-tw")
    assert shunter.ok("run", "list", "-q", "--deployment", "short-tw", "--pool", "id").text.split() == [run]
    ambiguous = shunter("deployment", "pause", "short")
    assert (ambiguous.code, ambiguous.out) == (2, b"")
    assert "'short' may be short-one or short-two" in ambiguous.err
    assert not shunter.ok("deployment", "inspect", "short-one", "-o", "json").json["paused"]


def test_a_whole_name_is_itself_though_others_begin_so(shunter: Console) -> None:
    deploy(shunter, "self", "--pool", "idle")
    deploy(shunter, "self-2", "--pool", "idle", "--cron", "0 6 * * *")
    assert shunter.ok("deployment", "inspect", "self", "-o", "json").json["name"] == "self"
    missing = shunter("schedule", "pause", "self", "default")  # there is one of this name at self-2
    assert missing.code == 2
    assert not shunter.ok("schedule", "list", "self-2", "-o", "json").json[0]["paused"]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["deployment", "inspect", "op-wiats"], "op-waits"),
        (["deployment", "history", "op-wiats"], "op-waits"),
        (["deployment", "rollback", "op-wiats"], "op-waits"),
        (["deployment", "pause", "op-wiats"], "op-waits"),
        (["deployment", "delete", "op-wiats", "--yes"], "op-waits"),
        (["deployment", "flush-late", "op-wiats"], "op-waits"),
        (["deployment", "events", "op-wiats"], "op-waits"),
        (["deployment", "backfill", "op-wiats", "--from", "2026-01-01", "--to", "2026-01-02"], "op-waits"),
        (["run", "start", "op-wiats"], "op-waits"),
        (["run", "list", "--deployment", "op-wiats"], "op-waits"),
        (["run", "list", "--pool", "idel"], "idle"),
        (["run", "list", "--pool", "idle", "--queue", "defualt"], "default"),
        (["run", "export", "--deployment", "op-wiats"], "op-waits"),
        (["schedule", "list", "op-wiats"], "op-waits"),
        (["schedule", "preview", "op-wiats"], "op-waits"),
        (["pool", "inspect", "idel"], "idle"),
        (["pool", "pause", "idel"], "idle"),
        (["pool", "delete", "idel", "--yes"], "idle"),
        (["queue", "list", "idel"], "idle"),
        (["queue", "create", "idel", "x"], "idle"),
        (["queue", "pause", "idle", "defualt"], "default"),
        (["queue", "inspect", "idle", "defualt"], "default"),
        (["queue", "delete", "idle", "defualt", "--yes"], "default"),
        (["agent", "inspect", "a11"], "a1"),
        (["agent", "remove", "a11", "--yes"], "a1"),
        (["agent", "lst"], "list"),
        (["shedule", "list"], "schedule"),
    ],
)
def test_a_mistyped_name_gets_the_nearest_one(shunter: Console, words: list[str], nearest: str) -> None:
    done = shunter(*words)
    assert (done.code, done.out) == (2, b"")
    assert f"Did you mean '{nearest}'" in done.err


def test_what_deletes_wants_the_whole_name(shunter: Console) -> None:
    for words in (
        ["deployment", "delete", "op-wait"],
        ["pool", "delete", "idl"],
        ["queue", "delete", "idle", "d"],
    ):
        done = shunter(*words, "--yes")
        assert done.code == 2
        assert "This needs the whole name: " in done.err


def test_commands_may_be_shortened(shunter: Console) -> None:
    assert shunter.ok("pool", "l", "-q").text == shunter.ok("po", "list", "-q").text
    several = shunter("dep", "list")
    assert (several.code, "'dep' may be deploy or deployment" in several.err) == (2, True)


def test_a_name_of_other_letters_is_told_as_it_is(shunter: Console) -> None:
    for words in (
        ["deployment", "inspect", "größe-東京"],
        ["pool", "inspect", "größe-東京"],
        ["run", "start", "größe-東京"],
    ):
        done = shunter(*words)
        assert done.code == 2
        assert "größe-東京" in done.err
        assert "Traceback" not in done.err


# -- forms


def test_yaml_and_json_say_the_same_and_are_the_contract(shunter: Console) -> None:
    from ruamel.yaml import YAML

    deploy(
        shunter, "forms", "--pool", "default", "--cron", "0 6 * * *", "--env", "SWITCH=on", "--env", "N=0x1f"
    )
    run = started(shunter, "forms")
    shunter("run", "wait", run, "--timeout", "30")
    one: dict[tuple[str, ...], type] = {
        ("run", "inspect", run): Run,
        ("deployment", "inspect", "forms"): Deployment,
        ("pool", "inspect", "default"): Pool,
        ("queue", "inspect", "default", "default"): Queue,
        ("agent", "inspect", "a1"): Agent,
        ("pool", "resume", "default"): Pool,
        ("schedule", "resume", "forms"): ScheduleView,
    }
    many: dict[tuple[str, ...], type] = {
        ("run", "list", "--deployment", "forms"): Run,
        ("run", "events", run): Event,
        ("deployment", "list"): Deployment,
        ("deployment", "history", "forms"): Revision,
        ("schedule", "list"): ScheduleView,
        ("pool", "list"): Pool,
        ("queue", "list"): Queue,
    }
    old = YAML(typ="safe", pure=True)
    old.version = (1, 1)  # in which on, yes and 0x1f are no strings
    for words, shape in {**one, **many}.items():
        data = shunter.ok(*words, "-o", "json").json
        for item in data if words in many else [data]:
            shape.model_validate(item)  # type: ignore[attr-defined]
        text = shunter.ok(*words, "-o", "yaml").text
        for reader in (YAML(typ="safe", pure=True), old):
            assert reader.load(text) == data, text
    assert Status.model_validate(shunter.ok("status", "-o", "json").json).agents


def test_nothing_but_names_with_q(shunter: Console) -> None:
    assert shunter.ok("pool", "create", "named", "-q").text == "named\n"
    assert shunter.ok("queue", "create", "named", "fast", "-q").text == "fast\n"
    assert set(shunter.ok("queue", "list", "named", "-q").text.split()) == {"default", "fast"}
    assert "op-waits" in shunter.ok("deployment", "list", "-q").text.split()
    assert "a1" in shunter.ok("agent", "list", "-q").text.split()
    ids = shunter.ok("run", "start", "op-waits", "--count", "3", "-q").text.split()
    assert len(set(ids)) == 3
    assert set(ids) <= set(
        shunter.ok("run", "list", "-q", "--deployment", "op-waits", "--limit", "100").text.split()
    )


def test_deployments_and_agents_are_chosen_as_runs_are(shunter: Console) -> None:
    shunter.ok("pool", "create", "chosen-here", "-q")
    shunter.ok("queue", "create", "chosen-here", "fast", "-q")
    for name, *more in (
        ("ch-fast", "--queue", "fast", "--tag", "a", "--tag", "b"),
        ("ch-slow", "--tag", "a"),
    ):
        shunter.ok("deploy", "--name", name, "--pool", "chosen-here", *more, "--", "true")

    def listed(*words: str) -> list[str]:
        return shunter.ok("deployment", "list", "-q", *words).text.split()

    assert listed("--pool", "chosen-here") == listed("--pool", "chosen-h") == ["ch-fast", "ch-slow"]
    assert listed("--pool", "chosen-here", "--queue", "fast") == ["ch-fast"]
    assert listed("--pool", "chosen-here", "--queue", "def") == ["ch-slow"]
    assert listed("--tag", "a", "--tag", "b") == ["ch-fast"]
    assert listed("--tag", "a", "--pool", "default") == []
    assert shunter.ok("agent", "list", "-q", "--pool", "default").text == "a1\n"
    assert shunter.ok("agent", "list", "-q", "--pool", "chosen-here").text == ""
    assert shunter.ok("agent", "list", "-q", "--tag", "nobody-has-it").text == ""
    mistyped = shunter("deployment", "list", "--pool", "chosen-hree")
    assert (mistyped.code, mistyped.out, "'chosen-here'" in mistyped.err) == (2, b"", True)
    alone = shunter("agent", "list", "--queue", "fast")
    assert (alone.code, alone.out, "--queue needs --pool" in alone.err) == (2, b"", True)
    for name in ("ch-fast", "ch-slow"):
        shunter.ok("deployment", "delete", name, "--yes")


# -- many runs


def test_many_runs_are_made_once(shunter: Console) -> None:
    done = shunter.ok(
        "run", "start", "op-waits", "--count", "1200", "--tag", "bulk-1200", "--idempotency-key", "b"
    )
    assert done.text == "1,200 runs of op-waits created\n"
    again = shunter.ok(
        "run", "start", "op-waits", "--count", "1201", "--tag", "bulk-1200", "--idempotency-key", "b"
    )
    assert again.text == "1 run of op-waits created, 1,200 were there already\n"
    listed = shunter.ok("run", "list", "-q", "--tag", "bulk-1200", "--limit", "5000").text.split()
    assert len(set(listed)) == 1201


def test_several_runs_are_ended_though_one_cannot_be(shunter: Console) -> None:
    runs = shunter.ok("run", "start", "op-waits", "--count", "3", "-q").text.split()
    assert "Cancelled (skipped)" in shunter.ok("run", "skip", runs[0]).text
    done = shunter("run", "skip", runs[1], "no-such-run", runs[2])
    assert done.code == 2
    assert done.err.count("Error: ") == 1
    states = [shunter("run", "inspect", run, "-o", "json").json["cause"] for run in runs]
    assert states == ["skipped"] * 3
    assert len(shunter.ok("run", "retry", *runs, "-o", "json").json) == 3
    assert len(shunter.ok("run", "cancel", *runs, "-o", "yaml").text.split("- id:")) == 4


def test_filters_are_alike_in_list_and_export(shunter: Console, tmp_path: Path) -> None:
    deploy(shunter, "exported", "--pool", "default", "--tag", "ex", script="echo hi")
    runs = [started(shunter, "exported", "-p", "n=1") for _ in range(3)]
    for run in runs:
        assert shunter("run", "wait", run, "--timeout", "30").code == 0
    filters = (
        "--deployment",
        "exported",
        "--state",
        "completed",
        "--since",
        "1h",
        "--pool",
        "default",
        "--queue",
        "default",
    )
    listed = shunter.ok("run", "list", "-q", *filters).text.split()
    out = shunter.ok("run", "export", *filters)
    found = [ExportedRun.model_validate_json(line) for line in out.text.splitlines()]
    assert [str(one.id) for one in found] == listed == runs[::-1]
    assert all(one.attempts and one.events and one.parameters == {"n": 1} for one in found)
    assert out.err == "3 runs exported\n"
    file = tmp_path / "runs.jsonl"
    told = shunter.ok("run", "export", *filters, "--file", str(file))
    assert (told.text, file.read_bytes()) == ("", out.out)
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith((".", "runs"))] == ["runs.jsonl"]
    for none in ("--until", "--scheduled-before"):
        assert shunter.ok("run", "list", "-q", "--deployment", "exported", none, "1h").text == ""
    assert shunter.ok(
        "run", "list", "-q", "--deployment", "exported", "--scheduled-after", "1h", "--no-late"
    ).text.split()
    assert shunter("run", "export", "--file", str(tmp_path / "no" / "such")).code == 2
    assert shunter("run", "list", "--queue", "default").code == 2


def test_runs_are_deleted_once_they_have_ended(shunter: Console) -> None:
    run = started(shunter, "op-waits")
    refused = shunter("run", "delete", run, "--yes")
    assert (refused.code, refused.out) == (2, b"")
    shunter.ok("run", "cancel", run)
    unasked = shunter("run", "delete", run)
    assert unasked.code == 2
    assert "1 run with output and events" in unasked.err
    assert "--yes" in unasked.err
    assert shunter.ok("run", "delete", run[-8:], "--yes", "-o", "json").json["id"] == run
    assert shunter("run", "inspect", run).code == 2


# -- destruction


def test_a_question_is_asked_before_what_cannot_be_undone(shunter: Console) -> None:
    deploy(shunter, "goner", "--pool", "idle", "--cron", "0 6 * * *")
    started(shunter, "goner")
    unasked = shunter("deployment", "delete", "goner")
    assert (unasked.code, unasked.out) == (2, b"")
    assert "deployment goner with 1 revision, 1 schedule and 1 run" in unasked.err
    for answer in ("", "n", "what"):
        refused = said(shunter, "deployment", "delete", "goner", answer=answer)
        assert refused.code == 1
        assert "Delete deployment goner with 1 revision, 1 schedule and 1 run? [y/N]" in refused.err
        assert "nothing was deleted" in refused.err
    assert "goner" in shunter.ok("deployment", "list", "-q").text
    done = said(shunter, "deployment", "delete", "goner", answer="y")
    assert (done.code, done.out) == (0, b"deployment goner deleted\n")
    assert "goner" not in shunter.ok("deployment", "list", "-q").text


def test_pools_queues_and_agents_go(shunter: Console) -> None:
    shunter.ok("pool", "create", "gone")
    shunter.ok("queue", "create", "gone", "fast")
    assert "2 queues" in shunter("pool", "delete", "gone").err
    assert shunter.ok("queue", "delete", "gone", "fast", "-y", "-o", "json").json["name"] == "fast"
    assert shunter.ok("pool", "delete", "gone", "-y").text == "pool gone deleted\n"
    busy = shunter("pool", "delete", "idle", "--yes")
    assert (busy.code, busy.out) == (2, b"")
    alive = shunter("agent", "remove", "a1", "--yes")
    assert (alive.code, alive.out) == (2, b"")


# -- time


def test_history_and_rollback(shunter: Console) -> None:
    deploy(shunter, "rolls", "--pool", "idle", "--priority", "1")
    deploy(shunter, "rolls", "--pool", "idle", "--priority", "2", "--tag", "new")
    lines = shunter.ok("deployment", "history", "rolls").text.splitlines()
    assert lines[1].split()[:2] == ["2", "current"]
    assert "tags +new, priority 1 → 2" in lines[1]
    done = shunter.shell("shunter deployment history rolls && shunter deployment rollback rolls --to 1")
    assert done.code == 0
    assert done.text.endswith("rolls is as in revision 1 again (revision 3)\n")
    assert shunter("deployment", "inspect", "rolls", "-o", "json").json["spec"]["priority"] == 1
    assert shunter("deployment", "rollback", "rolls", "--to", "9").code == 2


def test_backfill_takes_dates_of_the_schedules_zone_and_goes_on(shunter: Console) -> None:
    deploy(shunter, "fills", "--pool", "idle", "--cron", "0 0 * * *", "--timezone", "Pacific/Auckland")
    words = (
        "deployment",
        "backfill",
        "fills",
        "--from",
        "2026-11-01",
        "--to",
        "2026-11-08",
        "--concurrency",
        "4",
    )
    assert "7 runs would be made" in shunter.ok(*words, "--dry-run").text
    assert shunter.ok("run", "list", "-q", "--deployment", "fills").text == ""
    assert shunter.ok(*words).text == "schedule default of fills: 7 runs made\n"
    again = shunter.ok(*words)
    assert again.text == "schedule default of fills: 0 runs made, 7 slots had one already\n"
    slots = sorted(
        run["slot"] for run in shunter.ok("run", "list", "--deployment", "fills", "-o", "json").json
    )
    assert slots[0] == "2026-10-31T11:00:00Z"
    assert slots[-1] == "2026-11-06T11:00:00Z"
    wrong = shunter("deployment", "backfill", "fills", "--from", "2026-11-08", "--to", "2026-11-01")
    assert (wrong.code, "is not after" in wrong.err) == (2, True)
    assert (
        shunter("deployment", "backfill", "op-waits", "--from", "2026-11-01", "--to", "2026-11-08").code == 2
    )


def test_late_runs_are_listed_and_flushed(shunter: Console) -> None:
    deploy(shunter, "lates", "--pool", "idle")
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    runs = {started(shunter, "lates", "--at", past) for _ in range(2)}
    until(
        lambda: set(shunter.ok("run", "list", "-q", "--late", "--deployment", "lates").text.split()) == runs
    )
    assert shunter.shell("shunter run list -q --late && shunter status").code == 0
    assert shunter.ok("deployment", "flush-late", "lates").text == "2 late runs of lates skipped\n"
    assert shunter.ok("deployment", "flush-late", "lates", "-o", "json").json == {"runs": 0, "more": False}


@pytest.mark.parametrize(
    ("words", "inspect"),
    [
        (["deployment", "NAME", "stops"], ["deployment", "inspect", "stops"]),
        (["schedule", "NAME", "stops", "default"], ["schedule", "list", "stops"]),
        (["queue", "NAME", "idle", "default"], ["queue", "inspect", "idle", "default"]),
        (["pool", "NAME", "idle"], ["pool", "inspect", "idle"]),
        (["agent", "NAME", "a1"], ["agent", "inspect", "a1"]),
        (["server", "NAME"], ["server", "status"]),
    ],
    ids=lambda words: words[0],
)
def test_what_is_paused_says_by_whom_and_why(shunter: Console, words: list[str], inspect: list[str]) -> None:
    deploy(shunter, "stops", "--pool", "idle", "--cron", "0 6 * * *")
    by = f"{getpass.getuser()}@{socket.gethostname()}"

    def shown() -> Any:
        found = shunter.ok(*inspect, "-o", "json").json
        return (found[0] if isinstance(found, list) else found)["pause"]

    def say(verb: str, *more: str) -> Done:
        return shunter.ok(*(verb if word == "NAME" else word for word in words), *more)

    assert shown() is None
    say("pause", "--reason", "new disks")
    try:
        assert {key: shown()[key] for key in ("by", "reason")} == {
            "by": by,
            "reason": "new disks",
        }
        assert "new disks" in shunter.ok(*inspect).text
        told = say("pause", "-o", "json").json
        assert told["pause"]["reason"] == "new disks", "no new reason is none"
    finally:
        assert say("resume", "-o", "json").json["pause"] is None
    assert shown() is None


def test_maintenance_is_on_top_of_the_status_and_ends_at_once(shunter: Console) -> None:
    deploy(shunter, "served", "--pool", "default", script="echo went")
    shunter.ok("server", "pause", "--reason", "new disks")
    try:
        run = started(shunter, "served")
        top = shunter.ok("status").text.splitlines()[0]
        assert top.startswith("MAINTENANCE since ")
        assert top.endswith("new disks")
        assert shunter.ok("status", "-o", "json").json["server"]["pause"]["reason"] == "new disks"
        (line,) = [one for one in shunter.ok("run", "list").text.splitlines() if run[-8:] in one]
        assert "Scheduled held" in line
        assert "Scheduled held" in shunter.ok("run", "inspect", run).text
        assert run in shunter.ok("run", "list", "-q", "--held").text.split()
        assert run not in shunter.ok("run", "list", "-q", "--no-held").text.split()
    finally:
        shunter.ok("server", "resume")
    assert shunter.ok("run", "wait", run, "--timeout", "30s").code == 0
    assert not shunter.ok("status").text.startswith("MAINTENANCE")


def test_a_paused_agent_takes_nothing_until_it_is_resumed(shunter: Console) -> None:
    deploy(shunter, "served", "--pool", "default", script="echo went")
    assert shunter.ok("agent", "pause", "a1", "--reason", "a noisy fan").text == "agent a1 paused\n"
    try:
        run = started(shunter, "served")
        states = {line.split()[0]: line.split()[2] for line in shunter.ok("agent", "list").text.splitlines()}
        assert states["a1"] == "paused"
        assert "a noisy fan" in shunter.ok("status").text
        assert shunter("run", "wait", run, "--timeout", "1s").code == 124
    finally:
        shunter.ok("agent", "resume", "a1")
    assert shunter.ok("run", "wait", run, "--timeout", "30s").code == 0


def test_the_priority_of_runs_that_wait_is_changed(shunter: Console) -> None:
    first, second = started(shunter, "op-waits"), started(shunter, "op-waits")
    done = shunter.ok("run", "update", first, second, "--priority", "7")
    assert done.text == "".join(f"run {run} has priority 7 now\n" for run in (first, second))
    assert shunter.ok("run", "inspect", first, "-o", "json").json["priority"] == 7
    assert '"new": 7' in json.dumps(shunter.ok("run", "events", first, "-o", "json").json)
    shunter.ok("run", "cancel", first)
    refused = shunter("run", "update", first, "--priority", "1")
    assert (refused.code, refused.out) == (2, b"")
    assert "has ended already: Cancelled" in refused.err
    shunter.ok("run", "cancel", second)


def test_schedules_are_paused_and_previewed(shunter: Console) -> None:
    deploy(shunter, "times", "--pool", "idle", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin")
    assert "paused" in shunter.ok("schedule", "pause", "times").text
    assert ["times", "default", "paused"] in [
        line.split()[:3] for line in shunter.ok("schedule", "list").text.splitlines()
    ]
    assert "next" in shunter.ok("schedule", "resume", "times", "default").text
    words = ("--from", "2027-03-26T00:00:00Z", "--count", "4", "--output", "json")
    deployed = shunter.ok("schedule", "preview", "times", *words).json
    assert (
        deployed
        == shunter.ok(
            "schedule", "preview", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", *words
        ).json
    )


def test_an_expression_is_previewed_without_a_server(alone: Console) -> None:
    line = (
        'shunter schedule preview --cron "30 2 * * *" --timezone Europe/Berlin'
        " --from 2027-03-26T00:00:00Z --count 4 --output json"
    )
    found = alone.shell(line)
    assert (found.code, found.err) == (0, "")
    assert [list(slot) for slot in found.json] == [["utc", "local", "remark"]] * 4
    assert found.json[0] == {
        "utc": "2027-03-26T01:30:00Z",
        "local": "2027-03-26T02:30:00+01:00",
        "remark": None,
    }
    assert "does not exist" in found.json[2]["remark"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cron", "0 0 30 2 *"], "30 2"),
        (["--cron", "0 0 * * *", "--timezone", "Mars/Olympus"], "Mars/Olympus"),
        (["--interval", "10ms"], "shorter than one second"),
        (["--rrule", "FREQ=NEVER"], "NEVER"),
        (["--cron", "* * * * *", "--start", "2027-01-02", "--end", "2027-01-01"], "end must be after start"),
        (["--cron", "* * * * *", "--interval", "5s"], "exclude each other"),
        (["--interval", "5s", "--day-and"], "--day-and is for --cron"),
        (["--cron", "* * * * *", "--from", "soon"], "--from 'soon' is not a time"),
        (["hello", "--cron", "* * * * *"], "without --cron"),
        ([], "nothing to preview"),
    ],
)
def test_what_cannot_be_previewed_is_told(alone: Console, words: list[str], says: str) -> None:
    done = alone("schedule", "preview", *words)
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith("Error: ")
    assert says in done.err


# -- the server is not there


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--watch"],
        ["run", "list"],
        ["run", "export"],
        ["schedule", "list"],
        ["deployment", "history", "x"],
        ["pool", "delete", "x", "--yes"],
        ["agent", "inspect", "x"],
        ["queue", "list"],
    ],
)
def test_a_server_that_is_not_there_is_told(alone: Console, words: list[str]) -> None:
    done = alone(*words)
    assert (done.code, done.out) == (1, b"")
    assert done.err.startswith("Error: no server answers at ")
    assert len(done.err.splitlines()) == 2


def test_completion_scripts(alone: Console) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_SHUNTER_COMPLETE" in alone.ok("completion", shell).text
    assert alone("completion", "tcsh").code == 2


def test_names_are_completed_from_the_server(shunter: Console) -> None:
    def completed(line: str) -> list[str]:
        env = {
            "_SHUNTER_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        return shunter.having(**env)().text.split()

    assert completed("shunter sta") == ["status"]
    assert completed("shunter run sk") == ["skip"]
    assert completed("shunter deployment inspect op-") == ["op-waits"]
    assert completed("shunter queue inspect idle ") == ["default"]
    assert completed("shunter run inspect 0")
    gone = shunter.having(
        SHUNTER_API_URL="http://127.0.0.1:1/api",
        _SHUNTER_COMPLETE="complete_bash",
        COMP_WORDS="shunter pool inspect ",
        COMP_CWORD="3",
    )()
    assert (gone.text.split(), "Traceback" in gone.err) == ([], False)


def test_json_lines_are_one_object_each(shunter: Console) -> None:
    for line in shunter.ok("run", "export", "--tag", "op", "--until", "+1m").text.splitlines():
        assert json.loads(line)["deployment"] == "op-waits"
