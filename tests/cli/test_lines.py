"""The lines that people were promised, as they stand, on a real server with a real agent."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psutil
import pytest

from tests.cli.console import SHUNTER, Console, Live, until
from tests.patience import SOON

PIPELINE = '''"""A pipeline of one step."""


def main(year: int, name: str = "co2", share: float | None = None) -> dict:
    """Counts a year."""
    print("year", repr(year), repr(name), repr(share))
    return {"year": year, "name": name}
'''


@pytest.fixture(scope="module")
def shunter(live: Live) -> Console:
    """A terminal in a folder with a pipeline, and the two deployments of the lines."""
    console = live.shunter
    (console.folder / "pipeline.py").write_text(PIPELINE)
    lines = (
        "shunter deploy --name hello --pool default --tag demo --interval 60s -- sh -c 'echo hello; exit 0'",
        "shunter deploy pipeline.py:main --name pipeline --pool default"
        ' --cron "0 6 * * *" --timezone Europe/Berlin -p year=2013',
    )
    for line in lines:
        done = console.shell(line)
        assert done.code == 0, done.err
        assert "deployed as revision 1" in done.text
    return console


def _deploy(shunter: Console, name: str, script: str, *options: str) -> None:
    shunter.ok("deploy", "--name", name, "--pool", "default", *options, "--", "sh", "-c", script)


def _start(shunter: Console, name: str, *options: str) -> str:
    done = shunter.ok("run", "start", name, *options, "--output", "json")
    return str(done.json["id"])


def _finished(shunter: Console, name: str, *options: str) -> str:
    run = _start(shunter, name, *options)
    shunter("run", "wait", run, "--timeout", "30")
    return run


# -- the lines


def test_start_wait_inspect_list_logs(shunter: Console) -> None:
    done = shunter.shell("shunter run start hello --output json")
    assert done.code == 0
    run = done.json["id"]
    assert UUID(run).version == 7

    assert shunter.shell(f"shunter run wait {run} --timeout 60").code == 0

    found = shunter.shell(f"shunter run inspect {run} --output json").json
    wanted = (
        "id deployment revision pool queue tags parameters state cause late created_at scheduled_at "
        "started_at ended_at result attempts"
    )
    assert set(wanted.split()) <= set(found)
    assert (found["deployment"], found["revision"], found["pool"], found["queue"]) == (
        "hello",
        1,
        "default",
        "default",
    )
    assert (found["state"], found["cause"], found["tags"], found["late"]) == (
        "Completed",
        None,
        ["demo"],
        False,
    )
    (attempt,) = found["attempts"]
    wanted = "number state cause agent pid exit_code signal started_at ended_at max_rss_bytes cpu_seconds"
    assert set(wanted.split()) <= set(attempt)
    assert (attempt["number"], attempt["agent"], attempt["exit_code"], attempt["signal"]) == (
        1,
        "a1",
        0,
        None,
    )
    assert attempt["pid"] > 0
    assert attempt["max_rss_bytes"] > 0
    for moment in (found["created_at"], found["ended_at"], attempt["started_at"]):
        assert datetime.fromisoformat(moment).utcoffset() == timedelta(0)

    listed = shunter.shell("shunter run list --state Completed --tag demo --limit 20 --output json")
    assert run in [one["id"] for one in listed.json]

    logs = shunter.shell(f"shunter run logs {run}")
    assert (logs.code, logs.out, logs.err) == (0, b"hello\n", "")


def test_cancel(shunter: Console) -> None:
    _deploy(shunter, "sleeper", "echo begun; sleep 300")
    run = _start(shunter, "sleeper")
    until(lambda: shunter("run", "logs", run).out == b"begun\n")
    assert shunter.shell(f"shunter run wait {run} --timeout 0.5").code == 124
    assert shunter.shell(f"shunter run cancel {run}").code == 0
    assert shunter.shell(f"shunter run wait {run} --timeout 30").code == 1
    found = shunter("run", "inspect", run, "--output", "json").json
    assert (found["state"], found["cause"]) == ("Cancelled", "cancelled")


def test_a_python_function_gets_its_parameters_typed(shunter: Console) -> None:
    run = _finished(shunter, "pipeline", "-p", "name=7", "-p", "share=0.5")
    found = shunter("run", "inspect", run, "--output", "json").json
    assert found["state"] == "Completed", found
    assert found["parameters"] == {"year": 2013, "name": "7", "share": 0.5}
    assert found["result"] == {"year": 2013, "name": "7"}
    assert shunter("run", "logs", run).text == "year 2013 '7' 0.5\n"


# -- start


def test_an_idempotency_key_makes_one_run(shunter: Console) -> None:
    first = shunter.ok("run", "start", "hello", "--idempotency-key", "k1", "--output", "json").json
    again = shunter.ok("run", "start", "hello", "--idempotency-key", "k1", "--output", "json").json
    assert (first["created"], again) == (True, {"id": first["id"], "created": False})


def test_a_run_for_later_waits_and_can_be_cancelled(shunter: Console) -> None:
    at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    run = _start(shunter, "hello", "--at", at, "--tag", "later", "--priority", "5")
    found = shunter("run", "inspect", run, "--output", "json").json
    assert (found["state"], found["priority"], found["tags"]) == ("Scheduled", 5, ["demo", "later"])
    assert shunter("run", "logs", run).err.rstrip().endswith("it has had no attempt yet")
    assert "in 60m" in shunter("run", "list", "--tag", "later").text
    assert "Cancelled" in shunter.ok("run", "cancel", run).text


def test_watch_tells_states_and_lines_and_ends_like_the_run(shunter: Console) -> None:
    _deploy(shunter, "steps", "for i in 1 2 3; do echo step $i; sleep 0.2; done; printf unfinished; exit 4")
    done = shunter("run", "start", "steps", "--watch")
    assert done.code == 1
    lines = done.text.splitlines()
    assert [line for line in lines if line.startswith("step")] == ["step 1", "step 2", "step 3"]
    assert "unfinished" in lines
    assert any("steps: Running" in line for line in lines)
    assert "steps: Failed (exit_code)" in lines[-1]
    done = shunter("run", "start", "hello", "--watch", "--output", "json")
    assert done.code == 0
    assert set(done.json) == {"id", "created"}
    assert "hello\n" in done.err


def test_watch_shows_every_attempt(shunter: Console) -> None:
    script = 'echo "attempt $SHUNTER_ATTEMPT"; test "$SHUNTER_ATTEMPT" = 2'
    _deploy(shunter, "second", script, "--retries", "2", "--retry-delay", "200ms")
    done = shunter("run", "start", "second", "--watch")
    assert done.code == 0, done.text + done.err
    lines = done.text.splitlines()
    assert lines.index("attempt 1") < lines.index("attempt 2") < len(lines) - 1
    assert "second: Completed" in lines[-1]


def test_watch_in_a_terminal_is_live(shunter: Console) -> None:
    ours, theirs = pty.openpty()
    env = shunter.env | {"TERM": "xterm-256color", "COLUMNS": "80"}
    words = [SHUNTER, "run", "start", "steps", "--watch"]
    process = subprocess.Popen(words, env=env, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    shown = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
    os.close(ours)
    assert process.wait(SOON) == 1
    assert b"step 3" in shown
    assert b"\x1b[" in shown  # colours and a line that is drawn again
    assert b"steps: Failed" in shown


# -- logs


def test_logs_are_exactly_the_bytes(shunter: Console) -> None:
    size = 12 * 1024 * 1024 + 17
    script = f'import os, random; os.write(1, b"\\x00\\xff\\r\\n"); os.sys.stdout.buffer.write(random.Random(7).randbytes({size}))'
    shunter.ok("deploy", "--name", "bytes", "--pool", "default", "--", "python3", "-c", script)
    run = _finished(shunter, "bytes")
    import random

    expected = b"\x00\xff\r\n" + random.Random(7).randbytes(size)
    done = shunter("run", "logs", run)
    assert done.code == 0
    assert len(done.out) == len(expected)
    assert hashlib.sha256(done.out).digest() == hashlib.sha256(expected).digest()


def test_logs_follow_until_the_end(shunter: Console) -> None:
    run = _start(shunter, "steps")
    done = shunter("run", "logs", "-f", run)
    assert (done.code, done.out) == (0, b"step 1\nstep 2\nstep 3\nunfinished")


def test_logs_of_all_attempts_or_of_one(shunter: Console) -> None:
    run = _finished(shunter, "second")
    assert shunter("run", "logs", run).text == "attempt 1\nattempt 2\n"
    assert shunter("run", "logs", run, "--attempt", "2").text == "attempt 2\n"
    missing = shunter("run", "logs", run, "--attempt", "3")
    assert missing.code == 2
    assert "has no attempt 3" in missing.err


def test_a_reader_that_has_seen_enough_is_no_error(shunter: Console) -> None:
    run = shunter("run", "list", "-q", "--deployment", "bytes", "--limit", "1").text.strip()
    done = shunter.shell(
        f"shunter run logs {run} | head -c 4 >/dev/null; shunter run list --deployment bytes | head -n 1"
    )
    assert (done.code, done.err) == (0, "")


def test_an_output_that_is_full_is_told(shunter: Console) -> None:
    done = shunter.shell("shunter run list > /dev/full")
    assert (done.code, done.err) == (1, "Error: the output cannot be written: No space left on device\n")


def test_interrupt(shunter: Console) -> None:
    run = _start(shunter, "hello", "--at", "+1h")
    for words in (("run", "wait", run), ("run", "logs", "-f", run)):
        process = shunter.spawn(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda p=process: psutil.Process(p.pid).net_connections(), 20)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (130, b"", b"")
    shunter.ok("run", "cancel", run)


# -- lists


def test_lists_filter_page_and_print_ids(shunter: Console) -> None:
    _deploy(shunter, "many", "true", "--tag", "bulk")
    runs = [_finished(shunter, "many") for _ in range(3)]
    ids = shunter.ok("run", "list", "-q", "--deployment", "many").text.split()
    assert ids == runs[::-1]
    assert [
        one["id"] for one in shunter("run", "list", "--tag", "bulk", "--limit", "2", "-o", "json").json
    ] == ids[:2]
    page = shunter("run", "list", "--tag", "bulk", "--limit", "2")
    assert "There are more" in page.err
    rest = shunter("run", "list", "--tag", "bulk", "-q", "--cursor", page.err.split()[-1])
    assert rest.text.split() == ids[2:]
    both = shunter("run", "list", "-q", "--deployment", "many", "--state", "failed", "--state", "Completed")
    assert both.text.split() == ids
    assert shunter("run", "list", "-q", "--tag", "bulk", "--tag", "demo").text == ""
    assert shunter("run", "list", "-q", "--tag", "bulk", "--pool", "default").text.split() == ids
    assert shunter("run", "list", "-q", "--tag", "bulk", "--late").text == ""


def test_an_end_of_an_id_is_enough(shunter: Console) -> None:
    run = _finished(shunter, "many")
    assert shunter("run", "inspect", run[-8:], "-o", "json").json["id"] == run
    assert run[-8:] in shunter("run", "list").text


def test_tables_fit_80_columns_and_grow(shunter: Console) -> None:
    _deploy(shunter, "a-name-that-is-long." * 4 + "x", "true", *("--tag", "label-one", "--tag", "label=two"))
    _finished(shunter, "a-name-that-is-long." * 4 + "x")
    lists = (
        ("run", "list"),
        ("pool", "list"),
        ("deployment", "list"),
        ("agent", "list"),
        ("queue", "list", "default"),
    )
    for words in lists:
        narrow = shunter.ok(*words).text.splitlines()
        assert max(map(len, narrow)) <= 80
        assert not any(line.endswith(" ") for line in narrow)
    wide = shunter.having(COLUMNS="160").ok("run", "list").text.splitlines()
    assert 80 < max(map(len, wide)) <= 160


def test_colours_only_in_a_terminal(shunter: Console) -> None:
    assert b"\x1b" not in shunter.ok("run", "list").out
    assert b"\x1b" not in shunter.having(NO_COLOR="1").ok("run", "list").out


def test_every_inspection_has_a_table(shunter: Console) -> None:
    run = _finished(shunter, "second")
    tables = {
        ("run", "inspect", run): ("attempt 2", "exit code 0", "Failed (exit_code)"),
        ("run", "events", run): ("Scheduled", "Claimed", "Retrying", "Completed"),
        ("pool", "inspect", "default"): ("process", "a1", "QUEUE"),
        ("deployment", "inspect", "hello"): ("every 60s", "sh -c 'echo hello; exit 0'", "demo"),
        ("agent", "list"): ("a1", "default", "ready"),
    }
    for words, expected in tables.items():
        text = shunter.ok(*words).text
        assert all(one in text for one in expected), text


# -- retry


def test_retry_goes_on_with_the_next_attempt(shunter: Console) -> None:
    run = _finished(shunter, "steps")
    assert shunter.ok("run", "retry", run).text.startswith(f"run {run} is ")
    shunter("run", "wait", run, "--timeout", "30")
    assert [one["number"] for one in shunter("run", "inspect", run, "-o", "json").json["attempts"]] == [1, 2]
    run = _finished(shunter, "hello")
    refused = shunter("run", "retry", run)
    assert (refused.code, refused.err.count("Error:")) == (2, 1)


# -- pools, queues, deployments


def test_pools_and_queues_are_made_changed_and_paused(shunter: Console) -> None:
    shunter.ok("pool", "create", "gpu", "--match", "gpu", "--match", "eu", "--limit", "3", "--priority", "2")
    made = shunter("pool", "inspect", "gpu", "-o", "json").json
    assert (made["match"], made["limit"], made["priority"], made["type"]) == (["gpu", "eu"], 3, 2, "process")
    shunter.ok("pool", "update", "gpu", "--no-limit", "--no-match", "--priority", "0")
    changed = shunter("pool", "inspect", "gpu", "-o", "json").json
    assert (changed["match"], changed["limit"], changed["priority"]) == ([], None, 0)
    shunter.ok("queue", "create", "gpu", "fast", "--priority", "10", "--limit", "1")
    shunter.ok("queue", "update", "gpu", "fast", "--limit", "2")
    shunter.ok("queue", "pause", "gpu", "fast")
    queues = {one["name"]: one for one in shunter("queue", "list", "gpu", "-o", "json").json}
    assert (queues["fast"]["limit"], queues["fast"]["priority"], queues["fast"]["paused"]) == (2, 10, True)
    assert not shunter.ok("queue", "resume", "gpu", "fast", "-o", "json").json["paused"]
    assert shunter.ok("pool", "pause", "gpu", "-o", "json").json["paused"]
    assert "resumed" in shunter.ok("pool", "resume", "gpu").text
    names = shunter("pool", "list", "-q").text.split()  # other tests have pools of their own
    assert names == sorted(names)
    assert {"default", "gpu"} <= set(names)


def test_a_paused_deployment_waits(shunter: Console) -> None:
    _deploy(shunter, "pausing", "true")
    assert "paused" in shunter.ok("deployment", "pause", "pausing").text
    assert "paused" in shunter.ok("deployment", "list").text
    run = _start(shunter, "pausing")
    assert shunter("run", "wait", run, "--timeout", "0.5").code == 124
    shunter.ok("deployment", "resume", "pausing")
    assert shunter("run", "wait", run, "--timeout", "30").code == 0


def test_the_same_deployment_again_changes_nothing(shunter: Console) -> None:
    _deploy(shunter, "same", "true", "--env", "A=1", "--pass-env", "HOME", "--timeout", "1h", "--grace", "2s")
    words = ("deploy", "--name", "same", "--pool", "default", "--env", "A=1", "--pass-env", "HOME")
    again = shunter.ok(*words, "--timeout", "60m", "--grace", "2", "--", "sh", "-c", "true")
    assert again.text == "same is unchanged (revision 1)\n"
    changed = shunter.ok("deploy", "--name", "same", "--pool", "default", "-o", "json", "--", "true").json
    assert (changed["changed"], changed["deployment"]["revision"]) == (True, 2)
    work = shunter("deployment", "inspect", "same", "-o", "json").json["spec"]["work"]
    assert (work["command"], work["source"]) == (["true"], str(shunter.folder))


def test_words_behind_the_dashes_are_untouched(shunter: Console) -> None:
    shunter.ok(
        "deploy", "--name", "words", "--pool", "default", "--", "echo", "--name", "x", "--", "-q", "a b"
    )
    run = _finished(shunter, "words")
    assert shunter("run", "logs", run).text == "--name x -- -q a b\n"


def test_json_is_the_contract(shunter: Console) -> None:
    from shunter_work_pools.contracts.agents import Agent
    from shunter_work_pools.contracts.deployments import Deployment
    from shunter_work_pools.contracts.pools import Pool
    from shunter_work_pools.contracts.runs import Event, Run

    run = _finished(shunter, "hello")
    shapes: dict[tuple[str, ...], type] = {
        ("run", "inspect", run): Run,
        ("pool", "inspect", "default"): Pool,
        ("deployment", "inspect", "hello"): Deployment,
    }
    for words, shape in shapes.items():
        shape.model_validate(shunter.ok(*words, "-o", "json").json)  # type: ignore[attr-defined]
    lists: dict[tuple[str, ...], type] = {
        ("run", "list"): Run,
        ("run", "events", run): Event,
        ("pool", "list"): Pool,
        ("deployment", "list"): Deployment,
        ("agent", "list"): Agent,
    }
    for words, shape in lists.items():
        found = json.loads(shunter.ok(*words, "-o", "json").out)
        assert found
        for one in found:
            shape.model_validate(one)  # type: ignore[attr-defined]
