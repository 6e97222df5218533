"""Tasks and flows on their way to another process: by name where the module has them, else by what they are made of."""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any


def reduced(what: Any) -> Any:
    """For ``__reduce__`` of a task or flow."""
    if _found(what.__module__, what.__qualname__) is what:
        return what.__qualname__
    function = what.fn
    if isinstance(function, MethodType):
        base = _found(function.__func__.__module__, function.__func__.__qualname__)
        if getattr(base, "fn", None) is function.__func__:
            return _bound, (base, function.__self__)
    base = _found(what.__module__, what.__qualname__)
    if getattr(base, "fn", None) is function:
        return _again, (base, what._options)
    return what.made_of()


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _bound(task: Any, instance: Any) -> Any:
    return task.__get__(instance, type(instance))


def _again(task: Any, options: dict[str, Any]) -> Any:
    return task.with_options(**options)
