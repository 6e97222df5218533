"""The journal, and runs that go on from it: after a failure, after ``kill -9``, after the code was changed."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shunter import flow, flow_engine, journal, task
from shunter.journal import Journal, completed_in, lines
from shunter.runs import Root
from tests.flows.workflows import add
from tests.patience import SOON

SCRIPT = Path(__file__).with_name("a_flow.py")


def start(
    folder: Path, name: str, *arguments: str, script: Path = SCRIPT, **environment: str
) -> subprocess.Popen[str]:
    """A flow in a process of its own, with a journal in this folder."""
    env = (
        os.environ
        | {"SHUNTER_JOURNAL": str(folder / "journal"), "PYTHONPATH": str(SCRIPT.parents[2])}
        | environment
    )
    process = subprocess.Popen(
        [sys.executable, str(script), name, str(folder), *arguments],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """What a test that failed has left running is ended."""
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def finished(folder: Path, name: str, *arguments: str, **more: Any) -> str:
    """Its output when it has ended well."""
    process = start(folder, name, *arguments, **more)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    return output


def ran(folder: Path) -> Counter[str]:
    """What was executed, and how often."""
    return Counter((folder / "ran").read_text().split("\n")[:-1])


def until(folder: Path, name: str, process: subprocess.Popen[str]) -> None:
    """Wait for a file that the flow leaves."""
    deadline = time.monotonic() + 60
    while not (folder / name).exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_hundred_tasks_with_the_last_one_failing_execute_one_when_gone_on(tmp_path: Path) -> None:
    process = start(tmp_path, "hundred")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "ValueError: the last one fails" in output
    before = ran(tmp_path)
    assert before == Counter(map(str, range(100)))
    (tmp_path / "good").touch()
    assert f"value: {sum(n * n for n in range(100))}" in finished(tmp_path, "hundred")
    assert ran(tmp_path) - before == Counter(["99"])


def test_kill_9_in_the_middle(tmp_path: Path) -> None:
    process = start(tmp_path, "mixed")
    until(tmp_path, "waiting", process)
    process.kill()
    process.wait()
    (tmp_path / "good").touch()
    output = finished(tmp_path, "mixed")
    assert "value: [[100000, 100000], 18, 16, 'waited']" in output
    # The flow inside had completed, so it was not even entered again.
    expected = {"large1": 1, "large2": 1, "size": 2, "below": 1, "3": 2, "4": 1, "wait": 2}
    assert ran(tmp_path) == Counter(expected)


def test_kill_9_at_any_moment_loses_nothing_that_was_told(tmp_path: Path) -> None:
    """Killed again and again: what the journal has as completed is never executed again."""
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    told: set[str] = set()
    (tmp_path / "ran").touch()
    for _ in range(6):
        process = start(tmp_path, "hundred")
        seen = len(ran(tmp_path))
        many = chance.randrange(1, 40)
        while process.poll() is None and len(ran(tmp_path)) < seen + many:
            pass
        process.kill()
        process.communicate()
        before = ran(tmp_path)
        done = completed_in(str(tmp_path / "journal"))
        assert told <= set(done), f"seed {seed}"
        told = set(done)
        assert len([line for key, line in done.items() if key and line["t"] == "square"]) <= sum(
            before.values()
        )
    (tmp_path / "good").touch()
    values = {line["r"]["i"] for key, line in done.items() if key and line["t"] == "square"}
    before = ran(tmp_path)
    finished(tmp_path, "hundred")
    again = ran(tmp_path) - before
    assert not {str(n) for n in again if int(n) ** 2 in values}, f"seed {seed}"
    assert set(ran(tmp_path)) == set(map(str, range(100)))


def test_a_task_that_ends_the_flows_process(tmp_path: Path) -> None:
    process = start(tmp_path, "forked")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (tmp_path / "good").touch()
    assert "value: 36" in finished(tmp_path, "forked")
    assert ran(tmp_path) == Counter(map(str, [0, 1, 2, 3, 4, 6]))


def test_what_cannot_be_kept_is_said_and_done_again(tmp_path: Path) -> None:
    process = start(tmp_path, "odd")
    until(tmp_path, "waiting", process)
    process.kill()
    output = process.communicate()[0]
    assert (
        "the result of task unkept is not kept, so a retry of this run executes it again: cannot pickle"
        in output
    )
    assert "the result of task large is not kept" in output
    assert "it takes 100" in output
    assert "more than the 1000 allowed (result_limit)" in output
    assert "unwanted" not in output
    (tmp_path / "good").touch()
    finished(tmp_path, "odd")
    assert ran(tmp_path) == Counter({"unkept": 2, "large1": 2, "unwanted": 2, "1": 1, "wait": 2})


def test_code_that_changed_in_between_is_said(tmp_path: Path) -> None:
    script = tmp_path / "a_flow.py"
    text = SCRIPT.read_text()
    script.write_text(text)
    process = start(tmp_path, "hundred", script=script)
    process.communicate(timeout=60)
    (tmp_path / "good").touch()
    script.write_text("# moved by a line\n" + text)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "journal").write_bytes((tmp_path / "journal").read_bytes())
    (moved / "good").touch()
    assert "has changed" not in finished(moved, "hundred", script=script)
    script.write_text(text.replace("return n * n", "return n * n + 0"))
    output = finished(tmp_path, "hundred", script=script)
    said = "the code of task square has changed since an earlier attempt of this run; what that completed is not done again"
    assert output.count(said) == 1
    assert ran(tmp_path)["99"] == 2
    assert sum(ran(tmp_path).values()) == 101


def run(journal: Path, one: Any, *args: Any) -> Any:
    """A flow in this process, with a journal."""
    return flow_engine.run(one, args, {}, Root(Journal(str(journal))))


def test_keys_do_not_depend_on_the_order_of_calls(tmp_path: Path) -> None:
    order: list[list[int]] = [[1, 2, 2, 3], [3, 2, 1, 2]]
    seen: list[int] = []

    @task
    def step(n: int) -> int:
        seen.append(n)
        return n

    @flow
    def whole() -> list[int]:
        return [step.submit(n).result() for n in order.pop(0)]

    assert run(tmp_path / "journal", whole).result() == [1, 2, 2, 3]
    assert run(tmp_path / "journal", whole).result() == [3, 2, 1, 2]
    assert seen == [1, 2, 2, 3]


def test_a_value_from_a_cache_stays_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUNTER_HOME", str(tmp_path / "home"))
    seen: list[int] = []

    @task(cache=lambda task, arguments: "one for all")
    def now() -> int:
        seen.append(len(seen))
        return len(seen)

    @flow
    def whole() -> tuple[int, int]:
        first = now.submit()
        return first.result(), add.submit(first, 10).result()

    assert run(tmp_path / "another run", whole).result() == (1, 11)
    assert run(tmp_path / "journal", whole).result() == (1, 11)
    for kept in (tmp_path / "home" / "cache" / "results").iterdir():
        kept.unlink()
    assert run(tmp_path / "journal", whole).result() == (1, 11)
    assert len(seen) == 1
    assert run(tmp_path / "a third one", whole).result() == (2, 12)


def test_other_parameters_are_another_run(tmp_path: Path) -> None:
    seen: list[int] = []

    @task
    def step(n: int) -> int:
        seen.append(n)
        return n

    @flow
    def whole(a: int) -> int:
        return step(1)

    run(tmp_path / "journal", whole, 1)
    run(tmp_path / "journal", whole, 2)
    run(tmp_path / "journal", whole, 1)
    assert seen == [1, 1]


def test_the_lines_of_a_journal(tmp_path: Path) -> None:
    @task
    def bad(n: int) -> None:
        raise KeyError(n)

    @flow
    def below() -> int:
        return add(1, 1)

    @flow
    def whole() -> int:
        one = add.submit(1)
        two = add.submit(one, 2)
        failed = bad.with_options(retries=1).submit(two)
        add.submit(failed).wait()
        return below()

    assert run(tmp_path / "journal", whole).result() == 2
    head, *found = lines(str(tmp_path / "journal"))
    assert (head["v"], head["flow"], head["a"]) == (1, "whole", 1)
    ends = {(line["t"], line["s"], line.get("r", {}).get("i")): line for line in found if line["s"] in "CFSX"}
    root = ends["whole", "C", None]
    assert set(ends) == {
        ("add", "C", 1), ("add", "C", 3), ("bad", "F", None), ("add", "S", None), ("add", "C", 2), ("below", "C", 2),
        ("whole", "C", None),
    }  # fmt: skip
    assert root["y"] == "flow"
    assert ends["below", "C", 2]["p"] == root["k"]
    assert ends["add", "C", 2]["p"] == ends["below", "C", 2]["k"]
    assert ends["add", "C", 3]["u"] == [ends["add", "C", 1]["k"]]
    failed = ends["bad", "F", None]
    assert failed["n"] == 2
    assert failed["e"]["type"] == "KeyError"
    assert failed["e"]["message"] == "3"
    assert "raise KeyError(n)" in failed["e"]["traceback"]
    assert (
        ends["add", "S", None]["e"]["message"]
        == "task add was skipped: bad, which it needs, ended Failed (KeyError: 3)"
    )
    assert all(line["b"] <= line["at"] for line in ends.values() if "b" in line)
    assert len(found) <= 2 * len(ends)


def test_states_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    import threading

    go = threading.Event()

    @task
    def held(*_: int) -> int:
        go.wait(20)
        return 1

    @flow
    def whole() -> list[str]:
        below = add.submit(held.submit())
        deadline = time.monotonic() + SOON
        while True:
            states = {line["t"]: line["s"] for line in lines(str(tmp_path / "journal")) if "t" in line}
            if states == {"whole": "R", "held": "R", "add": "P"}:
                break
            assert time.monotonic() < deadline, states
            time.sleep(0.01)
        go.set()
        return [str(below.result())]

    assert run(tmp_path / "journal", whole).result() == ["1"]


def test_a_torn_end_and_lines_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    @flow
    def whole() -> int:
        return add(1, 2)

    run(path, whole)
    whole_lines = path.read_bytes()
    path.write_bytes(b"not json\n[1]\n" + whole_lines + b'{"k": "torn", "s": "C", "r": {"i"')
    completed = completed_in(str(path))
    assert "torn" not in completed
    assert len(completed) == 2
    assert run(path, whole).result() == 3
    assert b"torn" not in path.read_bytes()
    path.write_text('{"v": 99, "flow": "x"}\n')
    with pytest.raises(ValueError, match="newer version of Shunter"):
        Journal(str(path))


def test_results_that_are_gone_or_spoiled_are_made_again(tmp_path: Path) -> None:
    seen: list[int] = []

    @task
    def large(n: int) -> bytes:
        seen.append(n)
        return bytes(50_000 + n)

    @flow
    def whole() -> int:
        return sum(map(len, large.map([1, 2, 3]).result()))

    first = run(tmp_path / "journal", whole).result()
    files = sorted((tmp_path / "results").iterdir())
    assert len(files) == 3
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    files[0].unlink()
    files[1].write_bytes(b"spoiled")
    assert run(tmp_path / "journal", whole).result() == first
    assert sorted(Counter(seen).values()) == [1, 2, 2]


def test_a_full_disk_does_not_stop_the_flow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The size of files is limited, which a write meets as it meets a full disk: in the middle of a line."""

    @flow
    def whole() -> int:
        return sum(add.map(range(200)).result())

    path = tmp_path / "journal"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    journal = Journal(str(path))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
        assert flow_engine.run(whole, (), {}, Root(journal)).result() == sum(range(200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert caplog.text.count("cannot be written") == 1
    assert path.stat().st_size == 3000
    journal.tell({"x": 1})
    assert json.loads(path.read_bytes().split(b"\n")[-2])["x"] == 1
    assert run(path, whole).result() == sum(range(200))


def test_results_at_a_url(tmp_path: Path) -> None:
    seen: list[int] = []

    @task
    def large() -> dict[int, bytes]:
        seen.append(1)
        return {1: bytes(50_000)}

    @flow(result_storage=f"file://{tmp_path}/somewhere/else")
    def whole() -> int:
        return len(large()[1])

    assert [run(tmp_path / "journal", whole).result() for _ in range(2)] == [50_000] * 2
    assert seen == [1]
    assert len(list((tmp_path / "somewhere" / "else").iterdir())) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["stopped", "stopped_async", "stopped_processes"])
def test_sigterm_in_a_run_interrupts_tasks_and_calls_hooks(tmp_path: Path, name: str) -> None:
    process = start(tmp_path, name, SHUNTER_RUN_ID="0199")
    until(tmp_path, "waiting", process)
    process.terminate()
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 143, output
    hooks = sorted(line for line in ran(tmp_path).elements() if not line.startswith("sleeps"))
    expected = {
        "stopped": ["hook sleeps Cancelled"] * 2 + ["hook sleeps_async Cancelled", "hook stopped Cancelled"],
        "stopped_async": [
            "hook sleeps Cancelled",
            "hook sleeps_async Cancelled",
            "hook stopped_async Cancelled",
        ],
        "stopped_processes": ["hook sleeps Cancelled", "hook stopped_processes Cancelled"],
    }
    assert hooks == expected[name]
    last = {line["k"]: (line["t"], line["s"]) for line in lines(str(tmp_path / "journal")) if "k" in line}
    states = dict(last.values())
    assert states[name] == "X"
    assert states["sleeps"] == "X"
    assert states.get("square", "S") in "SX"


def test_ctrl_c_while_a_task_is_being_started() -> None:
    """It is raised in the middle of what the engine does, which must not take it for the task's."""

    class Interrupted(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    @flow(executor=Interrupted(1))
    def whole() -> str:
        add.submit(1)
        return "swallowed"

    with pytest.raises(KeyboardInterrupt):
        whole()


def test_ctrl_c_without_a_server(tmp_path: Path) -> None:
    process = start(tmp_path, "stopped")
    until(tmp_path, "waiting", process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=20)[0]
    assert process.returncode != 0
    assert "KeyboardInterrupt" in output
    assert "hook stopped Cancelled" in ran(tmp_path)


def test_what_a_run_knows_and_says(tmp_path: Path) -> None:
    parameters = tmp_path / "parameters"
    parameters.write_text('{"n": 4}')
    output = finished(
        tmp_path, "inside", "4",
        SHUNTER_RUN_ID="0199", SHUNTER_ATTEMPT="2", SHUNTER_TAGS='["a", "b"]', SHUNTER_DEPLOYMENT="daily",
        SHUNTER_SCHEDULED_AT="2026-01-02T03:04:05Z", SHUNTER_PARAMETERS=str(parameters),
    )  # fmt: skip
    value = eval(output.rpartition("value: ")[2])
    assert value == {
        "run_id": "0199", "attempt": 2, "tags": ["a", "b"], "deployment": "daily", "parameters": {"n": 4},
        "scheduled": "2026-01-02 03:04:05+00:00", "flow": "inside", "task": "looks", "try": 1, "key": True, "squares": 14,
    }  # fmt: skip
    said = [line.split(" | ", 1)[1] for line in output.splitlines() if " | " in line]
    assert "WARNING | shunter.inside | from the flow" in said
    assert "INFO    | shunter.looks | from the task" in said
    assert "INFO    | some.library | two" in said
    assert "printed" in output
    told = list(lines(str(tmp_path / "journal")))
    assert told[0]["run"] == "0199"
    assert told[0]["a"] == 2
    arts = [line["art"] for line in told if "art" in line]
    assert arts[0] == {
        "key": "prices",
        "kind": "table",
        "data": [{"a": 1}, {"a": 2}],
        "description": "what was found",
    }
    assert [art["kind"] for art in arts] == ["table", "link"]
    progress = [line["pr"] for line in told if "pr" in line]
    assert progress[-1] == {"text": "squares", "done": 4, "total": 4, "percent": 100.0}


def test_no_line_follows_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who submits a task may be slower than all of it; the last line about a task must be its end, with the result."""
    monkeypatch.setattr(journal, "_opened", Journal(str(tmp_path / "journal")))
    note = Journal.note

    def late(here: Journal, run: Any) -> None:
        if not run.is_flow and run.upstream and threading.current_thread() is threading.main_thread():
            run.wait(30)
        note(here, run)

    monkeypatch.setattr(Journal, "note", late)
    gate = threading.Event()

    @task
    def first() -> int:
        gate.wait(30)
        return 1

    @flow
    def two() -> int:
        before = first.submit()
        threading.Timer(0.05, gate.set).start()
        return add.submit(before, 1).result()

    assert two() == 2
    last = {line["k"]: line for line in lines(str(tmp_path / "journal")) if line.get("t") in ("first", "add")}
    assert [(line["s"], line["r"]) for line in last.values()] == [("C", {"i": 1}), ("C", {"i": 2})]
