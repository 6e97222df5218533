"""Tasks that wait for tasks, flows inside tasks, and pools that are too small for it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shunter import allow_failure, context, flow, task
from shunter.executors import Threads
from tests.flows.workflows import add, add_async, calls_flow, fail, inner, nested, total


@pytest.mark.parametrize("pool", ["own", "another's", "processes"])
def test_a_thousand_tasks_that_wait_for_each_other_in_a_pool_of_two(pool: str) -> None:
    depth = 1000 if pool != "processes" else 100
    given = ThreadPoolExecutor(2)
    executor: Any = {"own": Threads(2), "another's": given, "processes": "processes"}[pool]

    @flow(executor=executor)
    def whole() -> int:
        return nested.submit(depth).result()

    assert whole() == depth
    assert given.submit(lambda: 5).result() == 5  # it is not ours to end
    given.shutdown()


def test_a_tree_of_tasks_in_one_thread() -> None:
    @task
    def leaves(depth: int) -> int:
        return 1 if depth == 0 else sum(leaves.map([depth - 1] * 3).result())

    @flow(executor=Threads(1))
    def whole() -> int:
        return leaves.submit(5).result()

    assert whole() == 243


def test_a_tree_of_asynchronous_tasks_larger_than_the_loop_takes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from shunter.executors import coroutines

    monkeypatch.setattr(coroutines, "MOST", 3)

    @task
    async def leaves(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(await asyncio.gather(*leaves.map([depth - 1] * 3)))

    @flow
    def whole() -> int:
        return leaves.submit(4).result()

    assert whole() == 81


@pytest.mark.parametrize("executor", [Threads(2), "processes"])
def test_flows_inside_tasks(executor: Any) -> None:
    @flow(executor=executor)
    def whole() -> list[int]:
        return calls_flow.map(range(10)).result()

    assert whole() == [n + 2 for n in range(10)]


def test_asynchronous_flows_inside_tasks_of_a_small_pool() -> None:
    @flow
    async def below(n: int) -> int:
        return await add.submit(await add_async(n, 1), 1)

    @task
    def runs(n: int) -> int:
        return asyncio.run(below(n))

    @flow(executor=Threads(1))
    def whole() -> list[int]:
        return runs.map(range(5)).result()

    assert whole() == [n + 2 for n in range(5)]


def test_a_subflow_has_a_state_of_its_own_and_the_executor_around_it() -> None:
    names: list[str] = []

    @task
    def where() -> str:
        names.append(threading.current_thread().name)
        return f"{context.flow}/{context.task}"

    @flow(executor=ThreadPoolExecutor(1, thread_name_prefix="given"))
    def outer() -> list[str]:
        below = bad.run()
        return [below.name, good(), where.submit().result(), other()]

    @flow
    def bad() -> None:
        fail.submit().result()

    @flow
    def good() -> str:
        return where.submit().result()

    @flow(executor=Threads(1))
    def other() -> str:
        return where.submit().result()

    assert outer() == ["Failed", "good/where", "outer/where", "other/where"]
    assert [name.startswith("given") for name in names] == [True, True, False]


def test_futures_as_parameters_of_a_subflow_are_waited_for() -> None:
    @flow
    def below(n: int, more: list[int]) -> int:
        return n + sum(more)

    @flow
    def whole() -> int:
        return below(add.submit(1), [add.submit(2), 3])  # type: ignore[arg-type, list-item]

    assert whole() == 6


def test_flows_without_end_are_stopped() -> None:
    @flow
    def again(n: int) -> int:
        return again(n + 1)

    with pytest.raises(RecursionError, match="does it call itself without end"):
        again(0)

    @flow
    def by_tasks(n: int) -> int:
        return step.submit(n).result()

    @task
    def step(n: int) -> int:
        return by_tasks(n + 1)

    with pytest.raises(RecursionError, match="does it call itself without end"):
        by_tasks(0)


def test_tasks_without_end_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    from shunter import engine

    monkeypatch.setattr(engine, "DEEPEST", 60)

    @task
    def again(n: int) -> int:
        return again.submit(n + 1).result()

    @flow
    def whole() -> int:
        return again.submit(0).result()

    with pytest.raises(RecursionError, match="nested 60 runs deep"):
        whole()


def test_asynchronous_tasks_wait_by_await_in_any_loop() -> None:
    @task
    async def waits(n: int) -> int:
        return 1 + await add.submit(n)

    @flow
    def plain() -> int:
        future = waits.submit(1)
        other: list[int] = []

        async def elsewhere() -> None:
            other.append(await future)

        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        thread.join()
        asyncio.run(elsewhere())
        return sum(other)

    @flow
    async def whole() -> list[int]:
        called = await asyncio.gather(*(waits(n) for n in range(3)))
        submitted = await asyncio.gather(*waits.map(range(3)))
        return [*called, *submitted, waits.submit(9).result()]

    assert plain() == 4
    assert asyncio.run(whole()) == [1, 2, 3, 1, 2, 3, 10]


def test_blocking_the_loop_of_asynchronous_tasks_is_an_error_not_a_deadlock() -> None:
    @task
    async def blocks() -> int:
        return add_async.submit(1).result()

    @flow
    def whole() -> None:
        blocks.submit().result()

    with pytest.raises(RuntimeError, match="await the future instead"):
        whole()


def test_context_variables_of_the_user_reach_the_tasks() -> None:
    from contextvars import ContextVar

    mine: ContextVar[str] = ContextVar("mine", default="nothing")

    @task
    def read() -> str:
        return mine.get()

    @task
    async def read_async() -> str:
        return mine.get()

    @flow
    def whole() -> list[str]:
        mine.set("something")
        return [read.submit().result(), read_async.submit().result(), read()]

    assert whole() == ["something"] * 3


def test_many_flows_at_once_in_threads_of_the_user() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(inner, range(20))) == [n + 2 for n in range(20)]


def test_a_failed_upstream_in_a_nested_task() -> None:
    @task
    def outer() -> int:
        return total.submit([allow_failure(fail.submit()), 1]).result()

    @flow(executor=Threads(1))
    def whole() -> None:
        outer.submit().result()

    with pytest.raises(TypeError):
        whole()
