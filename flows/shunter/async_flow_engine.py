"""How the run of a flow goes that is ``async def``."""

from __future__ import annotations

import asyncio
from typing import Any

from shunter import flow_engine
from shunter.errors import FlowTimeout, is_cancellation
from shunter.futures import TaskFuture
from shunter.runs import Root
from shunter.scopes import current
from shunter.states import State


async def run(
    flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any], root: Root | None = None
) -> State[Any]:
    """As ``flow_engine.run``."""
    for future in flow_engine.given(flow, args, kwargs):
        if not future.done():
            await _ended(future)
    one, call = flow_engine.made(flow, args, kwargs, root)
    if (before := flow_engine.completed_before(one)) is not None:
        return before
    with flow_engine.outermost(one, asyncio.current_task()):
        while True:
            alarm = flow_engine.started(one)
            value, error = None, None
            token = current.set(one)
            try:
                async with asyncio.timeout(flow.timeout) as limit:
                    value = await flow.fn(*call.args, **call.kwargs)
            except BaseException as exc:
                error = (
                    flow_engine.too_long(one) if isinstance(exc, TimeoutError) and limit.expired() else exc
                )
            try:
                if isinstance(error, FlowTimeout) or is_cancellation(error):
                    flow_engine.stop(one, error)
                while (each := one.an_open()) is not None:
                    await _ended(each)
            except BaseException as exc:
                flow_engine.stop(one, exc)
                error = exc
            finally:
                current.reset(token)
            pause = flow_engine.over(one, value, error, alarm)
            if pause is None:
                return flow_engine.state(one)
            await asyncio.sleep(pause)


async def _ended(future: TaskFuture[Any]) -> None:
    from shunter.executors import coroutines

    await coroutines.wait_for(future)
