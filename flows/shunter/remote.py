"""A task in another process: what is called there.

What it submits there runs in threads of that process, and is awaited before the task ends. Only the task itself is known
to the flow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from shunter import engine, loggers
from shunter.clock import clock
from shunter.containers import rebuilt
from shunter.errors import ExecutorError, Interrupted
from shunter.futures import TaskFuture
from shunter.interrupts import Interruptible
from shunter.messages import Messages, send_records, this_process
from shunter.packing import pack, unpack
from shunter.retries import Retries
from shunter.runs import FlowRun, Root
from shunter.scopes import current


class Slot:
    """Stands where the value of one of the futures that an executor resolves is to be put."""

    def __init__(self, number: int) -> None:
        self.number = number


class Order:
    """What is to be done: a task, its arguments, and where it belongs.

    Args:
        timeout: seconds that a try may take, where nobody else sees to that.
        send: brings a message of the task to the flow, from wherever it is.
    """

    def __init__(
        self,
        run: TaskFuture[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        send: Callable[[str], object] | None = None,
    ) -> None:
        self.task = run.task
        self.args = args
        self.kwargs = kwargs
        self.flow = run.flow_run.name
        self.parameters = run.flow_run.sent_parameters
        self.attempt = run.attempt
        self.key = run.key
        self.timeout = timeout
        self.send = send
        self.made_in = this_process()

    def is_elsewhere(self) -> bool:
        """Whether this is not the flow's own process, whose journal and handlers are at hand."""
        return self.made_in != this_process()


class _FlowThere:
    """As much of a flow as a scope in another process needs."""

    executor = None
    retries = Retries(0, 0.0, 1.0, 0.0, None)
    version = ""
    result_storage = None
    result_limit = None

    def __init__(self, name: str) -> None:
        self.name = name


class Answer:
    """How an order ended at an executor that brings nothing but this.

    Args:
        told: messages of the task, in their order.
    """

    def __init__(self, value: Any, error: BaseException | None, told: list[str]) -> None:
        self.value = value
        self.error = error
        self.told = told


def do(order: Order) -> Any:
    """Execute it; the value.

    Raises:
        BaseException: what it raised.
    """
    messages = None
    if order.send is not None and order.is_elsewhere():
        messages = Messages(order.send, records=True)
        send_records()
    return _done(order, messages)


def _done(order: Order, messages: Messages | None) -> Any:
    loggers.set_up()
    root = Root(None)
    root.messages = messages
    flow_run = FlowRun(_FlowThere(order.flow), root, None, order.parameters)
    run = TaskFuture[Any](order.task, flow_run, None, 1)
    run.attempt = order.attempt
    run._key = order.key
    run._args, run._kwargs = order.args, order.kwargs
    token = current.set(run)
    try:
        value = _in_time(run, order.timeout)
    finally:
        try:
            while (one := flow_run.an_open()) is not None:
                one.wait()
        finally:
            current.reset(token)
            flow_run.close()
            root.close()
    if (wrong := engine.no_value("task", order.task, value)) is not None:
        raise wrong
    return value


def do_sent(order: Order) -> Answer:
    """The same by an executor that is a ``concurrent.futures.Executor`` and no more."""
    told: list[str] = []
    messages = Messages(told.append) if order.is_elsewhere() else None
    try:
        return Answer(_done(order, messages), None, told)
    except Exception as exc:
        return Answer(None, sendable(order.task.name, exc), told)


def do_with_values(packed: bytes, values: list[Any]) -> Any:
    """The same of a packed order, with values put where slots are; tries as often as the task says, here where the values are."""
    order: Order = unpack(packed)
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


def sendable(name: str, error: BaseException) -> BaseException:
    """An exception that can be sent to another process and read there, with the traceback of this one as a note."""
    import traceback

    trace = "".join(traceback.format_tb(error.__traceback__))
    try:
        unpack(pack(error))
    except Exception as exc:
        text = f"task {name} raised {type(error).__qualname__}: {error} (which itself cannot be sent: {exc})"
        error = ExecutorError(text)
    error.add_note("In the process of the task:\n" + trace)
    return error


def _in_time(run: TaskFuture[Any], timeout: float | None) -> Any:
    """Call the function. One that takes too long is interrupted at its next line."""
    if run.task.is_async:
        return asyncio.run(_awaited(run, timeout))
    if timeout is None:
        return run.task.fn(*run._args, **run._kwargs)
    gate = Interruptible()
    late: list[bool] = []

    def expire() -> None:
        late.append(True)
        gate.interrupt(Interrupted)

    alarm = clock.later(timeout, expire)
    try:
        with gate:
            value = run.task.fn(*run._args, **run._kwargs)
    except BaseException:
        gate.leave()
        if not late:
            raise
    finally:
        alarm.cancel()
    if late:
        raise engine.too_long(run)
    return value


async def _awaited(run: TaskFuture[Any], timeout: float | None) -> Any:
    try:
        async with asyncio.timeout(timeout) as limit:
            return await run.task.fn(*run._args, **run._kwargs)
    except TimeoutError:
        if limit.expired():
            raise engine.too_long(run) from None
        raise


def _filled(value: Any, values: list[Any]) -> Any:
    if isinstance(value, Slot):
        return values[value.number]
    return rebuilt(value, lambda part: _filled(part, values))
