"""One task over many inputs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sized
from typing import Any

from shunter import engine
from shunter.annotations import AllowFailure, Unmapped
from shunter.futures import TaskFuture, TaskFutures


def mapped(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], wait_for: Any) -> TaskFutures[Any]:
    """See ``Task.map``."""
    positions: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    columns: dict[int | str, Iterable[Any]] = {}
    whole: dict[int | str, Any] = {}
    for place, value in positions:
        if isinstance(value, TaskFuture):
            value = value.result()
        if isinstance(value, AllowFailure) and not isinstance(value.value, TaskFuture):
            columns[place] = [AllowFailure(one) for one in value.value]
        elif _to_map(value):
            columns[place] = value
        else:
            whole[place] = value.value if isinstance(value, Unmapped) else value
    if not columns:
        raise ValueError(
            f"{task.name}.map has nothing to map over: none of its arguments can be iterated over"
        )
    _same_length(task, columns)
    futures: TaskFutures[Any] = TaskFutures()
    for row in zip(*columns.values(), strict=True):
        here = dict(zip(columns, row, strict=True)) | whole
        futures.append(
            engine.submit(
                task,
                tuple(here[i] for i in range(len(args))),
                {name: here[name] for name in kwargs},
                wait_for,
            )
        )
    return futures


def _to_map(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(
        value, (str, bytes, bytearray, io.IOBase, Unmapped, AllowFailure)
    )


def _same_length(task: Any, columns: dict[int | str, Iterable[Any]]) -> None:
    """Before anything is submitted; what has no length is read whole, if there is something to compare it with."""
    if len(columns) == 1:
        return
    for place, column in columns.items():
        if not isinstance(column, Sized):
            columns[place] = list(column)
    lengths = {place: len(column) for place, column in columns.items() if isinstance(column, Sized)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{place}: {length}" for place, length in lengths.items())
        raise ValueError(
            f"the arguments of {task.name}.map have different lengths ({told}); mark with unmapped() what all get"
        )
