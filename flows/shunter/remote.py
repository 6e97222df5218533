"""A task in another process: what is called there.

What it submits there runs in threads of that process, and is awaited before the task ends. Only the task itself is known
to the flow.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from shunter import engine
from shunter.containers import rebuilt
from shunter.futures import TaskFuture
from shunter.retries import Retries
from shunter.runs import FlowRun, Root
from shunter.scopes import current


class Slot:
    """Stands where the value of one of the futures that an executor resolves is to be put."""

    def __init__(self, number: int) -> None:
        self.number = number


class Order:
    """What is to be done: a task, its arguments, and where it belongs."""

    def __init__(self, run: TaskFuture[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.task = run.task
        self.args = args
        self.kwargs = kwargs
        self.flow = run.flow_run.name
        self.parameters: dict[str, Any] = {}
        self.attempt = run.attempt


class _FlowThere:
    """As much of a flow as a scope in another process needs."""

    executor = None
    retries = Retries(0, 0.0, 1.0, 0.0, None)
    version = ""
    result_storage = None
    result_limit = None

    def __init__(self, name: str) -> None:
        self.name = name


def do(order: Order) -> Any:
    """Execute it; the value.

    Raises:
        BaseException: what it raised.
    """
    root = Root(None)
    flow_run = FlowRun(_FlowThere(order.flow), root, None, order.parameters)
    run = TaskFuture[Any](order.task, flow_run, None, 1)
    run.attempt = order.attempt
    run._args, run._kwargs = order.args, order.kwargs
    token = current.set(run)
    try:
        value = order.task.fn(*order.args, **order.kwargs)
        if order.task.is_async:
            value = asyncio.run(_awaited(value, order.task.timeout))
        while (one := flow_run.an_open()) is not None:
            one.wait()
    finally:
        current.reset(token)
        flow_run.close()
        root.close()
    if (wrong := engine.no_value(order.task, value)) is not None:
        raise wrong
    return value


def do_with_values(order: Order, values: list[Any]) -> Any:
    """The same with values put where slots are; tries as often as the task says, here where the values are."""
    args, kwargs = _filled((order.args, order.kwargs), values)
    while True:
        order.attempt += 1
        now = Order.__new__(Order)
        now.__dict__.update(order.__dict__, args=args, kwargs=kwargs)
        try:
            return do(now)
        except Exception as exc:
            pause = order.task.retries.after(order.attempt, exc)
            if pause is None:
                raise
            time.sleep(pause)
        except SystemExit as exc:
            raise engine.task_exit(order.task, exc) from exc


async def _awaited(coroutine: Any, timeout: float | None) -> Any:
    return await asyncio.wait_for(coroutine, timeout)


def _filled(value: Any, values: list[Any]) -> Any:
    if isinstance(value, Slot):
        return values[value.number]
    return rebuilt(value, lambda part: _filled(part, values))
