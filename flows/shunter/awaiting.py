"""Asynchronous tasks: called in the loop that awaits them, and held to their time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from shunter import engine, states
from shunter.futures import TaskFuture
from shunter.scopes import current

if TYPE_CHECKING:
    from shunter.scopes import Scope


async def called(task: Any, scope: Scope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An asynchronous task that is called: it runs in the loop that awaits it."""
    run = engine.direct(task, scope, args, kwargs)
    if run.state in states.ENDS:
        return run.value_now()
    run._args, run._kwargs = args, kwargs
    for one in run.upstream:
        if not one.done():
            from shunter.executors import coroutines

            await coroutines.wait_for(one)
    if (failed := engine.hindered(run)) is not None:
        return engine.refused(run, failed)
    token = current.set(run)
    try:
        while True:
            turn = engine.attempt_started(run)
            error: BaseException | None = None
            value = None
            try:
                value = await engine.invoke(run)
            except BaseException as exc:
                error = exc
            pause = engine.attempt_ended(run, turn or 0, value, error, direct=True)
            if pause is None:
                break
            await asyncio.sleep(pause)
    finally:
        current.reset(token)
    return engine.outcome(run, error)


async def timed(run: TaskFuture[Any], coroutine: Any) -> Any:
    try:
        async with asyncio.timeout(run.task.timeout) as limit:
            return await coroutine
    except TimeoutError:
        if limit.expired():
            raise engine.too_long(run) from None
        raise
