"""Hashes of values, kept results, caches."""

from __future__ import annotations

import enum
import functools
import json
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter import flow, flow_engine, task
from shunter.journal import Journal, lines
from shunter.keys import Unkeyed, call_digest, code_version, digest
from shunter.results import NotKept, Store, decode, encode
from shunter.runs import Root


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Point:
    x: Any
    y: Any = 0


VALUES: list[Any] = [
    1, True, 1.0, "1", b"1", None, -0.0, [], (), {}, set(), frozenset(), [1], (1,), {1}, [[1]], [1, [2]], [[1], 2], {"a": 1},
    {"a": "1"}, {1: "a"}, {"a": 1, "b": 2}, "a", ["a"], ["a", "b"], ["ab"], Point(1), Point(1, 1), Point(Point(1)),
    Colour.RED, Colour.BLUE, Colour, Point, date(2026, 1, 1), datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC),
    Decimal(1), Decimal("1.0"), UUID(int=1), Path("a"), Path("/a"), len, print, json.dumps, OrderedDict(a=1),
    range(3), range(4), 1j, slice(1), bytearray(b"1"), Ellipsis, lambda: 1, lambda: 2, "\ud800", float("nan"), 2**100,
]  # fmt: skip


def test_what_differs_has_another_hash_and_what_is_equal_the_same() -> None:
    digests = [digest(value) for value in VALUES]
    assert len(set(digests)) == len(VALUES)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(Point([1, {"x"}])) == digest(Point([1, {"x"}]))
    assert call_digest((1,), {"a": 1, "b": 2}) == call_digest((1,), {"b": 2, "a": 1})
    assert call_digest((1,), {}) != call_digest((True,), {})
    twice = [[1, 2]] * 2
    assert digest(twice) == digest([[1, 2], [1, 2]])


def test_hashes_are_the_same_in_another_process() -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.flows.test_keeping import VALUES
from shunter.keys import digest
print([digest(value).hex() for value in VALUES])
print(digest({"some", "words", "in", "a", "set", ("and", "more")}).hex())
"""
    root = str(Path(__file__).parents[2])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, root],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert digest(VALUES[5]).hex() in outputs.pop().decode()


def test_hashes_are_the_same_in_every_version_of_python() -> None:
    """This is what 3.11, 3.12 and 3.13 give: a run may go on where there is another one."""
    values = [
        1, -0.0, "é", [1, [2]], {"b": 1, "a": {2, 3}}, Path("/a/b"), datetime(2026, 1, 1, tzinfo=UTC), Decimal("1.0"),
        UUID(int=1), range(3), int, len,
    ]  # fmt: skip
    assert digest(values).hex() == "0ebfc890fec5ab69631afb06306f20b0"


def test_cycles_end_and_what_cannot_be_taken_apart_enters_by_its_type() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert digest(loop) == digest(loop)
    assert digest(threading.Lock()) == digest(threading.Lock())
    with pytest.raises(Unkeyed, match=r"a value of type _thread.lock cannot be taken apart"):
        digest([threading.Lock()], strict=True)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(_json)
@settings(max_examples=150, deadline=None)
def test_a_kept_value_comes_back_as_it_was(value: Any) -> None:
    back = decode(*encode(value))
    assert back == value
    assert repr(back) == repr(value)
    assert digest(back) == digest(value)


def test_small_values_are_in_the_line_and_large_ones_in_files(tmp_path: Path) -> None:
    store = Store(str(tmp_path), limit=100_000)
    assert store.keep({"a": [1, None]}) == {"i": {"a": [1, None]}}
    assert set(store.keep((1, 2))) == {"p"}
    large = store.keep("x" * 50_000)
    assert large["z"] == "j"
    assert store.keep("x" * 50_000) == large
    assert len(list(tmp_path.iterdir())) == 1
    for value in ({"a": [1, None]}, (1, 2), "x" * 50_000, bytes(60_000), Point(1)):
        assert store.load(store.keep(value)) == value
    with pytest.raises(NotKept, match=r"it takes 1\d+ bytes, more than the 100000 allowed"):
        store.keep("x" * 100_000)
    with pytest.raises(NotKept, match="cannot pickle"):
        store.keep(threading.Lock())
    with pytest.raises(NotKept, match="FileNotFoundError"):
        store.load({"f": "../../etc/nothing", "n": 1, "z": "j"})


def test_a_codes_version_is_of_what_it_does() -> None:
    def made(text: str) -> Any:
        space: dict[str, Any] = {}
        exec(compile(text, "somewhere.py", "exec"), space)
        return space["f"]

    one = made("def f(n):\n    return [n + i for i in (1, 2)]\n")
    same = made("# elsewhere\n\n\ndef f(n):\n    # a comment\n    return [n + i\n        for i in (1, 2)]\n")
    other = made("def f(n):\n    return [n + i for i in (1, 3)]\n")
    assert code_version(one) == code_version(same) != code_version(other)
    assert code_version(len) == ""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHUNTER_HOME", str(tmp_path))
    return tmp_path / "cache" / "results"


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_a_cache_by_inputs_and_code(home: Path, tmp_path: Path, executor: str) -> None:
    states: list[str] = []
    ran = tmp_path / "ran"

    @task(cache=True, on_completion=[lambda t, run, state: states.append(state.name)])
    def slow(n: int, m: int = 1) -> tuple[int, int]:
        with ran.open("a") as file:
            file.write("x")
        return n, m

    @task(cache=True)
    async def slow_async(n: int) -> int:
        with ran.open("a") as file:
            file.write("x")
        return n

    @flow(executor=executor)
    def whole() -> list[Any]:
        return [
            slow.submit(1).result(),
            slow.submit(n=1, m=1).result(),
            slow(2),
            slow_async.submit(3).result(),
        ]

    assert whole() == [(1, 1), (1, 1), (2, 1), 3]
    assert whole() == [(1, 1), (1, 1), (2, 1), 3]
    assert ran.read_text() == "xxx"
    assert states == ["Completed", "Cached", "Completed", "Cached", "Cached", "Cached"]
    assert len(list(home.iterdir())) == 3


def test_cached_values_expire_and_other_code_has_others(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "ran"

    def executed() -> list[str]:
        return log.read_text().split()

    @flow
    def whole(one: Any) -> Any:
        return one.submit(1).result()

    def version_one(n: int) -> int:
        with log.open("a") as file:
            file.write("one ")
        return n

    def version_two(n: int) -> int:
        with log.open("a") as file:
            file.write("two ")
        return n + 1

    version_two.__qualname__ = version_one.__qualname__
    first = task(name="same", cache=True, cache_expires=0.3)(version_one)
    second = task(name="same", cache=True, cache_expires=0.3)(version_two)
    before = time.monotonic()
    assert [whole(first), whole(second), whole(first)] == [1, 2, 1]
    if time.monotonic() - before < 0.3:
        assert executed() == ["one", "two"]
    time.sleep(0.35)
    whole(first)
    assert executed()[-1] == "one"
    assert executed().count("one") >= 2


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @task(cache=True)
    def times(self, n: int) -> int:
        return self.factor * n

    def __call__(self, n: int) -> int:
        return self.factor * n


def multiplied(factor: int, n: int) -> int:
    return factor * n


def doubled(n: int) -> int:
    return 2 * n


def tripled(n: int) -> int:
    return 3 * n


def of(function: Any, by: Any = None) -> Any:
    """A task that is made anew whenever this is called."""

    @task(cache=True)
    def applied(n: int) -> Any:
        return function(n) if by is None else function(n, by[0])

    return applied


@task(cache=True)
def applied_to(function: Any, n: int) -> Any:
    return function(n)


def lambda_of(factor: int) -> Any:
    return lambda n: factor * n


def lambda_with_default(factor: int) -> Any:
    return lambda n, factor=factor: factor * n


def of_a_task(inner: Any) -> Any:
    @task(cache=True)
    def around(n: int) -> Any:
        return inner(n)

    return around


#: Pairs of things to be called with 10 that have the same code and the same arguments, and other values: 20 and 30.
ALIKE: dict[str, tuple[Any, Any]] = {
    "methods": (Scale(2).times, Scale(3).times),
    "objects that can be called": (task(cache=True)(Scale(2)), task(cache=True)(Scale(3))),
    "partials": tuple(task(cache=True)(functools.partial(multiplied, n)) for n in (2, 3)),
    "partials by name": tuple(task(cache=True)(functools.partial(multiplied, factor=n)) for n in (2, 3)),
    "functions around functions": (of(doubled), of(tripled)),
    "functions around lists": (of(multiplied, [2]), of(multiplied, [3])),
    "tasks around tasks": (of_a_task(task(doubled)), of_a_task(task(tripled))),
    "lambdas around numbers": tuple(functools.partial(applied_to, lambda_of(n)) for n in (2, 3)),
    "lambdas with defaults": tuple(functools.partial(applied_to, lambda_with_default(n)) for n in (2, 3)),
    "methods as arguments": tuple(functools.partial(applied_to, Scale(n).__call__) for n in (2, 3)),
    "tasks as arguments": tuple(
        functools.partial(applied_to, of_a_task(task(f))) for f in (doubled, tripled)
    ),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_a_function_has_with_it_counts_as_its_arguments_do(
    kind: str, home: Path, tmp_path: Path
) -> None:
    first, second = ALIKE[kind]

    order = [first, second]

    @flow
    def whole() -> list[Any]:
        return [one(n=10) if kind == "partials by name" else one(10) for one in order]

    assert whole() == [20, 30]
    keys = flow_keys(tmp_path / "journal", whole)
    assert len(keys) == 2
    order.reverse()
    if kind != "functions around lists":  # those are told apart by their order, as their lists may change
        assert flow_keys(tmp_path / "reversed", whole) == keys


def flow_keys(path: Path, one: Any) -> set[str]:
    """Keys of the task runs of a flow."""
    flow_engine.run(one, (), {}, Root(Journal(str(path))))
    return {line["k"] for line in lines(str(path)) if "k" in line and "y" not in line}


def test_a_key_stays_though_a_list_around_the_function_grows(tmp_path: Path) -> None:
    seen: list[int] = []

    @task
    def note(n: int) -> None:
        seen.append(n)

    @flow
    def whole() -> None:
        note(1)
        note(2)
        note.with_options(retries=1)(2)

    assert flow_keys(tmp_path / "first", whole) == flow_keys(tmp_path / "second", whole)
    assert len(seen) == 6


def test_a_function_around_a_future_is_not_cached(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    @task
    def number(n: int) -> int:
        return n

    @flow
    def whole(n: int) -> Any:
        future = number.submit(n)
        return of(lambda _: future.result())(1)

    assert [whole(2), whole(3)] == [2, 3]
    assert "task applied is not cached: the future of task number" in caplog.text


def test_a_cache_by_a_function_and_what_has_no_key(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[Any] = []

    @task(cache=lambda task, arguments: f"{task.name}-{arguments['n'] % 2}" if arguments["n"] < 10 else None)
    def parity(n: int) -> int:
        ran.append(n)
        return n

    @task(cache=True)
    def locked(lock: Any) -> int:
        ran.append("lock")
        return 1

    @task(cache=True)
    def unkept(n: int) -> Any:
        ran.append("unkept")
        return threading.Lock()

    @flow
    def whole() -> list[int]:
        for _ in range(2):
            locked.submit(threading.Lock()).result()
            unkept.submit(1).result()
        return parity.map([1]).result() + parity.map([3]).result() + [parity(12), parity(12)]

    assert whole() == [1, 1, 12, 12]
    assert ran == ["lock", "unkept", "lock", "unkept", 1, 12, 12]
    assert caplog.text.count("task locked is not cached: a value of type _thread.lock") == 1
    assert caplog.text.count("task unkept is not cached: cannot pickle") == 1


def test_a_spoiled_cache_is_passed_over(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    @task(cache=True)
    def one(n: int) -> int:
        return n

    @flow
    def whole() -> int:
        return one.submit(5).result()

    whole()
    next(home.iterdir()).write_bytes(b"spoiled")
    assert whole() == 5
    assert "cannot be read" in caplog.text
    assert whole() == 5
