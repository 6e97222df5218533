"""Read by mypy --strict in test_typing, never executed. Lines marked ``# error: CODE`` must be errors, all others none."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from shunter import (
    Flow,
    State,
    Task,
    TaskFuture,
    allow_failure,
    as_completed,
    context,
    deploy,
    flow,
    serve,
    task,
    track,
    unmapped,
    wait,
)
from shunter.deployments import FlowDeployment
from shunter.flows import AsyncFlow
from shunter.futures import TaskFutures
from shunter.tasks import AsyncTask
from shunter_work_pools.contracts.deployments import Change


@task
def bare(n: int, text: str = "") -> list[str]:
    return [text] * n


@task(retries=2, retry_delay=[1, 2.5], retry_if=(OSError, KeyError), tags=["gpu"], timeout=5)
def with_options(n: int) -> float:
    return n / 2


@task
async def coroutine(n: int) -> bytes:
    return bytes(n)


@task(
    retry_delay=lambda n: n * 2.0, retry_if=lambda exc: isinstance(exc, OSError), cache=lambda task, args: "x"
)
async def coroutine_with_options(n: int) -> bytes:
    return bytes(n)


@flow
def plain(upto: int = 10) -> float:
    return with_options(upto)


@flow(name="other", executor="threads", retries=1)
def other(upto: int) -> list[str]:
    return bare.submit(upto).result()


@flow(timeout=5)
async def asynchronous(upto: int) -> bytes:
    return await coroutine.submit(upto)


class Machine:
    @task
    def turn(self, by: int) -> str:
        return str(by)

    @task
    async def turn_async(self, by: int) -> str:
        return str(by)

    @flow
    def day(self, turns: int) -> list[str]:
        return [self.turn(turns)]

    @flow
    async def day_async(self, turns: int) -> list[str]:
        return [self.turn(turns)]


def calls() -> None:
    assert_type(bare(1, text="a"), list[str])
    assert_type(with_options(1), float)
    bare("1")  # error: arg-type
    bare(1, 2)  # error: arg-type
    bare(1, txt="a")  # error: call-arg
    bare()  # error: call-arg
    with_options("x")  # error: arg-type
    assert_type(plain(), float)
    assert_type(plain.run(5), State[float])
    assert_type(plain.run(5).result(), float)
    plain("x")  # error: arg-type
    plain.run(up=1)  # error: call-arg
    assert_type(other(1), list[str])
    assert_type(Machine().turn(1), str)
    Machine().turn("x")  # error: arg-type
    assert_type(Machine().day(1), list[str])
    assert_type(Machine().day.run(1), State[list[str]])
    Machine().day("x")  # error: arg-type
    assert_type(bare.with_options(retries=3)(1), list[str])


async def awaited() -> None:
    assert_type(await coroutine(1), bytes)
    assert_type(await coroutine_with_options(1), bytes)
    assert_type(await coroutine.submit(1), bytes)
    assert_type(await bare.submit(1), list[str])
    assert_type(await asynchronous(1), bytes)
    assert_type((await asynchronous.run(1)).result(), bytes)
    assert_type(await Machine().turn_async(1), str)
    await coroutine("x")  # error: arg-type
    await asynchronous("x")  # error: arg-type
    assert_type(await Machine().day_async(1), list[str])
    await Machine().day_async("x")  # error: arg-type


def futures() -> None:
    one: TaskFuture[list[str]] = bare.submit(1)
    wrong: TaskFuture[int] = bare.submit(1)  # error: assignment
    assert_type(one.result(), list[str])
    assert_type(one.final_state(), State[list[str]])
    assert_type(coroutine.submit(1).result(), bytes)
    many: TaskFutures[float] = with_options.map(range(10))
    assert_type(many.result(), list[float])
    assert_type(many[0].result(), float)
    for future in as_completed(many):
        assert_type(future.result(), float)
    wait(many)
    bare.submit(with_options.submit(1), text=unmapped("a"), wait_for=[allow_failure(one)])
    as_any_value: TaskFuture[object] = one
    for n in track(range(3), "counting"):
        assert_type(n, int)


def kinds() -> None:
    task_: Task[[int], float] = with_options
    async_task: AsyncTask[[int], bytes] = coroutine
    flow_: Flow[[int], list[str]] = other
    async_flow: AsyncFlow[[int], bytes] = asynchronous
    assert_type(context.run_id, str | None)
    assert_type(context.attempt, int)
    task(nmae="x")  # error: call-overload
    task(retries="x")  # error: call-overload
    flow(executor="threads", timeout="x")  # error: call-overload


def deployments() -> None:
    one = plain.to_deployment("one", parameters={"upto": 1}, cron="0 6 * * *", timezone="Europe/Berlin")
    assert_type(one, FlowDeployment)
    serve(one, asynchronous.to_deployment(interval=timedelta(minutes=1)), limit=2, pause_on_exit=False)
    plain.serve(name="served", tags=["demo"], interval=60, env={"A": "b"}, retries=2)
    assert_type(deploy(one, pool="main"), list[Change])
    assert_type(
        plain.deploy("two", pool="main", source={"git": "https://host/code.git"}, need={"gpu": 1}), Change
    )
    plain.serve(name="served", intervall=60)  # error: call-arg
    plain.serve(name="served", interval="60s")  # error: arg-type
    plain.serve(name="served", queue="fast")  # error: call-arg
    plain.to_deployment("one", catch_up="some")  # error: arg-type
    plain.deploy("two", tags=1)  # error: arg-type
    serve(plain)  # error: arg-type
