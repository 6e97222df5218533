"""Marks around arguments of tasks."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

V = TypeVar("V")


class Mark(Generic[V]):
    """A value and what is to be done with it."""

    __slots__ = ("value",)

    def __init__(self, value: V) -> None:
        self.value = value


class Unmapped(Mark[V]):
    """See ``unmapped``."""


class AllowFailure(Mark[V]):
    """See ``allow_failure``."""


def unmapped(value: V) -> Any:
    """An argument of ``task.map`` that every one of the task runs gets whole."""
    return Unmapped(value)


def allow_failure(future: V) -> Any:
    """A dependency that may fail: the task runs all the same, and gets the exception instead of the value."""
    return AllowFailure(future)
