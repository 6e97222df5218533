"""Whatever the user's functions raise, and whatever cannot be kept: a task run ends, and its flow with it."""

from __future__ import annotations

import json
import math
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from shunter import State, flow, flow_engine, task
from shunter.journal import Journal, completed_in, lines
from shunter.runs import Root


def in_a_run(one: Any, folder: Path) -> State[Any]:
    """Run a flow with a journal in this folder; not in this thread, which would wait for ever for one without end."""
    ended: list[State[Any]] = []

    def run() -> None:
        ended.append(flow_engine.run(one, (), {}, Root(Journal(str(folder / "journal")))))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert ended, "the flow has not ended"
    return ended[0]


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("nosuch://bucket/folder", "Protocol not known: nosuch"),
        ("broken://bucket/folder", "the driver's own"),
    ],
)
def test_a_storage_whose_driver_fails_is_told(
    storage: str, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import fsspec

    class Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "broken"

        def exists(self, path: str, **more: Any) -> bool:
            raise LookupError("the driver's own")

    fsspec.register_implementation("broken", Broken, clobber=True)

    @task(cache=True)
    def large() -> str:
        return "x" * 100_000

    @flow(result_storage=storage)
    def inner() -> str:
        return large.submit().result()

    @flow
    def whole() -> int:
        return len(inner())

    state = in_a_run(whole, tmp_path)
    assert state.result() == 100_000
    assert told in caplog.text
    last = {line["t"]: line["s"] for line in lines(str(tmp_path / "journal")) if "s" in line}
    assert last == {"large": "C", "inner": "C", "whole": "C"}


def test_a_storage_is_a_path_too(tmp_path: Path) -> None:
    @task
    def large() -> str:
        return "x" * 100_000

    @flow(result_storage=tmp_path / "results of its own")
    def whole() -> int:
        return len(large.submit().result())

    assert in_a_run(whole, tmp_path).result() == 100_000
    assert len(list((tmp_path / "results of its own").iterdir())) == 1
    with pytest.raises(TypeError, match="not int"):
        flow(result_storage=3)(lambda: None)  # type: ignore[call-overload]


def test_numbers_of_many_digits_come_and_go(tmp_path: Path) -> None:
    assert sys.get_int_max_str_digits() == 4300
    executed: list[int] = []

    @task
    def product(factor: int, more: list[int]) -> int:
        executed.append(1)
        return factor * more[0]

    @flow
    def whole() -> bool:
        large = math.factorial(2000)
        return product.submit(large, [large]).result() == large * large

    assert in_a_run(whole, tmp_path).result()
    assert in_a_run(whole, tmp_path).result()
    assert executed == [1]


def test_values_nested_deeper_than_python_goes_can_be_given(tmp_path: Path) -> None:
    class Link:
        def __init__(self, below: Any) -> None:
            self.below = below

    @task
    def first(link: Link) -> Any:
        return type(link).__name__

    @flow
    def whole() -> str:
        link = None
        for _ in range(2000):
            link = Link(link)
        assert link is not None
        return str(first.submit(link).result())

    assert in_a_run(whole, tmp_path).result() == "Link"


def test_an_exit_code_that_has_no_text(tmp_path: Path) -> None:
    class Code:
        def __repr__(self) -> str:
            raise ValueError("no text")

    @task
    def leave() -> None:
        raise SystemExit(Code())

    @flow
    def whole() -> str:
        future = leave.submit()
        future.wait()
        return str(future.error)

    assert in_a_run(whole, tmp_path).result().startswith("task leave called sys.exit(")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_hook_or_callback_that_raises_what_is_no_exception(
    error: BaseException, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(*_: Any) -> None:
        raise error

    @task(on_completion=[bad])
    def one() -> int:
        return 1

    @task
    def held(gate: threading.Event) -> int:
        gate.wait()
        return 5

    @task
    def after(n: int) -> int:
        return n + 1

    @flow
    def whole() -> int:
        gate = threading.Event()
        other = held.submit(gate)
        other.add_done_callback(bad)
        gate.set()
        return after.submit(one.submit()).result() + after.submit(other).result()

    assert in_a_run(whole, tmp_path).result() == 2 + 6
    assert "the hook bad of one failed" in caplog.text
    assert "a function called at the end of task held failed" in caplog.text


def test_an_end_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @task
    def one() -> int:
        return 1

    @flow
    def whole() -> int:
        return one.submit().result()

    real = json.dumps

    def dumps(value: Any, **more: Any) -> str:
        if isinstance(value, dict) and value.get("t") == "one" and "r" in value:
            raise RuntimeError("dictionary changed size during iteration")
        return real(value, **more)

    monkeypatch.setattr("shunter.journal.json.dumps", dumps)
    assert in_a_run(whole, tmp_path).result() == 1
    assert "the end of task one is not in the journal: dictionary changed size" in caplog.text
    assert not [line for line in completed_in(str(tmp_path / "journal")).values() if line.get("t") == "one"]
