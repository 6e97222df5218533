"""Futures among the arguments of tasks: where they are, and their values in their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shunter.annotations import AllowFailure, Unmapped
from shunter.containers import SIMPLE, parts_of, rebuilt
from shunter.errors import ForeignFuture
from shunter.futures import TaskFuture

#: What is wanted of one upstream: its value, that it completed, that it ended.
VALUE, END, ANY_END = 1, 2, 4


def upstream_of(
    run: TaskFuture[Any], args: tuple[Any, ...], kwargs: dict[str, Any], wait_for: Any
) -> dict[TaskFuture[Any], int]:
    """Those it depends on, each with what of it is wanted."""
    found: dict[TaskFuture[Any], int] = {}
    seen: set[tuple[int, int]] = set()
    for value in args:
        if type(value) not in SIMPLE:
            _search(value, found, VALUE, seen)
    for value in kwargs.values():
        if type(value) not in SIMPLE:
            _search(value, found, VALUE, seen)
    if wait_for is not None:
        _search(wait_for, found, END, seen)
    if found:
        root = run.root
        for one in found:
            if one.root is not root:
                raise foreign("task", run.name, one)
        run.upstream = tuple(found)
        run._lenient = tuple(one for one, wanted in found.items() if not wanted & (VALUE | END))
    return found


def foreign(what: str, name: str, one: TaskFuture[Any]) -> ForeignFuture:
    """The error of a task or flow (``what``) that was given this future."""
    return ForeignFuture(
        f"{what} {name} was given the future of task {one.name}, which belongs to another run of a flow "
        f"({one.flow_run.name}): take its result() there and give the value"
    )


def _search(value: Any, found: dict[TaskFuture[Any], int], wanted: int, seen: set[tuple[int, int]]) -> None:
    kind = type(value)
    if kind in SIMPLE:
        return
    if kind is TaskFuture:
        found[value] = found.get(value, 0) | wanted
    elif kind is AllowFailure:
        _search(value.value, found, ANY_END, seen)
    elif kind is Unmapped:
        _search(value.value, found, wanted, seen)
    elif (parts := parts_of(value)) is not None and (id(value), wanted) not in seen:
        seen.add((id(value), wanted))  # containers may contain each other
        for part in parts:
            if type(part) not in SIMPLE:
                _search(part, found, wanted, seen)


def replaced(value: Any, put: Callable[[TaskFuture[Any], bool], Any]) -> Any:
    """A container with something else where futures are; the same one if there are none.

    Args:
        put: what to put there, by the future and whether it may have failed.
    """
    return _replaced(value, put, False, frozenset())


def _replaced(
    value: Any, put: Callable[[TaskFuture[Any], bool], Any], failing: bool, around: frozenset[int]
) -> Any:
    kind = type(value)
    if kind in SIMPLE:
        return value
    if kind is TaskFuture:
        return put(value, failing)
    if kind is AllowFailure:
        return _replaced(value.value, put, True, around)
    if kind is Unmapped:
        return _replaced(value.value, put, failing, around)
    if id(value) in around:
        return value  # it contains itself
    around |= {id(value)}
    return rebuilt(value, lambda part: _replaced(part, put, failing, around))


def futures_in(value: Any) -> list[TaskFuture[Any]]:
    """Those in a value, however deep in its containers, in order."""
    found: dict[TaskFuture[Any], int] = {}
    _search(value, found, VALUE, set())
    return list(found)


def value_for(one: TaskFuture[Any], failing: bool) -> Any:
    """What a future is replaced by: its value, or its error if that may be.

    Raises:
        BaseException: the error.
    """
    if one.error is not None:
        if failing:
            return one.error
        raise one.error
    return one.value_now()


def marked(one: TaskFuture[Any], failing: bool) -> Any:
    """The same future, in a mark, so that the containers around it are made anew by ``replaced``."""
    return (AllowFailure if failing else Unmapped)(one)


def values_of(run: TaskFuture[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with values where futures were."""
    if not run.upstream:
        return run._args, run._kwargs
    args, kwargs = replaced((run._args, run._kwargs), value_for)
    return args, kwargs
