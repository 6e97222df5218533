"""What the decorators take, refuse, and leave as it was."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from shunter import State, Task, flow, flow_engine, task, unmapped
from shunter.errors import ForeignFuture, NotInFlow, ParameterError, TaskCancelled
from shunter.futures import TaskFuture
from shunter.journal import Journal, lines
from shunter.runs import Root
from shunter.tasks import AsyncTask
from tests.flows.workflows import add, add_async, nap, total

if TYPE_CHECKING:
    from decimal import Decimal


def test_outside_of_a_flow_a_task_is_its_function() -> None:
    assert add(1, 2) == 3
    assert asyncio.run(add_async(1, 2)) == 3
    assert add.__doc__ == "The sum of its arguments."
    with pytest.raises(NotInFlow, match="outside of a flow"):
        add.submit(1)


def test_the_lines_of_the_description_work() -> None:
    @task(retries=2, retry_delay=1)
    def fetch(n: int) -> int:
        return n

    @flow(name="sums", executor="threads")
    def sums(upto: int = 10) -> int:
        return total.submit(fetch.map(range(upto))).result()

    assert sums(5) == 10
    assert sums() == 45
    assert sums.name == "sums"


@dataclass(frozen=True)
class Box:
    inside: Any
    other: int = 0


class Pair(NamedTuple):
    one: Any
    two: Any


@task
def same(value: Any) -> Any:
    return value


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_futures_are_found_inside_containers(executor: str) -> None:
    @flow(executor=executor)
    def whole() -> list[Any]:
        one, two = add.submit(1), add.submit(2)
        given = [[one, [two]], {"a": one}, (two,), Box(one, 5), Pair(one, two), {"b": [{"c": (Box([two]),)}]}]
        return [same.submit(value).result() for value in given]

    assert whole() == [
        [1, [2]],
        {"a": 1},
        (2,),
        Box(1, 5),
        Pair(1, 2),
        {"b": [{"c": (Box([2]),)}]},
    ]


def test_a_container_without_futures_is_handed_on_as_it_is() -> None:
    given = [[1], {"a": Box(object())}]

    @flow
    def whole() -> bool:
        return same.submit(given).result() is given

    assert whole()


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_what_is_put_into_a_container_later_does_not_count(executor: str) -> None:
    @flow(executor=executor)
    def whole() -> list[int]:
        rows: list[TaskFuture[int]] = [add.submit(nap.submit(0.2), 1)]
        named: dict[str, Any] = {}
        for _ in range(3):
            named["values"] = rows
            rows.append(total.submit(rows))
            keyed = total.submit(numbers=named["values"])
            named["values"] = None
        return [*(row.result() for row in rows), keyed.result()]

    assert [round(value - 1.2, 3) for value in whole()] == [0, 0, 1.2, 3.6, 8.4]


def test_containers_that_contain_themselves() -> None:
    loop: list[Any] = [1]
    loop += [loop, loop, {"again": loop}]

    @flow
    def whole() -> Any:
        same.submit(loop).result()
        return same.submit([loop, add.submit(5)]).result()[1]

    assert whole() == 5


def test_wait_for_orders_without_handing_anything_over() -> None:
    seen: list[str] = []

    @task
    def step(name: str) -> None:
        seen.append(name)

    @flow
    def whole() -> None:
        first = [step.submit("a"), step.submit("b")]
        second = step.submit("c", wait_for=first)
        step.submit("d", wait_for=second)

    whole()
    assert sorted(seen[:2]) == ["a", "b"]
    assert seen[2:] == ["c", "d"]


def test_map_takes_what_can_be_iterated_over_and_leaves_the_rest_whole() -> None:
    @task
    def joined(a: int, b: str, *, c: list[int], d: int) -> tuple[int, str, list[int], int]:
        return a, b, c, d

    @flow
    def whole() -> list[Any]:
        return joined.map((n for n in range(3)), "text", c=unmapped([7, 8]), d=add.map([1, 2, 3])).result()

    assert whole() == [(n, "text", [7, 8], n + 1) for n in range(3)]


def test_map_refuses_other_lengths_before_anything_runs() -> None:
    ran: list[int] = []

    @task
    def two(a: int, b: int) -> None:
        ran.append(a)

    @flow
    def whole(a: Any, b: Any) -> None:
        two.map(a, b)

    with pytest.raises(ValueError, match=r"different lengths \(0: 2, 1: 3\)"):
        whole([1, 2], (n for n in range(3)))
    with pytest.raises(ValueError, match="nothing to map over"):
        whole(1, "b")
    assert ran == []


def test_a_mapped_future_is_waited_for() -> None:
    @flow
    def whole() -> int:
        return total.submit(add.map(same.submit([1, 2, 3]))).result()

    assert whole() == 6


def test_conditional_and_dynamic_graphs() -> None:
    @flow
    def collatz(n: int) -> int:
        steps = 0
        future: TaskFuture[int] = add.submit(n)
        while (value := future.result()) != 1:
            future = add.submit(value // 2) if value % 2 == 0 else add.submit(value * 3, 1)
            steps += 1
        return steps

    assert collatz(27) == 111


def test_methods_static_methods_partials_lambdas_and_callables() -> None:
    class Counter:
        def __init__(self, start: int) -> None:
            self.start = start

        @task
        def plus(self, n: int) -> int:
            return self.start + n

        @task
        async def plus_async(self, n: int) -> int:
            return self.start + n

        @staticmethod
        @task
        def double(n: int) -> int:
            return 2 * n

        @classmethod
        def made(cls, n: int) -> Counter:
            return cls(n)

        def __call__(self, n: int) -> int:
            return self.start - n

    counter = Counter.made(10)
    assert counter.plus(1) == 11

    @flow
    def whole() -> list[int]:
        triple = task(lambda n: 3 * n)
        return [
            counter.plus(2),
            counter.plus.submit(3).result(),
            counter.plus_async.submit(4).result(),
            Counter.double.submit(4).result(),
            triple.submit(5).result(),
            task(functools.partial(add.fn, 100))(1),
            task(counter).submit(1).result(),
        ]

    assert whole() == [12, 13, 14, 8, 15, 101, 9]


def test_methods_are_flows_too(tmp_path: Path) -> None:
    class Report:
        def __init__(self, title: str) -> None:
            self.title = title

        @flow
        def made(self, copies: int = 1) -> list[str]:
            return [self.title] * copies

        @flow
        async def made_async(self, copies: int = 1) -> list[str]:
            return [self.title] * copies

    assert Report("a").made(2) == ["a", "a"]
    assert Report("a").made() == ["a"]
    assert Report.made(Report("b"), 2) == ["b", "b"]
    assert asyncio.run(Report("c").made_async(copies=2)) == ["c", "c"]

    titles = ["a", "b"]

    @flow
    def whole() -> None:
        for title in titles:
            Report(title).made()

    keys = []
    for i in range(2):
        path = str(tmp_path / f"journal{i}")
        flow_engine.run(whole, (), {}, Root(Journal(path)))
        keys.append({line["k"] for line in lines(path) if "p" in line})
        titles.reverse()
    assert keys[0] == keys[1]
    assert len(keys[0]) == 2


def test_hooks_of_methods_and_of_the_same_with_other_options() -> None:
    called: list[str] = []

    class Source:
        @task
        def read(self, n: int) -> int:
            raise ValueError(n)

        @read.on_failure
        def _told(task: Any, run: Any, state: State[Any]) -> None:
            called.append(f"read {state.error}")

        @flow
        def whole(self) -> int:
            return self.read.submit(3).result()

        @whole.on_failure
        def _ended(flow: Any, run: Any, state: State[Any]) -> None:
            called.append(f"whole {state.error}")

    assert Source().whole.run().is_failed()
    assert called == ["read 3", "whole 3"]

    mark = task(tags=["a"])
    first, second = mark(lambda: 1), mark(lambda: 2)
    first.on_completion(lambda task, run, state: called.append("first"))

    @flow
    def others() -> None:
        first.with_options(retries=1)()
        first.with_options(on_completion=[lambda task, run, state: called.append("instead")])()
        second()

    others()
    assert called[2:] == ["first", "instead"]


def test_what_cannot_be_a_task_is_refused_where_it_is_marked() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    class Plain:
        pass

    for bad in (generator, async_generator):
        with pytest.raises(TypeError, match=r"is a generator.*return a list instead"):
            task(bad)
        with pytest.raises(TypeError, match="is a generator"):
            flow(bad)
    with pytest.raises(TypeError, match="Plain is a class"):
        task(Plain)
    with pytest.raises(TypeError, match="not for 3"):
        task(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="put @classmethod above @task"):
        task(classmethod(lambda cls: 1))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="is a task already"):
        flow(add)
    with pytest.raises(TypeError, match="no option 'retrys'"):
        task(retrys=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="no option 'nome'"):
        flow(lambda: 1).with_options(nome="x")

    def waiting(wait_for: int) -> None:
        pass

    with pytest.raises(ValueError, match="parameter 'wait_for'"):
        task(waiting)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retries": -1}, "cannot be negative"),
        ({"retry_delay": -1}, "cannot be negative"),
        ({"retry_backoff": 0.5}, "factor of 1 or more"),
        ({"retry_jitter": -0.1}, "cannot be negative"),
        ({"timeout": 0}, "above 0"),
        ({"timeout": float("nan")}, "above 0"),
        ({"name": ""}, "is no name"),
        ({"name": "a\nb"}, "is no name"),
        ({"cache_expires": 5}, "needs cache=True"),
        ({"cache_expires": -1, "cache": True}, "above 0"),
        ({"retry_delay": [1, -1]}, "cannot be negative"),
        ({"name": 3}, "is no name"),
        ({"retries": "3"}, "retries is '3'; it is a whole number"),
        ({"retries": None}, "whole number"),
        ({"retries": 1.5}, "whole number"),
        ({"retry_delay": "5"}, "'5', which is no number"),
        ({"retry_jitter": None}, "no number"),
        ({"retry_if": "ValueError"}, "a type of exceptions, a tuple of them, or a function"),
        ({"retry_if": [ValueError]}, "a type of exceptions, a tuple of them, or a function"),
        ({"timeout": "5"}, "no number"),
        ({"tags": "gpu"}, "tags is 'gpu'; it is a list of texts"),
        ({"tags": [1]}, "list of texts"),
        ({"cache": "inputs"}, "True, False, or a function"),
        ({"on_failure": print}, "on_failure is a list of functions"),
        ({"on_failure": [3]}, "not 3"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        task(**options)(lambda: 1)
    if options.keys() <= {"retries", "retry_delay", "retry_if", "timeout", "name", "on_failure"}:
        with pytest.raises((ValueError, TypeError), match=text):
            flow(**options)(lambda: 1)


def test_a_limit_of_results_is_a_number_above_0() -> None:
    with pytest.raises(ValueError, match="result_limit is -1; it is a number above 0"):
        flow(result_limit=-1)(lambda: 1)


def test_with_options_changes_a_copy() -> None:
    other = add.with_options(name="plus", retries=3, tags=["gpu"])
    assert isinstance(other, Task)
    assert isinstance(add_async.with_options(name="x"), AsyncTask)
    assert (other.name, other.retries.count, other.tags) == ("plus", 3, {"gpu"})
    assert (add.name, add.retries.count, add.tags) == ("add", 0, frozenset())


def test_two_tasks_with_one_name() -> None:
    def made(n: int) -> Task[[], int]:
        @task(name="the same")
        def one() -> int:
            return n

        return one

    def other() -> Task[[], int]:
        @task(name="the same")
        def one() -> int:
            return 3

        return one

    @flow
    def fine() -> list[int]:
        return [made(1)(), made(2).submit().result(), other()()]

    assert fine() == [1, 2, 3]

    @task(name="the same")
    def again() -> int:
        return 5

    first = again

    @task(name="the same")
    def again() -> int:  # type: ignore[no-redef]
        return 6

    @flow
    def clash() -> None:
        first()
        again()

    with pytest.raises(ValueError, match=r"two tasks are called 'the same': .*give one of them another name"):
        clash()


def test_a_future_of_another_flow_run_is_refused() -> None:
    kept: list[TaskFuture[int]] = []

    @flow
    def first() -> None:
        kept.append(add.submit(1))

    @flow
    def second() -> int:
        return add.submit(kept[0]).result()

    first()
    with pytest.raises(ForeignFuture, match="take its result"):
        second()
    assert kept[0].result() == 1

    @flow
    def third(values: list[int]) -> list[int]:
        return values

    @flow
    async def third_async(values: list[int]) -> list[int]:
        return values

    @flow
    def around() -> list[int]:
        return third(kept)  # type: ignore[arg-type]

    for use in (
        around,
        lambda: third(kept),  # type: ignore[arg-type]
        lambda: asyncio.run(third_async(kept)),  # type: ignore[arg-type]
    ):
        with pytest.raises(ForeignFuture, match=r"flow third.* was given the future of task add"):
            use()


def test_nothing_is_submitted_to_a_flow_that_has_ended() -> None:
    import contextvars

    kept: list[contextvars.Context] = []

    @flow
    def first() -> None:
        kept.append(contextvars.copy_context())

    first()
    with pytest.raises(TaskCancelled, match="has ended"):
        kept[0].run(add.submit, 1)


def test_a_future_is_not_iterated_over_or_pickled() -> None:
    import pickle

    @flow
    def whole() -> None:
        future = add.submit(1)
        with pytest.raises(TypeError, match="take its result"):
            list(future)
        with pytest.raises(TypeError, match="cannot be sent"):
            pickle.dumps(future)

    whole()


def test_parameters_are_made_to_fit_or_refused() -> None:
    @flow
    def typed(day: date, where: Path, count: int = 1, *rest: float, **more: int) -> list[Any]:
        return [day, where, count, rest, more]

    assert typed("2026-01-02", "/tmp", "3", "1.5", x="4") == [  # type: ignore[arg-type]
        date(2026, 1, 2),
        Path("/tmp"),
        3,
        (1.5,),
        {"x": 4},
    ]
    with pytest.raises(ParameterError, match=r"flow typed: parameter count: .*valid integer"):
        typed(date(2026, 1, 2), Path("/"), "many")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="missing a required argument: 'where'"):
        typed(date(2026, 1, 2))  # type: ignore[call-arg]
    schema = typed.parameter_schema()
    assert schema["properties"]["day"]["format"] == "date"
    assert sorted(schema["required"]) == ["day", "where"]


def test_types_that_are_not_there_at_run_time_are_no_obstacle(caplog: pytest.LogCaptureFixture) -> None:
    @flow
    def typed(price: Decimal) -> Any:
        return price

    assert typed("1.5") == "1.5"  # type: ignore[arg-type]
    assert "flow typed: its parameters are taken as they are" in caplog.text
